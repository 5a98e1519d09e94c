"""The reference's slices against a phantom's closed-form transform; points that must stay put."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import Phantom, random_phantom, soft_ball

from localrefine_plugin.engine.align.reference import integer_centre, make_reference, slice_rows, support_box
from localrefine_plugin.engine.kernels.slices import extract_slices
from localrefine_plugin.engine.model.pixels import highest_shell, pixel_list
from localrefine_plugin.engine.model.pose import project, random_rotations


def rotations(n, seed=1):
    return random_rotations(n, np.random.default_rng(seed))


def slices_of(reference, turns, p):
    return extract_slices(reference.ft, slice_rows(turns, reference.scale), p.kx, p.ky)


def replica_bound(phantom, centre, padded):
    """Most that a slice can be off: trilinear interpolation on a grid of 1/padded multiplies the density by sinc²(u),
    u = (v − c)/padded, which is divided out, and leaves replicas at v + m·padded with weight sinc²(u + m)/sinc²(u). As
    Σₘ sinc²(u + m) = 1 on each axis, all replicas of a point together have the weight Π 1/sinc²(uᵢ) − 1."""
    u = (phantom.points - centre) / padded
    weights = np.prod(np.sinc(u) ** -2.0, axis=1) - 1
    return np.sum(phantom.amplitudes * (2 * np.pi * phantom.sigma**2) ** 1.5 * weights)


CASES = [(32, (0, 0, 0)), (33, (0, 0, 0)), (32, (4, -3, 2)), (33, (-3, 2, 5))]


@pytest.mark.parametrize("padding, share", [(2.0, 0.08), (4.0, 0.015)])
@pytest.mark.parametrize("box, centre", CASES)
def test_slices_are_the_closed_form_transform(box, centre, padding, share):
    """Within the derived bound everywhere; on average, where replicas add incoherently, ``share`` of the rms slice."""
    centre = np.array(centre, float)
    phantom = random_phantom(40, 4.0, 1.3, seed=3, centre=centre)
    mask = soft_ball(box, 9.5, 10.5, centre)  # 4σ beyond the outermost Gaussian: cuts 1e-4 of it
    p = pixel_list(box, highest_shell(box) - 2, highest_shell(box))
    reference = make_reference(phantom.density(box), mask, centre, p.max_shell, padding=padding)
    turns = rotations(30)
    about_centre = -project(turns, centre)  # a reference has its mask centre at the origin
    expected = phantom.slices(turns, about_centre, p.kx, p.ky, box)
    error = np.abs(slices_of(reference, turns, p) - expected)
    assert error.max() <= replica_bound(phantom, centre, reference.scale * box) + 1e-3 * np.abs(expected).max()
    assert np.sqrt(np.mean(error**2)) < share * np.sqrt(np.mean(np.abs(expected) ** 2))


@pytest.mark.parametrize("box, centre", CASES)
def test_a_point_at_the_mask_centre_stays_put(box, centre):
    """100 rotations: every slice is the same constant, the point's density."""
    point = np.zeros((box,) * 3, np.float32)
    point[tuple(box // 2 + np.array(centre[::-1]))] = 2.5
    mask = soft_ball(box, 6, 9, centre)
    p = pixel_list(box, highest_shell(box) - 2, highest_shell(box))
    found = integer_centre(mask)
    np.testing.assert_array_equal(found, centre)
    slices = slices_of(make_reference(point, mask, found, p.max_shell), rotations(100), p)
    np.testing.assert_allclose(slices, 2.5, atol=1e-5)


def test_only_the_masked_part_is_in_the_reference():
    """A second blob outside the mask changes nothing."""
    box, centre = 32, np.array([5.0, -4.0, 3.0])
    phantom = random_phantom(10, 2.0, 1.3, seed=4, centre=centre)
    both = Phantom(np.concatenate([phantom.points, [[-8.0, 8, -8]]]), np.append(phantom.amplitudes, 50.0), 1.3)
    mask = soft_ball(box, 7, 8, centre)
    one, two = (make_reference(x.density(box), mask, centre, 12).ft for x in (phantom, both))
    np.testing.assert_allclose(one, two, atol=1e-3 * np.abs(one).max())


@pytest.mark.parametrize("box", [32, 33])
def test_reference_is_hermitian_and_of_the_right_grey_scale(box):
    """V(0) is the masked density's sum over sinc² of the grid, and the plane x = 0 its own Friedel mate."""
    phantom = random_phantom(20, 4.0, 1.3, seed=5)
    mask = soft_ball(box, 9, 11)
    reference = make_reference(phantom.density(box), mask, np.zeros(3), highest_shell(box))
    plane = reference.ft[:, :, 0]
    np.testing.assert_allclose(plane, plane[::-1, ::-1].conj(), atol=1e-4 * np.abs(plane).max())
    u = phantom.points / (reference.scale * box)
    expected = np.sum(phantom.amplitudes * (2 * np.pi * 1.69) ** 1.5 * np.prod(np.sinc(u) ** -2.0, axis=1))
    zero = reference.ft[reference.ft.shape[0] // 2, reference.ft.shape[1] // 2, 0]
    assert zero.real == pytest.approx(expected, rel=0.01)  # the width of a Gaussian against the bend of sinc²


def test_support_box_holds_the_mask():
    box, centre = 33, np.array([-6.0, 3.0, 2.0])
    mask = soft_ball(box, 4, 6, centre)
    edge = support_box(mask, centre)
    z, y, x = np.nonzero(mask)
    reach = max(np.abs(np.stack([x, y, z], axis=1) - box // 2 - centre.astype(int)).max(axis=0))
    assert edge % 2 == 0 and reach < edge // 2 <= reach + 2
