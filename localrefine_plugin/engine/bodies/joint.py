"""What moves with what: one covariance of the motion of all bodies of a run, per half-set.

x = (x_1, …, x_N) ∈ R^{6N} holds the motion of each body against the input poses, as motion/motion_prior.py has it for
one body: rotation vector and displacement of the centre of its mask, in the body frame. x ~ N(0, Σ). The likelihood of
an image is Gaussian in each body's motion, and the errors of the bodies are taken for independent, for the noise of an
image where one body is has little in common with that where another one is:

    J = blockdiag(J_1, …, J_N),    J_b = BᵀH_b B,    h = (h_1, …, h_N),    h_b = BᵀH_b y_b.

EM over Σ is that of one body, in 6N dimensions. Errors of the poses are not in Σ: the correlation of two bodies is that
of their motion, not that of the poses found, which is weaker.

**Against body 1.** The error of a particle's input pose moves all its bodies alike. With three bodies or more their
motion against the first one is free of it:  r_b = (w_b − w_1,  d_b − d_1 − w_1 × (c_b − c_1)),  which is linear in x.

**The strongest pair of movements** of two bodies: with G = L Lᵀ the size of a motion (axes.py), the first singular
vectors p, q of L_bᵀ Σ_bc L_c give u = pᵀL_bᵀ r_b and v = qᵀL_cᵀ r_c in px, whose covariance is the largest. That of
chance is not zero either. So the movements that one half-set shows are judged by the other one, where chance is as
likely to be negative as positive; a correlation that is there comes out a little too small. The error is that of PARTS
parts of each half-set.
"""
from __future__ import annotations

from itertools import combinations
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np

from ..io.run_folder import PathLike
from ..kernels.batches import evenly_spaced
from ..model.pose import cross_matrix
from ..motion.motion_prior import STILL, expected, floored, log_junk, maximised, mean_motion
from ..progress import say
from ..records.bodies import JointMotion, MovingPair
from .axes import size_of_motion
from .compose import in_units
from .finished import Body, open_body
from .relative import learned_motions, motion_evidence

MOST_PARTICLES = 2000  # of a half-set: correlations are then known to 0.02
SWEEPS = 60  # at most
PARTS = 4
CERTAIN = 3.0  # standard errors from which a correlation is told as one …
LEAST_TOLD = 0.3  # … if it is more: 0.17 was found without any, where masks share 39 % and poses follow neighbours
LEAST_TURN_DEG, LEAST_SHIFT_ANGSTROM = 0.1, 0.1
LEAST_OF_PART = 30  # particles, for an error by parts


class Seen(NamedTuple):
    """What n images say of the motion of all N bodies: J (n, 6N, 6N), h (n, 6N), how much each image counts (n,), and
    the motion of each body alone, block by block (6N, 6N)."""

    information: np.ndarray
    pull: np.ndarray
    weight: np.ndarray
    alone: np.ndarray

    def take(self, index: np.ndarray) -> "Seen":
        return Seen(self.information[index], self.pull[index], self.weight[index], self.alone)


def joint_motion(runs: Sequence[PathLike]) -> JointMotion:
    """The record of the bodies of one run, finished: the same particles, in the same order."""
    bodies = [open_body(run) for run in runs]
    seen = [about_mean(seen_in_half(bodies, half)) for half in (1, 2)]
    covariances = [learned(one, one.alone) for one in seen]
    frame = against_first([body.centre for body in bodies]) if len(bodies) > 2 else np.eye(6 * len(bodies))
    first = 1 if len(bodies) > 2 else 0
    roots = [np.linalg.cholesky(size_of_motion(body.map("mask.mrc"), body.centre)) for body in bodies]
    parts = [[learned(part, covariance) for part in parts_of(one)] for one, covariance in zip(seen, covariances)]
    pairs = []
    for b, c in combinations(range(first, len(bodies)), 2):
        pair = Pair(b, c, roots)
        found = pair.strongest([frame @ s @ frame.T for s in covariances],
                               [[frame @ s @ frame.T for s in half] for half in parts])
        moves = (in_units(motion, bodies[0].given.pixel_size) for motion in found.moves)
        pairs.append(MovingPair(b + 1, c + 1, first, found.correlation, found.error, *moves))
    told = JointMotion(len(bodies), tuple(in_degrees(s, bodies[0].given.pixel_size) for s in covariances),
                       tuple(pairs), words_of(pairs, len(bodies)))
    for text in told.words:
        say(text)
    return told


# ---------------------------------------------------------------- the covariance

def seen_in_half(bodies: Sequence[Body], half: int) -> Seen:
    """Of at most MOST_PARTICLES images of a half-set; its blocks are the motion that the run of each body learned."""
    size, information, pull, alone = 6 * len(bodies), [], [], []
    row = bodies[0].poses[half].row
    if not all(np.array_equal(row, body.poses[half].row) for body in bodies):
        raise ValueError("the bodies do not have the same particles in the same order")
    weight = np.ones(len(row))
    for body in bodies:
        evidence = motion_evidence(body, half)
        matrices, vectors = evidence.in_body_frame()
        information.append(matrices)
        pull.append(vectors)
        # an image that is no particle shows no body
        motion = learned_motions(body, {half: evidence})[half]
        alone.append(motion.covariance)
        weight = np.minimum(weight, evidence.weight)
    some = evenly_spaced(len(row), MOST_PARTICLES)
    whole, blocks = np.zeros((len(some), size, size)), np.zeros((size, size))
    for k, (matrices, covariance) in enumerate(zip(information, alone)):
        whole[:, 6 * k:6 * k + 6, 6 * k:6 * k + 6] = matrices[some]
        blocks[6 * k:6 * k + 6, 6 * k:6 * k + 6] = covariance
    return Seen(whole, np.concatenate([vectors[some] for vectors in pull], axis=1), weight[some], blocks)


def about_mean(seen: Seen) -> Seen:
    """The same of x − μ, μ the mean motion: each refined map is where its poses put it, a little turned and moved as a
    whole, and that has no correlation with anything."""
    step = expected(seen.information, seen.pull, seen.alone)
    mean, _ = mean_motion(step, seen.weight, seen.alone)
    alone = seen.alone.copy()
    for k in range(0, len(mean), 6):
        part = slice(k, k + 6)
        alone[part, part] = floored(alone[part, part] - np.outer(mean[part], mean[part]))
    return seen._replace(pull=seen.pull - seen.information @ mean, alone=alone)


def learned(seen: Seen, start: np.ndarray) -> np.ndarray:
    """Σ (6N, 6N) by EM; the pseudo-particles have the motion of each body alone."""
    of_junk, covariance = log_junk(seen.information, seen.pull, seen.alone), start
    for _ in range(SWEEPS):
        before = covariance
        step = expected(seen.information, seen.pull, covariance)
        covariance = maximised(step, seen.weight * step.probability_not_junk(of_junk), seen.alone)
        width = np.sqrt(np.diag(covariance))
        if np.abs((covariance - before) / np.outer(width, width)).max() < STILL:
            break
    return covariance


def against_first(centres: Sequence[np.ndarray]) -> np.ndarray:
    """(6N, 6N) that takes x to the motions against body 1, whose own is 0."""
    size = 6 * len(centres)
    frame = np.zeros((size, size))
    for k, centre in enumerate(centres[1:], 1):
        carried = np.eye(6)
        carried[3:, :3] = -cross_matrix(centre - centres[0])  # w × l = −l × w
        rows = slice(6 * k, 6 * k + 6)
        frame[rows, rows], frame[rows, :6] = np.eye(6), -carried
    return frame


def parts_of(seen: Seen) -> List[Seen]:
    """PARTS of a half-set, each spread over all of it; none of a small one."""
    if len(seen.weight) < PARTS * LEAST_OF_PART:
        return []
    return [seen.take(np.arange(part, len(seen.weight), PARTS)) for part in range(PARTS)]


# ---------------------------------------------------------------- pairs of bodies

class Together(NamedTuple):
    """How two bodies move together; ``moves`` two of (6,) rad and px, as in MovingPair."""

    correlation: float
    error: float
    moves: Tuple[np.ndarray, np.ndarray]


class Pair:
    """Two bodies, of numbers b and c from 0; ``roots`` L (6, 6) of the size of motion of each body."""

    def __init__(self, b: int, c: int, roots: Sequence[np.ndarray]):
        self.b, self.c, self.roots = b, c, (roots[b], roots[c])

    def block(self, covariance: np.ndarray, k: int, j: int) -> np.ndarray:
        part: np.ndarray = covariance[6 * k:6 * k + 6, 6 * j:6 * j + 6]
        return part

    def movements(self, covariance: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """(6,) L_b p and (6,) L_c q: u and v are their products with r_b and r_c."""
        p, _, q = np.linalg.svd(self.roots[0].T @ self.block(covariance, self.b, self.c) @ self.roots[1])
        return self.roots[0] @ p[:, 0], self.roots[1] @ q[0]

    def correlation(self, covariance: np.ndarray, along: Tuple[np.ndarray, np.ndarray]) -> float:
        """Of u and v."""
        of_u, of_v = (a @ self.block(covariance, k, k) @ a for a, k in zip(along, (self.b, self.c)))
        return float(along[0] @ self.block(covariance, self.b, self.c) @ along[1] / np.sqrt(of_u * of_v))

    def strongest(self, covariances: Sequence[np.ndarray], parts: Sequence[Sequence[np.ndarray]]) -> Together:
        """From the covariances of both half-sets and of their parts."""
        along = [self.movements(covariance) for covariance in covariances]
        crossed = [self.correlation(covariance, other) for covariance, other in zip(covariances, along[::-1])]
        by_part = [self.correlation(part, other) for half, other in zip(parts, along[::-1]) for part in half]
        error = float(np.std(by_part, ddof=1) / np.sqrt(len(by_part))) if len(by_part) > 1 else float("nan")
        mean = 0.5 * (covariances[0] + covariances[1])
        u = self.movements(mean)[0]
        sd = np.sqrt(u @ self.block(mean, self.b, self.b) @ u)
        first, second = (self.block(mean, k, self.b) @ u / sd for k in (self.b, self.c))
        return Together(float(np.mean(crossed)), error, (first, second))


def in_degrees(covariance: np.ndarray, pixel_size: float) -> Tuple[Tuple[float, ...], ...]:
    """Σ in degrees and Å."""
    unit = np.tile([np.rad2deg(1)] * 3 + [pixel_size] * 3, len(covariance) // 6)
    return tuple(tuple(float(v) for v in row) for row in covariance * np.outer(unit, unit))


def words_of(pairs: Sequence[MovingPair], number: int) -> Tuple[str, ...]:
    """What moves with what, in sentences."""
    words = []
    for pair in pairs:
        where = f"against body {pair.frame}" if pair.frame else "against the input poses"
        known = f"correlation {pair.correlation:.2f} ± {pair.error:.2f}"
        if pair.correlation > max(CERTAIN * pair.error, LEAST_TOLD):  # never for an unknown error
            words.append(f"When body {pair.first} {movement(pair.move_first)} {where}, body {pair.second} "
                         f"{movement(pair.move_second)} on average: {known}")
        else:
            words.append(f"Bodies {pair.first} and {pair.second} do not surely move together {where} ({known} along "
                         "the strongest pair of movements)")
    if number == 2:
        words.append("Errors of the input poses move both bodies alike and are part of this. A third mask, on the part "
                     "that the others move against, takes them out")
    return tuple(words)


def movement(motion: Sequence[float]) -> str:
    """In words, a motion (6,) in degrees and Å."""
    turn, shift = np.array(motion[:3]), np.array(motion[3:])
    angle, length = float(np.linalg.norm(turn)), float(np.linalg.norm(shift))
    parts = []
    if angle > LEAST_TURN_DEG:
        parts.append(f"turns by {angle:.1f}° about the axis ({', '.join(f'{v:.2f}' for v in turn / angle)})")
    if length > LEAST_SHIFT_ANGSTROM:
        parts.append(f"moves its centre by {length:.1f} Å ({', '.join(f'{v:.1f}' for v in shift)})")
    return " and ".join(parts) if parts else "hardly moves"
