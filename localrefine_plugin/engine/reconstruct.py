"""From inserted images to a map.

The padded accumulators N and D are brought to real space, cropped to the box, corrected for the
trilinear kernel, and divided on the box's own Fourier grid:

    V = F⁻¹[ F(crop N) / max(F(Λ·crop D), floor) ]

Λ is a triangular window (its transform is positive, hence D > 0). Division on the padded grid itself
gives voxels that a single image touched with a tiny weight the full noise of that image; dividing
by the local average does not. Measured on 1,000 images of the benchmark's `mid` at the true poses
of body A, mean FSC to the truth in its mask: padded grid 0.839, relion_reconstruct 3.1.3 0.847,
this 0.855.
"""
from __future__ import annotations

import numpy as np
import scipy.fft

PADDING = 2
FLOOR = 0.01  # of the shell's mean D, for directions hardly any image covers


def new_accumulator(max_shell: int) -> np.ndarray:
    """(nx, nz, ny, 3) float32 zeros for images used up to ``max_shell`` (cycles per box)."""
    reach = PADDING * max_shell + 2
    return np.zeros((reach + 1, 2 * reach + 1, 2 * reach + 1, 3), np.float32)


def enforce_hermitian(accumulator: np.ndarray) -> None:
    """Add to the plane x = 0 what the Friedel mates of its samples bring (in place)."""
    plane = accumulator[0]
    mate = plane[::-1, ::-1].copy()
    mate[..., 1] *= -1
    plane += mate


def reconstruct(accumulator: np.ndarray, box_size: int, max_shell: int, workers: int = 1) -> np.ndarray:
    """Unfiltered, unmasked map (N, N, N) float32 of the images inserted up to ``max_shell``.

    Frequencies beyond ``max_shell`` are zero. The accumulator is used up.
    """
    enforce_hermitian(accumulator)
    half = box_size // 2
    window = np.clip(1 - np.abs(np.arange(box_size) - half) / (box_size / 2), 0, 1).astype(np.float32)
    density = crop_to_box(accumulator[..., 2], box_size, workers)
    density *= window[:, None, None] * window[:, None] * window
    weight = scipy.fft.rfftn(np.fft.ifftshift(density), workers=workers).real
    del density
    numerator = crop_to_box(accumulator[..., :2], box_size, workers)
    spectrum = scipy.fft.rfftn(np.fft.ifftshift(numerator), workers=workers)
    spectrum *= inverse_weight(weight, box_size, max_shell)
    return np.fft.fftshift(scipy.fft.irfftn(spectrum, s=(box_size,) * 3, workers=workers)).astype(np.float32)


def inverse_weight(weight: np.ndarray, box_size: int, max_shell: int) -> np.ndarray:
    """1 / max(D, floor of the shell's mean), zero beyond ``max_shell`` and where no image came."""
    k = np.fft.fftfreq(box_size, 1 / box_size)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(box_size // 2 + 1) ** 2)
    shell = np.rint(radius).astype(np.int32)
    mean = np.bincount(shell.ravel(), weight.ravel()) / np.maximum(np.bincount(shell.ravel()), 1)
    floor = np.maximum(FLOOR * mean, 0)[shell]
    safe = np.maximum(weight, floor)
    inverse = np.where((safe > 0) & (shell <= max_shell), 1 / np.where(safe > 0, safe, 1), 0)
    result: np.ndarray = inverse.astype(np.float32)
    return result


def crop_to_box(spectrum: np.ndarray, box_size: int, workers: int) -> np.ndarray:
    """Real-space crop (N, N, N) of a padded half spectrum [x, z, y] or [x, z, y, (re, im)], divided by sinc²."""
    padded = PADDING * box_size
    nx, nz, ny = spectrum.shape[:3]
    nx = min(nx, padded // 2 + 1)
    full = np.zeros((padded, padded, padded // 2 + 1), np.complex64)
    rows, columns = (np.arange(nz) - nz // 2) % padded, (np.arange(ny) - ny // 2) % padded
    target = np.ix_(rows, columns, np.arange(nx))
    if spectrum.ndim == 4:
        full[target] = np.ascontiguousarray(spectrum[:nx]).view(np.complex64)[..., 0].transpose(1, 2, 0)
    else:
        full[target] = spectrum[:nx].transpose(1, 2, 0)
    volume = scipy.fft.irfftn(full, s=(padded,) * 3, workers=workers, overwrite_x=True)
    offset = np.arange(box_size) - box_size // 2
    volume = volume[np.ix_(offset % padded, offset % padded, offset % padded)]
    correction = (1.0 / np.sinc(offset / padded) ** 2).astype(np.float32)
    volume *= PADDING ** 3 * correction[:, None, None] * correction[None, :, None] * correction
    return volume
