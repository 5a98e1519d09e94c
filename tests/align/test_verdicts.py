"""Verdicts on particles: planted shares of noise images and of other poses are found, good sets lose nothing."""

from dataclasses import replace

import numpy as np
import pytest
from experiments import experiment

from localrefine_plugin.engine.align import half_set, verdicts
from localrefine_plugin.engine.align.half_alignment import HalfAlignment
from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.verdicts import Gains, Nulls
from localrefine_plugin.engine.kernels.device import CPU

RESOLUTION = 12.0
PARTICLES, BOX, NOISE = 300, 32, 2.0


def gains_of(rng, n, mean, sigma=1.0, strength=6.0):
    return Gains(rng.normal(mean, sigma, n), np.full(n, strength) + rng.normal(0, 0.3, n))


def known(others, noise, weight=25.0):
    return Nulls(others, noise, weight)


def mixed(rng, *parts):
    return Gains(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("z", "strength")))


@pytest.mark.parametrize("empty, elsewhere", [(0.0, 0.1), (0.3, 0.0), (0.6, 0.0), (0.0, 0.3), (0.15, 0.15)])
def test_planted_shares_are_found(empty, elsewhere):
    rng, n = np.random.default_rng(1), 3000
    kinds = [int(n * (1 - empty - elsewhere)), int(n * elsewhere), int(n * empty)]
    means, sigmas = (8.0, 4.0 + verdicts.SHIFT[0], 2.0 + verdicts.SHIFT[0]), (1.3, 1.0, 0.8)
    particles = mixed(rng, *(gains_of(rng, k, m, s) for k, m, s in zip(kinds, means, sigmas)))
    verdict, found = verdicts.judged(particles, known((4.0, 1.0), (2.0, 0.8)))
    np.testing.assert_allclose(verdict.shares, np.array(kinds) / n, atol=0.03)
    truth = np.repeat([True, False], [kinds[0], n - kinds[0]])
    # calibrated: among those given p a share p is aligned
    bins = np.minimum((10 * found.aligned).astype(int), 9)
    error = sum(abs(truth[bins == b].mean() - found.aligned[bins == b].mean()) * (bins == b).mean()
                for b in np.unique(bins))
    assert error < 0.03
    assert found.empty[-kinds[2]:].mean() > 0.75 or not kinds[2]


@pytest.mark.parametrize("kind", [1, 2])
def test_a_mean_of_few_images_is_moved_to_where_the_particles_are(kind):
    """Twelve images of nothing that happened to fit too well by twice their standard error."""
    rng, shares, means = np.random.default_rng(4), [0.6, 0.0, 0.0], [6.0, 3.0, 1.5]
    shares[kind] = 0.4
    particles = mixed(rng, *(gains_of(rng, int(2000 * share), mean + verdicts.SHIFT[0] * (mean < 6), sigma)
                             for share, mean, sigma in zip(shares, means, (1.2, 0.9, 0.7))))
    off = [0.0, 2 * 0.9 / 12 ** 0.5 * (kind == 1), 2 * 0.7 / 12 ** 0.5 * (kind == 2)]
    nulls = [(mean + more, sigma) for mean, more, sigma in zip(means[1:], off[1:], (0.9, 0.7))]
    found = {weight: verdicts.judged(particles, known(*nulls, weight))[0] for weight in (12.0, 1e6)}
    there = [(v.others, v.noise)[kind - 1][0] + v.shift - means[kind] - verdicts.SHIFT[0] for v in found.values()]
    assert abs(there[0]) < 0.5 * off[kind] and there[0] < there[1]
    assert 1 - found[12.0].share_aligned == pytest.approx(0.4, abs=0.02)


def test_the_likeliest_means_are_those_of_least_squares():
    """δ and both means by a linear system: residuals of the particles, of the images of nothing, and of δ itself."""
    rng = np.random.default_rng(6)
    nulls, z = known((3.0, 0.9), (1.7, 0.6), 9.0), [rng.normal(3.6, 0.9, 40), rng.normal(1.9, 0.6, 70)]
    rows, right = [[1 / verdicts.SHIFT[1], 0, 0]], [verdicts.SHIFT[0] / verdicts.SHIFT[1]]
    for k, ((mean, sigma), of) in enumerate(zip((nulls.others, nulls.noise), z)):
        place = np.eye(3)[1 + k]
        rows += [*np.tile((np.eye(3)[0] + place) / sigma, (len(of), 1)), place * nulls.weight ** 0.5 / sigma]
        right += [*(of / sigma), mean * nulls.weight ** 0.5 / sigma]
    expected = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    shift, others, noise = verdicts.moved_nulls([(len(of), of.sum()) for of in z], nulls)
    np.testing.assert_allclose([shift, others[0], noise[0]], expected, rtol=1e-9)
    assert (others[1], noise[1]) == (0.9, 0.6)


def test_a_good_set_loses_no_particle():
    rng = np.random.default_rng(2)
    for mean in (3.5, 5.0, 9.0):
        verdict, found = verdicts.judged(gains_of(rng, 2000, mean, 1.1), known((1.7, 1.0), (1.4, 1.0)))
        assert verdict.share_aligned == 1 and found.aligned.min() > 0.99


def test_what_fits_no_better_than_noise_is_not_parted():
    rng = np.random.default_rng(3)
    particles = mixed(rng, gains_of(rng, 900, 2.3, 0.7), gains_of(rng, 100, 3.1, 0.7))
    verdict, _ = verdicts.judged(particles, known((2.0, 0.7), (2.0, 0.7)))
    assert verdict.share_aligned == 1


def test_copies_of_an_image_are_no_more_evidence_than_one():
    rng = np.random.default_rng(6)
    nulls = known((1.7, 1.0), (1.4, 1.0))
    one = mixed(rng, gains_of(rng, 60, 3.9, 1.05), gains_of(rng, 6, 1.4))
    many = Gains(np.repeat(one.z, 20), np.repeat(one.strength, 20))
    assert verdicts.judged(many, nulls)[0].share_aligned < 1  # as if these were 1,320 images
    for verdict, _ in (verdicts.judged(one, nulls), verdicts.judged(many, nulls, copies=20)):
        assert verdict.share_aligned == 1


def test_copies_of_an_image_are_judged_apart_and_counted_as_one(monkeypatch):
    """Of each image one copy at its pose and one at the pose of another image, as an expansion has them."""
    e, asked = experiment(150, box=BOX, noise=NOISE, seed=8), []

    def judged(*arguments):
        asked.append(arguments[-1])
        return verdicts.judged(*arguments)
    monkeypatch.setattr(half_set, "judged", judged)
    image, right = np.repeat(np.arange(150), 2), np.tile([True, False], 150)
    pose = np.where(right, image, (image + 75) % 150)
    particles = replace(e.particles.take(image), rotation=e.particles.rotation[pose])
    found = align_half(e.half_set(particles=particles, index=np.arange(300),
                                  read=lambda index: e.images[image[index]].astype(np.float32)),
                       e.plan(RESOLUTION, prior="gaussian"))
    p = found.poses.probability_aligned
    assert asked == [pytest.approx(2.0)]
    assert (p[right] > 0.5).mean() > 0.98 and (p[~right] < 0.5).mean() > 0.8


def spoiled(share, seed=5):
    """Experiment whose first particles are noise; and which are."""
    e = experiment(PARTICLES, box=BOX, noise=NOISE, seed=seed)
    is_noise = np.arange(PARTICLES) < share * PARTICLES
    noise = NOISE * np.random.default_rng(seed).standard_normal(e.images.shape)
    return replace(e, images=np.where(is_noise[:, None, None], noise, e.images)), is_noise


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_noise_images_are_told_from_particles(share):
    e, is_noise = spoiled(share)
    result = align_half(e.half_set(), e.plan(RESOLUTION, prior="gaussian"))
    p = result.poses.probability_aligned
    assert (p[~is_noise] > 0.5).mean() > 0.99 and (p[is_noise] < 0.5).mean() > 0.97
    assert 1 - p.mean() == pytest.approx(share, rel=1 / 3)
    assert result.poses.probability_empty[is_noise].mean() > 0.5
    assert result.verdict.share_aligned == pytest.approx(p.mean(), abs=0.01)


def test_a_clean_set_counts_in_full():
    e, _ = spoiled(0.0)
    result = align_half(e.half_set(), e.plan(RESOLUTION, prior="gaussian"))
    assert result.poses.probability_aligned.min() > 0.99
    again = HalfAlignment(e.half_set(previous=result.poses), e.plan(RESOLUTION, prior="gaussian"), CPU, 1)
    assert again.counts is None


def test_few_particles_are_not_judged():
    e = experiment(verdicts.LEAST_PARTICLES - 1, box=BOX, noise=NOISE)
    result = align_half(e.half_set(), e.plan(RESOLUTION, prior="gaussian"))
    assert result.verdict is None and result.poses.probability_aligned is None and result.poses.gain is None


def test_particles_that_are_not_aligned_leave_no_trace_in_the_map():
    """With probabilities of 0 and 1 the map is that of the particles with 1 alone."""
    e, is_noise = spoiled(0.3)
    plan = e.plan(RESOLUTION, prior="gaussian")
    poses = align_half(e.half_set(), plan).poses
    poses = replace(poses, probability_aligned=1.0 - is_noise)
    weighted = align_half(e.half_set(previous=poses), plan)
    few = np.flatnonzero(~is_noise)
    part = e.half_set(
        particles=e.particles.take(few),
        index=few,
        read=lambda index: e.images[few[index]].astype(np.float32),
        previous=replace(poses, **{name: column[few] for name, column in poses.columns().items()}),
    )
    alone = align_half(part, plan)
    scale = np.abs(alone.half_map).max()
    np.testing.assert_allclose(weighted.half_map, alone.half_map, atol=2e-3 * scale)
    np.testing.assert_allclose(weighted.accumulator_mean, alone.accumulator_mean, rtol=1e-5)
    unweighted = align_half(e.half_set(previous=poses), e.plan(RESOLUTION, prior="gaussian",
                                                               weight_by_probability=False))
    assert np.abs(unweighted.half_map - alone.half_map).max() > 0.05 * scale


def test_noise_of_the_null_images_has_the_power_of_the_noise():
    """E|Z|² of Z = C N / σ² is C² / σ² = W."""
    e = experiment(600, box=BOX, noise=NOISE)
    images = HalfAlignment(e.half_set(), e.plan(RESOLUTION), CPU, 1).images
    batch = images.batch(np.arange(600))
    noise = images.noise_like(batch, np.arange(600))
    assert (np.abs(noise.signal) ** 2).sum() == pytest.approx(batch.weight.sum(), rel=0.01)
    assert noise.power.mean() == pytest.approx((NOISE * BOX) ** 2, rel=0.01)
    some = images.noise_like(images.batch(np.arange(7, 9)), np.arange(7, 9))
    np.testing.assert_array_equal(some.signal, noise.signal[7:9])
