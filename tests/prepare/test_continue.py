"""Continue: what is missing or depends on a changed setting is done again, and nothing else."""
from __future__ import annotations

import os
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
from experiments import experiment, write_inputs
from run_results import assert_same_bits, results, temporary_folder

from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import ALIGN, DESCRIBED, FINISH, MERGE, PREPARE, STOP, Settings

DEFAULTS = dict(max_iterations=2)
ALL = ["prepare", "align 1 1", "align 1 2", "merge 1", "align 2 1", "align 2 2", "merge 2", "finish"]


@lru_cache(maxsize=None)
def inputs():
    return write_inputs(temporary_folder() / "few", experiment(60, noise=1.0, seed=3))


def refined(path, mode="new", **settings):
    return engine.refine(*inputs(), str(path), Settings(**{**DEFAULTS, **settings}), threads=1, mode=mode)


@lru_cache(maxsize=None)
def straight(**settings):
    return refined(temporary_folder() / f"few_{len(list(temporary_folder().iterdir()))}", **settings)


@pytest.fixture
def run(tmp_path):
    """A copy of a finished run, files as old as they were."""
    shutil.copytree(straight().path, tmp_path / "run", copy_function=shutil.copy2)
    return RunFolder(tmp_path / "run")


def steps_done(run, iterations=2):
    """Last files of the steps, in order, with the moment they were written."""
    found = {"prepare": run.iteration_done(0)}
    for k in range(1, iterations + 1):
        found.update({f"align {k} {half}": run.half_done(k, half) for half in (1, 2)})
        found[f"merge {k}"] = run.iteration_done(k)
    found["finish"] = run.report
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in found.items() if path.exists()}


def repeated(run, act):
    """Steps that were done again, or for the first time, by ``act``."""
    before = steps_done(run, 4)
    act()
    return [name for name, written in steps_done(run, 4).items() if before.get(name) != written]


def test_a_finished_run_repeats_nothing(run):
    assert repeated(run, lambda: refined(run.path, "continue")) == []
    assert_same_bits(run, straight())


@pytest.mark.parametrize("changed, first", [
    (dict(sharpen_bfactor=-50.0), "finish"), (dict(non_uniform=False), "merge 1"),
    (dict(mask_mode="dynamic", mask_start_resolution_angstrom=100.0), "merge 1"),
    (dict(marginalize=False), "align 1 1"), (dict(prior_rotation_deg=3.0), "prepare"), (dict(seed=5), "prepare")])
def test_a_changed_setting_repeats_what_depends_on_it_and_gives_the_run_with_it(run, changed, first):
    done = repeated(run, lambda: refined(run.path, "continue", **changed))
    expected = ALL[ALL.index(first):]
    assert done == [name for name in expected if not (first == "merge 1" and name.startswith("align 1"))]
    assert_same_bits(run, straight(**changed))
    assert [name for name in os.listdir(run.iteration(1)) if name.startswith(".")] == []


def test_back_to_the_old_setting_leaves_nothing_of_the_other(run):
    refined(run.path, "continue", mask_mode="dynamic", mask_start_resolution_angstrom=100.0)
    assert run.iteration_mask(1).exists()
    refined(run.path, "continue")
    assert_same_bits(run, straight())


def test_nothing_in_iteration_0_depends_on_the_settings_that_are_taken_as_they_are(tmp_path):
    """Else a changed one would have to prepare the run again."""
    values = {"bool": lambda d: not d.default, "int": lambda d: d.default + 1,
              "float": lambda d: min((d.default or 40.0) * 1.5, d.high or 1000.0),
              "choice": lambda d: next(c for c in d.choices if c != d.default)}
    later = {name: info for name, info in DESCRIBED.items() if info.step != PREPARE}
    assert {info.step for info in later.values()} == {ALIGN, MERGE, FINISH, STOP}
    other = {name: values[info.kind](info) for name, info in later.items()}
    engine.prepare(*inputs(), str(tmp_path / "other"), Settings(**other), threads=1)
    one, two = RunFolder(straight().path), RunFolder(tmp_path / "other")
    for name in ("half_1_reference.mrc", "half_2_reference.mrc", "half_1_noise.npz", "half_2_noise.npz", "fsc.star"):
        assert (one.iteration(0) / name).read_bytes() == (two.iteration(0) / name).read_bytes()
    first, second = (read_json(run.input) for run in (one, two))
    for content in (first, second):
        content["resolved"] = {k: v for k, v in content["resolved"].items() if k not in later}
    assert first == second


@pytest.mark.parametrize("more", [dict(max_iterations=3), dict(max_iterations=2, extra_final_passes=1)])
def test_more_iterations_extend_a_finished_run(run, more):
    if read_json(run.iteration_done(2))["converged"]:
        pytest.fail("the data of this test must not converge in two iterations")
    done = repeated(run, lambda: refined(run.path, "continue", **more))
    assert done == ["align 3 1", "align 3 2", "merge 3", "finish"]
    assert_same_bits(run, straight(**more))
    assert read_json(run.report)["settings"]["max_iterations"] == more["max_iterations"]


@pytest.mark.parametrize("lost, first", [
    ("iter_001/half_2_poses.npz", "align 1 2"), ("iter_001/half_1_reference.mrc", "merge 1"),
    ("iter_002/half_1_noise.npz", "align 2 1"), ("iter_002/fsc.star", "merge 2"), ("final/map.mrc", "finish"),
    ("particles.npz", "prepare"), ("iter_000/half_1_noise.npz", "prepare"), ("iter_001/half_2.json", "align 1 2")])
@pytest.mark.parametrize("how", ["deleted", "cut short"])
def test_a_lost_file_is_noticed_and_its_step_and_all_later_ones_repeated(run, lost, first, how):
    path = run.path / lost
    if how == "deleted":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    done = repeated(run, lambda: refined(run.path, "continue"))
    other_half = "align 1 1" if first == "align 1 2" else "align 2 2" if first == "align 2 1" else ""
    assert done == [name for name in ALL[ALL.index(first):] if name != other_half]
    assert_same_bits(run, straight())


def test_verb_by_verb_a_step_waits_for_the_one_before(run):
    run.reference(1, 2).unlink()
    for step in (lambda: engine.align(str(run.path), 2, (1,)), lambda: engine.merge(str(run.path), 2)):
        if run.half_done(2, 1).exists():
            run.half_done(2, 1).unlink()
        with pytest.raises(InputError, match="iteration 1 is not complete"):
            step()
    with pytest.raises(InputError, match="is not complete"):
        run.report.unlink()
        run.half_map(1, 1).unlink()
        engine.finish(str(run.path))


def test_an_old_run_takes_the_defaults_of_newer_settings(run):
    newer = ("non_uniform", "mask_mode", "fsc_randomise_below", "extra_final_passes", "symmetry")
    settings, described = read_json(run.settings), read_json(run.input)
    for name in newer:
        assert settings.pop(name) == getattr(Settings(), name)
        del described["resolved"][name]
    for name in ("rotation_extent_fixed", "shift_extent_fixed"):
        del described["resolved"][name]
    write_json(run.settings, dict(settings, deterministic=True))  # which is always so now
    write_json(run.input, described)
    for done in [run.iteration_done(k) for k in range(3)] + [run.half_done(k, h) for k in (1, 2) for h in (1, 2)]:
        write_json(done, {key: value for key, value in read_json(done).items() if key != "files"})
    run.iteration_done(2).unlink()
    shutil.rmtree(run.path / "final")
    assert repeated(run, lambda: refined(run.path, "continue")) == ["merge 2", "finish"]
    assert results(run) == results(straight())


@pytest.mark.parametrize("name, damage", [
    ("settings.json", b"{"), ("input.json", b"[]"), ("input.json", b'{"optics": []}'), ("particles.npz", None)])
def test_a_run_of_an_unreadable_version_is_one_sentence(run, name, damage):
    path = run.path / name
    if damage is None:
        size = path.stat().st_size
        path.write_bytes(os.urandom(size))
    else:
        path.write_bytes(damage)
    run.half_done(2, 1).unlink()
    with pytest.raises(InputError, match=f"{name}: .*(damaged|other inputs).*--overwrite"):
        engine.align(str(run.path), 2, (1,))
    assert Path(path).exists()
