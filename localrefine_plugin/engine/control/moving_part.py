"""Which density in a mask moves with the poses found in it, and which stays with the rest of the particle.

Two maps are made of the same images, half-set by half-set: one at the poses of the mask (or of a part of it), one at
those of the rest. Density is sharper in the map made at its own poses. In a band of resolution about λ = 2π/k, the
product of both half-maps is, in the mean over a neighbourhood, the power of the structure times exp(−k² v), with v the
variance per axis of its place; noise has no mean. So, with A the product in the map of the mask, B in that of the rest,
and v of the errors of the poses alone,

    s = ½ [1 + (ln A/B − k² (v_rest − v_mask)) / (k² v_motion)]

is 1 for density that moves with the mask and 0 for density that moves with the rest, if the mask moves by v_motion.
Otsu's threshold (1979, doi:10.1109/TSMC.1979.4310076) divides the density of a mixed mask by s.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Tuple

import numpy as np
import scipy.ndimage

from ..model.fourier import apply_shell_filter, resample_map

BAND_ANGSTROM = 20.0, 9.0  # finer detail is gone in a map at the wrong poses, coarser one hardly changes
FINEST_PIXEL = 3.0  # Å: what the band needs
NEIGHBOURHOOD_ANGSTROM, EDGE_ANGSTROM = 6.0, 4.0  # s.d. of Gaussians
LEAST_POWER = 0.05  # of the greatest
HARDLY = 1e-3  # k² v of a motion that does not count
BINS, S_RANGE = 200, (-0.5, 1.5)  # of s; what lies outside is noise where little moves
BAND_ORDER = 8


@dataclass(frozen=True)
class CoarseGrid:
    """Maps of N³ px on the fewest voxels that hold the band: ``box``, and ``scale`` of its voxels per px."""

    box: int
    scale: float
    voxel_angstrom: float
    workers: int = 1

    @classmethod
    def of(cls, box_size: int, pixel_size: float, workers: int) -> "CoarseGrid":
        box = min(box_size, 2 * int(np.ceil(box_size * pixel_size / FINEST_PIXEL / 2)))
        return cls(box, box / box_size, box_size * pixel_size / box, workers)

    def map(self, volume: np.ndarray) -> np.ndarray:
        """A map (N, N, N) on it, in its band."""
        shell = np.arange(self.box // 2 + 1) / (self.box * self.voxel_angstrom)
        low, high = BAND_ANGSTROM
        band = (1 - 1 / (1 + (shell * low) ** BAND_ORDER)) / (1 + (shell * high) ** (2 * BAND_ORDER))
        result: np.ndarray = apply_shell_filter(resample_map(volume, self.box, self.workers), band, self.workers)
        return result

    def mask(self, mask: np.ndarray) -> np.ndarray:
        result: np.ndarray = np.clip(resample_map(mask, self.box, self.workers), 0, 1)
        return result

    def smooth(self, volume: np.ndarray, angstrom: float) -> np.ndarray:
        result: np.ndarray = scipy.ndimage.gaussian_filter(volume, angstrom / self.voxel_angstrom)
        return result

    def agreement(self, maps: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
        """The product of two half-maps of the band in the mean over a neighbourhood, under a mask."""
        return self.smooth(maps[0] * maps[1] * mask, NEIGHBOURHOOD_ANGSTROM)

    def wave_number2(self, maps: Sequence[np.ndarray], mask: np.ndarray) -> float:
        """k², px⁻², in the mean over the power that two half-maps share."""
        first, second = (np.fft.rfftn(volume * mask) for volume in maps)
        power = (first * second.conj()).real
        turns = np.fft.fftfreq(self.box)
        k2 = (turns ** 2)[:, None, None] + (turns ** 2)[:, None] + np.fft.rfftfreq(self.box) ** 2
        return float((2 * np.pi * self.scale) ** 2 * (power * k2).sum() / max(float(power.sum()), 1e-30))


def log_ratio(of: np.ndarray, against: np.ndarray) -> np.ndarray:
    """ln A/B of two agreements, which noise may make negative: those count as next to nothing."""
    least = 1e-9
    result: np.ndarray = np.log(np.maximum(of, least * of.max()) / np.maximum(against, least * against.max()))
    return result


def upper_half(grid: CoarseGrid, ratio: np.ndarray, power: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A soft mask about the half of the power in the mask where the ratio is highest."""
    inside = mask > 0.5
    order = np.argsort(ratio[inside], kind="stable")
    total = np.cumsum(np.maximum(power[inside], 0)[order])
    middle = ratio[inside][order][np.searchsorted(total, 0.5 * total[-1])]
    return mask * grid.smooth((ratio > middle).astype(np.float32), EDGE_ANGSTROM)


def belonging(ratio: np.ndarray, errors: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """s, from ln A/B, k² (v_rest − v_mask) and k² v_motion, all (box, box, box)."""
    result: np.ndarray = 0.5 * (1 + (ratio - errors) / np.maximum(motion, HARDLY))
    return result


def divided(grid: CoarseGrid, s: np.ndarray, power: np.ndarray, mask: np.ndarray) -> Tuple[float, np.ndarray]:
    """The share of the power in the mask below Otsu's threshold of s, and a soft mask about the rest of it."""
    inside = (mask > 0.5) & (power > LEAST_POWER * power.max())
    threshold = otsu(s[inside], power[inside])
    share = float(power[inside & (s < threshold)].sum() / power[inside].sum())
    above = ((s > threshold) & (power > LEAST_POWER * power.max())).astype(np.float32)
    return share, mask * grid.smooth(above, EDGE_ANGSTROM)


def otsu(values: np.ndarray, weight: np.ndarray) -> float:
    """The threshold (Otsu 1979) that parts values (n,) in S_RANGE, of weights (n,), into the two classes that differ
    most."""
    counts, edges = np.histogram(values, BINS, S_RANGE, weights=weight)
    middle = 0.5 * (edges[1:] + edges[:-1])
    below = np.cumsum(counts) / counts.sum()
    mean = np.cumsum(counts * middle) / counts.sum()
    between = (mean[-1] * below - mean) ** 2 / np.maximum(below * (1 - below), 1e-9)
    return float(edges[1:][between.argmax()])
