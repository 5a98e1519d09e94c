"""Input that is right passes; what may be meant is warned of; the program refuses without a traceback."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from particle_files import BOX, PIXEL_SIZE, Inputs, radius, soft_mask, write_mrc
from spoil import POSE, change, check, copy_row, data_of, set_row

from localrefine_plugin.engine.inputs.refined_before import UNCERTAINTY_LABELS
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.records.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


def test_valid_inputs_pass(inputs):
    checked = check(inputs)
    assert len(checked.particles) == 12 and checked.pixel_size == PIXEL_SIZE
    np.testing.assert_array_equal(checked.maps[0], data_of(inputs.half_1))
    np.testing.assert_array_equal(checked.maps[1], data_of(inputs.half_2))
    np.testing.assert_array_equal(checked.mask, soft_mask())
    assert all("mask edge" in text for text in checked.warnings)


def test_symmetry_expansion_passes_with_a_note(inputs):
    copy_row(0, 6, keep=POSE)(inputs)
    assert any("1 rows repeat an image with another pose" in text for text in check(inputs).warnings)


def test_mask_is_clipped_to_its_tolerance(inputs):
    write_mrc(inputs.mask, soft_mask() * 1.0009 - 0.0004)
    mask = check(inputs).mask
    assert mask.min() == 0 and mask.max() == 1


WARNED = {
    "no defocus at all": (lambda i: (i.set_all("rlnDefocusU", "0"), i.set_all("rlnDefocusV", "0")),
                          "every defocus is 0"),
    "beam tilt of particles beside data_optics": (lambda i: i.set_all("rlnBeamTiltX", "0.3"),
                                                  "rlnBeamTiltX is not modelled"),
    "Zernike of particles beside data_optics": (lambda i: i.set_all("rlnOddZernike", "[0,0.1]"),
                                                "rlnOddZernike is not modelled"),
    "particles of a local refinement": (lambda i: [i.set_all(label, "1.2") for label in UNCERTAINTY_LABELS],
                                        "refined locally before"),
    "masked half-maps": (lambda i: [change(p, lambda d: d * (radius() < 4)) for p in (i.half_1, i.half_2)],
                         "exactly 0"),
    "unequal halves": (lambda i: [set_row(r, rlnRandomSubset="1")(i) for r in range(9)], "unequal"),
    "half-maps of two worlds": (lambda i: [write_mrc(p, np.random.default_rng(s).normal(size=(BOX,) * 3).astype("f4"))
                                           for s, p in enumerate((i.half_1, i.half_2))], "do not correlate|density"),
}


@pytest.mark.parametrize("name", WARNED)
def test_doubtful_input_is_warned_of(inputs, name):
    spoil, problem = WARNED[name]
    spoil(inputs)
    try:
        warnings = " ".join(check(inputs).warnings)
    except InputError as error:  # noise may well have no density under the mask
        warnings = str(error)
    assert re.search(problem, warnings)


def test_angles_beyond_a_turn_are_the_same_pose(inputs):
    before = read_particles(inputs.star)[0].rotation
    for row in inputs.rows:
        row["rlnAngleRot"] = f"{float(row['rlnAngleRot']) + 720:.6f}"
        row["rlnAngleTilt"] = f"{float(row['rlnAngleTilt']) - 360:.6f}"
    inputs.write_star()
    np.testing.assert_allclose(check(inputs).particles.rotation, before, atol=1e-9)


def test_refine_as_a_program_refuses_without_a_traceback(inputs):
    inputs.mask.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "localrefine_plugin.engine", "refine", "--particles", inputs.star, "--half-map-1",
         inputs.half_1, "--half-map-2", inputs.half_2, "--mask", inputs.mask, "--output", inputs.output, "--threads",
         "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "mask.mrc: cannot be read" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "mask.mrc" in json.loads((inputs.output / "error.json").read_text())["message"]


def test_the_page_counts_the_cases(monkeypatch):
    """docs/reference/reliability.md: cases by input, refused and read."""
    for folder in ("io", "records"):
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / folder))
    import test_bad_mrc
    import test_bad_settings
    import test_bad_star
    counted = {
        "STAR": (len(test_bad_star.BAD), len(test_bad_star.GOOD)),
        "stacks": (len(test_bad_mrc.STACKS), len(test_bad_mrc.MODES) + len(test_bad_mrc.HEADERS)),
        "half-maps": (len(test_bad_mrc.HALF_MAPS), len(test_bad_mrc.MODES) + len(test_bad_mrc.HEADERS)),
        "masks": (len(test_bad_mrc.MASKS), len(test_bad_mrc.MODES) + len(test_bad_mrc.HEADERS)),
        "settings.json": (len(test_bad_settings.BAD_FILES) + len(test_bad_settings.BAD_SETTINGS), 3),
    }
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "reliability.md").read_text(encoding="utf-8")
    for name, (refused, read) in counted.items():
        assert f"| {name} | {refused} | {read} |" in page
    assert f"| all | {sum(n for n, _ in counted.values())} | {sum(n for _, n in counted.values())} |" in page
