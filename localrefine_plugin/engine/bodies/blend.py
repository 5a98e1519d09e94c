"""One map of several bodies and a rest: soft seams, and weights by the local reliability of each map.

With m_k the masks of the bodies where they were placed, B_k their maps, R the map of the rest,

    composite = Σ_k Σ_b W_kb · [T_b ∗ (m_k B_k)] + (1 − M) · R,
    M = 1 − Π_k (1 − m_k),    W_kb = M ρ_kb / Σ_j m_j ρ_jb,

T_b a bank of radial filters that add up to 1. Where one mask is alone W is 1: the composite is m B + (1 − m) R. Where
masks overlap, the bodies share the place as their masks and, band by band, their signal-to-noise ratios ρ = F / (1 − F)
have it, F the FSC of their half-maps in the region where masks overlap. The rest never competes with a body: in a mask
its half-maps agree as well at low resolution, and yet it is blurred by the motion, which no FSC shows.

**Half-maps stay independent.** Both half-maps get the same W, made of masks and of FSCs. An FSC of noise scatters
about 0, and weights that preferred the map whose noise agrees by chance would make a correlation out of many of them.
So ρ counts only what is significant: F is taken as max(F, 0.143, 3 / √n), n the independent values of its shell in the
region; of noise all ρ are alike.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence

import numpy as np

from ..maps.fsc import independent_fraction
from ..maps.half_maps import HalfMaps
from ..model import fourier
from ..records.iteration import FSC_THRESHOLD

BANDS = 8
SIGNIFICANT = 3.0  # standard deviations of the FSC of noise
MOST_AGREEMENT = 0.9999  # ρ is 10⁴ there
ANY_OVERLAP = 1e-3  # of the smaller mask: less is the rounding of edges


@dataclass(frozen=True)
class Weights:
    """How the bodies share the box.

    masks : m_k, each (N, N, N).  covered : M (N, N, N).  overlap : where masks overlap, (N, N, N), 0 … 1.
    reliability : ρ (bodies, bands); alike without overlap.
    """

    masks: Sequence[np.ndarray]
    covered: np.ndarray
    overlap: np.ndarray
    reliability: np.ndarray

    @property
    def overlaps(self) -> bool:
        return overlap_share(self.overlap, min(self.masks, key=lambda mask: float(mask.sum()))) > ANY_OVERLAP


def overlap_share(overlap: np.ndarray, mask: np.ndarray) -> float:
    """The share of a mask that lies in others."""
    return float(np.sum(overlap * mask, dtype=np.float64) / max(np.sum(mask, dtype=np.float64), 1e-30))


def weights_of(masks: Sequence[np.ndarray], parts: Sequence[HalfMaps]) -> Weights:
    """The weights of bodies whose masked half-maps m_k B_k are ``parts``."""
    left = np.ones_like(masks[0])
    for mask in masks:
        left = left * (1 - mask)
    overlap = np.clip(np.sum(masks, axis=0) - (1 - left), 0, 1)  # Σ m_k − M: 0 where one mask is alone
    alike = Weights(masks, 1 - left, overlap, np.ones((len(masks), BANDS)))
    if len(masks) == 1 or not alike.overlaps:
        return alike
    return Weights(masks, 1 - left, overlap, np.array([reliability(part, overlap) for part in parts]))


def reliability(part: HalfMaps, region: np.ndarray) -> np.ndarray:
    """ρ (BANDS,) of a pair of half-maps in a region (N, N, N), falling from band to band."""
    independent = fourier.shell_counts(part.box_size) * independent_fraction(region, part.workers)
    chance = np.maximum(FSC_THRESHOLD, SIGNIFICANT / np.sqrt(np.maximum(independent, 1.0)))
    agreement = np.clip(np.maximum(part.under(region), chance), 0, MOST_AGREEMENT)
    agreement[0] = MOST_AGREEMENT  # a single coefficient
    shares = bank(part.box_size)
    by_band = np.array([share @ agreement / share.sum() for share in shares])
    ratio: np.ndarray = np.minimum.accumulate(by_band) / (1 - np.minimum.accumulate(by_band))
    return ratio


def bank(box_size: int) -> np.ndarray:
    """T_b (BANDS, N // 2 + 1) by shell: triangles that add up to 1, the last one without an end."""
    last = box_size // 2
    nodes, shells = np.linspace(0, last, BANDS), np.arange(last + 1)
    return np.array([np.interp(shells, nodes, row) for row in np.eye(BANDS)])


def blended(parts: Sequence[np.ndarray], rest: np.ndarray, weights: Weights, workers: int = 1) -> np.ndarray:
    """The composite (N, N, N) float32 of masked maps m_k B_k and of the rest; the same weights for both halves."""
    total = (1 - weights.covered) * rest
    if not weights.overlaps:
        for part in parts:
            total = total + part  # W is 1 wherever a mask is not 0 …
        return np.asarray(total, np.float32)
    for band, share in enumerate(bank(len(rest))):
        ratio = shared(weights, band)
        for part, rho in zip(parts, weights.reliability[:, band]):
            total = total + rho * ratio * fourier.apply_shell_filter(part, share, workers)
    return np.asarray(total, np.float32)


def shared(weights: Weights, band: int) -> np.ndarray:
    """M / Σ_j m_j ρ_j (N, N, N) in a band; 0 where no mask is."""
    total: List[np.ndarray] = [mask * rho for mask, rho in zip(weights.masks, weights.reliability[:, band])]
    divisor = np.sum(total, axis=0)
    quotient: np.ndarray = np.divide(weights.covered, divisor, out=np.zeros_like(divisor), where=divisor > 1e-6)
    return quotient
