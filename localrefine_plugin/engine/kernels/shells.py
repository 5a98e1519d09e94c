"""Sums over shells: of two Fourier half-spectra in one pass, and of the density of an accumulator.

|k|² is an integer, so shell s = round(|k|) holds |k|² from s² − s + 1 to s² + s, and along a row the shells come one
after the other. Every plane is summed by itself and the planes are added in order: the sums have the same bits for any
number of threads. GPU twins: shells.cu.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from . import cuda
from .device import array_module, to_host

Array = Any


@njit(parallel=True, cache=True, nogil=True)
def _shell_sums_cpu(a, b, n, out):  # type: ignore[no-untyped-def]
    last, columns = out.shape[1] - 1, n // 2 + 1
    for z in prange(n):
        kz = z if 2 * z < n else n - z
        for y in range(n):
            ky = y if 2 * y < n else n - y
            base = kz * kz + ky * ky
            shell = np.int64(np.rint(np.sqrt(base)))
            power_a = power_b = cross = np.float64(0.0)
            for x in range(columns):
                if shell > last:
                    break
                weight = 1.0 if x == 0 or 2 * x == n else 2.0
                re_a, im_a = np.float64(a[z, y, 2 * x]), np.float64(a[z, y, 2 * x + 1])
                re_b, im_b = np.float64(b[z, y, 2 * x]), np.float64(b[z, y, 2 * x + 1])
                power_a += weight * (re_a * re_a + im_a * im_a)
                power_b += weight * (re_b * re_b + im_b * im_b)
                cross += weight * (re_a * re_b + im_a * im_b)
                if base + (x + 1) * (x + 1) > shell * (shell + 1) or x + 1 == columns:
                    out[z, shell, 0] += power_a
                    out[z, shell, 1] += power_b
                    out[z, shell, 2] += cross
                    power_a = power_b = cross = np.float64(0.0)
                    shell += 1


def shell_sums(first: Array, second: Array) -> np.ndarray:
    """Σ|F₁|², Σ|F₂|² and Σ Re F₁ F₂* over the shells 0 … N // 2 of the full spectrum: (3, N // 2 + 1) float64, host's.

    first, second : (N, N, N // 2 + 1) complex64.
    """
    n = len(first)
    if array_module(first) is not np:
        by_plane = cuda.shell_sums(first, second)
    else:
        by_plane = np.zeros((n, n // 2 + 1, 3))
        _shell_sums_cpu(*(np.ascontiguousarray(f, np.complex64).view(np.float32) for f in (first, second)), n, by_plane)
    sums: np.ndarray = to_host(by_plane.sum(axis=0)).T
    return sums


@njit(parallel=True, cache=True, nogil=True)
def _density_sums_cpu(density, out):  # type: ignore[no-untyped-def]
    nx, nz, ny = density.shape
    for x in prange(nx):
        for z in range(nz):
            base = x * x + (z - nz // 2) * (z - nz // 2)
            for side in range(2):  # y from 0 up, then from −1 down
                y, step = (ny // 2, 1) if side == 0 else (ny // 2 - 1, -1)
                shell = np.int64(np.rint(np.sqrt(base + side)))
                total = np.float64(0.0)
                while 0 <= y < ny:
                    total += np.float64(density[x, z, y])
                    y += step
                    if base + (y - ny // 2) * (y - ny // 2) > shell * (shell + 1) or y < 0 or y == ny:
                        out[x, shell] += total
                        total = np.float64(0.0)
                        shell += 1


def density_sums(density: Array) -> np.ndarray:
    """Σ D over the shells of D (nx, nz, ny) float32 of an accumulator, zero frequency at [0, nz // 2, ny // 2]: (S,)
    float64, host's, S the last shell and one."""
    nx, nz, ny = density.shape
    last = int(np.rint(np.sqrt((nx - 1) ** 2 + (nz // 2) ** 2 + (ny // 2) ** 2)))
    xp = array_module(density)
    if xp is not np:
        by_plane = cuda.density_sums(xp.ascontiguousarray(density), last)
    else:
        by_plane = np.zeros((nx, last + 1))
        _density_sums_cpu(density, by_plane)
    sums: np.ndarray = to_host(by_plane.sum(axis=0))
    return sums
