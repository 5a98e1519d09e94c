"""How far a body moves, tails included, and how well that is known.

The prior of a search is learned from the core of a motion: what lies far away counts as junk there, for a tenth of junk
would widen it by a fifth (motion/motion_prior.py). A film tells amplitudes, and the particles far away are part of
these. Which of them show the body at all is known from elsewhere, the fit of each image (align/verdicts.py). So the
amplitude is the second moment of the motion of all particles by their probability to be aligned, the errors of their
poses taken out by the same EM. Its error is that of PARTS parts of each half-set, each by itself: a formula for a
Gaussian makes it too small where tails are long. Of particles that nobody judged the amplitude is that of the core.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Sequence, Tuple

import numpy as np

from ..motion.motion_prior import Evidence, expected, learn_of_all, log_junk
from ..records.motion import LearnedMotion
from .axes import Axes

PARTS, LEAST_OF_PART = 4, 30  # of a half-set; particles of a part, with fewer the error is that of a Gaussian
ALIGNED = 0.5  # probability: what is more likely not aligned, or junk, does not count


def amplitude_of(evidence: Evidence, judged: bool, core: LearnedMotion,
                 floor: np.ndarray) -> Tuple[LearnedMotion, Evidence]:
    """The motion whose core was learned from this evidence and Σ₀ (6, 6), with its tails; and the evidence of the
    particles that are part of it. Where they were not ``judged`` (too few): the core, and what is no junk beside it."""
    if judged:
        seen = evidence.take(np.flatnonzero(evidence.weight > ALIGNED))
        return replace(core, covariance=learn_of_all(seen, core.covariance)), seen
    information, pull = evidence.in_body_frame()
    belongs = expected(information, pull, core.covariance).probability_not_junk(log_junk(information, pull, floor))
    return core, evidence.take(np.flatnonzero(belongs > ALIGNED))


def known_by_parts(axes: Axes, seen: Sequence[Evidence], motion: LearnedMotion) -> Axes:
    """The axes of ``motion`` with the errors that parts of each half-set tell."""
    parts = [one.take(np.arange(part, len(one.weight), PARTS)) for one in seen for part in range(PARTS)]
    if min(len(part.weight) for part in parts) < LEAST_OF_PART:
        return axes
    about_mean = [learn_of_all(part, motion.covariance) - np.outer(axes.mean, axes.mean) for part in parts]
    width = np.sqrt(np.einsum("ki,nij,kj->nk", axes.to_z, about_mean, axes.to_z).clip(1e-9))
    return replace(axes, relative_error=width.std(axis=0, ddof=1) / np.sqrt(len(parts)) / width.mean(axis=0))
