"""From inserted images to a map: V = N / D, cropped and corrected for the gridding kernel."""
from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft

Array = Any
PADDING = 2
FLOOR = 1e-3  # of the shell's mean D: keeps unvisited voxels from exploding (engine.md section 5)


def new_accumulator(box_size: int, max_shell: int) -> np.ndarray:
    """(nx, nz, ny, 3) float32 zeros for a map of this box, up to ``max_shell`` (cycles per box)."""
    reach = PADDING * max_shell + 1
    return np.zeros((reach + 1, 2 * reach + 1, 2 * reach + 1, 3), np.float32)


def enforce_hermitian(accumulator: np.ndarray) -> None:
    """Add to the plane x = 0 what the Friedel mates of its samples bring (in place)."""
    plane = accumulator[0]
    mate = plane[::-1, ::-1].copy()
    mate[..., 1] *= -1
    plane += mate


def shell_mean(density: np.ndarray) -> np.ndarray:
    """Mean of D (nx, nz, ny) over the shells of the padded grid, as a volume of the same shape."""
    nx, nz, ny = density.shape
    x, z, y = np.arange(nx), np.arange(nz) - nz // 2, np.arange(ny) - ny // 2
    shell = np.sqrt(x[:, None, None] ** 2 + z[:, None] ** 2 + y ** 2).astype(np.float32)
    index = np.rint(shell).astype(np.int32).ravel()
    mean = np.bincount(index, density.ravel()) / np.maximum(np.bincount(index), 1)
    return mean.astype(np.float32)[index].reshape(density.shape)


def reconstruct(accumulator: np.ndarray, box_size: int, workers: int = 1) -> np.ndarray:
    """Unfiltered, unmasked map (N, N, N) float32 of the accumulated images.

    Frequencies no image reached are zero. The accumulator is used up (its x = 0 plane is completed).
    """
    enforce_hermitian(accumulator)
    density = accumulator[..., 2]
    floor = FLOOR * shell_mean(density)
    weight = np.where(density > 0, 1 / np.maximum(np.maximum(density, floor), 1e-30), 0).astype(np.float32)
    spectrum = np.empty(density.shape, np.complex64)
    spectrum.real = accumulator[..., 0] * weight
    spectrum.imag = accumulator[..., 1] * weight
    return map_from_half_spectrum(spectrum, box_size, workers)


def map_from_half_spectrum(spectrum: np.ndarray, box_size: int, workers: int) -> np.ndarray:
    """Inverse transform of a padded half spectrum [x, z, y], cropped to the box, divided by sinc²."""
    padded = PADDING * box_size
    nx, nz, ny = spectrum.shape
    full = np.zeros((padded, padded, padded // 2 + 1), np.complex64)
    keep_z, keep_y = np.arange(nz) - nz // 2, np.arange(ny) - ny // 2
    nx = min(nx, padded // 2 + 1)
    full[np.ix_(keep_z % padded, keep_y % padded, np.arange(nx))] = spectrum[:nx].transpose(1, 2, 0)
    volume = scipy.fft.irfftn(full, s=(padded,) * 3, workers=workers, overwrite_x=True)
    index = (np.arange(box_size) - box_size // 2) % padded
    volume = volume[np.ix_(index, index, index)]
    correction = (1.0 / np.sinc((np.arange(box_size) - box_size // 2) / padded) ** 2).astype(np.float32)
    volume *= PADDING ** 3 * correction[:, None, None] * correction[None, :, None] * correction
    return np.ascontiguousarray(volume, dtype=np.float32)
