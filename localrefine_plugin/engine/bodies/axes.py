"""The principal axes of a motion, where the particles are along them, and how far a film may go.

A motion x = (w, d), w in rad and d in px of the centre c of the mask, moves a point v of the sub-volume by d + w × r,
r = v − c. Its size is the root mean square over the mask m,

    |x|² = ⟨|d + w × r|²⟩_m = xᵀ G x,    G = [⟨|r|² I − r rᵀ⟩  [⟨r⟩]×; −[⟨r⟩]×  I],

so that degrees and Å have one measure. With G = L Lᵀ and C = Σ − μ μᵀ the covariance about the mean μ, the principal
axes are a_k = √λ_k L⁻ᵀ e_k, e_k and λ_k of Lᵀ C L: x = μ + z a_k, z in standard deviations, moves the mask by √λ_k px
(root mean square). Σ is learned about zero (motion/motion_prior.py), hence − μ μᵀ.

**Where a particle is.** Its posterior mean m_i and covariance Λ_i⁻¹ under Σ give z_i = e_kᵀ Lᵀ (m_i − μ) / √λ_k. The
poses that were found spread by the motion and by their errors; posterior means spread less than the motion, by the
share

    told_i = 1 − e_kᵀ Lᵀ Λ_i⁻¹ L e_k / λ_k

of its variance that the image tells. z_i / √told_i has the variance of the motion itself (1, if that is a Gaussian),
and its percentiles are those of the motion. The width is deconvolved, not the shape: narrow peaks stay as broad as the
errors make them.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np

from ..align.reference import cube_about, support_box
from ..align.reference_errors import second_moment
from ..merge.motion_report import draws
from ..model.pose import cross_matrix
from ..motion.motion_prior import Evidence, expected, floored
from ..records.motion import LearnedMotion

PERCENTILES = 5.0, 95.0
OUTERMOST = 1.0, 99.0  # percentiles of the particles' own estimates, beyond which no frame goes
LEAST_TOLD = 0.01
KERNEL = 8.0  # percentiles: s.d. of the window of the path's means


@dataclass(frozen=True)
class Axes:
    """The principal axes (6, 6) of a motion, a row each, largest first: a_k, in rad and px, for one standard deviation.

    mean : μ (6,).  variances : λ_k (6,) px².  relative_error : (6,) standard error of √λ_k over √λ_k, in the direction
    of the axis.  to_z : (6, 6), z = to_z (x − μ).
    """

    axes: np.ndarray
    mean: np.ndarray
    variances: np.ndarray
    relative_error: np.ndarray
    to_z: np.ndarray


class Places(NamedTuple):
    """Of n particles along the six axes: ``estimate`` z_i (n, 6), and ``place``, the same with the width of the
    motion."""

    estimate: np.ndarray
    place: np.ndarray


def size_of_motion(mask: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """G (6, 6) of a mask (N, N, N) about ``centre`` (px from the box centre, xyz)."""
    cube = cube_about(mask, centre, support_box(mask, centre)).astype(np.float64)
    offset, total = np.arange(len(cube)) - len(cube) // 2, cube.sum()
    first = np.array([cube.sum(axis=tuple(a for a in range(3) if a != axis)) @ offset for axis in (2, 1, 0)]) / total
    second = second_moment(mask, centre)
    size = np.eye(6)
    size[:3, :3] = np.trace(second) * np.eye(3) - second
    size[:3, 3:] = cross_matrix(first)  # 2 d·(w × r) = 2 w·(r × d)
    size[3:, :3] = -cross_matrix(first)
    return size


def principal_axes_of(motion: LearnedMotion, size: np.ndarray) -> Axes:
    """The axes of a motion in the measure G (6, 6); each one's largest component of rotation is positive."""
    lower = np.linalg.cholesky(size)
    covariance = floored(motion.covariance - np.outer(motion.mean, motion.mean))
    values, vectors = np.linalg.eigh(lower.T @ covariance @ lower)
    values, vectors = values[::-1], vectors[:, ::-1]
    axes = np.linalg.solve(lower.T, vectors).T
    largest = axes[np.arange(6), np.abs(axes[:, :3]).argmax(axis=1)]
    sign = np.where(largest < 0, -1.0, 1.0)
    vectors, axes = vectors * sign, axes * sign[:, None]
    along = lower @ vectors  # (6, 6), a column for each axis
    others = np.sqrt(np.einsum("ik,nij,jk->nk", along, draws(motion), along))
    return Axes(np.sqrt(values)[:, None] * axes, motion.mean, values, others.std(axis=0) / others.mean(axis=0),
                along.T / np.sqrt(values)[:, None])


def places_along(axes: Axes, evidence: Evidence, covariance: np.ndarray) -> Places:
    """Where the particles lie under Σ (6, 6)."""
    step = expected(*evidence.in_body_frame(), covariance)
    estimate = (step.mean - axes.mean) @ axes.to_z.T
    told = 1 - np.einsum("ki,nij,kj->nk", axes.to_z, step.spread, axes.to_z)
    return Places(estimate, estimate / np.sqrt(np.clip(told, LEAST_TOLD, 1)))


def joined_places(parts: Sequence[Places]) -> Places:
    return Places(*(np.concatenate(column) for column in zip(*parts)))


class Route(NamedTuple):
    """The frames of a series: motions x (f, 6) in rad and px, positions (f,) in standard deviations, and whether they
    end before the percentiles asked for."""

    motions: np.ndarray
    positions: np.ndarray
    cut: bool


def along_axis(axes: Axes, places: Places, k: int, frames: int) -> Route:
    """Equal steps along axis k between two percentiles of the particles."""
    ends, cut = limited(places, k, np.percentile(places.place[:, k], PERCENTILES))
    z = np.linspace(ends[0], ends[1], frames)
    return Route(axes.mean + z[:, None] * axes.axes[k], z, cut)


def mean_path(axes: Axes, places: Places, frames: int) -> Route:
    """The mean pose of the particles at equal steps of the percentiles along the first axis.

    Along the first axis frames are where the percentiles are. Along the others they are at the mean of the particles'
    estimates about that percentile: errors of poses straighten it, so a path is never more bent than the particles are.
    """
    at = np.linspace(*PERCENTILES, frames)
    first, cut = limited(places, 0, np.percentile(places.place[:, 0], at))
    rank = np.argsort(np.argsort(places.place[:, 0], kind="stable"), kind="stable")
    share = 100 * (rank + 0.5) / len(rank)
    z = np.empty((frames, 6))
    for frame, percentile in enumerate(at):
        weight = np.exp(-0.5 * ((share - percentile) / KERNEL) ** 2)
        z[frame] = weight @ places.estimate / weight.sum()
    z[:, 0] = first
    return Route(axes.mean + z @ axes.axes, first, cut)


def limited(places: Places, k: int, z: np.ndarray) -> Tuple[np.ndarray, bool]:
    """Positions z (f,) along axis k, no further than the outermost particles' own estimates; whether any was."""
    low, high = np.percentile(places.estimate[:, k], OUTERMOST)
    inside = np.clip(z, low, high)
    return inside, bool(np.any(inside != z))


def shares_before(places: Places, k: int, z: np.ndarray) -> List[float]:
    """The share of the particles, in %, whose place along axis k is below each of z (f,)."""
    ordered = np.sort(places.place[:, k])
    return [100.0 * float(np.searchsorted(ordered, value)) / len(ordered) for value in z]
