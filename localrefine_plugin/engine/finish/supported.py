"""What resolution a mask can support: the corrected FSC, bounded where the mask makes correlation itself.

Two bounds, for masks that are binary, drawn tightly, or drawn round noise:

1. A mask cannot hold more signal than the box, and it holds Σ m² of N³ of the noise. So the signal-to-noise ratio under
   it is at most r = N³ / Σ m² times that of the unmasked FSC U: F ≤ r U / (1 + (r − 1) U). U is taken as the mean of
   SMOOTHED shells and two of its standard errors more.
2. Where random phases correlate under the mask by more than MASK_CORRELATION at the resolution, their correction is a
   difference of two large numbers. Then the half-maps must agree under the mask dilated by 12 Å with a soft edge, too:
   F ≤ F_loose.
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..maps.fsc import LOOSE_DILATE_ANGSTROM, FscCurves
from ..model.fourier import shell_counts
from .mask_ladder import MASK_CORRELATION

SMOOTHED = 5  # shells
ERRORS = 2.0
WORTH_SAYING = 1.02  # of the resolution


def supported(curves: FscCurves, mask: np.ndarray) -> FscCurves:
    """The curves with what the unmasked FSC, the volume of the mask (N, N, N) and its edge can support of F."""
    bound = volume_bound(curves.unmasked, mask)
    if mask_correlation(curves) > MASK_CORRELATION:
        bound = np.minimum(bound, curves.loose)
    return replace(curves, corrected=np.minimum(curves.corrected, bound))


def volume_bound(unmasked: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """r U / (1 + (r − 1) U) by shell (N // 2 + 1,)."""
    squares = sum(float(np.square(plane, dtype=np.float64).sum()) for plane in mask)  # which stay in a cache
    ratio = mask.size / max(squares, 1.0)
    half = SMOOTHED // 2
    mean = np.convolve(np.pad(unmasked, half, mode="edge"), np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")
    error = 1 / np.sqrt(SMOOTHED * np.maximum(shell_counts(len(mask))[:len(unmasked)], 1))
    u = np.clip(mean + ERRORS * error, 0, 1)
    bound: np.ndarray = ratio * u / (1 + (ratio - 1) * u)
    return bound


def mask_correlation(curves: FscCurves) -> float:
    """F_n where the corrected FSC is read."""
    shell = curves.box_size * curves.pixel_size / curves.resolutions()["corrected"]
    return float(np.interp(shell, np.arange(len(curves.randomised)), curves.randomised))


def support_advice(curves: FscCurves, believed: FscCurves) -> str:
    """A sentence where less is supported than the corrected FSC says; else ""."""
    said, kept = (c.resolutions()["corrected"] for c in (curves, believed))
    if kept < WORTH_SAYING * said:
        return ""
    if mask_correlation(curves) > MASK_CORRELATION:
        why = (f"the mask makes correlation itself (random phases correlate by {mask_correlation(curves):.2f} at "
               f"{said:.2f} Å). Under the mask with {LOOSE_DILATE_ANGSTROM:g} Å more and a soft edge the half-maps "
               f"agree to {kept:.2f} Å")
    else:
        why = (f"the half-maps agree to {said:.2f} Å under the mask, but without it they hold too little signal for "
               f"more than {kept:.2f} Å")
    return f"{why}. Report no finer resolution, and give the mask a wider soft edge"
