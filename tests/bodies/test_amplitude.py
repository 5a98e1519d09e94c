"""The amplitude of a motion with long tails, and its error, from simulated evidence of a planted motion."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_axes import CENTRE, FLOOR, MASK, planted

from localrefine_plugin.engine.bodies.amplitude import amplitude_of, known_by_parts
from localrefine_plugin.engine.bodies.axes import principal_axes_of, size_of_motion
from localrefine_plugin.engine.motion.motion_prior import examine, learn

DEGREES, ERROR = np.deg2rad(5.0), np.deg2rad(2.0)
N = 3000


def with_long_tails(seed):
    """Angles (N,) rad of a Student t with 5 degrees of freedom, of standard deviation DEGREES."""
    return DEGREES * np.random.default_rng(seed).standard_t(5, N) / np.sqrt(5 / 3)


def of(evidence, judged=True):
    """The amplitude of the first axis in rad, with and without tails, and its relative error."""
    core = examine(evidence, learn(evidence, FLOOR, FLOOR), FLOOR)
    motion, seen = amplitude_of(evidence, judged, core, FLOOR)
    size = size_of_motion(MASK, CENTRE)
    axes = known_by_parts(principal_axes_of(motion, size), [seen], motion)
    angle, of_core = (np.linalg.norm(found.axes[0, :3]) for found in (axes, principal_axes_of(core, size)))
    return angle, of_core, axes.relative_error[0]


def test_tails_are_part_of_the_amplitude_and_its_error_covers_the_planted_one():
    deviations, cores = [], []
    for seed in range(6):
        angle = with_long_tails(seed)
        found, core, error = of(planted(N, angle, ERROR, seed=seed + 10))
        assert 0.005 < error < 0.06
        deviations.append((found / np.sqrt(np.mean(angle ** 2)) - 1) / error)
        cores.append(core / np.sqrt(np.mean(angle ** 2)))
    assert np.abs(deviations).max() < 3
    assert np.mean(cores) < 0.96  # what the prior is learned from


def test_what_does_not_show_the_body_does_not_widen_the_motion():
    """A tenth of the images lie anywhere within 25°: by their probability to be aligned they do not count. Where nobody
    judged them, only the core does."""
    rng = np.random.default_rng(3)
    angle = rng.normal(0, DEGREES, N)
    junk = rng.random(N) < 0.1
    evidence = planted(N, np.where(junk, np.deg2rad(25.0) * rng.uniform(-1, 1, N), angle), ERROR)
    told = replace(evidence, weight=np.where(junk, 0.1, 1.0))
    assert of(told)[0] == pytest.approx(angle[~junk].std(), rel=0.03)
    assert of(evidence)[0] > 1.15 * angle.std()
    found, core, _ = of(evidence, judged=False)
    assert found == core < of(evidence)[0]


def test_a_few_particles_have_the_error_of_a_gaussian():
    evidence = planted(100, np.random.default_rng(1).normal(0, DEGREES, 100), ERROR)
    core = examine(evidence, learn(evidence, FLOOR, FLOOR), FLOOR)
    axes = principal_axes_of(core, size_of_motion(MASK, CENTRE))
    assert known_by_parts(axes, [evidence], core) is axes
