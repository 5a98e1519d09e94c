"""What the uncertainty of poses does to a map, as a closed form.

A point v of the density, seen in image i along the direction k̂ of its plane, is displaced by gᵀx with

    g = (v × Rᵀk̂, k̂),      x ~ N(0, C)  the error of the pose (rotation in the body frame, displacement in the image),

so that the shell of frequency q loses the factor exp(−½ q² gᵀCg), averaged over images and directions.
"""
from __future__ import annotations

import numpy as np

DIRECTIONS = 2  # in the plane of each image
QUANTILES = 24  # groups of images and directions, by how much they blur


def attenuation(covariance: np.ndarray, rotation: np.ndarray, points: np.ndarray, shells: np.ndarray,
                box_size: int) -> np.ndarray:
    """(p, S) the share of the amplitude that is left at points (p, 3) px in shells (S,), of poses with errors
    ``covariance`` (m, 5, 5) at ``rotation`` (m, 3, 3)."""
    q2 = (2 * np.pi * shells / box_size) ** 2
    variances = []
    for angle in np.arange(DIRECTIONS) * np.pi / DIRECTIONS:
        seen = np.array([np.cos(angle), np.sin(angle)])
        along = rotation[:, 0] * seen[0] + rotation[:, 1] * seen[1]
        turned = np.cross(points[:, None], along[None])
        g = np.concatenate([turned, np.broadcast_to(seen, turned.shape[:2] + (2,))], axis=2)
        variances.append(np.einsum("pmi,mij,pmj->pm", g, covariance, g, optimize=True))
    sorted_ = np.sort(np.concatenate(variances, axis=1), axis=1)
    start = np.unique(np.linspace(0, sorted_.shape[1], QUANTILES, endpoint=False).astype(int))
    count = np.diff(np.append(start, sorted_.shape[1]))
    middle = np.add.reduceat(sorted_, start, axis=1) / count  # alike within a group, so that their mean stands for all
    left: np.ndarray = (np.exp(-0.5 * q2[:, None, None] * middle) @ (count / count.sum())).T
    return left
