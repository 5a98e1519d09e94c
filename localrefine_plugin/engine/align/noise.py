"""The radial noise power σ²(shell) = E|N(k)|² of each optics group of one half-set."""
from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.device import array_module, to_host
from ..model.pixels import half_plane_frequencies
from ..records.particles import Particles

Array = Any
PRIOR_IMAGES = 50  # a group leans on the mean of all groups with this weight (engine.md section 5)


class NoiseSums:
    """Collects the residual power of images, in float64.

    ``noise_power`` (groups, M + 1) is the σ² the images' matched filters were made with.
    """

    def __init__(self, particles: Particles, noise_power: np.ndarray):
        self.max_shell = noise_power.shape[1] - 1
        kx, ky = half_plane_frequencies(self.max_shell)
        self.group, self.noise_power = particles.optics_group, noise_power
        shell = np.rint(np.hypot(kx, ky)).astype(np.int64)
        self.counted = (shell <= self.max_shell) & ((kx > 0) | (ky > 0))
        self.shell = shell[self.counted]
        self.pixels = np.maximum(np.bincount(self.shell, minlength=self.max_shell + 1), 1)
        self.sums = np.zeros(noise_power.shape)
        self.images = np.zeros(len(noise_power))

    def add(self, rows: np.ndarray, power: Array, change: Array, change_shell: np.ndarray) -> None:
        """Add a batch: power |X|² (n, 2M + 1, M + 1), and ``change`` (n, K) = W|Y|² − 2 Re(conj(Z) Y) at
        pixels of shells ``change_shell``; with W = 2 C²/σ², ½ σ² change = |X − C Y|² − |X|²."""
        for group in np.unique(self.group[rows]):
            mine = self.group[rows] == group
            chosen = slice(None) if mine.all() else array_module(power).asarray(np.flatnonzero(mine))
            total = to_host(power[chosen].sum(axis=0, dtype=np.float64))[self.counted]
            self.sums[group] += np.bincount(self.shell, total, self.max_shell + 1)
            total = to_host(change[chosen].sum(axis=0, dtype=np.float64))
            change_sum = np.bincount(change_shell, total, self.max_shell + 1)
            self.sums[group] += 0.5 * self.noise_power[group] * change_sum
            self.images[group] += mine.sum()

    def power(self) -> np.ndarray:
        """σ² (groups, M + 1)."""
        overall = self.sums.sum(axis=0) / self.images.sum()
        mean = (self.sums + PRIOR_IMAGES * overall) / (self.images[:, None] + PRIOR_IMAGES) / self.pixels
        mean[:, 0] = mean[:, 1]  # no image of the half-plane without DC has shell 0
        result: np.ndarray = mean
        return result
