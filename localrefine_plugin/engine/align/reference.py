"""The masked sub-volume as a Fourier volume ready for slicing.

The map is masked, moved so that the mask centre c becomes the origin (whole voxels, hence exact),
cropped to the mask's support, divided by the transform of the trilinear kernel (sinc²), padded and
transformed. A slice then has no lever arm: P(k) e^{+2πi k·P(R c)/N} of the whole box is the slice
here, and rotation and displacement of the sub-volume nearly decouple.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import scipy.fft

from ..kernels.device import array_module, blank
from ..kernels.fft import rfftn_block

Array = Any
PADDING = 2.0


@dataclass(frozen=True)
class Reference:
    """Attributes
    ----------
    ft : (nz, ny, nx) complex64, half x ≥ 0, zero frequency at [nz // 2, ny // 2, 0].
    scale : grid steps per image frequency (padded size / box size).
    max_shell : slices are defined up to this shell (cycles per box).
    """

    ft: Array
    scale: float
    max_shell: int


def integer_centre(mask: np.ndarray) -> np.ndarray:
    """Centre of mass of the mask in whole px from the box centre (3,), xyz."""
    n = np.array(mask.shape)
    axes = [mask.sum(axis=tuple(j for j in range(3) if j != i), dtype=np.float64) for i in range(3)]
    com = [float((a * np.arange(len(a))).sum() / a.sum()) for a in axes]
    centre: np.ndarray = np.rint(np.array(com) - n // 2)[::-1]
    return centre


def support_box(mask: np.ndarray, centre: np.ndarray) -> int:
    """Even edge of the smallest cube about ``centre`` (px from the box centre, xyz) holding the mask."""
    n = np.array(mask.shape)
    origin = n // 2 + centre[::-1].astype(int)
    reach = 1
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(j for j in range(3) if j != axis)))
        reach = max(reach, origin[axis] - filled[0], filled[-1] - origin[axis] + 1)
    return 2 * int(reach) + 2


def cube_about(volume: Array, centre: np.ndarray, edge: int) -> Array:
    """Cube of this edge with ``centre`` (px from the box centre, xyz) at [edge // 2]; zeros outside the box."""
    out = blank((edge,) * 3, np.float32, array_module(volume))
    origin = np.array(volume.shape) // 2 + centre[::-1].astype(int)
    source, target = [], []
    for axis in range(3):
        start = origin[axis] - edge // 2
        low, high = max(0, start), min(volume.shape[axis], start + edge)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    out[tuple(target)] = volume[tuple(source)]
    return out


def make_reference(volume: Array, mask: np.ndarray, centre: np.ndarray, max_shell: int,
                   workers: int = 1, padding: float = PADDING) -> Reference:
    """Reference of ``volume``·``mask`` about ``centre`` (whole px from the box centre, xyz), to ``max_shell``, where
    the volume is; the mask is the host's."""
    edge = support_box(mask, centre)
    cube = cube_about(volume, centre, edge) * array_module(volume).asarray(cube_about(mask, centre, edge))
    padded = scipy.fft.next_fast_len(int(np.ceil(edge * padding)), real=True)
    padded += padded % 2
    return transform_cube(cube, padded, volume.shape[0], max_shell, workers)


def transform_cube(cube: Array, padded: int, box_size: int, max_shell: int, workers: int) -> Reference:
    """Gridding-corrected, padded transform of a cube (edge, edge, edge) centred at [edge // 2]."""
    xp, edge = array_module(cube), cube.shape[0]
    correction = xp.asarray((1.0 / np.sinc((np.arange(edge) - edge // 2) / padded) ** 2).astype(np.float32))
    cube = cube * correction[:, None, None] * correction[None, :, None] * correction
    scale = padded / box_size
    reach = min(int(np.ceil(max_shell * scale)) + 2, padded // 2 - 1)
    spectrum = rfftn_block(cube, padded, reach + 1, workers)
    # the origin is the cube's middle, not its first voxel
    phase = xp.asarray(np.exp(2j * np.pi * (edge // 2) / padded * np.arange(-reach, reach + 2)).astype(np.complex64))
    ft = in_order(in_order(spectrum, 0, reach), 1, reach)[:, :, :reach + 2]
    ft = xp.ascontiguousarray(ft)
    ft *= (phase[:-1, None] * phase[reach:])[None]
    ft *= phase[:-1, None, None]
    return Reference(ft, scale, max_shell)


def in_order(spectrum: Array, axis: int, reach: int) -> Array:
    """Of an axis in FFT order, the frequencies −reach … reach."""
    n, ahead = spectrum.shape[axis], (slice(None),) * axis
    return array_module(spectrum).concatenate(
        [spectrum[ahead + (slice(n - reach, n),)], spectrum[ahead + (slice(reach + 1),)]], axis=axis)


def slice_rows(rotation: Array, scale: float, magnification: Optional[Array] = None) -> Array:
    """First two rows of R times the grid scale, (..., 2, 3) float32: what the kernels take. With M (..., 2, 2)
    they are Mᵀ P R, which samples at M k."""
    rows = rotation[..., :2, :] * scale
    if magnification is not None:
        rows = array_module(rows).swapaxes(magnification, -1, -2) @ rows
    return rows.astype(np.float32)


