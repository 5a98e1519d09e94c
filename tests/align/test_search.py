"""Planted poses found again, the prior and its derivatives, limits that no pose passes, the fulcrum's indifference."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from experiments import experiment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import multivariate_t

from localrefine_plugin.engine.align.prior import PosePrior, clip_to_extents, log_prior
from localrefine_plugin.engine.model.pose import exp_map, inverse_right_jacobian, random_rotations

RESOLUTION = 10.0  # Å; pixels of 4 Å


@lru_cache(maxsize=None)
def clean(box=32):
    return experiment(40, box=box)


@lru_cache(maxsize=None)
def noisy():
    """Signal-to-noise ratio about 1 per pixel: rotations known to 1.4° per axis."""
    return experiment(100, noise=1.0, seed=2)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("box", [32, 33])
def test_planted_poses_are_recovered(box):
    """No noise: what remains is the trilinear interpolation of the reference (0.04° here) and where the steps stop."""
    e = clean(box)
    first = e.align(RESOLUTION).poses
    start = np.linalg.norm(
        Rotation.from_matrix(np.swapaxes(e.rotation, 1, 2) @ e.particles.rotation).as_rotvec(degrees=True), axis=1
    )
    assert np.median(start) > 3
    turned, moved = e.errors(e.align(RESOLUTION, previous=first).poses)
    assert np.median(np.linalg.norm(turned, axis=1)) < 0.1
    assert np.linalg.norm(turned, axis=1).max() < 0.5
    assert np.linalg.norm(moved, axis=1).max() < 0.03


def test_noisy_poses_are_as_good_as_maximum_likelihood_from_the_truth():
    """Within 10 % of least squares of the exact phantom, started at the true pose."""
    e = noisy()
    turned, moved = e.errors(e.align(RESOLUTION).poses)
    best_turned, best_moved = e.best_near_truth(RESOLUTION)
    assert rms(turned) < 1.1 * rms(best_turned)
    assert rms(moved) < 1.1 * rms(best_moved)


def test_posterior_covariance_is_calibrated():
    """Whitened errors xᵀ C⁻¹ x of 5 × 100 values: mean 5 with a standard error of 5·√(2/500) = 0.3."""
    e = noisy()
    poses = e.align(RESOLUTION).poses
    turned, moved = e.errors(poses)
    x = np.concatenate([np.deg2rad(turned), moved], axis=1)
    whitened = np.einsum("ni,nij,nj->n", x, np.linalg.inv(poses.covariance), x)
    assert np.mean(whitened) == pytest.approx(5, abs=1.2)


def test_log_likelihood_of_the_table_is_the_direct_sum():
    """Σ (|X|² − |X − C Y|²)/σ² at the poses found, with the phantom's exact transform; the reference's interpolation
    and mask leave a percent."""
    from oracles import at_frequencies, centred_transform, full_frequencies, log_likelihood

    e = noisy()
    poses = e.align(RESOLUTION).poses
    kx, ky = full_frequencies(e.box)
    used = (np.hypot(kx, ky) < e.plan(RESOLUTION).align_shell + 0.5) & ((kx > 0) | ((kx == 0) & (ky > 0)))
    kx, ky = kx[used], ky[used]
    data, c = at_frequencies(centred_transform(e.images), kx, ky), at_frequencies(e.contrast(), kx, ky)
    models = c * e.phantom.slices(poses.rotation, poses.shift_px, kx, ky, e.box)
    expected = [log_likelihood(x, y, (e.noise * e.box) ** 2) for x, y in zip(data, models)]
    np.testing.assert_allclose(poses.log_likelihood, expected, rtol=0.03)


def test_columns_of_the_table_are_the_motion_from_the_input():
    """w = Log(R0ᵀ R) in degrees and s = displacement of the projected fulcrum in Å."""
    e = noisy()
    plan = e.plan(RESOLUTION, fulcrum=[3.0, 20.0, 9.0])
    poses = e.align(RESOLUTION, plan=plan).poses
    p = e.particles
    w = Rotation.from_matrix(np.swapaxes(p.rotation, 1, 2) @ poses.rotation).as_rotvec(degrees=True)
    fulcrum = np.array([3.0, 20.0, 9.0]) - e.box // 2
    s = (poses.rotation[:, :2] @ fulcrum + poses.shift_px) - (p.rotation[:, :2] @ fulcrum + p.shift_px)
    np.testing.assert_allclose(poses.rotation_change_deg, w, atol=1e-6)
    np.testing.assert_allclose(poses.shift_change_angstrom, s * p.pixel_size, atol=1e-6)


def test_the_fulcrum_does_not_matter_without_prior_and_with_wide_extents():
    """Only the list of grid shifts differs; every particle ends in the same optimum to where the steps stop
    (0.01 of log L, a tenth of the posterior s.d. of 1.4°)."""
    e = noisy()
    one, other = (
        e.align(RESOLUTION, fulcrum=f, rotation_extent_deg=25.0, shift_extent_angstrom=60.0).poses
        for f in ("mask", [10.0, 25.0, 12.0])
    )
    angle = Rotation.from_matrix(np.swapaxes(one.rotation, 1, 2) @ other.rotation).magnitude()
    sigma = np.sqrt(np.linalg.eigvalsh(one.covariance[:, :3, :3]).max(axis=1))
    assert np.max(angle / sigma) < 0.2
    np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, atol=0.02)


def test_the_fulcrum_does_matter_with_a_prior():
    """The same two fulcrums, with a narrow prior: else the test above would pass for a fulcrum that is never used."""
    e = noisy()
    one, other = (
        e.align(
            RESOLUTION,
            prior="gaussian",
            prior_rotation_deg=3.0,
            prior_shift_angstrom=1.0,
            rotation_extent_deg=25.0,
            shift_extent_angstrom=60.0,
            fulcrum=f,
        ).poses
        for f in ("mask", [10.0, 25.0, 12.0])
    )
    assert np.median(np.abs(one.shift_px - other.shift_px)) > 0.02


def test_a_narrow_prior_holds_the_poses():
    """With σ ≪ the likelihood's width the poses stay at the input: of 0.05 Å against 0.26 Å, a likelihood that is off
    by 9 Å pulls 0.3 Å."""
    e = noisy()
    poses = e.align(RESOLUTION, prior="gaussian", prior_rotation_deg=0.05, prior_shift_angstrom=0.05).poses
    assert np.linalg.norm(poses.rotation_change_deg, axis=1).max() < 0.1
    assert np.linalg.norm(poses.shift_change_angstrom, axis=1).max() < 0.5


def test_a_prior_pulls_towards_the_input():
    e, values = experiment(60, noise=4.0, seed=2), dict(rotation_extent_deg=40.0, shift_extent_angstrom=40.0)
    values.update(prior_rotation_deg=3.0, prior_shift_angstrom=1.0)
    free, held = (e.align(RESOLUTION, prior=prior, **values).poses for prior in ("off", "gaussian"))
    for change in ("rotation_change_deg", "shift_change_angstrom"):
        assert rms(getattr(held, change)) < 0.7 * rms(getattr(free, change))


@pytest.mark.parametrize("width, change", (
    ("prior_rotation_deg", "rotation_change_deg"), ("prior_shift_angstrom", "shift_change_angstrom")))
def test_half_the_width_of_a_prior_lowers_the_change(width, change):
    """Input errors of 3° and 3.2 Å per axis; the other width wide. Shrinkage by the formula is 1/(1 + σ²/prior²)."""
    e, extents = experiment(100, noise=4.0, seed=2), dict(rotation_extent_deg=40.0, shift_extent_angstrom=40.0)
    wide = dict(extents, prior="gaussian", prior_rotation_deg=30.0, prior_shift_angstrom=20.0)
    whole, half = (e.align(RESOLUTION, **dict(wide, **{width: w})).poses for w in (4.0, 2.0))
    assert rms(getattr(half, change)) < 0.85 * rms(getattr(whole, change))


def test_a_motion_about_a_hinge_is_found_with_the_right_fulcrum_only():
    """Turned by 5° per axis about a hinge 60 Å from the mask's centre, which moves by 5 Å per axis; 2 Å are allowed at
    the fulcrum. That is less than the grid's step, so that a grid clipped to the extent would lose every fifth."""
    e, hinge = clean(), np.array([-6.0, 8.0, 10.0])
    w = np.random.default_rng(3).normal(0, 5, (len(e.particles), 3))
    rotation = e.rotation @ Rotation.from_rotvec(w, degrees=True).as_matrix()
    moved = replace(e.particles, rotation=rotation, shift_px=e.shift - (rotation - e.rotation)[:, :2] @ hinge)
    e = replace(e, particles=moved)
    tight = dict(rotation_extent_deg=25.0, shift_extent_angstrom=2.0)
    right, wrong = (4.0 * np.linalg.norm(e.errors(e.align(RESOLUTION, fulcrum=f, **tight).poses)[1], axis=1)
                    for f in (list(hinge + e.box // 2), "mask"))
    assert np.max(right) < 0.5
    assert np.median(wrong) > 2.0


def test_nothing_beyond_the_maximum_alignment_resolution_is_used():
    """Images that differ by three times their noise beyond 16 Å give the same poses; without the limit others."""
    e = noisy()
    k = np.fft.fftfreq(e.box, 1 / e.box)
    beyond = np.hypot(k[:, None], k) > e.box * 4.0 / 16.0 + 0.5
    noise = np.random.default_rng(8).standard_normal(e.images.shape)
    other = replace(e, images=e.images + 3 * np.fft.ifft2(np.fft.fft2(noise) * beyond).real)
    one, same = (x.align(RESOLUTION, max_align_resolution_angstrom=16.0).poses for x in (e, other))
    np.testing.assert_allclose(one.rotation, same.rotation, atol=1e-5)
    free = other.align(RESOLUTION).poses
    assert np.median(np.abs(free.rotation - e.align(RESOLUTION).poses.rotation)) > 5e-3


@pytest.mark.parametrize("marginalize", (False, True))
def test_marginalised_images_are_inserted_where_their_posterior_is(marginalize):
    """At noise 4 the rotation is known to several degrees: most images go in at more than one pose, and the map is
    blurred by as much. At one pose each, there is one insertion each."""
    e = experiment(60, noise=4.0, seed=2)
    result = e.align(RESOLUTION, marginalize=marginalize)
    if not marginalize:
        assert np.all(result.poses.insertions == 1)
        return
    assert np.mean(result.poses.insertions > 1) > 0.8
    one = e.align(RESOLUTION, marginalize=False).half_map
    power = [np.abs(np.fft.fftn(m * e.mask))[:, 0, 0][5:9].sum() for m in (result.half_map, one)]
    assert power[0] < 0.9 * power[1]


def test_prior_centre_follows_re_centring():
    """Re-centred, a narrow prior holds the poses at the last iteration's, not at the input's; each switch by itself."""
    e = noisy()
    found = e.align(RESOLUTION).poses
    narrow = dict(prior="gaussian", prior_rotation_deg=0.05, prior_shift_angstrom=0.05)
    both = e.align(RESOLUTION, previous=found, recenter_rotations=True, recenter_shifts=True, **narrow).poses
    assert np.abs(both.rotation - found.rotation).max() < 0.01
    assert np.abs(both.shift_px - found.shift_px).max() < 0.1
    turned = e.align(RESOLUTION, previous=found, recenter_rotations=True, **narrow).poses
    assert np.abs(turned.rotation - found.rotation).max() < 0.01
    assert np.linalg.norm(turned.shift_change_angstrom, axis=1).max() < 0.5
    moved = e.align(RESOLUTION, previous=found, recenter_shifts=True, **narrow).poses
    assert np.linalg.norm(moved.rotation_change_deg, axis=1).max() < 0.1
    np.testing.assert_allclose(moved.shift_change_angstrom, found.shift_change_angstrom, atol=0.5)


@lru_cache(maxsize=None)
def handful():
    """Six particles of hardly any signal, whose input poses are anything: they wander to every limit."""
    return experiment(6, noise=20.0, seed=4, rotation_deg=40.0, displacement_px=4.0)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prior=st.sampled_from(["off", "gaussian"]),
    rotation_extent=st.floats(0.3, 40),
    shift_extent=st.floats(0.3, 30),
    prior_rotation=st.floats(0.5, 30),
    prior_shift=st.floats(0.5, 30),
    marginalize=st.booleans(),
    fulcrum=st.tuples(*[st.floats(-20, 60)] * 3),
)
def test_no_pose_beyond_the_extents(
    prior, rotation_extent, shift_extent, prior_rotation, prior_shift, marginalize, fulcrum
):
    e = handful()
    plan = e.plan(
        14.0,
        prior=prior,
        rotation_extent_deg=rotation_extent,
        shift_extent_angstrom=shift_extent,
        fulcrum=list(fulcrum),
        prior_rotation_deg=prior_rotation,
        prior_shift_angstrom=prior_shift,
        marginalize=marginalize,
    )
    poses = e.align(14.0, plan=plan).poses
    p = e.particles
    w = Rotation.from_matrix(np.swapaxes(p.rotation, 1, 2) @ poses.rotation).magnitude()
    f = np.array(fulcrum) - e.box // 2
    s = (poses.rotation[:, :2] @ f + poses.shift_px) - (p.rotation[:, :2] @ f + p.shift_px)
    assert np.rad2deg(w).max() <= rotation_extent
    s = np.linalg.norm(s, axis=1) * p.pixel_size
    assert s.max() <= shift_extent
    np.testing.assert_array_equal(poses.at_rotation_limit, np.rad2deg(w) > 0.98 * rotation_extent)
    np.testing.assert_array_equal(poses.at_shift_limit, s > 0.98 * shift_extent)


def some_motion(n, rng):
    square = rng.standard_normal((n, 5, 5))
    precision = square @ np.swapaxes(square, 1, 2) * np.outer([20, 20, 20, 1, 1], [20, 20, 20, 1, 1])
    mean = rng.standard_normal((n, 5)) * [0.05, 0.05, 0.05, 1, 1]
    return PosePrior(random_rotations(n, rng), precision, mean, rng.uniform(-9, 9, 3), rng.uniform(-9, 9, 3), 0.5, 6.0)


def prior_formula(motion, i, w, u):
    """−½ (x − μ)ᵀ Q (x − μ) at x = (w, displacement of the projected prior point), or that of a Student t."""
    turned = motion.rotation0[i] @ Rotation.from_rotvec(w).as_matrix() - motion.rotation0[i]
    x = np.concatenate([w, u + turned[:2] @ motion.prior_offset]) - motion.mean[i]
    if motion.tails:
        t = multivariate_t(np.zeros(5), np.linalg.inv(motion.precision[i]), df=motion.tails)
        return t.logpdf(x) - t.logpdf(np.zeros(5))
    return -0.5 * x @ motion.precision[i] @ x


@pytest.mark.parametrize("tails", (0.0, 7.0))
def test_log_prior_and_its_gradient(tails):
    """Value by the formula; gradient in (right increment of R, u) by central differences."""
    rng, n = np.random.default_rng(3), 20
    motion, owner = replace(some_motion(n, rng), tails=tails), np.arange(n)
    w, u = rng.normal(0, 0.2, (n, 3)), rng.normal(0, 2, (n, 2))
    rotation = motion.rotation0 @ exp_map(w)
    value, gradient, curvature = log_prior(motion, owner, w, rotation, u)
    np.testing.assert_allclose(value, [prior_formula(motion, i, w[i], u[i]) for i in range(n)], rtol=1e-9)

    def moved(i, x):
        turned = Rotation.from_rotvec(w[i]) * Rotation.from_rotvec(x[:3])
        return prior_formula(motion, i, turned.as_rotvec(), u[i] + x[3:])

    step = 1e-6
    differences = np.array(
        [[(moved(i, step * e) - moved(i, -step * e)) / (2 * step) for e in np.eye(5)] for i in range(n)]
    )
    scale = np.sqrt(np.abs(value)[:, None] * np.diagonal(curvature, axis1=1, axis2=2))
    np.testing.assert_allclose(gradient / scale, differences / scale, atol=1e-5)


def test_curvature_of_the_prior_is_its_precision_at_its_centre():
    """At w = 0, prior point = mask centre: the precision itself."""
    rng = np.random.default_rng(4)
    motion = replace(some_motion(5, rng), prior_offset=np.zeros(3))
    _, _, curvature = log_prior(motion, np.arange(5), np.zeros((5, 3)), motion.rotation0, np.zeros((5, 2)))
    np.testing.assert_allclose(curvature, motion.precision, rtol=1e-12)


@pytest.mark.parametrize("angle", [1e-9, 0.3, 1.0])
def test_inverse_right_jacobian(angle):
    """dLog(Exp(w)Exp(δ))/dδ by central differences of scipy's."""
    w = angle * np.array([2.0, -1.0, 2.0]) / 3
    step = 1e-6

    def log(x):
        return (Rotation.from_rotvec(w) * Rotation.from_rotvec(x)).as_rotvec()

    expected = np.stack([(log(step * e) - log(-step * e)) / (2 * step) for e in np.eye(3)], axis=1)
    np.testing.assert_allclose(inverse_right_jacobian(w), expected, atol=1e-5)


def test_clipping_moves_only_what_is_outside():
    rng, n = np.random.default_rng(5), 300
    motion, owner = some_motion(n, rng), np.arange(n)
    w, u = rng.normal(0, 0.4, (n, 3)), rng.normal(0, 6, (n, 2))
    clipped, shift, rotation = clip_to_extents(motion, owner, w, u)

    def at_fulcrum(w, u):
        turned = motion.rotation0 @ exp_map(w) - motion.rotation0
        return u + turned[:, :2] @ motion.fulcrum_offset

    assert np.linalg.norm(clipped, axis=1).max() <= motion.rotation_extent
    assert np.linalg.norm(at_fulcrum(clipped, shift), axis=1).max() <= motion.shift_extent
    np.testing.assert_allclose(rotation, motion.rotation0 @ exp_map(clipped), atol=1e-14)
    inside = (np.linalg.norm(w, axis=1) < motion.rotation_extent) & (
        np.linalg.norm(at_fulcrum(w, u), axis=1) < motion.shift_extent
    )
    assert 0 < inside.sum() < n
    np.testing.assert_allclose(clipped[inside], w[inside], atol=1e-12)
    np.testing.assert_allclose(shift[inside], u[inside], atol=1e-12)
