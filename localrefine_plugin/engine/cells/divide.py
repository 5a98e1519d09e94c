"""A particle divided into cells of about the same density, for what each of them says of its motion.

The cells are those of weighted k-means (Lloyd 1982, doi:10.1109/TIT.1982.1056489) over the density inside the outline,
started by farthest points, so that the same map gives the same cells. Their masks are soft, and add up to the outline.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from ..align.reference import integer_centre
from ..maps.half_maps import region_of

EDGE_ANGSTROM = 4.0  # s.d. of the Gaussian between two cells
LEAST_DENSITY = 0.1  # of its 95th percentile: what lies below does not draw a cell
SWEEPS = 100
TRUNCATE = 4.0  # s.d. where the Gaussian ends
NOWHERE = 1e-3  # of a mask


@dataclass(frozen=True)
class Cells:
    """label (N, N, N), the number of each voxel's cell, −1 outside; scale (N, N, N), what makes the sum of all masks
    the outline; blur, s.d. in px between two cells; centres (C, 3), whole px from the box centre; share (C,) of the
    density.

    Masks are made one at a time: all of them would not fit into memory.
    """

    label: np.ndarray
    scale: np.ndarray
    blur: float
    centres: np.ndarray
    share: np.ndarray

    def __len__(self) -> int:
        return len(self.share)

    def mask(self, cell: int) -> np.ndarray:
        """(N, N, N) float32."""
        return softened(self.label == cell, self.blur) * self.scale

    def paint(self, values: np.ndarray) -> np.ndarray:
        """A map (N, N, N) that has a value in each cell, (C,)."""
        painted = np.zeros(self.label.shape, np.float32)
        for cell in np.flatnonzero(values):
            painted += np.float32(values[cell]) * self.mask(cell)
        return painted


def softened(region: np.ndarray, blur: float) -> np.ndarray:
    """A region (N, N, N) with a Gaussian edge that ends."""
    box, mask = region_of(region, int(np.ceil(TRUNCATE * blur))), np.zeros(region.shape, np.float32)
    mask[box] = scipy.ndimage.gaussian_filter(region[box].astype(np.float32), blur, truncate=TRUNCATE)
    mask[mask < NOWHERE] = 0
    return mask


def divide(volume: np.ndarray, outline: np.ndarray, count: int, pixel_size: float) -> Cells:
    """``count`` cells of the density of a map (N, N, N) in its outline."""
    box, blur = len(volume), EDGE_ANGSTROM / pixel_size
    density = np.maximum(scipy.ndimage.gaussian_filter(volume, blur), 0) * outline
    inside = np.nonzero(outline > NOWHERE)
    place = np.stack(inside[::-1], axis=1) - float(box // 2)
    weight = density[inside]
    heavy = np.maximum(weight - LEAST_DENSITY * np.percentile(weight, 95), 0)
    label = np.full(volume.shape, -1, np.int16)
    label[inside] = nearest(place, means(place[heavy > 0], heavy[heavy > 0], count))
    total = np.zeros(volume.shape, np.float32)
    for cell in range(count):
        total += softened(label == cell, blur)
    scale = (outline / np.maximum(total, NOWHERE)).astype(np.float32)
    whole = Cells(label, scale, blur, np.zeros((count, 3)), np.ones(count))
    held, centres = [], []
    for cell in range(count):
        mask = whole.mask(cell)
        held.append(float((mask * density).sum(dtype=np.float64)))
        centres.append(integer_centre(mask))
    return Cells(label, scale, blur, np.stack(centres), np.array(held) / sum(held))


def means(place: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """Centres (count, 3) of weighted k-means of places (n, 3)."""
    chosen = [int(weight.argmax())]
    distance = np.full(len(place), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, ((place - place[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int((distance * weight).argmax()))
    centres = place[chosen]
    for _ in range(SWEEPS):
        label = nearest(place, centres)
        total = np.maximum(np.bincount(label, weight, count), 1e-30)
        moved = np.stack([np.bincount(label, weight * place[:, k], count) / total for k in range(3)], axis=1)
        still = np.abs(moved - centres).max() < 0.05
        centres = moved
        if still:
            break
    result: np.ndarray = centres
    return result


def nearest(place: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The centre (n,) that each place (n, 3) is nearest to; of those as near, which voxels have, the first."""
    label, least = np.zeros(len(place), int), np.full(len(place), np.inf)
    for number, centre in enumerate(centres):
        distance = ((place - centre) ** 2).sum(axis=1)
        label[distance < least] = number
        least = np.minimum(least, distance)
    return label
