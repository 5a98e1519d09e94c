"""Where a sub-volume may be: the prior of its motion, the limits of the search, and what must not count.

With x = (w, displacement of the projected prior point) and m² = (x − μ)ᵀ Q (x − μ) the log prior is

    −½ m²      or      −½ (ν + 5) log(1 + m² / ν),

a Gaussian, or a Student t of ν degrees of freedom. The latter's pull is the Gaussian's times (ν + 5) / (ν + m²): an
image that moved far is not drawn back by the many that did not, who are drawn
a little more. PoseChanges have longer tails than a Gaussian of their widths.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Optional, Tuple

import numpy as np

from ..kernels import poses
from ..kernels.device import array_module
from ..model.pose import cross_matrix, exp_map, inverse_right_jacobian, project
from .reference_errors import SelfNoiseBias

Array = Any
UNKNOWNS = 5


@dataclass(frozen=True)
class PosePrior:
    """Where n sub-volumes may be: centre, prior and limits of the search.

    Attributes
    ----------
    rotation0 : (n, 3, 3) float64.
    precision : (n, 5, 5) of (w in rad, displacement in px of the projected prior point); zeros = no prior.
    mean : (n, 5).
    prior_offset, fulcrum_offset : (3,) px, prior point and fulcrum relative to the mask centre.
    rotation_extent : rad.  shift_extent : px; both hard, the shift at the fulcrum.
    tails : ν of a Student-t prior, 0 = a Gaussian.
    self_noise_bias : what the image's own noise in the reference adds to the score, or None.
    table : all of this as the kernels of a GPU take it; None on the CPU.
    """

    rotation0: Array
    precision: Array
    mean: Array
    prior_offset: Array
    fulcrum_offset: Array
    rotation_extent: float
    shift_extent: float
    tails: float = 0.0
    self_noise_bias: Optional[SelfNoiseBias] = None
    table: Optional[poses.PoseTable] = None

    def take(self, index: Array) -> "PosePrior":
        bias = self.self_noise_bias
        return replace(self, rotation0=self.rotation0[index], precision=self.precision[index], mean=self.mean[index],
                       self_noise_bias=None if bias is None else bias.each(lambda column: column[index]),
                       table=None if self.table is None else self.table.take(index))

    def to_device(self, to_device: Callable[[np.ndarray], Array],
                  magnification: Optional[Array] = None) -> "PosePrior":
        """The same with its arrays on the device; ``magnification`` (n, 2, 2) of the images is there already."""
        names = ("rotation0", "precision", "mean", "prior_offset", "fulcrum_offset")
        there = replace(self, **{name: to_device(getattr(self, name)) for name in names})
        if array_module(there.rotation0) is np:
            return there
        limits = [*self.prior_offset, *self.fulcrum_offset, self.rotation_extent, self.shift_extent, self.tails]
        table = poses.PoseTable.of(there.rotation0, there.precision, there.mean, np.array(limits, float), magnification)
        if self.self_noise_bias is not None:
            bias = self.self_noise_bias
            table = table.with_self_noise(bias.strength, (bias.rotation_rate, bias.shift_rate), bias.form,
                                          bias.rotation, bias.shift)
        return replace(there, table=table)


def with_tails(m2: Array, tails: float) -> Tuple[Array, Array]:
    """log prior at m², and its pull relative to the Gaussian's; both of the shape of ``m2``."""
    if not tails:
        return -0.5 * m2, array_module(m2).ones_like(m2)
    m2 = m2.clip(0)  # of rounding
    return -0.5 * (tails + UNKNOWNS) * array_module(m2).log1p(m2 / tails), (tails + UNKNOWNS) / (tails + m2)


def prior_displacement(prior: PosePrior, owner: Array, rotation: Array, shift: Array, offset: Array) -> Array:
    """Displacement (m, 2) of the projected point c + offset."""
    return shift + project(rotation - prior.rotation0[owner], offset)


def log_prior(prior: PosePrior, owner: Array, w: Array, rotation: Array, shift: Array) -> Tuple[Array, Array, Array]:
    """log prior (m,) with its gradient (m, 5) and curvature (m, 5, 5) in (δ, u); that of heavy tails is of the Gaussian
    with the same pull."""
    point = prior_displacement(prior, owner, rotation, shift, prior.prior_offset)
    x = np.concatenate([w, point], axis=-1) - prior.mean[owner]
    jacobian = np.zeros(x.shape[:-1] + (5, 5))
    jacobian[:, :3, :3] = inverse_right_jacobian(w)
    jacobian[:, 3:, :3] = -(rotation[:, :2] @ cross_matrix(prior.prior_offset))
    jacobian[:, 3, 3] = jacobian[:, 4, 4] = 1
    q = prior.precision[owner]
    pull = (q @ x[..., None])
    transposed = np.swapaxes(jacobian, 1, 2)
    value, factor = with_tails(np.sum(x * pull[..., 0], axis=-1), prior.tails)
    gradient = -factor[:, None] * (transposed @ pull)[..., 0]
    return value, gradient, factor[:, None, None] * (transposed @ q @ jacobian)


def clip_to_extents(prior: PosePrior, owner: Array, w: Array, shift: Array) -> Tuple[Array, Array, Array]:
    """(w, u, R) moved to the nearest pose inside both extents."""
    inside = 1 - 1e-7  # so that rounding of a later R0ᵀR never shows a pose outside
    angle = np.sqrt(np.sum(w * w, axis=-1))
    w = w * np.minimum(1.0, inside * prior.rotation_extent / np.maximum(angle, 1e-12))[:, None]
    rotation = prior.rotation0[owner] @ exp_map(w)
    lever = project(rotation - prior.rotation0[owner], prior.fulcrum_offset)
    at_fulcrum = shift + lever
    length = np.sqrt(np.sum(at_fulcrum * at_fulcrum, axis=-1))
    factor = np.minimum(1.0, inside * prior.shift_extent / np.maximum(length, 1e-12))
    return w, at_fulcrum * factor[:, None] - lever, rotation


def grid_log_prior(prior: PosePrior, w: Array, shifts: Array, rotation: Array, reach: float) -> Array:
    """log prior (n, G, S) float32 on the grid, −inf further than ``reach`` px outside the shift extent, which may be
    narrower than the grid's step: nearer, a grid pose stands for those inside, where it is moved to."""
    turned = rotation - prior.rotation0[:, None]
    # x − μ = a + b: a (n, G, 5) depends on the rotation, b (S, 5) on the shift
    a = np.concatenate([np.broadcast_to(w, turned.shape[:2] + (3,)), project(turned, prior.prior_offset)], axis=-1)
    a = a - prior.mean[:, None]
    b = np.concatenate([np.zeros((len(shifts), 3)), shifts], axis=-1)
    q_a, q_b = a @ prior.precision, b @ prior.precision
    # float32 from here on, where rotations meet shifts
    energy = (np.sum(q_a * a, axis=-1).astype(np.float32)[:, :, None]
              + np.sum(q_b * b, axis=-1).astype(np.float32)[:, None]
              + 2 * q_a.astype(np.float32) @ b.T.astype(np.float32))
    lever = project(turned, prior.fulcrum_offset).astype(np.float32)
    moved2 = (np.sum(lever * lever, axis=-1)[:, :, None] + np.sum(shifts * shifts, axis=-1).astype(np.float32)
              + 2 * lever @ shifts.T.astype(np.float32))
    value, _ = with_tails(energy, prior.tails)
    return np.where(moved2 > (prior.shift_extent + reach) ** 2, -np.inf, value).astype(np.float32)
