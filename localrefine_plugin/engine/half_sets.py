"""New half-sets for particles whose old ones shall not count."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from .records import InputError, Particles


def resplit(particles: Particles, seed: int) -> Particles:
    """The particles in two new random half-sets of equally many images; all copies of one image stay together."""
    images = np.stack([particles.stack.astype(np.int64), particles.slice])
    distinct, image = np.unique(images, axis=1, return_inverse=True)
    count = distinct.shape[1]
    if count < 2:
        raise InputError("all rows are copies of one image", "particles", "give at least two images")
    half = np.random.default_rng(seed).permutation(count) % 2 + 1
    return replace(particles, half_set=half[image.reshape(-1)].astype(np.int8))
