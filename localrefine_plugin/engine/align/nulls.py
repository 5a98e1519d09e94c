"""Images that show nothing where they are looked at: which are made, and what z is expected of them (verdicts.py).

A search takes several times as long for such an image as for a particle whose pose is known, so few are made in an
iteration, and what they tell is kept. z of an image of nothing is the largest value of a random field over the poses
that the prior allows. It grows with the number of cells that such poses fill, e^L,

    L = ½ ⟨log det P − log det Q⟩ ≥ 0,     ⟨z⟩ = 1.3 log(1 + 4.9 L) + c,

P and Q the precisions (5, 5) of the posterior and of the prior of the particles. The form was fitted to 234 half-sets
and iterations of 20 runs with learned, Gaussian and no prior: at one c for a half-set it holds to 0.10 (noise) and 0.15
(particles at the pose of another one) from the second iteration on, and the first differs from these by 0.3 at most. So
c and the s.d. are those of the images of all iterations, earlier ones counting less. (z grows more slowly where |Y| is
above 7 and the search is wide, for then the pose is chosen by |Y|; but there aligned particles are far away.)
"""
from __future__ import annotations

from typing import Optional, Tuple

import numpy as np

from ..kernels.batches import evenly_spaced
from ..motion.motion_prior import precision_of
from ..records.iteration import NullMoments
from ..records.poses import Covariances
from .search_plan import SearchPlan

Moments = Tuple[float, float]  # mean and s.d.

FIRST_SHARE, FEWEST_FIRST = 0.005, 12  # images of each kind, of the particles, where none were made before
NEXT_SHARE, FEWEST_NEXT = 0.003, 2  # in every iteration after it
MOST = 100
KEPT = 0.8  # of the weight of the images before, from one iteration to the next
GROWTH, STEEPNESS = 1.3, 4.9
USUAL_SIGMA, USUAL_WEIGHT = 1.0, 20.0  # few images tell s too small; wrong ones of five sets at SNR .02: 0.9 to 1.1
SIZED = 200  # particles that L is found from
TURN = 0.5 * (5 ** 0.5 - 1)  # multiples of the golden section, modulo 1, are evenly spaced however many there are


def null_images(count: int, last: Optional[NullMoments]) -> np.ndarray:
    """Which of ``count`` particles lend CTF and pose to images of each kind: others than in the iterations before."""
    drawn, share, fewest = (0, FIRST_SHARE, FEWEST_FIRST) if last is None else (last.drawn, NEXT_SHARE, FEWEST_NEXT)
    number = drawn + np.arange(int(np.clip(share * count, fewest, MOST)))
    return np.sort((number * TURN % 1 * count).astype(int))


def search_size(plan: SearchPlan, rotation: np.ndarray, covariance: Covariances) -> float:
    """L of particles at input poses ``rotation`` (n, 3, 3), with posteriors ``covariance`` (n, 5, 5)."""
    some = evenly_spaced(len(rotation), SIZED)
    if plan.motion_covariance is None:  # as wide as the limits: a ball of rotations, a disc of shifts
        wide = np.repeat([plan.rotation_extent ** 2 / 5, plan.shift_extent ** 2 / 4], [3, 2])
        prior = -np.log(np.maximum(wide, 1e-12)).sum()
    else:
        prior = np.linalg.slogdet(precision_of(plan.motion_covariance, rotation[some]))[1]
    posterior = -np.linalg.slogdet(covariance[some].astype(np.float64))[1]
    return max(0.0, float(0.5 * np.median(posterior - prior)))


def expected_gain(size: float) -> float:
    """⟨z⟩ − c."""
    return float(GROWTH * np.log1p(STEEPNESS * size))


def pooled(last: Optional[NullMoments], others: np.ndarray, noise: np.ndarray, size: float) -> NullMoments:
    """What is known with z (n,) of the images of an iteration whose search has this ``size``."""
    before = 0.0 if last is None else KEPT * last.weight
    weight = before + len(noise)

    def joined(fresh: np.ndarray, known: Tuple[float, ...]) -> Moments:
        beyond = fresh - expected_gain(size)
        mean, square = ((before * old + float(sum(new))) / weight for old, new in zip(known, (beyond, beyond ** 2)))
        return mean, square
    known = ((0.0, 0.0), (0.0, 0.0)) if last is None else (last.others, last.noise)
    drawn = len(noise) + (0 if last is None else last.drawn)
    return NullMoments(drawn, weight, joined(others, known[0]), joined(noise, known[1]))


def moments(known: NullMoments, size: float) -> Tuple[Moments, Moments]:
    """Mean and s.d. of z of particles at the pose of another one, and of noise, in a search of this ``size``."""
    def of_kind(mean: float, square: float) -> Moments:
        variance = max(square - mean ** 2, 0.0)
        usual = (known.weight * variance + USUAL_WEIGHT * USUAL_SIGMA ** 2) / (known.weight + USUAL_WEIGHT)
        return mean + expected_gain(size), float(np.sqrt(max(variance, usual)))
    return of_kind(*known.others), of_kind(*known.noise)
