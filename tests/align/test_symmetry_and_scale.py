"""Point-group symmetry and per-particle scale in the align step: equal to expanded particles, planted scales found."""
from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from experiments import Experiment, contrast_of, experiment, make_particles
from oracles import Phantom, imaged, random_phantom, shell_correlation, soft_ball

from localrefine_plugin.engine.align.half_sums import fitted_scales
from localrefine_plugin.engine.model.pose import random_rotations
from localrefine_plugin.engine.model.symmetry import operators

RESOLUTION = 12.0
HELD = dict(rotation_extent_deg=0.1, shift_extent_angstrom=0.1)  # the poses stay: only the map is looked at


@lru_cache(maxsize=None)
def symmetric(n, noise, box=33, seed=2):
    """n images of a D2 phantom, four copies of a part off the axes, at the true poses; odd box: the grid is D2."""
    part = random_phantom(8, 3.0, 1.2, seed=5, centre=(5.0, 4.0, 3.0))
    points = np.concatenate([part.points @ s.T for s in operators("D2")])
    phantom = Phantom(points, np.tile(part.amplitudes, 4), part.sigma)
    rng = np.random.default_rng(seed)
    rotation, shift = random_rotations(n, rng), rng.uniform(-1, 1, (n, 2))
    particles = make_particles(n, box, 4.0, rotation, shift, rng)
    clean = imaged(phantom.projections(rotation, shift, box), contrast_of(particles))
    images = clean + noise * rng.standard_normal(clean.shape)
    return Experiment(phantom, particles, rotation, shift, images, soft_ball(box, 12, 15), np.zeros(3), noise)


def expanded(e, group):
    """Every image once per operator, at R·S with the same shift."""
    p, g = e.particles, len(operators(group))
    rotation = (p.rotation[:, None] @ operators(group)).reshape(-1, 3, 3)
    particles = replace(p.take(np.repeat(np.arange(len(p)), g)), rotation=rotation)
    return replace(e, particles=particles, images=np.repeat(e.images, g, axis=0))


@pytest.mark.parametrize("marginalize", (False, True))
def test_symmetry_is_insertion_of_every_copy(marginalize):
    """About the box centre wherever the fulcrum is. Float32 sums in another order, and poses that end anywhere in the
    0.1° allowed: less than 1 % of the map."""
    e = symmetric(20, 0.5)
    values = dict(HELD, marginalize=marginalize, fulcrum=[3.0, 25.0, 12.0])
    one = e.align(RESOLUTION, symmetry="D2", **values).half_map
    all_copies = expanded(e, "D2").align(RESOLUTION, **values).half_map
    assert np.linalg.norm(one - all_copies) < 0.01 * np.linalg.norm(all_copies)
    without = e.align(RESOLUTION, **values).half_map
    assert np.linalg.norm(one - without) > 0.2 * np.linalg.norm(one)


def test_d2_map_is_symmetric_and_nearer_to_the_truth_than_c1():
    """Four times the data: at SNR ≪ 1 the squared error falls to about a quarter."""
    e = symmetric(40, 6.0)
    truth = e.phantom.density(e.box)
    c1, d2 = (e.align(RESOLUTION, symmetry=s, **HELD).half_map for s in ("C1", "D2"))
    for axes in ((0, 1), (0, 2), (1, 2)):
        turned = np.flip(d2, axes)
        assert np.linalg.norm(turned - d2) < 0.02 * np.linalg.norm(d2)
        assert np.linalg.norm(np.flip(c1, axes) - c1) > 0.3 * np.linalg.norm(c1)
    before, after = (shell_correlation(m * e.mask, truth * e.mask)[2:10] for m in (c1, d2))
    gain = np.mean(after ** 2 / (1 - after ** 2)) / np.mean(before ** 2 / (1 - before ** 2))
    assert gain > 2.0


# ------------------------------------------------------------- scale

@lru_cache(maxsize=None)
def scaled_experiment():
    """Images whose signal is 0.5 to 1.5 times the phantom's."""
    e = experiment(80, noise=0.8, seed=6)
    scale = np.linspace(0.5, 1.5, 80)[np.random.default_rng(1).permutation(80)]
    clean = imaged(e.phantom.projections(e.rotation, e.shift, e.box), contrast_of(e.particles))
    return replace(e, images=e.images + (scale[:, None, None] - 1) * clean), scale


def test_planted_scales_are_found_and_have_mean_one():
    e, scale = scaled_experiment()
    first = e.align(RESOLUTION, per_particle_scale=True).poses
    assert np.corrcoef(first.scale, scale)[0, 1] > 0.95
    assert first.scale.mean() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(np.polyfit(scale, first.scale, 1)[0], 1, atol=0.15)
    again = e.align(RESOLUTION, per_particle_scale=True, previous=first).poses  # now made with the scales of `first`
    np.testing.assert_allclose(again.scale, first.scale, atol=0.1)


def test_scale_off_gives_no_column_and_another_map():
    e, _ = scaled_experiment()
    first = e.align(RESOLUTION, per_particle_scale=True).poses
    plain = e.align(RESOLUTION, previous=replace(first, scale=None))
    assert plain.poses.scale is None and "scale" not in plain.poses.columns()
    with_scale = e.align(RESOLUTION, per_particle_scale=True, previous=first)
    assert np.linalg.norm(with_scale.half_map - plain.half_map) > 0.005 * np.linalg.norm(plain.half_map)


def sums(scale, energy, seed=0):
    noise = np.random.default_rng(seed).standard_normal(len(energy))
    return scale * energy + np.sqrt(energy) * noise, energy


def test_scales_that_are_all_noise_are_one():
    energy = np.random.default_rng(3).uniform(5, 15, 2000)
    raw = sums(np.ones(2000), energy)[0] / energy
    assert raw.std() > 0.25
    assert fitted_scales(*sums(np.ones(2000), energy)).std() < 0.05


def test_scale_is_the_posterior_mean():
    """Against the formula with the planted mean and variance: the moments of 4,000 particles are known to 4 %."""
    truth = np.random.default_rng(5).normal(2.0, 0.4, 4000)
    cross, energy = sums(truth, np.full(4000, 20.0))
    expected = (cross + 2.0 / 0.16) / (energy + 1 / 0.16)
    np.testing.assert_allclose(fitted_scales(cross, energy), expected / expected.mean(), atol=0.03)


def test_scales_are_clipped_about_the_median():
    energy = np.full(100, 1e6)
    truth = np.ones(100)
    truth[0], truth[1] = 50.0, -3.0
    scale = fitted_scales(truth * energy, energy)
    assert scale[0] / np.median(scale) == pytest.approx(5) and scale[1] / np.median(scale) == pytest.approx(0.2)


def test_no_signal_no_scale():
    np.testing.assert_array_equal(fitted_scales(-np.ones(5), np.ones(5)), np.ones(5))
