"""What a run has on fewer pixels, against phantoms of Gaussians whose places and widths are scaled here."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from experiments import experiment
from gpu.fixtures import STAND_IN, install
from oracles import Phantom, random_phantom, soft_ball

from localrefine_plugin.engine.align.search_plan import resolve
from localrefine_plugin.engine.control.coarser import Coarser
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.kernels.prefetch import from_array
from localrefine_plugin.engine.model.pixels import highest_shell
from localrefine_plugin.engine.model.pose import random_rotations
from localrefine_plugin.engine.records.settings import Settings

OLD, NEW = 60, 40
S = NEW / OLD
COARSER = Coarser(OLD, NEW)
RNG = np.random.default_rng(4)
PHANTOM = random_phantom(30, 12.0, 2.5, seed=1, centre=(3.0, -2.0, 1.0))
SCALED = Phantom(PHANTOM.points * S, PHANTOM.amplitudes, PHANTOM.sigma * S)


def test_maps_keep_their_grey_values_and_images_are_their_projections():
    np.testing.assert_allclose(COARSER.map(PHANTOM.density(OLD)), SCALED.density(NEW), atol=2e-3)
    rotation, shift = random_rotations(3, RNG), RNG.normal(0, 2, (3, 2))
    images = (PHANTOM.projections(rotation, shift, OLD) + 7.0).astype(np.float32)  # the background is taken off
    expected = SCALED.projections(rotation, S * shift, NEW)
    found = COARSER.images(from_array(images), np.arange(3))
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.max())


def test_images_are_cropped_on_a_gpu_as_on_the_cpu(monkeypatch):
    images = RNG.standard_normal((3, OLD, OLD)).astype(np.float32)
    on_cpu = COARSER.images(from_array(images), np.arange(3), CPU)
    install(monkeypatch)
    np.testing.assert_allclose(COARSER.images(from_array(images), np.arange(3), STAND_IN), on_cpu, atol=1e-5)


def test_the_power_of_noise_is_that_of_the_cropped_images():
    """White noise of power 1 per pixel: E|N(k)|² = N²."""
    images = RNG.standard_normal((400, OLD, OLD)).astype(np.float32)
    found = COARSER.images(from_array(images), np.arange(400))
    power = np.full((1, highest_shell(OLD) + 1), float(OLD ** 2))
    assert COARSER.noise(power).shape == (1, highest_shell(NEW) + 1)
    measured = np.mean(np.abs(np.fft.fft2(found)[:, 3:9, 3:9]) ** 2)
    assert measured == pytest.approx(COARSER.noise(power)[0, 5], rel=0.03)
    density = 1 / power[0]
    np.testing.assert_allclose(COARSER.density(density), 1 / COARSER.noise(power)[0])


def test_masks_stay_where_they_are_and_zero_where_they_were():
    mask = soft_ball(OLD, 12, 18, (3.0, -2.0, 1.0))
    found = COARSER.mask(mask)
    np.testing.assert_allclose(found, soft_ball(NEW, 12 * S, 18 * S, (3.0 * S, -2.0 * S, 1.0 * S)), atol=0.08)
    assert found[0].max() == 0 and 0 <= found.min() and found.max() <= 1
    np.testing.assert_allclose(COARSER.full_size(found), mask, atol=0.12)


def test_places_and_poses_are_scaled_about_the_middle_of_the_box():
    e = experiment(4, box=OLD)
    few = COARSER.particles(e.particles)
    assert (few.box_size, few.pixel_size) == (NEW, pytest.approx(e.particles.pixel_size / S))
    np.testing.assert_allclose(few.shift_px, S * e.particles.shift_px)
    resolved = resolve(Settings(fulcrum=(33.0, 27.0, 30.0)), e.mask, 12.0, e.particles.pixel_size)
    found = COARSER.resolved(resolved)
    assert found.fulcrum_px == pytest.approx((22.0, 18.0, 20.0))
    np.testing.assert_allclose(np.array(found.mask_centre_px) - NEW // 2,
                               S * (np.array(resolved.mask_centre_px) - OLD // 2))
    assert found.mask_radius_angstrom == resolved.mask_radius_angstrom


def test_a_motion_is_told_about_the_centre_on_the_new_grid():
    """x = (w, d) about one whole pixel is (w, s (d + w × v)) about another, v px away."""
    e = experiment(1, box=OLD)
    resolved = replace(resolve(Settings(), e.mask, 12.0, e.particles.pixel_size), mask_centre_px=(35.0, 26.0, 31.0))
    x = RNG.standard_normal((50, 6))
    offset = np.rint(S * np.array([5.0, -4.0, 1.0])) / S - np.array([5.0, -4.0, 1.0])
    expected = np.hstack([x[:, :3], S * (x[:, 3:] + np.cross(x[:, :3], offset))])
    np.testing.assert_allclose(COARSER.motion(x.T @ x, resolved), expected.T @ expected, atol=1e-9)


def test_the_box_is_the_smallest_that_is_transformed_fast_and_worth_it():
    assert Coarser.holding(256, 59, 1).new == 120 and Coarser.holding(256, 60, 1).new == 128
    assert Coarser.holding(256, 120, 1).same and Coarser.holding(255, 20, 1).same
    for last in (20, 37, 44):
        assert highest_shell(Coarser.holding(256, last, 1).new) >= last
    volume = np.zeros((3,) * 3)
    assert Coarser(3, 3).map(volume) is volume and Coarser(3, 3).mask(volume) is volume
