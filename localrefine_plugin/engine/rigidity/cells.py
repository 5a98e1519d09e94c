"""A particle divided into cells of about the same density, for what each of them says of its motion.

The cells are those of weighted k-means (Lloyd 1982, doi:10.1109/TIT.1982.1056489) over the density inside the outline,
started by farthest points, so that the same map gives the same cells. Their masks are soft, and add up to the outline.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from scipy.spatial import cKDTree

from ..align.reference import integer_centre

EDGE_ANGSTROM = 4.0  # s.d. of the Gaussian between two cells
LEAST_DENSITY = 0.1  # of its 95th percentile: what lies below does not draw a cell
SWEEPS = 100
NOWHERE = 1e-3  # of a mask


@dataclass(frozen=True)
class Cells:
    """masks (C, N, N, N) float32, whose sum is the outline; centres (C, 3), whole px from the box centre; share (C,) of
    the density."""

    masks: np.ndarray
    centres: np.ndarray
    share: np.ndarray

    def __len__(self) -> int:
        return len(self.centres)

    def paint(self, values: np.ndarray) -> np.ndarray:
        """A map (N, N, N) that has a value in each cell, (C,)."""
        result: np.ndarray = np.einsum("c,czyx->zyx", values.astype(np.float32), self.masks)
        return result


def divide(volume: np.ndarray, outline: np.ndarray, count: int, pixel_size: float) -> Cells:
    """``count`` cells of the density of a map (N, N, N) in its outline."""
    box = len(volume)
    density = np.maximum(scipy.ndimage.gaussian_filter(volume, EDGE_ANGSTROM / pixel_size), 0) * outline
    inside = np.nonzero(outline > NOWHERE)
    place = np.stack(inside[::-1], axis=1) - float(box // 2)
    weight = density[inside]
    heavy = np.maximum(weight - LEAST_DENSITY * np.percentile(weight, 95), 0)
    centres = means(place[heavy > 0], heavy[heavy > 0], count)
    label = cKDTree(centres).query(place)[1]
    masks = np.zeros((count,) + volume.shape, np.float32)
    masks[(label,) + inside] = 1
    for mask in masks:
        scipy.ndimage.gaussian_filter(mask, EDGE_ANGSTROM / pixel_size, output=mask)
        mask[mask < NOWHERE] = 0
    masks *= outline / np.maximum(masks.sum(axis=0), NOWHERE)
    held = np.einsum("czyx,zyx->c", masks, density)
    return Cells(masks, np.stack([integer_centre(mask) for mask in masks]), held / held.sum())


def means(place: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """Centres (count, 3) of weighted k-means of places (n, 3)."""
    chosen = [int(weight.argmax())]
    distance = np.full(len(place), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, ((place - place[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int((distance * weight).argmax()))
    centres = place[chosen]
    for _ in range(SWEEPS):
        label = cKDTree(centres).query(place)[1]
        total = np.maximum(np.bincount(label, weight, count), 1e-30)
        moved = np.stack([np.bincount(label, weight * place[:, k], count) / total for k in range(3)], axis=1)
        still = np.abs(moved - centres).max() < 0.05
        centres = moved
        if still:
            break
    result: np.ndarray = centres
    return result
