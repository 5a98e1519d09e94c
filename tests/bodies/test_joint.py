"""What moves with what: planted motions of three bodies, and none; beside rigid motions of a whole."""
from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from two_bodies import run_of

from localrefine_plugin.engine.bodies.joint import (
    WIDEST,
    Pair,
    Seen,
    about_mean,
    joint_motion,
    learned,
    parts_of,
    shared_share,
    words_of,
)
from localrefine_plugin.engine.motion.motion_prior import Evidence
from localrefine_plugin.engine.records.bodies import MovingPair

CENTRES = np.array([[0.0, 0.0, 0.0], [12.0, -3.0, 5.0], [-6.0, 10.0, 2.0]])  # px
HINGE = np.array([np.deg2rad(5.0)] * 3 + [1.0] * 3)   # s.d. of each body against the first
INPUT = np.array([np.deg2rad(0.5)] * 3 + [2.0] * 3)   # … and of the input poses' errors
ERROR = np.array([np.deg2rad(2.5)] * 3 + [0.7] * 2)   # of what one image tells


def whole(motion, centre):
    """(6,) of a body's centre when the particle moves as a whole by ``motion`` (6,) of the first body's centre."""
    turn = Rotation.from_rotvec(motion[:3]).as_matrix()
    return np.concatenate([motion[:3], turn @ (centre - CENTRES[0]) + CENTRES[0] + motion[3:] - centre])


def drawn(rng, n, correlation, mean=None):
    """(n, 18) motions: 2 and 3 against 1 with this correlation, axis by axis, and all with the input's error."""
    given, first, own = (rng.standard_normal((n, 6)) * width for width in (INPUT, HINGE, HINGE))
    second = correlation * first + np.sqrt(1 - correlation ** 2) * own
    x = np.concatenate([np.array([whole(motion, centre) for motion in given]) for centre in CENTRES], axis=1)
    x[:, 6:] += np.concatenate([first, second], axis=1)
    return x if mean is None else x + mean


def seen(rng, x):
    """What images at random views say of motions (n, 6N), each body's with errors of its own."""
    n, rotation0 = len(x), Rotation.random(len(x), random_state=rng.integers(1 << 30)).as_matrix()
    information, pull, alone = np.zeros((n, 18, 18)), [], np.zeros((18, 18))
    for k in range(3):
        part = slice(6 * k, 6 * k + 6)
        told = np.concatenate([x[:, part][:, :3], np.einsum("nij,nj->ni", rotation0[:, :2], x[:, part][:, 3:])], axis=1)
        y = told + ERROR * rng.standard_normal((n, 5))
        curvature = np.tile(np.diag(1 / ERROR ** 2), (n, 1, 1))
        found = Evidence(rotation0, curvature, y / ERROR ** 2, np.ones(n)).in_body_frame()
        information[:, part, part] = found[0]
        pull.append(found[1])
        alone[part, part] = x[:, part].T @ x[:, part] / n
    return Seen(information, np.concatenate(pull, axis=1), np.ones(n), alone)


def found(correlation, seed, n=800, mean=None):
    """Together of bodies 2 and 3, from two half-sets."""
    rng = np.random.default_rng(seed)
    halves = [about_mean(seen(rng, drawn(rng, n, correlation, mean))) for _ in range(2)]
    covariances = [learned(half, half.alone) for half in halves]
    parts = [[learned(part, covariance) for part in parts_of(half)] for half, covariance in zip(halves, covariances)]
    return Pair(1, 2).strongest(covariances, parts)


@pytest.mark.parametrize("mean", [None, np.tile([0.05, 0, 0, 4.0, -3.0, 0], 3)])
def test_a_planted_correlation_is_found_whatever_the_maps_moved_by(mean):
    """0.8 along every axis, less what the movements of the other half-set are off, of 800 particles each. A mean motion
    is no motion."""
    together = found(0.8, 1, mean=mean)
    assert together.error < 0.04
    assert 0.7 < together.correlation < 0.85
    first, second = together.moves
    off = np.linalg.norm(second[:3] - 0.8 * first[:3]) / np.linalg.norm(first[:3])
    assert off < 0.25


def test_without_correlation_none_is_found_and_the_error_is_that_of_repeated_experiments():
    """The strongest pair of a half-set is chance; judged by the other one it is as often negative. The root mean square
    of 6 standard deviates is 0.45 to 1.55 at 95 %, of an error by 8 parts a little more."""
    repeated = [found(0.0, seed, n=400) for seed in range(10, 16)]
    z = np.array([one.correlation / one.error for one in repeated])
    assert 0.3 < np.sqrt(np.mean(z ** 2)) < 2.0
    assert abs(np.mean([one.correlation for one in repeated])) < 0.08


def test_images_that_pull_and_tell_little_do_not_widen_the_motion_without_end():
    """Of images of noise the likelihood grows with Σ for ever: without a limit the widths here grow 8.8 times."""
    rng = np.random.default_rng(5)
    good = seen(rng, drawn(rng, 60, 0.0))
    information, pull = good.information.copy(), good.pull.copy()
    information[:30], pull[:30] = 10 * np.eye(18), 10 * np.random.default_rng(1).standard_normal((30, 18))
    covariance = learned(good._replace(information=information, pull=pull), good.alone)
    assert (np.diag(covariance) <= WIDEST ** 2 * np.diag(good.alone) * (1 + 1e-12)).all()


def test_words():
    moves = (3.0, 0.0, 4.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    sure, by_chance, unknown = (MovingPair(2, 3, 0.1, c, e, *moves) for c, e in (
        (0.7, 0.05), (0.1, 0.05), (0.9, float("nan"))))
    assert words_of([sure]) == (
        "When body 2 turns by 5.0° about the axis (0.60, 0.00, 0.80), body 3 moves its centre by 1.0 Å (1.0, 0.0, 0.0) "
        "on average: correlation 0.70 ± 0.05 of their rotations",)
    assert "do not surely turn together" in words_of([by_chance])[0]
    assert "do not surely turn together" in words_of([unknown])[0]
    assert "share 40 %" in words_of([MovingPair(2, 3, 0.4, 0.7, 0.05, *moves)])[0]


def test_masks_that_share_half_of_the_smaller():
    one, other = np.zeros((4, 4, 4)), np.zeros((4, 4, 4))
    one[:2], other[1:2, :, :2] = 1, 1
    other[3, :, :2] = 1
    assert shared_share(one, other) == pytest.approx(0.5)


def test_of_finished_runs():
    """Body A turns by the errors of the input poses alone, 0.7°, and B by 8° about one axis: nothing to tell."""
    told = joint_motion([run_of("A").path, run_of("B").path])
    assert told.bodies == 2
    assert len(told.pairs) == len(told.words) == 1
    assert told.pairs[0].correlation < 0.4
    widths = [np.sqrt(np.trace(np.array(covariance)[at:at + 3, at:at + 3])) for covariance in told.covariance
              for at in (0, 6)]
    assert max(widths[0], widths[2]) < 3 < min(widths[1], widths[3])


def test_the_strongest_pair_of_axes_has_one_sign(monkeypatch):
    covariance = np.cov(np.random.default_rng(3).standard_normal((12, 60)))
    expected, svd = Pair(0, 1).axes(covariance), np.linalg.svd
    monkeypatch.setattr(np.linalg, "svd", lambda a: tuple(part if part.ndim == 1 else -part for part in svd(a)))
    for ours, theirs in zip(Pair(0, 1).axes(covariance), expected):
        np.testing.assert_array_equal(ours, theirs)
