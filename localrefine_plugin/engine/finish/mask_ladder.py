"""How far the resolution hangs on the mask: the FSC in masks drawn ever tighter around the density.

Each rung is the mask in use times a soft mask about the density: the mean map, low-passed to 1.5 × its resolution d,
above a fifth of its peak; 1 up to `near` and 0 from `far` (in units of d) on. The tightest rung whose mask adds no
correlation of its own, F_n ≤ 0.05 where the resolution is read, is what other programs call the automatically
tightened mask. It is shown beside the resolution in the mask in use and never instead of it: a tighter mask leaves
out what is worse resolved, so its figure is true of the core only (docs/explanation/resolution.md has both beside the
FSC to the truth).
"""
from __future__ import annotations

from typing import Any, List, NamedTuple

import numpy as np

from ..maps.fsc import FscCurves, masked_curves, random_phases, resolution_at
from ..maps.half_maps import HalfMaps, region_of
from ..maps.mask import density_mask, volume_angstrom3
from ..model.fourier import lowpass_weight
from ..records.iteration import FSC_THRESHOLD
from ..records.results import MaskLadder, Rung

Array = Any
RUNGS = ((1.5, 3.0), (1.0, 2.0), (0.5, 1.5), (0.25, 1.0))
"""near, far in units of the resolution."""

LOWPASS_IN_RESOLUTIONS = 1.5
DENSITY_LEVEL = 0.2
"""Of the peak of the low-passed density; 0.1 and 0.3 move the resolution of a rung by less than 2 %."""

MASK_CORRELATION = 0.05
"""Greatest F_n at the resolution of a mask that is not taken to make correlation itself."""


class Ladder(NamedTuple):
    """The record, and the mask of its tightest rung (N, N, N) float32."""

    record: MaskLadder
    mask: Array


def mask_ladder(halves: HalfMaps, mask: Array, curves: FscCurves, seed: int = 1) -> Ladder:
    """The resolution of two half-maps in the mask in use (N, N, N) and in ever tighter masks inside it.

    ``curves`` are those in the mask in use, whose resolution sets the distances. The ladder ends at the first rung
    whose mask correlates with itself.
    """
    pixel_size, d = curves.pixel_size, curves.resolutions()["corrected"]
    region = region_of(mask)
    smooth = halves.mean(lowpass_weight(halves.box_size * pixel_size / (LOWPASS_IN_RESOLUTIONS * d)), region)
    phases = random_phases(halves, curves.randomise_shell, region, seed)
    rungs = [_rung("mask in use", mask, curves, curves.tight, curves.randomised, curves.corrected)]
    kept = mask
    for near, far in RUNGS:
        tighter = density_mask(smooth, mask, pixel_size, DENSITY_LEVEL, near * d, far * d)
        rungs.append(_rung(f"{near * d:.1f} to {far * d:.1f} Å about the density", tighter, curves,
                           *masked_curves(halves.under(tighter), tighter, phases)))
        if rungs[-1].mask_correlation > MASK_CORRELATION:
            return Ladder(_ladder(rungs, len(rungs) - 2), kept)
        kept = tighter
    return Ladder(_ladder(rungs, len(rungs) - 1), kept)


def _ladder(rungs: List[Rung], tightest: int) -> MaskLadder:
    return MaskLadder(tuple(rungs), tightest, rungs[tightest].resolution_angstrom)


def _rung(name: str, mask: Array, curves: FscCurves, tight: np.ndarray, randomised: np.ndarray,
          corrected: np.ndarray) -> Rung:
    box, pixel = curves.box_size, curves.pixel_size
    resolution = resolution_at(corrected, FSC_THRESHOLD, box, pixel)
    shell = box * pixel / resolution
    return Rung(mask=name, volume_angstrom3=volume_angstrom3(mask, pixel), resolution_angstrom=resolution,
                uncorrected_angstrom=resolution_at(tight, FSC_THRESHOLD, box, pixel),
                mask_correlation=float(np.interp(shell, np.arange(len(randomised)), randomised)))
