"""The CUDA sources, executed on the CPU: against float64 sums, the Numba twins, and under sanitizers.

Every test runs the very text of the .cu files through the engine's own launchers. Planted bugs show that each check
can fail.
"""
from __future__ import annotations

import numpy as np
import pytest
from gpu.fixtures import install, install_sanitized
from kernel_problem import BOX, SCALE, Problem, half_volume
from oracles import hermitian_volume, trilinear_insert, trilinear_slice

from localrefine_plugin.engine.kernels import cuda
from localrefine_plugin.engine.kernels.device import to_host
from localrefine_plugin.engine.kernels.insert import insert_slices
from localrefine_plugin.engine.kernels.slices import extract_slices
from localrefine_plugin.engine.maps.reconstruct import PADDING
from localrefine_plugin.engine.model import pixels as px


@pytest.fixture
def cupy(monkeypatch):
    return install(monkeypatch)


def log_likelihood(slices, z, w):
    """Re Σ conj(Z) P − ½ Σ W|P|², in float64."""
    return np.sum((z.astype(complex).conj() * slices).real, axis=-1) - 0.5 * np.sum(w * np.abs(slices) ** 2)


def test_slices_are_those_of_the_direct_sum(cupy):
    """float32: coordinates of 19 have an ulp of 2e-6, the steepest slope between corners is about 8."""
    problem = Problem()
    full = hermitian_volume(problem.ft)
    expected = [trilinear_slice(full, r, SCALE, problem.kx, problem.ky) for r in problem.turns]
    np.testing.assert_allclose(problem.on(cupy).slices(), expected, atol=1e-4)


def test_slices_are_zero_outside_the_volume_as_on_the_cpu(cupy):
    on_cpu = Problem(reach=9).slices()
    assert (on_cpu == 0).any() and (on_cpu != 0).any()
    np.testing.assert_allclose(Problem(reach=9).on(cupy).slices(), on_cpu, atol=1e-4)


def test_scores_are_those_of_the_direct_sum(cupy):
    problem = Problem()
    full, p = hermitian_volume(problem.ft), problem
    expected = np.empty((3, 5, 4))
    for i in range(3):
        for g in range(5):
            slices = trilinear_slice(full, np.vstack([p.grid_rows[i, g], [[0, 0, 0]]]).astype(float), 1.0, p.kx, p.ky)
            expected[i, g] = log_likelihood(slices, p.grid_z[i], p.w[i])
    on_gpu = problem.on(cupy).scores()
    np.testing.assert_allclose(on_gpu, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("curvature", [False, True])
@pytest.mark.parametrize("n_pixels", [0, 1, 100, None])
def test_sums_are_those_of_the_cpu_twin(cupy, curvature, n_pixels):
    """The CPU twin is tested against float64 sums and finite differences in test_kernels."""
    expected = Problem().sums(curvature, n_pixels)
    for ours, theirs in zip(Problem().on(cupy).sums(curvature, n_pixels), expected):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * (np.abs(theirs).max() + 1e-30))


def test_value_of_the_sums_is_the_direct_sum(cupy):
    problem = Problem()
    full, expected, p = hermitian_volume(problem.ft), [], problem
    for r, u, o in zip(p.turns, p.shift, p.owner):
        phase = np.exp(-2j * np.pi / BOX * (u[0] * p.kx.astype(float) + u[1] * p.ky.astype(float)))
        slices = trilinear_slice(full, r, SCALE, p.kx, p.ky) * phase
        expected.append(log_likelihood(slices, p.z[o], p.w[o]))
    np.testing.assert_allclose(problem.on(cupy).sums()[0], expected, atol=1e-5 * np.abs(expected).max())


def test_insertion_is_that_of_the_cpu_twin(cupy):
    expected = Problem().inserted()
    np.testing.assert_allclose(Problem().on(cupy).inserted(), expected, atol=1e-5 * np.abs(expected).max())


def test_insertion_is_that_of_the_direct_sum(cupy):
    """No shift variance: N is the plain adjoint of the slice, D its weights."""
    problem = Problem()
    problem.variance[:] = 0
    p, reach = problem, PADDING * problem.shell + 2
    kx, ky = (k.astype(float) for k in px.half_plane_frequencies(p.shell))
    used = (np.hypot(kx, ky) <= p.shell + 0.5) & ~((kx == 0) & (ky < 0))
    numerator, density = np.zeros((2, 2 * reach + 1, 2 * reach + 1, 2 * reach + 1), complex)
    scale = float(np.float32(SCALE))
    for i, o in enumerate(p.owner):
        phase = np.exp(2j * np.pi / BOX * (kx * p.shift[i, 0] + ky * p.shift[i, 1]))
        values = (p.gamma[i] * p.image[o] * phase)[used]
        for out, v in ((numerator, values), (density, p.gamma[i] * p.image_weight[o][used])):
            out += trilinear_insert(out.shape, p.turns[i], scale, kx[used], ky[used], v)
            out += trilinear_insert(out.shape, p.turns[i], scale, -kx[used], -ky[used], v.conj())
    ours = problem.on(cupy).inserted().transpose(1, 2, 0, 3)  # [z, y, x]
    half = slice(reach, None)
    # on the plane x = 0 the oracle has every sample, and ours, whose mates were added, too
    for i, expected in ((0, numerator.real), (1, numerator.imag), (2, density.real)):
        np.testing.assert_allclose(ours[..., 1:, i], expected[..., half][..., 1:], atol=2e-5 * np.abs(numerator).max())


def test_extract_and_insert_are_adjoint(cupy):
    """⟨P V, Y⟩ = ⟨V, Pᵀ Y⟩ as real numbers; N holds samples of x ≥ 0, whose mates the slice sees as well."""
    p = Problem(n=7)
    kx, ky = px.half_plane_frequencies(p.shell)
    used = (kx <= p.last[:, None]) & ~((kx == 0) & (ky < 0))
    ft = half_volume(reach=PADDING * p.shell + 2, seed=5)
    p.gamma[:], p.variance[:], p.shift[:] = 1, 0, 0
    slices = to_host(extract_slices(*(cupy.asarray(a) for a in (ft, p.rows, kx[used], ky[used]))))
    left = np.vdot(p.image[p.owner][:, used].astype(complex), slices).real
    q = p.on(cupy)
    insert_slices(q.accumulator, q.rows, q.owner, q.gamma, q.shift, q.variance, q.last, q.image, q.image_weight, BOX)
    accumulated = to_host(q.accumulator).astype(float)
    numerator = (accumulated[..., 0] + 1j * accumulated[..., 1]).transpose(1, 2, 0)
    right = np.vdot(numerator, ft).real
    assert left == pytest.approx(right, rel=1e-5)


ALL = ("slices", "scores", "sums", "inserted")


@pytest.mark.parametrize("operator", ALL)
def test_no_kernel_leaves_its_arrays(monkeypatch, operator):
    """Each array an allocation of exactly its size, under the address sanitizer; volume too small for some samples."""
    xp = install_sanitized(monkeypatch, "address")
    np.testing.assert_allclose(to_host(np.asarray(getattr(Problem(reach=9).on(xp), operator)()[0])),
                               getattr(Problem(reach=9), operator)()[0], atol=2e-3)


@pytest.mark.parametrize("operator", ALL)
def test_no_two_threads_race(monkeypatch, operator):
    """Blocks shared out among four threads, under the thread sanitizer."""
    xp = install_sanitized(monkeypatch, "thread", workers=4)
    getattr(Problem().on(xp), operator)()


# planted bugs: each layer catches its own

@pytest.fixture
def mutated(monkeypatch):
    """Replaces text in the .cu sources, which must occur."""
    def mutate(old, new):
        read = cuda.source_text

        def changed(source):
            text = read(source)
            return text.replace(old, new)
        assert any(old in read(source) for source in ("slices.cu", "insert.cu", "shells.cu", "moved.cu"))
        monkeypatch.setattr(cuda, "source_text", changed)
    return mutate


@pytest.mark.parametrize("old, new, operator", [
    ("c.sign = -1.0f", "c.sign = 1.0f", "slices"),
    ("w2 = gy * c.fz", "w2 = gy * gz", "slices"),
    ("k += (int)blockDim.x", "k += (int)blockDim.x + 1", "scores"),
    ("weight + (item / n_rot) * n_k", "weight", "scores"),
    ("d1 = s * (dz * c.x - dx * c.z)", "d1 = s * (dz * c.x + dx * c.z)", "sums"),
    ("t[6] += cross * ky", "t[6] += cross * kx", "sums"),
    ("first = (long long)owner[item] * n_k", "first = (long long)owner[item] * n_pixels - 1", "sums"),
    ("im = sign * damping", "im = damping", "inserted"),
    ("fx * fy * fz, re", "fx * fy * gz, re", "inserted"),
    ("(ix == 0 && iy < max_k)", "false", "inserted"),
])
def test_a_mutated_kernel_differs_from_the_cpu_twin(cupy, mutated, old, new, operator):
    mutated(old, new)
    expected = getattr(Problem(), operator)()
    ours = getattr(Problem().on(cupy), operator)()
    pairs = zip(ours, expected) if operator == "sums" else [(ours, expected)]
    assert not all(np.abs(a - b).max() < 1e-3 * np.abs(b).max() for a, b in pairs)  # NaN, never written, is not less


@pytest.mark.parametrize("old, new, operator", [
    ("if (k >= n_k)", "if (k > n_k)", "slices"),
    ("z0 < nz - 1;", "z0 < nz + 1;", "scores"),
    ("iy > 2 * max_k ||", "iy > 2 * max_k + 1 ||", "inserted"),
])
def test_the_address_sanitizer_catches_an_index_off_by_one(monkeypatch, mutated, old, new, operator):
    xp = install_sanitized(monkeypatch, "address")
    mutated(old, new)
    with pytest.raises(RuntimeError, match="heap-buffer-overflow"):
        getattr(Problem(reach=9).on(xp), operator)()


def test_the_thread_sanitizer_catches_a_missing_atomic(monkeypatch, mutated):
    xp = install_sanitized(monkeypatch, "thread", workers=4)
    mutated("atomicAdd(sum, value)", "*sum += value")
    with pytest.raises(RuntimeError, match="data race"):
        Problem().on(xp).inserted()


def test_launchers_refuse_what_a_kernel_would_misread(cupy):
    def refused(match, **changes):
        problem = Problem().on(cupy)
        for name, change in changes.items():
            setattr(problem, name, change(getattr(problem, name)))
        with pytest.raises(TypeError, match=match):
            problem.inserted() if set(changes) & {"image", "last", "accumulator"} else problem.sums()

    refused("ft is complex128", ft=lambda a: a.astype(np.complex128))
    refused("matched is complex64 .* not contiguous", z=lambda a: a.repeat(2, 1)[:, ::2])
    refused("weight is float32", w=lambda a: a[:2])
    refused("image is complex64", image=lambda a: a[:, :-1])
    refused("last_column is int64", last=lambda a: a.astype(np.int64))
    refused("not on the device but a numpy.ndarray", accumulator=lambda a: a, image=lambda a: a.get())


def test_more_pixels_than_there_are_is_refused_and_nothing_to_insert_changes_nothing(cupy):
    problem = Problem().on(cupy)
    with pytest.raises(ValueError, match="pixels of"):
        problem.sums(n_pixels=len(problem.kx) + 1)
    for name in ("rows", "owner", "gamma", "shift", "variance"):
        setattr(problem, name, getattr(problem, name)[:0])
    before = cupy.ledger.counts.launches
    assert not problem.inserted().any() and cupy.ledger.counts.launches == before


def test_a_launch_with_a_wrong_argument_is_refused(cupy):
    """What `checked` does not see, the kernel's own declaration does: a Python int is 8 bytes, a double no float."""
    problem = Problem().on(cupy)
    kernel = cuda.kernel(cupy, "slices.cu", "extract_slices")
    out = cupy.empty((7, len(problem.kx)), np.complex64)
    right = [problem.ft, *(np.int32(n) for n in problem.ft.shape), problem.rows, problem.kx, problem.ky,
             np.int32(len(problem.kx)), out]
    kernel((7, 1), (128,), tuple(right))
    wrong = [(1, len(problem.ft)), (1, np.int64(len(problem.ft))), (4, problem.rows.astype(np.float64)),
             (5, problem.kx.get()), (8, np.float32(3)), (9, out[:, ::2])]
    for position, value in wrong:
        with pytest.raises(TypeError):
            kernel((7, 1), (128,), tuple(right[:position] + [value] + right[position + 1:]))
    with pytest.raises(TypeError):
        kernel((7, 1), (128,), tuple(right[:-1]))
    with pytest.raises(ValueError):
        kernel((7, 65536), (128,), tuple(right))
