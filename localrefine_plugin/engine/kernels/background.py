"""The background of images: a plane through the pixels outside the particle.

    v(x, y) = a + b x + c y   by least squares over the pixels outside the circle that the box holds,

as RELION subtracts it when it extracts particles. A constant that is many times the noise would spoil the map and, by
rounding, every frequency. A slope (ice that grows thicker, the rim of a hole) is in the standard deviation that images
are normalised to, so that images with a slope hold less of signal and noise than others. The gain

    Σ (v − v̄)² / Σ (v − a − b x − c y)²,  square root, over the same pixels,

gives them what they would have had, had the slope been subtracted first. Measured (benchmarks.honesty.imperfections,
slopes of two standard deviations from centre to edge): the plane alone changes nothing; with the gain the result is
that of images without slopes. A plane that explains less than LEAST_EXPLAINED of the variance is left alone, and only
the mean is subtracted: the fringes of the particle itself, and noise of low frequency, have a slope by chance.
"""
from __future__ import annotations

from typing import Any, Tuple

import numpy as np
from numba import njit, prange

from .device import array_module

Array = Any
LEAST_EXPLAINED = 0.3  # of the variance. In noise of simulated sets up to 0.04; in fringes without noise up to 0.28


def plane_fit(box_size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Positions (P,) of the background in a flattened image, and what gives a, b and c (3, P) float32 of its values."""
    offset = np.arange(box_size) - box_size // 2
    outside = np.flatnonzero(offset[:, None] ** 2 + offset ** 2 > (box_size // 2) ** 2)
    y, x = offset[outside // box_size], offset[outside % box_size]
    fit: np.ndarray = np.linalg.pinv(np.stack([np.ones(len(outside)), x, y], axis=1)).astype(np.float32)
    return outside, fit


def without_background(images: Array, outside: Array, fit: Array) -> Array:
    """Images (n, N, N) float32 less their background, times the gain; ``outside`` and ``fit`` of `plane_fit`."""
    xp, n = array_module(images), images.shape[-1]
    if xp is np:
        return _without_background_cpu(images, outside, fit)
    around = images.reshape(len(images), -1).take(outside, axis=1)
    a, b, c = ((around * row).sum(axis=1, dtype=np.float64).astype(np.float32)[:, None] for row in fit)
    mean = around.mean(axis=1, dtype=np.float64).astype(np.float32)[:, None]
    x, y = ((part - n // 2).astype(np.float32) for part in (outside % n, outside // n))
    power, left = ((rest ** 2).sum(axis=1)[:, None] for rest in (around - mean, around - a - b * x - c * y))
    slopes = left < (1 - LEAST_EXPLAINED) * power
    gain = xp.where(slopes, power / xp.where(slopes & (left > 0), left, power + (power == 0)), 1) ** 0.5
    a, b, c = xp.where(slopes, a, mean), xp.where(slopes, b, 0), xp.where(slopes, c, 0)
    offset = (xp.arange(n) - n // 2).astype(np.float32)
    plane = a[:, None] + b[:, None] * offset + c[:, None] * offset[:, None]
    return gain.astype(np.float32)[:, None] * (images - plane)


@njit(parallel=True, cache=True, nogil=True)
def _without_background_cpu(images, outside, fit):  # type: ignore[no-untyped-def]
    count, n = images.shape[0], images.shape[1]
    out = np.empty_like(images)
    for i in prange(count):
        a = b = c = total = power = left = np.float64(0)
        for p in range(outside.shape[0]):
            v = np.float64(images[i, outside[p] // n, outside[p] % n])
            a += v * fit[0, p]
            b += v * fit[1, p]
            c += v * fit[2, p]
            total += v
        mean = total / outside.shape[0]
        for p in range(outside.shape[0]):
            y, x = outside[p] // n, outside[p] % n
            v = np.float64(images[i, y, x])
            power += (v - mean) * (v - mean)
            rest = v - a - b * (x - n // 2) - c * (y - n // 2)
            left += rest * rest
        gain = np.float32(1)
        if left >= (1 - LEAST_EXPLAINED) * power:
            a, b, c = mean, np.float64(0), np.float64(0)
        elif left > 0:
            gain = np.float32(np.sqrt(power / left))
        for y in range(n):
            first, slope = np.float32(a + c * (y - n // 2)), np.float32(b)
            for x in range(n):
                out[i, y, x] = gain * (images[i, y, x] - (first + slope * np.float32(x - n // 2)))
    return out
