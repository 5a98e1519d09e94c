"""The grey scale of each particle, fitted at its best pose.

With the whitened image X and model Y, cross = Re⟨X, Y⟩ and energy = |Y|², the likelihood of a scale α is a Gaussian
of mean cross/energy and variance 1/energy. With a Gaussian prior of mean m and variance v,

    α = (cross + m/v) / (energy + 1/v),      then clipped to [0.2, 5] × median, then mean 1,

m and v from all particles of the half-set by the method of moments (DerSimonian & Laird 1986,
doi:10.1016/0197-2456(86)90046-2): where the scales scatter no more than noise makes them, all are 1.
"""
from __future__ import annotations

from typing import Optional, Sequence

import numpy as np

CLIP = 0.2, 5.0  # × median: what is outside is no particle
SMALLEST_VARIANCE = 1e-6


def fitted_scales(cross: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """α (n,) float64 with mean 1 from cross (n,) and energy (n,) at the best poses and scale 1."""
    energy = np.maximum(energy, 1e-12)
    alone = cross / energy
    total = energy.sum()
    mean = float((energy * alone).sum() / total)
    scatter = float((energy * (alone - mean) ** 2).sum())
    excess = scatter - (len(energy) - 1)
    variance = max(excess / max(total - float((energy ** 2).sum()) / total, 1e-12), SMALLEST_VARIANCE)
    scale = (cross + mean / variance) / (energy + 1 / variance)
    middle = float(np.median(scale))
    if middle <= 0:  # nothing of the model in the images: no scale means anything
        return np.ones(len(scale))
    scale = np.clip(scale, CLIP[0] * middle, CLIP[1] * middle)
    result: np.ndarray = scale / scale.mean()
    return result


def refitted_scales(matches: Sequence[np.ndarray], last: Optional[np.ndarray]) -> np.ndarray:
    """Scales (m,) of a half-set from batches (2, n) of the sums of `align.model_match`, made with the ``last`` scales
    in Z and W; None: ones."""
    cross, energy = np.concatenate(matches, axis=1).astype(np.float64)
    last = np.ones(len(cross)) if last is None else last
    return fitted_scales(cross / last, energy / last ** 2)
