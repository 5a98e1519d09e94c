"""What may be sent to others: figures and sentences of a run, and no name of anything."""
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from experiments import experiment, write_inputs

from localrefine_plugin.engine import __main__ as command_line
from localrefine_plugin.engine.finish.bundle import HIDDEN, hide, histogram
from localrefine_plugin.engine.io.run_store import load_poses
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

SECRETS = ("secret_target", "holo-form", "mic_0001", "grid 7")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose folders, micrographs and optics group have names that say something; one image is left out."""
    folder = tmp_path_factory.mktemp("work") / "secret_target" / "holo-form grid 7"
    folder.mkdir(parents=True)
    e = experiment(120, box=32, noise=1.0, seed=1)
    e.images[3] = 0
    e = replace(e, particles=replace(e.particles, optics=tuple(replace(g, name="grid_7_secret_target")
                                                               for g in e.particles.optics)))
    inputs = write_inputs(folder, e, half_map_noise=1.0, seed=1)
    star = folder / "particles.star"
    star.write_text(star.read_text().replace("mic.mrc", "mic_0001"))
    return refine(*inputs, str(folder / "run"), Settings(max_iterations=1), threads=1)


def bundled(run, capsys):
    assert command_line.main(["bundle", str(run.path)]) == 0
    return capsys.readouterr().out


def test_it_names_nothing(finished, capsys):
    text = bundled(finished, capsys)
    for secret in SECRETS + (str(finished.path), "mrcs", "particles.star"):
        assert secret not in text, secret
    assert HIDDEN in text


def test_it_holds_what_was_measured(finished, capsys):
    content = json.loads(bundled(finished, capsys))
    poses = load_poses(finished, 1, 1)
    change = content["histograms"][0]["rotation_change_deg"]
    assert sum(change["counts"]) == len(poses)
    assert change["median"] == pytest.approx(np.median(np.linalg.norm(poses.rotation_change_deg, axis=1)))
    assert sum(content["particles"]["left_out"].values()) == 1 and sum(content["particles"]["halves"]) == 119
    assert content["settings"]["max_iterations"] == 1 and content["versions"]
    assert len(content["fsc"]["1"]["corrected"]) == 17
    assert content["report"]["resolution_to_report_angstrom"] == content["pose_blur"]["resolution_to_report_angstrom"]


def test_nothing_is_written_and_no_error_is_forgotten(finished, capsys):
    (finished.path / "error.json").write_text(json.dumps({"message": f"in {finished.path}/x", "command": "finish"}))
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    assert json.loads(bundled(finished, capsys))["error"] == {"message": f"in {HIDDEN}", "command": "finish"}
    assert before == {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    (finished.path / "error.json").unlink()


@pytest.mark.parametrize("text, expected", [
    ("mask /data/x y/mask.mrc: the edge", "mask <name>: the edge"),
    ("image 000012@stacks/a.mrcs is constant", "image 000012@<name> is constant"),
    ("micrograph mic_7, not mic_71, 3 Å/px, 20 poses/s, 1/Å", "micrograph <name>, not mic_71, 3 Å/px, 20 poses/s, 1/Å"),
    ("the mask holds particles. See mic_7.", "the mask holds particles. See <name>"),
    ("~/me/run or ../other/run", "<name> or <name>"),
])  # fmt: skip
def test_names_are_hidden_and_units_are_not(text, expected):
    assert hide(text, {"mic_7", "/data/x y/mask.mrc"}) == expected


def test_a_histogram_counts_everything():
    values = np.random.default_rng(0).standard_normal(1000)
    assert sum(histogram(values)["counts"]) == 1000
    assert sum(histogram(np.ones(5))["counts"]) == 5
    assert histogram(np.zeros(0))["counts"] == []
