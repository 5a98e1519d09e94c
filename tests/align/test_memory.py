"""Memory: what is predicted, that it does not grow with the images, and that too little is said before the run."""
from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.growth.memory import TOLERANCE, measured, write_data
from localrefine_plugin.engine.align import half_set as align
from localrefine_plugin.engine.align import memory, search
from localrefine_plugin.engine.align.reference import make_reference
from localrefine_plugin.engine.io.mrc import ImageReader
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.kernels.device import CPU, HOST_WORKING_BYTES
from localrefine_plugin.engine.kernels.host import forget_peak, peak_memory_mb
from localrefine_plugin.engine.model.pixels import pixel_list
from localrefine_plugin.engine.model.pose import exp_map, random_rotations
from localrefine_plugin.engine.records.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_the_peak_is_the_predicted_one(tmp_path):
    found = measured(1500, 32, tmp_path, iterations=1)
    assert found.largest == pytest.approx(found.predicted, rel=TOLERANCE), found.verbs


def test_a_batch_is_bounded_by_what_the_search_takes():
    """Twice the grid in a small box halves the batch; in a large box the transforms decide."""
    def batch(box: int, rotations: int) -> int:
        shell = (box - 1) // 2
        need = memory.memory_need(box, shell, [20.0], int(1.5 * shell ** 2),
                                  memory.GridSize(600, rotations, 20))
        return align.batch_size(need, CPU)
    assert batch(32, 2000) == pytest.approx(batch(32, 1000) / 2, rel=0.1)
    assert batch(384, 300) == batch(384, 100)
    assert 50 < batch(384, 300) < batch(64, 300) < 3000


def test_the_prior_on_the_grid_does_not_hold_all_images():
    """Scores of 400 images on a grid of 2000 rotations: the peak is that of the scores, not of rotations in float64."""
    n, g, s = 400, 2000, 7
    rng = np.random.default_rng(5)
    pixels = pixel_list(32, 8, 15)
    images = search.PackedImages(pixels, np.ones((n, len(pixels)), np.complex64), np.ones((n, len(pixels)), np.float32))
    motion = search.PosePrior(random_rotations(n, rng), np.zeros((n, 5, 5)), np.zeros((n, 5)), np.zeros(3), np.zeros(3),
                           1.0, 5.0)
    w = 0.1 * rng.standard_normal((g, 3))
    grid = search.Grid(w, exp_map(w), np.zeros((g, 1), int), rng.standard_normal((s, 2)), 0.1, 1.0)
    volume = np.ones((16, 16, 16), np.float32)
    reference = make_reference(volume, volume, np.zeros(3), 8)
    search.grid_scores(reference, images.take(np.arange(4)), motion.take(np.arange(4)), grid, len(pixels))  # compiled
    forget_peak()
    before = peak_memory_mb()
    assert search.grid_scores(reference, images, motion, grid, len(pixels)).shape == (n, g, s)
    assert peak_memory_mb() - before < (4 * n * g * s + 2 * HOST_WORKING_BYTES) / 2 ** 20


def test_images_read_do_not_stay_in_memory(tmp_path):
    write_data(tmp_path, 8000, 32)
    particles, _ = read_particles(tmp_path / "particles.star")
    with ImageReader(particles) as reader:
        reader.read(np.arange(100))
        forget_peak()
        before = peak_memory_mb()
        for start in range(0, 8000, 100):
            reader.read(np.arange(start, start + 100))
    assert (tmp_path / "images.mrcs").stat().st_size > 30e6
    assert peak_memory_mb() - before < 8


def test_a_stack_for_each_particle_needs_few_file_handles(tmp_path):
    """As sets of 10⁵ micrographs have: prepare and an align step of 150 stacks with 64 file handles. (All steps of
    100,000 stacks: benchmarks.growth.many.)"""
    inputs = write_data(tmp_path / "data", 150, 16, per_stack=1)
    assert len(list((tmp_path / "data").glob("images*.mrcs"))) == 150
    words = [str(word) for pair in inputs.items() for word in pair]
    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
            "from localrefine_plugin.engine.__main__ import main; sys.exit(main(sys.argv[1:]))")
    common = ["--device", "cpu", "--threads", "1"]
    for verb in (["prepare", *words, "--output", str(tmp_path / "run")],
                 ["align", str(tmp_path / "run"), "--iteration", "1", "--half", "both"]):
        done = subprocess.run([sys.executable, "-c", code, *verb, *common], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr


def test_too_little_memory_is_said_before_the_run(tmp_path):
    inputs = write_data(tmp_path / "data", 40, 32)
    words = [word for pair in inputs.items() for word in pair]
    code = ("import sys; from localrefine_plugin.engine.align import memory; "
            "memory.free_host_memory = lambda: 50 * 2.0**20; "
            "from localrefine_plugin.engine.__main__ import main; sys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "refine", *words, "--output", str(tmp_path / "run"), "--device",
                           "cpu", "--threads", "1"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: memory: the run takes about 0.2 GiB and 0.0 GiB are free; use another machine" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["error.json"]


def test_a_smaller_box_that_would_fit_is_named(monkeypatch):
    monkeypatch.setattr(memory, "free_host_memory", lambda: 2 * 2.0 ** 30)
    memory.check_host(1.9 * 2 ** 30, 256)
    with pytest.raises(InputError, match=r"about 16\.0 GiB and 2\.0 GiB are free; .* bin the particles to 124 px"):
        memory.check_host(16 * 2.0 ** 30, 256)


def test_a_limit_of_the_process_counts(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (3 * 2 ** 20, resource.RLIM_INFINITY))
    assert memory.free_host_memory() == 3 * 2 ** 20


def test_bodies_that_are_aligned_together_need_the_sums_and_references_of_all_but_the_images_of_one():
    small, large = (memory.memory_need(64, 20, [reach], pixels, memory.GridSize(200, 50, 20))
                    for reach, pixels in ((20, 500), (30, 900)))
    assert memory.together([small]) is small
    both = memory.together([small, large])
    assert both.sums == small.sums + large.sums
    assert both.reference == small.reference + large.reference
    assert both.image == large.image + 12 * large.half_plane  # a transform of 8 bytes a pixel, and a CTF of 4
    assert both.reconstruction == large.reconstruction
