"""Sigma points of the posterior: mean and covariance, and that no choice of a library's reaches the map."""
from __future__ import annotations

import numpy as np
import pytest
from experiments import experiment
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.align import marginalize
from localrefine_plugin.engine.align.search import Modes
from localrefine_plugin.engine.model.pose import log_map

VOXELS_PER_RADIAN = 40.0
AXES = Rotation.random(random_state=4).as_matrix()


def modes_with(covariance):
    """One mode for each covariance (5, 5), at the identity."""
    n = len(covariance)
    return Modes(np.arange(n), np.zeros((n, 3)), np.zeros((n, 2)), np.tile(np.eye(3), (n, 1, 1)), np.zeros(n),
                 np.zeros(n), np.zeros((n, 5, 5)), np.linalg.inv(covariance), np.zeros((n, 5)))


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
