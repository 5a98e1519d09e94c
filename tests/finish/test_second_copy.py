"""A map that holds the sub-volume twice is told from one that holds it once."""

import numpy as np
import pytest
from map_phantoms import atoms, ball, coloured_noise, density
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.finish import second_copy as second
from localrefine_plugin.engine.maps.half_maps import HalfMaps

BOX, PIXEL, RADIUS = 48, 4.0, 11.0
CENTRE = np.array([3.0, -2.0, 4.0])
AXIS = np.array([0.6, 0.0, 0.8])


def maps(share, angle=40.0, displacement=(3.0, 0.0, -1.0), noise=0.3, seed=1):
    """Half-maps of a domain at CENTRE, of which ``share`` is turned and displaced (px); and its mask."""
    points = atoms(400, RADIUS, seed)
    turned = points @ Rotation.from_rotvec(np.deg2rad(angle) * AXIS).as_matrix().T + displacement
    truth = (1 - share) * density(points + CENTRE, BOX, 0.8) + share * density(turned + CENTRE, BOX, 0.8)
    amplitude = noise * truth.std()
    halves = [truth + amplitude * coloured_noise(BOX, k) / coloured_noise(BOX, k).std() for k in (5, 6)]
    return HalfMaps(*(half.astype(np.float32) for half in halves)), ball(BOX, RADIUS + 1, 4, tuple(CENTRE))


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_a_second_copy_is_found_with_its_motion(share):
    found = second.second_copy(*maps(share), PIXEL, "C1")
    assert found.found and "second copy" in found.advice
    assert found.rotation_deg == pytest.approx(40, abs=3)
    assert found.displacement_angstrom == pytest.approx(PIXEL * 10 ** 0.5, abs=6.5)  # a coarse voxel is 6.4 Å


def test_a_copy_of_a_few_particles_is_found_in_the_map_before(angle=-40.0):
    """The refined map has lost it; the map before holds it, blurred, with a quarter of the density. The motion is that
    from the first state to the second."""
    refined, mask = maps(0.0)
    before = gaussian_filter(maps(0.25, angle)[0].maps[0], 1.2)
    assert not second.second_copy(refined, mask, PIXEL, "C1").found
    found = second.second_copy(refined, mask, PIXEL, "C1", before)
    assert found.found and found.deviations > second.CERTAIN
    turn = Rotation.from_rotvec(found.rotation_vector) * Rotation.from_rotvec(np.deg2rad(angle) * AXIS).inv()
    assert np.rad2deg(turn.magnitude()) < 5
    np.testing.assert_allclose(found.displacement_px, (3.0, 0.0, -1.0), atol=1.7)  # a coarse voxel is 1.6 px


def test_a_copy_of_a_tenth_of_the_particles_is_suspected_in_what_the_refined_map_has_not():
    refined, mask = maps(0.0)
    before = gaussian_filter(maps(0.1)[0].maps[0], 1.2)
    found = second.second_copy(refined, mask, PIXEL, "C1", before)
    assert not found.found and found.deviations > second.SUSPECTED and found.advice == ""
    turn = Rotation.from_rotvec(found.rotation_vector) * Rotation.from_rotvec(np.deg2rad(40.0) * AXIS).inv()
    assert np.rad2deg(turn.magnitude()) < 5
    np.testing.assert_allclose(found.displacement_px, (3.0, 0.0, -1.0), atol=1.7)


def test_what_is_left_over_is_at_right_angles_to_the_refined_map():
    before, refined = np.random.default_rng(1).standard_normal((2, 8, 8, 8))
    rest = second.left_over(before + 0.3 * refined, refined)
    assert abs((rest * refined).sum()) < 1e-9 and (rest * before).sum() > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_one_copy_is_no_second(seed):
    halves, mask = maps(0.0, seed=seed)
    found = second.second_copy(halves, mask, PIXEL, "C1", gaussian_filter(halves.maps[0], 1.2))
    assert not found.found and found.advice == "" and 0 < found.deviations < second.CERTAIN


def test_a_neighbour_is_no_second_copy():
    """A like subunit beside the mask, as in a ring: farther away than the mask is large."""
    found = second.second_copy(*maps(0.5, displacement=(2 * RADIUS, 0.0, 0.0)), PIXEL, "C1")
    assert not found.found


def test_a_map_without_detail_is_not_asked():
    empty = np.zeros((BOX,) * 3, np.float32)
    assert second.second_copy(HalfMaps(empty, empty), maps(0.5)[1], PIXEL, "C1").least_rotation_deg == 0


def test_a_symmetrical_particle_is_not_asked():
    assert second.second_copy(*maps(0.5), PIXEL, "C2").least_rotation_deg == 0


def test_the_correlation_is_the_sum_it_is_written_as():
    """C(R, t) at the best t against a direct sum over voxels: a turn of 90° about z moves voxels onto voxels."""
    halves, mask = maps(0.5)
    cubes = second.cubes(halves, mask, PIXEL, 20.0)
    found = second.correlations(cubes, np.array([[0.0, 0.0, np.pi / 2]]), 20.0)[0]
    wide, edge = len(cubes.whole), len(cubes.masked)
    offset = np.stack(np.meshgrid(*[np.arange(edge) - edge // 2] * 3, indexing="ij"), -1).reshape(-1, 3)  # z, y, x
    z, y, x = offset.T
    turned = np.stack([z, x, -y], 1)  # (x, y) → (−y, x)
    values, weights = cubes.masked.ravel(), cubes.weight.ravel()
    scores = []
    reach = int(20 / cubes.voxel)
    for t in np.ndindex(*[2 * reach + 1] * 3):
        shift = np.array(t) - reach
        if np.linalg.norm(shift) * cubes.voxel >= 20:
            continue

        def at(place):
            inside = (np.abs(place) < wide // 2).all(axis=1)
            return np.where(inside, cubes.whole[tuple(np.clip(place + wide // 2, 0, wide - 1).T)], 0)
        there = (weights * at(offset + shift) ** 2).sum()
        scores.append((values @ at(turned + shift), there))
    numerator, there = np.array(scores).T
    norm = np.sqrt((cubes.masked ** 2).sum() * np.maximum(there, 0.1 * there.max()))
    assert found[0] == pytest.approx((numerator / norm).max(), rel=0.02)
