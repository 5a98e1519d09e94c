"""The small matrices of poses: newton.cu and posterior.cu against the functions of align/ that a CPU runs, whose own
tests have closed forms and finite differences."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gpu.fixtures import install, install_sanitized
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.align import marginalize, search
from localrefine_plugin.engine.align.modes import COLUMNS, WIDTH, Modes
from localrefine_plugin.engine.align.prior import PosePrior, clip_to_extents, grid_log_prior, log_prior
from localrefine_plugin.engine.align.reference import slice_rows
from localrefine_plugin.engine.align.reference_errors import SelfNoiseBias, pose_error_covariance
from localrefine_plugin.engine.kernels import cuda, poses
from localrefine_plugin.engine.kernels.device import to_host
from localrefine_plugin.engine.kernels.slices import SUM_OF_CURVATURE, unpack_sums
from localrefine_plugin.engine.model.optics import derivatives_by_specimen_shift, image_shift
from localrefine_plugin.engine.model.pose import exp_map, random_rotations

BOX, SCALE, N, M, SHELLS = 32, 1.7, 6, 17, 5
OMEGA = 2 * np.pi / BOX
UNIT = np.array([20, 20, 20, 1, 1.0])  # about 1 / σ of rotations (rad) and shifts (px)
LEAST_GAIN = 0.06


@pytest.fixture
def cupy(monkeypatch):
    return install(monkeypatch)


def definite(rng, n):
    square = rng.standard_normal((n, 5, 5))
    return (square @ np.swapaxes(square, 1, 2) + 0.1 * np.eye(5)) * np.outer(UNIT, UNIT)


class Case:
    """Modes, images and sums; ``kind`` is what of prior, self-noise and magnification is not trivial."""

    def __init__(self, kind="", seed=1):
        rng = np.random.default_rng(seed)
        self.owner = np.sort(np.concatenate([np.arange(N), rng.integers(0, N, M - N)])).astype(np.int32)
        rotation0 = random_rotations(N, rng)
        near = rotation0 @ exp_map(rng.normal(0, 0.1, (N, 3)))  # the last poses: there is something to remove
        bias = SelfNoiseBias(*(rng.uniform(0.5, 2, (N, SHELLS)).astype(np.float32) for _ in range(3)),
                             definite(rng, N)[:, :3, :3] / 100, near, rng.standard_normal((N, 2)))
        self.prior = PosePrior(rotation0, definite(rng, N) / 50, rng.standard_normal((N, 5)) / UNIT,
                               rng.uniform(-9, 9, 3), rng.uniform(-9, 9, 3), 0.3, 2.0,
                               7.0 if "tails" in kind else 0.0, bias if "noise" in kind else None)
        self.magnification = np.eye(2) + 0.05 * rng.standard_normal((N, 2, 2)) if "magnified" in kind else None
        self.w, self.shift = rng.normal(0, 0.15, (M, 3)), rng.normal(0, 1.5, (M, 2))
        curvature = definite(rng, M)
        self.sums = np.zeros((22, M))
        self.sums[:2] = rng.uniform(0, 50, (2, M))
        unit = np.array([1, 1, 1, OMEGA, OMEGA])
        self.sums[2:7] = (0.5 * rng.standard_normal((M, 5)) * UNIT / unit).T
        for i, j in np.ndindex(5, 5):
            self.sums[SUM_OF_CURVATURE[i, j]] = curvature[:, i, j] / (unit[i] * unit[j])
        self.trial_sums = self.sums[:7] * rng.uniform(0.3, 0.9, (7, M))
        self.trial_sums[:2] = self.sums[:2]
        self.trial_sums[0] += np.where(np.arange(M) % 3, 90.0, -90.0)  # better, better, worse, …

    def on(self, xp):
        prior = self.prior
        if prior.self_noise_bias is not None:
            prior = replace(prior, self_noise_bias=prior.self_noise_bias.each(xp.asarray))
        return prior.to_device(xp.asarray, None if self.magnification is None else xp.asarray(self.magnification))

    def placed(self):
        return search.modes_at(self.prior, self.owner, self.w, self.shift)

    def magnifications(self):
        return None if self.magnification is None else self.magnification[self.owner]

    def evaluated(self, modes, sums, curvature):
        """`search.evaluate` with these sums for those of the slices."""
        wide = np.zeros((M, 22))
        wide[:, :len(sums)] = sums.T
        log_l, gradient, h = unpack_sums(wide, OMEGA)
        gradient, h = derivatives_by_specimen_shift(gradient, h, self.magnifications())
        log_p, of_prior, q = log_prior(self.prior, self.owner, modes.w, modes.rotation, modes.shift)
        if self.prior.self_noise_bias is not None:
            own, own_gradient = self.prior.self_noise_bias.at(self.owner, modes.rotation, modes.shift)
            log_l, gradient = log_l - own, gradient - own_gradient
        changed = dict(log_likelihood=log_l, score=log_l + log_p)
        if curvature:
            changed.update(curvature=h, precision=h + q)
        return modes.changed(**changed), gradient + of_prior

    def begun(self):
        modes, gradient = self.evaluated(self.placed(), self.sums, True)
        return modes.changed(gradient=gradient)

    def bring_to_rest(self, count):
        """Change the likelihood of the first modes so that nothing draws them anywhere."""
        pull = self.begun().gradient[:count]
        if self.magnification is not None:
            pull[:, 3:] = np.linalg.solve(self.magnification[self.owner[:count]], pull[:, 3:, None])[..., 0]
        self.sums[2:7, :count] -= (pull / np.array([1, 1, 1, OMEGA, OMEGA])).T

    def newton(self, xp, modes=None):
        table = self.on(xp).table
        modes = self.placed() if modes is None else modes
        return poses.Newton(table, xp.asarray(self.owner), xp.asarray(modes.table), SCALE, BOX)


KINDS = ("", "tails", "noise", "magnified", "tails noise magnified")


def assert_modes(records, expected, rtol=1e-9):
    for name, (start, shape) in COLUMNS.items():
        found = to_host(records)[:, start:start + int(np.prod(shape, dtype=int))].reshape(expected.column(name).shape)
        limit = rtol * np.abs(expected.column(name)).max()
        np.testing.assert_allclose(found, expected.column(name), rtol=rtol, atol=limit, err_msg=name)


def test_columns_of_a_record_follow_each_other():
    widths = [int(np.prod(shape, dtype=int)) for _, shape in COLUMNS.values()]
    assert [start for start, _ in COLUMNS.values()] == list(np.cumsum([0] + widths[:-1])) and sum(widths) == WIDTH
    assert WIDTH == poses.RECORD


def test_modes_are_placed_inside_the_extents(cupy):
    case = Case()
    found = search.modes_at(case.on(cupy), cupy.asarray(case.owner), cupy.asarray(case.w), cupy.asarray(case.shift))
    clipped, _, _ = clip_to_extents(case.prior, case.owner, case.w, case.shift)
    assert 2 < (np.abs(clipped - case.w).max(axis=1) > 1e-3).sum() < M
    assert_modes(found.table, case.placed(), 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_of_newton_is_that_of_the_cpu(cupy, kind):
    case = Case(kind)
    newton = case.newton(cupy)
    newton.begin(cupy.asarray(case.sums))
    assert_modes(newton.records, case.begun(), 1e-6 if "noise" in kind else 1e-11)
    m = case.magnifications()
    np.testing.assert_allclose(to_host(newton.rows), slice_rows(case.placed().rotation, SCALE, m), atol=1e-6)
    np.testing.assert_allclose(to_host(newton.shifts), image_shift(case.placed().shift, m), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_newton_step_is_that_of_the_cpu(cupy, kind):
    """Some modes have nothing to gain and stay, some find nothing better, some move."""
    case = Case(kind)
    case.bring_to_rest(4)
    newton = case.newton(cupy)
    newton.begin(cupy.asarray(case.sums))
    before = Modes(case.owner, to_host(newton.records).copy())  # the same float32 sums of self-noise
    newton.propose(LEAST_GAIN)
    step = search.damped_step(before.precision, before.gradient, np.full(M, 1e-3))
    going = np.sum(step * before.gradient, axis=1) > LEAST_GAIN
    np.testing.assert_array_equal(to_host(newton.active), going)
    target = search.moved(case.prior, before, step)
    np.testing.assert_allclose(to_host(newton.rows)[going], slice_rows(target.rotation, SCALE, case.magnifications())[
        going], atol=1e-6)
    newton.accept(cupy.asarray(case.trial_sums))
    trial, gradient = case.evaluated(target, case.trial_sums, False)
    trial = trial.changed(gradient=gradient)
    better = going & (trial.score > before.score)
    assert 0 < (~going).sum() and 0 < better.sum() < going.sum()
    expected = Modes(before.owner, np.where(better[:, None], trial.table, before.table))
    assert_modes(newton.records, expected, 1e-6 if "noise" in kind else 1e-9)
    hessian = search.secant_update(before.precision, step, before.gradient - gradient)
    work = to_host(newton.work)
    np.testing.assert_allclose(work[going, :25].reshape(-1, 5, 5) / np.outer(UNIT, UNIT),
                               hessian[going] / np.outer(UNIT, UNIT), atol=1e-5 if "noise" in kind else 1e-9)
    np.testing.assert_allclose(work[:, 25], np.where(better, 1e-4, np.where(going, 1e-2, 1e-3)), rtol=1e-12)


@pytest.mark.parametrize("old, new", [
    ("mine[DAMPING] * mine[6 * b]", "mine[DAMPING]"),
    ("a[k * (k + 1) / 2 + i] * x[k]", "a[k * (k + 1) / 2 + i]"),
    ("log_of_turn(image, r, w)", "log_of_turn(r, image, w)"),
    ("c = 1.0 / 12.0", "c = 1.0 / 2.0"),
    ("m[3 * i + 1] = -(", "m[3 * i + 1] = ("),
    ("g[3] += by_shift * u[0]", "g[3] -= by_shift * u[0]"),
    ("image[MAGNIFICATION + 1] * y", "image[MAGNIFICATION + 2] * y"),
    ("mine[DAMPING] *= 10.0", "mine[DAMPING] *= 1.0"),
    ("- pushed[a] * pushed[b] / model", "- pushed[a] * pushed[b]"),
    ("*pull = (tails + 5.0) / (tails + m2)", "*pull = 1.0"),
    ("mag[0] * mag[0] * xx + 2.0", "mag[0] * mag[0] * xx + 1.0")])
def test_a_mutated_kernel_differs_from_the_cpu(cupy, monkeypatch, old, new):
    read = cuda.source_text
    assert old in read("newton.cu")
    monkeypatch.setattr(cuda, "source_text", lambda source: read(source).replace(old, new))
    with pytest.raises(AssertionError):
        test_the_start_of_newton_is_that_of_the_cpu(cupy, KINDS[-1])
        test_a_newton_step_is_that_of_the_cpu(cupy, KINDS[-1])


def test_a_mode_that_is_done_stays_done(cupy):
    case = Case()
    case.bring_to_rest(M)
    newton = case.newton(cupy)
    newton.begin(cupy.asarray(case.sums))
    records = to_host(newton.records).copy()
    for _ in range(3):
        newton.propose(LEAST_GAIN)
        newton.accept(cupy.asarray(np.full((7, M), np.nan)))
    np.testing.assert_array_equal(to_host(newton.records), records)


def scattered(seed=4):
    """Modes in no order, some next to each other, some far below the best."""
    rng, case = np.random.default_rng(seed), Case()
    w, shift, score = case.w.copy(), case.shift.copy(), rng.uniform(0, 20, M)
    twins = rng.permutation(M - 1)[:8]
    for i in twins:
        if case.owner[i] == case.owner[i + 1]:
            w[i + 1], shift[i + 1] = w[i] + 1e-3, shift[i] - 1e-3
    rotation = random_rotations(M, rng)
    modes = Modes.of(case.owner, w=w, shift=shift, rotation=rotation, score=score, precision=definite(rng, M))
    return modes.take(rng.permutation(M))


def test_the_same_modes_are_pruned(cupy):
    modes = scattered()
    expected = search.prune(modes, N, 0.05, 0.1)
    assert N < len(expected.owner) < M - 2
    found = search.prune(Modes(cupy.asarray(modes.owner), cupy.asarray(modes.table)), N, 0.05, 0.1)
    np.testing.assert_array_equal(to_host(found.owner), expected.owner)
    np.testing.assert_array_equal(to_host(found.table), expected.table)


def ordered():
    modes = scattered()
    return modes.take(np.lexsort([-modes.score, modes.owner]))


def test_weights_and_spread_are_those_of_the_cpu(cupy):
    modes = ordered()
    modes = modes.changed(score=0.1 * modes.score, rotation=Rotation.from_rotvec(modes.w).as_matrix())
    best = modes.take(np.searchsorted(modes.owner, np.arange(N)))
    expected = marginalize.weigh(modes, best, N)
    there = Modes(cupy.asarray(modes.owner), cupy.asarray(modes.table))
    for ours, theirs in zip(marginalize.weigh(there, None, N), expected):
        np.testing.assert_allclose(to_host(ours), theirs, atol=2e-12)
    assert ((expected[0] > 0.05) & (expected[0] < 0.95)).sum() > 5 and np.abs(expected[1]).max() > 1e-3


@pytest.mark.parametrize("voxels_per_radian", [0.1, 4.0, 9.0, 1000.0])
def test_insertions_are_those_of_the_cpu(cupy, voxels_per_radian):
    """From one insertion of a mode to four; a mode of little weight is left out."""
    modes = ordered()
    best = modes.take(np.searchsorted(modes.owner, np.arange(N)))
    weights, _ = marginalize.weigh(modes.changed(score=0.5 * modes.score), best, N)
    assert (weights < marginalize.SMALLEST_WEIGHT).any()
    expected = marginalize.posterior_insertions(modes, weights, voxels_per_radian, N)
    found = marginalize.posterior_insertions(Modes(cupy.asarray(modes.owner), cupy.asarray(modes.table)),
                                             cupy.asarray(weights), voxels_per_radian, N)
    for name in vars(expected):
        np.testing.assert_allclose(to_host(getattr(found, name)), getattr(expected, name), atol=1e-8, err_msg=name)


@pytest.mark.parametrize("equal", [2, 3])
def test_equal_variances_have_the_root_that_does_not_choose(cupy, equal):
    """S of a covariance with equal eigenvalues: the sum over insertions of w wᵀ is that covariance."""
    rng = np.random.default_rng(6)
    deviation = np.array([0.02] * equal + [0.05] * (3 - equal))
    axes = random_rotations(4, rng)
    precision = np.zeros((4, 5, 5))
    precision[:, :3, :3] = (axes / deviation ** 2) @ np.swapaxes(axes, 1, 2)
    precision[:, 3:, 3:] = 4 * np.eye(2)
    modes = Modes.of(np.arange(4, dtype=np.int32), rotation=np.tile(np.eye(3), (4, 1, 1)), precision=precision)
    found = marginalize.posterior_insertions(Modes(cupy.asarray(modes.owner), cupy.asarray(modes.table)),
                                             cupy.asarray(np.ones(4)), 100.0, 4)
    w = Rotation.from_matrix(to_host(found.rotation)).as_rotvec().reshape(4, 4, 3)
    np.testing.assert_allclose(np.einsum("nci,ncj->nij", w, w) / 4, np.linalg.inv(precision[:, :3, :3]), atol=1e-9)
    np.testing.assert_allclose(to_host(found.shift_variance), 0.25)


def test_pose_errors_are_those_of_the_cpu(cupy):
    rng = np.random.default_rng(8)
    curvature = definite(rng, N)
    precision, share = curvature + definite(rng, N) / 9, rng.uniform(0.25, 1, N)
    found = pose_error_covariance(*(cupy.asarray(a) for a in (curvature, precision, share)))
    expected = pose_error_covariance(curvature, precision, share)
    np.testing.assert_allclose(to_host(found), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["", "tails"])
def test_the_prior_on_the_grid_is_that_of_the_cpu(cupy, kind):
    """float32 on the CPU where rotations meet shifts; −∞ in the same places."""
    case, rng = Case(kind), np.random.default_rng(9)
    w, shifts, scores = rng.normal(0, 0.1, (7, 3)), rng.uniform(-3, 3, (9, 2)), rng.random((N, 7, 9), np.float32)
    turns = exp_map(w)
    expected = scores + grid_log_prior(case.prior, w, shifts, case.prior.rotation0[:, None] @ turns, 0.5)
    found = cupy.asarray(scores)
    poses.add_grid_prior(case.on(cupy).table, *(cupy.asarray(a) for a in (w, turns, shifts)), 0.5, found)
    assert 0.1 < np.isinf(expected).mean() < 0.9
    np.testing.assert_array_equal(np.isinf(to_host(found)), np.isinf(expected))
    np.testing.assert_allclose(to_host(found), expected, rtol=2e-5, atol=1e-4)


def test_shells_are_summed(cupy):
    weights, first = np.random.default_rng(10).random((4, 30), np.float32), np.array([0, 3, 4, 11, 30])
    expected = np.add.reduceat(weights.astype(float), first[:-1], axis=1)
    np.testing.assert_allclose(to_host(poses.sum_shells(cupy.asarray(weights), first)), expected, rtol=1e-6)


def everything(xp):
    """Every kernel once, with everything that is optional."""
    case = Case("tails noise magnified")
    newton = case.newton(xp, case.placed())
    newton.begin(xp.asarray(case.sums))
    newton.propose(LEAST_GAIN)
    newton.accept(xp.asarray(case.trial_sums))
    owner = xp.asarray(case.owner)
    placed = search.modes_at(case.on(xp), owner, xp.asarray(case.w), xp.asarray(case.shift))
    kept = search.prune(Modes(owner, newton.records), N, 0.05, 0.1)
    weights, spread = marginalize.weigh(kept, None, N)
    found = marginalize.posterior_insertions(kept, weights, 9.0, N)
    errors = pose_error_covariance(kept.curvature, kept.precision, xp.asarray(np.full(len(kept.owner), 0.5)))
    scores = xp.asarray(np.zeros((N, 3, 4), np.float32))
    w = xp.asarray(case.w[:3])
    poses.add_grid_prior(case.on(xp).table, w, exp_map(w), xp.asarray(case.shift[:4]), 0.5, scores)
    shells = poses.sum_shells(xp.asarray(np.ones((N, 10), np.float32)), np.array([0, 4, 10]))
    return [to_host(a).copy() for a in (newton.records, newton.active, placed.table, kept.table, weights, spread,
                                        found.rotation, found.weight, errors, scores, shells)]


def test_no_thread_depends_on_the_order_of_threads(monkeypatch):
    forwards = everything(install(monkeypatch))
    for one, other in zip(forwards, everything(install(monkeypatch, backwards=True))):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sanitizer, workers", [("address", 1), ("undefined", 1), ("thread", 4)])
def test_nothing_is_read_or_written_out_of_bounds_or_at_once(monkeypatch, sanitizer, workers):
    everything(install_sanitized(monkeypatch, sanitizer, workers))
