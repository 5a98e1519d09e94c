"""A selection of particles: what is kept, what is written, and what it is said to do."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from experiments import experiment, write_inputs
from relion_files import read_columns
from run_results import temporary_folder

from localrefine_plugin.convert import particles_table
from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.finish.selection import CHOICES, half_maps, kept_of
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.run_store import load_poses
from localrefine_plugin.engine.records.resolved import ResolvedSettings
from localrefine_plugin.engine.records.settings import Settings

PARTICLES, NOISE, SHARE = 400, 2.0, 0.3


def settings(**changes):
    return ResolvedSettings.of(Settings(**changes))


def test_a_threshold_keeps_what_is_at_least_as_probable():
    p = np.array([0.2, 0.5, 0.9, 0.49])
    np.testing.assert_array_equal(kept_of(p, settings(keep_probability=0.5)), [False, True, True, False])
    assert kept_of(p, settings()).all()


def test_a_false_discovery_rate_is_met_and_not_by_less_than_could_be():
    p = np.random.default_rng(0).beta(0.5, 0.3, 1000)
    for rate in (0.01, 0.05, 0.2):
        kept = kept_of(p, settings(false_discovery_rate=rate))
        assert (1 - p[kept]).mean() <= rate
        following = np.sort(p[~kept])[-1:]
        assert (1 - np.append(p[kept], following)).mean() > rate
    both = kept_of(p, settings(false_discovery_rate=0.2, keep_probability=0.9))
    np.testing.assert_array_equal(both, kept_of(p, settings(keep_probability=0.9)))


@lru_cache(maxsize=None)
def run_with_noise_images(**changes):
    e = experiment(PARTICLES, box=32, noise=NOISE, seed=3)
    is_noise = np.random.default_rng(3).random(PARTICLES) < SHARE
    noise = NOISE * np.random.default_rng(4).standard_normal(e.images.shape)
    e = replace(e, images=np.where(is_noise[:, None, None], noise, e.images))
    folder = temporary_folder() / ("selection" + "".join(changes))
    folder.mkdir()
    arguments = write_inputs(folder, e)
    return engine.refine(*arguments, str(folder / "run"), Settings(max_iterations=2, **changes), threads=1), is_noise


def test_kept_and_left_out_are_written_and_their_effect_is_measured():
    run, is_noise = run_with_noise_images(keep_probability=0.5)
    row = {name: i for i, name in enumerate(image_names(run, "particles.star"))}
    kept, left_out = (
        np.array([row[name] for name in image_names(run, table)])
        for table in ("particles_kept.star", "particles_left_out.star")
    )
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, left_out])), np.arange(PARTICLES))
    assert is_noise[kept].mean() < 0.02 and is_noise[left_out].mean() > 0.95
    found = read_json(run.final("selection.json"))
    assert (found["kept"], found["left_out"]) == (len(kept), len(left_out))
    assert set(found["effect"]) == set(CHOICES)
    assert found["expected_wrong"] == pytest.approx(is_noise[kept].mean(), abs=0.02)
    report = read_json(run.report)
    assert report["selection"] == found
    advice = [text for text in report["advice"] if "do not show the sub-volume" in text]
    assert len(advice) == 1 and abs(float(advice[0].split()[1]) / 100 - is_noise.mean()) < is_noise.mean() / 3


def test_half_maps_of_a_selection_are_those_of_the_engine():
    """Without marginalisation and weights the run's own half-map is that of all particles at their final poses."""
    run, _ = run_with_noise_images(marginalize=False, weight_by_probability=False)
    k = read_json(run.iteration_done(run.iterations_done()))["best_iteration"]
    poses = load_poses(run, k, 1)
    some = np.arange(len(poses)) % 3 == 0
    everything, nothing_less, part = half_maps(run, k, 1, poses, [np.ones(len(poses)), 2.0 + 0 * some, 1.0 * some], 1)
    own = read_map(run.half_map(k, 1))[0]
    # the run weighed images by the noise of the iteration before, the selection by that of the last
    assert np.corrcoef(everything.ravel(), own.ravel())[0, 1] > 0.999
    np.testing.assert_allclose(nothing_less, everything, atol=1e-3 * np.abs(everything).max())
    assert 0.5 < np.corrcoef(part.ravel(), everything.ravel())[0, 1] < 0.99


def test_probabilities_are_columns_of_the_particles():
    run, is_noise = run_with_noise_images(keep_probability=0.5)
    aligned, empty = read_columns(run.final("particles.star"), ("lrProbabilityAligned", "lrProbabilityEmpty")).T
    assert aligned[~is_noise].mean() > 0.97 and aligned[is_noise].mean() < 0.05
    assert np.all((aligned >= 0) & (empty >= 0) & (aligned + empty <= 1.0001))


def test_nothing_is_selected_unless_asked():
    run, _ = run_with_noise_images()
    assert not run.final("selection.json").exists() and not run.final("particles_kept.star").exists()


def image_names(run, name):
    return particles_table(str(run.final(name))).texts(["rlnImageName"])["rlnImageName"]
