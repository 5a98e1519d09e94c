"""Launchers of the .cu files: every array and scalar that a kernel gets is checked here.

The functions are the CUDA twins of those of the same names in slices.py, insert.py, fixed_point.py, shells.py,
moved.py, distance.py and cones.py, which call them when their arrays are CuPy's. poses.py has the launchers of
newton.cu and posterior.cu.
"""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, List, Optional, Tuple

import numpy as np

from .device import array_module, working_bytes

Array = Any
BLOCK = 128  # threads; also the lanes that share the pixels of a sum
GRADIENT_SUMS = 7
SUMS = 22
IMAGES = 128  # that a thread of exact_sums adds up
SOURCES = ("slices.cu", "insert.cu", "sums.cu", "shells.cu", "moved.cu", "newton.cu", "posterior.cu", "distance.cu",
           "cones.cu")
INCLUDE = '#include "poses.cuh"\n'


def source_text(source: str) -> str:
    """The text of a .cu file of this folder, with what it includes in it."""
    text = (Path(__file__).parent / source).read_text(encoding="ascii")
    return text.replace(INCLUDE, source_text("poses.cuh")) if INCLUDE in text else text


@lru_cache(maxsize=None)
def kernel(xp: Any, source: str, name: str) -> Any:
    """The kernel of a .cu file; compiled by NVRTC at its first launch, cached on disk by CuPy."""
    return xp.RawModule(code=source_text(source)).get_function(name)


def checked(xp: Any, name: str, array: Array, dtype: Any, shape: Tuple[int, ...]) -> Array:
    """The array, if it is what a kernel will take it for."""
    if not isinstance(array, xp.ndarray):
        raise TypeError(f"{name} is not on the device but a {type(array).__module__}.{type(array).__name__}")
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        gaps = "" if array.flags.c_contiguous else " not contiguous"
        raise TypeError(f"{name} is {array.dtype} {array.shape}{gaps}, not {np.dtype(dtype)} {shape}")
    return array


def small(xp: Any, name: str, array: Array, dtype: Any, shape: Tuple[int, ...]) -> Array:
    """A small array, cast to what the kernel takes."""
    if array.dtype != dtype:
        array = array.astype(dtype)
    return checked(xp, name, array if array.flags.c_contiguous else xp.ascontiguousarray(array), dtype, shape)


def blocks(count: int) -> int:
    return -(-count // BLOCK)


def volume(xp: Any, ft: Array) -> List[Any]:
    return [checked(xp, "ft", ft, np.complex64, ft.shape), *(np.int32(n) for n in ft.shape)]


def frequencies(xp: Any, kx: Array, ky: Array) -> List[Array]:
    return [checked(xp, "kx", kx, np.float32, (len(kx),)), checked(xp, "ky", ky, np.float32, (len(kx),))]


def extract_slices(ft: Array, rows: Array, kx: Array, ky: Array) -> Array:
    """(m, K) complex64; see slices.extract_slices."""
    xp = array_module(ft)
    m, n_k = len(rows), len(kx)
    out = xp.empty((m, n_k), np.complex64)
    if m and n_k:
        arguments = [*volume(xp, ft), small(xp, "rows", rows, np.float32, (m, 2, 3)), *frequencies(xp, kx, ky),
                     np.int32(n_k), out]
        kernel(xp, "slices.cu", "extract_slices")((m, blocks(n_k)), (BLOCK,), tuple(arguments))
    return out


def score_grid(ft: Array, rows: Array, kx: Array, ky: Array, matched: Array, weight: Array) -> Array:
    """(n, G, S) float32: slices, then one real matrix product per particle; see slices.score_grid."""
    xp = array_module(ft)
    n, n_rot, n_shift, n_k = len(rows), rows.shape[1], matched.shape[1], len(kx)
    rows = small(xp, "rows", rows, np.float32, (n, n_rot, 2, 3))
    checked(xp, "matched", matched, np.complex64, (n, n_shift, n_k))
    checked(xp, "weight", weight, np.float32, (n, n_k))
    out = xp.empty((n, n_rot, n_shift), np.float32)
    chunk = max(1, working_bytes(ft) // (8 * n_rot * (n_k + BLOCK)))
    for start in range(0, n, chunk):
        part = slice(start, min(start + chunk, n))
        slices = xp.empty((part.stop - start, n_rot, n_k), np.complex64)
        power = xp.empty((part.stop - start, n_rot, BLOCK), np.float32)
        arguments = [*volume(xp, ft), rows[part], *frequencies(xp, kx, ky), np.int32(n_k), weight[part],
                     np.int32(n_rot), slices, power]
        kernel(xp, "slices.cu", "slices_and_power")((len(slices) * n_rot, 1), (BLOCK,), tuple(arguments))
        products = xp.matmul(slices.view(np.float32), xp.swapaxes(matched[part].view(np.float32), 1, 2))
        out[part] = products - np.float32(0.5) * power.sum(axis=2)[:, :, None]
    return out


def gauss_newton_sums(ft: Array, rows: Array, shift_px: Array, owner: Array, kx: Array, ky: Array, n_pixels: int,
                      matched: Array, weight: Array, box_size: int, curvature: bool) -> Array:
    """The sums (m, 22) float64 of slices.gauss_newton_sums; those of the curvature are zero unless asked for."""
    xp, m = array_module(ft), len(rows)
    sums = xp.zeros((m, SUMS), np.float64)
    active = None if curvature else xp.ones(m, np.int32)
    found = pose_sums(ft, rows, shift_px, owner, kx, ky, n_pixels, matched, weight, box_size, active)
    sums[:, :len(found)] = found.T
    return sums


def pose_sums(ft: Array, rows: Array, shift_px: Array, owner: Array, kx: Array, ky: Array, n_pixels: int,
              matched: Array, weight: Array, box_size: int, active: Optional[Array]) -> Array:
    """The sums (7, m) float64 of the gradient, only of modes that are ``active`` (m,) int32; None: (22, m), with those
    of the curvature.

    A lane's sums are float32 of at most n_pixels / BLOCK terms; lanes are added in float64, in a fixed order.
    """
    xp = array_module(ft)
    m, n, n_k = len(rows), len(matched), matched.shape[1]
    if not 0 <= n_pixels <= min(n_k, len(kx)):
        raise ValueError(f"{n_pixels} pixels of {min(n_k, len(kx))}")
    name, count = ("curvature_sums", SUMS) if active is None else ("gradient_sums", GRADIENT_SUMS)
    lanes = xp.empty((count, m, BLOCK), np.float32)
    arguments = [
        *volume(xp, ft), small(xp, "rows", rows, np.float32, (m, 2, 3)),
        small(xp, "shift", shift_px, np.float32, (m, 2)), small(xp, "owner", owner, np.int32, (m,)),
        *frequencies(xp, kx, ky), np.int32(n_pixels), np.int32(n_k),
        checked(xp, "matched", matched, np.complex64, (n, n_k)),
        checked(xp, "weight", weight, np.float32, (n, n_k)), np.float32(2 / box_size)]
    if active is not None:
        arguments.append(checked(xp, "active", active, np.int32, (m,)))
    if m:
        kernel(xp, "slices.cu", name)((m, 1), (BLOCK,), (*arguments, lanes))
    return lanes.sum(axis=2, dtype=np.float64)


def insert_slices(sums: Array, scales: Tuple[np.float32, np.float32], rows: Array, owner: Array, gamma: Array,
                  shift_px: Array, shift_variance: Array, last_column: Array, image: Array, weight: Array,
                  box_size: int) -> None:
    """Add to ``sums`` in place; see insert.insert_slices. Additions are atomic: the last bits are free where the sums
    are float32; those of int64 are of terms times ``scales``, of N and of D."""
    xp = array_module(sums)
    m, n, height = len(rows), len(image), len(last_column)
    half_plane = (n, height, height // 2 + 1)
    nx, nz, ny, _ = sums.shape
    if m == 0:
        return
    arguments = [
        small(xp, "rows", rows, np.float32, (m, 2, 3)), small(xp, "owner", owner, np.int32, (m,)),
        small(xp, "gamma", gamma, np.float32, (m,)), small(xp, "shift", shift_px, np.float32, (m, 2)),
        small(xp, "shift_variance", shift_variance, np.float32, (m,)),
        checked(xp, "last_column", last_column, np.int32, (height,)),
        checked(xp, "image", image, np.complex64, half_plane), checked(xp, "weight", weight, np.float32, half_plane),
        np.int32(height // 2), np.float32(2 / box_size), np.int32(nx), np.int32(nz), np.int32(ny)]
    fixed = sums.dtype == np.int64
    if fixed:
        arguments += [*scales, checked(xp, "sums", sums, np.int64, (nx, nz, ny, 3)).view(np.uint64)]
    else:
        arguments.append(checked(xp, "accumulator", sums, np.float32, (nx, nz, ny, 3)))
    name = "insert_slices_fixed" if fixed else "insert_slices"
    kernel(xp, "insert.cu", name)((m, blocks(height * (height // 2 + 1))), (BLOCK,), tuple(arguments))


def exact_sums(values: Array, scale: Array, factor: Array) -> Array:
    """The sums (P,) int64; see fixed_point.exact_sums."""
    xp, (n, count) = array_module(values), values.shape
    out = xp.zeros(count, np.uint64)
    arguments = (checked(xp, "values", values, np.float32, (n, count)),
                 checked(xp, "scale", scale, np.float64, (count,)), checked(xp, "factor", factor, np.float32, (n,)),
                 np.int32(n), np.int32(IMAGES), np.int32(count), out)
    kernel(xp, "sums.cu", "exact_sums")((blocks(count), -(-n // IMAGES)), (BLOCK,), arguments)
    return out.view(np.int64)


def shell_sums(first: Array, second: Array) -> Array:
    """The sums (N, N // 2 + 1, 3) float64 of every plane; see shells.shell_sums."""
    xp, n = array_module(first), len(first)
    last, half_spectrum = n // 2, (n, n, n // 2 + 1)
    out = xp.empty((n, last + 1, 3), np.float64)
    arguments = (checked(xp, "first", first, np.complex64, half_spectrum),
                 checked(xp, "second", second, np.complex64, half_spectrum), np.int32(n), np.int32(last), out)
    kernel(xp, "shells.cu", "shell_sums")((n, blocks(last + 1)), (BLOCK,), arguments)
    return out


def density_sums(density: Array, last: int) -> Array:
    """The sums (nx, last + 1) float64 of every plane; see shells.density_sums."""
    xp, (nx, nz, ny) = array_module(density), density.shape
    out = xp.empty((nx, last + 1), np.float64)
    arguments = (checked(xp, "density", density, np.float32, density.shape), np.int32(nz), np.int32(ny),
                 np.int32(last), out)
    kernel(xp, "shells.cu", "density_sums")((nx, blocks(last + 1)), (BLOCK,), arguments)
    return out


def sum_of_moved(volume_on_device: Array, turns: np.ndarray, offsets: np.ndarray, window: Array) -> Array:
    """(nz, ny, nx) float32; see moved.sum_of_moved."""
    xp, shape, n = array_module(volume_on_device), volume_on_device.shape, len(turns)
    nz, ny, nx = shape
    out = xp.empty(shape, np.float32)
    arguments = (checked(xp, "volume", volume_on_device, np.float32, shape), *(np.int32(edge) for edge in shape),
                 checked(xp, "turns", xp.asarray(turns), np.float32, (n, 3, 3)),
                 checked(xp, "offsets", xp.asarray(offsets), np.float32, (n, 3)), np.int32(n),
                 checked(xp, "window", window, np.float32, shape), out)
    kernel(xp, "moved.cu", "sum_of_moved")((nz * ny, blocks(nx)), (BLOCK,), arguments)
    return out


def nearest_along(squares: Array, axis: int, reach: int) -> Array:
    """(nz, ny, nx) int32: the minimum along an axis of squares plus the square of the way; see distance.py."""
    xp, shape = array_module(squares), squares.shape
    out = xp.empty(shape, np.int32)
    arguments = (checked(xp, "squares", squares, np.int32, shape), np.int32(squares.size), np.int32(shape[axis]),
                 np.int32(int(np.prod(shape[axis + 1:], dtype=int))), np.int32(reach), out)
    kernel(xp, "distance.cu", "nearest_along")((blocks(squares.size),), (BLOCK,), arguments)
    return out


def cell_sums(cells: Array, first: Array, second: Array, count: int) -> Tuple[Array, Array]:
    """(count, 3) float64 and (count,) int32; see cones.cell_sums."""
    xp, n = array_module(cells), cells.size
    order = cells.ravel().argsort()  # CuPy's sorts are stable: samples of a cell stay in their order
    begins = xp.searchsorted(cells.ravel()[order], xp.arange(count + 1, dtype=cells.dtype)).astype(np.int32)
    out = xp.empty((count, 3), np.float64)
    arguments = (checked(xp, "order", order.astype(np.int32), np.int32, (n,)),
                 checked(xp, "begins", begins, np.int32, (count + 1,)),
                 checked(xp, "first", first, np.complex64, cells.shape),
                 checked(xp, "second", second, np.complex64, cells.shape), np.int32(count), out)
    kernel(xp, "cones.cu", "cell_sums")((blocks(count),), (BLOCK,), arguments)
    return out, begins[1:] - begins[:-1]
