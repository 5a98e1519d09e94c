"""Distances within a reach against SciPy's transform, parts of a region, sums over cells: on the CPU and by the CUDA
sources."""
from __future__ import annotations

import numpy as np
import pytest
from gpu.fixtures import install, install_sanitized
from scipy import ndimage

from localrefine_plugin.engine.kernels.cones import cell_sums
from localrefine_plugin.engine.kernels.device import to_host
from localrefine_plugin.engine.kernels.distance import connected_parts, squared_distances


@pytest.fixture(params=["cpu", "cuda"])
def xp(request, monkeypatch):
    return np if request.param == "cpu" else install(monkeypatch)


def scattered(shape=(13, 9, 17), share=0.01, seed=1):
    return np.random.default_rng(seed).random(shape) < share


@pytest.mark.parametrize("reach", [1, 4, 40])
@pytest.mark.parametrize("share", [0.002, 0.02, 0.7])
def test_squares_are_those_of_scipy_within_the_reach(xp, reach, share):
    region = scattered(share=share)
    expected = np.rint(ndimage.distance_transform_edt(~region) ** 2)
    found = to_host(squared_distances(xp.asarray(region), reach))
    near = expected <= reach ** 2
    assert found.dtype == np.int32 and 0 < near.sum()
    np.testing.assert_array_equal(found[near], expected[near])
    assert (found[~near] > reach ** 2).all() and found.max() <= (reach + 1) ** 2


def test_parts_are_those_of_scipy_by_any_number(xp):
    region = scattered(share=0.3)
    labels, count = ndimage.label(region)
    found = to_host(connected_parts(xp.asarray(region)))
    pairs = {(int(a), int(b)) for a, b in zip(labels.ravel(), found.ravel())}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == count + 1 and (0, 0) in pairs


def cells_problem():
    rng, shape = np.random.default_rng(3), (6, 5, 4)
    spectra = [(rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64) for _ in range(2)]
    return rng.integers(0, 12, shape).astype(np.int32), spectra


def test_cells_have_the_sums_of_their_samples(xp):
    cells, (first, second) = cells_problem()
    sums, numbers = cell_sums(*(xp.asarray(a) for a in (cells, first, second)), 10)
    for cell in range(10):
        a, b = (f[cells == cell].astype(complex) for f in (first, second))
        expected = (a * b.conj()).real.sum(), (np.abs(a) ** 2).sum(), (np.abs(b) ** 2).sum()
        np.testing.assert_allclose(sums[cell], expected, rtol=1e-5, atol=1e-5)
        assert numbers[cell] == len(a)


@pytest.mark.parametrize("sanitizer, workers", [("address", 1), ("undefined", 1), ("thread", 4)])
def test_nothing_is_read_or_written_out_of_bounds_or_at_once(monkeypatch, sanitizer, workers):
    cupy = install_sanitized(monkeypatch, sanitizer, workers)
    squared_distances(cupy.asarray(scattered((5, 6, 7), 0.05)), 9)
    cells, (first, second) = cells_problem()
    cell_sums(*(cupy.asarray(a) for a in (cells, first, second)), 12)
