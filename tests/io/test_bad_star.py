"""STAR files: each is read for what it says, or refused in one sentence before anything is computed."""
from __future__ import annotations

import gzip
import os
import shutil

import mrcfile
import numpy as np
import pytest
from particle_files import OPTICS, Inputs, dialects, rows_of_relion_30, table_text
from spoil import POSE, assert_refused, copy_row, data_of, relion_30, replace_optics, set_row, text_replaced, without

from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.io.relion_particles import read_particles, write_particles
from localrefine_plugin.engine.io.star import read_star
from localrefine_plugin.engine.records.settings import Settings

LABEL = "_rlnClassNumber #14"


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


def in_star(function):
    """A spoiler that changes the text of the STAR file."""
    def spoil(inputs):
        text = inputs.star.read_text()
        changed = function(text)
        assert changed != text
        inputs.star.write_bytes(changed.encode("utf-8", "surrogateescape"))
    return spoil


def instead(make):
    """A spoiler that puts something else in the place of the STAR file."""
    def spoil(inputs):
        inputs.star.unlink()
        make(inputs.star)
    return spoil


def spoil_one_of_30(inputs, number, **values):
    rows = [dict(row, **{label: "2.0" for label in values}) for row in rows_of_relion_30(inputs.rows)]
    rows[number].update(values)
    inputs.star.write_text(table_text(rows, ""))


def named(image):
    return set_row(2, rlnImageName=image)

# mrcfile computes the statistics of the NaN that these tests write
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:mrcfile", "ignore:invalid value:RuntimeWarning")


# name: (what is spoilt, words of the sentence that name the input and the problem, words of the remedy)
BAD = {
    "no star file": (lambda i: i.star.unlink(), "particles.star: cannot be read", "existing STAR"),
    "star is a folder": (lambda i: (i.star.unlink(), i.star.mkdir()), "particles.star: cannot be read", "STAR"),
    "star is empty": (lambda i: i.star.write_text(""), "particles.star: holds no table", "data_particles"),
    "star is binary": (lambda i: shutil.copy(i.mask, i.star), "particles.star: is not a text file", "STAR file"),
    "star in gzip": (lambda i: i.star.write_bytes(gzip.compress(i.star.read_bytes())),
                     "particles.star: is compressed with gzip", "gunzip"),
    "star is a .cs file": (lambda i: np.save(str(i.star) + ".npy", np.zeros(9)) or os.replace(str(i.star) + ".npy",
                                                                                            i.star),
                           "particles.star: is a file of numpy", "csparc2star"),
    "stack named .mrc": (named("000003@stacks/a.mrc"), "stacks/a.mrc' does not exist; did you mean 'stacks/a.mrcs'",
                         "relative to"),
    "stack named with backslashes": (named("000003@stacks\\a.mrcs"), "did you mean 'stacks/a.mrcs'", "relative to"),
    "stack named in capitals": (named("000003@Stacks/A.MRCS"), "did you mean 'stacks/a.mrcs'", "relative to"),
    "stack named with all of it": (named("000003@STACKS\\a.mrc:mrcs"), "did you mean 'stacks/a.mrcs'", "relative to"),
    "stack that is nowhere": (named("000003@stacks/other.mrcs"), "other.mrcs' does not exist; image", "relative to"),
    "3.0 with two pixel sizes": (relion_30(lambda r: r.update(rlnPixelSize="1.5")),
                                 "pixel size of 1.5 Å by rlnPixelSize, but of 2 Å by rlnDetectorPixelSize / rlnMagn",
                                 "correct the one that is wrong"),
    "3.0 with two pixel sizes in one row": (lambda i: spoil_one_of_30(i, 7, rlnPixelSize="2.1"),
                                            "row 8 .* of 2.1 Å by rlnPixelSize, but of 2 Å by", "remove its column"),
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
    "pixel sizes far apart": (replace_optics(("200 2.0", "200 2.5")), "pixel sizes of 2 and 2.5 Å, more than 10 %",
                              "nearly the same pixel size"),
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
                                 "correct rlnDetectorPixelSize / rlnMagnification"),
    "missing stack": (lambda i: i.stacks[1].unlink(), "image file 'stacks/b.mrcs' does not exist", "relative to"),
    "image number 0": (set_row(2, rlnImageName="000000@stacks/a.mrcs"), "row 3 has rlnImageName '000000@",
                       "counting from 1"),
    "image number is a word": (set_row(2, rlnImageName="two@stacks/a.mrcs"), "row 3 has rlnImageName 'two@",
                               "counting from 1"),
    "image beyond the stack": (set_row(2, rlnImageName="000007@stacks/a.mrcs"),
                               "a.mrcs: holds 6 images, row 3 of .*particles.star asks for number 7", "truncated"),
    "one image in both halves": (copy_row(0, 1, keep=("rlnRandomSubset",) + POSE),
                                 "rows 1 and 2 are the same image in both half-sets", "same rlnRandomSubset"),
    "one image in both halves under two names": (
        set_row(1, rlnImageName="000001@stacks/../stacks/a.mrcs"), "rows 1 and 2 are the same image in both", "same"),
    "duplicate row": (copy_row(2, 6), "rows 3 and 7 are the same image with the same pose \\(1 dup", "remove the dup"),
    "star is a pipe": (instead(os.mkfifo), "particles.star: cannot be read \\(it is a .* pipe", "STAR"),
    "star is a device": (instead(lambda path: path.symlink_to("/dev/zero")), "particles.star: cannot be", "STAR"),
    "star is a link to itself": (instead(lambda path: path.symlink_to(path)), "particles.star: cannot", "STAR"),
    "star is a link to nothing": (instead(lambda path: path.symlink_to("nowhere")), "particles.star: cannot", "STAR"),
    "star in UTF-16": (lambda i: i.star.write_bytes(i.star.read_text().encode("utf-16")), "is not a text file", "STAR"),
    "star cut in a row": (in_star(lambda t: t[:t.rindex("14500") + 2]), "row \\d+ of .* values for 14", "complete"),
    "star cut in the labels": (in_star(lambda t: t[:t.index("_rlnAnglePsi")]), "holds no particles", "two particles"),
    "row too long": (text_replaced(" 2 1\n", " 2 1 7\n"), "row 2 of table data_particles has 15 values", "quotes"),
    "a name with spaces without quotes": (in_star(lambda t: t.replace("mics/a", "my mics/a")), "row 1 .* 15 values",
                                          "quotes around"),
    "a quote that is not closed": (in_star(lambda t: t.replace("000002@", "'000002@")), "row 2 .*rlnImageName|row 2 .*"
                                   "values", ""),
    "no loop_": (in_star(lambda t: t.replace("data_particles\n\nloop_", "data_particles\n")), "not 'label value'|label",
                 "loop_"),
    "labels without rows of the first table": (in_star(lambda t: t.replace("data_particles", "data_other")
                                               .replace("_rlnImageName", "_rlnName")), "no table of particles", "rln"),
    "of cisTEM": (lambda i: i.star.write_text("data_\n\nloop_\n_cisTEMPositionInStack #1\n1\n"), "no table of",
                  "rlnImageName"),
    "of tomograms": (in_star(lambda t: t.replace(LABEL, "_rlnTomoParticleName #14")), "are of tomograms", "single"),
    "numbers with commas": (set_row(5, rlnDefocusU="15000,5"), "row 6 .* rlnDefocusU '15000,5'", "correct"),
    "an empty value": (set_row(5, rlnAngleRot='""'), "row 6 .* rlnAngleRot '', not a finite", "correct"),
    "NULL for a value": (set_row(5, rlnAngleTilt="<NA>"), "row 6 .* rlnAngleTilt '<NA>'", "correct"),
    "optics group is a name": (set_row(5, rlnOpticsGroup="opticsGroup1"), "row 6 .* rlnOpticsGroup 'opt", "correct"),
    "negative voltage": (replace_optics(("2.7 300", "2.7 -300")), "opticsGroup1 has rlnVoltage -300", "correct"),
    "pixel size is a word": (replace_optics(("300 2.0", "300 two")), "row 1 of table data_optics .* 'two'", "correct"),
    "image is a pipe": (lambda i: (i.stacks[1].unlink(), os.mkfifo(i.stacks[1])), "'stacks/b.mrcs' does not exist",
                        "relative to"),
    "image is a device": (named("000001@/dev/zero"), "'/dev/zero' does not exist", "relative to"),
    "image outside of everything": (named("000001@../../../../../nowhere/a.mrcs"), "nowhere/a.mrcs' does not exist",
                                    "relative to"),
    "image is a file that is no image": (named("000001@../../../../../../../../../../etc/passwd"),
                                         "/etc/passwd: is truncated or not an MRC", "copy"),
    "image is the STAR file": (named("000001@particles.star"), "particles.star: is truncated or not an MRC", "copy"),
    "image is a link to itself": (lambda i: (i.stacks[1].unlink(), i.stacks[1].symlink_to(i.stacks[1])),
                                  "'stacks/b.mrcs' does not exist", "relative to"),
    "image is a folder": (named("000001@stacks"), "image file 'stacks' does not exist", "relative to"),
    "image name with a null byte": (in_star(lambda t: t.replace("000003@", "000003@\0")), "not a text file", "STAR"),
    "image number of 30 digits": (named("9" * 30 + "@stacks/a.mrcs"), "row 3 has rlnImageName '999", "counting"),
    "image number in Devanagari": (named("१@stacks/a.mrcs"), "row 3 has rlnImageName '१@", "counting from 1"),
    "image name not UTF-8": (in_star(lambda t: t.replace("000003@", "\udcff@")), "row 3 has rlnImageName '.*@", ""),
    "image name is only an @": (named("@"), "row 3 has rlnImageName '@'", "counting from 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_bad(inputs, capsys, name):
    assert_refused(inputs, capsys, BAD[name])


# The same particles in other words: name: function of the inputs that rewrites the STAR file.

def with_text(function):
    return lambda inputs: in_star(function)(inputs)


def quoted(text):
    return "".join(" ".join(f"'{word}'" if j % 2 else f'"{word}"' for j, word in enumerate(line.split())) + "\n"
                   if "@" in line else line for line in text.splitlines(True))


def in_folder(name):
    """The stacks in a folder of another name, quoted in the STAR file."""
    def move(inputs):
        shutil.move(inputs.folder / "stacks", inputs.folder / name)
        for row in inputs.rows:
            number, path = row["rlnImageName"].split("@")
            row["rlnImageName"] = f'"{number}@{path.replace("stacks", name)}"'
        inputs.write_star()
    return move


def linked(inputs):
    """The stacks are links to files elsewhere."""
    (inputs.folder / "elsewhere").mkdir()
    for path in inputs.stacks:
        shutil.move(path, inputs.folder / "elsewhere" / path.name)
        path.symlink_to(inputs.folder / "elsewhere" / path.name)


def star_linked(inputs):
    """The STAR file is a link; its images are sought beside the link, as RELION would."""
    shutil.move(inputs.star, inputs.folder / "real.star")
    inputs.star.symlink_to("real.star")


def below_the_project(inputs):
    """The STAR file deep in a project whose folder the image names start from."""
    job = inputs.folder / "Refine3D" / "job012"
    job.mkdir(parents=True)
    inputs.star = job / "run_data.star"
    inputs.write_star()


def absolute(inputs):
    for row in inputs.rows:
        row["rlnImageName"] = row["rlnImageName"].replace("stacks", str(inputs.folder / "stacks"))
    inputs.write_star()


def in_dialect(name):
    return lambda inputs: inputs.star.write_text(dialects()[name])


GOOD = {
    **{f"RELION {name}": in_dialect(name) for name in ("3.0", "3.1", "4.0", "5.0")},
    "3.0 in data_images": lambda i: i.star.write_text(table_text(rows_of_relion_30(i.rows), "images")),
    "Windows line ends": with_text(lambda t: t.replace("\n", "\r\n")),
    "old Mac line ends": with_text(lambda t: t.replace("\n", "\r")),
    "byte order mark": with_text(lambda t: "\ufeff" + t.lstrip()),
    "tabs": with_text(lambda t: t.replace(" ", "\t").replace("#\tversion", "# version")),
    "every value quoted": with_text(quoted),
    "comments in Greek": with_text(lambda t: t.replace("000002@", "# σχόλιο\n000002@")),
    "numbers with exponents": with_text(lambda t: t.replace("15100.0", "1.51e4").replace(" 30.0 ", " +3.E1 ")),
    "more tables": with_text(lambda t: "data_general\n\n_rlnVersion 5\n" + t + "\ndata_more\n\nloop_\n_rlnA\n1\n"),
    "origins in both units": with_text(lambda t: t.replace("_rlnClassNumber", "_rlnOriginX")),
    "names with RELION's kind": with_text(lambda t: t.replace("a.mrcs", "a.mrcs:mrcs")),
    "stacks named .stk, with RELION's kind": lambda i: (i.stacks[0].rename(i.folder / "stacks" / "a.stk"), with_text(
        lambda t: t.replace("a.mrcs", "a.stk:mrcs"))(i)),
    "3.0 with the same pixel size twice": lambda i: i.star.write_text(table_text(
        [dict(row, rlnPixelSize="2.000001") for row in rows_of_relion_30(i.rows)], "")),
    "names with spaces": in_folder("my stacks"),
    "names not ASCII": in_folder("στοίβα Å"),
    "names with shell words": in_folder("$(touch x);`id`"),
    "absolute names": absolute,
    "names with ..": with_text(lambda t: t.replace("@stacks", "@stacks/../stacks")),
    "links to stacks": linked,
    "link to the STAR file": star_linked,
    "names from the project": below_the_project,
}


@pytest.mark.parametrize("name", GOOD)
def test_read_for_what_it_says(inputs, name):
    plain = read_particles(inputs.star)[0]
    images = [(plain.stacks[s], n) for s, n in zip(plain.stack, plain.slice)]
    contents = {path: data_of(path) for path in plain.stacks}
    GOOD[name](inputs)
    checked = check_inputs(inputs.star, inputs.half_1, inputs.half_2, inputs.mask, Settings())
    found = checked.particles
    for column in ("rotation", "shift_px", "half_set", "defocus_u", "defocus_v", "defocus_angle", "phase_shift"):
        np.testing.assert_allclose(getattr(found, column), getattr(plain, column), atol=1e-6, err_msg=column)
    for (path, number), stack, other in zip(images, found.stack, found.slice):
        np.testing.assert_array_equal(contents[path][number], mrcfile.read(found.stacks[stack])[other])
    assert [found.optics[g].voltage_kv for g in found.optics_group] == [300] * 6 + [200] * 6
    assert not (inputs.folder / "x").exists()


@pytest.mark.parametrize("version", dialects())
def test_every_column_of_every_dialect_survives(inputs, version):
    """What is written has all columns, values of what is not refined as they stood, and reads as the same particles."""
    text = dialects()[version].replace("mics/b.mrc", "'mics of b.mrc'")
    inputs.star.write_text(text)
    particles, table = read_particles(inputs.star)
    again = inputs.folder / "again.star"
    write_particles(again, table, particles.rotation, particles.shift_px, {"lrScale": np.ones(len(particles)).tolist()})
    before, after = (read_star(path) for path in (inputs.star, again))
    assert [(t.name, t.comments) for t in after] == [(t.name, t.comments) for t in before]
    changed = set(POSE) | {"rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginX", "rlnOriginY"}
    for old, new in zip(before, after):
        assert new.labels[:len(old.labels)] == old.labels
        kept = [label for label in old.labels if label not in changed]
        assert new.texts(kept) == old.texts(kept)
    assert after[-1].labels[-1] == "lrScale" and len(after[-1].labels) == len(before[-1].labels) + 1
    np.testing.assert_allclose(read_particles(again)[0].rotation, particles.rotation, atol=1e-7)
    np.testing.assert_allclose(read_particles(again)[0].shift_px, particles.shift_px, atol=1e-6)
