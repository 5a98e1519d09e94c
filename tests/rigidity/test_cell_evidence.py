"""What an image says of its cells, against closed forms, direct sums in float64, and draws of a planted motion."""
from __future__ import annotations

import numpy as np
import pytest
from oracles import random_phantom, soft_ball

from localrefine_plugin.engine.align.reference import slice_rows
from localrefine_plugin.engine.cells.divide import divide, means
from localrefine_plugin.engine.cells.evidence import CellEvidence, about_box_centre, cell_reference
from localrefine_plugin.engine.cells.relative import (
    about,
    cell_variances,
    displacement_variance,
    grouped,
    learned,
    without_others,
)
from localrefine_plugin.engine.kernels.cells import MOTIONS, cell_slices
from localrefine_plugin.engine.model.pixels import pixel_list
from localrefine_plugin.engine.model.pose import cross_matrix, project, random_rotations
from localrefine_plugin.engine.rigidity.bodies import Particle, bodies_of, first_cuts, pair

BOX, LAST = 40, 14
CENTRE = np.array([5.0, -3.0, 2.0])


def moved(phantom, motion):
    """Every point v at v + d + w × (v − c)."""
    turned = np.cross(motion[:3], phantom.points - CENTRE)
    return type(phantom)(phantom.points + turned + motion[3:], phantom.amplitudes, phantom.sigma)


def test_slices_of_a_cell_and_their_derivatives_are_those_of_the_closed_form():
    """Within 2 and 3 % of the largest: trilinear slices of a map that is padded twice."""
    phantom = random_phantom(30, 5.0, 1.2, seed=1, centre=CENTRE)
    volume, pixels = phantom.density(BOX), pixel_list(BOX, LAST, LAST)
    reference = cell_reference(soft_ball(BOX, 11, 13, CENTRE), CENTRE, volume, volume, LAST)
    rotation = random_rotations(4, np.random.default_rng(2))
    plane = np.zeros((4, len(pixels)), np.complex64)
    jacobian = np.empty((4, MOTIONS, len(pixels)), np.complex64)
    root = np.full((4, len(pixels)), 0.5, np.float32)
    cell_slices(reference.volumes, slice_rows(rotation, reference.scale), reference.scale, pixels.kx, pixels.ky,
                pixels.phases(-project(rotation, CENTRE)), root, BOX, plane, jacobian)

    def exact(phantom):
        return 0.5 * phantom.slices(rotation, np.zeros((4, 2)), pixels.kx, pixels.ky, BOX)
    assert np.abs(plane - exact(phantom)).max() < 0.02 * np.abs(exact(phantom)).max()
    for axis in range(MOTIONS):
        step = 1e-3 * np.eye(MOTIONS)[axis]
        derivative = (exact(moved(phantom, step)) - exact(moved(phantom, -step))) / 2e-3
        assert np.abs(jacobian[:, axis] - derivative).max() < 0.03 * np.abs(derivative).max(), axis


def test_what_both_half_maps_do_not_share_is_filtered_out_of_a_cell():
    """The mean of f F₂* F₁ is that of |f F₂|²: H does not count noise."""
    phantom, rng = random_phantom(30, 5.0, 1.2, seed=1, centre=CENTRE), np.random.default_rng(3)
    truth, mask = phantom.density(BOX), soft_ball(BOX, 8, 11, CENTRE)
    first, second = (truth + 1.5 * truth.std() * rng.standard_normal(truth.shape) for _ in range(2))
    noisy, clean = (cell_reference(mask, CENTRE, a, b, LAST).volumes[0] for a, b in ((second, first), (truth, truth)))
    raw = cell_reference(mask, CENTRE, second, second, LAST).volumes[0]

    z, y, x = np.ogrid[:clean.shape[0], :clean.shape[1], :clean.shape[2]]
    k2 = (z - clean.shape[0] // 2) ** 2 + (y - clean.shape[1] // 2) ** 2 + x ** 2  # as a displacement weighs

    def regression(volume):
        return float((k2 * (volume.conj() * clean).real).sum() / (k2 * np.abs(volume) ** 2).sum())
    assert regression(noisy) == pytest.approx(1, abs=0.08)
    assert regression(raw) < 0.9


def test_cells_add_up_to_the_outline_and_hold_the_density():
    volume, outline = random_phantom(60, 9.0, 1.2, seed=4).density(BOX), soft_ball(BOX, 11, 14)
    cells = divide(volume, outline, 9, 3.0)
    np.testing.assert_allclose(sum(cells.mask(c) for c in range(9)), outline, atol=0.01)
    assert cells.share.sum() == pytest.approx(1) and cells.share.min() > 0.04 and cells.share.max() < 0.25
    painted = cells.paint(np.arange(9.0))
    at = tuple((cells.centres[5] + BOX // 2).astype(int)[::-1])
    assert painted[at] == pytest.approx(5, abs=1)
    again = divide(volume, outline, 9, 3.0)
    np.testing.assert_array_equal(again.mask(5), cells.mask(5))


def test_a_motion_about_the_box_centre_is_told_about_another_point():
    w, d, point = np.array([0.01, -0.02, 0.03]), np.array([0.3, 0.1, -0.2]), np.array([4.0, -6.0, 1.0])
    told = about_box_centre(point) @ np.concatenate([w, d])
    np.testing.assert_allclose(told, np.concatenate([w, d + np.cross(w, point)]), atol=1e-12)
    np.testing.assert_allclose(cross_matrix(point) @ w, np.cross(point, w), atol=1e-12)


# ---------------------------------------------------------------- planted motions

CELLS = 6
PLACES = 12.0 * np.random.default_rng(0).standard_normal((CELLS, 3))
SHARE = np.full(CELLS, 1 / CELLS)
UNIT = np.array([0.03] * 3 + [0.5] * 3)  # rad, px: what a motion of one standard deviation is


def planted(n, bodies, seed, overlap=0.3, common=1.0, strength=2.0):
    """Evidence of CELLS cells of bodies that move, each against the common pose, which is wrong by ``common``: the
    model of evidence.py, drawn."""
    rng = np.random.default_rng(seed)
    jacobian = rng.standard_normal((n, CELLS, MOTIONS, 50)) + overlap * rng.standard_normal((n, 1, MOTIONS, 50))
    jacobian *= strength / np.sqrt(50) / UNIT[:, None]
    jacobian = jacobian.reshape(n, CELLS * MOTIONS, 50)
    x = np.repeat(common * rng.standard_normal((n, 1, MOTIONS)) * UNIT, CELLS, axis=1)
    for body in bodies[1:]:
        x[:, body] += rng.standard_normal((n, 1, MOTIONS)) * UNIT
    image = np.einsum("nck,nc->nk", jacobian, x.reshape(n, -1)) + rng.standard_normal((n, 50))
    score = np.einsum("nck,nk->nc", jacobian, image).reshape(n, CELLS, MOTIONS)
    curvature = jacobian @ np.swapaxes(jacobian, 1, 2)
    return CellEvidence(score, curvature.reshape(n, CELLS, MOTIONS, CELLS, MOTIONS).astype(np.float32))


def test_what_is_left_is_the_marginal_of_the_whole_gaussian():
    """Against the precision of the last group in the inverse of the inverse, float64."""
    evidence = planted(3, [np.arange(CELLS)], 1)
    weights = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1.0]])
    groups = grouped(evidence, weights)
    pull, curvature = without_others(groups, 1)
    for i in range(3):
        h = evidence.curvature[i].reshape(36, 36).astype(np.float64)
        b = np.kron(weights, np.eye(MOTIONS))
        whole, score = b @ h @ b.T, b @ evidence.score[i].ravel()
        covariance = np.linalg.inv(whole)[6:, 6:]
        np.testing.assert_allclose(curvature[i], np.linalg.inv(covariance), rtol=2e-3, atol=1e-3 * np.abs(whole).max())
        mean = (np.linalg.inv(whole) @ score)[6:]
        np.testing.assert_allclose(np.linalg.solve(curvature[i], pull[i]), mean, atol=0.02 * np.abs(mean).max())


@pytest.mark.parametrize("moving", [False, True])
def test_the_displacement_of_a_cell_is_the_planted_one_within_its_error(moving):
    """Cell 5 moves by 0.5 px per axis and turns; cells 0 to 4 rest, whatever the common pose is wrong by."""
    bodies = [np.arange(5), np.array([5])] if moving else [np.arange(6)]
    evidence = planted(3000, bodies, 2)
    found = cell_variances(evidence, [np.arange(5), np.array([5])], np.zeros((CELLS, 3)))
    resting = [one.value / one.error for one in (found[:5] if moving else found)]
    assert max(np.abs(resting)) < 3.5 and np.abs(np.mean(resting)) < 1.5
    assert found[0].error == pytest.approx(found[0].predicted, rel=0.15)  # where nothing moves, it is known before
    if moving:
        assert found[5].value == pytest.approx(UNIT[3] ** 2, abs=4 * found[5].error + 0.1 * UNIT[3] ** 2)
        assert found[5].value > 8 * found[5].error


def found_in(evidence, least=0.1):
    return bodies_of(Particle(evidence, PLACES, SHARE, 3.0, least), lambda text: None)


def sets(bodies):
    return sorted(tuple(sorted(int(c) for c in body)) for body in bodies)


@pytest.mark.parametrize("bodies", [[(0, 1, 2, 3, 4, 5)], [(0, 1, 3), (2, 4, 5)], [(0, 1), (2, 5), (3, 4)],
                                    [(0, 1, 2, 3, 4), (5,)]])
def test_cells_that_move_together_are_found_and_a_rigid_particle_is_one(bodies):
    evidence = planted(1500, [np.array(body) for body in bodies], 3)
    found = found_in(evidence)
    assert sets(found) == sets(bodies)


def test_a_motion_that_is_small_beside_the_resolution_is_no_body():
    """It is plain in the images, and moves by 0.5 px and 0.03 rad at 12 px."""
    evidence = planted(1500, [np.array([0, 1, 3]), np.array([2, 4, 5])], 3)
    assert len(found_in(evidence, least=2.0)) == 1 and len(found_in(evidence, least=0.3)) == 2


def test_noise_is_no_body():
    """Ten draws of images that hold nothing but noise."""
    for seed in range(10):
        evidence = planted(300, [np.arange(CELLS)], 100 + seed, common=0)
        assert len(found_in(evidence)) == 1


def test_the_motion_of_a_body_against_another_is_the_planted_one():
    bodies = [np.array([0, 1, 2]), np.array([3, 4, 5])]
    covariance, step = learned(*pair(planted(3000, bodies, 4), bodies, 1, 0), 3.0)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), UNIT, rtol=0.12)
    assert step.log_likelihood.sum() > 100
    moved_to = np.array([3.0, 1.0, -2.0])
    there, _ = learned(*about(*pair(planted(3000, bodies, 4), bodies, 1, 0), moved_to), 3.0)
    to = about_box_centre(moved_to)
    np.testing.assert_allclose(there, to @ covariance @ to.T, rtol=0.05, atol=0.05 * np.abs(there).max())


def test_the_error_of_a_variance_is_that_of_its_scatter_over_draws():
    found = [displacement_variance(*without_others(grouped(planted(200, [np.arange(6)], 200 + i), np.array(
        [[1] * 6, [0, 0, 0, 0, 0, 1.0]])), 1)) for i in range(60)]
    values = np.array([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(values.std(), rel=0.3)
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(60)


# ---------------------------------------------------------------- choices that a library has

def test_a_voxel_between_two_cells_belongs_to_the_first():
    """Places 0 to 4: 2 is as near to 0 as to 4, where the means begin."""
    place = np.zeros((5, 3))
    place[:, 0] = np.arange(5)
    np.testing.assert_array_equal(means(place, np.ones(5), 2)[:, 0], [1.0, 3.5])


def test_the_first_cuts_do_not_depend_on_the_signs_of_axes(monkeypatch):
    rng = np.random.default_rng(8)
    place, share, moving = rng.standard_normal((12, 3)), rng.random(12), rng.random(12)
    expected, eigh = first_cuts(place, share, moving), np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: (eigh(a)[0], -eigh(a)[1]))
    np.testing.assert_array_equal(first_cuts(place, share, moving), expected)
