"""Input files that change while a run lasts: results stay those of the files as they were, and the change is said."""
from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from experiments import experiment, write_inputs
from relion_files import LABELS

from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.io import fingerprints
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.prepare.prepare import prepare
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.validate.validate import validate

SETTINGS = Settings(max_iterations=2, prior="off", rotation_extent_deg=12.0, shift_extent_angstrom=8.0,
                    non_uniform=False)
N = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(folder with inputs, what an undisturbed run of them gives)."""
    folder = tmp_path_factory.mktemp("changes")
    inputs = write_inputs(folder / "in", experiment(N, box=24, pixel_size=4.0, noise=0.5, seed=4))
    run = engine.refine(*inputs, str(folder / "run"), SETTINGS, device="cpu", threads=1)
    assert "since the run began" not in warnings_of(run)
    return folder, run


@pytest.fixture
def inputs(data, tmp_path):
    """Inputs of this test alone: they may be spoiled."""
    shutil.copytree(data[0] / "in", tmp_path / "in")
    return [str(tmp_path / "in" / name) for name in ("particles.star", "input_1.mrc", "input_2.mrc", "mask.mrc")]


# ---------------------------------------------------------------- what happens to a file

def rows_of(path):
    """(text before the rows, rows) of a STAR file whose last table is that of the particles."""
    head, _, rows = Path(path).read_text().partition("_rlnOriginYAngst #15\n")
    return head + "_rlnOriginYAngst #15\n", rows.strip().splitlines()


def rewrite(path, change):
    head, rows = rows_of(path)
    Path(path).write_text(head + "\n".join(change(rows)) + "\n")


def column(label, make):
    """A change of all values of a column by its place in relion_files.LABELS."""
    j = LABELS.index(label)

    def change(rows):
        split = [row.split() for row in rows]
        values = make([words[j] for words in split])
        return [" ".join(words[:j] + [value] + words[j + 1:]) for words, value in zip(split, values)]
    return change


def sort_anew(inputs):
    rewrite(inputs[0], lambda rows: [rows[i] for i in np.random.default_rng(0).permutation(len(rows))])


def other_half_sets(inputs):
    rewrite(inputs[0], column("rlnRandomSubset", lambda texts: [str(3 - int(text)) for text in texts]))


def other_images(inputs):
    rewrite(inputs[0], column("rlnImageName", lambda texts: texts[1:] + texts[:1]))


def other_classes(inputs):
    rewrite(inputs[0], column("rlnClassNumber", lambda texts: ["7"] * len(texts)))


def fewer_particles(inputs):
    rewrite(inputs[0], lambda rows: rows[:-3])


def written_with_other_digits(inputs):
    rewrite(inputs[0], column("rlnAngleRot", lambda texts: [f"{float(text):.6f}" for text in texts]))


def other_pixel_size(inputs):
    path = Path(inputs[0])
    path.write_text(path.read_text().replace(" 4.0 24 2", " 4.2 24 2"))


def no_particle_file(inputs):
    os.remove(inputs[0])


def other_map(number):
    def change(inputs):
        with mrcfile.open(inputs[number], "r+") as mrc:
            mrc.data[:] *= 0.5
    return change


def touched(number):
    def change(inputs):
        os.utime(inputs[number], ns=(10**18, 10**18))
    return change


def stack(inputs):
    return Path(inputs[0]).parent / "half_1.mrcs"


def other_stack(inputs):
    with mrcfile.open(str(stack(inputs)), "r+") as mrc:
        mrc.data[:] = mrc.data[::-1].copy()


def longer_stack(inputs):
    with open(stack(inputs), "ab") as handle:
        handle.write(bytes(4096))


def stack_gone(inputs):
    os.remove(stack(inputs))


def stack_touched(inputs):
    os.utime(stack(inputs), ns=(10**18, 10**18))


HARMLESS = {
    "sorted anew": (sort_anew, "with the same particles. The run goes on with its own copy"),
    "a column that is not used": (other_classes, f"rlnClassNumber differs in {N} of {N} rows since the run began"),
    "other digits": (written_with_other_digits, "with the same particles"),
    "particle file gone": (no_particle_file, "particles.star: is not there any more. The run goes on with its own"),
    "stack touched": (stack_touched, "half_1.mrcs: written to since the run began. The size and a sample"),
    "mask touched": (touched(3), ""),
}
REFUSED = {
    "half-sets": (other_half_sets, "particles.star: has changed since the run began: rlnRandomSubset differs in 24 of"),
    "image names": (other_images, "particles.star: has changed since the run began: .* differs in"),
    "fewer particles": (fewer_particles, "3 of 24 rows are gone, 0 are new"),
    "pixel size": (other_pixel_size, "rlnImagePixelSize differs in 1 of 1 rows of the optics groups"),
    "half-map": (other_map(2), "half_map_2 .*input_2.mrc: has changed since the run began"),
    "mask": (other_map(3), "mask .*mask.mrc: has changed since the run began"),
}
STACKS = {
    "stack": (other_stack, r"half_1.mrcs: has changed since the run began \(the content is another\)"),
    "longer stack": (longer_stack, r"half_1.mrcs: has changed since the run began \(its size is another\)"),
    "stack gone": (stack_gone, "half_1.mrcs: is not there any more; put it back"),
}


def warnings_of(run):
    return " | ".join(read_json(run.report)["warnings"])


def assert_same_results(run, reference):
    """The same maps to the last bit, and the same rows."""
    for name in ("map.mrc", "half_map_1.mrc", "particles.star"):
        assert (run.path / "final" / name).read_bytes() == (reference.path / "final" / name).read_bytes(), name


@pytest.mark.parametrize("case", [*HARMLESS, *REFUSED])
def test_a_file_that_changes_during_a_run_is_named_and_changes_nothing(data, inputs, tmp_path, monkeypatch, case):
    change, words = dict(HARMLESS, **REFUSED)[case]
    merge = engine.merge

    def merge_and_change(run, iteration, threads, device):
        merge(run, iteration, threads, device)
        if iteration == 2:
            change(inputs)
    monkeypatch.setattr(engine, "merge", merge_and_change)
    run = engine.refine(*inputs, str(tmp_path / "run"), SETTINGS, device="cpu", threads=1)
    assert_same_results(run, data[1])
    said = warnings_of(run)
    if words:
        assert re.search(words, said), said
    else:
        assert "since the run began" not in said
    if case in REFUSED:
        assert "The results are those of the file as it was when the run began" in said


@pytest.mark.parametrize("moment, case", [("between", case) for case in STACKS] + [
    ("within", "stack"), ("within", "longer stack")])  # a file that is removed while it is open can be read on
def test_a_stack_that_changes_during_a_run_ends_it(inputs, tmp_path, monkeypatch, moment, case):
    """Between two align steps, and while one reads it: no pose of other images is kept."""
    change, words = STACKS[case]
    owner, name = (engine, "merge") if moment == "between" else (engine, "align_together")
    done = getattr(owner, name)

    def and_change(*arguments):
        found = done(*arguments)
        change(inputs)
        return found
    monkeypatch.setattr(owner, name, and_change)
    with pytest.raises(InputError, match=words):
        engine.refine(*inputs, str(tmp_path / "run"), SETTINGS, device="cpu", threads=1)
    run = RunFolder(tmp_path / "run")
    assert run.iterations_done() == (1 if moment == "between" else 0)
    assert not run.half_done(run.iterations_done() + 1, 1).exists()


def begun(inputs, tmp_path):
    """A run after its first iteration."""
    run = prepare(*inputs, str(tmp_path / "run"), SETTINGS, "cpu", 1)
    engine.align(str(run.path), 1, (1, 2), "cpu", 1)
    engine.merge(str(run.path), 1, 1)
    return run


@pytest.mark.parametrize("case", HARMLESS)
def test_a_harmless_change_is_said_when_the_run_is_continued(data, inputs, tmp_path, capsys, case):
    run = begun(inputs, tmp_path)
    change, words = HARMLESS[case]
    change(inputs)
    capsys.readouterr()
    engine.refine(*inputs, str(run.path), SETTINGS, device="cpu", threads=1, mode="continue")
    assert_same_results(run, data[1])
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("case", [*REFUSED, *STACKS])
def test_a_change_that_matters_is_refused_when_the_run_is_continued(inputs, tmp_path, case):
    run = begun(inputs, tmp_path)
    change, words = dict(REFUSED, **STACKS)[case]
    change(inputs)
    with pytest.raises(InputError, match=words):
        engine.refine(*inputs, str(run.path), SETTINGS, device="cpu", threads=1, mode="continue")
    assert run.iterations_done() == 1


def test_a_stack_that_changed_is_not_validated(inputs, tmp_path):
    settings = Settings(**dict(SETTINGS.as_dict(), max_iterations=1))
    run = engine.refine(*inputs, str(tmp_path / "run"), settings, "cpu", 1)
    other_stack(inputs)
    with pytest.raises(InputError, match=STACKS["stack"][1]):
        validate(str(run.path), "cpu", 1)


def test_a_changed_file_is_read_anew_where_everything_is_done_again(inputs, tmp_path):
    """A setting of the first step was changed as well: the run begins again, with the file as it is now."""
    run = begun(inputs, tmp_path)
    other_map(3)(inputs)
    again = Settings(**dict(SETTINGS.as_dict(), prior="gaussian", max_iterations=1))
    engine.refine(*inputs, str(run.path), again, device="cpu", threads=1, mode="continue")
    assert "since the run began" not in warnings_of(run)


def test_a_run_of_an_older_version_is_finished_with_the_file_it_was_given(data, inputs, tmp_path):
    """It has no fingerprints and no copy; a file whose rows are others is refused."""
    run = begun(inputs, tmp_path)
    text = read_json(run.iteration_done(0))
    for path in (run.fingerprints, run.given_particles):
        path.unlink()
        text["files"].pop(f"iter_000/{path.name}")
    write_json(run.iteration_done(0), text)
    engine.refine(*inputs, str(run.path), SETTINGS, device="cpu", threads=1, mode="continue")
    assert_same_results(run, data[1])
    run.report.unlink()
    sort_anew(inputs)
    with pytest.raises(InputError, match="does not have the particles of this run in their order"):
        engine.finish(str(run.path), 1)


def test_a_sample_holds_the_first_and_the_last_bytes(tmp_path):
    path = tmp_path / "stack"
    path.write_bytes(bytes(1_000_000))
    before = fingerprints.of_stack(path, 3)
    for place in (0, 500_000, 999_999):
        content = bytearray(1_000_000)
        content[place] = 1
        path.write_bytes(bytes(content))
        now = fingerprints.of_stack(path, 3)
        assert now.size == before.size and now.digest != before.digest
    assert [fingerprints.blocks_for(n) for n in (1, 256, 1000, 10**6)] == [16, 16, 4, 2]
