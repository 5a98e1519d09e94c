"""The point a sub-volume turns about, from the poses found."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAST_SHARE = 0.02  # of the largest eigenvalue: an axis along which the point is less determined stays as it was


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
    rotation0, rotation : (n, 3, 3).  shift0, shift : (n, 2) px.  start : (3,) px from the box centre, xyz.
    """
    g = (rotation - rotation0)[:, :2]
    moved = shift - shift0 + g @ start
    normal = np.einsum("nij,nik->jk", g, g)
    right = -np.einsum("nij,ni->j", g, moved)
    values, axes = np.linalg.eigh(normal)
    known = values > LEAST_SHARE * max(values[-1], 1e-12)
    x = axes[:, known] @ ((axes[:, known].T @ right) / values[known]) if known.any() else np.zeros(3)
    before, after = float((moved ** 2).sum()), float(((moved + g @ x) ** 2).sum())
    return Hinge(start + x, 1 - after / before if before > 0 else 0.0)
