"""The posterior of an image's pose as a few insertions with weights.

Around each mode the posterior is taken as the Gaussian of covariance A⁻¹ (A the likelihood's curvature
plus the prior). Shifts are integrated exactly: the phase of a Gaussian shift averages to
exp(−½ (2π/N)² v |k|²), v the mean variance of its two axes, on the numerator only. Rotations become sigma points, each
with the shift that goes with it: the fewest points that reproduce mean and covariance (Julier & Uhlmann 2004,
doi:10.1109/JPROC.2003.823141). Only those principal axes count whose spread moves the outermost Fourier sample by more
than half a voxel:

    none     the mode itself
    one      ±σ a along it
    more     S c at the corners c of a tetrahedron, S = Σ σ_i a_i a_iᵀ over these axes.

S is a function of the covariance alone: signs and order of the eigenvectors, and axes of equal variance, do not matter.
Libraries choose them in different ways.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np

from ..kernels import poses
from ..kernels.device import array_module, stable_argsort
from ..kernels.fixed_point import summable
from ..model.pose import exp_map, log_map
from .modes import Modes

Array = Any
SMALLEST_WEIGHT = 1e-3
TETRAHEDRON = np.array([[1.0, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])


@dataclass(frozen=True)
class Insertions:
    """m insertions: owner (m,), rotation (m, 3, 3), shift (m, 2) px of the mask centre, weight (m,),
    shift_variance (m,) px² per axis."""

    owner: Array
    rotation: Array
    shift: Array
    weight: Array
    shift_variance: Array


def weigh(modes: Modes, best: Modes, n: int) -> Tuple[Array, Array]:
    """`mode_weights` and `spread_of_modes` of modes in the order of their images, the best of each first."""
    if array_module(modes.table) is not np:
        return poses.weigh_modes(modes.owner, modes.table, n)
    weights = mode_weights(modes, n)
    return weights, spread_of_modes(modes, best, weights, n)


def mode_weights(modes: Modes, n: int) -> np.ndarray:
    """Posterior probability (m,) of each mode among those of its image (Laplace): ∝ e^score |A|^{−½}."""
    _, log_det = np.linalg.slogdet(modes.precision + 1e-9 * np.eye(5))
    log_mass = modes.score - 0.5 * log_det
    top = np.full(n, -np.inf)
    np.maximum.at(top, modes.owner, log_mass)
    mass = summable(np.exp(log_mass - top[modes.owner]))
    weights: np.ndarray = mass / np.add.reduceat(mass, np.searchsorted(modes.owner, np.arange(n)))[modes.owner]
    return weights


def spread_of_modes(modes: Modes, best: Modes, weights: np.ndarray, n: int) -> np.ndarray:
    """Σ p x xᵀ (n, 5, 5) over the modes of each of n images: p (m,) their `mode_weights`, x how far they are from its
    best (rotation vector of the right increment, displacement of the mask's centre in px).

    The mean square error of the best pose is this, where the truth may be at any mode, and the width of the modes.
    """
    turn = log_map(np.swapaxes(best.rotation[modes.owner], 1, 2) @ modes.rotation)
    x = np.concatenate([turn, modes.shift - best.shift[modes.owner]], axis=1)
    terms = summable(weights[:, None, None] * x[:, :, None] * x[:, None, :])
    place = 25 * modes.owner[:, None] + np.arange(25)
    return np.bincount(place.ravel(), terms.ravel(), 25 * n).reshape(n, 5, 5)


def best_only(modes: Modes) -> Insertions:
    """One insertion per mode, no smearing (modes: the best of each image)."""
    xp = array_module(modes.table)
    m = len(modes.owner)
    return Insertions(modes.owner, modes.rotation, modes.shift, xp.ones(m), xp.zeros(m))


def posterior_insertions(modes: Modes, weights: Array, voxels_per_radian: float, n: int) -> Insertions:
    """Insertions of all modes (m,), with weights (m,); the weights of each of n images add to one.

    ``voxels_per_radian``: how far one radian moves the outermost sample in the padded grid.
    """
    if array_module(modes.table) is not np:
        found, index = poses.make_insertions(modes.owner, modes.table, weights, SMALLEST_WEIGHT, voxels_per_radian)
        return Insertions(modes.owner[index], found[:, :9].reshape(len(found), 3, 3), found[:, 9:11], found[:, 11],
                          found[:, 12])
    keep = weights > SMALLEST_WEIGHT
    modes, weights = modes.take(keep), summable(weights[keep])
    weights = weights / np.bincount(modes.owner, weights, n)[modes.owner]
    covariance = np.linalg.inv(modes.precision + 1e-9 * np.eye(5))
    count, root, pair = split_rotation(covariance[:, :3, :3], voxels_per_radian)
    gain = covariance[:, 3:, :3] @ np.linalg.inv(covariance[:, :3, :3])  # E[u | w] = gain·w
    given_rotation = covariance[:, 3:, 3:] - gain @ covariance[:, :3, 3:]
    variance_of_shift = 0.5 * np.trace(given_rotation, axis1=1, axis2=2)
    parts = [(count == 0, np.zeros((len(count), 3)), np.ones(len(count)))]
    for number, corner in enumerate(TETRAHEDRON):
        offset = root @ corner
        if number < 2:
            offset = np.where((count == 1)[:, None], (1 - 2 * number) * pair, offset)
        parts.append((count > (0 if number < 2 else 1), offset, np.where(count == 1, 0.5, 0.25)))
    index = np.concatenate([np.flatnonzero(chosen) for chosen, _, _ in parts])
    offset = np.concatenate([o[chosen] for chosen, o, _ in parts])
    share = np.concatenate([s[chosen] for chosen, _, s in parts])
    order = stable_argsort(index)
    index, offset, share = index[order], offset[order], share[order]
    return Insertions(modes.owner[index], modes.rotation[index] @ exp_map(offset),
                      modes.shift[index] + (gain[index] @ offset[..., None])[..., 0],
                      weights[index] * share, variance_of_shift[index])


def split_rotation(covariance: np.ndarray, voxels_per_radian: float) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far a rotation's posterior is spread, from covariances (n, 3, 3) in rad².

    Returns
    -------
    count : (n,) principal axes along which ±σ are different poses.
    root : (n, 3, 3) S, the symmetric root of the covariance along these axes.
    pair : (n, 3) σ a of the widest axis, with its largest component positive.
    """
    variance, axes = np.linalg.eigh(covariance)
    deviation = np.sqrt(np.maximum(variance, 0))
    split = deviation * voxels_per_radian > 0.5
    root = (axes * (split * deviation)[:, None]) @ np.swapaxes(axes, 1, 2)
    each = np.arange(len(axes))
    first = deviation.argmax(axis=1)
    widest = axes[each, :, first]
    sign = np.sign(widest[each, np.abs(widest).argmax(axis=1)])
    return np.sum(split, axis=1), root, widest * (sign * deviation[each, first])[:, None]
