"""Insertion in 64-bit fixed point: the float path's values, the same bits in any order, no overflow."""
from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import pytest
from gpu.fixtures import STAND_IN, install, install_sanitized
from kernel_problem import BOX, Problem
from small_experiments import aligned, assert_same, small_experiment

from localrefine_plugin.engine.align import half_alignment as align_module
from localrefine_plugin.engine.align import memory as memory_module
from localrefine_plugin.engine.kernels import cuda, fixed_point
from localrefine_plugin.engine.kernels import insert as insert_module
from localrefine_plugin.engine.kernels.device import CPU, to_host
from localrefine_plugin.engine.kernels.fixed_point import FixedPointSums, OutOfRange, exact_sums, exponents, summable
from localrefine_plugin.engine.kernels.insert import insert_slices
from localrefine_plugin.engine.maps.reconstruct import enforce_hermitian


def problem(order=slice(None), signal=1.0):
    """Nine thousand terms; insertions in this order, images times ``signal``."""
    p = Problem(m=14)
    for name in ("rows", "owner", "gamma", "shift", "variance"):
        setattr(p, name, np.ascontiguousarray(getattr(p, name)[order]))
    p.image = (p.image * signal).astype(np.complex64)
    return p


def insert(accumulator, p):
    insert_slices(accumulator, p.rows, p.owner, p.gamma, p.shift, p.variance, p.last, p.image, p.image_weight, BOX)


def in_fixed_point(xp, problems, insertions=14.0, lowered=0):
    """The accumulator (numpy, float32) of these problems one after another."""
    largest = float(problems[0].image_weight.max())
    sums = FixedPointSums(problems[0].accumulator.shape, exponents(largest, insertions, lowered), xp)
    for p in problems:
        insert(sums, p if xp is np else p.on(xp))
    return sums.to_float()


def in_float(problems):
    total = problems[0].accumulator.astype(np.float64)
    for p in problems:
        p.accumulator[...] = 0
        insert(p.accumulator, p)
        total += p.accumulator
    return total


def largest_difference(ours, theirs):
    """N and D apart: they have scales of their own."""
    return max(np.abs(ours[..., part] - theirs[..., part]).max() / np.abs(theirs[..., part]).max()
               for part in (slice(0, 2), slice(2, 3)))


def compared(xp, makers, **options):
    ours = in_fixed_point(xp, [make() for make in makers], **options)
    theirs = in_float([make() for make in makers])
    for accumulator in (ours, theirs):
        enforce_hermitian(accumulator)
    return largest_difference(ours, theirs)


@pytest.fixture(params=["cpu", "gpu"])
def xp(request, monkeypatch):
    return np if request.param == "cpu" else install(monkeypatch)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_it_is_the_float_accumulator_whatever_the_grey_scale(xp, scale):
    """Images of another grey scale a have 1/a times the Z and 1/a² times the W."""
    def of_scale():
        p = problem(signal=1 / scale)
        p.image_weight = (p.image_weight / scale ** 2).astype(np.float32)
        return p
    assert compared(xp, [of_scale]) < 2e-6


def test_images_of_nothing_leave_nothing(xp):
    sums = in_fixed_point(xp, [problem(signal=0.0)])
    assert (sums[..., :2] == 0).all() and (sums[..., 2] > 0).any()


def bits(monkeypatch, order, fixed=True, **options):
    xp, p = install(monkeypatch, **options), problem(order)
    if fixed:
        return in_fixed_point(xp, [p]).view(np.uint32)
    p = p.on(xp)
    insert(p.accumulator, p)
    return p.accumulator.get().view(np.uint32)


def test_the_same_bits_in_any_order_of_threads_blocks_and_insertions(monkeypatch):
    """And the float sums have not, or the test would show nothing."""
    plain, shuffled = np.arange(14), np.random.default_rng(4).permutation(14)
    orders = [dict(order=plain), dict(order=plain, backwards=True), dict(order=shuffled),
              dict(order=shuffled, workers=4), dict(order=plain[::-1], backwards=True, workers=3)]
    fixed = [bits(monkeypatch, **order) for order in orders]
    assert all(np.array_equal(fixed[0], other) for other in fixed[1:])
    in_floats = [bits(monkeypatch, fixed=False, **order) for order in orders[:3]]
    assert not np.array_equal(in_floats[0], in_floats[1]) and not np.array_equal(in_floats[0], in_floats[2])


def on_the_cpu(orders, threads):
    """Bits of the sums of these parts, each inserted by so many threads into sums of its own, added up."""
    before, total = numba.get_num_threads(), 0
    numba.set_num_threads(min(threads, before))
    try:
        for order in orders:
            p = problem(order)
            sums = FixedPointSums(p.accumulator.shape, exponents(float(problem().image_weight.max()), 14.0), np)
            insert(sums, p)
            total = total + sums.sums
    finally:
        numba.set_num_threads(before)
    return total


def test_on_the_cpu_the_same_bits_for_any_threads_order_and_division(monkeypatch):
    plain, shuffled = np.arange(14), np.random.default_rng(4).permutation(14)
    expected = on_the_cpu([plain], 1)
    monkeypatch.setattr(insert_module, "SLAB_BYTES", 1 << 12)  # other slabs
    for orders, threads in (([shuffled], 1), ([plain], 2), ([shuffled[:3], shuffled[3:]], 2),
                            ([plain[9:], plain[:2], plain[2:9]], 1)):
        np.testing.assert_array_equal(on_the_cpu(orders, threads), expected)


def test_many_bright_images_leave_the_range_and_fit_less_finely(xp):
    """64 times 1/σ on average is foreseen; what is brighter is never added wrongly, but refused."""
    def bright():
        return problem(signal=1e6)
    with pytest.raises(OutOfRange):
        compared(xp, [bright])
    assert compared(xp, [bright], lowered=2) < 2e-6
    with pytest.raises(OutOfRange):  # each of them would fit
        compared(xp, [lambda: problem(signal=2e3)] * 150)
    assert compared(xp, [lambda: problem(signal=2e3)] * 5) < 2e-6


def test_no_cell_comes_near_the_bound_and_few_bits_are_given_away(xp):
    """The bound is for all images agreeing in all pixels; an image of equal, aligned values must stay under it."""
    p, insertions = problem(), 2.0 ** 27
    p.rows[:] = p.rows[0]
    p.image[...], p.image_weight[...], p.shift[...], p.variance[...], p.gamma[...] = 64.0, 1.0, 0, 0, 1.0
    sums = FixedPointSums(p.accumulator.shape, exponents(1.0, insertions), xp)
    insert(sums, p if xp is np else p.on(xp))
    most = np.abs(to_host(sums.sums).astype(float)).reshape(-1, 3).max(axis=0) * insertions / 14
    limit = 2.0 ** fixed_point.BITS
    assert (most[[0, 2]] < limit).all() and (most[[0, 2]] > limit / 64).all()


@pytest.mark.parametrize("n", [1, 200, 300])
def test_sums_of_images_are_exact(xp, n):
    """Against Python's integers, with and without factors; the cut-off included."""
    rng = np.random.default_rng(n)
    values = (rng.standard_normal((n, 300)) * 10.0 ** rng.integers(-3, 6, (n, 300))).astype(np.float32)
    scale, factor = np.ldexp(1.0, rng.integers(-3, 30, 300)), rng.uniform(0, 1, n).astype(np.float32)
    values[0, 0], scale[0] = 1e30, 1.0
    on = xp.asarray
    for f in (None, factor):
        terms = values * (np.ones(n, np.float32) if f is None else f)[:, None]
        terms = np.rint(np.clip(terms.astype(float) * scale, -2.0 ** 50, 2.0 ** 50))
        expected = [sum(int(term) for term in column) for column in terms.T]
        assert to_host(exact_sums(on(values), on(scale), None if f is None else on(f))).tolist() == expected


@pytest.mark.parametrize("old, new", [
    ("damping = signal_scale * gamma[item]", "damping = gamma[item]"),
    ("w = weight_scale * gamma[item]", "w = gamma[item]"),
    ("w = weight_scale * gamma[item]", "w = signal_scale * gamma[item]"),
])
def test_a_missing_scale_is_noticed(monkeypatch, old, new):
    read = cuda.source_text
    assert old in read("insert.cu")
    monkeypatch.setattr(cuda, "source_text", lambda source: read(source).replace(old, new))
    assert not compared(install(monkeypatch), [problem]) < 1e-3


def test_sums_of_rounded_weights_do_not_depend_on_the_order():
    rng = np.random.default_rng(6)
    values = rng.uniform(0, 1, 4096)
    rounded, order = summable(values), rng.permutation(4096)
    assert np.cumsum(rounded)[-1] == np.cumsum(rounded[order])[-1]
    assert np.cumsum(values)[-1] != np.cumsum(values[order])[-1]
    np.testing.assert_allclose(rounded, values, atol=2.0 ** -41)


# under sanitizers, and in the engine

@pytest.mark.parametrize("sanitizer, workers", [("address", 1), ("thread", 4)])
def test_the_kernel_stays_in_its_arrays_and_does_not_race(monkeypatch, sanitizer, workers):
    ours = in_fixed_point(install_sanitized(monkeypatch, sanitizer, workers), [problem()])
    theirs = in_float([problem()])
    for accumulator in (ours, theirs):
        enforce_hermitian(accumulator)
    assert largest_difference(ours, theirs) < 2e-6


def test_an_iteration_is_that_of_the_cpu_and_has_the_same_bits_backwards(monkeypatch):
    e, settings = small_experiment(), dict(prior="gaussian", marginalize=True, symmetry="C2")
    install(monkeypatch)
    forwards = aligned(e, STAND_IN, **settings)
    assert_same(forwards, aligned(e, CPU, **settings))
    install(monkeypatch, backwards=True)
    assert np.array_equal(forwards.half_map, aligned(e, STAND_IN, **settings).half_map)


def test_where_memory_forbids_integers_the_sums_are_floats_and_it_is_said(monkeypatch, capsys):
    e = small_experiment()
    expected = aligned(e, CPU)
    install(monkeypatch)
    monkeypatch.setattr(memory_module.MemoryNeed, "in_integers",
                        lambda need: replace(need, sums=float(1 << 60), fixed=True))
    assert_same(aligned(e, STAND_IN), expected)
    assert "does not hold sums in 64-bit integers" in capsys.readouterr().out


def test_the_map_of_integers_is_made_on_the_gpu_and_where_memory_forbids_on_the_host(monkeypatch):
    """The same bits either way: D is summed over shells in one order."""
    e = small_experiment()
    cupy = install(monkeypatch)
    here = aligned(e, STAND_IN)
    moved = cupy.ledger.counts.bytes_to_host
    monkeypatch.setattr(align_module, "working_bytes", lambda box: 1 << 50)
    there = aligned(e, STAND_IN)
    assert cupy.ledger.counts.bytes_to_host > 2 * moved  # the accumulator went down
    assert_same(here, there)
