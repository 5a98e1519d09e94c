"""Memory: what is predicted, that it does not grow with the images, and that too little is said before the run."""
from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import TOLERANCE, measured, write_data
from localrefine_plugin.engine import memory
from localrefine_plugin.engine.files import ImageReader, read_particles
from localrefine_plugin.engine.records import InputError
from localrefine_plugin.engine.state import forget_peak, peak_memory_mb

ROOT = Path(__file__).resolve().parents[1]


def test_the_peak_is_the_predicted_one(tmp_path):
    found = measured(1500, 32, tmp_path, iterations=1)
    assert found.largest == pytest.approx(found.predicted, rel=TOLERANCE), found.verbs


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


def test_too_little_memory_is_said_before_the_run(tmp_path):
    inputs = write_data(tmp_path / "data", 40, 32)
    words = [word for pair in inputs.items() for word in pair]
    code = ("import sys; from localrefine_plugin.engine import memory; memory.free_host_memory = lambda: 50 * 2.0**20; "
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
