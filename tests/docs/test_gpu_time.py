"""The arithmetic behind the expected time on a GPU: FLOP counted by executing the CUDA sources."""
from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import require_program
from gpu import stand_in
from gpu.cuda_on_cpu import Source
from gpu.fixtures import install
from kernel_problem import Problem

from benchmarks.operators import gpu_time
from examples import simulate

COUNTING = str(Path(stand_in.__file__).with_name("counting.h"))


class CountingSource(Source):
    """Every float of the source counts."""

    flop = 0

    def library(self, name):
        library = ctypes.CDLL(str(self.compiled(name, "", "-shared", "-fPIC", "-include", COUNTING)))
        self.counter = ctypes.c_longlong.in_dll(library, "operations")
        return library

    def launch(self, name, grid, block, arguments):
        self.library(name)
        before = self.counter.value
        super().launch(name, grid, block, arguments)
        CountingSource.flop += self.counter.value - before


@pytest.mark.parametrize("name", list(gpu_time.PER_PIXEL))
def test_flop_per_pixel_are_those_of_the_cuda_source(monkeypatch, name):
    """A sign change costs nothing, so that all pixels cost the same. The column kx = 0 is inserted by half."""
    monkeypatch.setattr(stand_in, "Source", CountingSource)
    p = Problem()
    pixels = {"grid score": p.grid_rows.shape[0] * p.grid_rows.shape[1] * len(p.kx),
              "insertion": len(p.rows) * int((p.last + 1).sum() - p.shell)}.get(name, len(p.rows) * len(p.kx))
    p = p.on(install(monkeypatch))
    CountingSource.flop = 0
    {"grid score": p.scores, "slice": p.slices, "insertion": p.inserted, "Gauss–Newton sums": lambda: p.sums(True),
     "Gauss–Newton gradient only": lambda: p.sums(False)}[name]()
    assert CountingSource.flop / pixels == pytest.approx(gpu_time.PER_PIXEL[name].flop, rel=0.0001)


def test_seconds_are_those_of_the_slowest_part():
    """2 pixels of a grid: 128 bytes from L2, 32 of memory, and a product of 4 · 10 · 2 FLOP."""
    count, GPU = gpu_time.Count(), gpu_time.Gpu(l2=1.0, memory=1.0, bus=1.0, flop=10.0)
    count.add(1, 2, shifts=10)
    assert gpu_time.seconds_of("grid score", count, GPU) == pytest.approx(128 + 8)
    slow = gpu_time.Gpu(l2=1e9, memory=0.1, bus=1.0, flop=1e9)
    assert gpu_time.seconds_of("grid score", count, slow) == pytest.approx(320, rel=1e-3)


def test_counts_of_a_run(tmp_path):
    """Each particle is inserted at least once, over the half-disc; the engine is as it was afterwards."""
    options = simulate.Options(particles=40, box_size=40, pixel_size=7.2, threads=1)
    before = gpu_time.align.insert_slices
    require_program("g++")
    counts, work = gpu_time.counted_run(tmp_path, options, 1)
    assert gpu_time.align.insert_slices is before and "cupy" not in sys.modules
    assert counts["insertion"].slices >= 1 and counts["slice"].slices == 1
    per_slice = counts["insertion"].pixels / counts["insertion"].slices
    assert per_slice == pytest.approx(np.pi * 19.5 ** 2 / 2, rel=0.05)
    assert counts["grid score"].product_flop >= 4 * counts["grid score"].pixels
    # at the least the image is read, its transform written and multiplied twice; per batch, not per particle
    assert 100 * 4 * 40 ** 2 > work.bytes_per_particle > 8 * 4 * 40 ** 2 and 100 < work.calls < 2000
    assert work.reconstruction_bytes > 4 * 4 * 80 ** 3
    assert "**together**" in gpu_time.page(counts, work, options)
