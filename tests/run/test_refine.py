"""A whole refinement of a phantom: it converges on the truth, repeats bit for bit, and survives being stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from experiments import experiment, inputs_of, write_inputs
from oracles import angle_between_deg, shell_correlation
from relion_files import read_columns, read_poses
from run_results import assert_same_bits, results, temporary_folder

from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.align import of_run
from localrefine_plugin.engine.finish.report import build_report
from localrefine_plugin.engine.io.run_folder import FINAL_FILES, OPTIONAL_FINAL_FILES, RunFolder, read_json
from localrefine_plugin.engine.io.run_store import load_nulls
from localrefine_plugin.engine.records.codec import as_json
from localrefine_plugin.engine.records.settings import Settings

BOX = 32
SETTINGS = dict(max_iterations=2)
ROOT = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=None)
def data(box):
    return experiment(300, box=box, noise=1.0, seed=3)


@lru_cache(maxsize=None)
def inputs(box):
    return write_inputs(temporary_folder() / f"data_{box}", data(box))


@lru_cache(maxsize=None)
def straight_run(box):
    return engine.refine(*inputs(box), str(temporary_folder() / f"straight_{box}"), Settings(**SETTINGS), threads=1)


@pytest.mark.parametrize("box", [32, 33])
def test_poses_and_map_approach_the_truth(box):
    """Even and odd boxes. The input is off by 4.6° and 4 Å in the median; least squares with the true phantom reaches
    2.1° and 0.3 Å (test_search). The map is compared inside the mask, whose soft edge both share."""
    e, run = data(box), straight_run(box)
    rotation, shift = read_poses(run.path / "final" / "particles.star", e.particles.pixel_size)
    before = np.median(angle_between_deg(e.rotation, e.particles.rotation))
    after = np.median(angle_between_deg(e.rotation, rotation))
    moved = np.linalg.norm((rotation - e.rotation)[:, :2] @ e.centre + shift - e.shift, axis=1)
    assert before > 4
    assert after < 3
    assert np.median(moved) * e.particles.pixel_size < 0.6
    curve = shell_correlation(mrcfile.read(run.path / "final" / "map.mrc") * e.mask, e.phantom.density(box) * e.mask)
    assert curve[1:9].min() > 0.95


def test_the_output_is_complete_and_keeps_what_it_does_not_refine():
    run = straight_run(BOX)
    written = set(FINAL_FILES + OPTIONAL_FINAL_FILES) - {
        "validation.json", "input_changes.json", "particles_kept.star", "particles_left_out.star", "selection.json",
        "particles.cs", "particles_kept.cs", "particles_left_out.cs", "moving_part.mrc",
        "resolution_by_part.mrc"}
    assert {p.name for p in (run.path / "final").iterdir()} == written
    labels = ("rlnRandomSubset", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnOpticsGroup", "rlnClassNumber")
    np.testing.assert_array_equal(
        read_columns(run.path / "final" / "particles.star", labels), read_columns(inputs(BOX)[0], labels)
    )
    best = read_json(run.iteration_done(run.iterations_done()))["best_iteration"]
    for half in (1, 2):
        assert run.half_map(best, half).read_bytes() == run.final(f"half_map_{half}.mrc").read_bytes()


def test_the_output_map_is_the_mean_of_the_half_maps_and_is_not_masked():
    e, run = data(BOX), straight_run(BOX)
    one, two, mean = (mrcfile.read(run.final(name)) for name in ("half_map_1.mrc", "half_map_2.mrc", "map.mrc"))
    np.testing.assert_allclose(mean, 0.5 * (one + two), atol=1e-6 * np.abs(one).max())
    assert (mean[e.mask == 0] != 0).mean() > 0.99


def test_the_pose_change_reported_is_that_of_the_poses():
    e, run = data(BOX), straight_run(BOX)
    last = run.iterations_done()
    reported = read_json(run.iteration_done(last))["pose_change"]
    best = read_json(run.iteration_done(last))["best_iteration"]
    rotation, shift = read_poses(run.final("particles.star"), e.particles.pixel_size)
    change = as_json(build_report(run).iterations[best].pose_change)
    assert np.median(angle_between_deg(e.particles.rotation, rotation)) == pytest.approx(
        change["rotation_median_deg"], abs=1e-3
    )
    fulcrum = np.array(read_json(run.input)["resolved"]["fulcrum_px"]) - e.box // 2
    moved = (rotation - e.particles.rotation)[:, :2] @ fulcrum + shift - e.particles.shift_px
    assert np.median(np.linalg.norm(moved, axis=1)) * e.particles.pixel_size == pytest.approx(
        change["shift_median_angstrom"], abs=1e-3
    )
    assert reported["rotation_median_deg"] > 0


class Stop(BaseException):
    """Stands for a kill: nothing in the engine may catch it."""


def stop_at(monkeypatch, name, call):
    """Make the call-th call of this function of refine.py, or of what it saves with, raise before it does anything."""
    module = engine if hasattr(engine, name) else of_run
    original, calls = getattr(module, name), []

    def stopping(*arguments, **named):
        calls.append(name)
        if len(calls) == call:
            raise Stop
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, stopping)


@pytest.mark.parametrize(
    "name, call",
    [
        ("align_half_set", 1),  # right after prepare
        ("align_half_set", 2),  # between the halves
        ("merge", 1),
        ("align_half_set", 3),
        ("merge", 2),
        ("finish", 1),
        ("save_arrays", 3),  # inside a step: half 2's map is written, its poses are not
    ],
)
def test_a_stopped_run_continues_to_the_same_bits(tmp_path, monkeypatch, name, call):
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_at(patched, name, call)
        engine.refine(*inputs(BOX), str(tmp_path / "run"), Settings(**SETTINGS), threads=1)
    assert not RunFolder(tmp_path / "run").final("map.mrc").exists()
    run = engine.refine(*inputs(BOX), str(tmp_path / "run"), Settings(**SETTINGS), threads=1, mode="continue")
    assert_same_bits(straight_run(BOX), run)
    nulls = [load_nulls(run, k, 2) for k in (1, 2)]  # what images of nothing told was kept across the stop
    assert nulls[1].drawn > nulls[0].drawn > 0


def test_a_finished_run_continues_to_itself(tmp_path):
    before = results(straight_run(BOX))
    engine.refine(*inputs(BOX), str(straight_run(BOX).path), Settings(**SETTINGS), threads=1, mode="continue")
    assert results(straight_run(BOX)) == before


@pytest.mark.parametrize("threads", [1, 2])
def test_another_process_gives_the_same_bits_with_any_number_of_threads(tmp_path, threads):
    """The second run is one from the shell."""
    (tmp_path / "settings.json").write_text('{"max_iterations": 2}')
    star, half_1, half_2, mask = inputs_of(Path(inputs(BOX)[0]).parent)
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "localrefine_plugin.engine",
            "refine",
            "--particles",
            star,
            "--half-map-1",
            half_1,
            "--half-map-2",
            half_2,
            "--mask",
            mask,
            "--output",
            str(tmp_path / "run"),
            "--settings",
            str(tmp_path / "settings.json"),
            "--threads",
            str(threads),
            "--device",
            "cpu",
        ],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=environment,
    )
    assert_same_bits(straight_run(BOX), RunFolder(tmp_path / "run"))


def test_the_advice_is_printed_at_the_end(tmp_path, capsys):
    """What the report says in the end is not only in a file."""
    run = engine.refine(*write_inputs(tmp_path / "in", experiment(40, noise=0.5, seed=2)), str(tmp_path / "run"),
                 Settings(max_iterations=1, rotation_extent_deg=0.5), device="cpu", threads=1)
    advice = read_json(run.report)["advice"]
    printed = capsys.readouterr().out
    assert advice and all(f"advice: {text}" in printed for text in advice)


def test_a_constant_in_the_images_changes_nothing():
    """Each image with its own background, thousands of times its noise: the same poses, and the same map."""
    e = experiment(60, noise=0.5, seed=12)
    constant = np.random.default_rng(3).uniform(-3000, 3000, len(e.images))[:, None, None]
    clean, shifted = (one.align(9.0) for one in (e, replace(e, images=e.images + constant)))
    np.testing.assert_allclose(shifted.poses.rotation, clean.poses.rotation, atol=np.deg2rad(0.05))
    np.testing.assert_allclose(shifted.poses.shift_px, clean.poses.shift_px, atol=0.01)
    assert np.linalg.norm(shifted.half_map - clean.half_map) < 2e-3 * np.linalg.norm(clean.half_map)
