"""Slices of a Fourier volume taken out of images, in one pass over their pixels.

With Z = C X / σ², W = C² / σ² and S = α e^{−2πi k·t/N} P, P the slice (slices.py) and α a grey scale, images become
X − C S:

    Z ← Z − W S,        |X|² ← |X|² + σ² (W |S|² − 2 Re(conj(Z) S)),

at every pixel of the half-plane with |k| ≤ M but the mean of the image. The GPU does the same with whole arrays.
"""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from .device import array_module
from .slices import _locate, _trilinear, extract_slices

Array = Any


class Images(NamedTuple):
    """Z (n, 2M + 1, M + 1) complex64, W, |X|² and 1 / σ², float32, of the half-planes of n images."""

    signal: Array
    weight: Array
    power: Array
    inverse_noise: Array


class Pixels(NamedTuple):
    """Which pixels of the half-planes. last : (2M + 1,) int32, the last column of each row (pixels.last_column); and
    the same as a list: row and column (p,) int64, and their wave vectors kx, ky (p,) float32."""

    last: Array
    row: Array
    column: Array
    kx: Array
    ky: Array

    @classmethod
    def to(cls, last: np.ndarray) -> "Pixels":
        """On the host."""
        most = len(last) // 2
        row, column = np.nonzero(np.arange(most + 1) <= last[:, None])
        seen = (row != most) | (column != 0)
        row, column = row[seen], column[seen]
        return cls(last, row, column, column.astype(np.float32), (row - most).astype(np.float32))


def take_out(ft: Array, rows: Array, factors: Array, pixels: Pixels, images: Images) -> None:
    """Write into the signal and power of ``images`` what is left without the slices of ``ft``.

    rows : (n, 2, 3) float32, as slices.py has them.  factors : (n, 2, 2M + 1) complex64, e^{−2πi k t/N} for
    k = −M … M in x (times α) and in y.
    """
    if array_module(ft) is not np:
        _take_out_arrays(ft, rows, factors, pixels, images)
        return
    parts = [a.view(np.float32) for a in (ft.reshape(-1), factors, images.signal)]
    _take_out_cpu(parts[0], ft.shape, rows, *parts[1:], pixels.last, images.weight, images.power, images.inverse_noise)


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def _take_out_cpu(v, shape, rows, factors, signal, last, weight, power, inverse_noise):  # type: ignore[no-untyped-def]
    """Complex numbers as pairs of floats; a row is gathered first, so that the rest is computed in vectors."""
    nz, ny, nx = shape
    sy, sz, most = 2 * nx, 2 * nx * ny, last.shape[0] // 2
    for i in prange(rows.shape[0]):
        a, along_x = rows[i], factors[i, 0, 2 * most:]
        real, imaginary = np.empty(most + 1, np.float32), np.empty(most + 1, np.float32)
        for row in range(last.shape[0]):
            ky, end = np.float32(row - most), last[row] + 1
            for c in range(end):
                x, y, z, x0, y0, z0, fx, fy, fz, sign, inside = _locate(a, np.float32(c), ky, ny // 2, nz // 2, nx)
                re, im = np.float32(0.0), np.float32(0.0)
                if inside:
                    re, im = _trilinear(v, 2 * x0 + sy * y0 + sz * z0, sy, sz, fx, fy, fz)
                real[c], imaginary[c] = re, sign * im
            if row == most:
                real[0], imaginary[0] = np.float32(0.0), np.float32(0.0)
            f, g = factors[i, 1, 2 * row], factors[i, 1, 2 * row + 1]
            z_row, w_row, p_row, n_row = signal[i, row], weight[i, row], power[i, row], inverse_noise[i, row]
            for c in range(end):
                u, t = f * along_x[2 * c] - g * along_x[2 * c + 1], f * along_x[2 * c + 1] + g * along_x[2 * c]
                re, im = real[c] * u - imaginary[c] * t, real[c] * t + imaginary[c] * u
                cross = z_row[2 * c] * re + z_row[2 * c + 1] * im
                p_row[c] += (w_row[c] * (re * re + im * im) - np.float32(2) * cross) / n_row[c]
                z_row[2 * c] -= w_row[c] * re
                z_row[2 * c + 1] -= w_row[c] * im


def _take_out_arrays(ft: Array, rows: Array, factors: Array, pixels: Pixels, images: Images) -> None:
    row, column = pixels.row, pixels.column
    plane = extract_slices(ft, rows, pixels.kx, pixels.ky)
    plane *= factors[:, 0].take(column + len(pixels.last) // 2, axis=1) * factors[:, 1].take(row, axis=1)
    of_weight = images.weight[:, row, column] * plane
    left = images.signal[:, row, column] - of_weight
    # |X − CS|² is |X|² less Re(conj(S) (Z + Z̃)) σ²
    images.power[:, row, column] -= (plane.conj() * (images.signal[:, row, column] + left)
                                     ).real / images.inverse_noise[:, row, column]
    images.signal[:, row, column] = left
