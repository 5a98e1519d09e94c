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

from ..kernels.device import array_module, stable_argsort
from ..kernels.fixed_point import summable
from ..model.pose import exp_map, log_map
from .search import Modes

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


def mode_weights(modes: Modes, n: int) -> Array:
    """Posterior probability (m,) of each mode among those of its image (Laplace): ∝ e^score |A|^{−½}."""
    xp = array_module(modes.w)
    _, log_det = xp.linalg.slogdet(modes.precision + 1e-9 * xp.eye(5))
    log_mass = modes.score - 0.5 * log_det
    start = xp.searchsorted(modes.owner, xp.arange(n))
    top = xp.full(n, -xp.inf)
    maximum_at(top, modes.owner, log_mass)
    mass = summable(xp.exp(log_mass - top[modes.owner]))
    total = xp.add.reduceat(mass, start) if xp is np else xp.bincount(modes.owner, mass, n)
    return mass / total[modes.owner]


def spread_of_modes(modes: Modes, best: Modes, weights: Array, n: int) -> Array:
    """Σ p x xᵀ (n, 5, 5) over the modes of each of n images: p (m,) their `mode_weights`, x how far they are from its
    best (rotation vector of the right increment, displacement of the mask's centre in px).

    The mean square error of the best pose is this, where the truth may be at any mode, and the width of the modes.
    """
    xp = array_module(modes.w)
    turn = log_map(xp.swapaxes(best.rotation[modes.owner], 1, 2) @ modes.rotation)
    x = xp.concatenate([turn, modes.shift - best.shift[modes.owner]], axis=1)
    terms = summable(weights[:, None, None] * x[:, :, None] * x[:, None, :])
    place = 25 * modes.owner[:, None] + xp.arange(25)
    return xp.bincount(place.ravel(), terms.ravel(), 25 * n).reshape(n, 5, 5)


def maximum_at(target: Array, index: Array, values: Array) -> None:
    xp = array_module(target)
    xp.maximum.at(target, index, values)


def best_only(modes: Modes) -> Insertions:
    """One insertion per mode, no smearing (modes: the best of each image)."""
    xp = array_module(modes.w)
    m = len(modes.owner)
    return Insertions(modes.owner, modes.rotation, modes.shift, xp.ones(m), xp.zeros(m))


def posterior_insertions(modes: Modes, weights: Array, voxels_per_radian: float, n: int) -> Insertions:
    """Insertions of all modes (m,), with weights (m,); the weights of each of n images add to one.

    ``voxels_per_radian``: how far one radian moves the outermost sample in the padded grid.
    """
    xp = array_module(modes.w)
    keep = weights > SMALLEST_WEIGHT
    modes, weights = modes.take(keep), summable(weights[keep])
    weights = weights / xp.bincount(modes.owner, weights, n)[modes.owner]
    covariance = xp.linalg.inv(modes.precision + 1e-9 * xp.eye(5))
    count, root, pair = split_rotation(covariance[:, :3, :3], voxels_per_radian)
    gain = covariance[:, 3:, :3] @ xp.linalg.inv(covariance[:, :3, :3])  # E[u | w] = gain·w
    given_rotation = covariance[:, 3:, 3:] - gain @ covariance[:, :3, 3:]
    variance_of_shift = 0.5 * xp.trace(given_rotation, axis1=1, axis2=2)
    parts = [(count == 0, xp.zeros((len(count), 3)), xp.ones(len(count)))]
    for number, corner in enumerate(TETRAHEDRON):
        offset = root @ xp.asarray(corner)
        if number < 2:
            offset = xp.where((count == 1)[:, None], (1 - 2 * number) * pair, offset)
        parts.append((count > (0 if number < 2 else 1), offset, xp.where(count == 1, 0.5, 0.25)))
    index = xp.concatenate([xp.nonzero(chosen)[0] for chosen, _, _ in parts])
    offset = xp.concatenate([o[chosen] for chosen, o, _ in parts])
    share = xp.concatenate([s[chosen] for chosen, _, s in parts])
    order = stable_argsort(index)
    index, offset, share = index[order], offset[order], share[order]
    return Insertions(modes.owner[index], modes.rotation[index] @ exp_map(offset),
                      modes.shift[index] + (gain[index] @ offset[..., None])[..., 0],
                      weights[index] * share, variance_of_shift[index])


def split_rotation(covariance: Array, voxels_per_radian: float) -> Tuple[Array, Array, Array]:
    """How far a rotation's posterior is spread, from covariances (n, 3, 3) in rad².

    Returns
    -------
    count : (n,) principal axes along which ±σ are different poses.
    root : (n, 3, 3) S, the symmetric root of the covariance along these axes.
    pair : (n, 3) σ a of the widest axis, with its largest component positive.
    """
    xp = array_module(covariance)
    variance, axes = xp.linalg.eigh(covariance)
    deviation = xp.sqrt(xp.maximum(variance, 0))
    split = deviation * voxels_per_radian > 0.5
    root = (axes * (split * deviation)[:, None]) @ xp.swapaxes(axes, 1, 2)
    each = xp.arange(len(axes))
    first = deviation.argmax(axis=1)
    widest = axes[each, :, first]
    sign = xp.sign(widest[each, xp.abs(widest).argmax(axis=1)])
    return xp.sum(split, axis=1), root, widest * (sign * deviation[each, first])[:, None]
