"""What uncertain poses take from a map: κ against a direct average, and the limits it must have."""
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from localrefine_plugin.engine.finish.pose_blur import (
    BlurredMap,
    advice,
    as_half_map_fsc,
    expected_map_to_truth,
    expected_range,
)
from localrefine_plugin.engine.maps.fsc import FscCurves, fsc
from localrefine_plugin.engine.model.pose import exp_map, random_rotations

BOX = 32


@pytest.fixture(scope="module")
def volume():
    rng = np.random.default_rng(3)
    grid = np.indices((BOX,) * 3) - BOX // 2
    ball = (np.sum(grid ** 2, axis=0) < 10 ** 2).astype(np.float32)
    return (gaussian_filter(rng.standard_normal((BOX,) * 3), 1.0) * ball).astype(np.float32), gaussian_filter(ball, 1.0)


def kappa_of(volume, sigma_rad, sigma_px, n=400, seed=1):
    covariance = np.broadcast_to(np.diag([sigma_rad ** 2] * 3 + [sigma_px ** 2] * 2), (n, 5, 5))
    rotation = random_rotations(n, np.random.default_rng(seed))
    return BlurredMap.of(volume[0], volume[1], np.ones(BOX // 2 + 1), 2.0).correlation(covariance, rotation, seed)


def test_certain_poses_cost_nothing(volume):
    assert np.all(kappa_of(volume, 1e-6, 1e-6)[1:BOX // 2] > 0.999)


def test_rotation_uncertainty_costs_more_the_wider_and_the_finer(volume):
    narrow, wide = kappa_of(volume, 0.05, 0.0), kappa_of(volume, 0.15, 0.0)
    assert np.all(wide[4:12] < narrow[4:12])
    assert wide[10] < wide[5] < 1


def test_rotation_blur_equals_a_direct_average_of_turned_maps(volume):
    """Against an average over many rotations made here; nothing shared but exp_map."""
    from scipy.ndimage import map_coordinates
    rng = np.random.default_rng(11)
    points = np.indices((BOX,) * 3).reshape(3, -1) - BOX // 2
    total = np.zeros(BOX ** 3)
    for _ in range(150):
        turn = exp_map(rng.normal(0, 0.1, 3))[::-1, ::-1]
        total += map_coordinates(volume[0], turn @ points + BOX // 2, order=3)
    direct = fsc(total.reshape((BOX,) * 3).astype(np.float32) * volume[1], volume[0] * volume[1])
    # 32 draws against 150: the scatter of κ between seeds is 0.01 to 0.02 in these shells
    np.testing.assert_allclose(kappa_of(volume, 0.1, 0.0)[3:12], direct[3:12], atol=0.05)


def test_half_map_fsc_of_one_seventh_is_one_half_to_the_truth_without_blur():
    curve = np.array([1.0, 1 / 7])
    np.testing.assert_allclose(expected_map_to_truth(curve, np.ones(2)), [1, 0.5])
    np.testing.assert_allclose(expected_map_to_truth(curve, np.full(2, 0.9)), [0.9, 0.45])


def curves_of(corrected, error):
    n = len(corrected)
    return FscCurves(2 * (n - 1), 1.0, *([np.asarray(corrected)] * 7), np.full(n, error), 2)


def test_the_range_is_narrow_where_the_curve_is_steep_and_wide_where_it_runs_along_one_half():
    """F = 1/7 is C = 0.5. Straight lines: two errors of 0.02 move the crossing by 0.04 over the slope.

    Between shells C is taken as straight, not F: 0.04 of a shell.
    """
    steep = np.interp(np.arange(33), [0, 10, 20, 32], [1.0, 1.0, 0.0, 0.0])
    flat = np.interp(np.arange(33), [0, 10, 12, 24, 26, 32], [1.0, 1.0, 0.16, 0.13, 0.0, 0.0])
    ones = np.ones(33)
    finer, coarser = expected_range(curves_of(steep, 0.02), ones)
    np.testing.assert_allclose([64 / finer, 64 / coarser], 10 + 10 * (1 - 1 / 7 + np.array([0.04, -0.04])), atol=0.05)
    finer, coarser = expected_range(curves_of(flat, 0.02), ones)
    assert 64 / finer > 24 and 64 / coarser < 12.1


def test_as_half_map_fsc_is_the_way_back():
    f = np.array([1.0, 0.6, 1 / 7, 0.0])
    np.testing.assert_allclose(as_half_map_fsc(expected_map_to_truth(f, np.ones(4))), f, atol=1e-12)


def test_advice_is_given_only_where_it_matters():
    assert advice(5.1, 5.0, 5.2) == ""
    assert advice(8.6, 7.4, 9.0).startswith("the half-maps agree to 7.40 Å") and "8.60" in advice(8.6, 7.4, 9.0)
    assert "hardly known" in advice(7.5, 7.4, 8.9) and "from 7.50 to 8.90 Å" in advice(7.5, 7.4, 8.9)
    assert advice(8.6, 7.4, 9.9).count("Report") == 2


@pytest.mark.parametrize("share", (0.5, 0.8, 0.1))
def test_expected_fsc_of_half_maps_of_unequal_size(share):
    """Simulated: two maps of one signal with noise of these weights, and their weighted mean beside the truth."""
    rng = np.random.default_rng(4)
    n, total = 400_000, 2.0  # signal-to-noise ratio of the mean
    signal = rng.standard_normal(n)
    first, second = (signal + rng.standard_normal(n) / np.sqrt(part * total) for part in (share, 1 - share))

    def correlation(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))
    between = np.array([correlation(first, second)])
    mean = share * first + (1 - share) * second
    expected = expected_map_to_truth(between, np.ones(1), share)
    np.testing.assert_allclose(expected, correlation(mean, signal), rtol=0.01)
    np.testing.assert_allclose(expected, np.sqrt(total / (1 + total)), rtol=0.01)


def test_expected_fsc_of_equal_halves_is_that_of_rosenthal_and_henderson():
    f = np.array([1.0, 0.7, 0.143, 1e-6, 0.0, -0.2])
    positive = np.clip(f, 0, 1)
    np.testing.assert_allclose(expected_map_to_truth(f, np.ones(6)), np.sqrt(2 * positive / (1 + positive)), atol=1e-12)
