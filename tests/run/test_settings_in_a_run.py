"""Settings that act on a whole run, each against a run without them."""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from experiments import experiment, write_inputs
from oracles import angle_between_deg
from relion_files import read_columns

from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.finish.report import build_report
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.io.run_store import load_poses
from localrefine_plugin.engine.records.settings import Settings

BASE = dict(max_iterations=1, non_uniform=False, prior="gaussian")


@lru_cache(maxsize=None)
def folder():
    import atexit
    import shutil
    path = Path(mkdtemp(prefix="localrefine_settings_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@lru_cache(maxsize=None)
def data():
    return experiment(120, noise=1.5, seed=8)


@lru_cache(maxsize=None)
def inputs():
    return write_inputs(folder() / "data", data())


@lru_cache(maxsize=None)
def run_with(changes=()):
    output = folder() / ("run_" + "_".join(f"{k}={v}" for k, v in changes))
    return engine.refine(*inputs(), str(output), Settings(**dict(BASE, **dict(changes))), threads=1)


def star_columns(run, *labels):
    return read_columns(run.final("particles.star"), labels)


def test_static_mask_comes_out_as_it_went_in():
    run = run_with()
    np.testing.assert_array_equal(read_map(run.final("mask.mrc"))[0], data().mask)


def test_dynamic_mask_is_used_by_the_next_search_and_comes_out():
    dynamic = (("mask_mode", "dynamic"), ("mask_threshold", 0.4), ("mask_near_angstrom", 0.0),
               ("mask_far_angstrom", 4.0), ("mask_start_resolution_angstrom", 30.0), ("max_iterations", 2))
    run, plain = run_with(dynamic), run_with((("max_iterations", 2),))
    best = read_json(run.iteration_done(2))["best_iteration"]
    mask = read_map(run.final("mask.mrc"))[0]
    np.testing.assert_array_equal(mask, read_map(run.iteration_mask(best))[0])
    assert mask.sum() < 0.9 * data().mask.sum()
    # the same first iteration; the second looks through another mask
    first, second = ([np.abs(load_poses(r, k, 1).shift_px) for r in (run, plain)] for k in (1, 2))
    np.testing.assert_array_equal(*first)
    assert not np.allclose(*second)
    tight = [read_json(r.iteration_done(1))["resolution_angstrom"]["tight"] for r in (run, plain)]
    assert tight[0] != tight[1]


def test_non_uniform_filter_is_saved_and_changes_the_next_search():
    run, plain = run_with((("non_uniform", True), ("max_iterations", 2))), run_with((("max_iterations", 2),))
    best = read_json(run.iteration_done(2))["best_iteration"]
    saved = read_map(run.final("filter_resolution.mrc"))[0]
    np.testing.assert_array_equal(saved, read_map(run.filter_resolution(best))[0])
    assert not plain.final("filter_resolution.mrc").exists()
    assert not np.allclose(read_map(run.reference(1, 1))[0], read_map(plain.reference(1, 1))[0])
    assert not np.allclose(load_poses(run, 2, 1).shift_px, load_poses(plain, 2, 1).shift_px)


def test_new_half_sets_are_used_and_written():
    run = run_with((("resplit_half_sets", True), ("seed", 5)))
    given = read_columns(folder() / "data" / "particles.star", ("rlnRandomSubset",))[:, 0]
    written = star_columns(run, "rlnRandomSubset")[:, 0]
    assert 0.3 < np.mean(given == written) < 0.7
    for half in (1, 2):
        np.testing.assert_array_equal(np.sort(load_poses(run, 1, half).row), np.flatnonzero(written == half))
    assert any("not independent" in text for text in build_report(run).warnings)
    np.testing.assert_array_equal(star_columns(run_with(), "rlnRandomSubset")[:, 0], given)


def test_scales_are_written_to_the_star_file():
    run = run_with((("per_particle_scale", True),))
    scale = star_columns(run, "lrScale")[:, 0]
    for half in (1, 2):
        poses = load_poses(run, 1, half)
        np.testing.assert_allclose(scale[poses.row], poses.scale, atol=1e-5)
    assert scale.mean() == pytest.approx(1, abs=1e-4)
    assert "lrScale" not in run_with().final("particles.star").read_text()


def amplitude(path, low, high):
    """Mean |F| between two shells."""
    volume = read_map(path)[0]
    k = np.fft.fftfreq(len(volume), 1 / len(volume))
    shell = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k ** 2)
    return np.abs(np.fft.fftn(volume))[(shell >= low) & (shell < high)].mean()


def test_the_b_factor_given_is_applied_and_reported():
    """exp(200·s²/4) between shells 2.5 and 7.5 of 128 Å; the shells' width blurs it by a few percent."""
    none, sharp = (run_with((("sharpen_bfactor", float(b)),)) for b in (0, -200))
    ratio = [amplitude(r.final("map_sharpened.mrc"), 7, 8) / amplitude(r.final("map_sharpened.mrc"), 2, 3)
             for r in (none, sharp)]
    expected = np.exp(200 / 4 * (7.5 ** 2 - 2.5 ** 2) / 128 ** 2)
    assert ratio[1] / ratio[0] == pytest.approx(expected, rel=0.05)
    np.testing.assert_array_equal(read_map(none.final("map.mrc"))[0], read_map(sharp.final("map.mrc"))[0])
    assert build_report(sharp).sharpening.b_factor_applied == -200
    found = build_report(run_with()).sharpening
    assert found.b_factor_applied == min(found.b_factor_guinier, 0)


def test_symmetry_reaches_the_map():
    run = run_with((("symmetry", "C2"), ("allow_asymmetric_mask", True)))

    def asymmetry(of):
        """Away from the faces: in an even box the plane −N/2 has no partner."""
        volume = read_map(of.half_map(1, 1))[0][:, 7:-6, 7:-6]
        return np.linalg.norm(volume - volume[:, ::-1, ::-1]) / np.linalg.norm(volume)
    assert asymmetry(run) < 0.03 < 0.5 < asymmetry(run_with())


def test_initial_low_pass_and_its_resolution_in_the_first_reference():
    for d in (12.0, 30.0):
        run = run_with((("initial_lowpass_angstrom", d),))
        shell = data().box * data().particles.pixel_size / d
        inside, beyond = (amplitude(run.reference(0, 1), *r) for r in ((1, shell - 1), (shell + 1.1, shell + 4)))
        assert beyond < 1e-4 * inside


def test_a_first_reference_at_30_angstrom_finds_worse_poses():
    """Than the automatic one (about 9 Å): the sub-volume is 44 Å wide."""
    errors = []
    for changes in ((), ((("initial_lowpass_angstrom", 30.0),),)):
        poses = [load_poses(run_with(*changes), 1, half) for half in (1, 2)]
        truth = np.concatenate([data().rotation[p.row] for p in poses])
        errors.append(np.median(angle_between_deg(truth, np.concatenate([p.rotation for p in poses]))))
    assert errors[1] > 1.15 * errors[0]


def test_iterations_end_at_their_number_and_extra_passes_follow():
    """Too few to converge: as many as allowed. Extra passes come on top."""
    for run, expected in ((run_with(), 1), (run_with((("max_iterations", 2),)), 2),
                          (run_with((("extra_final_passes", 1),)), 2)):
        assert run.iterations_done() == expected
        assert read_json(run.iteration_done(expected))["stop_reason"] == "maximum number of iterations"


@pytest.mark.parametrize("extra", (0, 2))
def test_extra_passes_follow_convergence(tmp_path, extra):
    """A run that says it has converged after iteration 3 of 8."""
    run = RunFolder(tmp_path)
    write_json(run.settings, Settings(extra_final_passes=extra).as_dict())
    for k in range(8):
        run.iteration(k).mkdir()
        write_json(run.iteration_done(k), {"converged": k >= 3})
    assert [k for k in range(1, 9) if not run.stopped_before(k)] == list(range(1, 4 + extra))


def test_advice_goes_to_iteration_report_and_is_warned_of_once():
    """A search of 1° for poses that are 5° away."""
    run = run_with((("rotation_extent_deg", 1.0), ("max_iterations", 2)))
    iterations, report = [read_json(run.iteration_done(k)) for k in (1, 2)], build_report(run)
    assert all("rotation limit" in i["advice"] for i in iterations)
    assert any("limit of the rotation search" in text for text in iterations[0]["warnings"])
    assert not any("limit of the rotation search" in text for text in iterations[1]["warnings"])
    assert not any("limit of the rotation search" in text for text in report.warnings)
    assert sum("limit of the rotation search" in text for text in report.advice) == 1
    assert not any("limit of the rotation search" in text for text in build_report(run_with()).advice)
