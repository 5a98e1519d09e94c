"""Images of nothing: other ones in every iteration, few, and what they tell together."""

from dataclasses import replace

import numpy as np
import pytest
from experiments import experiment

from localrefine_plugin.engine.align import nulls
from localrefine_plugin.engine.align.half_alignment import HalfAlignment
from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.nulls import expected_gain, moments, null_images, pooled, search_size
from localrefine_plugin.engine.io.run_folder import RunFolder
from localrefine_plugin.engine.io.run_store import load_nulls, save_record
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.records.iteration import HalfRecord, NullMoments
from localrefine_plugin.engine.records.poses import Covariances, packed

BOX, NOISE, RESOLUTION = 32, 2.0, 12.0


def drawn_before(drawn):
    return NullMoments(drawn, float(drawn), (0.0, 1.0), (0.0, 1.0))


@pytest.mark.parametrize("count", [100, 1000, 25_000])
def test_every_iteration_has_other_images_evenly_spaced(count):
    sets, drawn = [null_images(count, None)], 0
    for _ in range(4):
        drawn += len(sets[-1])
        sets.append(null_images(count, drawn_before(drawn)))
    everything = np.sort(np.concatenate(sets))
    assert len(np.unique(everything)) == len(everything) and everything[-1] < count
    assert np.diff(everything).max() < 3 * count / len(everything)
    assert 2 * len(sets[1]) <= max(0.006 * count, 4) and len(sets[0]) <= max(0.005 * count, 12)


def test_the_size_of_a_search_is_the_log_of_the_ratio_of_volumes():
    """Without a prior: ½ log det of the posterior's precision times the variances of a ball and a disc."""
    plan = experiment(10, box=BOX).plan(RESOLUTION, prior="off", rotation_extent_deg=20.0, shift_extent_angstrom=10.0)
    rng = np.random.default_rng(1)
    spread = rng.uniform(0.01, 0.02, (10, 5))
    covariance = np.einsum("ni,ij->nij", spread ** 2, np.eye(5))
    ball = rng.standard_normal((200_000, 3))
    ball *= (plan.rotation_extent * rng.random(len(ball)) ** (1 / 3) / np.linalg.norm(ball, axis=1))[:, None]
    disc = rng.uniform(-plan.shift_extent, plan.shift_extent, (200_000, 2))
    disc = disc[np.linalg.norm(disc, axis=1) < plan.shift_extent]
    wide = np.concatenate([ball.std(axis=0), disc.std(axis=0)])
    expected = np.median(np.log(wide / spread).sum(axis=1))
    found = search_size(plan, np.repeat(np.eye(3)[None], 10, axis=0), Covariances(packed(covariance)))
    assert found == pytest.approx(expected, abs=0.02)


def test_images_of_all_iterations_tell_together_what_the_last_search_finds():
    """Searches of many sizes, with the same law but for a constant."""
    rng, known = np.random.default_rng(2), None
    for size in (6.5, 4.0, 5.5, 6.0, 6.2, 6.3):
        others, noise = (rng.normal(expected_gain(size) + c, s, 12 if known is None else 3)
                         for c, s in ((-0.6, 0.8), (-1.4, 0.6)))
        known = pooled(known, others, noise, size)
    assert known.drawn == 27 and 12 < known.weight < 16
    for (mean, sigma), c, s in zip(moments(known, 6.3), (-0.6, -1.4), (0.8, 0.6)):
        assert mean == pytest.approx(expected_gain(6.3) + c, abs=3 * s / known.weight ** 0.5)
        assert min(s, 1.0) - 0.1 < sigma < max(s, 1.0) + 0.1


def test_images_of_one_iteration_have_their_own_mean_and_spread():
    z = np.random.default_rng(3).normal(3.0, 0.6, 12)
    (mean, sigma), _ = moments(pooled(None, z, z, 5.0), 5.0)
    usual, weight = nulls.USUAL_SIGMA, nulls.USUAL_WEIGHT
    assert mean == pytest.approx(z.mean())
    assert sigma == pytest.approx(np.sqrt((12 * z.var() + weight * usual ** 2) / (12 + weight)))
    (_, wide), _ = moments(pooled(None, 2 * z, z, 5.0), 5.0)
    assert wide == pytest.approx(2 * z.std())


def found_in_noise(e, monkeypatch, **settings):
    """Mean z of many images of noise, and the size of the search."""
    monkeypatch.setattr(nulls, "FEWEST_FIRST", 100)
    work = HalfAlignment(e.half_set(), e.plan(RESOLUTION, **settings), CPU, 1)
    work.add(np.arange(40))
    work.add_nulls(np.arange(100))
    cross, energy = work.findings.all_nulls("noise")
    covariance = Covariances(work.findings.images[0].columns["covariance"])
    return (cross / np.sqrt(energy)).mean(), search_size(work.plan, e.particles.rotation[:40], covariance)


def test_noise_fits_better_in_a_wider_search_by_as_much_as_is_expected(monkeypatch):
    e = experiment(200, box=BOX, noise=2 * NOISE, seed=7)
    wide = found_in_noise(e, monkeypatch, prior="gaussian", prior_rotation_deg=5.0, prior_shift_angstrom=4.0)
    narrow = found_in_noise(e, monkeypatch, prior="gaussian", prior_rotation_deg=3.0, prior_shift_angstrom=2.0)
    expected = expected_gain(wide[1]) - expected_gain(narrow[1])
    assert expected > 0.4 and wide[0] - narrow[0] == pytest.approx(expected, abs=0.3)


def test_what_was_told_is_kept_from_iteration_to_iteration(tmp_path):
    e = experiment(150, box=BOX, noise=NOISE)
    plan = e.plan(RESOLUTION, prior="gaussian")
    first = align_half(e.half_set(), plan)
    told = first.verdict.nulls
    assert told.drawn == nulls.FEWEST_FIRST
    run = RunFolder(tmp_path)
    run.iteration(1).mkdir()
    save_record(run.half_done(1, 2), HalfRecord(1, 2, verdict=first.verdict))
    assert load_nulls(run, 1, 2) == told and load_nulls(run, 0, 2) is None
    second = align_half(replace(e.half_set(previous=first.poses), nulls=told), plan).verdict
    assert second.nulls.drawn == told.drawn + nulls.FEWEST_NEXT
    assert second.noise[1] == pytest.approx(first.verdict.noise[1], rel=0.5)
