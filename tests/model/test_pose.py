"""Rotations and the motion of a sub-volume, against scipy and against the formulas of conventions.md."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import angle_between_deg
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from localrefine_plugin.engine.model import pose


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def passive_z(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def passive_y(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def random_angles(rng, n=300):
    return rng.uniform((-180, 0, -180), (180, 180, 180), (n, 3))


def test_euler_angles_are_three_passive_turns(rng):
    angles = random_angles(rng)
    expected = [passive_z(psi) @ passive_y(tilt) @ passive_z(rot) for rot, tilt, psi in np.deg2rad(angles)]
    np.testing.assert_allclose(pose.rotation_from_euler_deg(angles), expected, atol=1e-14)


def test_euler_angles_agree_with_scipy(rng):
    angles = random_angles(rng)
    theirs = Rotation.from_euler("ZYZ", angles, degrees=True).inv().as_matrix()
    np.testing.assert_allclose(pose.rotation_from_euler_deg(angles), theirs, atol=1e-14)


def test_a_point_on_the_z_axis_shows_the_sense_of_tilt_and_psi():
    """tilt 90 brings +z to −x of the image, rot 90 brings +y to +x: no other sense does both."""
    tilted, turned = pose.rotation_from_euler_deg(np.array([[0, 90, 0], [90, 0, 0]]))
    np.testing.assert_allclose(pose.project(tilted, np.array([0, 0, 1.0])), [-1, 0], atol=1e-15)
    np.testing.assert_allclose(pose.project(turned, np.array([0, 1.0, 0])), [1, 0], atol=1e-15)


def test_third_row_is_the_viewing_direction(rng):
    """(sin tilt cos rot, sin tilt sin rot, cos tilt), whatever psi."""
    angles = random_angles(rng)
    rot, tilt, _ = np.deg2rad(angles).T
    direction = np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=1)
    np.testing.assert_allclose(pose.rotation_from_euler_deg(angles)[:, 2], direction, atol=1e-14)


@pytest.mark.parametrize("poles", [False, True])
def test_euler_angles_come_back_from_matrices(rng, poles):
    angles = random_angles(rng)
    if poles:
        angles[:, 1] = np.where(np.arange(len(angles)) % 2, 0.0, 180.0)
    rotation = pose.rotation_from_euler_deg(angles)
    back = pose.euler_deg_from_rotation(rotation)
    assert back[:, 1].min() >= 0 and back[:, 1].max() <= 180
    np.testing.assert_allclose(pose.rotation_from_euler_deg(back), rotation, atol=1e-12)
    if not poles:
        np.testing.assert_allclose(back, angles, atol=1e-9)


@pytest.mark.parametrize("magnitude", [1e-12, 1e-7, 1e-3, 0.3, 1.5, np.deg2rad(179)])
def test_exp_and_log_agree_with_scipy(rng, magnitude):
    w = rng.standard_normal((200, 3))
    w *= magnitude / np.linalg.norm(w, axis=1, keepdims=True)
    matrix = pose.exp_map(w)
    np.testing.assert_allclose(matrix, Rotation.from_rotvec(w).as_matrix(), atol=1e-14)
    np.testing.assert_allclose(pose.log_map(matrix), w, atol=1e-9, rtol=1e-9)


def test_log_of_no_rotation_is_zero():
    np.testing.assert_array_equal(pose.log_map(np.eye(3)[None]), np.zeros((1, 3)))


def test_cross_matrix_is_the_cross_product(rng):
    a, b = rng.standard_normal((2, 50, 3))
    np.testing.assert_allclose((pose.cross_matrix(a) @ b[..., None])[..., 0], np.cross(a, b), atol=1e-14)


numbers = st.floats(-1, 1, allow_nan=False, width=32)
triples = st.tuples(numbers, numbers, numbers).map(np.array)


@settings(max_examples=100, deadline=None)
@given(angles=triples, w=triples, fulcrum=triples, shift=triples, displacement=triples, point=triples)
def test_motion_about_the_fulcrum(angles, w, fulcrum, shift, displacement, point):
    """R = R0 Exp(w), t = t0 + P(R0 − R) f + s; and s is how far the projected fulcrum went, w = Log(R0ᵀ R)."""
    rotation0 = pose.rotation_from_euler_deg(180 * angles[None])[0]
    f, t0, s, v = 50 * fulcrum, 20 * shift[:2], 10 * displacement[:2], 50 * point
    rotation, t = pose.pose_from_motion(rotation0, t0, w, s, f)
    np.testing.assert_allclose(rotation, rotation0 @ Rotation.from_rotvec(w).as_matrix(), atol=1e-13)
    np.testing.assert_allclose(t, t0 + (rotation0 - rotation)[:2] @ f + s, atol=1e-12)
    moved = (rotation[:2] @ f + t) - (rotation0[:2] @ f + t0)
    np.testing.assert_allclose(moved, s, atol=1e-12)
    np.testing.assert_allclose(pose.log_map(rotation0.T @ rotation), w, atol=1e-9)
    elsewhere = (rotation[:2] @ v + t) - (rotation0[:2] @ v + t0)
    np.testing.assert_allclose(pose.displacement_at(rotation0, rotation, s, f, v), elsewhere, atol=1e-12)


def test_rotation_vectors_cover_the_ball(rng):
    """BCC of edge a = 2 step/√3: neighbours at `step`, no point further than (√5/4) a = 0.6455 step."""
    radius, step = 0.4, 0.09
    points = pose.rotation_vector_ball(radius, step)
    np.testing.assert_array_equal(points[0], 0)
    assert np.linalg.norm(points, axis=1).max() <= radius + 1e-8
    tree = cKDTree(points)
    np.testing.assert_allclose(tree.query(points, k=2)[0][:, 1].min(), step, rtol=1e-9)
    covering = np.sqrt(5) / 4 * 2 / np.sqrt(3) * step
    sample = rng.standard_normal((20000, 3))
    sample *= (radius - covering) * rng.random((20000, 1)) ** (1 / 3) / np.linalg.norm(sample, axis=1, keepdims=True)
    distance = tree.query(sample)[0]
    assert distance.max() <= covering * (1 + 1e-9)
    assert distance.max() > 0.9 * covering  # the sample is dense enough to have found a hole


def test_shifts_cover_the_disc(rng):
    """A hexagonal lattice leaves no point further than step/√3."""
    radius, step = 5.0, 0.9
    points = pose.shift_disc(radius, step)
    np.testing.assert_array_equal(points[0], 0)
    assert np.linalg.norm(points, axis=1).max() <= radius + 1e-8
    tree = cKDTree(points)
    np.testing.assert_allclose(tree.query(points, k=2)[0][:, 1], step, rtol=1e-9)
    covering = step / np.sqrt(3)
    angle, r = rng.uniform(0, 2 * np.pi, 20000), (radius - covering) * np.sqrt(rng.random(20000))
    assert tree.query(np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1))[0].max() <= covering * (1 + 1e-9)


def test_a_grid_of_no_extent_is_the_centre():
    np.testing.assert_array_equal(pose.rotation_vector_ball(0.0, 0.1), np.zeros((1, 3)))
    np.testing.assert_array_equal(pose.shift_disc(0.0, 0.5), np.zeros((1, 2)))


def test_random_rotations_are_rotations_and_uniform(rng):
    """Uniform on SO(3): each row uniform on the sphere, and the angle ω distributed as (ω − sin ω)/π."""
    rotation = pose.random_rotations(4000, rng)
    np.testing.assert_allclose(
        rotation @ np.swapaxes(rotation, 1, 2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-12)
    for i in range(3):
        assert kstest(rotation[:, 2, i], "uniform", args=(-1, 2)).pvalue > 1e-3
    angle = np.deg2rad(angle_between_deg(np.broadcast_to(np.eye(3), rotation.shape), rotation))
    assert kstest(angle, lambda w: (w - np.sin(w)) / np.pi).pvalue > 1e-3
