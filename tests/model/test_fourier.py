"""Fourier operators against direct sums, closed forms and exact identities."""
from __future__ import annotations

import numpy as np
import pytest

from localrefine_plugin.engine.model import fourier

BOXES = (15, 16)


def noise(n, seed=0, ndim=3):
    return np.random.default_rng(seed).standard_normal((n,) * ndim).astype(np.float32)


def gaussian(n, sigma=2.0, centre=(0, 0, 0), field=None):
    """exp(−|v − c|²/2σ²) sampled on n voxels over a field of `field` px (default n); c in xyz px."""
    field = field or n
    axis = (np.arange(n) - n // 2) * field / n
    x, y, z = centre
    r2 = (axis[:, None, None] - z) ** 2 + (axis[:, None] - y) ** 2 + (axis - x) ** 2
    return np.exp(-r2 / (2 * sigma ** 2))


@pytest.mark.parametrize("n", BOXES)
@pytest.mark.parametrize("ndim", (2, 3))
def test_shell_index_is_the_rounded_distance(n, ndim):
    k = np.fft.fftfreq(n, 1 / n)
    grids = np.meshgrid(*[k] * ndim, indexing="ij")
    radius = np.sqrt(sum(g ** 2 for g in grids))
    # fftfreq calls Nyquist −N/2, the half-spectrum +N/2: the distance is the same
    np.testing.assert_array_equal(fourier.shell_index_rfft((n,) * ndim), np.rint(radius[..., :n // 2 + 1]))
    assert fourier.shell_index_rfft((n,) * ndim) is fourier.shell_index_rfft((n,) * ndim)


@pytest.mark.parametrize("n", BOXES)
def test_rfft_weights_satisfy_parseval(n):
    values = noise(n).astype(np.float64)
    ft = np.fft.rfftn(values)
    total = np.sum(fourier.rfft_weights(values.shape) * np.abs(ft) ** 2) / values.size
    assert total == pytest.approx(np.sum(values ** 2), rel=1e-12)


@pytest.mark.parametrize("n", BOXES)
def test_shell_counts_and_power_against_the_full_spectrum(n):
    values = noise(n)
    k = np.fft.fftfreq(n, 1 / n)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k ** 2)).astype(int).ravel()
    power = np.abs(np.fft.fftn(values.astype(np.float64))).ravel() ** 2
    counts = np.bincount(shell)[:n // 2 + 1]
    np.testing.assert_array_equal(fourier.shell_counts(n), counts)
    expected = np.bincount(shell, weights=power)[:n // 2 + 1] / counts
    np.testing.assert_allclose(fourier.radial_mean_power(fourier.forward(values)), expected, rtol=1e-5)


def test_shape_must_be_cubic():
    with pytest.raises(ValueError, match="neither square nor cubic"):
        fourier.shell_index_rfft((8, 8, 9))


@pytest.mark.parametrize("n", BOXES)
def test_shell_filter_scales_a_plane_wave_by_its_shell(n):
    z, y, x = np.meshgrid(*[np.arange(n)] * 3, indexing="ij")
    wave = np.cos(2 * np.pi * (3 * x + 4 * z) / n)  # |k| = 5
    between = np.cos(2 * np.pi * (x + y) / n)  # |k| = 1.414: linear between shells 1 and 2
    weights = np.array([0, 10, 20, 0, 0, 7, 0, 0])
    filtered = fourier.apply_shell_filter(wave + between, weights)
    np.testing.assert_allclose(filtered, 7 * wave + 10 * np.sqrt(2) * between, atol=1e-4)


@pytest.mark.parametrize("n", BOXES)
def test_shell_filter_of_ones_is_the_identity_also_in_the_corners(n):
    values = noise(n)
    np.testing.assert_allclose(fourier.apply_shell_filter(values, np.ones(n // 2 + 1)), values, atol=1e-5)


@pytest.mark.parametrize("n", BOXES)
def test_lowpass_keeps_below_and_removes_beyond(n):
    pixel_size, resolution = 1.5, 6.0
    power = fourier.radial_mean_power(fourier.forward(fourier.lowpass(noise(n), pixel_size, resolution)))
    original = fourier.radial_mean_power(fourier.forward(noise(n)))
    cutoff = n * pixel_size / resolution
    shells = np.arange(n // 2 + 1)
    below, beyond = shells < cutoff - 1.5, shells > cutoff + 1.5
    np.testing.assert_allclose(power[below], original[below], rtol=1e-4)
    assert np.all(power[beyond] < 1e-10 * original[beyond])


def test_lowpass_beyond_nyquist_changes_nothing():
    values = noise(8)
    np.testing.assert_array_equal(fourier.lowpass(values, 2.0, 4.0), values)


def test_cosine_edge_is_half_at_the_cutoff():
    np.testing.assert_allclose(fourier.cosine_edge(np.arange(3.0, 8.0), 5.0, 2.0), [1, 1, 0.5, 0, 0], atol=1e-15)


@pytest.mark.parametrize("n", (31, 32))
def test_shift_moves_a_gaussian_by_a_fraction_of_a_pixel(n):
    moved = fourier.shift_map(gaussian(n), (1.25, -2.5, 0.75))
    np.testing.assert_allclose(moved, gaussian(n, centre=(1.25, -2.5, 0.75)), atol=2e-6)


@pytest.mark.parametrize("n", BOXES)
def test_whole_shift_is_a_roll(n):
    np.testing.assert_allclose(fourier.shift_map(noise(n), (2, -1, 3)), np.roll(noise(n), (3, -1, 2), (0, 1, 2)),
                               atol=1e-5)


@pytest.mark.parametrize("old", (31, 32))
@pytest.mark.parametrize("new", (24, 25, 40, 41))
def test_resample_keeps_field_of_view_grey_values_and_origin(old, new):
    centre = (1.0, -2.0, 0.5)
    resampled = fourier.resample_map(gaussian(old, 2.4, centre), new)
    # A Gaussian of 2.4 px: exp(−2π²σ²s²) < 1e-6 at the Nyquist frequency of either grid.
    np.testing.assert_allclose(resampled, gaussian(new, 2.4, centre, field=old), atol=5e-6)


@pytest.mark.parametrize("old", BOXES)
@pytest.mark.parametrize("new", (20, 21))
def test_padding_then_cropping_is_the_identity(old, new):
    values = noise(old)
    np.testing.assert_allclose(fourier.resample_map(fourier.resample_map(values, new), old), values, atol=1e-5)


@pytest.mark.parametrize("old", BOXES)
def test_padded_map_interpolates_at_the_old_voxels(old):
    values = noise(old)
    fine = fourier.resample_map(values, 2 * old)
    first = (2 * old) // 2 - 2 * (old // 2)
    np.testing.assert_allclose(fine[first::2, first::2, first::2], values, atol=1e-5)


def test_threads_do_not_change_the_bits():
    values = noise(32)
    one, two = (fourier.lowpass(values, 1.0, 4.0, workers=w) for w in (1, 2))
    np.testing.assert_array_equal(one, two)
