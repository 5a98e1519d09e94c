"""The point a sub-volume turns about, from the poses found."""
from __future__ import annotations

from typing import NamedTuple, Tuple

import numpy as np

LEAST_SHARE = 0.02  # of the largest eigenvalue: an axis along which the point is less determined stays as it was

ROWS_AT_ONCE = 50_000


class Hinge(NamedTuple):
    """point (3,) px from the box centre, xyz; explained: the share of Σ|displacement|² a turn about it accounts for."""

    point: np.ndarray
    explained: float


def estimate_hinge(rotation0: np.ndarray, shift0: np.ndarray, rotation: np.ndarray, shift: np.ndarray,
                   start: np.ndarray) -> Hinge:
    """The point h that stays where it is: least squares of (t − t0) + P(R − R0) h = 0 over n particles.

    With h = start + x the displacement of the projected start is s = (t − t0) + P(R − R0) start, and x solves
    Σ GᵀG x = −Σ Gᵀ s, G = P(R − R0). Directions in which turning tells nothing (along a common axis) are left at 0.
    Errors of the poses pull the estimate towards the centre of the mask, about which they are smallest.

    Parameters
    ----------
    rotation0, rotation : (n, 3, 3).  shift0, shift : (n, 2) px; slices of them are taken, one after
        the other.
    start : (3,) px from the box centre, xyz.
    """
    count, normal, right, before = len(rotation), np.zeros((3, 3)), np.zeros(3), 0.0
    parts = [slice(first, first + ROWS_AT_ONCE) for first in range(0, count, ROWS_AT_ONCE)]
    for part in parts:
        g, moved = displacements(rotation0[part], shift0[part], rotation[part], shift[part], start)
        normal += np.einsum("nij,nik->jk", g, g)
        right -= np.einsum("nij,ni->j", g, moved)
        before += float((moved ** 2).sum())
    values, axes = np.linalg.eigh(normal)
    known = values > LEAST_SHARE * max(values[-1], 1e-12)
    x = axes[:, known] @ ((axes[:, known].T @ right) / values[known]) if known.any() else np.zeros(3)
    # Σ |s + G x|²
    after = before - 2 * float(x @ right) + float(x @ normal @ x)
    return Hinge(start + x, 1 - after / before if before > 0 else 0.0)


def displacements(rotation0: np.ndarray, shift0: np.ndarray, rotation: np.ndarray, shift: np.ndarray,
                  start: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """G (n, 2, 3) and s (n, 2)."""
    g = (rotation - rotation0)[:, :2]
    return g, shift - shift0 + g @ start
