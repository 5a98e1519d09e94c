"""The motion of one part against another, against sums written out and random draws."""
from __future__ import annotations

import numpy as np
import pytest

from localrefine_plugin.engine.control.moving_part import CoarseGrid, belonging, divided, log_ratio, otsu, upper_half
from localrefine_plugin.engine.model.pose import exp_map, random_rotations
from localrefine_plugin.engine.motion.motion_prior import Evidence, isotropic_covariance, learn
from localrefine_plugin.engine.motion.relative_motion import Moments, Wobble, evidence_about, relative

RNG = np.random.default_rng(1)


def evidence(n, rotation, seed):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((n, 5, 7))
    h = root @ np.swapaxes(root, 1, 2)
    return Evidence(rotation, h, rng.standard_normal((n, 5)), np.ones(n))


def test_the_error_of_a_difference_is_the_sum_of_both_errors():
    rotation = random_rotations(20, RNG)
    a, b = evidence(20, rotation, 2), evidence(20, rotation, 3)
    found = relative(a, b)
    for i in range(20):
        error = np.linalg.inv(a.curvature[i]) + np.linalg.inv(b.curvature[i])
        y = np.linalg.solve(a.curvature[i], a.pull[i]) - np.linalg.solve(b.curvature[i], b.pull[i])
        np.testing.assert_allclose(found.curvature[i], np.linalg.inv(error), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found.pull[i], np.linalg.solve(error, y), rtol=1e-6, atol=1e-8)


def test_a_part_of_which_nothing_is_known_tells_nothing():
    rotation = random_rotations(3, RNG)
    a = evidence(3, rotation, 4)
    nothing = Evidence(rotation, np.zeros((3, 5, 5)), np.zeros((3, 5)), np.ones(3))
    assert np.abs(relative(a, nothing).curvature).max() < 1e-7
    assert np.abs(relative(nothing, a).pull).max() < 1e-7


def test_the_likelihood_of_a_motion_does_not_depend_on_the_point_it_is_told_for():
    rotation, offset = random_rotations(10, RNG), np.array([3.0, -5.0, 2.0])
    before = evidence(10, rotation, 5)
    after = evidence_about(before, offset)
    w, u = 0.1 * RNG.standard_normal((10, 3)), RNG.standard_normal((10, 2))
    moved = u + np.einsum("nij,nj->ni", rotation[:, :2], np.cross(w, offset))

    def likelihood(of, x):
        return np.einsum("ni,ni->n", of.pull, x) - 0.5 * np.einsum("ni,nij,nj->n", x, of.curvature, x)
    told = likelihood(before, np.hstack([w, u]))
    np.testing.assert_allclose(likelihood(after, np.hstack([w, moved])), told, rtol=1e-9)


def test_the_wobble_of_a_place_is_its_variance_over_draws():
    rotation, centre, point = random_rotations(1, RNG), np.array([1.0, 2.0, -1.0]), np.array([9.0, -4.0, 5.0])
    root = np.diag([0.02, 0.03, 0.01, 0.4, 0.2]) @ (np.eye(5) + 0.4 * RNG.standard_normal((5, 5)))
    x = RNG.standard_normal((200_000, 5)) @ root.T
    turned = rotation[0] @ exp_map(x[:, :3])
    place = (turned @ (point - centre))[:, :2] + x[:, 3:]
    wobble = Wobble.of_poses(rotation, (root @ root.T)[None], centre)
    box = 32
    at = tuple((point + box // 2).astype(int)[::-1])
    assert wobble.on_grid(box)[at] == pytest.approx(0.5 * place.var(axis=0).sum(), rel=0.02)
    density = RNG.random((box,) * 3).astype(np.float32) * (RNG.random((box,) * 3) < 0.01)
    values = wobble.on_grid(box, 0.7)
    assert wobble.over(Moments.of(density, 0.7)) == pytest.approx((values * density).sum() / density.sum(), rel=1e-5)
    assert wobble.over(Moments.of(0 * density)) == 0
    # on a grid of half as many voxels the same place is at half the index
    half = tuple((point / 2 + box // 4).astype(int)[::-1])
    inside = (np.array(half[::-1]) - box // 4) * 2.0
    there = tuple((inside + box // 2).astype(int)[::-1])
    assert wobble.on_grid(box // 2, 0.5)[half] == pytest.approx(wobble.on_grid(box)[there])


def test_a_motion_is_told_from_errors_that_are_wider():
    """A thousand images, each of which is off by 3° and 1 px in both parts: the motion between them, 2° and 0.7 px,
    is found, and none is where there is none. Errors of both parts are Gaussian draws; nothing of the engine makes
    them."""
    n, rng = 1000, np.random.default_rng(6)
    rotation = random_rotations(n, rng)
    error = np.diag([np.deg2rad(3)] * 3 + [1.0] * 2)
    h = np.broadcast_to(np.linalg.inv(error @ error), (n, 5, 5))
    start = isotropic_covariance(7, 1.5)
    for degrees, px in ((2.0, 0.7), (0.0, 0.0)):
        motion = np.hstack([np.deg2rad(degrees) * rng.standard_normal((n, 3)), px * rng.standard_normal((n, 3))])
        seen = np.hstack([motion[:, :3], np.einsum("nij,nj->ni", rotation[:, :2], motion[:, 3:])])
        common = 0.1 * rng.standard_normal((n, 5))  # the error of the input pose
        parts = [Evidence(rotation, h, np.einsum("nij,nj->ni", h, x + common + rng.standard_normal((n, 5)) @ error),
                          np.ones(n)) for x in (seen, np.zeros((n, 5)))]
        found = learn(relative(*parts), start, start)
        width = np.rad2deg(np.sqrt(np.trace(found[:3, :3]) / 3)), np.sqrt(np.trace(found[3:, 3:]) / 3)
        assert width[0] == pytest.approx(degrees, abs=0.5)
        assert width[1] == pytest.approx(px, abs=0.25)


# ---------------------------------------------------------------- the part that moves

def blurred_twice(box, sigma_px):
    """Two maps of random atoms, low x and high x: the first has the low ones blurred, the second the high ones."""
    grid, rng = CoarseGrid(box, 1.0, 3.0), np.random.default_rng(7)
    from scipy.ndimage import gaussian_filter
    points = gaussian_filter(rng.standard_normal((box,) * 3), 1.0)
    low = np.zeros((box,) * 3)
    low[:, :, :box // 2] = 1
    sharp, blurred = points, gaussian_filter(points, sigma_px)
    return grid, sharp * (1 - low) + blurred * low, sharp * low + blurred * (1 - low), low


def test_density_belongs_to_the_poses_that_leave_it_sharp():
    box, sigma = 48, 1.2
    grid, at_mask, at_rest, low = blurred_twice(box, sigma)
    mask = np.ones((box,) * 3)
    maps = [[grid.map(volume)] * 2 for volume in (at_mask, at_rest)]
    of_mask, of_rest = (grid.agreement(pair, mask) for pair in maps)
    ratio, k2 = log_ratio(of_mask, of_rest), grid.wave_number2(maps[0], mask)
    s = belonging(ratio, np.zeros_like(ratio), np.full_like(ratio, k2 * sigma ** 2))
    inside = np.zeros((box,) * 3, bool)
    inside[8:-8, 8:-8, 8:-8] = True  # gaussian_filter mirrors at the faces
    middle = np.abs(np.arange(box) - box / 2) > 8
    stays, moves = (s[inside & (low == side) & middle] for side in (1, 0))
    assert np.median(stays) == pytest.approx(0, abs=0.15) and np.median(moves) == pytest.approx(1, abs=0.15)
    share, part = divided(grid, s, np.maximum(np.maximum(of_mask, of_rest), 0), mask)
    assert share == pytest.approx(0.5, abs=0.08)
    upper = upper_half(grid, ratio, of_mask, mask)
    for found in (part, upper):
        assert found[inside & (low == 0) & middle].mean() > 0.8 > 0.2 > found[inside & (low == 1) & middle].mean()


def test_the_wave_number_of_a_wave():
    box, waves = 48, 6
    grid = CoarseGrid(box, 1.0, 3.0)
    wave = np.cos(2 * np.pi * waves * np.arange(box) / box) * np.ones((box, box, 1))
    assert grid.wave_number2([wave, wave], np.ones((box,) * 3)) == pytest.approx((2 * np.pi * waves / box) ** 2)


def test_otsus_threshold_parts_two_peaks():
    values = np.concatenate([RNG.normal(0, 0.1, 3000), RNG.normal(1, 0.1, 1000)])
    assert 0.3 < otsu(values, np.ones(4000)) < 0.7
