"""The learned motion, from simulated evidence of a known motion: widths, hinge, errors, words; and in whole runs."""
from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from experiments import experiment, write_inputs
from oracles import angle_between_deg
from relion_files import read_columns
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine import refine
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.io.run_store import load_motion, load_poses
from localrefine_plugin.engine.merge import motion_report
from localrefine_plugin.engine.motion import motion_prior
from localrefine_plugin.engine.motion.motion_prior import (
    Evidence,
    about_point,
    beyond_doubt,
    examine,
    hinge,
    learn,
    principal_widths,
)
from localrefine_plugin.engine.motion.prior_shapes import prior_shape
from localrefine_plugin.engine.records.codec import as_json
from localrefine_plugin.engine.records.resolved import ResolvedSettings
from localrefine_plugin.engine.records.settings import PRIORS, Settings

START = motion_prior.isotropic_covariance(7.0, 1.6)
AXES = Rotation.from_rotvec([0.3, 0.5, -0.2]).as_matrix()
HINGE = np.array([8.0, -5.0, 3.0])
BOX, PIXEL = 64, 2.5
RESOLVED = ResolvedSettings(prior="learned", mask_centre_px=(40.0, 30.0, 20.0), mask_radius_angstrom=30.0,
                            rotation_extent_deg=21.0, shift_extent_angstrom=12.0)


def motion(widths_deg, at_hinge_px=1.0, hinge_px=HINGE):
    """Covariance (6, 6) about the mask centre of turning about ``hinge_px``, with a displacement of its own there."""
    rotation = AXES @ np.diag(np.deg2rad(widths_deg) ** 2) @ AXES.T
    turn = np.zeros((6, 6))  # x of the mask centre = turn @ x of the hinge: d = d_h − w × h = d_h + h × w
    turn[:3, :3] = turn[3:, 3:] = np.eye(3)
    turn[3:, :3] = [[0, -hinge_px[2], hinge_px[1]], [hinge_px[2], 0, -hinge_px[0]], [-hinge_px[1], hinge_px[0], 0]]
    own = np.zeros((6, 6))
    own[:3, :3], own[3:, 3:] = rotation, at_hinge_px ** 2 * np.eye(3)
    return turn @ own @ turn.T


def draw(covariance, n, seed):
    return np.random.default_rng(seed).multivariate_normal(np.zeros(6), covariance, n, method="cholesky")


def evidence(x, seed=0, rotation_deg=1.5, shift_px=0.35):
    """What images say of motions x (n, 6): maxima y with Gaussian errors, anisotropic and different in every image."""
    rng, n = np.random.default_rng(1000 + seed), len(x)
    rotation0 = Rotation.random(n, random_state=seed).as_matrix()
    axes = Rotation.random(n, random_state=seed + 1).as_matrix()
    widths = np.deg2rad(rotation_deg) * np.exp(0.3 * rng.standard_normal((n, 3)))
    errors = np.zeros((n, 5, 5))
    errors[:, :3, :3] = (axes * widths[:, None] ** 2) @ np.swapaxes(axes, 1, 2)
    errors[:, 3, 3] = errors[:, 4, 4] = shift_px ** 2
    seen = np.concatenate([x[:, :3], np.einsum("nij,nj->ni", rotation0[:, :2], x[:, 3:])], axis=1)
    y = seen + np.einsum("nij,nj->ni", np.linalg.cholesky(errors), rng.standard_normal((n, 5)))
    curvature = np.linalg.inv(errors)
    return Evidence(rotation0, curvature, np.einsum("nij,nj->ni", curvature, y), np.ones(len(y)))


def with_junk(found, share, seed=0):
    """The first of the images are of nothing: their maxima lie anywhere in the search."""
    rng, k = np.random.default_rng(seed), int(share * len(found.pull))
    y = np.concatenate([rng.uniform(-1, 1, (k, 3)) * np.deg2rad(20), rng.uniform(-5, 5, (k, 2))], axis=1)
    pull = found.pull.copy()
    pull[:k] = np.einsum("nij,nj->ni", found.curvature[:k], y)
    return replace(found, pull=pull)


def learned(found, iterations=4, **options):
    """As in a run: every iteration goes on from the last covariance."""
    covariance = START
    for _ in range(iterations):
        covariance = learn(found, covariance, START, **options)
    return covariance


def widths(covariance):
    rotation, shift = principal_widths(covariance)
    return np.concatenate([np.rad2deg(rotation), shift])


# ------------------------------------------------------------- algebra

def test_inverses():
    a = np.random.default_rng(0).standard_normal((50, 6, 9))
    a = a @ np.swapaxes(a, 1, 2) * np.outer([0.03] * 3 + [1] * 3, [0.03] * 3 + [1] * 3)
    inverse, log_determinant = motion_prior.inverses_and_log_determinants(a)
    np.testing.assert_allclose(inverse @ a, np.tile(np.eye(6), (50, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(log_determinant, np.linalg.slogdet(a)[1])


def test_the_likelihood_of_a_motion_is_that_of_gaussian_sums():
    """Differences between two covariances, against N(0, BΣBᵀ + H⁻¹) written out."""
    found = evidence(draw(motion((3, 3, 3)), 5, seed=1), 1)
    information, pull = found.in_body_frame()
    b = np.zeros((5, 5, 6))
    b[:, :3, :3], b[:, 3:, 3:] = np.eye(3), found.rotation0[:, :2]
    errors = np.linalg.inv(found.curvature)
    y = np.einsum("nij,nj->ni", errors, found.pull)
    told, direct = [], []
    for covariance in (motion((3, 3, 3)), START):
        told.append(motion_prior.expected(information, pull, covariance).log_likelihood)
        total = b @ covariance @ np.swapaxes(b, 1, 2) + errors
        direct.append(-0.5 * (np.linalg.slogdet(total)[1] + np.einsum("ni,nij,nj->n", y, np.linalg.inv(total), y)))
    np.testing.assert_allclose(told[0] - told[1], direct[0] - direct[1], rtol=1e-9)


def test_evidence_at_the_posterior_maximum_is_the_likelihood():
    """A likelihood −½ (x − y)ᵀH(x − y) and a prior −½ xᵀQx have their maximum where the search would end; there the
    curvature is given for right increments of R, by finite differences here."""
    rng = np.random.default_rng(2)
    n = 6
    a, b = (rng.standard_normal((n, 5, 7)) for _ in range(2))
    h, q = a @ np.swapaxes(a, 1, 2), b @ np.swapaxes(b, 1, 2)
    y = 0.3 * rng.standard_normal((n, 5))
    x = np.linalg.solve(h + q, h @ y[..., None])[..., 0]
    jacobian = np.tile(np.eye(5), (n, 1, 1))
    for i in range(n):
        for j in range(3):
            steps = (Rotation.from_rotvec(s * np.eye(3)[j]) for s in (1e-5, -1e-5))
            ahead, behind = ((Rotation.from_rotvec(x[i, :3]) * step).as_rotvec() for step in steps)
            jacobian[i, :3, j] = (ahead - behind) / 2e-5
    curvature = np.swapaxes(jacobian, 1, 2) @ h @ jacobian
    # of right increments δ: w = w(x) + J δ
    gradient = np.einsum("nji,nj->ni", jacobian, np.einsum("nij,nj->ni", h, y - x))
    found = motion_prior.evidence_at(np.tile(np.eye(3), (n, 1, 1)), x[:, :3], x[:, 3:], curvature, gradient, np.ones(n))
    np.testing.assert_allclose(found.curvature, h, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.pull, np.einsum("nij,nj->ni", h, y), rtol=1e-5, atol=1e-5)


def test_the_motion_of_another_point():
    """d' = d + w × offset, particle by particle."""
    x, offset = draw(motion((3, 2, 1)), 100_000, seed=1), np.array([4.0, -7.0, 2.0])
    moved = np.concatenate([x[:, :3], x[:, 3:] + np.cross(x[:, :3], offset)], axis=1)
    np.testing.assert_allclose(about_point(np.cov(x.T, bias=True), offset), np.cov(moved.T, bias=True), atol=1e-12)
    back = about_point(about_point(motion((3, 2, 1)), offset), -offset)
    np.testing.assert_allclose(back, motion((3, 2, 1)), atol=1e-12)


def test_the_hinge_is_where_least_is_displaced():
    """Against the least-squares solution of d + w × h = 0 over particles."""
    x = draw(motion((3, 2, 1), at_hinge_px=0.5), 5000, seed=2)
    rows = np.concatenate([np.cross(x[:, :3], axis) for axis in np.eye(3)]).reshape(3, -1).T
    direct = np.linalg.lstsq(rows, -x[:, 3:].ravel(), rcond=None)[0]
    np.testing.assert_allclose(hinge(x.T @ x / len(x))[0], direct, atol=1e-6)
    np.testing.assert_allclose(hinge(motion((3, 2, 1)))[0], HINGE, atol=1e-6)


# ------------------------------------------------------------- learning

@pytest.mark.parametrize("noise_deg, noise_px", ((1.5, 0.35), (3.0, 0.6)))
@pytest.mark.parametrize("true", ((3.0, 3.0, 3.0), (5.0, 3.5, 2.0)))
def test_widths_and_hinge_of_a_known_motion(true, noise_deg, noise_px):
    """By the errors told, the widths of 1,000 images are good to 3 % and the hinge to 0.6 px, at 3° to 5 % and 1 px."""
    covariance = motion(true)
    found = learned(evidence(draw(covariance, 1000, seed=3), 3, noise_deg, noise_px))
    np.testing.assert_allclose(widths(found), widths(covariance), rtol=0.15)
    assert np.abs(hinge(found)[0] - HINGE).max() < 1.5


def test_the_axis_of_a_hinge_is_recovered():
    """Motion about one axis: its direction within 3°, and the distance of the hinge from it within 1.5 px."""
    covariance = motion((6.0, 0.7, 0.7), at_hinge_px=0.5)
    found = learned(evidence(draw(covariance, 1000, seed=4), 4))
    axis = np.linalg.eigh(found[:3, :3])[1][:, -1]
    assert np.rad2deg(np.arccos(abs(axis @ AXES[:, 0]))) < 3
    assert np.linalg.norm(np.cross(hinge(found)[0] - HINGE, axis)) < 1.5


def test_junk_does_not_widen_the_motion():
    """A tenth of the images at random: least squares would make 3° into 4.6°."""
    clean = evidence(draw(motion((3, 3, 3)), 1000, seed=5), 5)
    found, without = learned(with_junk(clean, 0.1)), learned(clean)
    np.testing.assert_allclose(widths(found), widths(without), rtol=0.06)
    assert np.linalg.norm(hinge(found)[0] - hinge(without)[0]) < 0.7
    count = examine(with_junk(clean, 0.1), found, START).probability_not_junk
    assert count[:100].mean() < 0.15 and count[100:].mean() > 0.97


def test_without_motion_the_widths_fall_below_the_errors_of_the_poses():
    """Poses known to 1.5° and 0.35 px that did not move: most of the scatter is recognised as error."""
    found = learned(evidence(np.zeros((1000, 6)), 6), iterations=6)
    assert widths(found)[:3].max() < 1.1
    assert widths(found)[3:].max() < 0.35
    floor = learned(evidence(np.zeros((4000, 6)), 6, 0.01, 0.001), iterations=6)
    np.testing.assert_allclose(widths(floor)[2], np.rad2deg(motion_prior.SMALLEST_SIGMA_RAD), rtol=1.5)


def test_isotropic_learning_keeps_two_widths():
    x = draw(np.diag([np.deg2rad(3.0) ** 2] * 3 + [1.2 ** 2] * 3), 1000, seed=7)
    found = learned(evidence(x, 7), isotropic=True)
    np.testing.assert_allclose(widths(found), [3.0] * 3 + [1.2] * 3, rtol=0.1)
    assert np.count_nonzero(found) == 6


@pytest.mark.parametrize("rotation_deg", [1.5, 6.0, 10.0])
def test_a_part_that_does_not_move_keeps_its_input_poses(rotation_deg):
    """However little one image tells: EM alone ends at 3° from 10°, for a sweep then changes next to nothing."""
    shift_px = 0.35 * rotation_deg / 1.5
    for seed in range(3):
        found = learned(evidence(np.zeros((1000, 6)), seed, rotation_deg, shift_px))
        rotation, shift = principal_widths(found)
        assert np.rad2deg(rotation[0]) < 0.12 * rotation_deg and shift[0] < 0.3 * shift_px


def as_in_a_run(found):
    """What a run learns in its second iteration."""
    prior = prior_shape("learned")
    return prior.learn(found, prior.learn(found, START, START).covariance, START)


@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_more_noise_than_its_spectrum_says_is_no_motion(seed):
    """The least motion that explains the images as well is 0.4° for seed 1 and 0.1° for seed 2: a tenth of (10°)² is
    a motion of 3°."""
    found = evidence(np.zeros((500, 6)), seed, 10.0, 2.3)
    rotation, shift = principal_widths(as_in_a_run(replace(found, pull=found.pull * np.sqrt(1.1))).covariance)
    assert np.rad2deg(rotation[0]) < 0.06 and shift[0] < 0.037  # 1/64 of START, or the floor


def test_a_motion_that_was_learned_before_need_not_be_beyond_doubt_again():
    """Images that follow it show less of it; one that never was is not believed on the same evidence."""
    found = evidence(draw(motion((2.0,) * 3, 0.3, np.zeros(3)), 700, 3), 3, 6.0, 0.7)
    least = learn(found, START, START)
    kept, none = (beyond_doubt(found, least, START, before) for before in (least, 1e-4 * START))
    np.testing.assert_allclose(widths(kept)[:3], widths(least)[:3], rtol=1e-6)
    assert widths(none)[0] < 0.1


@pytest.mark.parametrize("widths_deg, image_deg", [(3.0, 3.8), (2.0, 2.2)])
def test_a_motion_that_is_beyond_doubt_is_learned_as_it_is(widths_deg, image_deg):
    """One image tells as much in the sets mid02 and mid."""
    found = evidence(draw(motion((widths_deg,) * 3), 1000, 5), 5, image_deg, 0.5)
    np.testing.assert_allclose(as_in_a_run(found).covariance, learn(found, START, START), rtol=1e-9, atol=1e-12)


def direct_log_likelihood(found, covariance):
    """Of all images, a tenth of them junk of four times START, with N(y; 0, BΣBᵀ + H⁻¹) written out."""
    b = np.zeros((len(found.pull), 5, 6))
    b[:, :3, :3], b[:, 3:, 3:] = np.eye(3), found.rotation0[:, :2]
    errors = np.linalg.inv(found.curvature)
    y = np.einsum("nij,nj->ni", errors, found.pull)
    each = []
    for one in (covariance, 4 * START):
        total = b @ one @ np.swapaxes(b, 1, 2) + errors
        each.append(-0.5 * (np.linalg.slogdet(total)[1] + np.einsum("ni,nij,nj->n", y, np.linalg.inv(total), y)))
    return np.logaddexp(np.log(0.9) + each[0], np.log(0.1) + each[1]).sum()


def test_what_the_images_exclude_is_less_likely_by_two():
    """The bound of rotation, and that of displacement, are on a grid of steps of √2."""
    found = evidence(np.zeros((300, 6)), 4, 5.0, 1.0)
    told = as_in_a_run(found)
    covariance, (rotation, shift) = told.covariance, told.bound
    best = direct_log_likelihood(found, covariance)
    for part, width in ((slice(0, 3), rotation), (slice(3, 6), shift)):
        for value, lost in ((width, True), (width / np.sqrt(2), False)):
            tried = covariance.copy()
            tried[part], tried[:, part] = 0, 0
            tried[part, part] = value ** 2 * np.eye(3)
            assert (best - direct_log_likelihood(found, tried) > motion_prior.INDIFFERENT) == lost
    assert 0.5 < np.rad2deg(rotation) < 2.5  # images that tell 5° each


@pytest.mark.parametrize("rotation_deg", [3.0, 5.0])
def test_a_motion_smaller_than_what_one_image_tells_is_still_found(rotation_deg):
    truth = motion((3.0, 3.0, 3.0), hinge_px=np.zeros(3))
    found = learned(evidence(draw(truth, 2000, 1), 1, rotation_deg, 0.5))
    np.testing.assert_allclose(np.rad2deg(principal_widths(found)[0]), 3.0, rtol=0.25)


def test_cost_does_not_grow_with_the_number_of_particles(monkeypatch):
    seen = []
    sweep = motion_prior.maximised

    def counted(step, count, floor):
        seen.append(len(count))
        return sweep(step, count, floor)

    monkeypatch.setattr(motion_prior, "maximised", counted)
    for n in (100, 5000, 9000):
        learn(evidence(np.zeros((n, 6))), START, START)
    assert [seen[0], seen[-1]] == [100, motion_prior.MOST_PARTICLES]
    assert len(seen) <= 3 * 2 * motion_prior.SWEEPS and set(seen) == {100, motion_prior.MOST_PARTICLES}


def test_learning_stops_where_nothing_changes_any_more():
    found = evidence(draw(motion((3, 3, 3)), 500, seed=3), 3)
    settled = learned(found, 8)
    np.testing.assert_allclose(learn(found, settled, START), settled, atol=2e-3 * np.abs(settled).max())
    one, many = learned(found, 2), learned(found, 12)
    np.testing.assert_allclose(widths(one), widths(many), rtol=0.02)


# ------------------------------------------------------------- errors, mean, shape

@lru_cache(maxsize=None)
def repeated(count=16, n=600):
    """Learned and examined motions of independent experiments, mean motion (2°, 0, 0) and (0, 0.5 px, 0)."""
    mean = np.array([np.deg2rad(2), 0, 0, 0, 0.5, 0])
    examined = []
    for seed in range(count):
        found = evidence(draw(motion((4, 3, 2)), n, 100 + seed) + mean, 100 + seed)
        examined.append(examine(found, learned(found, 3), START))
    return mean, examined


def test_errors_are_the_scatter_of_repeated_experiments():
    """16 experiments: their scatter is good to 18 %, that of a mean over three axes to 10 %."""
    _, examined = repeated()
    for value in (lambda s: hinge(s)[0], widths):
        scatter = np.std([value(m.covariance) for m in examined], axis=0)
        drawn = [np.array([value(s) for s in motion_report.draws(m)]) for m in examined]
        told = np.mean([motion_report.half_width(values) for values in drawn], axis=0)
        assert 0.7 < np.sqrt(np.mean(told ** 2) / np.mean(scatter ** 2)) < 1.5


def test_the_mean_motion_and_its_error():
    mean, examined = repeated()
    z = np.array([(m.mean - mean) / np.sqrt(np.diag(m.mean_error)) for m in examined])
    assert 0.7 < np.sqrt(np.mean(z ** 2)) < 1.4
    assert np.abs(z.mean(axis=0)).max() < 4 / np.sqrt(len(z)) + 0.5  # least of shrinkage to zero


def test_motion_along_the_axes_is_normal_in_its_own_unit():
    found = evidence(draw(motion((5, 3, 2)), 4000, seed=8), 8)
    z = examine(found, learned(found), START).along_axes
    assert np.abs(z.std(axis=0) - 1).max() < 0.1
    assert max(abs(motion_report.excess_kurtosis(z[:, i])) for i in (0, 1)) < 0.5


def summary_of(x, **options):
    found = evidence(x, 9, **options)
    return motion_report.motion_summary({1: examine(found, learned(found), START)}, RESOLVED, PIXEL)


def test_one_gaussian_motion_draws_no_comment():
    assert motion_report.motion_advice(summary_of(draw(motion((4, 3, 2)), 1500, seed=9)), RESOLVED) == {}


def test_two_states_are_told_from_one_motion():
    """Two thirds at rest, one third turned by 12° about the hinge: two peaks."""
    x = draw(motion((1.5, 1.5, 1.5), at_hinge_px=0.3), 1500, seed=10)
    turn = np.deg2rad(12) * AXES[:, 1]
    x[:500] += np.concatenate([turn, np.cross(HINGE, turn)])
    said = motion_report.motion_advice(summary_of(x), RESOLVED)
    assert "two peaks" in said["rotation shape"] and "Classify" in said["rotation shape"]


def test_particles_apart_from_the_motion_are_mentioned():
    x = draw(motion((1.5, 1.5, 1.5), at_hinge_px=0.3), 1500, seed=11)
    x[:90, :3] += np.deg2rad(15) * AXES[:, 0]
    said = motion_report.motion_advice(summary_of(x), RESOLVED)
    assert "6 % of the particles" in said["junk"] and "rotation shape" not in said


def test_a_width_that_fills_the_search_is_mentioned():
    narrow = replace(RESOLVED, rotation_extent_deg=8.0, shift_extent_angstrom=5.0)
    said = motion_report.motion_advice(summary_of(draw(motion((4, 3, 2)), 800, seed=12)), narrow)
    assert "which ends at 8°" in said["rotation width"] and "which ends at 5 Å" in said["shift width"]


# ------------------------------------------------------------- words

def test_words_give_widths_and_hinge_in_the_units_of_the_box():
    summary = summary_of(draw(motion((4, 3, 2)), 3000, seed=13))
    found = summary.pooled.hinge
    truth = np.array(RESOLVED.mask_centre_px) + HINGE
    np.testing.assert_allclose(found.point_px, truth, atol=1.5)
    np.testing.assert_allclose(found.point_angstrom, PIXEL * np.array(found.point_px))
    assert np.all(np.abs(np.array(found.point_px) - truth) * PIXEL < 4 * np.array(found.error_angstrom))
    assert found.determined == 3 and found.axis is None
    np.testing.assert_allclose(summary.pooled.rotation_widths_deg, (4, 3, 2), rtol=0.15)
    np.testing.assert_allclose(found.displacement_widths_angstrom, [PIXEL] * 3, rtol=0.2)
    assert "4." in summary.words[0] or "3.9" in summary.words[0]
    assert "px from the corner of the box" in summary.words[1]
    point = motion_report.learned_hinge(summary, BOX).point
    np.testing.assert_allclose(point + BOX // 2, found.point_px)


def test_a_part_that_does_not_move_is_said_to_move_by_less_than_would_be_seen():
    told = as_in_a_run(evidence(np.zeros((600, 6)), 9, 5.0, 1.0))
    summary = motion_report.motion_summary({1: told, 2: told}, RESOLVED, PIXEL)
    said, = summary.words
    np.testing.assert_allclose(np.deg2rad(summary.pooled.excluded_rotation_deg), told.bound[0])
    turned, moved = re.search(r"would show a motion of ([\d.]+)° or ([\d.]+) Å", said).groups()
    assert float(turned) == pytest.approx(summary.pooled.excluded_rotation_deg, abs=0.05) and float(moved) > 0
    assert "no motion" in said and "The input poses were kept" in said
    older = replace(summary.pooled, excluded_rotation_deg=None, excluded_displacement_angstrom=None)
    assert "its density is too small to show it" in motion_report.motion_words(older)[0]


def test_a_motion_about_one_axis_leaves_the_hinge_along_it_open():
    x = draw(motion((6, 0.05, 0.05), at_hinge_px=2.0), 300, seed=14)
    summary = summary_of(x, rotation_deg=1.0, shift_px=0.6)
    found = summary.pooled.hinge
    assert found.determined == 2
    assert np.rad2deg(np.arccos(abs(np.array(found.axis) @ AXES[:, 0]))) < 8
    assert "where on the axis is not determined" in summary.words[1]
    offset = np.array(found.point_px) - RESOLVED.mask_centre_px
    assert abs(offset @ found.axis) < 1e-6


def test_a_motion_without_rotation_has_no_hinge():
    summary = summary_of(draw(np.diag([1e-8] * 3 + [2.0 ** 2] * 3), 200, seed=15), rotation_deg=0.5, shift_px=1.0)
    assert motion_report.learned_hinge(summary, BOX) is None
    assert "not determined" in summary.words[1]


@pytest.mark.parametrize("n", (1, 30, 400))
def test_images_that_say_nothing_leave_a_summary_of_finite_numbers(n):
    nothing = replace(evidence(np.zeros((n, 6))), curvature=np.zeros((n, 5, 5)), pull=np.zeros((n, 5)))
    found = examine(nothing, learned(nothing), START)
    summary = motion_report.motion_summary({1: found, 2: found}, RESOLVED, PIXEL)
    json.dumps(as_json(summary), allow_nan=False)
    assert summary.half_1.hinge.determined == 0 or min(summary.half_1.hinge.error_angstrom) > 15


def test_a_mean_motion_is_mentioned():
    x = draw(motion((3, 3, 3)), 800, seed=16) + np.array([np.deg2rad(3), 0, 0, 0, 0, 0])
    words = summary_of(x).words
    turned = float(words[2].split("turned by ")[1].split("°")[0])
    assert turned == pytest.approx(3.0, abs=0.4)  # the prior about zero takes a tenth


# ------------------------------------------------------------- in runs

@lru_cache(maxsize=None)
def hinged_experiment(n=400):
    """Sub-volumes that turned by 4° per axis about a point 6 px from the centre of their mask."""
    e = experiment(n, noise=0.8, seed=21)
    rng = np.random.default_rng(22)
    w, s = rng.normal(0, np.deg2rad(4), (n, 3)), rng.normal(0, 0.5, (n, 2))
    start = e.rotation @ Rotation.from_rotvec(-w).as_matrix()
    point = e.centre + np.array([6.0, 0.0, 0.0])
    shift = e.shift + (e.rotation - start)[:, :2] @ point - s
    return replace(e, particles=replace(e.particles, rotation=start, shift_px=shift)), point


@pytest.mark.parametrize("prior", ("learned", "learned-isotropic"))
def test_the_search_learns_the_motion_of_a_phantom(prior):
    e, point = hinged_experiment()
    plan = e.plan(8.0, prior=prior, rotation_extent_deg=None, shift_extent_angstrom=None)
    result = e.align(8.0, plan=plan)
    again = e.align(8.0, plan=replace(plan, motion_covariance=result.motion.covariance), previous=result.poses).motion
    assert widths(again.covariance)[:3].mean() == pytest.approx(4.0, rel=0.15)
    if prior == "learned":
        np.testing.assert_allclose(e.centre + hinge(again.covariance)[0], point, atol=1.5)
        np.testing.assert_allclose(widths(about_point(again.covariance, point - e.centre))[3:], 0.5, rtol=0.5)


@lru_cache(maxsize=None)
def run_folder(folder):
    return refine.refine(*write_inputs(folder / "data", hinged_experiment()[0]), str(folder / "run"),
                         Settings(max_iterations=2, non_uniform=False), threads=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("motion"))


def test_the_learned_prior_of_a_half_does_not_know_the_other_half(run, tmp_path):
    """Half 1 of iteration 2 comes out the same when what half 2 learned is something else."""
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    other = load_motion(copy, 1, 2)
    np.savez(copy.motion(1, 2), **replace(other, covariance=9 * other.covariance).columns())
    for half in (1, 2):
        copy.half_done(2, half).unlink()
        refine.align(str(copy.path), 2, (half,), threads=1)
    assert copy.poses(2, 1).read_bytes() == run.poses(2, 1).read_bytes()
    assert copy.motion(2, 1).read_bytes() == run.motion(2, 1).read_bytes()
    assert copy.poses(2, 2).read_bytes() != run.poses(2, 2).read_bytes()


def test_the_second_iteration_starts_from_what_the_first_learned(run):
    first, second = (load_motion(run, k, 1).covariance for k in (1, 2))
    assert not np.allclose(first, second)
    before = angle_between_deg(*(load_poses(run, k, 1).rotation for k in (1, 2)))
    assert np.median(before) < 2


def test_the_report_of_a_run_has_the_motion_of_both_halves(run):
    written = read_json(run.iteration_done(2))["motion"]
    assert set(written) == {"half_1", "half_2", "pooled", "words"}
    for half in (1, 2):
        np.testing.assert_allclose(np.deg2rad(written[f"half_{half}"]["rotation_widths_deg"]),
                                   principal_widths(load_motion(run, 2, half).covariance)[0])
    assert len(written["words"]) >= 2


def test_uncertainties_are_written_to_the_particles(run):
    """Standard deviations per axis, root mean square: of half 1 by hand from the covariances of its errors."""
    rotation, shift = read_columns(run.final("particles.star"), ("lrRotationUncertainty", "lrShiftUncertainty")).T
    best = read_json(run.iteration_done(run.iterations_done()))["best_iteration"]
    poses = load_poses(run, best, 1)
    pixel_size = hinged_experiment()[0].particles.pixel_size
    for i in (0, 7):
        c = poses.pose_error_covariance[i]
        assert rotation[poses.row[i]] == pytest.approx(np.degrees(((c[0, 0] + c[1, 1] + c[2, 2]) / 3) ** 0.5), rel=1e-4)
        assert shift[poses.row[i]] == pytest.approx(pixel_size * ((c[3, 3] + c[4, 4]) / 2) ** 0.5, rel=1e-4)
    assert rotation.min() > 0 and shift.min() > 0


def test_every_choice_of_the_prior_has_one_shape():
    """What the rest of the program asks a shape is answered by each, and only a learned one learns."""
    settings = Settings(prior_rotation_deg=5.0, prior_shift_angstrom=3.0)
    to_mask = np.array([0.0, 0.0, 10.0])
    shapes = [prior_shape(name) for name in PRIORS]
    assert [shape.name for shape in shapes] == list(PRIORS)
    assert [shape.pulls for shape in shapes] == [shape.start(settings, to_mask, 1.5) is not None for shape in shapes]
    assert [shape.learns for shape in shapes] == [shape.tails > 0 for shape in shapes] == [False, False, True, True]
    assert [shape.extents(settings) for shape in shapes] == [(20.0, 10.0)] + 3 * [(15.0, 9.0)]
    assert len({shape.sentence(settings) for shape in shapes}) == len(shapes)
    learned = prior_shape("learned").start(settings, to_mask, 1.5)
    np.testing.assert_allclose(learned[3:, 3:], np.diag([4 + np.deg2rad(50) ** 2] * 2 + [4]), rtol=1e-9)
