"""A selection of particles: what is kept, what is written, and what it is said to do."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from experiments import experiment, write_inputs
from oracles import Phantom, at_frequencies, centred_transform, full_frequencies
from relion_files import read_columns
from run_results import temporary_folder

from localrefine_plugin.convert import particles_table
from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.finish.cross_half import Advantage, own_advantage, prefers_noise
from localrefine_plugin.engine.finish.selection import CHOICES, effect, half_maps, kept_of
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.run_store import load_poses
from localrefine_plugin.engine.records.resolved import ResolvedSettings
from localrefine_plugin.engine.records.results import Selection, SelectionEffect
from localrefine_plugin.engine.records.settings import Settings

PARTICLES, NOISE, SHARE = 400, 2.0, 0.3
FLATTERING_NOISE = 5.0


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


def test_a_false_discovery_rate_that_cannot_be_met_keeps_none():
    p = np.array([0.2, 0.6, 0.5])
    assert not kept_of(p, settings(false_discovery_rate=0.3)).any()
    np.testing.assert_array_equal(kept_of(p, settings(false_discovery_rate=0.4)), [False, True, False])


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


@lru_cache(maxsize=None)
def noisy_run():
    """All images show the sub-volume, under so much noise that the references hold a good deal of it."""
    e = experiment(PARTICLES, box=32, noise=FLATTERING_NOISE, seed=5)
    folder = temporary_folder() / "flattery"
    folder.mkdir()
    return e, engine.refine(*write_inputs(folder, e), str(folder / "run"), Settings(max_iterations=2), threads=1)


def advantages(run):
    """Of each half-set: rows of the input, and how much better the own reference fits."""
    k, found = best(run), []
    for half in (1, 2):
        poses = load_poses(run, k, half)
        index, a = own_advantage(run, k, half, poses, 1)
        assert len(index) == len(poses)
        found.append((poses.row, a))
    return found


def best(run):
    return read_json(run.iteration_done(run.iterations_done()))["best_iteration"]


def agreement(volume, poses, e, last_shell=8):
    """Re⟨X, C Y⟩ / |C Y| of images X and a volume (N, N, N) in the mask as a sum of points, by a float64 direct sum."""
    voxels = np.argwhere(e.mask > 0)
    kx, ky = full_frequencies(e.box)
    used = (np.hypot(kx, ky) <= last_shell) & ((kx > 0) | ((kx == 0) & (ky > 0)))
    points = Phantom(voxels[:, ::-1] - e.box // 2, (volume * e.mask)[tuple(voxels.T)], 1e-3)
    y = points.slices(poses.rotation, poses.shift_px, kx[used], ky[used], e.box)
    x, c = (at_frequencies(of[poses.row], kx[used], ky[used]) for of in (centred_transform(e.images), e.contrast()))
    return (x.conj() * c * y).real.sum(axis=1) / np.sqrt((np.abs(c * y) ** 2).sum(axis=1))


def advantage_of(found, kept):
    return Advantage.of([(kept(half, row) * 1.0, a) for half, (row, a) in enumerate(found, 1)])


def everyone(half, row):
    return np.ones(len(row))


def test_a_selection_that_agrees_with_the_noise_of_its_own_reference_is_seen():
    e, run = noisy_run()
    found, k = advantages(run), best(run)
    # what both references have in common is signal, or blur; the noise of one is what the other has not
    first, second = (read_map(run.reference(k - 1, half))[0].astype(np.float64) for half in (1, 2))
    noise = [first - second, second - first]

    def above_median(of):
        def kept(half, row):
            agrees = agreement(noise[of(half) - 1], load_poses(run, k, half), e)
            return agrees > np.median(agrees)
        return advantage_of(found, kept)
    every = advantage_of(found, everyone)
    assert prefers_noise(every, above_median(lambda half: half))
    assert not prefers_noise(every, above_median(lambda half: 3 - half))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        assert not prefers_noise(every, advantage_of(found, lambda half, row, rng=rng: rng.random(len(row)) < 0.5))


def test_an_honest_selection_does_not_prefer_noise():
    run, is_noise = run_with_noise_images()
    found = advantages(run)
    every, right = advantage_of(found, everyone), advantage_of(found, lambda half, row: ~is_noise[row])
    assert right.mean < every.mean - 3 * right.error  # noise images were turned until they fitted their reference
    assert not prefers_noise(every, right)
    assert prefers_noise(every, advantage_of(found, lambda half, row: is_noise[row]))


def test_the_error_of_a_random_draw_is_what_draws_show():
    rng, halves = np.random.default_rng(9), [rng_of.normal(size=80) for rng_of in map(np.random.default_rng, (1, 2))]
    draws = [Advantage.of([((rng.permutation(80) < 30) * 1.0, a) for a in halves]) for _ in range(2000)]
    assert draws[0].error == pytest.approx(np.std([draw.mean for draw in draws]), rel=0.06)
    assert np.mean([draw.mean for draw in draws]) == pytest.approx(np.mean(halves), abs=4 * draws[0].error / 2000**0.5)
    assert Advantage.of([(np.zeros(80), halves[0]), (np.ones(80), halves[1])]).mean == pytest.approx(halves[1].mean())


def test_the_run_says_what_a_selection_has_to_do_with_noise():
    run, _ = run_with_noise_images(keep_probability=0.5)
    found = read_json(run.final("selection.json"))
    effect, error = found["effect"], found["own_advantage_error"]
    assert not found["prefers_noise"] and 0 < error < 0.1 < found["own_advantage_spread"] < 1
    assert abs(effect["random"]["own_advantage"] - effect["all"]["own_advantage"]) < 4 * error
    assert effect["kept"]["own_advantage"] < effect["all"]["own_advantage"] - 3 * error
    effects = {choice: SelectionEffect(5.0, 0.5, 0.2) for choice in CHOICES}
    record = Selection(60, 40, 0.0, effects, 0.01, 0.4, True)
    assert "must not be believed" in record.sentence
    assert "must not be believed" not in replace(record, prefers_noise=False).sentence


def test_a_selection_that_keeps_none_of_a_half_set_is_said_and_not_measured():
    run, _ = run_with_noise_images()
    k, nothing = best(run), np.zeros(0, int)
    rows = np.asarray(load_poses(run, k, 1).row)
    for kept in ({1: rows, 2: nothing}, {1: nothing, 2: nothing}):
        found = effect(run, k, kept, 1)
        assert (found.kept, found.left_out) == (len(kept[1]), PARTICLES - len(kept[1])) and not found.effect
        assert "too few for two half-maps" in found.sentence


def test_a_half_set_that_is_too_small_to_be_judged_is_kept_and_said():
    effects = {choice: SelectionEffect(5.0, 0.5, 0.2) for choice in CHOICES}
    assert "180 of them could not be judged" in Selection(180, 0, 0.0, {}, not_judged=180).sentence
    assert Selection(400, 0, 0.0, {}).sentence == "the selection keeps all particles"
    assert "95 of them could not be judged" in Selection(150, 45, 0.0, effects, not_judged=95).sentence


def image_names(run, name):
    return particles_table(str(run.final(name))).texts(["rlnImageName"])["rlnImageName"]
