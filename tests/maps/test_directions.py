"""Sampling by views against closed forms and a direct count; FSC in cones against planted noise in one direction."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import random_phantom
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.finish.directions import record_of
from localrefine_plugin.engine.inputs.first_look import view_warnings
from localrefine_plugin.engine.maps.directions import DIRECTIONS, ConeFsc, cone_fsc, half_sphere, sampling
from localrefine_plugin.engine.model.fourier import forward
from localrefine_plugin.engine.model.symmetry import operators

C1 = np.eye(3)[None]
BOX, PIXEL = 48, 3.0


def views_at(tilt_deg, seed=0):
    """Poses (n, 3, 3) whose views make these angles (n,) with z, at random about it."""
    rng = np.random.default_rng(seed)
    rot, psi = rng.uniform(0, 360, (2, len(tilt_deg)))
    return Rotation.from_euler("ZYZ", np.stack([rot, tilt_deg, psi], 1), degrees=True).inv().as_matrix()


def within(sd_deg, n, seed=0):
    return views_at(np.abs(np.random.default_rng(seed).normal(0, sd_deg, n)), seed)


@pytest.mark.parametrize("n", [1000, 20_000])
def test_even_views_have_1_and_side_views_8_over_pi_squared(n):
    """Side views put 2 / (π sin θ) of the mean at θ, so ⟨1/s⟩ ⟨s⟩ = (π/2) ⟨sin θ⟩ = π²/8. Counts of about 50 at a
    direction take 1/50 off."""
    even = sampling(Rotation.random(n, random_state=1).as_matrix(), C1)
    side = sampling(views_at(np.full(n, 90.0)), C1)
    assert even.scf == pytest.approx(1, abs=0.03) and even.unseen == 0
    assert side.scf == pytest.approx(8 / np.pi ** 2, abs=0.03) and side.scf_star == pytest.approx(side.scf, abs=0.01)


def test_views_along_one_axis_leave_out_all_but_a_ring():
    """Samples are perpendicular to a view: those seen have |z| < 1/(2R) = 1/100, one in a hundred of the directions."""
    top = sampling(views_at(np.zeros(20_000)), C1)
    assert top.unseen == pytest.approx(0.99, abs=0.001) and top.scf_star < 1e-3


def test_a_direct_count_at_random_directions_agrees():
    rotation = within(40.0, 10_000)
    rng = np.random.default_rng(3)
    directions = rng.standard_normal((4000, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    count = np.array([np.sum(np.abs(rotation[:, 2] @ v) < 1 / 100) for v in directions])
    expected = 1 / (np.mean(1 / count[count > 0]) * count.mean())
    assert sampling(rotation, C1).scf == pytest.approx(expected, rel=0.03)


def test_symmetry_brings_views_from_other_sides():
    top = views_at(np.zeros(3000))
    assert sampling(top, C1).unseen > 0.9
    assert sampling(within(12.0, 3000), operators("O")).scf_star > 0.15 > 2 * sampling(within(12.0, 3000), C1).scf_star


def test_directions_of_half_a_sphere_are_even():
    directions = half_sphere(DIRECTIONS)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    second = 2 * directions.T @ directions / (2 * DIRECTIONS)
    np.testing.assert_allclose(second, np.eye(3) / 3, atol=2e-3)


@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 0, 0), (0.6, -0.64, 0.48)])
def test_noise_in_a_cone_is_found_there(axis):
    """One of two maps is noise along ± an axis, in cones of 30°, beyond 20 Å."""
    density = random_phantom(30, radius=10.0, sigma=1.2, seed=1).density(BOX).astype(np.float64)
    noise = np.random.default_rng(2).standard_normal(density.shape) * density.std()
    k = np.fft.fftfreq(BOX)
    z, y, x = k[:, None, None], k[None, :, None], k[None, None]
    radius = np.sqrt(x * x + y * y + z * z)
    along = np.abs(x * axis[0] + y * axis[1] + z * axis[2]) > np.cos(np.deg2rad(30)) * radius
    ft = np.where(along & (radius > PIXEL / 20), np.fft.fftn(noise), np.fft.fftn(density))
    found = cone_fsc(forward(density), forward(np.fft.ifftn(ft).real), PIXEL)
    worst = found.directions[np.argsort(found.resolution_angstrom)[-5:]]
    assert np.abs(worst @ np.array(axis)).min() > np.cos(np.deg2rad(20))
    away = np.abs(found.directions @ np.array(axis)) < np.cos(np.deg2rad(60))
    assert found.resolution_angstrom[away].max() == pytest.approx(2 * PIXEL) and found.cfar < 0.5
    assert found.resolution_angstrom.max() == pytest.approx(20, rel=0.25)


def test_equal_maps_are_even():
    density = random_phantom(30, radius=10.0, sigma=1.2, seed=1).density(BOX)
    assert cone_fsc(*[forward(density)] * 2, PIXEL).cfar == pytest.approx(1)


def record(rotation, cfar=0.9):
    cones = ConeFsc(half_sphere(3), np.ones((3, 9)), np.array([5.0, 6.0, 9.0]), cfar)
    return record_of(sampling(rotation, C1), cones)


def said(rotation, cfar=0.9):
    return record(rotation, cfar).advice


def test_uneven_maps_are_named_and_even_ones_are_not():
    even = Rotation.random(2000, random_state=1).as_matrix()
    assert said(even) == ""
    assert "between 5.0 and 9.0 Å" in said(even, cfar=0.4)
    text = said(within(12.0, 2000))
    assert "SCF* 0.0" in text and "seen by no particle" in text


def test_no_resolution_in_one_number_stands_alone_where_the_map_is_uneven():
    even = record(Rotation.random(2000, random_state=1).as_matrix())
    narrow = record(within(12.0, 2000))
    assert even.beside == "" and record(within(40.0, 2000)).beside == "; by direction 5.0 to 9.0 Å"
    assert re.fullmatch("; by direction 5.0 to 9.0 Å, and [34]\\d % of the directions are seen by no particle",
                        narrow.beside)


@pytest.mark.parametrize("sd_deg, warned", [(12, True), (25, True), (40, False), (60, False)])
def test_before_the_run_narrow_views_are_warned_of(sd_deg, warned):
    particles = SimpleNamespace(rotation=within(sd_deg, 1000), half_set=np.tile([1, 2], 500))
    found = view_warnings(particles, SimpleNamespace(symmetry="C1"))
    assert len(found) == warned
    assert all("seen from about the same side" in text for text in found)
