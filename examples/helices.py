"""Protein-like density by rule: beads of alpha helices, alone or in a ball. Å; no coordinates of a real protein."""
from __future__ import annotations

import numpy as np

RISE, RADIUS_MAIN, RADIUS_SIDE, PER_TURN = 1.5, 2.3, 5.5, 100.0  # Å and degrees of an alpha helix


def helix(centre: np.ndarray, direction: np.ndarray, residues: int, phase: float) -> np.ndarray:
    """Beads (2 · residues, 3): main chain and side chains along an axis through ``centre``."""
    direction = direction / np.linalg.norm(direction)
    across = np.cross(direction, [1.0, 0.0, 0.0] if abs(direction[0]) < 0.9 else [0.0, 1.0, 0.0])
    across /= np.linalg.norm(across)
    other = np.cross(direction, across)
    along = (np.arange(residues) - (residues - 1) / 2) * RISE
    angle = np.deg2rad(PER_TURN) * np.arange(residues) + phase
    out = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * other
    axis = centre + along[:, None] * direction
    return np.concatenate([axis + RADIUS_MAIN * out, axis + RADIUS_SIDE * out])


def ball(rng: np.random.Generator, middle: np.ndarray, radius: float, helices: int, residues: int) -> np.ndarray:
    """Beads (2 · helices · residues, 3) of helices of any direction whose centres fill a ball."""
    centres = rng.standard_normal((helices, 3))
    centres *= (radius * rng.random((helices, 1)) ** (1 / 3)) / np.linalg.norm(centres, axis=1)[:, None]
    return np.concatenate([helix(centre + middle, rng.standard_normal(3), residues, rng.uniform(0, 2 * np.pi))
                           for centre in centres])
