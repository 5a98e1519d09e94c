"""Sums over shells and of moved copies: against direct sums, on the CPU and by the CUDA sources, which do the same."""
from __future__ import annotations

import numpy as np
import pytest
from gpu.fixtures import install, install_sanitized
from scipy import ndimage

from localrefine_plugin.engine.kernels.device import to_host
from localrefine_plugin.engine.kernels.moved import sum_of_moved
from localrefine_plugin.engine.kernels.shells import density_sums, shell_sums
from localrefine_plugin.engine.model.fourier import resample_map
from localrefine_plugin.engine.model.pose import exp_map

BOXES = (15, 16)


def spectra(n, seed=0):
    rng = np.random.default_rng(seed)
    return [np.ascontiguousarray(np.fft.rfftn(rng.standard_normal((n,) * 3)), np.complex64) for _ in range(2)]


def full_shells(n):
    """Shell of each sample of a half-spectrum and how many of the full one it stands for, by the definition."""
    k = np.fft.fftfreq(n, 1 / n)
    x = np.arange(n // 2 + 1)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + x ** 2)
    weight = np.where((x == 0) | (2 * x == n), 1.0, 2.0)
    return np.rint(radius).astype(int), np.broadcast_to(weight, radius.shape)


def direct_shell_sums(first, second):
    n = len(first)
    shell, weight = full_shells(n)
    a, b = first.astype(complex), second.astype(complex)
    return [np.bincount(shell.ravel(), (weight * values).ravel())[:n // 2 + 1]
            for values in (np.abs(a) ** 2, np.abs(b) ** 2, (a * b.conj()).real)]


def density(shape=(7, 15, 12), seed=1):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def direct_density_sums(d):
    x, z, y = (np.arange(n) - before for n, before in zip(d.shape, (0, d.shape[1] // 2, d.shape[2] // 2)))
    shell = np.rint(np.sqrt(x[:, None, None] ** 2 + z[:, None] ** 2 + y ** 2)).astype(int)
    return np.bincount(shell.ravel(), d.ravel().astype(float))


def moved_problem(n=12, copies=5, seed=2):
    """A smooth map that ends before the faces, rotations and displacements."""
    rng = np.random.default_rng(seed)
    volume = np.zeros((n, n + 2, n - 2), np.float32)
    volume[3:-3, 3:-3, 3:-3] = rng.standard_normal((n - 6, n - 4, n - 8))
    turns = exp_map(rng.normal(0, 0.3, (copies, 3)))
    middle = np.array(volume.shape) // 2
    offsets = middle - turns @ middle + rng.normal(0, 1, (copies, 3))
    window = rng.random(volume.shape, dtype=np.float32)
    window[window < 0.3] = 0
    return volume, turns, offsets, window


def direct_moved(volume, turns, offsets, window):
    total = sum(ndimage.affine_transform(volume, turn, offset, order=1, output=float)
                for turn, offset in zip(turns, offsets))
    return total * (window != 0)


@pytest.fixture(params=["cpu", "cuda"])
def xp(request, monkeypatch):
    return np if request.param == "cpu" else install(monkeypatch)


@pytest.mark.parametrize("n", BOXES)
def test_shell_sums_are_the_definition(xp, n):
    given = spectra(n)
    found = shell_sums(*(xp.asarray(f) for f in given))
    np.testing.assert_allclose(found, direct_shell_sums(*given), rtol=1e-12)


@pytest.mark.parametrize("shape", [(7, 15, 12), (1, 3, 3), (9, 16, 17)])
def test_density_sums_are_the_definition(xp, shape):
    d = density(shape)
    np.testing.assert_allclose(density_sums(xp.asarray(d)), direct_density_sums(d), rtol=1e-12)


def test_moved_copies_are_those_of_scipy(xp):
    problem = moved_problem()
    volume, turns, offsets, window = problem
    found = to_host(sum_of_moved(xp.asarray(volume), turns, offsets, xp.asarray(window)))
    np.testing.assert_allclose(found, direct_moved(*problem), atol=2e-4)
    assert np.abs(found).max() > 1 and (found[window == 0] == 0).all()


def test_sums_have_the_same_bits_on_both_sides(monkeypatch):
    """Samples are added in the same order; the CPU's compiler and g++ round alike."""
    first, second = spectra(16)
    on_cpu = shell_sums(first, second), density_sums(density())
    cupy = install(monkeypatch)
    on_gpu = shell_sums(cupy.asarray(first), cupy.asarray(second)), density_sums(cupy.asarray(density()))
    for cpu, gpu in zip(on_cpu, on_gpu):
        np.testing.assert_allclose(cpu, gpu, rtol=1e-15)


@pytest.mark.parametrize("new", (10, 16, 22))
def test_a_map_is_resampled_there_as_here(monkeypatch, new):
    cupy, volume = install(monkeypatch), np.random.default_rng(4).standard_normal((16,) * 3).astype(np.float32)
    np.testing.assert_allclose(to_host(resample_map(cupy.asarray(volume), new)), resample_map(volume, new), atol=1e-5)


@pytest.mark.parametrize("sanitizer, workers", [("address", 1), ("undefined", 1), ("thread", 4)])
def test_nothing_is_read_or_written_out_of_bounds_or_at_once(monkeypatch, sanitizer, workers):
    cupy = install_sanitized(monkeypatch, sanitizer, workers)
    first, second = (cupy.asarray(f) for f in spectra(9))
    shell_sums(first, second)
    density_sums(cupy.asarray(density((4, 7, 8))))
    volume, turns, offsets, window = moved_problem(10, 3)
    sum_of_moved(cupy.asarray(volume), turns, offsets, cupy.asarray(window))
