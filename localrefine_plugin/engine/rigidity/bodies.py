"""Which cells move together.

In a set of cells whose common pose is free, let cell c move by z_c δ, with one motion δ of each image, and weights z
that all images share. This is a factor analysis of motions. EM (Rubin & Thayer 1982, doi:10.1007/BF02293851) finds
both: the E step is that of the motion prior, with g = Σ z_c g_c and H = Σ z_c z_d H_cd; the M step for z is linear,

    A z = b,        A_cd = Σ_i tr H_cd ⟨δ δᵀ⟩,        b_c = Σ_i g_c·⟨δ⟩.

Two rigid bodies show as two values of z. So the set is cut where the likelihood of two rigid bodies is highest, and
each part is looked at again. A cut stays if its gain in log likelihood over one rigid body is more than
½ (21 + C) ln n, the Bayesian information criterion (Schwarz 1978, doi:10.1214/aos/1176344136) for Σ and the side of
each cell, and if the lighter part moves far enough: where an image tells much, what is small beside the resolution may
be no motion but what the model leaves out (interpolation, second order of the errors of poses).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np

from ..cells.evidence import CellEvidence
from ..cells.relative import (
    chunks,
    displacement_over,
    displacement_variance,
    grouped,
    learned,
    regular_inverses,
    second_moment,
    without_others,
)
from ..kernels.cells import MOTIONS
from ..motion.motion_prior import expected

OF_COVARIANCE = 21  # parameters of Σ
ROUNDS, WITHIN_ROUND, SAME = 20, 4, 0.02
RIDGE = 1e-3  # of the mean diagonal of A, which does not tell a constant in z
Array = np.ndarray


@dataclass(frozen=True)
class Together:
    """Evidence of C cells whose common pose, and those of other bodies, are free: score (n, 6, C), curvature
    (n, 6, 6, C, C) float32."""

    score: Array
    curvature: Array

    @classmethod
    def of(cls, evidence: CellEvidence, cells: Array, bodies: Sequence[Array]) -> "Together":
        """Of ``cells`` (numbers); ``bodies`` are all free, the one that these cells make up among them."""
        n, count = len(evidence.score), len(cells)
        weights = np.array([np.isin(np.arange(evidence.score.shape[1]), body).astype(np.float64) for body in bodies])
        k = MOTIONS * len(bodies)
        score, curvature = np.empty((n, MOTIONS, count)), np.empty((n, MOTIONS, MOTIONS, count, count), np.float32)
        for part in chunks(n):
            h = evidence.curvature[part]
            of_bodies = np.einsum("ncidj,kd->ncikj", h, weights, optimize=True)
            whole = np.einsum("ncikj,lc->nlikj", of_bodies, weights, optimize=True).reshape(-1, k, k)
            cross = of_bodies[:, cells].reshape(len(h), -1, k)
            along = cross @ regular_inverses(whole)
            pose = np.einsum("kc,nci->nki", weights, evidence.score[part]).reshape(len(h), k, 1)
            pull = evidence.score[part][:, cells] - (along @ pose).reshape(len(h), count, MOTIONS)
            left = h[:, cells][:, :, :, cells] - (along @ np.swapaxes(cross, 1, 2)).reshape(
                len(h), count, MOTIONS, count, MOTIONS)
            score[part], curvature[part] = np.swapaxes(pull, 1, 2), np.transpose(left, (0, 2, 4, 1, 3))
        return cls(score, curvature)

    def weighted(self, z: Array) -> Tuple[Array, Array]:
        """g (n, 6) and H (n, 6, 6) of δ for weights z (C,)."""
        short = z.astype(np.float32)
        curvature = ((self.curvature @ short) @ short).astype(np.float64)
        return self.score @ z, 0.5 * (curvature + np.swapaxes(curvature, 1, 2))

    def weights(self, mean: Array, moment: Array) -> Array:
        """The M step for z, from ⟨δ⟩ (n, 6) and ⟨δ δᵀ⟩ (n, 6, 6); from 0 for the cells that move least to 1."""
        count = self.score.shape[2]
        a = (moment.astype(np.float32).reshape(-1) @ self.curvature.reshape(-1, count ** 2)).reshape(count, count)
        a = 0.5 * (a + a.T).astype(np.float64)
        b = np.einsum("nic,ni->c", self.score, mean)
        return spread_out(np.linalg.solve(a + RIDGE * np.trace(a) / count * np.eye(count), b))


def spread_out(z: Array) -> Array:
    """z from 0 to 1: of its values, a tenth may lie beyond each."""
    low, high = np.quantile(z, (0.1, 0.9)) if len(z) > 9 else (z.min(), z.max())
    result: Array = (z - low) / max(high - low, 1e-9)
    return result


@dataclass(frozen=True)
class Cut:
    """A set of cells cut in two: whether each moves (C,), the gain in log likelihood, and z (C,)."""

    moves: Array
    gain: float
    z: Array


def factor(together: Together, z: Array, pixel_size: float) -> Tuple[Array, float]:
    """z (C,) from a first one, and its gain in log likelihood over no motion."""
    covariance = np.diag([np.deg2rad(2.0) ** 2] * 3 + [pixel_size ** -2.0] * 3)
    for _ in range(ROUNDS):
        pull, curvature = together.weighted(z)
        for _ in range(WITHIN_ROUND):
            step = expected(curvature, pull, covariance)
            covariance = second_moment(step)
        before, z = z, together.weights(step.mean, step.spread + step.mean[:, :, None] * step.mean[:, None])
        if np.abs(z - before).max() < SAME:
            break
    pull, curvature = together.weighted(z)
    return z, float(learned(pull, curvature, pixel_size)[1].log_likelihood.sum())


def best_cut(together: Together, starts: Sequence[Array], pixel_size: float) -> Cut:
    """The cut in two that the images like best: at the values of z from the best of some starts (C,), and at the starts
    themselves."""
    found = [factor(together, start.astype(np.float64), pixel_size) for start in starts]
    z = max(found, key=lambda one: one[1])[0]
    order = np.sort(z)
    tried = [z > 0.5 * (low + high) for low, high in zip(order[:-1], order[1:])] + [start > 0.5 for start in starts]

    def gain(moves: Array) -> float:
        return float(learned(*together.weighted(moves.astype(np.float64)), pixel_size)[1].log_likelihood.sum())
    gains = [gain(moves) for moves in tried]
    return Cut(tried[int(np.argmax(gains))], float(np.max(gains)), z)


def first_cuts(place: Array, share: Array, moving: Array) -> List[Array]:
    """Starts (C,) of 0 and 1: the halves along the principal axes of places (C, 3), and the cell that moves most."""
    centred = place - share @ place / share.sum()
    axes = np.linalg.eigh(np.einsum("c,ci,cj->ij", share, centred, centred))[1].T
    # the half without the first cell: an axis has no sign
    halves = [((centred @ axis > 0) != (centred[0] @ axis > 0)).astype(np.float64) for axis in axes]
    alone = (np.arange(len(place)) == moving.argmax()).astype(np.float64)
    return [start for start in [*halves, alone] if 0 < start.sum() < len(start)]


@dataclass(frozen=True)
class Particle:
    """What is asked: evidence of C cells; place (C, 3) px from the box centre; share (C,) of the density; pixel_size;
    least : the displacement, px, below which nothing is said to move."""

    evidence: CellEvidence
    place: Array
    share: Array
    pixel_size: float
    least: float

    def moves(self, pull: Array, curvature: Array, cells: Array, parameters: float) -> bool:
        """Whether the motion δ with this evidence is worth so many parameters, and moves ``cells`` far enough."""
        covariance, step = learned(pull, curvature, self.pixel_size)
        needed = 0.5 * parameters * np.log(len(pull))
        moved = displacement_over(covariance, self.place[cells], self.share[cells])
        return float(step.log_likelihood.sum()) > needed and moved > self.least

    def lighter(self, first: Array, second: Array) -> Array:
        """Of two sets of cells."""
        return min((first, second), key=lambda cells: float(self.share[cells].sum()))


def bodies_of(particle: Particle, told: Callable[[str], None]) -> List[Array]:
    """The cells of every rigid body, the largest body first."""
    waiting: List[Array] = [np.arange(len(particle.share))]
    done: List[Array] = []
    while waiting:
        cells = waiting.pop()
        cut = cut_of(particle, cells, [cells, *waiting, *done])
        if cut is None:
            done.append(cells)
            continue
        told(f"{len(cells)} cells cut in {np.count_nonzero(cut.moves)} and {np.count_nonzero(~cut.moves)}: gain in log "
             f"likelihood {cut.gain:.0f}")
        waiting += [cells[cut.moves], cells[~cut.moves]]
    return sorted(merged(particle, done), key=lambda body: -float(particle.share[body].sum()))


def cut_of(particle: Particle, cells: Array, bodies: Sequence[Array]) -> Optional[Cut]:
    """The cut of a body in two, or None if it is one."""
    if len(cells) < 2:
        return None
    together = Together.of(particle.evidence, cells, bodies)
    excess = np.array([significance(*together.weighted(one)) for one in np.eye(len(cells))])
    cut = best_cut(together, first_cuts(particle.place[cells], particle.share[cells], excess), particle.pixel_size)
    lighter = particle.lighter(cells[cut.moves], cells[~cut.moves])
    worth = particle.moves(*together.weighted(cut.moves.astype(np.float64)), lighter, OF_COVARIANCE + len(cells))
    return cut if worth else None


def significance(pull: Array, curvature: Array) -> float:
    found = displacement_variance(pull, curvature)
    return found.value / found.error


def merged(particle: Particle, bodies: List[Array]) -> List[Array]:
    """Bodies of which no two move alike: cutting in two may part what belongs together."""
    for first in range(len(bodies)):
        for second in range(first + 1, len(bodies)):
            lighter = particle.lighter(bodies[first], bodies[second])
            if not particle.moves(*pair(particle.evidence, bodies, first, second), lighter, OF_COVARIANCE):
                rest = [body for k, body in enumerate(bodies) if k not in (first, second)]
                return merged(particle, [*rest, np.concatenate([bodies[first], bodies[second]])])
    return bodies


def pair(evidence: CellEvidence, bodies: Sequence[Array], of: int, against: int) -> Tuple[Array, Array]:
    """g (n, 6) and H (n, 6, 6) of the motion of one body against another, all others free."""
    cells = np.arange(evidence.score.shape[1])
    ours, theirs = (np.isin(cells, bodies[k]).astype(np.float64) for k in (of, against))
    others = [np.isin(cells, body).astype(np.float64) for k, body in enumerate(bodies) if k not in (of, against)]
    return without_others(grouped(evidence, np.array([ours + theirs, *others, ours])), 1)
