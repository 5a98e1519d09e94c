"""The compute kernels against float64 direct sums: slice, its sums and gradients, grid of scores, adjoint."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from oracles import hermitian_volume, random_phantom, soft_ball, trilinear_insert, trilinear_slice
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.align.reference import make_reference, slice_rows
from localrefine_plugin.engine.kernels import insert as insert_module
from localrefine_plugin.engine.kernels.fixed_point import FixedPointSums
from localrefine_plugin.engine.kernels.insert import insert_slices
from localrefine_plugin.engine.kernels.slices import extract_slices, gauss_newton_sums, score_grid
from localrefine_plugin.engine.maps.reconstruct import PADDING, enforce_hermitian, new_accumulator
from localrefine_plugin.engine.model import pixels as px
from localrefine_plugin.engine.model.pose import exp_map, random_rotations

BOXES = [24, 25]


def rotations(n, seed):
    return random_rotations(n, np.random.default_rng(seed))


def random_half_volume(reach, seed):
    """Hermitian noise: nothing smooth hides a wrong corner. (2 reach + 1, 2 reach + 1, reach + 1)."""
    rng = np.random.default_rng(seed)
    size = 2 * reach + 1
    half = (rng.standard_normal((size, size, reach + 1)) + 1j * rng.standard_normal((size, size, reach + 1))).astype(
        np.complex64
    )
    half[..., 0] = 0.5 * (half[..., 0] + half[::-1, ::-1, 0].conj())
    return half


def smooth_reference(box):
    """A phantom whose transform hardly bends within a grid cell, so that finite differences mean something."""
    phantom = random_phantom(12, 3.0, 1.6, seed=2)
    return make_reference(phantom.density(box), soft_ball(box, 7, 9), np.zeros(3), px.highest_shell(box), padding=4.0)


def matched_images(n, pixels, seed):
    """Z (n, K) complex64 and W (n, K) float32 of no particular image."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, len(pixels))) + 1j * rng.standard_normal((n, len(pixels)))
    return z.astype(np.complex64), rng.uniform(0.1, 1, (n, len(pixels))).astype(np.float32)


def all_pixels(box):
    shell = px.highest_shell(box)
    return px.pixel_list(box, shell, shell)


def inner_pixels(box):
    """Without the shell at Nyquist, whose slices may leave the reference."""
    shell = px.highest_shell(box)
    return px.pixel_list(box, shell - 1, shell)


@pytest.mark.parametrize("box", BOXES)
def test_pixel_list_holds_each_friedel_pair_once(box):
    p = all_pixels(box)
    pairs = {(int(x), int(y)) for x, y in zip(p.kx, p.ky)}
    assert len(pairs) == len(p) and not pairs & {(-x, -y) for x, y in pairs}
    axis = range(-p.max_shell - 1, p.max_shell + 2)
    disc = {(x, y) for x in axis for y in axis if 0 < np.hypot(x, y) < p.max_shell + 0.5}
    assert pairs | {(-x, -y) for x, y in pairs} == disc


@pytest.mark.parametrize("box", BOXES)
def test_a_resolution_limit_is_a_prefix(box):
    p = all_pixels(box)
    for shell in (1, 5, p.max_shell):
        prefix = p.prefix(shell)
        assert (np.hypot(p.kx[:prefix], p.ky[:prefix]) < shell + 0.5).all()
        assert (np.hypot(p.kx[prefix:], p.ky[prefix:]) > shell + 0.5).all()


@pytest.mark.parametrize("box", BOXES)
def test_index_and_last_column_agree_with_the_half_plane(box):
    p = all_pixels(box)
    kx, ky = px.half_plane_frequencies(p.max_shell)
    np.testing.assert_array_equal(kx.ravel()[p.index], p.kx)
    np.testing.assert_array_equal(ky.ravel()[p.index], p.ky)
    inside = kx <= px.last_column(p.max_shell)[:, None]
    np.testing.assert_array_equal(inside, np.hypot(kx, ky) <= p.max_shell + 0.5)


@pytest.mark.parametrize("scale", [1.0, 1.375, 2.0])
def test_slices_are_trilinear_and_hermitian(scale):
    """Random Hermitian noise, half of the pixels folded; float32 of 8 products of order 1."""
    p = all_pixels(24)
    half = random_half_volume(int(np.ceil(12 * scale)) + 1, seed=1)
    full = hermitian_volume(half)
    turns = rotations(20, 3)
    ours = extract_slices(half, slice_rows(turns, scale), p.kx, p.ky)
    expected = [trilinear_slice(full, r, scale, p.kx, p.ky) for r in turns]
    # a coordinate of 24 has an ulp of 2e-6, the steepest slope between corners is about 8
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_slices_are_zero_outside_the_volume():
    p = all_pixels(24)
    half = random_half_volume(6, seed=1)
    full = np.pad(hermitian_volume(half), 8)
    turns = rotations(10, 4)
    ours = extract_slices(half, slice_rows(turns, 1.0), p.kx, p.ky)
    expected = np.array([trilinear_slice(full, r, 1.0, p.kx, p.ky) for r in turns])
    q = np.stack([p.kx, p.ky, 0 * p.kx], axis=1).astype(float) @ turns
    inside, outside = np.abs(q).max(axis=2) < 6, np.abs(q).max(axis=2) >= 7
    np.testing.assert_allclose(ours[inside], expected[inside], atol=1e-4)
    assert outside.any() and not ours[outside].any()


def direct_log_likelihood(slices, z, w, p, shift, n_pixels):
    phase = np.exp(-2j * np.pi / p.box_size * (shift[0] * p.kx[:n_pixels] + shift[1] * p.ky[:n_pixels]).astype(float))
    part = slices[:n_pixels] * phase
    z, w = z[:n_pixels].astype(complex), w[:n_pixels].astype(float)
    return np.sum((z.conj() * part).real) - 0.5 * np.sum(w * np.abs(part) ** 2)


@pytest.mark.parametrize("box", BOXES)
def test_gauss_newton_value_is_the_direct_sum(box):
    p, reference = inner_pixels(box), smooth_reference(box)
    z, w = matched_images(5, p, seed=6)
    turns, owner = rotations(12, 7), np.arange(12) % 5
    shift = np.random.default_rng(8).uniform(-3, 3, (12, 2))
    n_pixels = p.prefix(8)
    value, _, _ = gauss_newton_sums(
        reference.ft, slice_rows(turns, reference.scale), shift, owner, p.kx, p.ky, n_pixels, z, w, box
    )
    full = hermitian_volume(reference.ft)
    slices = [trilinear_slice(full, r, reference.scale, p.kx, p.ky) for r in turns]
    expected = [direct_log_likelihood(slices[i], z[o], w[o], p, shift[i], n_pixels) for i, o in enumerate(owner)]
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


class AtPose:
    """log L at one pose moved by (δ, Δu), in float64 by the oracle's slices, and the engine's derivatives there."""

    def __init__(self, box, seed):
        self.pixels, self.reference = inner_pixels(box), smooth_reference(box)
        self.full = hermitian_volume(self.reference.ft)
        self.rotation = rotations(1, seed)
        self.shift = np.random.default_rng(seed).uniform(-2, 2, (1, 2))
        # an image of this particle a little away: residuals small, as near the optimum
        self.weight = np.random.default_rng(seed).uniform(0.1, 1, (1, len(self.pixels))).astype(np.float32)
        away = self.slice_at(np.array([0.03, -0.02, 0.04, 0.2, -0.1]))
        self.matched = (self.weight * away).astype(np.complex64)

    def slice_at(self, x):
        rotation = self.rotation[0] @ Rotation.from_rotvec(x[:3]).as_matrix()
        p, shift = self.pixels, self.shift[0] + x[3:]
        phase = np.exp(-2j * np.pi / p.box_size * (shift[0] * p.kx + shift[1] * p.ky).astype(float))
        return phase * trilinear_slice(self.full, rotation, self.reference.scale, p.kx, p.ky)

    def value(self, x):
        part = self.slice_at(x)
        return np.sum((self.matched[0].astype(complex).conj() * part).real) - 0.5 * np.sum(
            self.weight[0] * np.abs(part) ** 2
        )

    def engine(self):
        p = self.pixels
        return gauss_newton_sums(
            self.reference.ft,
            slice_rows(self.rotation, self.reference.scale),
            self.shift,
            np.zeros(1, int),
            p.kx,
            p.ky,
            len(p),
            self.matched,
            self.weight,
            p.box_size,
        )


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_gradient_is_that_of_the_likelihood(box, seed):
    """Central differences; a step of 1e-5 rad almost never meets a kink of the interpolant between two cells."""
    at = AtPose(box, seed)
    _, gradient, curvature = at.engine()
    step = 1e-5
    differences = [(at.value(step * e) - at.value(-step * e)) / (2 * step) for e in np.eye(5)]
    scale = np.sqrt(np.diagonal(curvature[0]) * np.abs(at.value(np.zeros(5))))
    np.testing.assert_allclose(gradient[0] / scale, differences / scale, atol=2e-3)


@pytest.mark.parametrize("box", BOXES)
def test_curvature_is_the_gauss_newton_matrix(box):
    """Σ W Re(∂Pᵢ* ∂Pⱼ) with derivatives of the oracle's slices by central differences."""
    at = AtPose(box, 4)
    _, _, curvature = at.engine()
    step = 1e-5
    d = np.array([(at.slice_at(step * e) - at.slice_at(-step * e)) / (2 * step) for e in np.eye(5)])
    expected = np.einsum("ik,k,jk->ij", d.conj(), at.weight[0].astype(float), d).real
    scale = np.sqrt(np.outer(np.diagonal(expected), np.diagonal(expected)))
    np.testing.assert_allclose(curvature[0] / scale, expected / scale, atol=5e-3)
    np.testing.assert_array_equal(curvature[0], curvature[0].T)


@pytest.mark.parametrize("n_shift", [1, 4, 7])
def test_grid_of_scores_is_the_direct_sum(n_shift):
    box, n, n_rot = 24, 3, 5
    p, reference = inner_pixels(box), smooth_reference(box)
    z, w = matched_images(n, p, seed=9)
    turns = rotations(n * n_rot, 10).reshape(n, n_rot, 3, 3)
    shifts = np.random.default_rng(11).uniform(-3, 3, (n_shift, 2))
    phase = np.exp(2j * np.pi / box * (shifts[:, :1] * p.kx + shifts[:, 1:] * p.ky))
    scores = score_grid(
        reference.ft, slice_rows(turns, reference.scale), p.kx, p.ky, (z[:, None] * phase).astype(np.complex64), w
    )
    full = hermitian_volume(reference.ft)
    expected = [
        [
            [
                direct_log_likelihood(trilinear_slice(full, r, reference.scale, p.kx, p.ky), z[i], w[i], p, s, len(p))
                for s in shifts
            ]
            for r in turns[i]
        ]
        for i in range(n)
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def half_plane_images(n, max_shell, seed):
    """Z (n, 2M + 1, M + 1), W alike; the column kx = 0 is Hermitian, as that of a real image is."""
    rng = np.random.default_rng(seed)
    shape = (n, 2 * max_shell + 1, max_shell + 1)
    z = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    z[:, :, 0] = 0.5 * (z[:, :, 0] + z[:, ::-1, 0].conj())
    return z, rng.uniform(0.1, 1, shape).astype(np.float32)


def insert(images, weights, turns, owner, gamma, shift, variance, box):
    max_shell = images.shape[2] - 1
    accumulator = new_accumulator(max_shell)
    insert_slices(
        accumulator,
        slice_rows(turns, PADDING),
        owner,
        gamma,
        shift,
        variance,
        px.last_column(max_shell),
        images,
        weights,
        box,
    )
    return accumulator


def as_volumes(accumulator):
    """(N, D) as (nz, ny, nx) complex128 and float64 from the accumulator [x, z, y, 3]."""
    a = accumulator.astype(np.float64).transpose(1, 2, 0, 3)
    return a[..., 0] + 1j * a[..., 1], a[..., 2]


@pytest.mark.parametrize("box", BOXES)
def test_insertion_is_the_adjoint_of_the_slice(box):
    """Re⟨S V, Y⟩ over the half-plane = Re⟨V, Sᵀ Y⟩ over the half volume; with Friedel's mates added to the plane
    x = 0, each side counts every pair twice."""
    max_shell = px.highest_shell(box)
    images, weights = half_plane_images(4, max_shell, seed=1)
    turns = rotations(4, 2)
    accumulator = insert(images, weights, turns, np.arange(4), np.ones(4), np.zeros((4, 2)), np.zeros(4), box)
    half = random_half_volume(accumulator.shape[0] - 1, seed=3)
    kx, ky = px.half_plane_frequencies(max_shell)
    used = (np.hypot(kx, ky) <= max_shell + 0.5) & ((kx > 0) | (ky >= 0))
    slices = extract_slices(half, slice_rows(turns, PADDING), kx[used], ky[used])
    left = np.sum(slices.astype(complex).conj() * images[:, used]).real
    n, _ = as_volumes(accumulator)
    size = np.linalg.norm(slices) * np.linalg.norm(images[:, used])
    assert np.sum(half.astype(complex).conj() * n).real == pytest.approx(left, abs=float(1e-5 * size))
    enforce_hermitian(accumulator)
    n, _ = as_volumes(accumulator)
    both_halves = (
        2 * np.sum(half[..., 1:].astype(complex).conj() * n[..., 1:]).real
        + np.sum(half[..., 0].astype(complex).conj() * n[..., 0]).real
    )
    assert both_halves == pytest.approx(2 * left, abs=float(2e-5 * size))


@pytest.fixture
def thin_slabs(monkeypatch):
    """Slabs of the accumulator far below a cache's size, so that a small box has many, down to a single plane."""
    monkeypatch.setattr(insert_module, "SLAB_BYTES", 1)
    monkeypatch.setattr(insert_module, "THINNEST_SLAB", 1)


@pytest.mark.parametrize("box", BOXES)
def test_slabs_lose_nothing_and_double_nothing(box, monkeypatch):
    """One slab or many, pixels on planes between slabs among them: the same sums but for the order of the additions."""
    max_shell = px.highest_shell(box)
    images, weights = half_plane_images(8, max_shell, seed=17)
    on_the_grid = np.array([np.diag([1.0, 1, 1]), np.diag([-1.0, 1, -1]), [[0, 0, 1.0], [1, 0, 0], [0, 1, 0]]])
    turns = np.concatenate([on_the_grid, rotations(5, 18)])
    arguments = images, weights, turns, np.arange(8), np.ones(8), np.zeros((8, 2)), np.zeros(8), box
    monkeypatch.setattr(insert_module, "slab_edges", lambda sums: np.array([0, len(sums) - 1], np.int32))
    whole = insert(*arguments)
    monkeypatch.setattr(insert_module, "slab_edges", lambda sums: np.arange(len(sums), dtype=np.int32))
    planes = insert(*arguments)
    for accumulator in (whole, planes):
        enforce_hermitian(accumulator)
    np.testing.assert_allclose(planes, whole, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 9, 9), (35, 69, 69), (97, 193, 193), (193, 385, 385), (771, 1541, 1541)])
def test_slabs_have_equal_work_and_cover_all(shape):
    """Σ over random slices of the pixels per slab, (1 − x/X)² at the edges, within what rounding to planes leaves."""
    edges = insert_module.slab_edges(np.empty(tuple(shape) + (3,), np.float32))
    assert edges[0] == 0 and edges[-1] == shape[0] - 1 and (np.diff(edges) > 0).all()
    work = -np.diff((1 - edges / (shape[0] - 1)) ** 2)
    ideal = 1 / (len(edges) - 1)
    assert work.max() < ideal + 2 / (shape[0] - 1)


@pytest.mark.parametrize("box", BOXES)
def test_insertion_is_the_direct_sum(box, thin_slabs):
    """N and D, several insertions of one image with weights, shifts and spreads of the shift."""
    max_shell = px.highest_shell(box)
    images, weights = half_plane_images(2, max_shell, seed=4)
    turns, owner = rotations(5, 5), np.array([0, 1, 1, 0, 1])
    rng = np.random.default_rng(6)
    gamma, shift, variance = rng.uniform(0.1, 1, 5), rng.uniform(-3, 3, (5, 2)), np.array([0, 0, 0.4, 1.5, 0])
    accumulator = insert(images, weights, turns, owner, gamma, shift, variance, box)
    enforce_hermitian(accumulator)
    n, d = as_volumes(accumulator)
    kx, ky = px.half_plane_frequencies(max_shell)
    used = (np.hypot(kx, ky) <= max_shell + 0.5) & ((kx > 0) | (ky >= 0))
    kx, ky = kx[used].astype(float), ky[used].astype(float)
    shape = (d.shape[0], d.shape[1], 2 * d.shape[2] - 1)
    total_n, total_d = np.zeros(shape, complex), np.zeros(shape, complex)
    for i, o in enumerate(owner):
        phase = np.exp(
            2j * np.pi / box * (shift[i, 0] * kx + shift[i, 1] * ky)
            - 0.5 * (2 * np.pi / box) ** 2 * variance[i] * (kx**2 + ky**2)
        )
        for sign in (1, -1):  # a pixel and its Friedel mate
            values = images[o][used] * phase * gamma[i]
            values = values if sign == 1 else values.conj()
            total_n += trilinear_insert(shape, turns[i], PADDING, sign * kx, sign * ky, values)
            total_d += trilinear_insert(shape, turns[i], PADDING, sign * kx, sign * ky, weights[o][used] * gamma[i])
    middle = d.shape[2] - 1
    np.testing.assert_allclose(n, total_n[..., middle:], atol=1e-4)
    np.testing.assert_allclose(d, total_d.real[..., middle:], atol=1e-4)


@pytest.mark.parametrize("dtype", (np.float32, np.int64))
def test_pixels_beyond_the_accumulator_are_left_out(dtype):
    """A slice magnified threefold onto the plane of y and z, its pixel (4, 4) in their last cell: nothing is written
    outside, and all pixels inside but that one are added."""
    box, scale = 24, 5.875
    max_shell = px.highest_shell(box)
    images, weights = half_plane_images(1, max_shell, seed=9)
    shape = new_accumulator(max_shell).shape
    assert shape[1:3] == (49, 49)
    guarded = np.full(int(np.prod(shape)) + 16, 7, dtype)
    accumulator = guarded[8:-8].reshape(shape)
    accumulator[...] = 0
    fixed = FixedPointSums(shape, np.array([20, 20]), np)
    fixed.sums = accumulator
    rows = slice_rows(np.array([[[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]]), scale)
    insert_slices(fixed if dtype == np.int64 else accumulator, rows, np.zeros(1, int), np.ones(1), np.zeros((1, 2)),
                  np.zeros(1), px.last_column(max_shell), images, weights, box)
    np.testing.assert_array_equal(guarded[[*range(8), *range(-8, 0)]], 7)
    kx, ky = px.half_plane_frequencies(max_shell)
    used = ((kx > 0) | (ky >= 0)) & (scale * kx < 24) & (scale * np.abs(ky) < 24) & ((kx != 4) | (ky != 4))
    unit = 2.0 ** -20 if dtype == np.int64 else 1.0
    assert accumulator[..., 2].sum() * unit == pytest.approx(weights[0][used].sum(), rel=1e-5)


def test_damping_is_the_mean_of_phases_over_gaussian_shifts():
    """Monte Carlo: the mean of e^{2πi k·(t + δ)/N} over 20,000 δ has a standard error of 1/√20000 = 0.007 per part."""
    box, n = 24, 20000
    rng = np.random.default_rng(7)
    variance, t = 0.8, np.array([[0.7, -1.1]])
    max_shell = px.highest_shell(box)
    ones = np.ones((1, 2 * max_shell + 1, max_shell + 1))
    accumulator = insert(
        ones.astype(np.complex64),
        ones.astype(np.float32),
        np.eye(3)[None],
        np.zeros(1, int),
        np.ones(1),
        t,
        np.array([variance]),
        box,
    )
    numerator, denominator = as_volumes(accumulator)
    kx, ky = px.half_plane_frequencies(max_shell)
    used = (np.hypot(kx, ky) <= max_shell) & (kx > 0)
    y, x = (PADDING * ky[used]).astype(int) + numerator.shape[1] // 2, (PADDING * kx[used]).astype(int)
    z = numerator.shape[0] // 2
    samples = t + np.sqrt(variance) * rng.standard_normal((n, 2))
    mean = np.array([np.exp(2j * np.pi / box * (samples @ k)).mean() for k in np.stack([kx[used], ky[used]], axis=1)])
    np.testing.assert_allclose(numerator[z, y, x], mean, atol=5 * 0.0071)
    np.testing.assert_allclose(denominator[z, y, x], 1, atol=1e-6)  # the CTF's power is not damped


@pytest.fixture
def set_threads():
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


def test_bits_do_not_depend_on_the_number_of_threads(set_threads, thin_slabs):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("numba was started with one thread")
    box = 24
    p, reference = inner_pixels(box), smooth_reference(box)
    z, w = matched_images(6, p, seed=12)
    turns, owner = rotations(18, 13), np.arange(18) % 6
    shift = np.random.default_rng(14).uniform(-3, 3, (18, 2))
    images, weights = half_plane_images(6, p.max_shell, seed=15)
    rows = slice_rows(turns, reference.scale)
    grid = z[:, None] * np.ones((6, 5, 1), np.complex64)
    results = []
    for threads in (1, 2):
        set_threads(threads)
        results.append(
            [
                extract_slices(reference.ft, rows, p.kx, p.ky),
                score_grid(reference.ft, rows.reshape(6, 3, 2, 3), p.kx, p.ky, grid, w),
                *gauss_newton_sums(reference.ft, rows, shift, owner, p.kx, p.ky, len(p), z, w, box),
                insert(images, weights, turns, owner, np.ones(18), shift, np.full(18, 0.1), box),
            ]
        )
    for one, two in zip(*results):
        np.testing.assert_array_equal(one, two)


def test_a_right_increment_turns_the_particle_in_its_own_frame():
    """The derivative's w is that of R·Exp(w): a slice at R·Exp(w) is the slice at R of the volume turned by Exp(w)."""
    box = 25
    p, reference = inner_pixels(box), smooth_reference(box)
    w = np.array([[0.3, -0.2, 0.1]])
    phantom = random_phantom(12, 3.0, 1.6, seed=2)
    turned = type(phantom)(phantom.points @ exp_map(w)[0].T, phantom.amplitudes, phantom.sigma)
    other = make_reference(turned.density(box), soft_ball(box, 7, 9), np.zeros(3), px.highest_shell(box), padding=4.0)
    r = rotations(1, 16)
    a = extract_slices(reference.ft, slice_rows(r @ exp_map(w), reference.scale), p.kx, p.ky)
    b = extract_slices(other.ft, slice_rows(r, reference.scale), p.kx, p.ky)
    assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)
