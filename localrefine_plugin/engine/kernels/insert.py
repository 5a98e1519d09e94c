"""Adjoint of the slice: images added into a Fourier accumulator.

The accumulator (nx, nz, ny, 3) float32 holds Re N, Im N and D of the half x ≥ 0, zero frequency at
[0, nz // 2, ny // 2]. For each of m insertions (image ``owner``, rotation, shift t, weight γ, shift
variance v per axis) and each pixel k, with q = scale·Rᵀ(k, 0) and trilinear weights τ,

    N += τ γ Z(k) e^{+2πi k·t/N − ½ (2π/N)² v |k|²},      D += τ γ W(k),

the exponential being the average of the phase over a Gaussian shift (isotropic, so that it factors into
one table per axis).

x is the slowest axis and is cut into slabs. A pixel belongs to the slab of its lower plane; the upper one may be the
first plane of the next slab, so that every other slab is filled at a time, one thread each, and then those between.
A slab walks the insertions in order: the sums have the same bits for any number of threads. Which columns of an
image's row fall into a slab is solved, not searched. They are gathered, eight floats at a time, until some hundred
pixels lie side by side for arithmetic in vectors, and then added to the cells: two neighbours along y at once.
GPU twin: insert.cu, whose additions have no order. With a FixedPointSums for accumulator they need none: then the sums
have the same bits for any division of the insertions among workers, too.
"""
from __future__ import annotations

from typing import Any, Tuple

import numpy as np
from numba import get_num_threads, njit, prange

from . import cuda
from .device import array_module
from .fixed_point import FixedPointSums
from .lanes import LANES, add_two_cells, copy_eight, fetch, fill_eight, split_eight

Array = Any
SLAB_BYTES = 1 << 22  # measured: 2 MB takes a tenth to a quarter longer, 8 MB as long
FEWEST_SLABS = 12  # of equal work: six threads have one each at a time
THINNEST_SLAB = 2  # planes at x = 0: fewer, and the rows of an image are cut into too short pieces
CHUNK = 256  # pixels side by side: the rows below fill half of the L1 cache
STRIDE = CHUNK + 2 * LANES
AHEAD = 8  # pixels whose cells are asked for; measured: saves 4 % at box 96 and 12 % at 192, 16 and 32 as much
# rows of the working array, each of STRIDE floats; the first three end as fractions, Z and W as what is added
KX, KY, COS_Y, SIN_Y, COS_X, SIN_X, RE, IM, W = range(0, 9 * STRIDE, STRIDE)
# Nothing that changes a sum: a process that compiles the kernel and one that loads it from the cache optimise it
# differently, and with all of fast-math their results differed in the last bits.
EXACT = {"nnan", "ninf", "nsz"}
FLATTEST = np.float32(1e-6)  # change of x per column that is told from none
FAR = np.float32(1e6)  # columns


@njit
def _columns(starts, counts, a, b, low, high, last_column):  # type: ignore[no-untyped-def]
    """For each row ky, the columns kx with low ≤ a·kx + b·ky < high: the first, and how many (≤ 0: none).

    Not fast-math: slabs that meet must find the same column at their common edge, or a pixel would be lost or added
    twice. Where rounding puts a pixel on the other side of an edge it still lies on the edge.
    """
    max_k = last_column.shape[0] // 2
    inverse, falls = np.float32(1.0) / max(abs(a), FLATTEST), a < 0
    if falls:
        inverse, low, high = -inverse, high, low
    for iy in range(2 * max_k + 1):
        offset = b * np.float32(iy - max_k)
        first, end = max(min((low - offset) * inverse, FAR), -FAR), max(min((high - offset) * inverse, FAR), -FAR)
        if falls:  # an edge belongs to what is above it: the zero frequency to x ≥ 0
            first, end = np.floor(first) + np.float32(1.0), np.floor(end) + np.float32(1.0)
        first, end = np.int32(np.ceil(first)), np.int32(np.ceil(end))
        # the column kx = 0 holds Friedel pairs: its half ky ≥ 0 is enough
        first = max(first, np.int32(0 if iy >= max_k else 1))
        starts[iy] = first
        counts[iy] = min(end, last_column[iy] + np.int32(1)) - first


@njit(fastmath=EXACT)
def _prepare(work, cells, n, rows, sign, gamma, low, last_x, ny, nz):  # type: ignore[no-untyped-def]
    """Of n gathered pixels: cell (−1 outside) from the slab's first plane, fractions, and what is to be added."""
    ax, ay, az = sign * rows[0, 0], sign * rows[0, 1], sign * rows[0, 2]
    bx, by, bz = sign * rows[1, 0], sign * rows[1, 1], sign * rows[1, 2]
    half_y, half_z = np.float32(ny // 2), np.float32(nz // 2)
    top_y, top_z, zero, one = np.float32(ny - 1), np.float32(nz - 1), np.float32(0.0), np.float32(1.0)
    plane, row = np.int32(nz * ny), np.int32(ny)
    for j in range(n):
        kx, ky = work[KX + j], work[KY + j]
        x = ax * kx + bx * ky - low
        y = ay * kx + by * ky + half_y
        z = az * kx + bz * ky + half_z
        x0, y0, z0 = np.int32(min(max(x, zero), last_x)), np.int32(y), np.int32(z)
        # two floats after the last cell are written too: the corner, far outside any sphere, would reach the next plane
        inside = (y >= zero) & (z >= zero) & (y < top_y) & (z < top_z) & ((y < top_y - one) | (z < top_z - one))
        cells[j] = x0 * plane + z0 * row + y0 if inside else np.int32(-1)
        cx, sx, cy, sy = work[COS_X + j], work[SIN_X + j], work[COS_Y + j], work[SIN_Y + j]
        cos, sin = cx * cy - sx * sy, cx * sy + sx * cy
        re, im = work[RE + j], work[IM + j]
        work[RE + j] = re * cos - im * sin
        work[IM + j] = sign * (re * sin + im * cos)
        work[W + j] = gamma * work[W + j]
        work[KX + j] = x - np.float32(x0)
        work[KY + j] = y - np.float32(y0)
        work[COS_Y + j] = z - np.float32(z0)


@njit(fastmath=EXACT)
def _add(flat, origin, work, cells, n, to_z, to_x):  # type: ignore[no-untyped-def]
    """Add n prepared pixels to their eight cells each."""
    one = np.float32(1.0)
    for j in range(n):
        ahead = origin + 3 * np.intp(cells[min(j + AHEAD, n - 1)])
        fetch(flat, ahead)
        fetch(flat, ahead + to_z)
        fetch(flat, ahead + to_x)
        fetch(flat, ahead + to_x + to_z)
        if cells[j] < 0:
            continue
        fx, fy, fz = work[KX + j], work[KY + j], work[COS_Y + j]
        re, im, w = work[RE + j], work[IM + j], work[W + j]
        gx, gy, gz = one - fx, one - fy, one - fz
        at = origin + 3 * np.intp(cells[j])
        add_two_cells(flat, at, gx * gz, gy, fy, re, im, w)
        add_two_cells(flat, at + to_z, gx * fz, gy, fy, re, im, w)
        add_two_cells(flat, at + to_x, fx * gz, gy, fy, re, im, w)
        add_two_cells(flat, at + to_x + to_z, fx * fz, gy, fy, re, im, w)


@njit(fastmath=EXACT)
def _insert_part(flat, nz, ny, low, high, rows, sign, gamma, phases_x, phases_y,  # type: ignore[no-untyped-def]
                 last_column, frequencies, image, weight, first_pixel, starts, counts, work, cells):
    """Add of one image what falls on planes low … high at x ≥ 0 (``sign`` 1), or folded from x ≤ 0 (−1).

    ``gamma`` is what W is multiplied by; what Z is, ``phases_y`` hold.
    """
    max_k = last_column.shape[0] // 2
    to_z, to_x = 3 * ny, 3 * nz * ny
    origin, last_x = to_x * np.intp(low), np.float32(high - 1 - low)
    if sign > 0:
        _columns(starts, counts, rows[0, 0], rows[1, 0], np.float32(low), np.float32(high), last_column)
    else:
        _columns(starts, counts, rows[0, 0], rows[1, 0], np.float32(-high), np.float32(-low), last_column)
    n = 0
    for iy in range(2 * max_k + 1):
        start, count = np.intp(starts[iy]), np.intp(counts[iy])
        for k in range(start, start + count, LANES):  # lanes beyond the count are overwritten by what follows
            at = first_pixel + iy * (max_k + 1) + k
            copy_eight(work, KX + n, frequencies, k)
            fill_eight(work, KY + n, np.float32(iy - max_k))
            copy_eight(work, COS_X + n, phases_x[0], k)
            copy_eight(work, SIN_X + n, phases_x[1], k)
            fill_eight(work, COS_Y + n, phases_y[0, iy])
            fill_eight(work, SIN_Y + n, phases_y[1, iy])
            split_eight(work, RE + n, IM + n, image, 2 * at)
            copy_eight(work, W + n, weight, at)
            n += min(LANES, start + count - k)  # type: ignore[operator]
            if n > CHUNK:
                _prepare(work, cells, n, rows, sign, gamma, np.float32(low), last_x, ny, nz)
                _add(flat, origin, work, cells, n, to_z, to_x)
                n = 0
    _prepare(work, cells, n, rows, sign, gamma, np.float32(low), last_x, ny, nz)
    _add(flat, origin, work, cells, n, to_z, to_x)


@njit(parallel=True, cache=True, nogil=True)
def _insert_cpu(flat, nz, ny, rows, owner, gamma, phases_x, phases_y, last_column,  # type: ignore[no-untyped-def]
                frequencies, image, weight, edges, order):
    height = last_column.shape[0]
    pixels = height * (height // 2 + 1)
    for task in prange(order.shape[0]):
        low, high = edges[order[task]], edges[order[task] + 1]
        starts, counts = np.empty(height, np.int32), np.empty(height, np.int32)
        work, cells = np.empty(9 * STRIDE, np.float32), np.empty(STRIDE, np.int32)
        for i in range(rows.shape[0]):
            for fold in range(2):  # the part with x > 0, then that with x < 0, folded
                _insert_part(flat, nz, ny, low, high, rows[i], np.float32(1 - 2 * fold), gamma[i], phases_x[i],
                             phases_y[i], last_column, frequencies, image, weight, owner[i] * pixels, starts, counts,
                             work, cells)


def slab_edges(accumulator: np.ndarray) -> np.ndarray:
    """Planes (slabs + 1,) int32 at which the x axis is cut.

    Slices of all directions, cut off at a sphere of radius X, have a share of (1 − x/X)² of their pixels beyond x:
    slabs of equal work grow towards the surface, where the sphere leaves less and less of their planes.
    """
    nx = len(accumulator)
    most = (nx - 1) // (2 * THINNEST_SLAB)
    count = max(1, min(max(FEWEST_SLABS, -(-accumulator.nbytes // SLAB_BYTES)), most))
    return np.unique(np.rint((nx - 1) * (1 - np.sqrt(1 - np.arange(count + 1) / count)))).astype(np.int32)


def in_turns(slabs: np.ndarray, threads: int) -> np.ndarray:
    """The slabs in the order that gives each of the threads, which take equal runs of it, every so many-th one."""
    return slabs[np.argsort(np.arange(len(slabs)) % threads, kind="stable")].astype(np.int32)


def phase_tables(shift_px: np.ndarray, shift_variance: np.ndarray, max_k: int,
                 box_size: int) -> Tuple[np.ndarray, np.ndarray]:
    """e^{2πi k t/N − ½ (2π/N)² v k²}, real and imaginary part, float32: for x (m, 2, M + 1 + LANES), k = 0 … M and then
    zeros; for y (m, 2, 2M + 1), k = −M … M.

    Whole turns are taken off in float64, so that float32 is enough for the rest.
    """
    k = np.arange(-max_k, max_k + 1) / box_size
    turns = shift_px[:, :, None] * k
    angle = (2 * np.pi * (turns - np.rint(turns))).astype(np.float32)
    damping = np.exp((-2 * np.pi ** 2 * shift_variance[:, None] * k * k).astype(np.float32))
    x = np.zeros((len(angle), 2, max_k + 1 + LANES), np.float32)
    y = np.empty((len(angle), 2, 2 * max_k + 1), np.float32)
    x[:, 0, :max_k + 1] = np.cos(angle[:, 0, max_k:]) * damping[:, max_k:]
    x[:, 1, :max_k + 1] = np.sin(angle[:, 0, max_k:]) * damping[:, max_k:]
    y[:, 0] = np.cos(angle[:, 1]) * damping
    y[:, 1] = np.sin(angle[:, 1]) * damping
    return x, y


def flat_with_lanes(image: np.ndarray, last_column: np.ndarray) -> np.ndarray:
    """All images as one row of float32, eight pixels longer where those of the last row would be read beyond it."""
    flat = image.reshape(-1)
    max_k = len(last_column) // 2
    if last_column[-1] + LANES > max_k + 1:  # small boxes only
        flat = np.append(flat, np.zeros(LANES, flat.dtype))
    return flat.view(np.float32)


def insert_slices(accumulator: Array, rows: Array, owner: Array, gamma: Array, shift_px: Array, shift_variance: Array,
                  last_column: Array, image: Array, weight: Array, box_size: int) -> None:
    """Add m insertions to ``accumulator`` in place.

    rows (m, 2, 3) float32; owner (m,) int; gamma (m,); shift_px (m, 2); shift_variance (m,) px²;
    image Z (n, 2M + 1, M + 1) complex64 and weight W (same shape) float32 hold rows ky = −M … M and
    columns kx = 0 … M; ``last_column`` (2M + 1,) int32 ends each row at the disc |k| ≤ M.
    """
    signal_scale, weight_scale, sums = np.float32(1), np.float32(1), accumulator
    if isinstance(accumulator, FixedPointSums):
        accumulator.make_room(image, weight, gamma)
        (signal_scale, weight_scale), sums = accumulator.scales, accumulator.sums
    if array_module(sums) is not np:
        return cuda.insert_slices(sums, (signal_scale, weight_scale), rows, owner, gamma, shift_px, shift_variance,
                                  last_column, image, weight, box_size)
    nx, nz, ny, _ = sums.shape
    max_k = len(last_column) // 2
    gamma = gamma.astype(np.float32)
    phases_x, phases_y = phase_tables(shift_px, shift_variance, max_k, box_size)
    phases_y *= (signal_scale * gamma)[:, None, None]
    gamma = weight_scale * gamma
    frequencies = np.arange(max_k + 1 + LANES, dtype=np.float32)
    image, weight = flat_with_lanes(image, last_column), flat_with_lanes(weight, last_column)
    edges = slab_edges(sums)
    for parity in range(2):
        order = in_turns(np.arange(parity, len(edges) - 1, 2), get_num_threads())
        _insert_cpu(sums.reshape(-1), nz, ny, rows, owner, gamma, phases_x, phases_y, last_column, frequencies,
                    image, weight, edges, order)
