"""What the noise in a reference does to scores and poses: the image's own, and that of all others."""

from dataclasses import replace

import numpy as np
import pytest
from experiments import experiment

from localrefine_plugin.engine.align.half_alignment import HalfAlignment
from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.images import pack
from localrefine_plugin.engine.align.reference import make_reference, slice_rows
from localrefine_plugin.engine.align.reference_errors import (
    DAMPING,
    ReferenceErrors,
    accumulator_mean,
    own_share,
    pose_error_covariance,
    second_moment,
    self_noise_bias,
)
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.kernels.slices import extract_slices
from localrefine_plugin.engine.maps.reconstruct import enforce_hermitian, squared_radius
from localrefine_plugin.engine.model.fourier import lowpass, shell_index_rfft
from localrefine_plugin.engine.model.pose import exp_map, project

RESOLUTION = 9.0
FALLING = ReferenceErrors(np.ones(16), np.linspace(1, 0.1, 16), np.diag([4.0, 6.0, 9.0]))


@pytest.fixture(scope="module")
def noisy():
    """600 images of noise, left where they were: their half-map is made of nothing but their noise."""
    e = experiment(600, noise=1.0, seed=4)
    e = replace(e, images=np.random.default_rng(8).standard_normal(e.images.shape))
    return e, e.align(RESOLUTION, marginalize=False, rotation_extent_deg=0.1, shift_extent_angstrom=0.1)


def share_of(e, result, reference):
    return own_share(reference, result.half_map, e.mask, e.centre, result.accumulator_mean)


def packed_images(e, plan, u0):
    work = HalfAlignment(e.half_set(), plan, CPU, 1)
    return work.pixels, pack(work.images.batch(np.arange(len(e.particles))), work.pixels, u0)


def scores(reference, pixels, packed, rotation, shift):
    """log L (n,) of images at poses, straight from its definition."""
    slices = extract_slices(reference.ft, slice_rows(rotation, reference.scale), pixels.kx, pixels.ky)
    slices = slices * pixels.phases(-shift)
    cross = (packed.matched.conj() * slices).real.sum(axis=1, dtype=np.float64)
    return cross - 0.5 * (packed.weight * np.abs(slices) ** 2).sum(axis=1, dtype=np.float64)


@pytest.mark.parametrize("w, u", [((0, 0, 0), (0, 0)), ((0.06, 0, 0), (0, 0)), ((0, -0.1, 0.1), (0, 0)),
                                  ((0, 0, 0), (0.4, -0.3)), ((0.05, 0.05, -0.05), (0.2, 0.3))])
def test_noise_agrees_with_the_map_made_of_it_by_as_much_as_foretold(noisy, w, u):
    """Images of noise have no pose: what they score near the one they were inserted at, beyond the mean of −½|Y|², is S
    (their other contributions to the score have mean zero)."""
    e, result = noisy
    plan = e.plan(RESOLUTION)
    reference_map = lowpass(result.half_map, e.particles.pixel_size, RESOLUTION)
    reference = make_reference(reference_map, e.mask, e.centre, plan.align_shell)
    last = result.poses
    u0 = last.shift_px + project(last.rotation, e.centre)
    pixels, packed = packed_images(e, plan, u0)
    rotation, shift = last.rotation @ exp_map(np.array(w, float)), np.tile(np.array(u, float), (len(last), 1))
    errors = ReferenceErrors(np.ones(16), share_of(e, result, reference_map), second_moment(e.mask, e.centre))
    own = self_noise_bias(errors, pixels, packed.weight, np.zeros((len(last), 5, 5)), last.rotation,
                          np.zeros_like(shift), np.ones(len(last), bool))
    foretold = own.at(np.arange(len(last)), rotation, shift)[0] / DAMPING
    slices = extract_slices(reference.ft, slice_rows(rotation, reference.scale), pixels.kx, pixels.ky)
    energy = 0.5 * (packed.weight * np.abs(slices) ** 2).sum(axis=1, dtype=np.float64)
    measured = scores(reference, pixels, packed, rotation, shift) + energy
    error = measured.std() / np.sqrt(len(last))
    assert foretold.mean() > 20 * error
    assert abs(measured.mean() - foretold.mean()) < 2 * error + 0.08 * foretold.mean()


def test_gradient_is_that_of_the_value(noisy):
    e, result = noisy
    rng = np.random.default_rng(2)
    n = 20
    last = result.poses.rotation[:n]
    pixels, packed = packed_images(e, e.plan(RESOLUTION), np.zeros((len(e.particles), 2)))
    covariance = np.tile(np.diag([0.02] * 5), (n, 1, 1))
    own = self_noise_bias(FALLING, pixels, packed.weight[:n], covariance, last, np.zeros((n, 2)), np.ones(n, bool))
    rotation, shift = last @ exp_map(rng.normal(0, 0.08, (n, 3))), rng.normal(0, 0.4, (n, 2))
    gradient = own.at(np.arange(n), rotation, shift)[1]
    step = 1e-2
    for i, direction in enumerate(np.eye(5)):
        forward, backward = (own.at(np.arange(n), rotation @ exp_map(h * direction[:3]), shift + h * direction[3:])[0]
                             for h in (step, -step))
        np.testing.assert_allclose((forward - backward) / (2 * step), gradient[:, i], rtol=0.02,
                                   atol=0.01 * np.abs(gradient).max())


def test_an_image_inserted_over_its_posterior_agrees_less_and_further(noisy):
    e, result = noisy
    pixels, packed = packed_images(e, e.plan(RESOLUTION), np.zeros((len(e.particles), 2)))
    one = slice(0, 1)
    at = result.poses.rotation[one], np.zeros((1, 2))
    sharp, wide = (self_noise_bias(FALLING, pixels, packed.weight[one], np.diag([v] * 5)[None], *at, np.ones(1, bool))
                   for v in (0.0, 0.2))
    far = at[0] @ exp_map(np.array([1.5, 0, 0])), np.array([[2.5, 0.0]])
    near, further = ([term.at(np.zeros(1, int), *pose)[0][0] for term in (sharp, wide)] for pose in (at, far))
    assert near[1] < 0.8 * near[0]
    assert further[1] / near[1] > 1.5 * further[0] / near[0]


def test_density_of_the_accumulator(noisy):
    """D by shell of an accumulator filled by the engine, from the accumulator itself."""
    e, _ = noisy
    work = HalfAlignment(e.half_set(), e.plan(RESOLUTION), CPU, 1)
    work.add(np.arange(len(e.particles)))
    noise, max_shell = work.findings.noise, work.half.max_shell
    accumulator = work.float_accumulator()
    enforce_hermitian(accumulator)
    d = accumulator[..., 2]
    radius = 0.5 * np.sqrt(squared_radius(d.shape, 0, np))
    weight_sum = np.ldexp(work.findings.weight_sum.astype(float), -work.exponent[1]).reshape(noise.counted.shape)
    found = accumulator_mean(weight_sum[noise.counted], noise.shell, max_shell)
    for k in (4, 8, 12):
        assert found[k] == pytest.approx(d[np.abs(radius - k) < 0.5].mean(), rel=0.05)


def with_noisy_reference(e, share, seed):
    """Map of a phantom with white noise of this variance relative to its own, shell by shell, and F = P / (P + E)."""
    truth = e.phantom.density(e.box)
    noise = np.random.default_rng(seed).standard_normal(truth.shape)
    shell = shell_index_rfft(truth.shape).ravel()
    power, of_noise = (np.bincount(shell, np.abs(np.fft.rfftn(v * e.mask)).ravel() ** 2) for v in (truth, noise))
    gain = np.sqrt(share * power / of_noise)[shell_index_rfft(truth.shape)]
    return truth + np.fft.irfftn(np.fft.rfftn(noise) * gain, truth.shape), np.full(e.box // 2 + 1, 1 / (1 + share))


def test_errors_made_by_a_noisy_reference_are_in_the_covariance():
    """Whitened errors of poses found with a reference a third of which is noise: χ² is as it should be, and twice
    that without what the reference's noise does."""
    # next to the noise of an image that of the reference is small, as in experiments
    e = experiment(400, noise=12.0, seed=9, rotation_deg=1.0, displacement_px=0.3)
    found, before = [], []
    for seed in range(3):
        reference, agreement = with_noisy_reference(e, 0.5, seed)
        for target, errors in ((found, ReferenceErrors(agreement, np.zeros(17), np.eye(3))), (before, None)):
            half = e.half_set(reference_map=reference, reference_errors=errors)
            poses = align_half(half, e.plan(RESOLUTION)).poses
            w, moved = e.errors(poses)
            x = np.concatenate([np.deg2rad(w - np.median(w, axis=0)), moved], axis=1)
            target.append(np.einsum("ni,ni->n", x, np.linalg.solve(poses.pose_error_covariance, x[..., None])[..., 0]))
    assert np.median(np.concatenate(found)) == pytest.approx(4.351, rel=0.2)  # median of χ² of five
    assert np.median(np.concatenate(before)) > 1.8 * np.median(np.concatenate(found))


def test_what_nothing_is_known_of_has_no_small_error():
    nothing = np.zeros((1, 5, 5))
    assert pose_error_covariance(nothing, nothing, np.ones(1))[0, 0, 0] > 1e8


def test_second_moment_of_a_bar():
    """1, 5 and 9 voxels long along x, y and z: variances of equally likely places, (n² − 1) / 12."""
    mask = np.zeros((32, 32, 32), np.float32)
    mask[12:21, 10:15, 20] = 1
    np.testing.assert_allclose(second_moment(mask, np.array([4.0, -4.0, 0.0])), np.diag([0, 2, 80 / 12]), atol=1e-9)
