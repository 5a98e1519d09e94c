"""Fourier transforms where the array lives: scipy's on the host (float32 stays float32), cuFFT's on a GPU."""
from __future__ import annotations

from typing import Any, Tuple

import numpy as np
import scipy.fft

from .device import array_module

Array = Any


def rfft2(images: Array, workers: int = 1) -> Array:
    """Half spectra (…, N, N // 2 + 1) of the last two axes of (…, N, N), unnormalised."""
    xp = array_module(images)
    return scipy.fft.rfft2(images, workers=workers) if xp is np else xp.fft.rfft2(images)


def rfftn(volume: Array, workers: int = 1) -> Array:
    """Half spectrum (N, N, N // 2 + 1) over all axes of (N, N, N), unnormalised."""
    xp = array_module(volume)
    return scipy.fft.rfftn(volume, workers=workers) if xp is np else xp.fft.rfftn(volume)


def rfftn_padded(part: Array, box_size: int, workers: int = 1) -> Array:
    """Half spectrum (N, N, N // 2 + 1) of (a, b, c) with zeros after it on every axis, unnormalised.

    Rows of zeros are not transformed: on the host a fifth less work than `rfftn` for a part of half the box.
    """
    xp, n = array_module(part), box_size
    a, b = part.shape[:2]
    full = xp.empty((n, n, n // 2 + 1), np.complex64)
    full[:a, b:] = 0
    full[a:] = 0
    full[:a, :b] = rfft(part, n, 2, workers)
    full[:a] = fft(full[:a], 1, workers)
    return fft(full, 0, workers)


def irfftn(spectrum: Array, shape: Tuple[int, ...], workers: int = 1) -> Array:
    """Real array of ``shape`` from its half spectrum, which may be overwritten."""
    xp = array_module(spectrum)
    if xp is np:
        return scipy.fft.irfftn(spectrum, s=shape, workers=workers, overwrite_x=True)
    return xp.fft.irfftn(spectrum, s=shape)


def rfft(values: Array, length: int, axis: int, workers: int = 1) -> Array:
    """Half spectrum along one axis, cut or padded with zeros to ``length``."""
    xp = array_module(values)
    if xp is np:
        return scipy.fft.rfft(values, length, axis=axis, workers=workers)
    return xp.fft.rfft(values, length, axis=axis)


def fft(values: Array, axis: int, workers: int = 1) -> Array:
    """Transform of one axis of a complex array, which may be overwritten."""
    xp = array_module(values)
    if xp is np:
        return scipy.fft.fft(values, axis=axis, workers=workers, overwrite_x=True)
    return xp.fft.fft(values, axis=axis)


def ifft(spectrum: Array, axis: int, workers: int = 1) -> Array:
    """Inverse transform of one axis of an array, which may be overwritten."""
    xp = array_module(spectrum)
    if xp is np:
        return scipy.fft.ifft(spectrum, axis=axis, workers=workers, overwrite_x=True)
    return xp.fft.ifft(spectrum, axis=axis)


def irfft(spectrum: Array, length: int, axis: int, workers: int = 1) -> Array:
    """Real array of ``length`` along one axis from half its spectrum, which may be overwritten."""
    xp = array_module(spectrum)
    if xp is np:
        return scipy.fft.irfft(spectrum, length, axis=axis, workers=workers, overwrite_x=True)
    return xp.fft.irfft(spectrum, length, axis=axis)
