"""Subtraction of what is outside the mask, on phantoms of two bodies: the rest where the input poses have it."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from experiments import contrast_of, experiment, write_inputs
from oracles import Phantom, imaged, random_phantom, soft_ball

from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.static_part import static_parts, surface_motion
from localrefine_plugin.engine.io.run_store import load_noise
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

CENTRE, REST_CENTRE = (6.0, -4.0, 3.0), (-7.0, 5.0, -4.0)


@pytest.fixture(scope="module")
def two_bodies():
    """Images of a sub-volume (3° and 0.8 px from its input poses), with and without a rest twice as heavy, which is
    where the input poses have it; and the density of the rest."""
    e = experiment(120, box=44, noise=0.0, seed=3, centre=CENTRE)
    rest = random_phantom(60, 6.0, 1.2, seed=200, centre=REST_CENTRE)
    images_of_rest = imaged(rest.projections(e.particles.rotation, e.particles.shift_px, e.box),
                            contrast_of(e.particles))
    sigma = 0.5 * (e.images + images_of_rest).std()
    noisy = e.images + sigma * np.random.default_rng(5).standard_normal(e.images.shape)
    alone = dataclasses.replace(e, images=noisy, noise=sigma)
    return dataclasses.replace(alone, images=noisy + images_of_rest), alone, rest.density(e.box)


def rotation_error(e, static_part=None):
    """R.m.s. in degrees after two passes, and the noise of the first, which the second goes by."""
    plan = e.plan(9.0, prior="gaussian", prior_rotation_deg=3, prior_shift_angstrom=3.2)
    noise = e.noise_power
    for _ in range(2):
        result = align_half(e.half_set(noise_power=noise, static_part=static_part), plan)
        noise = result.noise_power
    return np.sqrt(np.mean(e.errors(result.poses)[0] ** 2)), noise[0, 2:15]


def test_the_rest_is_no_noise_any_more(two_bodies):
    both, alone, rest = two_bodies
    with_rest, noise = rotation_error(both)
    without, reduced = rotation_error(both, both.phantom.density(both.box) + rest)
    bound, white = rotation_error(alone)
    assert without < 0.7 * with_rest  # 1.05° against 1.71°, measured
    assert without < 1.2 * bound  # 0.91°
    # and the power of the residuals tells
    np.testing.assert_allclose(reduced, white, rtol=0.5)  # the rest next to the mask stays
    assert noise[:6].min() > 5 * white[:6].max()


def test_static_parts_hold_the_particle_and_no_solvent(two_bodies):
    both, _, rest = two_bodies
    whole = both.phantom.density(both.box) + rest
    rng = np.random.default_rng(1)
    maps = [whole + 0.3 * whole.std() * rng.standard_normal(whole.shape).astype(np.float32) for _ in range(2)]
    parts = static_parts(maps, both.mask, 4.0, 9.0, 1)
    assert not np.array_equal(*parts)
    for part, noisy in zip(parts, maps):
        assert np.corrcoef(part[rest > 0.05].ravel(), rest[rest > 0.05].ravel())[0, 1] > 0.97
        far = soft_ball(both.box, 3, 3, np.array([10.0, 12.0, -12.0])) > 0
        assert np.abs(part[far]).max() < 1e-6 < np.abs(noisy[far]).max()


def test_surface_motion_is_that_of_points_on_a_sphere():
    rng, covariance = np.random.default_rng(2), np.diag([0.02, 0.05, 0.03, 1.0, 0.5, 2.0]) ** 2
    x = rng.multivariate_normal(np.zeros(6), covariance, 200_000)
    direction = rng.standard_normal((200_000, 3))
    moved = np.cross(x[:, :3], 30 * direction / np.linalg.norm(direction, axis=1, keepdims=True)) + x[:, 3:]
    assert surface_motion(covariance, 30.0) == pytest.approx(np.sqrt(np.mean(moved ** 2)), rel=0.01)


def test_a_run_subtracts(two_bodies, tmp_path):
    """The setting reaches the search: the noise that the run ends with lacks the rest."""
    both, _, _ = two_bodies
    more, own = random_phantom(60, 6.0, 1.2, seed=200, centre=REST_CENTRE), both.phantom
    whole = dataclasses.replace(both, phantom=Phantom(
        np.concatenate([own.points, more.points]), np.concatenate([own.amplitudes, more.amplitudes]), own.sigma))
    inputs, noise = write_inputs(tmp_path / "in", whole), {}
    for subtract in (False, True):
        settings = Settings(prior="gaussian", prior_rotation_deg=3, prior_shift_angstrom=3, initial_lowpass_angstrom=9,
                            max_iterations=1, subtract=subtract)
        run = refine(*inputs, str(tmp_path / f"run_{subtract}"), settings, device="cpu", threads=1)
        assert run.static_part(1).exists() == subtract
        noise[subtract] = np.mean([load_noise(run, 1, half)[0, 2:8] for half in (1, 2)])
    assert noise[True] < 0.3 * noise[False]
