"""Half-sets: new ones for particles whose old ones shall not count, and signs that they were replaced before."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..records.errors import InputError
from ..records.particles import Particles

LEAST_FOR_PARITY = 24  # particles; a random split has the parity of so many with a chance of 1e-7
PARITY_TEXT = ("half-set = 1 + parity of the particle's id, which is what cryosparc2 5.0.1 writes over the split of a "
               "set it is given; only half-maps that were made with this split are independent "
               "(docs/how-to/chain-programs.md)")


def resplit(particles: Particles, seed: int) -> Particles:
    """The particles in two new random half-sets of equally many images; all copies of one image stay together."""
    images = np.stack([particles.stack.astype(np.int64), particles.slice])
    distinct, image = np.unique(images, axis=1, return_inverse=True)
    count = distinct.shape[1]
    if count < 2:
        raise InputError("all rows are copies of one image", "particles", "give at least two images")
    half = np.random.default_rng(seed).permutation(count) % 2 + 1
    return replace(particles, half_set=half[image.reshape(-1)].astype(np.int8))


def parity_split(ids: np.ndarray, half_set: np.ndarray) -> bool:
    """Whether every half-set is 1 + id mod 2, for ids of both parities."""
    odd = np.asarray(ids) % 2
    mixed = len(odd) >= LEAST_FOR_PARITY and 0 < odd.sum() < len(odd)
    return bool(mixed) and np.array_equal(np.asarray(half_set), 1 + odd)
