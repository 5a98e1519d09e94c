"""Sigma points of the posterior: mean and covariance, and that no choice of a library's reaches the map."""
from __future__ import annotations

import numpy as np
import pytest
from experiments import experiment
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.align import marginalize
from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.modes import Modes
from localrefine_plugin.engine.model.pose import log_map

VOXELS_PER_RADIAN = 40.0
AXES = Rotation.random(random_state=4).as_matrix()


def modes_with(covariance):
    """One mode for each covariance (5, 5), at the identity."""
    n = len(covariance)
    return Modes.of(np.arange(n), rotation=np.tile(np.eye(3), (n, 1, 1)), precision=np.linalg.inv(covariance))


def posterior(deviations_rad):
    """Covariance of rotation with these standard deviations along AXES, correlated with the shift."""
    covariance = np.zeros((5, 5))
    covariance[:3, :3] = (AXES * np.square(deviations_rad)) @ AXES.T
    covariance[3:, :3] = np.array([[2.0, 1.0, 0.0], [0.0, -3.0, 1.0]]) @ covariance[:3, :3]
    covariance[:3, 3:] = covariance[3:, :3].T
    covariance[3:, 3:] = covariance[3:, :3] @ np.linalg.solve(covariance[:3, :3], covariance[:3, 3:]) + 0.04 * np.eye(2)
    return covariance


@pytest.mark.parametrize("deviations, points", (
    ((0.002, 0.001, 0.003), 1), ((0.002, 0.001, 0.05), 2), ((0.001, 0.04, 0.05), 4), ((0.03, 0.04, 0.05), 4),
    ((0.05, 0.05, 0.001), 4), ((0.05, 0.05, 0.05), 4)))
def test_points_have_the_mean_and_covariance_of_the_posterior(deviations, points):
    """Along the axes that move the outermost sample (40 voxels per radian) by half a voxel; along the others none."""
    covariance = posterior(deviations)
    found = marginalize.posterior_insertions(modes_with(covariance[None]), np.ones(1), VOXELS_PER_RADIAN, 1)
    w = log_map(found.rotation)
    assert len(w) == points and found.weight.sum() == pytest.approx(1)
    wide = np.array(deviations) * VOXELS_PER_RADIAN > 0.5
    expected = (AXES * np.square(deviations) * wide) @ AXES.T
    np.testing.assert_allclose(found.weight @ w, 0, atol=1e-9)
    np.testing.assert_allclose((w * found.weight[:, None]).T @ w, expected, atol=1e-9)
    gain = np.array([[2.0, 1.0, 0.0], [0.0, -3.0, 1.0]])
    np.testing.assert_allclose(found.shift, w @ gain.T, atol=1e-9)
    np.testing.assert_allclose(found.shift_variance, 0.04, rtol=1e-6)


def other_choices(values, vectors, rng):
    """What eigh may as well return: other signs, another order, other axes where eigenvalues are equal."""
    vectors = vectors * rng.choice([-1.0, 1.0], vectors.shape[:1] + (1, 3))
    for i in range(len(values)):
        same = np.flatnonzero(np.isclose(values[i], values[i, 0], rtol=1e-9))
        if len(same) == 3:
            vectors[i] = vectors[i] @ Rotation.random(random_state=i).as_matrix()
        order = rng.permutation(3)
        values[i], vectors[i] = values[i][order], vectors[i][:, order]
    return values, vectors


def test_no_choice_of_eigenvectors_reaches_the_map(monkeypatch):
    """Half of the images with equal variances along all axes, which every basis fits."""
    e = experiment(40, noise=1.5, seed=3)
    eigh = np.linalg.eigh

    def round_for_half(a, choose):
        a = np.array(a)
        if a.ndim == 3 and a.shape[1:] == (3, 3):
            a[::2] = np.trace(a[::2], axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3)
        return choose(*eigh(a))
    maps = []
    rng = np.random.default_rng(7)
    for choose in (lambda values, vectors: (values, vectors), lambda values, vectors: other_choices(
            values.copy(), vectors.copy(), rng) if vectors.ndim == 3 else (values, vectors)):
        monkeypatch.setattr(np.linalg, "eigh", lambda a, choose=choose: round_for_half(a, choose))
        maps.append(e.align(14.0, marginalize=True).half_map)
    assert np.abs(maps[0] - maps[1]).max() < 1e-5 * np.abs(maps[0]).max()


def test_equal_scores_keep_their_order():
    """Peaks of the same score are taken in the order of the grid, by numpy as by CuPy."""
    from localrefine_plugin.engine.kernels.device import stable_argsort
    values = np.tile(np.array([2.0, 1.0]), 50)
    np.testing.assert_array_equal(stable_argsort(values), np.r_[np.arange(1, 100, 2), np.arange(0, 100, 2)])


def test_spread_of_modes_is_the_mean_square_of_where_the_others_are():
    """Three modes of one image and one of another, against sums written out; in any order of the modes."""
    w, u = np.array([[0, 0, 0], [0.3, 0, 0], [0, -0.2, 0.1], [0, 0, 0]]), np.array([[0, 0], [1, 2], [-3, 0.5], [4, 4]])
    base, owner, p = Rotation.random(random_state=1), np.array([0, 0, 0, 1]), np.array([0.5, 0.3, 0.2, 1.0])
    rotation = (base * Rotation.from_rotvec(w)).as_matrix()
    modes = Modes.of(owner, w=w, shift=u.astype(float), rotation=rotation)
    best = modes.take(np.array([0, 3]))
    x = np.concatenate([w, u], axis=1)
    expected = sum(p[i] * np.outer(x[i], x[i]) for i in range(3))
    for order in ([0, 1, 2, 3], [3, 2, 0, 1]):
        found = marginalize.spread_of_modes(modes.take(np.array(order)), best, p[order], 2)
        np.testing.assert_allclose(found[0], expected, atol=1e-10)
        np.testing.assert_array_equal(found[1], 0)


def test_other_modes_are_in_the_stated_error_and_in_nothing_else(monkeypatch):
    e = experiment(60, box=32, noise=12.0, seed=3)
    found = align_half(e.half_set(), e.plan(8.0, prior="off"))
    monkeypatch.setattr(marginalize, "spread_of_modes", lambda modes, best, weights, n: np.zeros((n, 5, 5)))
    without = align_half(e.half_set(), e.plan(8.0, prior="off"))
    with_others, alone = (np.asarray(result.poses.pose_error_covariance) for result in (found, without))
    more = np.trace(with_others - alone, axis1=1, axis2=2)
    several = found.poses.modes > 1
    assert 5 < several.sum() < 55
    assert (more[several] > 0).all() and np.abs(more[~several]).max() == 0
    np.testing.assert_array_equal(found.half_map, without.half_map)
    np.testing.assert_array_equal(found.poses.covariance, without.poses.covariance)
