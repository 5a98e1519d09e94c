"""The references of the next iteration from the two half-maps of this one: joined, filtered, nothing masked."""
from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence

import numpy as np

from ..model.fourier import apply_shell_filter
from ..records.iteration import FSC_THRESHOLD
from ..records.resolved import ResolvedSettings
from .fsc import FscCurves, first_below, fsc
from .nonuniform import nonuniform_filter

COARSEST_FILTER_ANGSTROM = 20.0  # nobody needs a sub-volume's reference coarser than domains
COARSEST_IN_RESOLUTIONS = 2.5  # … or, at low resolution, than this many times the resolution


class References(NamedTuple):
    """Filtered half-maps (N, N, N), and the cut-off of each voxel in Å where the filter is non-uniform."""

    maps: List[np.ndarray]
    cutoff_angstrom: Optional[np.ndarray]


def joined(maps: Sequence[np.ndarray], resolution: float, pixel_size: float, workers: int) -> List[np.ndarray]:
    """Both maps with their average below ``resolution`` Å (0 = never), a cosine of two shells between."""
    if resolution <= 0:
        return [maps[0], maps[1]]
    box = maps[0].shape[0]
    shells = np.arange(box)
    cutoff = box * pixel_size / resolution
    low = 0.5 + 0.5 * np.cos(np.pi * np.clip((shells - cutoff + 1) / 2, 0, 1))
    half_difference = apply_shell_filter(0.5 * (maps[0] - maps[1]), low, workers)
    return [maps[0] - half_difference, maps[1] + half_difference]


def filter_weights(curves: FscCurves) -> np.ndarray:
    """Wiener weight of a half-map by shell, F, up to where the corrected FSC first falls below 0.143.

    A half-map's signal-to-noise ratio is F / (1 − F), hence SNR / (1 + SNR) = F.
    """
    weights = np.clip(curves.corrected, 0, 1)
    end = first_below(curves.corrected, FSC_THRESHOLD)
    weights[end + 1:] = 0
    return weights


def next_references(maps: Sequence[np.ndarray], mask: np.ndarray, curves: FscCurves, resolved: ResolvedSettings,
                    workers: int) -> References:
    """References by the settings ``join_halves_resolution_angstrom``, ``non_uniform`` and ``non_negativity``.

    A non-uniform filter is chosen from both halves, is the same for both, and takes the place of the FSC's
    where the mask is not zero.
    """
    pixel_size = curves.pixel_size
    together = joined(maps, resolved.join_halves_resolution_angstrom, pixel_size, workers)
    weights = filter_weights(curves)
    filtered = [apply_shell_filter(volume, weights, workers) for volume in together]
    cutoff = None
    if resolved.non_uniform:
        resolution = curves.resolutions()["corrected"]
        coarsest = max(COARSEST_FILTER_ANGSTROM, COARSEST_IN_RESOLUTIONS * resolution)
        local = nonuniform_filter(together[0], together[1], mask, pixel_size, coarsest, resolution, workers)
        filtered = [np.where(mask > 0, part, rest) for part, rest in zip(local[:2], filtered)]
        cutoff = local.cutoff_angstrom
    if resolved.non_negativity:
        filtered = [np.maximum(volume, 0) for volume in filtered]
    return References(filtered, cutoff)


def reference_fsc(maps: Sequence[np.ndarray], mask: np.ndarray, workers: int) -> List[float]:
    """FSC (N // 2 + 1,) of the two half-sets' references inside the mask: how much of their detail is signal."""
    return [round(float(value), 4) for value in fsc(maps[0] * mask, maps[1] * mask, workers)]
