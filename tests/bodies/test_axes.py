"""Principal axes, percentiles and the limits of a film, from simulated evidence of a planted motion."""
from __future__ import annotations

import numpy as np
import pytest
from oracles import soft_ball
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.bodies.axes import (
    OUTERMOST,
    along_axis,
    mean_path,
    places_along,
    principal_axes_of,
    shares_before,
    size_of_motion,
)
from localrefine_plugin.engine.bodies.relative import Likelihood, error_of_other, less_certain
from localrefine_plugin.engine.motion.motion_prior import Evidence, examine, isotropic_covariance, learn

BOX, CENTRE = 40, np.array([5.0, -3.0, 2.0])
AXIS, LEVER = np.array([1.0, 2.0, -2.0]) / 3, np.array([8.0, 0.0, 3.0])
MASK = soft_ball(BOX, 7, 9, CENTRE)
FLOOR = isotropic_covariance(7.0, 2.0)


def planted(n, angle, rotation_error, seed=2):
    """Evidence of n images of angles (n,) rad about AXIS through c − LEVER, known to ``rotation_error`` rad per axis
    and 0.3 px."""
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(n, random_state=seed).as_matrix()
    w = angle[:, None] * AXIS
    x = np.concatenate([w, np.einsum("nij,nj->ni", rotation[:, :2], np.cross(w, LEVER))], axis=1)
    precision = np.array([rotation_error ** -2] * 3 + [0.3 ** -2] * 2)
    y = x + rng.standard_normal((n, 5)) / np.sqrt(precision)
    return Evidence(rotation, np.tile(np.diag(precision), (n, 1, 1)), y * precision, np.ones(n))


def film_of(evidence):
    motion = examine(evidence, learn(evidence, FLOOR, FLOOR), FLOOR)
    axes = principal_axes_of(motion, size_of_motion(MASK, CENTRE))
    return axes, places_along(axes, evidence, motion.covariance)


def test_the_size_of_a_motion_is_its_mean_square_displacement_over_the_mask():
    rng = np.random.default_rng(1)
    w, d = rng.standard_normal(3), rng.standard_normal(3)
    z, y, x = np.nonzero(MASK)
    r = np.stack([x, y, z], axis=1) - BOX // 2 - (CENTRE + [1, 0, -2])  # about a point that is not the mask's centre
    expected = np.average(np.sum((d + np.cross(w, r)) ** 2, axis=1), weights=MASK[z, y, x])
    motion = np.concatenate([w, d])
    assert motion @ size_of_motion(MASK, CENTRE + [1, 0, -2]) @ motion == pytest.approx(expected, rel=1e-5)


def test_the_first_axis_is_the_planted_hinge():
    angle = np.random.default_rng(3).normal(np.deg2rad(2.0), np.deg2rad(6.0), 3000)
    axes, _ = film_of(planted(3000, angle, np.deg2rad(3.0)))
    first = axes.axes[0]
    per_sd = np.linalg.norm(first[:3])
    assert np.rad2deg(per_sd) == pytest.approx(6.0, rel=0.05)
    # the largest component of AXIS is +y or −z; the sign of an axis makes one of them positive
    assert np.abs(first[:3] / per_sd @ AXIS) > 0.999
    np.testing.assert_allclose(first[3:], np.cross(first[:3], LEVER), atol=0.06)
    np.testing.assert_allclose(np.rad2deg(axes.mean[:3]), 2.0 * AXIS, atol=0.3)
    size = size_of_motion(MASK, CENTRE)
    assert np.sqrt(axes.variances[0]) == pytest.approx(np.sqrt(first @ size @ first))
    assert 0.01 < axes.relative_error[0] < 0.03  # 1/√(2n) is 0.013 of perfectly known poses


@pytest.mark.parametrize("error_deg", [1.0, 6.0, 12.0])
def test_percentiles_are_those_of_the_motion_whatever_the_error_of_the_poses(error_deg):
    angle = np.random.default_rng(3).normal(0, np.deg2rad(6.0), 4000)
    evidence = planted(4000, angle, np.deg2rad(error_deg))
    axes, places = film_of(evidence)
    route = along_axis(axes, places, 0, 9)
    shown = np.rad2deg(np.linalg.norm(route.motions[-1, :3] - route.motions[0, :3]))
    truth = np.rad2deg(np.ptp(np.percentile(angle, (5, 95))))
    assert shown == pytest.approx(truth, rel=0.08)
    y = np.linalg.solve(evidence.curvature, evidence.pull[..., None])[..., 0]
    found = np.rad2deg(np.ptp(np.percentile(y[:, :3] @ AXIS, (5, 95))))
    assert found == pytest.approx(truth * np.sqrt(1 + (error_deg / 6) ** 2), rel=0.05)  # what is not to be shown
    shares = shares_before(places, 0, route.positions)
    assert shares[0] == pytest.approx(5, abs=0.5) and shares[-1] == pytest.approx(95, abs=0.5)


def test_no_frame_goes_beyond_what_particles_were_seen_at():
    """Images that tell next to nothing: their estimates hardly spread, and the film stays among them."""
    angle = np.random.default_rng(3).normal(0, np.deg2rad(5.0), 2000)
    evidence = planted(2000, angle, np.deg2rad(40.0))
    evidence = Evidence(evidence.rotation0, 1e-3 * evidence.curvature, 1e-3 * evidence.pull, evidence.weight)
    motion = examine(evidence, FLOOR, FLOOR)
    axes = principal_axes_of(motion, size_of_motion(MASK, CENTRE))
    places = places_along(axes, evidence, motion.covariance)
    for route in (along_axis(axes, places, 0, 5), mean_path(axes, places, 5)):
        low, high = np.percentile(places.estimate[:, 0], OUTERMOST)
        assert route.cut
        assert low - 1e-9 <= route.positions.min() and route.positions.max() <= high + 1e-9
        assert np.ptp(route.positions) < 1.0  # of standard deviations; uncut it would be 3.3


def test_the_path_bends_where_the_particles_do():
    """A turn about one axis with a displacement that grows with its square."""
    rng = np.random.default_rng(5)
    n = 4000
    angle, rotation = rng.normal(0, np.deg2rad(8.0), n), Rotation.random(n, random_state=1).as_matrix()
    bend = np.outer(angle ** 2 * 20, [0.0, 0.0, 1.0])  # px: 0.4 at one standard deviation, 1.1 at the 95th percentile
    w = angle[:, None] * AXIS
    x = np.concatenate([w, np.einsum("nij,nj->ni", rotation[:, :2], np.cross(w, LEVER) + bend)], axis=1)
    precision = np.array([np.deg2rad(1.0) ** -2] * 3 + [0.2 ** -2] * 2)
    evidence = Evidence(rotation, np.tile(np.diag(precision), (n, 1, 1)), x * precision, np.ones(n))
    axes, places = film_of(evidence)
    path = mean_path(axes, places, 11)
    straight = along_axis(axes, places, 0, 11)

    def sag(motions):
        return 0.5 * (motions[0, 5] + motions[-1, 5]) - motions[5, 5]
    assert sag(path.motions) == pytest.approx(1.1, abs=0.4)
    assert abs(sag(straight.motions)) < 1e-9


def test_the_error_of_the_other_body_is_carried_to_the_centre():
    """K by difference quotients: the other's pose moved a little, the relative motion read anew."""
    rng = np.random.default_rng(4)
    other, own = Rotation.random(3, random_state=1).as_matrix(), Rotation.random(3, random_state=2).as_matrix()
    c, c_other = CENTRE, np.array([-6.0, 1.0, 0.0])
    square = rng.standard_normal((3, 5, 5)) * 0.01
    covariance = square @ np.swapaxes(square, 1, 2)

    def relative(delta, u):
        """(w, u) of the body when the other's pose is turned by delta and its centre displaced by u."""
        moved = other @ Rotation.from_rotvec(delta).as_matrix()
        t_other = u - (moved - other)[:, :2] @ c_other
        return np.swapaxes(moved, 1, 2) @ own, (own[:, :2] @ c) - (t_other + moved[:, :2] @ c)

    start_r, start_u = relative(np.zeros(3), np.zeros(2))
    columns, step = [], 1e-5
    for i in range(5):
        x = np.eye(5)[i] * step
        r, u = relative(x[:3], x[3:])
        turn = Rotation.from_matrix(np.swapaxes(start_r, 1, 2) @ r).as_rotvec()
        columns.append(np.concatenate([turn, u - start_u], axis=1) / step)
    t = np.stack(columns, axis=2)
    expected = t @ covariance @ np.swapaxes(t, 1, 2)
    np.testing.assert_allclose(error_of_other(covariance, other, own, c - c_other), expected,
                               atol=1e-4 * np.abs(expected).max())


def test_errors_of_both_bodies_add_up():
    """(H⁻¹ + K)⁻¹ where H has an inverse, and its maximum where it was."""
    rng = np.random.default_rng(6)
    squares = rng.standard_normal((2, 4, 5, 5))
    h, k = squares @ np.swapaxes(squares, 2, 3)
    y = rng.standard_normal((4, 5))
    found = less_certain(Likelihood(h, (h @ y[..., None])[..., 0]), k)
    np.testing.assert_allclose(np.linalg.inv(found.curvature), np.linalg.inv(h) + k, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.linalg.solve(found.curvature, found.gradient[..., None])[..., 0], y, rtol=1e-6)
    assert not less_certain(Likelihood(np.zeros((4, 5, 5)), np.zeros((4, 5))), k).curvature.any()
