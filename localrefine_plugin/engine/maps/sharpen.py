"""The sharpened map: FSC weighting and a B-factor from the Guinier plot.

Rosenthal & Henderson 2003 (doi:10.1016/j.jmb.2003.07.013):  a map of two halves with the correlation F is
weighted by √(2F / (1 + F)); beyond 10 Å, ln|F(s)| of a protein at rest would be flat, so the slope of a
straight line through ln⟨|F|⟩ against s² is −B/4 of the blur, and the map is multiplied by exp(+B s²/4).
As in RELION, the B-factor is given as what is APPLIED: negative sharpens, exp(−b_factor · s²/4).
"""
from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import numpy as np

from ..kernels.device import array_module
from ..model import fourier
from ..model.pixels import highest_shell
from .half_maps import low_block

Array = Any
GUINIER_LOW_ANGSTROM = 10.0
"""Coarser than this the shape of the particle, not the blur, makes the slope (Rosenthal & Henderson 2003)."""

MIN_FIT_SHELLS = 5
"""With fewer shells between 10 Å and the resolution a slope means nothing, and none is given."""

NO_CORRELATION = 1e-4
"""All weights are zero from the first shell on where the FSC is below this, as in relion_postprocess."""


class GuinierFit(NamedTuple):
    """A straight line ln⟨|F|⟩ = intercept + b_factor/4 · s².

    b_factor (Å2, negative sharpens; 0 if ``shells`` is 0: no fit was possible), intercept, correlation
    coefficient, number of shells fitted.
    """

    b_factor: float
    intercept: float
    correlation: float
    shells: int


def fsc_weights(curve: np.ndarray) -> np.ndarray:
    """√(2F / (1 + F)) per shell, zero from the first shell on where there is no correlation.

    Parameters
    ----------
    curve : (N // 2 + 1,) FSC of the half-maps; shell 0 counts as 1.
    """
    clipped = np.clip(curve, 0.0, 1.0)
    weights = np.sqrt(2 * clipped / (1 + clipped))
    weights[0] = 1.0
    lost = np.nonzero(curve[1:] < NO_CORRELATION)[0]
    if len(lost):
        weights[lost[0] + 1:] = 0.0
    return weights


def guinier_fit(map_zyx: Array, pixel_size: float, curve: np.ndarray, resolution_angstrom: float,
                workers: int = 1) -> GuinierFit:
    """B-factor of the FSC-weighted map, fitted between 10 Å and its resolution.

    Parameters
    ----------
    map_zyx : (N, N, N), the mean of the half-maps.  pixel_size : Å.
    curve : (N // 2 + 1,) their FSC.  resolution_angstrom : the finest shell that is fitted.
    """
    return _fit(fourier.forward(map_zyx, workers), pixel_size, curve, resolution_angstrom)


def _fit(map_ft: Array, pixel_size: float, curve: np.ndarray, resolution_angstrom: float) -> GuinierFit:
    n, xp = len(map_ft), array_module(map_ft)
    block = low_block(map_ft, min(int(n * pixel_size / resolution_angstrom) + 1, n // 2))
    root = xp.sqrt(xp.abs(block)).astype(np.complex64)  # whose power is the amplitude
    amplitude = fourier.radial_mean_power(root)
    amplitude *= fsc_weights(curve)[:len(amplitude)]
    frequency = np.arange(len(amplitude)) / (n * pixel_size)
    used = (frequency >= 1 / GUINIER_LOW_ANGSTROM) & (frequency <= 1 / resolution_angstrom) & (amplitude > 0)
    used[highest_shell(n) + 1:] = False  # no image goes there: what is left is round-off
    if np.count_nonzero(used) < MIN_FIT_SHELLS:
        return GuinierFit(0.0, 0.0, 0.0, 0)
    square, log_amplitude = frequency[used] ** 2, np.log(amplitude[used])
    slope, intercept = np.polyfit(square, log_amplitude, 1)
    correlation = np.corrcoef(square, log_amplitude)[0, 1]
    return GuinierFit(float(4 * slope), float(intercept), float(correlation), int(np.count_nonzero(used)))


def applied_b_factor(fit: GuinierFit, b_factor: Optional[float]) -> float:
    """The B-factor given, or else the one fitted unless that would blur."""
    return min(fit.b_factor, 0.0) if b_factor is None else b_factor


def sharpen(map_zyx: Array, pixel_size: float, curve: np.ndarray, resolution_angstrom: float,
            b_factor: Optional[float] = None, workers: int = 1) -> Tuple[Array, GuinierFit]:
    """FSC-weighted, B-factor-sharpened map, low-passed at its resolution.

    Parameters
    ----------
    map_zyx : (N, N, N), the mean of the half-maps.  pixel_size : Å.
    curve : (N // 2 + 1,) their FSC.  resolution_angstrom : of the curve at 0.143.
    b_factor : Å2 to apply, negative sharpens; None applies the fitted one, unless that would blur.

    Returns
    -------
    (N, N, N) float32, and the fit (made in either case).
    """
    n = fourier.box_of(map_zyx.shape)
    map_ft = fourier.forward(map_zyx, workers)
    fit = _fit(map_ft, pixel_size, curve, resolution_angstrom)
    applied = applied_b_factor(fit, b_factor)
    by_shell = fourier.by_shell(fsc_weights(curve))
    cutoff = n * pixel_size / resolution_angstrom

    def weight(radius: np.ndarray) -> np.ndarray:
        frequency_squared = np.square(radius / (n * pixel_size))
        # up to the end of the edge only: beyond, the exponential of a large B could overflow
        edge = fourier.cosine_edge(radius, cutoff, fourier.COSINE_EDGE_SHELLS)
        growth = np.exp(np.where(edge > 0, -applied / 4 * frequency_squared, 0.0))
        return by_shell(radius) * edge * growth

    return fourier.inverse(fourier.multiply_radial(map_ft, weight), map_zyx.shape, workers), fit
