"""Mask geometry against closed forms of balls; checks and the dynamic mask against planted situations."""
from __future__ import annotations

import numpy as np
import pytest
from map_phantoms import ball, density

from localrefine_plugin.engine.maps import mask as masks
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.model.fourier import forward
from localrefine_plugin.engine.records.errors import InputError


@pytest.mark.parametrize("n", (40, 41))
def test_centre_is_x_y_z_from_the_corner(n):
    centre = masks.mask_centre(ball(n, 7, 4, centre=(3, -2, 5)))
    np.testing.assert_allclose(centre, np.array([3, -2, 5]) + n // 2, atol=1e-4)


def test_radius_of_a_ball_and_the_stray_voxel_that_does_not_move_it():
    mask = ball(48, 12)
    centre = masks.mask_centre(mask)
    radius = masks.mask_radius(mask, centre)
    assert radius.effective == pytest.approx(12, abs=0.15)
    assert radius.maximum == pytest.approx(12, abs=0.5)
    mask[2, 24, 24] = 1
    stray = masks.mask_radius(mask, centre)
    assert stray.maximum == 22 and stray.effective == pytest.approx(radius.effective, abs=0.01)


def test_radius_about_another_point_grows_by_the_parallel_axis_theorem():
    mask, offset = ball(48, 9), np.array([6.0, 0, 0])
    about_centre, about_other = (masks.mask_radius(mask, np.full(3, 24) + o).effective for o in (0, offset))
    assert about_other ** 2 - about_centre ** 2 == pytest.approx(5 / 3 * 36, rel=1e-6)


@pytest.mark.parametrize("edge", (3, 6, 10))
def test_edge_width_is_measured(edge):
    assert masks.soft_edge_width_px(ball(56, 11, edge)) == pytest.approx(edge, rel=0.07)


def test_edge_width_of_a_binary_mask_and_of_no_mask():
    assert masks.soft_edge_width_px(ball(32, 9) > 0.5) == 0
    assert masks.soft_edge_width_px(np.ones((16,) * 3)) == np.inf


def test_a_good_mask_passes_without_warnings():
    assert masks.check_mask(ball(64, 12, 16), 64, 2.0, 6.0) == []


@pytest.mark.parametrize("bad, box, words", (
    (np.zeros((32,) * 3), 32, "is empty"),
    (np.full((32,) * 3, 0.01), 32, "empty"),
    (2 * ball(32, 8), 32, "outside 0 … 1"),
    (ball(32, 8) - 0.1, 32, "outside 0 … 1"),
    (np.full((32,) * 3, np.nan), 32, "not numbers"),
    (ball(30, 8), 32, "30 × 30 × 30"),
))
def test_unusable_masks_are_refused(bad, box, words):
    with pytest.raises(InputError, match=words):
        masks.check_mask(bad, box, 2.0, 6.0, source="mask.mrc")


def test_narrow_edge_is_named_with_its_width():
    warning, = masks.check_mask(ball(48, 12, 4), 48, 2.0, 12.0, source="mask.mrc")
    assert "mask.mrc: the mask edge is 4." in warning and "(6.0 px)" in warning and "about 30 px" in warning


def test_an_edge_as_wide_as_the_resolution_passes():
    """An edge of 0.8 times the resolution is the limit; a binary mask is named at any resolution."""
    assert masks.check_mask(ball(48, 12, 4), 48, 2.0, 8.0) == []
    warning, = masks.check_mask((ball(48, 12, 4) > 0.5).astype(np.float32), 48, 2.0, 4.1)
    assert "the mask edge is 0.0 px wide" in warning


def test_touching_the_box_is_named():
    warning, = masks.check_mask(ball(48, 12, 12, centre=(14, 0, 0)), 48, 2.0, 4.0)
    assert "edge of the box" in warning


def test_mask_off_the_density_is_refused_and_beside_it_named():
    rng = np.random.default_rng(0)
    blob = density(rng.normal(scale=4, size=(200, 3)) - [12, 0, 0], 64, 2.0)
    noisy = blob + blob.max() * rng.standard_normal(blob.shape)
    dense = masks.dense_region(HalfMaps(noisy, noisy), 3.0)
    assert masks.check_mask(ball(64, 9, 3, centre=(-12, 0, 0)), 64, 3.0, 1.0, dense) == []
    warning, = masks.check_mask(ball(64, 9, 3, centre=(2, 0, 0)), 64, 3.0, 1.0, dense)
    assert "of the mask covers density; do map and mask share an origin?" in warning
    with pytest.raises(InputError, match="covers no density"):
        masks.check_mask(ball(64, 9, 3, centre=(16, 12, 12)), 64, 3.0, 1.0, dense)


@pytest.mark.parametrize("n", (48, 49))
def test_dilation_of_a_ball_is_a_larger_ball(n):
    pixel_size = 1.5
    grown = masks.dilate_soft(ball(n, 8, centre=(1, 0, 0)), pixel_size, 6.0, 7.5)
    # distances to voxel centres: the surface of the binary ball is known to half a voxel
    np.testing.assert_allclose(grown, ball(n, 8 + 4, 5, centre=(1, 0, 0)), atol=0.25)
    assert grown[n // 2, n // 2, n // 2 + 1 + 8 + 4] == 1 and grown[n // 2, n // 2, n // 2 + 1 + 8 + 4 + 5] == 0


def test_dilation_never_lowers_the_mask():
    mask = ball(32, 5, 9)
    assert np.all(masks.dilate_soft(mask, 1.0, 1.0, 1.0) >= mask)


def test_dynamic_mask_follows_the_density_and_drops_dust_and_the_neighbour():
    pixel_size, n = 3.0, 64
    rng = np.random.default_rng(0)
    part = rng.normal(scale=2.5, size=(150, 3)) + [-6, 0, 0]
    neighbour = rng.normal(scale=2.5, size=(300, 3)) + [20, 0, 0]
    dust = np.array([[-6.0, 11.0, 0.0]])
    volume = density(np.concatenate([part, neighbour, np.repeat(dust, 12, axis=0)]), n, 1.3)
    user = ball(n, 12, 4, centre=(-6, 0, 0))
    shape = masks.DynamicMask(threshold=0.2, near_angstrom=6, far_angstrom=12)
    mask = masks.dynamic_mask(volume, user, pixel_size, 6.0, shape)
    at = [mask[tuple(n // 2 + np.array(p)[::-1])] for p in ((-6, 0, 0), (20, 0, 0), (-6, 14, 0))]
    assert at == [1, 0, 0]
    inside = np.linalg.norm(part - [-6, 0, 0], axis=1) < 5
    voxels = n // 2 + np.rint(part[inside]).astype(int)
    assert np.all(mask[voxels[:, 2], voxels[:, 1], voxels[:, 0]] == 1)
    assert masks.volume_angstrom3(mask, pixel_size) < 0.8 * masks.volume_angstrom3(user, pixel_size)


def test_dynamic_mask_edge_is_at_near_and_far():
    volume = ball(48, 8) * 1.0
    shape = masks.DynamicMask(threshold=0.5, near_angstrom=4, far_angstrom=9)
    mask = masks.dynamic_mask(volume, ball(48, 12), 1.0, 1.0, shape)
    profile = mask[24, 24, 24:]
    # the 12 Å low-pass moves the half-height of a ball of 8 Å by less than 2 Å
    assert np.all(profile[:10] == 1) and np.all(profile[20:] == 0)
    assert masks.soft_edge_width_px(mask) == pytest.approx(5, abs=0.8)


def test_dynamic_mask_needs_positive_density():
    with pytest.raises(InputError, match="no positive density"):
        masks.dynamic_mask(-ball(32, 8), ball(32, 8), 2.0, 8.0)


def test_volume_and_mass_of_a_known_protein():
    """A ball of 30 Å radius: 113,097 Å3, 92 kDa at 0.81 Da/Å3."""
    mask = ball(64, 15, 2)
    # the soft edge adds (r²·w/2·4π); half of it counts
    expected = 4 / 3 * np.pi * 16 ** 3 * 8
    assert masks.volume_angstrom3(mask, 2.0) == pytest.approx(expected, rel=0.01)
    assert masks.mass_kda(mask, 2.0) == pytest.approx(expected * 0.81e-3, rel=0.01)


def test_the_sharpest_edge_counts():
    """A mask with a wide edge on one side and a narrow one on the other."""
    wide, narrow = ball(56, 14, 8), ball(56, 14, 3)
    both = np.where(np.arange(56)[:, None, None] < 28, wide, narrow)
    assert masks.sharpest_edge_px(wide) == pytest.approx(8, rel=0.1)
    assert masks.sharpest_edge_px(both) == pytest.approx(3, rel=0.25)
    assert masks.soft_edge_width_px(both) > 4


def test_a_mask_drawn_around_the_bumps_of_a_half_map_follows_its_noise():
    rng = np.random.default_rng(5)
    structure = ball(48, 10, 4) * 3
    first, second = (structure + rng.standard_normal(structure.shape) for _ in range(2))
    drawn = {"first": (first > 2) * 1.0, "second": (second > 2) * 1.0, "both": (first + second > 4) * 1.0,
             "ball": ball(48, 12, 6)}
    found = {name: masks.noise_in_mask(mask, forward(first - second), 2.0) for name, mask in drawn.items()}
    assert found["first"] > 20 and found["second"] < -20
    assert abs(found["both"]) < 5 and abs(found["ball"]) < 5
