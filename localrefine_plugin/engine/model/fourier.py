"""Fourier operators on cubic maps and square images: shells, radial filters, resampling, shifts.

Arrays are numpy's or CuPy's, [z, y, x] with the origin of space in voxel N // 2 of each axis. Transforms are
`scipy.fft.rfftn` half-spectra in single precision, not centred. A *shell* is round(|k|), k in integer frequencies;
shell s has the spatial frequency s / (N · pixel_size). Since |k|² is an integer, every radial function is a table
indexed by |k|²: nothing is interpolated twice.
"""
from __future__ import annotations

from functools import lru_cache
from typing import Any, Callable, Iterator, Tuple

import numpy as np

from ..kernels import fft
from ..kernels.device import array_module

Array = Any
COSINE_EDGE_SHELLS = 2.0
"""Width of the edge of `lowpass`, in shells; the value of relion_postprocess --filter_edge_width."""


def forward(map_zyx: Array, workers: int = 1) -> Array:
    """Half-spectrum (complex64) of a real array, unnormalised, not centred."""
    return fft.rfftn(map_zyx.astype(np.float32, copy=False), workers)


def inverse(map_ft: Array, shape: Tuple[int, ...], workers: int = 1) -> Array:
    """Real array (float32) of ``shape`` from its half-spectrum; may overwrite ``map_ft``."""
    return fft.irfftn(map_ft, shape, workers)


def integer_frequencies(box_size: int) -> np.ndarray:
    """0, 1, …, −1: the integer frequency of each index of a full (not half) axis, int32."""
    return np.rint(np.fft.fftfreq(box_size, 1 / box_size)).astype(np.int32)


def box_of(shape: Tuple[int, ...]) -> int:
    """The box size of a square or cubic shape; ValueError for any other."""
    if len(shape) not in (2, 3) or len(set(shape)) != 1:
        raise ValueError(f"shape {shape} is neither square nor cubic")
    return shape[0]


@lru_cache(maxsize=16)
def _plane_radius_squared(box_size: int) -> np.ndarray:
    """kx² + ky² over a plane of the half-spectrum: (N, N // 2 + 1) int32, read-only."""
    ky = integer_frequencies(box_size)[:, None]
    kx = np.arange(box_size // 2 + 1, dtype=np.int32)
    plane = ky * ky + kx * kx
    plane.flags.writeable = False
    return plane


def slabs_radius_squared(like: Array) -> Iterator[Tuple[slice, Array]]:
    """(planes z, |k|² of their samples (planes, N, N // 2 + 1) int32) of a cubic half-spectrum, where ``like`` lives.

    On the host one plane at a time, so that temporaries are N² and stay in a cache; on a GPU all at once.
    """
    xp, n = array_module(like), len(like)
    plane, square = xp.asarray(_plane_radius_squared(n)), xp.asarray(integer_frequencies(n) ** 2)
    thickness = 1 if xp is np else n
    for z in range(0, n, thickness):
        yield slice(z, z + thickness), plane + square[z:z + thickness, None, None]


@lru_cache(maxsize=16)
def shell_table(box_size: int) -> np.ndarray:
    """Shell of each |k|² that occurs in the box: (3 (N // 2)² + 1,) int32, read-only."""
    table = np.rint(np.sqrt(np.arange(3 * (box_size // 2) ** 2 + 1))).astype(np.int32)
    table.flags.writeable = False
    return table


@lru_cache(maxsize=6)
def shell_index_rfft(shape: Tuple[int, ...]) -> np.ndarray:
    """Shell of each coefficient of the half-spectrum of a real array of ``shape``.

    Parameters
    ----------
    shape : (N, N) or (N, N, N), of the REAL array; odd or even.

    Returns
    -------
    (…, N, N // 2 + 1) int32, read-only, cached. The corners hold shells beyond N // 2.
    """
    n = box_of(shape)
    radius_squared = _plane_radius_squared(n)
    if len(shape) == 3:
        radius_squared = radius_squared + (integer_frequencies(n) ** 2)[:, None, None]
    index = shell_table(n)[radius_squared]
    index.flags.writeable = False
    return index


@lru_cache(maxsize=16)
def rfft_weights(shape: Tuple[int, ...]) -> np.ndarray:
    """How many coefficients of the full spectrum each column of the half-spectrum stands for.

    1 for kx = 0 and, in an even box, for kx = N / 2; else 2. (N // 2 + 1,) float32, read-only:
    broadcasts over the last axis.
    """
    n = box_of(shape)
    weights = np.full(n // 2 + 1, 2, dtype=np.float32)
    weights[0] = 1
    if n % 2 == 0:
        weights[-1] = 1
    weights.flags.writeable = False
    return weights


@lru_cache(maxsize=16)
def shell_counts(box_size: int) -> np.ndarray:
    """Coefficients of the full cubic spectrum in each shell 0 … N // 2: (N // 2 + 1,) float64, read-only.

    Friedel mates are counted both, so this is also the number of independent real values.
    """
    plane = _plane_radius_squared(box_size)
    weights = np.broadcast_to(rfft_weights((box_size,) * 3), plane.shape).ravel()
    in_plane = np.bincount(plane.ravel(), weights)
    counts = np.zeros(box_size // 2 + 1)
    table = shell_table(box_size)
    for kz in integer_frequencies(box_size):
        shell = table[kz * kz:kz * kz + len(in_plane)]
        counts += np.bincount(shell, in_plane, minlength=len(counts))[:len(counts)]
    counts.flags.writeable = False
    return counts


def shell_means(first: Array, second: Array) -> np.ndarray:
    """Means of |F₁|², |F₂|² and Re F₁ F₂* over each shell of two cubic half-spectra: (3, N // 2 + 1) float64."""
    from ..kernels.shells import shell_sums  # Numba: forms and viewers import this module and never come here
    means: np.ndarray = shell_sums(first, second) / shell_counts(len(first))
    return means


def radial_mean_power(map_ft: Array) -> np.ndarray:
    """Mean |F|² of each shell 0 … N // 2 of a cubic half-spectrum: (N // 2 + 1,) float64."""
    power: np.ndarray = shell_means(map_ft, map_ft)[0]
    return power


def multiply_radial(map_ft: Array, weight: Callable[[np.ndarray], np.ndarray]) -> Array:
    """Multiply a half-spectrum (N, N, N // 2 + 1), in place, by ``weight(|k|)``, |k| in shells (fractional)."""
    radius = np.sqrt(np.arange(3 * (len(map_ft) // 2) ** 2 + 1))
    table = array_module(map_ft).asarray(weight(radius).astype(np.float32))
    for planes, radius_squared in slabs_radius_squared(map_ft):
        map_ft[planes] *= table[radius_squared]
    return map_ft


def by_shell(weights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The radial function that has these weights (M,) at shells 0 … M − 1, is linear between, the last value beyond."""
    return lambda radius: np.interp(radius, np.arange(len(weights)), weights)


def apply_shell_filter(map_zyx: Array, weights: np.ndarray, workers: int = 1) -> Array:
    """Multiply the transform of a map by radial weights.

    Parameters
    ----------
    map_zyx : (N, N, N).
    weights : (M,) weight at shells 0 … M − 1; linear in between, the last value beyond.

    Returns
    -------
    (N, N, N) float32.
    """
    return _filtered(map_zyx, by_shell(weights), workers)


def _filtered(map_zyx: Array, weight: Callable[[np.ndarray], np.ndarray], workers: int) -> Array:
    box_of(map_zyx.shape)
    return inverse(multiply_radial(forward(map_zyx, workers), weight), map_zyx.shape, workers)


def cosine_edge(radius: np.ndarray, cutoff: float, width: float) -> np.ndarray:
    """1 up to cutoff − width/2, a raised cosine, 0 from cutoff + width/2 on (any unit, the same for all)."""
    phase = np.clip((radius - cutoff) / width + 0.5, 0.0, 1.0)
    return 0.5 + 0.5 * np.cos(np.pi * phase)


def lowpass(map_zyx: Array, pixel_size: float, resolution_angstrom: float,
            edge_shells: float = COSINE_EDGE_SHELLS, workers: int = 1) -> Array:
    """Low-pass filter with a raised-cosine edge centred on the resolution.

    A cosine, not a Butterworth: it is exactly zero half an edge beyond the limit, so that nothing
    finer can leak into the alignment, which is what a resolution limit promises. (The
    non-uniform filter uses a Butterworth, for its short kernel in real space.)

    Parameters
    ----------
    map_zyx : (N, N, N).  pixel_size : Å.
    resolution_angstrom : Å; at or beyond Nyquist in the corners nothing is removed.
    edge_shells : width of the edge in shells of 1 / (N · pixel_size).

    Returns
    -------
    (N, N, N) float32.
    """
    n = box_of(map_zyx.shape)
    if resolution_angstrom <= 2 * pixel_size:
        return map_zyx.astype(np.float32)
    return _filtered(map_zyx, lowpass_weight(n * pixel_size / resolution_angstrom, edge_shells), workers)


def lowpass_weight(cutoff_shell: float,
                   edge_shells: float = COSINE_EDGE_SHELLS) -> Callable[[np.ndarray], np.ndarray]:
    """The radial function of `lowpass`, at a cut-off in shells."""
    return lambda radius: cosine_edge(radius, cutoff_shell, edge_shells)


def shift_map(map_zyx: np.ndarray, shift_px: np.ndarray, workers: int = 1) -> np.ndarray:
    """Move a map by ``shift_px`` = (x, y, z) pixels, periodically: what was at v is at v + shift.

    F(k) → F(k) exp(−2πi k·shift / N). Exact for whole pixels; for fractions of a pixel the
    Nyquist plane of an even box keeps its real part only.
    """
    n = box_of(map_zyx.shape)
    ft = forward(map_zyx, workers)
    x, y, z = (np.exp(-2j * np.pi / n * s * integer_frequencies(n)) for s in np.asarray(shift_px, dtype=np.float64))
    # integer_frequencies calls the Nyquist frequency of an even box negative; the half axis has it positive
    x = x[:n // 2 + 1] if n % 2 else np.append(x[:n // 2], x[n // 2].conj())
    ft *= (y[:, None] * x).astype(np.complex64)
    ft *= z.astype(np.complex64)[:, None, None]
    return inverse(ft, map_zyx.shape, workers)


def resample_map(map_zyx: Array, new_box: int, workers: int = 1) -> Array:
    """The same map on a finer or coarser grid, by padding or cropping its transform.

    The field of view is kept (new pixel size = old · N / new_box), so are grey values and the
    origin: voxel N // 2 goes to voxel new_box // 2. Padding and then cropping back is the identity,
    also for even boxes, whose Nyquist plane is halved between +N/2 and −N/2 and added up again.

    Parameters
    ----------
    map_zyx : (N, N, N).

    Returns
    -------
    (new_box, new_box, new_box) float32.
    """
    n, xp = box_of(map_zyx.shape), array_module(map_zyx)
    if new_box == n:
        return map_zyx.astype(np.float32)
    in_middle = n % 2 == 0 and new_box % 2 == 0  # both origins are N / 2: moving them to voxel 0 and back is no change
    ft = fft.rfftn_block((map_zyx if in_middle else xp.fft.ifftshift(map_zyx)).astype(np.float32, copy=False), n,
                         min(n, new_box) // 2, workers)
    held = len(ft)  # the box of these samples: N, or the least odd one that has those of the new box
    ft = _resize_half_axis(ft, held, new_box)
    ft = _resize_full_axis(ft, 0, held, new_box)
    ft = _resize_full_axis(ft, 1, held, new_box)
    ft *= np.float32((new_box / n) ** 3)
    resampled = inverse(ft, (new_box,) * 3, workers)
    return resampled if in_middle else xp.fft.fftshift(resampled)


def _resize_half_axis(ft: Array, old: int, new: int) -> Array:
    """Crop or pad the last axis (kx ≥ 0) from box ``old`` to box ``new``."""
    xp, kept = array_module(ft), min(old, new) // 2 + 1
    out = xp.zeros(ft.shape[:2] + (new // 2 + 1,), dtype=ft.dtype)
    out[..., :kept] = ft[..., :kept]
    if new > old and old % 2 == 0:
        out[..., old // 2] *= 0.5
    elif new < old and new % 2 == 0:
        column = out[..., new // 2]
        mate = xp.roll(column[::-1, ::-1], (1, 1), axis=(0, 1)).conj()
        out[..., new // 2] = column + mate
    return out


def _resize_full_axis(ft: Array, axis: int, old: int, new: int) -> Array:
    """Crop or pad a full axis of a half-spectrum from box ``old`` to box ``new``."""
    xp = array_module(ft)
    ft = xp.moveaxis(ft, axis, 0)
    out = xp.zeros((new,) + ft.shape[1:], dtype=ft.dtype)
    small = min(old, new)
    positive, negative = (small + 1) // 2, (small - 1) // 2
    out[:positive] = ft[:positive]
    if negative:
        out[-negative:] = ft[-negative:]
    half = small // 2
    if small % 2 == 0 and new > old:
        out[half] = 0.5 * ft[half]
        out[-half] = 0.5 * ft[half]
    elif small % 2 == 0:
        out[half] = ft[half] + ft[-half]
    return xp.moveaxis(out, 0, axis)
