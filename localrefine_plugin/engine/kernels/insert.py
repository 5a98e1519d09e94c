"""Adjoint of the slice: images added into a Fourier accumulator.

The accumulator (nx, nz, ny, 3) float32 holds Re N, Im N and D of the half x ≥ 0, zero frequency at
[0, nz // 2, ny // 2]. For each of m insertions (image ``owner``, rotation, shift t, weight γ, shift
variance v per axis) and each pixel k, with q = scale·Rᵀ(k, 0) and trilinear weights τ,

    N += τ γ Z(k) e^{+2πi k·t/N − ½ (2π/N)² v |k|²},      D += τ γ W(k),

the exponential being the average of the phase over a Gaussian shift (isotropic, so that it factors into
one table per axis). x is the slowest axis and is cut
into slabs that fit a core's cache; a slab is one thread's, and walks the insertions in order, so
that the sums have the same bits for any number of threads. Which part of an image's row falls into
a slab is solved, not searched. GPU twin: insert.cu, whose additions have no order; with a FixedPointSums for
accumulator they need none.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange

from . import cuda
from .device import array_module
from .fixed_point import FixedPointSums

Array = Any
SLAB_BYTES = 1 << 21  # measured: 2 MB is as good as any between 0.5 and 8


@njit(inline="always", fastmath=True)
def _add_plane(flat, base, row, wx, w0, w1, w2, w3, re, im, w):  # type: ignore[no-untyped-def]
    """Add (re, im, w) to the four cells of one x plane."""
    re, im, w = wx * re, wx * im, wx * w
    top = base + row
    flat[base] += w0 * re
    flat[base + 1] += w0 * im
    flat[base + 2] += w0 * w
    flat[base + 3] += w1 * re
    flat[base + 4] += w1 * im
    flat[base + 5] += w1 * w
    flat[top] += w2 * re
    flat[top + 1] += w2 * im
    flat[top + 2] += w2 * w
    flat[top + 3] += w3 * re
    flat[top + 4] += w3 * im
    flat[top + 5] += w3 * w


@njit(inline="always", fastmath=True)
def _column_range(offset, slope, low, high, first, last):  # type: ignore[no-untyped-def]
    """Columns kx in [first, last] for which low ≤ offset + slope·kx < high may hold (one to spare)."""
    if abs(slope) < 1e-6:
        if offset < low - 1 or offset > high + 1:
            return first, first - 1
        return first, last
    a, b = (low - offset) / slope, (high - offset) / slope
    if a > b:
        a, b = b, a
    start = first if a < first else (last + 1 if a > last + 1 else np.int32(a))
    stop = last if b > last else (first - 1 if b < first - 1 else np.int32(b) + 1)
    return start, min(stop, last)


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def _insert_cpu(flat, nx, nz, ny, rows, owner, gamma, phases_x, phases_y, last_column, z_in, w_in, edges, order):  # type: ignore[no-untyped-def]
    half_y, half_z = np.float32(ny // 2), np.float32(nz // 2)
    max_k = last_column.shape[0] // 2
    one = np.float32(1.0)
    for task in prange(order.shape[0]):
        slab = order[task]
        low, high = edges[slab], edges[slab + 1]
        below, above = np.float32(low - 1), np.float32(high)
        for i in range(rows.shape[0]):
            p, g = owner[i], gamma[i]
            for fold in range(2):  # the part with x > 0, then that with x < 0, folded
                sign = one if fold == 0 else -one
                ax, ay, az = sign * rows[i, 0, 0], sign * rows[i, 0, 1], sign * rows[i, 0, 2]
                bx, by, bz = sign * rows[i, 1, 0], sign * rows[i, 1, 1], sign * rows[i, 1, 2]
                for iy in range(2 * max_k + 1):
                    ky = np.float32(iy - max_k)
                    start, stop = _column_range(bx * ky, ax, below, above, 0 if iy >= max_k else 1, last_column[iy])
                    cy, sy = phases_y[i, 2 * iy], phases_y[i, 2 * iy + 1]
                    for k in range(start, stop + 1):
                        kx = np.float32(k)
                        x = ax * kx + bx * ky
                        if x < 0 or (x == 0 and fold == 1):
                            continue
                        x0 = np.int32(x)
                        if x0 + 1 < low or x0 >= high or x0 + 1 >= nx:
                            continue
                        y = ay * kx + by * ky + half_y
                        z = az * kx + bz * ky + half_z
                        y0, z0 = np.int32(y), np.int32(z)
                        if y < 0 or z < 0 or y0 >= ny - 1 or z0 >= nz - 1:
                            continue
                        fx, fy, fz = x - np.float32(x0), y - np.float32(y0), z - np.float32(z0)
                        cx, sx = phases_x[i, 2 * k], phases_x[i, 2 * k + 1]
                        cos, sin = cx * cy - sx * sy, cx * sy + sx * cy
                        zr, zi = z_in[p, iy, 2 * k], z_in[p, iy, 2 * k + 1]
                        re, im, w = g * (zr * cos - zi * sin), sign * g * (zr * sin + zi * cos), g * w_in[p, iy, k]
                        gy, gz = one - fy, one - fz
                        w0, w1, w2, w3 = gy * gz, fy * gz, gy * fz, fy * fz
                        base = 3 * ((np.intp(x0) * nz + z0) * ny + y0)
                        if x0 >= low:
                            _add_plane(flat, base, 3 * ny, one - fx, w0, w1, w2, w3, re, im, w)
                        if x0 + 1 < high:
                            _add_plane(flat, base + 3 * nz * ny, 3 * ny, fx, w0, w1, w2, w3, re, im, w)


def dealt(slabs: int, threads: int) -> np.ndarray:
    """The slabs in the order that gives each of the threads, which take equal runs of it, every so many-th one: slabs
    near x = 0, through which all slices go, have the most to do."""
    return np.argsort(np.arange(slabs) % threads, kind="stable").astype(np.int32)


def insert_slices(accumulator: Array, rows: Array, owner: Array, gamma: Array, shift_px: Array, shift_variance: Array,
                  last_column: Array, image: Array, weight: Array, box_size: int) -> None:
    """Add m insertions to ``accumulator`` in place.

    rows (m, 2, 3) float32; owner (m,) int; gamma (m,); shift_px (m, 2); shift_variance (m,) px²;
    image Z (n, 2M + 1, M + 1) complex64 and weight W (same shape) float32 hold rows ky = −M … M and
    columns kx = 0 … M; ``last_column`` (2M + 1,) int32 ends each row at the disc |k| ≤ M.
    """
    if isinstance(accumulator, FixedPointSums) or array_module(accumulator) is not np:
        return cuda.insert_slices(accumulator, rows, owner, gamma, shift_px, shift_variance, last_column, image, weight,
                                  box_size)
    max_k = len(last_column) // 2
    k = np.arange(-max_k, max_k + 1) * (2 * np.pi / box_size)
    phases = np.exp(1j * k * shift_px[:, :, None] - 0.5 * shift_variance[:, None, None] * k * k).astype(np.complex64)
    nx, nz, ny, _ = accumulator.shape
    thickness = max(2, SLAB_BYTES // (12 * nz * ny))
    edges = np.append(np.arange(0, nx, thickness), nx).astype(np.int32)
    phases_x = np.ascontiguousarray(phases[:, 0, max_k:]).view(np.float32)
    phases_y = np.ascontiguousarray(phases[:, 1]).view(np.float32)
    _insert_cpu(accumulator.reshape(-1), nx, nz, ny, rows, owner, gamma.astype(np.float32), phases_x, phases_y,
                last_column, image.view(np.float32), weight, edges, dealt(len(edges) - 1, get_num_threads()))
