"""FSC curves against direct sums, simulated noise, and relion_postprocess."""
from __future__ import annotations

import subprocess

import mrcfile
import numpy as np
import pytest
from emtable import Table
from map_phantoms import ball, half_maps

from localrefine_plugin.engine.maps import fsc
from localrefine_plugin.engine.maps.half_maps import HalfMaps, RandomPhases, region_of
from localrefine_plugin.engine.model import fourier
from localrefine_plugin.engine.records.iteration import CURVE_NAMES

PIXEL_SIZE = 1.5


def shells(n):
    k = np.fft.fftfreq(n, 1 / n)
    return np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k ** 2)).astype(int)


def direct_fsc(a, b):
    """The definition, summed over the full spectrum in double precision."""
    shell = shells(len(a)).ravel()
    fa, fb = (np.fft.fftn(m.astype(np.float64)).ravel() for m in (a, b))
    cross, power_a, power_b = (np.bincount(shell, weights=w)[:len(a) // 2 + 1]
                               for w in ((fa * fb.conj()).real, np.abs(fa) ** 2, np.abs(fb) ** 2))
    return cross / np.sqrt(power_a * power_b)


@pytest.mark.parametrize("n, new", [(24, 16), (25, 16), (24, 24)])
def test_a_coarse_mean_is_the_mean_at_every_frequency_that_has_a_weight(n, new):
    rng = np.random.default_rng(0)
    halves = HalfMaps(*rng.standard_normal((2, n, n, n)).astype(np.float32))
    fine = halves.mean(lambda radius: radius < 6)
    coarse = halves.coarse_mean(lambda radius: radius < 6, new)
    expected = fourier.resample_map(fine, new)
    np.testing.assert_allclose(coarse / coarse.std(), expected / expected.std(), atol=1e-5)
    part = (slice(3, 9), slice(0, n), slice(5, 6))
    np.testing.assert_allclose(halves.mean(lambda radius: radius < 6, part), fine[part], atol=1e-6)


def test_the_smallest_box_holds_all_that_is_not_zero():
    filled = np.zeros((9, 8, 7), np.float32)
    filled[2, 3, 4] = filled[5, 1, 6] = -1.0
    assert region_of(filled) == (slice(2, 6), slice(1, 4), slice(4, 7))
    assert region_of(filled, 2) == (slice(0, 8), slice(0, 6), slice(2, 7))
    assert region_of(0 * filled) == (slice(0, 9), slice(0, 8), slice(0, 7))


@pytest.mark.parametrize("n", (23, 24))
def test_fsc_is_its_definition(n):
    _, a, b = half_maps(n, radius_px=7, noise=1.0)
    np.testing.assert_allclose(fsc.fsc(a, b), direct_fsc(a, b), atol=2e-6)


def test_fsc_does_not_depend_on_grey_scale_and_follows_its_sign():
    _, a, b = half_maps(24, radius_px=7, noise=1.0)
    np.testing.assert_allclose(fsc.fsc(a, 5 * b), fsc.fsc(a, b), atol=1e-6)
    np.testing.assert_allclose(fsc.fsc(a, -b), -fsc.fsc(a, b), atol=1e-6)


def test_shells_without_power_have_no_correlation():
    _, a, b = half_maps(24, radius_px=7)
    ft = fourier.forward(a)
    ft[shells(24)[..., :13] > 6] = 0
    assert np.all(fsc.shell_correlation(ft, fourier.forward(b))[7:] == 0)


def test_fsc_of_signal_and_noise_has_the_expected_value():
    """F = S / (S + N) for equal white signal and noise power S = N, within 4 standard errors."""
    rng = np.random.default_rng(4)
    signal, noise1, noise2 = (rng.standard_normal((32,) * 3) for _ in range(3))
    curve = fsc.fsc(signal + noise1, signal + noise2)
    error = fsc.standard_error(curve, np.ones((32,) * 3))
    assert np.all(np.abs(curve - 0.5)[1:] < 4 * error[1:])


@pytest.mark.parametrize("n, radius, edge", ((32, 7, 4), (33, 13, 2), (32, 5, 6)))
def test_standard_error_is_the_scatter_of_masked_noise(n, radius, edge):
    mask = ball(n, radius, edge, centre=(1, -1, 0))
    rng = np.random.default_rng(1)
    curves = np.array([fsc.fsc(mask * rng.standard_normal(mask.shape), mask * rng.standard_normal(mask.shape))
                       for _ in range(100)])
    ratio = np.sqrt(np.mean(np.square(curves), axis=0)) / fsc.standard_error(np.zeros(n // 2 + 1), mask)
    # 100 draws: each shell's s.d. is known to 7 %; the mean over shells 4 … N/2 − 1 to 3 %
    assert np.mean(ratio[4:n // 2]) == pytest.approx(1.0, abs=0.08)


def test_no_mask_leaves_every_value_independent():
    assert fsc.independent_fraction(np.ones((16,) * 3)) == pytest.approx(1.0, abs=1e-6)


def literal_draw(half, first_shell, rng):
    """Random phases, as the method is usually described."""
    ft, noise = np.fft.rfftn(half), np.fft.rfftn(rng.standard_normal(half.shape))
    k = np.fft.fftfreq(len(half), 1 / len(half))
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(len(half) // 2 + 1) ** 2)
    beyond = radius >= first_shell
    ft[beyond] = (np.abs(ft) * noise / np.abs(noise))[beyond]
    return np.fft.irfftn(ft, half.shape)


def test_randomised_curve_is_the_mean_of_literal_draws():
    n, first_shell, count = 32, 6, 60
    _, a, b = half_maps(n, radius_px=8, noise=1.0)
    mask = ball(n, 9, 5)
    rng = np.random.default_rng(8)
    draws = np.array([direct_fsc(literal_draw(a, first_shell, rng) * mask, literal_draw(b, first_shell, rng) * mask)
                      for _ in range(count)])
    curve = RandomPhases(HalfMaps(a, b), first_shell, region_of(mask), 1).under(mask)
    used = slice(first_shell + fsc.UNRELIABLE_SHELLS, None)  # before, a ratio of few coefficients: biased
    error = draws.std(axis=0) / np.sqrt(count)
    assert np.all(np.abs(curve - draws.mean(axis=0))[used] < 4 * error[used])


def test_randomisation_removes_what_the_mask_alone_correlates():
    """A common signal that ends at shell 5, under a sharp mask: all correlation beyond is the mask's doing."""
    n = 40
    rng = np.random.default_rng(3)
    common = 12 * fourier.apply_shell_filter(rng.standard_normal((n,) * 3), np.arange(n) < 6)
    a, b = (common + rng.standard_normal((n,) * 3) for _ in range(2))
    curves = fsc.five_curves(HalfMaps(a, b), ball(n, 7), PIXEL_SIZE)
    beyond = slice(curves.randomise_shell + fsc.UNRELIABLE_SHELLS, None)
    smear = n / (2 * 7)  # shells that vary together: the mask's transform is about N / diameter wide
    error = np.sqrt(np.mean(np.square(curves.corrected_error[beyond])) * smear / len(curves.corrected[beyond]))
    assert np.mean(curves.tight[beyond]) > 5 * error
    assert abs(np.mean(curves.corrected[beyond])) < 4 * error


def test_curves_are_a_function_of_the_seed_alone():
    _, a, b = half_maps(24, radius_px=7, noise=1.0)
    mask = ball(24, 8, 3)
    first, again, other = (fsc.five_curves(HalfMaps(a, b), mask, PIXEL_SIZE, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.corrected, again.corrected)
    assert not np.array_equal(first.randomised, other.randomised)
    np.testing.assert_array_equal(first.tight, other.tight)


def test_identical_halves_are_resolved_to_nyquist_and_not_randomised():
    truth, _, _ = half_maps(24, radius_px=7)
    curves = fsc.five_curves(HalfMaps(truth, truth), ball(24, 8, 3), PIXEL_SIZE)
    assert curves.randomise_shell == 13
    assert curves.resolutions() == pytest.approx(dict.fromkeys(CURVE_NAMES, 2 * PIXEL_SIZE))


def test_resolution_is_interpolated_between_shells():
    curve = np.array([1, 0.9, 0.5, 0.1, -0.2, 0.6])
    # 0.3 lies half-way between shells 2 and 3; the later rise does not count
    assert fsc.resolution_at(curve, 0.3, 10, 2.0) == pytest.approx(20 / 2.5)
    assert fsc.resolution_at(curve, 0.5, 10, 2.0) == pytest.approx(20 / 2.0)


def test_resolution_without_crossing_and_below_from_the_start():
    assert fsc.resolution_at(np.full(6, 0.9), 0.143, 10, 2.0) == pytest.approx(4.0)
    assert fsc.resolution_at(np.zeros(6), 0.143, 10, 2.0) == pytest.approx(20.0)


def test_fsc_star_round_trip(tmp_path):
    _, a, b = half_maps(25, radius_px=7, noise=1.0)
    curves = fsc.five_curves(HalfMaps(a, b), ball(25, 8, 3), 1.234567)
    fsc.write_fsc(tmp_path / "fsc.star", curves)
    read = fsc.read_fsc(tmp_path / "fsc.star")
    assert (read.box_size, read.pixel_size, read.randomise_shell) == (25, 1.234567, curves.randomise_shell)
    for name in CURVE_NAMES + ("randomised", "corrected_error", "spatial_frequency"):
        np.testing.assert_allclose(getattr(read, name), getattr(curves, name), atol=1e-6)


def relion_curves(folder, half1, half2, mask):
    for name, data in (("half1", half1), ("half2", half2), ("mask", mask)):
        with mrcfile.new(folder / f"{name}.mrc", data) as handle:
            handle.voxel_size = PIXEL_SIZE
    (folder / "post").mkdir()
    command = ["relion_postprocess", "--i", "half1.mrc", "--i2", "half2.mrc", "--mask", "mask.mrc",
               "--angpix", str(PIXEL_SIZE), "--o", "post/post", "--force_mask"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    rows = list(Table(fileName=str(folder / "post/post.star"), tableName="fsc"))
    labels = dict(unmasked="UnmaskedMaps", tight="MaskedMaps", corrected="Corrected")
    curves = {name: np.array([getattr(r, "rlnFourierShellCorrelation" + label) for r in rows])
              for name, label in labels.items()}
    curves["randomised"] = np.array(
        [r.rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps for r in rows])
    return curves


def test_curves_agree_with_relion_postprocess(tmp_path, require_program):
    require_program("relion_postprocess")
    n = 96
    _, a, b = half_maps(n, radius_px=30, noise=0.35, atom_count=2500, sigma_px=0.8)
    mask = ball(n, 32, 6)
    relion = relion_curves(tmp_path, a, b, mask)
    curves = fsc.five_curves(HalfMaps(a, b), mask, PIXEL_SIZE)
    resolved = slice(1, fsc.first_below(relion["corrected"], 0.143))
    assert resolved.stop > 20
    np.testing.assert_allclose(curves.unmasked[resolved], relion["unmasked"][resolved], atol=0.01)
    np.testing.assert_allclose(curves.tight[resolved], relion["tight"][resolved], atol=0.01)
    np.testing.assert_allclose(curves.corrected[resolved], relion["corrected"][resolved], atol=0.02)
    # the formula and its start, free of the noise of the one random draw
    assert curves.randomise_shell == fsc.first_below(relion["unmasked"], 0.8)
    formula = fsc.corrected_fsc(relion["tight"], relion["randomised"], curves.randomise_shell)
    np.testing.assert_allclose(formula[1:], relion["corrected"][1:], atol=5e-6)
