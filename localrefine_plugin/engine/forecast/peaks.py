"""The other peaks of the posterior of a pose that no prior holds: how much of it is where the pose is.

Where the signal is low and the search wide, noise makes peaks as high as the true one. With |Y|² the energy of the
reference in an image, g of it signal, n standard normal, and e^L the number of cells that a pose can be told apart in
(align/nulls.py), the cell of the true pose and those of noise have the posterior masses

    T = exp(|Y| (g |Y| + n) − ½ |Y|²),      t_j = exp(|Y| n_j − ½ |Y|²),   j = 2 … e^L,

the random energy model (Derrida 1981, doi:10.1103/PhysRevB.24.2613). The n_j stand at the quantiles of the normal
distribution. Of the mass, q = T / (T + Σ t_j) is at the true pose, and r at the best pose, the largest of all. The rest
lies anywhere in the search; so does the best pose where it is not the true one, which is near the input pose.
Within a Gaussian prior such peaks are few: it is hardly wider than one of them.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

DRAWS = 8  # of n for each image
NODES = 24  # of the n_j
LARGEST = 12.0  # L


class Peaks(NamedTuple):
    """Of m images, DRAWS times each (m, d): q; r; and Σ of the squares of all masses, which is how much of the noise
    of an image is laid down in one place."""

    true: np.ndarray
    best: np.ndarray
    together: np.ndarray

    def elsewhere(self) -> np.ndarray:
        """(m,) expected square distance of the posterior from the best pose by other peaks, in variances of a pose that
        lies anywhere."""
        found: np.ndarray = ((1 - self.best) * (1 + (self.best > self.true))).mean(axis=1)
        return found


ONE_PEAK = Peaks(*np.ones((3, 1, 1)))


def peaks_of(energy: np.ndarray, signal: np.ndarray, size: np.ndarray) -> Peaks:
    """From |Y|² (m,), g |Y|² (m,) and L (m,)."""
    strength, size = np.sqrt(np.maximum(energy, 1e-12))[:, None], np.clip(size, 0, LARGEST)[:, None]
    edges = np.exp(-size * np.linspace(1, 0, NODES))  # of the upper tail, from one cell in all of them to all
    cells = np.expm1(size) * np.diff(edges, axis=1, prepend=0)  # without the true one
    middle = np.concatenate([0.5 * edges[:, :1], np.sqrt(edges[:, 1:] * edges[:, :-1])], axis=1)
    noise = strength * -ndtri(np.minimum(middle, 1 - 1e-9))
    n = ndtri((np.arange(DRAWS) + 0.5) / DRAWS)
    true = strength * n + np.maximum(signal, 0)[:, None]
    top = np.maximum(true.max(axis=1), noise.max(axis=1))[:, None]
    mass, of_noise = np.exp(true - top), np.exp(noise - top)
    others = (cells * of_noise).sum(axis=1, keepdims=True)
    total = mass + others
    largest = np.maximum(mass, (of_noise * (cells > 0)).max(axis=1, keepdims=True))
    squares = mass ** 2 + (cells * of_noise ** 2).sum(axis=1, keepdims=True)
    return Peaks(mass / total, largest / total, squares / total ** 2)
