"""B-factors against Gaussian atoms of known width, and relion_postprocess."""
from __future__ import annotations

import subprocess

import mrcfile
import numpy as np
import pytest
from emtable import Table
from map_phantoms import atoms, ball, density, half_maps

from localrefine_plugin.engine.maps import fsc, sharpen
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.model import fourier

PIXEL_SIZE = 1.4


def test_fsc_weights_are_those_of_the_full_map():
    curve = np.array([-1.0, 1.0, 1 / 3, 0.0, 0.5])
    np.testing.assert_allclose(sharpen.fsc_weights(curve), [1, 1, np.sqrt(0.5), 0, 0])


@pytest.mark.parametrize("n, sigma_px", ((64, 0.9), (65, 1.1)))
def test_fit_finds_the_width_of_the_atoms(n, sigma_px):
    """|F| of point atoms is flat; Gaussians of σ multiply by exp(−2π²σ²s²), so B = −8π²σ²."""
    volume = density(atoms(1500, 20, seed=3), n, sigma_px)
    fit = sharpen.guinier_fit(volume, PIXEL_SIZE, np.ones(n // 2 + 1), 3.2)
    expected = -8 * np.pi ** 2 * (sigma_px * PIXEL_SIZE) ** 2
    # ~1,000 coefficients a shell: ln⟨|F|⟩ is known to 2 %, the slope over 20 shells to a few per cent
    assert fit.b_factor == pytest.approx(expected, rel=0.06)
    assert fit.correlation < -0.98 and fit.shells > 15


def test_a_resolution_at_nyquist_leaves_out_the_shell_that_a_reconstruction_leaves_empty():
    n = 64
    volume = density(atoms(1500, 20, seed=3), n, 0.9)
    filled = fourier.multiply_radial(fourier.forward(volume), lambda r: np.where(r < n // 2 - 0.5, 1.0, 1e-6))
    at_nyquist = sharpen.guinier_fit(fourier.inverse(filled, volume.shape), PIXEL_SIZE, np.ones(n // 2 + 1),
                                     2 * PIXEL_SIZE)
    below = sharpen.guinier_fit(volume, PIXEL_SIZE, np.ones(n // 2 + 1), 2 * PIXEL_SIZE * 1.05)
    assert at_nyquist.b_factor == pytest.approx(below.b_factor, rel=0.05) and at_nyquist.correlation < -0.98


def test_sharpening_flattens_the_spectrum_up_to_the_resolution_and_ends_there():
    n, resolution = 64, 4.0
    volume = density(atoms(1500, 20, seed=3), n, 1.1)
    sharp, _ = sharpen.sharpen(volume, PIXEL_SIZE, np.ones(n // 2 + 1), resolution)
    again = sharpen.guinier_fit(sharp, PIXEL_SIZE, np.ones(n // 2 + 1), 1.1 * resolution)
    blurred = sharpen.guinier_fit(volume, PIXEL_SIZE, np.ones(n // 2 + 1), 1.1 * resolution)
    assert abs(again.b_factor) < 0.05 * abs(blurred.b_factor)
    power = fourier.radial_mean_power(fourier.forward(sharp))
    beyond = np.arange(n // 2 + 1) > n * PIXEL_SIZE / resolution + 1.5
    assert power[beyond].max() < 1e-9 * power[10]


def test_given_b_factor_is_applied_exactly():
    n, b_factor = 48, -120.0
    volume = density(atoms(300, 14), n, 1.0)
    plain, _ = sharpen.sharpen(volume, PIXEL_SIZE, np.ones(n // 2 + 1), 3.5, b_factor=0.0)
    sharp, _ = sharpen.sharpen(volume, PIXEL_SIZE, np.ones(n // 2 + 1), 3.5, b_factor=b_factor)
    ratio = np.fft.rfftn(sharp)[3, 4, 5] / np.fft.rfftn(plain)[3, 4, 5]
    assert ratio == pytest.approx(np.exp(-b_factor / 4 * 50 / (n * PIXEL_SIZE) ** 2), rel=1e-3)


def test_a_resolution_too_coarse_for_a_fit_leaves_the_map_unsharpened():
    n = 32
    volume = density(atoms(300, 9), n, 1.0)
    sharp, fit = sharpen.sharpen(volume, 3.0, np.ones(n // 2 + 1), 9.5)
    assert fit.shells == 0 and fit.b_factor == 0
    np.testing.assert_allclose(sharp, fourier.lowpass(volume, 3.0, 9.5), atol=1e-5)


def test_the_fit_never_blurs_noise():
    n = 48
    rising = fourier.apply_shell_filter(np.random.default_rng(0).standard_normal((n,) * 3), np.arange(n) / n)
    sharp, fit = sharpen.sharpen(rising, PIXEL_SIZE, np.ones(n // 2 + 1), 3.0)
    assert fit.b_factor > 0
    np.testing.assert_allclose(sharp, fourier.lowpass(rising, PIXEL_SIZE, 3.0), atol=1e-5)


def test_b_factor_and_map_agree_with_relion_postprocess(tmp_path, require_program):
    require_program("relion_postprocess")
    n, high = 80, 3.6
    _, a, b = half_maps(n, radius_px=24, noise=0.3, atom_count=2000, sigma_px=0.9)
    for name, data in (("half1", a), ("half2", b), ("mask", ball(n, 26, 6))):
        with mrcfile.new(tmp_path / f"{name}.mrc", data) as handle:
            handle.voxel_size = PIXEL_SIZE
    (tmp_path / "post").mkdir()
    command = ["relion_postprocess", "--i", "half1.mrc", "--i2", "half2.mrc", "--mask", "mask.mrc", "--angpix",
               str(PIXEL_SIZE), "--o", "post/post", "--auto_bfac", "--autob_highres", str(high),
               "--low_pass", str(high), "--force_mask"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    relion = next(iter(Table(fileName=str(tmp_path / "post/post.star"), tableName="general")))
    curve = fsc.five_curves(HalfMaps(a, b), ball(n, 26, 6), PIXEL_SIZE).corrected
    sharp, fit = sharpen.sharpen((a + b) / 2, PIXEL_SIZE, curve, high)
    assert fit.b_factor == pytest.approx(float(relion.rlnBfactorUsedForSharpening), rel=0.02)
    assert fit.intercept - np.log(n ** 3) == pytest.approx(float(relion.rlnFittedInterceptGuinierPlot), abs=0.02)
    with mrcfile.open(tmp_path / "post/post.mrc") as handle:
        theirs = handle.data
    assert np.corrcoef(sharp.ravel(), theirs.ravel())[0, 1] > 0.999
