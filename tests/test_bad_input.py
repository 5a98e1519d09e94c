"""Every input that cannot be right is refused before computing, in one sentence that names it and helps."""
from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from particle_files import BOX, OPTICS, PIXEL_SIZE, Inputs, radius, rows_of_relion_30, soft_mask, table_text, write_mrc

from localrefine_plugin.engine.arguments import read_settings
from localrefine_plugin.engine.checks import check_inputs
from localrefine_plugin.engine.files import read_map, read_particles
from localrefine_plugin.engine.records import InputError, Settings

# mrcfile computes the statistics of the NaN that these tests write
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:mrcfile", "ignore:invalid value:RuntimeWarning")


def check(inputs, **values):
    return check_inputs(inputs.star, inputs.half_1, inputs.half_2, inputs.mask, Settings(**values))


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


def data_of(path):
    return np.array(mrcfile.read(str(path)))


def change(path, function, pixel_size=PIXEL_SIZE):
    """Rewrite an MRC file with function(data), which may work in place."""
    data = data_of(path)
    result = function(data)
    write_mrc(path, data if result is None else result, pixel_size)


def put(where, value):
    def function(data):
        data[where] = value
    return function


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def set_row(row, **values):
    def spoil(inputs):
        inputs.rows[row].update(values)
        inputs.write_star()
    return spoil


def replace_optics(*pairs):
    def spoil(inputs):
        for old, new in pairs:
            assert old in inputs.optics
            inputs.optics = inputs.optics.replace(old, new)
        inputs.write_star()
    return spoil


def without(label):
    return lambda inputs: inputs.drop(label)


def text_replaced(old, new):
    def spoil(inputs):
        text = inputs.star.read_text()
        assert old in text
        inputs.star.write_text(text.replace(old, new))
    return spoil


def set_header(name, **fields):
    def spoil(inputs):
        with mrcfile.open(str(getattr(inputs, name)), mode="r+") as mrc:
            for field, value in fields.items():
                setattr(mrc.header, field, value)
    return spoil


def copy_row(source, target, keep=()):
    """Make row `target` a copy of row `source`, but for some columns."""
    def spoil(inputs):
        kept = {label: inputs.rows[target][label] for label in keep}
        inputs.rows[target] = dict(inputs.rows[source], **kept)
        inputs.write_star()
    return spoil


def relion_30(spoil_row):
    def spoil(inputs):
        rows = rows_of_relion_30(inputs.rows)
        for row in rows:
            spoil_row(row)
        inputs.star.write_text(table_text(rows, ""))
    return spoil


POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")

# name: (what is spoilt, words of the sentence that name the input and the problem, words of the remedy)
BAD = {
    "no star file": (lambda i: i.star.unlink(), "particles.star: cannot be read", "existing STAR"),
    "star is a folder": (lambda i: (i.star.unlink(), i.star.mkdir()), "particles.star: cannot be read", "STAR"),
    "star is empty": (lambda i: i.star.write_text(""), "particles.star: holds no table", "data_particles"),
    "star is binary": (lambda i: shutil.copy(i.mask, i.star), "particles.star: is not a text file", "STAR file"),
    "star is prose": (lambda i: i.star.write_text("Dear all,\n"), "particles.star: has text before", "STAR file"),
    "star without rows": (lambda i: i.star.write_text(i.star.read_text().split("000001@")[0]),
                          "particles.star: holds no particles", "at least two"),
    "star of micrographs": (lambda i: i.star.write_text("data_micrographs\n\nloop_\n_rlnMicrographName\na.mrc\n"),
                            "particles.star: holds no table of particles", "rlnImageName"),
    "row too short": (text_replaced(" 2 1\n", " 2\n"), "row 2 of table data_particles has 13 values for 14", "quotes"),
    "two columns of one name": (text_replaced("_rlnClassNumber #14", "_rlnAngleRot #14"), "two columns rlnAngleRot",
                                "remove one"),
    "no subset": (without("rlnRandomSubset"), "particles.star: .* no column rlnRandomSubset", "half-sets"),
    "subset 0": (set_row(3, rlnRandomSubset="0"), "row 4 has rlnRandomSubset 0", "half-sets are 1 and 2"),
    "subset 3": (set_row(3, rlnRandomSubset="3"), "row 4 has rlnRandomSubset 3", "half-sets are 1 and 2"),
    "subset 1.5": (set_row(3, rlnRandomSubset="1.5"), "row 4 .* rlnRandomSubset '1.5', not a whole", "correct"),
    "half 1 is empty": (lambda i: i.set_all("rlnRandomSubset", "2"), "half-set 1 has no particles", "both half-sets"),
    "half 2 is empty": (lambda i: i.set_all("rlnRandomSubset", "1"), "half-set 2 has no particles", "both half-sets"),
    "no angles": (without("rlnAngleTilt"), "no column rlnAngleTilt", "3D refinement"),
    "no defocus": (without("rlnDefocusV"), "no column rlnDefocusV", "estimate the CTF"),
    "no image names": (lambda i: i.star.write_text(i.star.read_text().replace("_rlnImageName", "_rlnImage")),
                       "no column rlnImageName", "export"),
    "angle is a word": (set_row(5, rlnAnglePsi="east"), "row 6 .* rlnAnglePsi 'east', not a finite", "correct"),
    "origin is NaN": (set_row(5, rlnOriginXAngst="nan"), "row 6 .* rlnOriginXAngst 'nan'", "correct or remove"),
    "defocus is infinite": (set_row(0, rlnDefocusU="inf"), "row 1 .* rlnDefocusU 'inf'", "correct or remove"),
    "defocus in µm": (lambda i: (i.set_all("rlnDefocusU", "1.5"), i.set_all("rlnDefocusV", "1.4")),
                      "largest defocus is 1.5 Å", "in Å, not µm"),
    "one of twelve without defocus": (set_row(3, rlnDefocusU="0", rlnDefocusV="0"),
                                      "row 4 \\(image 4 of .*a.mrcs\\) .* defocus of 0, and 1 of 12 .* more than 1 %",
                                      "re-extract"),
    "defocus of a metre": (set_row(7, rlnDefocusU="1e10"), "row 8 .* has a defocus of 1e\\+10 Å, and 1 of 12",
                          "correct or"),
    "origin outside the image": (set_row(7, rlnOriginXAngst="17"), "row 8 .* origin of 8.5 px, outside its image",
                                 "correct or"),
    "phase shift of 1e300": (set_row(7, rlnPhaseShift="1e300"), "row 8 .* phase shift of 1e\\+300°", "correct or"),
    "unknown optics group": (set_row(8, rlnOpticsGroup="3"), "row 9 has optics group 3", "data_optics"),
    "no optics group column": (without("rlnOpticsGroup"), "no column rlnOpticsGroup", "export"),
    "no optics table": (lambda i: i.star.write_text(table_text(i.rows)), "no column rlnVoltage", "export"),
    "empty optics table": (replace_optics((OPTICS[OPTICS.index("1 opticsGroup1"):], "")), "data_optics is empty",
                           "one row per"),
    "optics group twice": (replace_optics(("2 opticsGroup2", "1 opticsGroup2")), "two rows of one group", "number"),
    "no pixel size": (replace_optics(("_rlnImagePixelSize", "_rlnMicrographOriginalPixelSize")),
                      "data_optics has no column rlnImagePixelSize", "export"),
    "pixel size 0": (replace_optics(("300 2.0", "300 0")), "data_optics gives a pixel size of 0 Å",
                     "correct rlnImagePixelSize"),
    "several pixel sizes": (replace_optics(("200 2.0", "200 2.1")), "several pixel sizes, 2 and 2.1 Å", "one pixel"),
    "several box sizes": (replace_optics(("200 2.0 16", "200 2.0 18")), "several box sizes, 16 and 18 px", "one box"),
    "box size of the STAR file": (replace_optics(("0 16 2", "0 20 2")), "a.mrcs: has images of 16 × 16 px",
                                  "extract the particles anew"),
    "box of 4 px": (replace_optics(("0 16 2", "0 4 2")), "box of 4 px is too small", "at least 8"),
    "voltage in volts": (replace_optics(("2.7 300", "2.7 300000")), "opticsGroup1 has rlnVoltage 300000", "correct"),
    "amplitude contrast in percent": (replace_optics((" 0.07 ", " 7 ")), "rlnAmplitudeContrast 7", "correct"),
    "aberration in Å": (replace_optics((" 2.6 ", " 2.6e7 ")), "rlnSphericalAberration 2.6e\\+07", "correct"),
    "premultiplied": (replace_optics(("_rlnImageDimensionality #8\n", "_rlnImageDimensionality #8\n"
                                      "_rlnCtfDataAreCtfPremultiplied #9\n"), ("16 2\n", "16 2 1\n")),
                      "premultiplied by the CTF", "without premultiplication"),
    "subtomograms": (replace_optics((" 16 2\n", " 16 3\n")), "three-dimensional", "two-dimensional"),
    "3.0 without magnification": (relion_30(lambda r: r.pop("rlnMagnification")), "no column rlnImagePixelSize",
                                  "export"),
    "3.0 with magnification 0": (relion_30(lambda r: r.update(rlnMagnification="0")), "a pixel size of 0 Å",
                                 "correct rlnMagnification"),
    "missing stack": (lambda i: i.stacks[1].unlink(), "image file 'stacks/b.mrcs' does not exist", "relative to"),
    "image number 0": (set_row(2, rlnImageName="000000@stacks/a.mrcs"), "row 3 has rlnImageName '000000@",
                       "counting from 1"),
    "image number is a word": (set_row(2, rlnImageName="two@stacks/a.mrcs"), "row 3 has rlnImageName 'two@",
                               "counting from 1"),
    "image beyond the stack": (set_row(2, rlnImageName="000007@stacks/a.mrcs"),
                               "a.mrcs: holds 6 images, row 3 of .*particles.star asks for number 7", "truncated"),
    "truncated stack": (lambda i: truncate(i.stacks[0], 1024 + 5 * BOX * BOX * 4 + 100), "a.mrcs: is truncated",
                        "copy or export"),
    "stack of zero bytes": (lambda i: i.stacks[0].write_bytes(b""), "a.mrcs: is truncated or not", "copy or export"),
    "stack is text": (lambda i: i.stacks[0].write_text("see " * 999), "a.mrcs: is truncated or not", "copy or export"),
    "stack of complex numbers": (lambda i: change(i.stacks[0], lambda d: d.astype(np.complex64)),
                                 "a.mrcs: has MRC mode 4", "mode 2"),
    "stack of a smaller box": (lambda i: change(i.stacks[1], lambda d: d[:, 2:, 2:]), "b.mrcs: has images of 14 × 14",
                               "extract the particles anew"),
    "images not square": (lambda i: change(i.stacks[1], lambda d: d[:, 2:]), "b.mrcs: has images of 16 × 14",
                          "extract the particles anew"),
    "NaN in an image": (lambda i: change(i.stacks[1], put((2, 3, 4), np.nan)),
                        "row 9 \\(image 3 of .*b.mrcs\\) holds NaN", "re-extract"),
    "infinity in an image": (lambda i: change(i.stacks[0], put((0, 3, 4), np.inf)),
                             "row 1 \\(image 1 of .*a.mrcs\\) holds NaN or infinite", "re-extract"),
    "constant image": (lambda i: change(i.stacks[1], put(4, 2.5)),
                       "row 11 \\(image 5 of .*b.mrcs\\) is constant \\(2.5",
                       "re-extract"),
    "one image in both halves": (copy_row(0, 1, keep=("rlnRandomSubset",) + POSE),
                                 "rows 1 and 2 are the same image in both half-sets", "same rlnRandomSubset"),
    "one image in both halves under two names": (
        set_row(1, rlnImageName="000001@stacks/../stacks/a.mrcs"), "rows 1 and 2 are the same image in both", "same"),
    "duplicate row": (copy_row(2, 6), "rows 3 and 7 are the same image with the same pose \\(1 dup", "remove the dup"),
    "no half-map 1": (lambda i: i.half_1.unlink(), "half-map 1 .*half_1.mrc: cannot be read", "existing MRC"),
    "no half-map 2": (lambda i: i.half_2.unlink(), "half-map 2 .*half_2.mrc: cannot be read", "existing MRC"),
    "half-maps identical": (lambda i: shutil.copy(i.half_1, i.half_2), "half-map 2 .*: is identical to half-map 1",
                            "two half-maps of one"),
    "half-maps identical but for scale": (lambda i: write_mrc(i.half_2, data_of(i.half_1) * 3 + 1),
                                          "half-map 2 .*: is identical to half-map 1", "two half-maps of one"),
    "half-map inverted": (lambda i: write_mrc(i.half_2, -data_of(i.half_1)), "identical .* contrast inverted",
                          "two half-maps"),
    "half-map of another box": (lambda i: change(i.half_1, lambda d: d[2:, 2:, 2:]), "half-map 1 .* has 14 × 14 × 14",
                                "of these particles"),
    "half-map not cubic": (lambda i: change(i.half_1, lambda d: d[2:]), "half-map 1 .* not cubic \\(16 × 16 × 14",
                           "to a cube"),
    "half-map of another pixel size": (lambda i: change(i.half_2, lambda d: d, 1.9),
                                       "half-map 2 .* pixel size of 1.9000 Å, the particles have 2.0000", "header"),
    "half-map without pixel size": (lambda i: change(i.half_2, lambda d: d, 0), "half-map 2 .* has no pixel size",
                                    "relion_image_handler"),
    "half-map with oblong voxels": (lambda i: change(i.half_2, lambda d: d, (2, 2, 3)),
                                    "half-map 2 .* voxels of 2.0000 × 2.0000 × 3.0000", "cubic voxels"),
    "half-map is a slice": (lambda i: change(i.half_1, lambda d: d[0]), "half-map 1 .* has 2 dimensions", "three-dim"),
    "NaN in a half-map": (lambda i: change(i.half_1, put((1, 1, 1), np.nan)), "half-map 1 .* 1 NaN", "reconstruct"),
    "half-map of zeros": (lambda i: change(i.half_2, np.zeros_like), "half-map 2 .* constant \\(0", "reconstructed"),
    "half-map truncated": (lambda i: truncate(i.half_1, 9000), "half-map 1 .* truncated", "copy or export"),
    "half-map mode 99": (set_header("half_1", mode=99), "half-map 1 .* not an MRC", "copy or export"),
    "no mask": (lambda i: i.mask.unlink(), "mask .*mask.mrc: cannot be read", "existing MRC"),
    "mask above 1": (lambda i: write_mrc(i.mask, soft_mask() * 1.5), "mask .* from 0 to 1.5", "relion_mask_create"),
    "mask below 0": (lambda i: write_mrc(i.mask, soft_mask() - 0.1), "mask .* from -0.1 to", "relion_mask_create"),
    "mask empty": (lambda i: write_mrc(i.mask, soft_mask() * 0), "mask .* is empty", "1 over the part"),
    "mask NaN": (lambda i: change(i.mask, put((1, 1, 1), np.nan)), "mask .* not numbers", "anew"),
    "mask of another box": (lambda i: write_mrc(i.mask, soft_mask(20)), "mask .* 20 × 20 × 20 voxels",
                            "box of the particles"),
    "mask of another pixel size": (lambda i: write_mrc(i.mask, soft_mask(), 2.02), "mask .* pixel size of 2.0200",
                                   "header"),
    "mask beside the density": (lambda i: write_mrc(i.mask, (radius() > 11.8).astype(np.float32)),
                                "mask .* covers no density", "origin"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_with_a_sentence(inputs, name):
    spoil, named, remedy = BAD[name]
    spoil(inputs)
    with pytest.raises(InputError, match=named) as caught:
        check(inputs)
    sentence = str(caught.value)
    assert remedy in caught.value.remedy
    assert "\n" not in sentence and sentence == f"{caught.value.source}: {caught.value.problem}; {caught.value.remedy}"
    assert caught.value.source and caught.value.problem and caught.value.remedy


BAD_SETTINGS = {
    "fulcrum": ([1, 2, 16], "outside the box of 16"),
    "shift_extent_angstrom": (17.0, "more than half the box"),
    "initial_lowpass_angstrom": (20.0, "leaves nothing"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_do_not_fit_the_box(inputs, name):
    value, problem = BAD_SETTINGS[name]
    with pytest.raises(InputError, match=f"setting {name}: .*{problem}"):
        check(inputs, **{name: value})


BAD_FILES = {
    "unknown key": ('{"bogus": 1}', "no setting 'bogus'"),
    "out of range": ('{"prior_rotation_deg": 400}', "setting prior_rotation_deg: 400 is outside"),
    "wrong kind": ('{"max_iterations": 2.5}', "setting max_iterations: 2.5 is not"),
    "a word": ('{"marginalize": "yes"}', "setting marginalize"),
    "null": ('{"seed": null}', "setting seed: is null"),
    "not a number": ('{"prior_shift_angstrom": NaN}', "setting prior_shift_angstrom: nan"),
    "too large": ('{"seed": 1' + "0" * 400 + "}", "seed|too large"),
    "choice": ('{"prior": "flat"}', "setting prior: 'flat' is not offered"),
    "point": ('{"fulcrum": [1, 2]}', "setting fulcrum"),
    "list": ("[1]", "settings.json: holds no JSON object"),
    "not JSON": ("prior = off", "settings.json: is not a JSON file"),
    "not text": (b"\xff\xfe\x00", "settings.json: is not a JSON file"),
    "deep": ("[" * 100000, "settings.json: is not a JSON file"),
    "empty": ("", "settings.json: is not a JSON file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_settings_file(tmp_path, name):
    text, problem = BAD_FILES[name]
    path = tmp_path / "settings.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=problem):
        read_settings(path)


def test_settings_file_missing(tmp_path):
    with pytest.raises(InputError, match="nowhere.json: cannot be read"):
        read_settings(tmp_path / "nowhere.json")


# what is right stays right

def test_valid_inputs_pass(inputs):
    checked = check(inputs)
    assert len(checked.particles) == 12 and checked.pixel_size == PIXEL_SIZE
    np.testing.assert_array_equal(checked.maps[0], data_of(inputs.half_1))
    np.testing.assert_array_equal(checked.maps[1], data_of(inputs.half_2))
    np.testing.assert_array_equal(checked.mask, soft_mask())
    assert all("soft edge" in text for text in checked.warnings)


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


# the command line says the same

CLI_CASES = ["no subset", "truncated stack", "missing stack", "half-maps identical", "mask above 1", "NaN in an image",
             "duplicate row", "unknown optics group"]


@pytest.mark.parametrize("name", CLI_CASES)
def test_prepare_refuses(inputs, name, capsys):
    from localrefine_plugin.engine.__main__ import main
    spoil, named, remedy = BAD[name]
    spoil(inputs)
    status = main(["prepare", "--particles", str(inputs.star), "--half-map-1", str(inputs.half_1), "--half-map-2",
                   str(inputs.half_2), "--mask", str(inputs.mask), "--output", str(inputs.output), "--threads", "1"])
    said = capsys.readouterr().err
    assert status == 1
    assert said.startswith("error: ") and said.count("\n") == 1 and remedy in said
    written = json.loads((inputs.output / "error.json").read_text())
    assert "error: " + written["message"] == said.strip()
    assert remedy in written["remedy"] and written["problem"] in written["message"] and written["input"]
    assert not (inputs.output / "iter_000").exists()


def test_a_name_that_is_not_utf8_is_reported(inputs, capsys):
    from localrefine_plugin.engine.__main__ import main
    inputs.star.write_bytes(inputs.star.read_bytes().replace(b"000003@", b"\xff@"))
    status = main(["prepare", "--particles", str(inputs.star), "--half-map-1", str(inputs.half_1), "--half-map-2",
                   str(inputs.half_2), "--mask", str(inputs.mask), "--output", str(inputs.output), "--threads", "1"])
    assert status == 1
    assert "row 3 has rlnImageName '\\udcff@" in json.loads((inputs.output / "error.json").read_text())["problem"]


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


# anything at all is read or refused, never an exception of another kind

FUZZ = settings(max_examples=300, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck))


def mutated(data, rng):
    """A few bytes changed, removed, doubled or swapped for telling ones."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(5)
        if kind == 0:
            data[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[at:at + rng.choice((1, 4, 40))]
        elif kind == 2:
            data[at:at] = data[at:at + rng.choice((1, 40))]
        elif kind == 3:
            data[at:at + 1] = rng.choice((b"\0", b"\n", b"\r", b" ", b"'", b'"', b"#", b"_", b";", b"@", b"-", b"e9"))
        else:
            data[at:at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f",
                                          b"nan ", b"data", b"loop", b"1e99"))
    return bytes(data)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("fuzz"))


def succeeds_or_refuses(function):
    try:
        function()
    except InputError as error:
        assert "\n" not in str(error)


@FUZZ
@given(seed=st.integers(0, 2 ** 32), old=st.booleans())
def test_fuzzed_star(pristine, seed, old):
    path = pristine.folder / "fuzzed.star"
    text = table_text(rows_of_relion_30(pristine.rows), "") if old else pristine.star.read_text()
    path.write_bytes(mutated(text.encode(), random.Random(seed)))
    succeeds_or_refuses(lambda: check_inputs(path, pristine.half_1, pristine.half_2, pristine.mask, Settings()))


@FUZZ
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda t: ("data_\n" + t).encode(
    "utf-8", "surrogatepass"))))
def test_random_bytes_as_star(pristine, content):
    path = pristine.folder / "random.star"
    path.write_bytes(content)
    succeeds_or_refuses(lambda: read_particles(path))


@FUZZ
@given(seed=st.integers(0, 2 ** 32), stack=st.booleans())
def test_fuzzed_mrc_header(pristine, seed, stack):
    rng = random.Random(seed)
    data = pristine.stacks[0].read_bytes() if stack else pristine.half_1.read_bytes()
    header, body = data[:1024], data[1024:]
    path = pristine.folder / "fuzzed.mrc"
    path.write_bytes(mutated(header[:220] if rng.random() < 0.8 else header, rng)[:220].ljust(220, b"\0")
                     + header[220:] + (body if rng.random() < 0.8 else body[:rng.randrange(len(body))]))
    if stack:
        star = pristine.folder / "fuzzed_stack.star"
        star.write_text(pristine.star.read_text().replace("stacks/a.mrcs", "fuzzed.mrc"))
        succeeds_or_refuses(lambda: check_inputs(star, pristine.half_1, pristine.half_2, pristine.mask, Settings()))
    else:
        succeeds_or_refuses(lambda: read_map(path))
        succeeds_or_refuses(lambda: check_inputs(pristine.star, path, pristine.half_2, pristine.mask, Settings()))


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                           lambda children: st.lists(children, max_size=4) | st.dictionaries(
                               st.text(max_size=8), children, max_size=4), max_leaves=8)


@FUZZ
@given(content=st.one_of(
    st.binary(max_size=100),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(sorted(Settings().as_dict())), json_values | st.integers(10 ** 300, 10 ** 320),
                    max_size=3).map(lambda value: json.dumps(value).encode())))
def test_fuzzed_settings(pristine, content):
    path = pristine.folder / "settings.json"
    path.write_bytes(content)
    succeeds_or_refuses(lambda: read_settings(path))
