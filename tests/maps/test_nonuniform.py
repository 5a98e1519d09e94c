"""The non-uniform filter against the truth of phantoms with an ordered core and a disordered shell."""
from __future__ import annotations

import numpy as np
import pytest
from map_phantoms import atoms, ball, density

from localrefine_plugin.engine.maps import fsc
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.maps.nonuniform import nonuniform_filter, working_box
from localrefine_plugin.engine.model import fourier

N, PIXEL_SIZE, CORE = 64, 1.5, 15.0
MASK, INSIDE_CORE = ball(N, 24, 5), ball(N, CORE - 2, 3)


def phantom(disordered, noise, seed=0):
    """(truth, half 1, half 2): a core of sharp atoms in a shell of atoms blurred to 14 Å, or as sharp."""
    core = density(atoms(900, CORE, seed), N, 0.9)
    around = atoms(4000, 23, seed + 1)
    around = around[np.linalg.norm(around, axis=1) > CORE + 1]
    shell = density(around, N, 4.0 if disordered else 0.9)
    if disordered:  # the blur is of equal mass per atom
        shell *= (0.9 / 4.0) ** 3
    truth = core + shell
    amplitude = noise * core[ball(N, CORE) > 0.5].std()
    rng = np.random.default_rng([seed, 5])
    return (truth, *(truth + amplitude * rng.standard_normal(truth.shape).astype(np.float32) for _ in range(2)))


def global_wiener(half1, half2):
    """Half 1 times the masked FSC: the best filter for a half-map that is the same everywhere."""
    curves = fsc.five_curves(HalfMaps(half1, half2), MASK, PIXEL_SIZE)
    weights = np.clip(curves.corrected, 0, 1)
    weights[fsc.first_below(curves.corrected, 1e-4):] = 0
    return fourier.apply_shell_filter(half1, weights)


def error_to(truth, filtered, where):
    mean = np.average(truth, weights=where)
    return np.sqrt(np.sum(np.square(filtered - truth) * where) / np.sum(np.square(truth - mean) * where))


def mean_fsc_to(truth, filtered, where):
    """Mean over the shells to 4 Å."""
    return fsc.fsc(filtered * where, truth * where)[1:N * 3 // 8 + 1].mean()


def filtered(half1, half2, mask=MASK, pixel_size=PIXEL_SIZE, low=20.0, high=3.0):
    box = working_box(mask, pixel_size, low)
    return nonuniform_filter([half1[box], half2[box]], box, len(mask), pixel_size, low, high)


def whole(local, name="filtered1", fill=0.0, n=N):
    """An array of a result in the box it is part of."""
    out = np.full((n,) * 3, fill, np.float32)
    out[local.box] = getattr(local, name)
    return out


@pytest.mark.parametrize("noise", (0.4, 1.0))
def test_ordered_core_in_a_disordered_shell_gains(noise):
    truth, a, b = phantom(True, noise)
    local, uniform = filtered(a, b), global_wiener(a, b)
    assert mean_fsc_to(truth, whole(local), INSIDE_CORE) > mean_fsc_to(truth, uniform, INSIDE_CORE)
    assert error_to(truth, whole(local), INSIDE_CORE) < 0.95 * error_to(truth, uniform, INSIDE_CORE)
    assert error_to(truth, whole(local), MASK) < 0.9 * error_to(truth, uniform, MASK)


@pytest.mark.parametrize("noise", (0.4, 1.0))
def test_homogeneous_phantom_loses_nothing(noise):
    truth, a, b = phantom(False, noise)
    local, uniform = filtered(a, b), global_wiener(a, b)
    assert mean_fsc_to(truth, whole(local), INSIDE_CORE) > 0.99 * mean_fsc_to(truth, uniform, INSIDE_CORE)
    assert error_to(truth, whole(local), MASK) < 1.01 * error_to(truth, uniform, MASK)


def test_cutoff_is_finer_in_the_core_than_in_the_shell():
    _, a, b = phantom(True, 0.5)
    cutoff = whole(filtered(a, b), "cutoff_angstrom", 20.0)
    shell = (ball(N, 22) > 0.5) & (ball(N, CORE + 4) < 0.5)
    assert np.median(cutoff[shell]) > 1.4 * np.median(cutoff[ball(N, CORE - 4) > 0.5])
    assert cutoff.min() >= 3.0 and cutoff.max() <= 20.0


def test_noise_is_filtered_to_the_coarsest_cutoff():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((N,) * 3).astype(np.float32) for _ in range(2))
    cutoff = whole(filtered(a, b), "cutoff_angstrom", 20.0)
    assert np.mean(cutoff[MASK > 0.5] > 12) > 0.95


def test_half_maps_are_treated_alike():
    _, a, b = phantom(True, 1.0)
    one, other = (filtered(*pair) for pair in ((a, b), (b, a)))
    np.testing.assert_array_equal(one.cutoff_angstrom, other.cutoff_angstrom)
    np.testing.assert_array_equal(one.filtered1, other.filtered2)


@pytest.mark.parametrize("n", (47, 48))
def test_one_cutoff_is_a_plain_butterworth_inside_a_small_mask_off_the_centre(n):
    """All cut-offs equal: what is left is the working box, whose edges must not reach the mask."""
    volume = density(atoms(400, 18), n, 1.2)
    mask = ball(n, 5, centre=(6, -4, 3))
    local = whole(filtered(volume, volume, mask, 1.0, 6.0, 6.0), n=n)
    k = np.fft.fftfreq(n)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.fft.rfftfreq(n) ** 2)
    plain = np.fft.irfftn(np.fft.rfftn(volume) / np.sqrt(1 + (6 * radius) ** 8), volume.shape)
    inside = mask > 0.5
    assert np.abs(local - plain)[inside].max() < 0.05 * plain[inside].std()
