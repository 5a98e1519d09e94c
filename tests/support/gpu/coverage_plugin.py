"""A pytest plugin for benchmarks/operators/gpu_coverage.py: lines by test file, and by whether a GPU was at work.

To be loaded before the tests import the engine (-p gpu.coverage_plugin). GPU_COVERAGE is the folder of the results.
"""
from __future__ import annotations

import functools
import os
from pathlib import Path

import coverage

FOLDER = Path(os.environ["GPU_COVERAGE"])
ENGINE = Path(__file__).resolve().parents[3] / "localrefine_plugin" / "engine"
COVERAGE = coverage.Coverage(data_file=str(FOLDER / "data"), include=[str(ENGINE / "*")], config_file=False)
COVERAGE.start()
now = {"test": "import"}


def on_gpu(function):
    """Lines inside a call are those of a GPU if its object's device is one."""
    @functools.wraps(function)
    def wrapped(self, *args, **kwargs):
        device = getattr(self, "device", None) or next((a for a in args if hasattr(a, "on_gpu")), None)
        if device is None or not device.on_gpu:
            return function(self, *args, **kwargs)
        COVERAGE.switch_context(now["test"] + " gpu")
        try:
            return function(self, *args, **kwargs)
        finally:
            COVERAGE.switch_context(now["test"])
    return wrapped


def pytest_configure(config):
    from gpu import cuda_on_cpu, fixtures
    from localrefine_plugin.engine.align.half_alignment import HalfAlignment
    for name in ("__init__", "set_reference", "add", "add_nulls", "float_accumulator"):
        setattr(HalfAlignment, name, on_gpu(getattr(HalfAlignment, name)))
    kernels = FOLDER / "kernels"
    kernels.mkdir(exist_ok=True)
    fixtures.folder = lambda: kernels
    compiled = cuda_on_cpu.Source.compiled

    def for_gcov(self, name, text, *options):
        return compiled(self, name, text, *(() if self.sanitizer else ("--coverage",)), *options)
    cuda_on_cpu.Source.compiled = for_gcov


def pytest_runtest_setup(item):
    now["test"] = item.path.stem
    COVERAGE.switch_context(now["test"])


def pytest_unconfigure(config):
    COVERAGE.stop()
    COVERAGE.save()
