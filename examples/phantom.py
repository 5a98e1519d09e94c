"""Maps of the bodies of the example: beads → density, soft masks, density smeared by motions.

Positions are x, y, z in Å from the centre of the box (voxel N // 2); arrays are [z, y, x].
"""
from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np
import scipy.fft
from scipy import ndimage

MODEL = Path(__file__).parent / "data" / "1xnr_pseudo_atoms.npz"
BEAD_B_FACTOR = 180.0      # Å²: the size of a bead (r.m.s. radius about 2.2 Å) and the motion of its atoms
FINE_VOXEL = 1.5           # Å: grid on which the beads are laid down


@dataclass(frozen=True)
class Model:
    """Beads of a complex of two bodies, or three; B turns about the fulcrum, C about its own.

    Attributes
    ----------
    position : (n, 3) Å.  weight : (n,) scattering.  in_body_b : (n,) bool.  fulcrum : (3,) Å.
    in_body_c, fulcrum_c : the same of body C, None where there is none.
    """

    position: np.ndarray
    weight: np.ndarray
    in_body_b: np.ndarray
    fulcrum: np.ndarray
    in_body_c: Optional[np.ndarray] = None
    fulcrum_c: Optional[np.ndarray] = None

    @classmethod
    def load(cls, path: Path = MODEL) -> "Model":
        with np.load(path) as data:
            return cls(data["position_angstrom"].astype(np.float64), data["weight"].astype(np.float64),
                       data["in_body_b"], data["fulcrum_angstrom"])

    @property
    def centroid_b(self) -> np.ndarray:
        return self.centroid(self.in_body_b)

    @property
    def centroid_c(self) -> np.ndarray:
        return self.centroid(self.in_body_c)

    @property
    def fulcrums(self) -> List[np.ndarray]:
        return [point for point in (self.fulcrum, self.fulcrum_c) if point is not None]

    def centroid(self, chosen: np.ndarray) -> np.ndarray:
        return np.average(self.position[chosen], axis=0, weights=self.weight[chosen])

    @property
    def radius(self) -> float:
        return float(np.linalg.norm(self.position, axis=1).max())

    def bodies(self, box_size: int, pixel_size: float) -> List[np.ndarray]:
        """Densities of body A, body B and, where there is one, body C."""
        moving = [self.in_body_b] + ([] if self.in_body_c is None else [self.in_body_c])
        return [density(self.position[chosen], self.weight[chosen], box_size, pixel_size)
                for chosen in (~np.any(moving, axis=0), *moving)]


def density(position: np.ndarray, weight: np.ndarray, box_size: int, pixel_size: float) -> np.ndarray:
    """Band-limited density (N, N, N) of Gaussian beads.

    The beads are shared among the eight nearest points of a fine grid, which multiplies the transform by
    sinc² per axis; that is divided out, exp(−B s²/4) applied, and the transform cropped to the box.
    """
    factor = int(np.ceil(pixel_size / FINE_VOXEL))
    fine, voxel = box_size * factor, pixel_size / factor
    transform = scipy.fft.rfftn(scipy.fft.ifftshift(_splat(position / voxel + fine // 2, weight, fine)), workers=2)
    k = np.r_[0:(box_size + 1) // 2, fine - box_size // 2:fine]
    cropped = transform[np.ix_(k, k, np.arange(box_size // 2 + 1))] / pixel_size ** 3
    if box_size % 2 == 0:
        nyquist = box_size // 2
        cropped[nyquist], cropped[:, nyquist], cropped[:, :, nyquist] = 0, 0, 0
    for frequency in _frequencies(box_size, pixel_size):
        cropped *= np.exp(-BEAD_B_FACTOR / 4 * frequency ** 2) / np.sinc(frequency * voxel) ** 2
    return scipy.fft.fftshift(scipy.fft.irfftn(cropped, s=(box_size,) * 3, workers=2)).astype(np.float32)


def _splat(where: np.ndarray, weight: np.ndarray, size: int) -> np.ndarray:
    low = np.floor(where).astype(int)
    if low.min() < 0 or low.max() > size - 2:
        raise ValueError("the model does not fit into the box: choose a larger box or pixel size")
    share = where - low
    grid = np.zeros(size ** 3)
    for corner in product((0, 1), repeat=3):
        x, y, z = (low + corner).T
        part = np.prod(np.where(corner, share, 1 - share), axis=1)
        grid += np.bincount((z * size + y) * size + x, weight * part, size ** 3)
    return grid.reshape(size, size, size).astype(np.float32)


def _frequencies(box_size: int, pixel_size: float) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies in 1/Å of a half spectrum, shaped to multiply it along z, y and x."""
    full, half = np.fft.fftfreq(box_size, pixel_size), np.fft.rfftfreq(box_size, pixel_size)
    return full[:, None, None], full[None, :, None], half[None, None, :]


def lowpass(volume: np.ndarray, pixel_size: float, resolution: float) -> np.ndarray:
    """Gaussian low-pass that halves the amplitude at 1/resolution."""
    n = volume.shape[0]
    s2 = sum(frequency ** 2 for frequency in _frequencies(n, pixel_size))
    filtered = scipy.fft.rfftn(volume, workers=2) * np.exp(-np.log(2) * s2 * resolution ** 2)
    return scipy.fft.irfftn(filtered, s=volume.shape, workers=2).astype(np.float32)


def soft_mask(volume: np.ndarray, pixel_size: float, grow: float = 6.0, edge: float = 20.0) -> np.ndarray:
    """Mask of a noise-free map: 1 up to ``grow`` Å from its outline at 15 Å, a cosine to 0 over ``edge`` Å."""
    smooth = lowpass(volume, pixel_size, 15.0)
    inside = smooth > 0.12 * np.percentile(smooth[smooth > 0.2 * smooth.max()], 90)
    t = np.clip((ndimage.distance_transform_edt(~inside) * pixel_size - grow) / edge, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * t)).astype(np.float32)


def smeared(body: np.ndarray, hinge: np.ndarray, displacement: np.ndarray, pixel_size: float) -> np.ndarray:
    """Mean of the density at H x + d over m motions: ``hinge`` H (m, 3, 3) and ``displacement`` d (m, 3) in Å."""
    centre = np.full(3, body.shape[0] // 2)
    total = np.zeros_like(body)
    for h, d in zip(hinge, displacement):
        matrix = h[::-1, ::-1]
        total += ndimage.affine_transform(body, matrix, centre - matrix @ centre + d[::-1] / pixel_size, order=1)
    return total / len(hinge)
