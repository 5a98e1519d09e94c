"""The references of the next iteration from the two half-maps of this one: joined, filtered, nothing masked."""
from __future__ import annotations

from typing import Any, List, NamedTuple, Optional, Sequence

import numpy as np

from ..kernels.device import array_module
from ..model.fourier import by_shell, lowpass_weight
from ..records.iteration import FSC_THRESHOLD
from ..records.resolved import ResolvedSettings
from .fsc import FscCurves, first_below
from .half_maps import HalfMaps, Radial, Region
from .nonuniform import nonuniform_filter, working_box

Array = Any
COARSEST_FILTER_ANGSTROM = 20.0  # nobody needs a sub-volume's reference coarser than domains
COARSEST_IN_RESOLUTIONS = 2.5  # … or, at low resolution, than this many times the resolution


class References(NamedTuple):
    """Filtered half-maps (N, N, N), and the cut-off of each voxel in Å where the filter is non-uniform."""

    maps: List[Array]
    cutoff_angstrom: Optional[Array]


def joined(halves: HalfMaps, resolution: float, pixel_size: float, filtered: Radial = np.ones_like,
           region: Optional[Region] = None) -> List[Array]:
    """Both maps with their average below ``resolution`` Å (0 = never), a cosine of two shells between; filtered. Or
    what of them is in a region.

    The transforms are w (1 − j) F₁ + w j F₂ and the other way round, with j = ½ below and 0 beyond.
    """
    low = lowpass_weight(halves.box_size * pixel_size / resolution) if resolution > 0 else np.zeros_like

    def own(radius: np.ndarray) -> np.ndarray:
        return filtered(radius) * (1 - 0.5 * low(radius))

    def other(radius: np.ndarray) -> np.ndarray:
        return filtered(radius) * 0.5 * low(radius)
    return [halves.combined(own, other, region), halves.combined(other, own, region)]


def filter_weights(curves: FscCurves) -> np.ndarray:
    """Wiener weight of a half-map by shell, F, up to where the corrected FSC first falls below 0.143.

    A half-map's signal-to-noise ratio is F / (1 − F), hence SNR / (1 + SNR) = F.
    """
    weights = np.clip(curves.corrected, 0, 1)
    end = first_below(curves.corrected, FSC_THRESHOLD)
    weights[end + 1:] = 0
    return weights


def next_references(halves: HalfMaps, mask: Array, curves: FscCurves, resolved: ResolvedSettings) -> References:
    """References by the settings ``join_halves_resolution_angstrom``, ``non_uniform`` and ``non_negativity``.

    A non-uniform filter is chosen from both halves, is the same for both, and takes the place of the FSC's
    where the mask is not zero.
    """
    pixel_size, join = curves.pixel_size, resolved.join_halves_resolution_angstrom
    xp, cutoff = array_module(mask), None
    filtered = joined(halves, join, pixel_size, by_shell(filter_weights(curves)))
    if resolved.non_uniform:
        resolution = curves.resolutions()["corrected"]
        coarsest = max(COARSEST_FILTER_ANGSTROM, COARSEST_IN_RESOLUTIONS * resolution)
        box = working_box(mask, pixel_size, coarsest)
        parts = joined(halves, join, pixel_size, region=box) if join > 0 else [half[box] for half in halves.maps]
        local = nonuniform_filter(parts, box, halves.box_size, pixel_size, coarsest, resolution, halves.workers)
        inside = mask[local.box] > 0
        for part, rest in zip((local.filtered1, local.filtered2), filtered):
            rest[local.box] = xp.where(inside, part, rest[local.box])
        cutoff = xp.full(mask.shape, coarsest, dtype=np.float32)
        cutoff[local.box] = local.cutoff_angstrom
    if resolved.non_negativity:
        filtered = [xp.maximum(volume, np.float32(0)) for volume in filtered]
    return References(filtered, cutoff)


def reference_fsc(maps: Sequence[Array], mask: Array, workers: int) -> List[float]:
    """FSC (N // 2 + 1,) of the two half-sets' references inside the mask: how much of their detail is signal."""
    return [round(float(value), 4) for value in HalfMaps(maps[0], maps[1], workers).under(mask)]
