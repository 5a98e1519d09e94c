"""How one body moves against another, or against the input poses, from what finished runs keep of each particle.

A run keeps of each particle its pose (R, t) and the covariance of its posterior, in (right increment of R, displacement
u of the projected centre c of the mask). Without the prior, whose curvature and gradient at the pose are known, this is
the curvature H of the likelihood and its gradient g; and the motion's evidence as in motion/motion_prior.py.

**Against another body A.** With (R_A, t_A) the other's pose, Σ_A its covariance and c_A the centre of its mask,

    w = Log(R_Aᵀ R),    u = (t + P R c) − (t_A + P R_A c).

An error (a, u_A) of the other's pose moves that by −T (a, u_A),  T = [R_relᵀ 0; −P R_A [c − c_A]×  I],  R_rel = R_Aᵀ R.
The noise of an image where one body is and where the other is has little in common, so that both errors add up:

    H_rel = (H⁻¹ + K)⁻¹ = M H,    g_rel = M g,    M = (I + H K)⁻¹,    K = T Σ_A Tᵀ,

without an inverse of H, which may not exist. What the input poses of both runs had in common, their errors above all,
is in neither pose any more.
"""
from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Tuple

import numpy as np

from ..align.prior import log_prior
from ..align.search_plan import search_plan
from ..align.starts import pose_prior, search_centre
from ..io.run_store import load_motion, load_poses
from ..kernels.batches import evenly_spaced
from ..merge.motion_report import pooled
from ..model.pose import cross_matrix, log_map, project
from ..motion.motion_prior import (
    Evidence,
    about_point,
    evidence_at,
    examine,
    inverses,
    isotropic_covariance,
    learn,
)
from ..records.motion import LearnedMotion
from .finished import Body, half_rows

LAST_RESOLUTION = 1.0  # Å; the plan of a search asks for one, and nothing of it that is used here depends on it
MOST_PARTICLES = 50_000  # of a half-set: more add nothing to a histogram or to 21 numbers
EXTENT_IN_SIGMA = 3.0  # of a search without a prior, to start learning from


class Likelihood(NamedTuple):
    """Of n images at the poses found, in (right increment of R in rad, displacement of the projected centre in px):
    curvature (n, 5, 5) and gradient (n, 5)."""

    curvature: np.ndarray
    gradient: np.ndarray


def likelihood(body: Body, half: int, some: np.ndarray) -> Likelihood:
    """The posterior of ``some`` (n,) of a half-set's particles without the prior that their last search had."""
    table = body.poses[half]
    learned = load_motion(body.run, body.iteration - 1, half)
    particles = body.particles.take(table.row)
    plan = search_plan(body.given.resolved, particles, LAST_RESOLUTION, None if learned is None else learned.covariance)
    previous = load_poses(body.run, body.iteration - 1, half)
    rotation, shift = table.rotation[some], table.shift_px[some]
    rotation0, shift0 = search_centre(particles, previous, plan, some)
    w, u = motion_of(body, rotation0, shift0, rotation, shift)
    _, gradient, curvature = log_prior(pose_prior(plan, rotation0), np.arange(len(some)), w, rotation, u)
    values, axes = np.linalg.eigh(inverses(table.covariance[some]) - curvature)
    return Likelihood((axes * np.maximum(values, 0)[:, None]) @ np.swapaxes(axes, 1, 2), -gradient)


def motion_evidence(body: Body, half: int, rest: Optional[Body] = None) -> Evidence:
    """What the images of a half-set, or MOST_PARTICLES of them, say of the motion against the input poses, or against
    those of another body."""
    table = body.poses[half]
    some = evenly_spaced(len(table), MOST_PARTICLES)
    found, rotation = likelihood(body, half, some), table.rotation[some]
    if rest is None:
        rotation0, shift0 = body.particles.rotation[table.row[some]], body.particles.shift_px[table.row[some]]
    else:
        other, index = rest.poses[half], half_rows(body, rest, half)[some]
        rotation0, shift0 = other.rotation[index], other.shift_px[index]
        found = less_certain(found, error_of_other(other.covariance[index], rotation0, rotation,
                                                   body.centre - rest.centre))
    w, u = motion_of(body, rotation0, shift0, rotation, table.shift_px[some])
    weight = np.ones(len(some)) if table.probability_aligned is None else table.probability_aligned[some]
    return evidence_at(rotation0, w, u, found.curvature, found.gradient, weight)


def motion_of(body: Body, rotation0: np.ndarray, shift0: np.ndarray, rotation: np.ndarray,
              shift: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """w (n, 3) rad, and u (n, 2) px of the projected centre, between poses."""
    w: np.ndarray = log_map(np.swapaxes(rotation0, 1, 2) @ rotation)
    return w, shift + project(rotation, body.centre) - shift0 - project(rotation0, body.centre)


def error_of_other(covariance: np.ndarray, rotation0: np.ndarray, rotation: np.ndarray,
                   lever: np.ndarray) -> np.ndarray:
    """K = T Σ_A Tᵀ (n, 5, 5) of the other's covariances (n, 5, 5) at rotations R_A (n, 3, 3); ``lever`` c − c_A."""
    carried = np.zeros((len(rotation), 5, 5))
    carried[:, :3, :3] = np.swapaxes(rotation, 1, 2) @ rotation0
    carried[:, 3:, :3] = -(rotation0[:, :2] @ cross_matrix(lever))
    carried[:, 3, 3] = carried[:, 4, 4] = 1
    result: np.ndarray = carried @ covariance @ np.swapaxes(carried, 1, 2)
    return result


def less_certain(found: Likelihood, error: np.ndarray) -> Likelihood:
    """The likelihood where the origin of the motion is itself uncertain by ``error`` K (n, 5, 5)."""
    m = np.linalg.inv(np.eye(5) + found.curvature @ error)
    curvature = m @ found.curvature
    return Likelihood(0.5 * (curvature + np.swapaxes(curvature, 1, 2)), (m @ found.gradient[..., None])[..., 0])


def learned_motions(body: Body, evidence: Dict[int, Evidence], rest: Optional[Body] = None) -> Dict[int, LearnedMotion]:
    """The motion of each half-set: the run's own, where it learned one; else learned now, from its evidence."""
    found = {}
    for half, seen in evidence.items():
        own = None if rest is not None else load_motion(body.run, body.iteration, half)
        start = first_motion(body)
        found[half] = examine(seen, learn(seen, start, start), start) if own is None else own
    return found


def mean_motion_of(body: Body, frame: Optional[Body]) -> LearnedMotion:
    """The motion of a body against the poses of another one, or the input poses (None); both half-sets pooled."""
    evidence = {half: motion_evidence(body, half, frame) for half in (1, 2)}
    return pooled(list(learned_motions(body, evidence, frame).values()))


def first_motion(body: Body) -> np.ndarray:
    """Σ₀ (6, 6) about the centre of the mask: the prior that the run began with, or a third of its search."""
    resolved = body.given.resolved
    plan = search_plan(resolved, body.particles, LAST_RESOLUTION)
    if plan.motion_start is not None:
        return about_point(plan.motion_start, body.centre - plan.prior_point)
    return isotropic_covariance(resolved.rotation_extent_deg / EXTENT_IN_SIGMA,
                                resolved.shift_extent_angstrom / body.given.pixel_size / EXTENT_IN_SIGMA)
