"""What moves with what: one covariance of the motion of all bodies of a run, per half-set.

x = (x_1, …, x_N) ∈ R^{6N} holds the motion of each body against the input poses, as motion/motion_prior.py has it for
one body: rotation vector and displacement of the centre of its mask, in the body frame. x ~ N(0, Σ). The likelihood of
an image is Gaussian in each body's motion, and the errors of the bodies are taken for independent, for the noise of an
image where one body is has little in common with that where another one is:

    J = blockdiag(J_1, …, J_N),    J_b = BᵀH_b B,    h = (h_1, …, h_N),    h_b = BᵀH_b y_b.

EM over Σ is that of one body, in 6N dimensions. Errors of the poses are not in Σ: the correlation of two bodies is that
of their motion, not that of the poses found, which is weaker.

**What moves with what** is told of rotations. An error of a particle's input shift moves all its bodies alike, by as
much as many a motion; errors of its input rotation do so, too, but are small beside a hinge. The strongest pair of axes
of two bodies, the first singular vectors a, b of Σ's block of w_b and w_c, gives u = aᵀw_b and v = bᵀw_c, whose
covariance is the largest. That of chance is not zero either. So the axes that one half-set shows are judged by the
other one, where chance is as likely to be negative as positive; a correlation that is there comes out a little too
small. The error is that of PARTS parts of each half-set. With u goes the mean motion Cov(x_c, u) / Var(u) of the other
body, displacement included.
"""
from __future__ import annotations

from itertools import combinations
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np

from ..io.run_folder import PathLike
from ..kernels.batches import evenly_spaced
from ..motion.motion_prior import STILL, expected, floored, log_junk, maximised, mean_motion
from ..progress import say
from ..records.bodies import JointMotion, MovingPair
from .compose import in_units
from .finished import Body, open_body
from .relative import learned_motions, motion_evidence

MOST_PARTICLES = 2000  # of a half-set: correlations are then known to 0.02
SWEEPS = 60  # at most
WIDEST = 4.0  # widths of the body alone; 800 particles gave up to 1.15, and 60 up to 2.5
PARTS = 4
LEAST_OF_PART = 30  # particles, for an error by parts
CERTAIN = 3.0  # standard errors from which a correlation is told as one …
LEAST_TOLD = 0.25  # … if it is more: up to 0.22 was found of bodies that share the input error of 1° (r.m.s.) alone
SHARED = 0.15  # of the smaller mask: the poses of one body follow the other; up to 0.12 they did not, at 0.39 they did
LEAST_TURN_DEG, LEAST_SHIFT_ANGSTROM = 0.1, 0.1


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
    parts = [[learned(part, covariance) for part in parts_of(one)] for one, covariance in zip(seen, covariances)]
    masks = [body.map("mask.mrc") for body in bodies]
    pairs = []
    for b, c in combinations(range(len(bodies)), 2):
        found = Pair(b, c).strongest(covariances, parts)
        moves = (in_units(motion, bodies[0].given.pixel_size) for motion in found.moves)
        pairs.append(MovingPair(b + 1, c + 1, shared_share(masks[b], masks[c]), found.correlation, found.error, *moves))
    told = JointMotion(len(bodies), tuple(in_degrees(s, bodies[0].given.pixel_size) for s in covariances),
                       tuple(pairs), words_of(pairs))
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
        covariance = within(covariance, seen.alone)
        width = np.sqrt(np.diag(covariance))
        if np.abs((covariance - before) / np.outer(width, width)).max() < STILL:
            break
    return covariance


def within(covariance: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Σ with no width above WIDEST times that of a body alone, all correlations kept. To an image of noise that tells
    next to nothing of a motion, and pulls at it, the wider Σ is the likelier, without end."""
    most = WIDEST * np.sqrt(np.diag(alone))
    scale = np.minimum(1, most / np.sqrt(np.diag(covariance)))
    return covariance * np.outer(scale, scale)


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
    """Two bodies, of numbers b and c from 0."""

    def __init__(self, b: int, c: int):
        self.turns = tuple(slice(6 * k, 6 * k + 3) for k in (b, c))
        self.motions = tuple(slice(6 * k, 6 * k + 6) for k in (b, c))

    def axes(self, covariance: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """a and b (3,): the strongest pair; the largest component of a is positive."""
        vectors, _, others = np.linalg.svd(covariance[self.turns])
        a, b = vectors[:, 0], others[0]
        sign = np.sign(a[np.abs(a).argmax()])
        return sign * a, sign * b

    def correlation(self, covariance: np.ndarray, axes: Tuple[np.ndarray, np.ndarray]) -> float:
        """Of u and v."""
        of_u, of_v = (a @ covariance[turn, turn] @ a for a, turn in zip(axes, self.turns))
        return float(axes[0] @ covariance[self.turns] @ axes[1] / np.sqrt(of_u * of_v))

    def strongest(self, covariances: Sequence[np.ndarray], parts: Sequence[Sequence[np.ndarray]]) -> Together:
        """From the covariances of both half-sets and of their parts."""
        axes = [self.axes(covariance) for covariance in covariances]
        crossed = [self.correlation(covariance, other) for covariance, other in zip(covariances, axes[::-1])]
        by_part = [self.correlation(part, other) for half, other in zip(parts, axes[::-1]) for part in half]
        error = float(np.std(by_part, ddof=1) / np.sqrt(len(by_part))) if len(by_part) > 1 else float("nan")
        mean = 0.5 * (covariances[0] + covariances[1])
        a, turn = self.axes(mean)[0], self.turns[0]
        sd = np.sqrt(a @ mean[turn, turn] @ a)
        first, second = (mean[motion, turn] @ a / sd for motion in self.motions)
        return Together(float(np.mean(crossed)), error, (first, second))


def shared_share(one: np.ndarray, other: np.ndarray) -> float:
    """Of the smaller of two masks (N, N, N), how much lies in the other."""
    common = np.minimum(one, other).sum(dtype=np.float64)
    return float(common / min(one.sum(dtype=np.float64), other.sum(dtype=np.float64)))


def in_degrees(covariance: np.ndarray, pixel_size: float) -> Tuple[Tuple[float, ...], ...]:
    """Σ in degrees and Å."""
    unit = np.tile([np.rad2deg(1)] * 3 + [pixel_size] * 3, len(covariance) // 6)
    return tuple(tuple(float(v) for v in row) for row in covariance * np.outer(unit, unit))


def words_of(pairs: Sequence[MovingPair]) -> Tuple[str, ...]:
    """What moves with what, in sentences."""
    words = []
    for pair in pairs:
        error = "" if np.isnan(pair.error) else f" ± {pair.error:.2f}"  # unknown of few particles
        known = f"correlation {pair.correlation:.2f}{error}"
        if pair.shared > SHARED:
            words.append(f"Bodies {pair.first} and {pair.second}: {known} of their rotations. Their masks share "
                         f"{100 * pair.shared:.0f} % of the smaller one, and what is in both moves both; so this tells "
                         "nothing of the particle")
        elif pair.correlation > max(CERTAIN * pair.error, LEAST_TOLD):  # never for an unknown error
            words.append(f"When body {pair.first} {movement(pair.move_first)}, body {pair.second} "
                         f"{movement(pair.move_second)} on average: {known} of their rotations")
        else:
            words.append(f"Bodies {pair.first} and {pair.second} do not surely turn together ({known} about the "
                         "strongest pair of axes)")
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
