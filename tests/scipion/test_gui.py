"""The windows on a screen (Xvfb): form, wizards and viewer of finished, running and failed runs."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import require_program

from examples import screen
from localrefine_plugin.report.run_figures import PICTURES

NOT_IN_THE_FAKE_RUN = ("scale", "filter_resolution", "validation", "film", "rigidity")
NO_LEGEND = ("orientations", "map_slices", "axis_change")  # one thing drawn, or named in titles and caption
SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture(scope="module")
def display():
    for name in screen.PROGRAMS:
        require_program(name)
    with screen.virtual_screen() as name:
        yield name


@pytest.fixture(scope="module")
def windows(display, tmp_path_factory):
    """(folder of the photographs, facts.json)."""
    folder = tmp_path_factory.mktemp("gui")
    windows = [sys.executable, str(SUPPORT / "gui_windows.py"), str(folder)]
    done = subprocess.run(windows, text=True, capture_output=True, env=dict(os.environ, DISPLAY=display), timeout=600)
    assert (folder / "facts.json").exists(), done.stdout[-2000:] + done.stderr[-4000:]
    return folder, json.loads((folder / "facts.json").read_text())


def picture(folder, name):
    from PIL import Image
    return np.asarray(Image.open(folder / f"{name}.png").convert("L"), dtype=float)


def test_no_window_is_blank(windows):
    folder, facts = windows
    names = [name for name, fact in facts.items() if isinstance(fact, dict) and "title" in fact]
    assert len(names) > 3 * len(PICTURES)
    for name in names:
        image = picture(folder, name)
        assert facts[name]["title"], name
        assert image.shape[0] > (100 if name.startswith("dialog") else 200) and image.shape[1] > 400, name
        assert image.std() > 5 and len(np.unique(image)) > 8, name


def test_the_form_shows_inputs_settings_and_wands(windows):
    _, facts = windows
    texts = facts["form"]["texts"]
    for label in ("Particles", "Volume with half-maps", "Mask of the sub-volume", "Prior on pose and shift",
                  "Rotation search extent (deg, empty: automatic)", "Initial low-pass (Å, empty: automatic)",
                  "Maximum iterations", "Threads", "GPU IDs"):
        assert label in texts, label
    assert {"fulcrum", "fulcrumX", "inputMask", "moreMasks", "initialLowpass", "priorRotation",
            "rotationExtent"} <= set(facts["form"]["wizards"])


def test_values_of_the_wizards_arrive_in_the_form(windows):
    _, facts = windows
    values = facts["wizards"]
    choice, x, y, z = values["fulcrum"]
    assert choice == 2
    assert float(x) == pytest.approx(20, abs=0.1) and float(y) == pytest.approx(9, abs=0.1), "where it was clicked"
    assert float(z) == pytest.approx(values["mask_centre"][2], abs=0.1), "the slice that was clicked keeps z"
    assert [float(v) for v in values["extents"]] == [21.0, 12.0]
    assert 6.0 <= float(values["lowpass"]) <= 30
    assert [float(v) for v in values["prior"]] == [7.0, 4.0]
    mask, prior, masks = values["messages"]
    assert "kDa" in mask and "Soft edge" in mask and re.search(r"fills \d+ % of it", mask)
    assert "No run of this project has learned" in prior
    assert masks.count("100 % of that lie in masks of other bodies") == 2 and "Warning: body 2 shares 100 %" in masks
    assert {"dialog_MaskWizard", "dialog_PriorWizard", "dialog_MoreMasksWizard"} <= set(facts)


def test_a_body_that_was_found_is_offered_as_mask_and_arrives_in_the_form(windows):
    folder, facts = windows
    assert facts["masks_offered"] == [
        "the mask chosen", "body 2 of bodies of the complex, 20 % of the density: moves by 1.7° and 1.7 Å per axis"]
    assert facts["mask_chosen"] == ["bodies of the complex", "outputMask_body2"]
    assert picture(folder, "wizard_mask_of_a_body").std() > 10


def test_the_form_of_recentring_has_the_same_wizard(windows):
    _, facts = windows
    recentre = facts["recentre"]
    assert {"Point", "Point (px)", "New box (px, empty: as it is)"} <= set(recentre["texts"])
    assert recentre["point"][0] == 1 and [float(v) for v in recentre["point"][1:]] == [12.0, 14.0, 19.0]


def test_a_click_moves_the_cross_hair(windows):
    folder, _ = windows
    before, after = picture(folder, "wizard_fulcrum"), picture(folder, "wizard_fulcrum_clicked")
    assert before.shape == after.shape and np.abs(before - after).max() > 50


def test_figures_open_for_every_state_of_a_run(windows):
    folder, facts = windows
    for name in (picture.name for picture in PICTURES):
        for state in ("finished", "running", "failed"):
            fact = facts[f"{state}_{name}"]
            assert fact["heading"], (state, name)
            if state == "finished" and name not in NOT_IN_THE_FAKE_RUN:
                assert fact["labels"] and (fact["legend"] or name in NO_LEGEND), name
            expected = "Now: iteration 2 half 2" if state == "running" else ""
            assert fact["news"].startswith(expected) and bool(fact["news"]) == bool(expected), (state, name)
    assert facts["running_pose_change"]["heading"].endswith("iteration 1"), "the last one that is complete"
    window = facts["slider"]
    assert window["shown"] == [3, 1, 3] and "iteration 1" in window["title_of_1"]
    assert window["followed"] is True, "a window of the result draws again when the run has got further"
    full, message = picture(folder, "finished_pose_change"), picture(folder, "failed_pose_change")
    assert (full < 200).sum() > 2 * (message < 200).sum()


def test_maps_open_in_the_viewer_of_scipion(windows):
    """The data viewer is started on all five maps, and still runs seconds later."""
    _, facts = windows
    viewer = facts["data_viewer"]
    assert viewer["command"][1:3] == ["-m", "metadataviewer"] and viewer["command"][-1] != ""
    assert viewer["maps"] == ["sharpened map", "map", "half-map 1", "half-map 2", "mask"]
    assert viewer["still_running"], viewer["errors"]


def test_the_report_opens_in_the_browser(windows):
    _, facts = windows
    assert facts["report"] == {"pictures": len(PICTURES) - len(NOT_IN_THE_FAKE_RUN), "end": "</html>"}


def test_a_missing_viewer_is_a_message(windows):
    _, facts = windows
    assert "no program" in facts["no_data_viewer"] and "Slices of the map" in facts["no_data_viewer"]
    assert "finished" in facts["no_maps_yet"]
    assert "maps.cxc" in facts["no_chimera"] or shutil.which("ChimeraX")
