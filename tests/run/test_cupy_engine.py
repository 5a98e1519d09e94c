"""The whole engine on a stand-in for CuPy: nothing CuPy lacks is called, no array is on the wrong side, results agree.

What the stand-in refuses is what CuPy 14.2 or 12.3 refuses (tests/support/gpu/stand_in.py); kernels run through the
CUDA sources.
"""
from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from aberrations import NONE, STRONG, aberrated
from experiments import write_inputs
from gpu.fixtures import STAND_IN, install
from gpu.record_cupy import OLDER, RECORD, differences, record
from gpu.stand_in import FUNCTIONS
from gpu.streams import CLASSES_USED, NOT_CUPYS
from small_experiments import BOX, RESOLUTION, aligned, assert_same, small_experiment

from localrefine_plugin.engine import refine as refine_module
from localrefine_plugin.engine.align import half_alignment, half_set
from localrefine_plugin.engine.align.half_set import HalfTask, align_half, align_together
from localrefine_plugin.engine.align.other_bodies import OtherBody
from localrefine_plugin.engine.align.prior import PosePrior
from localrefine_plugin.engine.align.search import Grid
from localrefine_plugin.engine.align.search_plan import levels_of
from localrefine_plugin.engine.finish import results as results_module
from localrefine_plugin.engine.io.mrc import read_map, write_map
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.run_store import load_motion
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.merge import merge as merge_module
from localrefine_plugin.engine.model.pixels import PixelList, pixel_list
from localrefine_plugin.engine.prepare import prepare as prepare_module
from localrefine_plugin.engine.progress import silent
from localrefine_plugin.engine.records.settings import Settings


@pytest.fixture
def cupy(monkeypatch):
    return install(monkeypatch)


@pytest.mark.parametrize("settings", [
    dict(),
    dict(prior="gaussian", marginalize=True),
    dict(prior="gaussian", marginalize=True, per_particle_scale=True),
    dict(symmetry="C2"),
    dict(prior="learned", marginalize=True),
    dict(prior="learned-isotropic", symmetry="D2"),
], ids=str)
def test_one_iteration_is_that_of_the_cpu(cupy, settings):
    e = small_experiment()
    assert_same(aligned(e, STAND_IN, **settings), aligned(e, CPU, **settings))
    assert cupy.ledger.counts.launches > 5


def test_two_bodies_aligned_together_are_those_of_the_cpu(cupy):
    """What they share of the images stays on the GPU and is not written to, though one is taken out for the other."""
    e = small_experiment()
    mask, particles = e.half_set().mask, e.particles
    other = np.roll(mask, (3, -2), (0, 2))
    taken = OtherBody(e.half_set().reference_map, other, particles.rotation, particles.shift_px + 0.3)
    scales = replace(aligned(e, CPU, per_particle_scale=True).poses, scale=np.linspace(0.8, 1.2, len(particles)))
    halves = [e.half_set(others=[taken], previous=scales), e.half_set(mask=other, previous=scales)]
    plan = e.plan(RESOLUTION, per_particle_scale=True)
    before = cupy.ledger.counts.launches
    together = align_together([HalfTask(half, plan, STAND_IN, 1) for half in halves], silent)
    assert cupy.ledger.counts.launches > before
    for half, found in zip(halves, together):
        assert_same(found, align_half(half, plan, CPU))
    assert not np.allclose(together[0].poses.rotation, together[1].poses.rotation, atol=1e-3)
    assert not np.allclose(together[0].half_map, align_half(e.half_set(), plan, CPU).half_map, rtol=0.1)


def test_three_levels_of_resolution_are_those_of_the_cpu(cupy):
    """From the grid at 14 Å over one level between to 8.8 Å."""
    e = small_experiment()
    plan = e.plan(8.8)
    assert len(levels_of(pixel_list(BOX, plan.align_shell, 11), 6, plan.align_shell).pixels) == 3
    results = [align_half(e.half_set(), plan, device) for device in (STAND_IN, CPU)]
    assert_same(*results)


def test_a_second_iteration_is_that_of_the_cpu(cupy):
    """From known poses, some of which go through the grid again and some do not."""
    e, settings = small_experiment(), dict(prior="gaussian", marginalize=True, per_particle_scale=True,
                                           recenter_rotations=True, recenter_shifts=True)
    first = aligned(e, CPU, **settings).poses
    first = replace(first, modes=1 + np.arange(len(first)) % 2)
    assert_same(aligned(e, STAND_IN, first, **settings), aligned(e, CPU, first, **settings))


def test_verdicts_and_weights_are_those_of_the_cpu(cupy, monkeypatch):
    monkeypatch.setattr(half_set, "LEAST_PARTICLES", 5)
    e, settings = small_experiment(), dict(prior="learned", marginalize=True)
    first = aligned(e, CPU, **settings)
    assert first.verdict is not None
    poses = replace(first.poses, probability_aligned=np.linspace(0, 1, len(first.poses)))
    results = [aligned(e, device, poses, **settings) for device in (STAND_IN, CPU)]
    assert_same(*results)
    for name in ("others", "noise"):
        np.testing.assert_allclose(*(getattr(r.verdict, name) for r in results), rtol=1e-3)
    np.testing.assert_allclose(*(r.poses.gain for r in results), rtol=1e-3)


def test_two_optics_groups_have_their_own_noise(cupy):
    e = small_experiment()
    groups = (np.arange(len(e.particles)) % 2).astype(np.int32)
    e = replace(e, particles=replace(e.particles, optics_group=groups, optics=e.particles.optics * 2))
    noise = np.concatenate([e.noise_power, 2 * e.noise_power])
    results = [align_half(e.half_set(noise_power=noise), e.plan(RESOLUTION), device) for device in (STAND_IN, CPU)]
    assert_same(*results)


def test_groups_with_and_without_aberrations_are_those_of_the_cpu(cupy):
    e = aberrated(10, (NONE, STRONG[0], STRONG[1]), box=BOX, pixel_size=4.0, noise=0.5, seed=3, centre=(2.0, -1.0, 1.0))
    noise = np.repeat(e.noise_power, 3, axis=0)
    results = [align_half(e.half_set(noise_power=noise), e.plan(RESOLUTION), device) for device in (STAND_IN, CPU)]
    assert_same(*results)


def on_stand_in(monkeypatch):
    for module in (prepare_module, refine_module):
        monkeypatch.setattr(module, "choose_device", lambda word: STAND_IN if word == "cuda" else CPU)


DYNAMIC = dict(mask_mode="dynamic", mask_threshold=0.4, mask_near_angstrom=0.0, mask_far_angstrom=4.0,
               mask_start_resolution_angstrom=40.0)


EXTENTS = dict(max_iterations=2, rotation_extent_deg=12.0, shift_extent_angstrom=8.0)
REFINEMENTS = {
    "defaults": EXTENTS,  # learned prior, non-uniform references, marginalisation
    "isotropic-scale-dynamic": dict(
        EXTENTS, prior="learned-isotropic", non_uniform=False, per_particle_scale=True, **DYNAMIC,
        mask_threshold_type="absolute", initial_lowpass_angstrom=14.0, join_halves_resolution_angstrom=30.0),
    "symmetry-recentred": dict(
        EXTENTS, max_iterations=1, extra_final_passes=1, prior="gaussian", prior_rotation_deg=5.0,
        prior_shift_angstrom=3.0, symmetry="C2", allow_asymmetric_mask=True, recenter_rotations=True,
        recenter_shifts=True, marginalize=False, non_negativity=True, resplit_half_sets=True, subtract=True,
        fulcrum="box", max_align_resolution_angstrom=10.0, weight_by_probability=False)}
# on the host, or with several masks only
BEFORE_OR_AFTER = {"resample_maps", "honour_mask_origin", "exchange_half_maps", "fsc_randomise_below",
                   "sharpen_bfactor", "seed", "keep_probability", "false_discovery_rate", "subtract_bodies"}


def test_every_setting_is_in_a_refinement_on_the_stand_in():
    defaults = Settings().as_dict()
    changed = {name for choices in REFINEMENTS.values() for name, value in choices.items() if value != defaults[name]}
    assert changed | BEFORE_OR_AFTER == set(defaults)


@pytest.mark.parametrize("choices", REFINEMENTS.values(), ids=REFINEMENTS)
def test_a_whole_refinement_is_that_of_the_cpu(cupy, monkeypatch, tmp_path, choices):
    """Two iterations, so that what the first one learned, masked and filtered is used by the second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the self-test at the first use remembers
    inputs = write_inputs(tmp_path / "in", small_experiment(24))
    on_stand_in(monkeypatch)
    settings = Settings(**choices)
    runs = [refine_module.refine(*inputs, str(tmp_path / word), settings, device=word, threads=1)
            for word in ("cuda", "cpu")]
    assert read_json(runs[0].half_done(2, 2))["device"] == "stand-in"
    for name in ("map.mrc", "mask.mrc"):
        on_gpu, on_cpu = (read_map(run.final(name))[0] for run in runs)
        assert np.linalg.norm(on_gpu - on_cpu) < 0.01 * np.linalg.norm(on_cpu), name
    if settings.prior.startswith("learned"):
        ours, theirs = (load_motion(run, 2, 1).covariance for run in runs)
        np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max())
    if settings.mask_mode == "dynamic":
        assert not np.array_equal(read_map(runs[0].mask_in_use(1))[0], read_map(runs[0].mask)[0])


def test_volumes_come_to_the_host_to_be_written_and_for_nothing_else(cupy, monkeypatch, tmp_path):
    """As many as there are files of maps that were not copied from other files; and small ones of low frequencies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    on_stand_in(monkeypatch)
    came, written, counts = [], [], cupy.ledger.counts

    def counted(do):
        def wrapped(*arguments):
            before, files = counts.volumes_to_host, len(written)
            result = do(*arguments)
            came.append((counts.volumes_to_host - before, len(written) - files))
            return result
        return wrapped
    for module in (prepare_module, merge_module, results_module):
        monkeypatch.setattr(module, "write_map", lambda path, *rest: (written.append(path), write_map(path, *rest)))
    for name in ("prepare", "merge_halves", "write_results"):
        monkeypatch.setattr(refine_module, name, counted(getattr(refine_module, name)))
    settings = Settings(max_iterations=1, rotation_extent_deg=12.0, shift_extent_angstrom=8.0, subtract=True, **DYNAMIC)
    refine_module.refine(*write_inputs(tmp_path / "in", small_experiment(24)), str(tmp_path / "run"), settings,
                         device="cuda", threads=1)
    # prepare: two references and two static parts; the half-maps and their difference on the few voxels that images
    # are compared with (belonging.py); the mask, of the user's file, is the host's. Merge: two references, where the
    # filter cuts, mask. Finish: map, sharpened, tightest mask; and the coarse map of second_copy.py, which is small but
    # in a box like this one
    assert came == [(4 + 3, 4 + 1), (4, 4), (4, 3)]


def test_the_device_is_named_once_in_a_run(cupy, monkeypatch, tmp_path, capsys):
    """With what of its memory the run will take; a step on another device names its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    on_stand_in(monkeypatch)
    settings = Settings(max_iterations=1, rotation_extent_deg=12.0, shift_extent_angstrom=8.0)
    run = refine_module.refine(*write_inputs(tmp_path / "in", small_experiment(24)), str(tmp_path / "run"), settings,
                               device="cuda", threads=1)
    said = capsys.readouterr().out
    assert said.count("on stand-in") == 1 and said.count("memory of the GPU") == 1
    assert read_json(run.input)["device"] == "stand-in"
    run.half_done(1, 2).unlink()
    run.iteration_done(1).unlink()
    refine_module.align(str(run.path), 1, (2,), "cpu", 1)
    assert "iteration 1 half 2: on CPU" in capsys.readouterr().out


@pytest.mark.parametrize("record_class", [PosePrior, PixelList, Grid])
def test_an_array_left_on_the_host_is_refused(cupy, monkeypatch, record_class):
    """A planted bug of the kind the stand-in is for."""
    monkeypatch.setattr(record_class, "to_device", lambda self, to_device: self)
    with pytest.raises(TypeError):
        aligned(small_experiment(4), STAND_IN)


def test_the_host_reconstructs_what_the_gpu_cannot_hold(cupy, monkeypatch):
    e = small_experiment()
    monkeypatch.setattr(half_alignment, "working_bytes", lambda box: 1 << 50)
    assert_same(aligned(e, STAND_IN), aligned(e, CPU))


# the stand-in itself

def test_the_stand_in_refuses_what_cupy_refuses(cupy):
    a = cupy.asarray(np.arange(6.0))
    b = np.arange(6.0)
    for mistake in (lambda: a + b, lambda: b + a, lambda: a @ b, lambda: cupy.where(a > 1, a, b), lambda: np.sin(a),
                    lambda: np.asarray(a), lambda: a[b.astype(int)], lambda: a.take(b.astype(int)),
                    lambda: cupy.stack([a, b]), lambda: cupy.sum(a, where=a > 1), lambda: cupy.exp(a, where=a > 1),
                    lambda: cupy.lexsort((a, a)), lambda: cupy.maximum.at(a, b.astype(int), a),
                    lambda: cupy.fft.rfft2(a, workers=2), lambda: a.sum(initial=0)):
        with pytest.raises(TypeError):
            mistake()
    for name in ("float128", "nditer", "einsum_paths"):
        with pytest.raises(AttributeError):
            getattr(cupy, name)
    with pytest.raises(NotImplementedError):
        cupy.searchsorted(a, 3.0)


def test_memory_never_written_is_not_a_number(cupy):
    assert np.isnan(cupy.empty((3,), np.float32).get()).all()


def test_the_stand_in_offers_nothing_that_was_not_recorded(cupy):
    assert set(vars(cupy)) - {"ledger", "linalg", "fft", "cuda"} <= set(FUNCTIONS[""]) | _private(cupy)
    assert set(vars(cupy.cuda)) <= set(FUNCTIONS["cuda"]) | {"runtime", "memory"}
    assert set(vars(cupy.cuda.runtime)) <= set(FUNCTIONS["cuda.runtime"])
    assert set(vars(cupy.cuda.memory)) <= set(FUNCTIONS["cuda.memory"])
    assert set(vars(cupy.fft.config)) <= set(FUNCTIONS["fft.config"])
    for recorded, ours in CLASSES_USED.items():
        names = {name for name, _ in inspect.getmembers(ours, callable) if not name.startswith("_")} - NOT_CUPYS
        assert names <= set(json.loads(RECORD.read_text())["classes"][recorded])


def _private(module):
    return {name for name in vars(module) if name.startswith("_")}


@pytest.mark.parametrize("path", [RECORD, OLDER], ids=lambda path: path.name)
def test_the_record_is_of_the_cupy_installed(path):
    real, content = pytest.importorskip("cupy", reason="CuPy is not installed"), json.loads(path.read_text())
    if real.__version__ != content["version"]:
        pytest.skip(f"the record is of another CuPy than {real.__version__}")
    assert content == (record() if path == RECORD else differences(json.loads(RECORD.read_text()), record()))


def test_the_records_are_of_the_releases_that_setup_allows():
    allowed = re.search(r">=(\S+),<(\d+)", (Path(__file__).resolve().parents[2] / "setup.py").read_text())
    older, newest = (json.loads(path.read_text())["version"] for path in (OLDER, RECORD))
    assert older.startswith(allowed[1]) and int(newest.split(".")[0]) == int(allowed[2]) - 1
