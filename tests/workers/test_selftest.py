"""The self-test of a GPU: passes on the stand-in, fails on a GPU that computes something else, is remembered."""
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from gpu.fixtures import STAND_IN, install
from gpu.streams import Stream

from localrefine_plugin.engine import __main__ as command_line
from localrefine_plugin.engine.kernels import cuda
from localrefine_plugin.engine.kernels import device as device_module
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.workers import selftest as selftest_module
from localrefine_plugin.engine.workers.selftest import Check, ensure_tested, selftest

GPU = replace(STAND_IN, identity="stand-in, driver 1")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "localrefine"


@pytest.fixture
def cupy(monkeypatch):
    return install(monkeypatch)


@pytest.fixture
def runs(monkeypatch):
    """How often the test was really done, with one made-up check."""
    done = []

    def once(device, difference=0.0):
        done.append(device.identity)
        return [Check("made up", difference, 1e-4)]
    monkeypatch.setattr(selftest_module, "selftest", once)
    return done


def test_it_passes_on_the_stand_in(cupy):
    checks = selftest(GPU)
    assert len(checks) > 12 and all(check.passed for check in checks), checks


@pytest.mark.parametrize("old, new, operator", [
    ("w1 = c.fy * gz", "w1 = gy * gz", "extract_slices"),
    ("t[1] += w", "t[1] += 1.01f * w", "log likelihood"),
    ("im = sign * damping", "im = damping", "insert_slices"),
    ("theta = 0.5 *", "theta = 0.6 *", "insertions"),
    ("lost * h[", "0.5 * lost * h[", "errors of poses"),
    ("step * step + squares[voxel + step", "step + squares[voxel + step", "distances"),
    ("power1 += (double)(a.x", "power1 += (double)(b.x", "sums over cells"),
])
def test_a_gpu_that_computes_something_else_fails(cupy, monkeypatch, old, new, operator):
    read = cuda.source_text
    monkeypatch.setattr(cuda, "source_text", lambda source: read(source).replace(old, new))
    assert operator in [check.name for check in selftest(GPU) if not check.passed]


@pytest.mark.parametrize("module, name", [("", "matmul"), ("fft", "rfft2"), ("fft", "irfftn")])
def test_a_library_that_computes_something_else_fails(cupy, module, name):
    """The largest value off by a thousandth."""
    owner = getattr(cupy, module) if module else cupy
    right = getattr(owner, name)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        target = result[0] if isinstance(result, tuple) else result
        target._a.reshape(-1)[np.abs(target._a).argmax()] *= 1.001
        return result
    owner.__dict__[name] = wrong
    assert not all(check.passed for check in selftest(GPU))


def test_images_that_do_not_arrive_in_time_fail(cupy, monkeypatch):
    monkeypatch.setattr(Stream, "synchronize", lambda self: None)
    assert "images read ahead" in [check.name for check in selftest(GPU) if not check.passed]


def test_nothing_that_is_not_a_number_passes():
    assert not Check("", float("nan"), 1.0).passed


def test_once_for_each_gpu_and_version_of_the_sources(cupy, runs, monkeypatch):
    for _ in range(2):
        ensure_tested(GPU)
    assert runs == [GPU.identity]
    ensure_tested(replace(GPU, identity="stand-in, driver 2"))
    assert len(runs) == 2
    read = cuda.source_text
    monkeypatch.setattr(cuda, "source_text", lambda source: read(source) + "\n")
    ensure_tested(GPU)
    assert len(runs) == 3


def test_the_cpu_is_not_tested(runs):
    ensure_tested(CPU)
    assert not runs


def test_a_failure_stops_the_run_with_a_report_and_is_not_remembered(cupy, runs, monkeypatch, cache):
    monkeypatch.setattr(selftest_module, "selftest", lambda device: [Check("made up", 0.5, 1e-4)])
    with pytest.raises(InputError, match="made up by 5.0e-01.*selftest_failed.json"):
        ensure_tested(GPU)
    assert json.loads((cache / "selftest_failed.json").read_text())["checks"][0]["difference"] == 0.5
    assert not (cache / "selftest.json").exists()


@pytest.mark.parametrize("content", ["", "[1, 2]", "nonsense"])
def test_a_broken_record_is_no_record(cupy, runs, cache, content):
    cache.mkdir()
    (cache / "selftest.json").write_text(content)
    ensure_tested(GPU)
    assert len(runs) == 1 and json.loads((cache / "selftest.json").read_text())


def test_the_verb_prints_every_check(cupy, runs, monkeypatch, capsys):
    monkeypatch.setattr(device_module, "choose_device", lambda word: GPU)
    assert command_line.main(["selftest", "--device", "cuda", "--threads", "1"]) == 0
    assert "ok      made up" in capsys.readouterr().out
    monkeypatch.setattr(selftest_module, "selftest", lambda device: [Check("made up", 0.5, 1e-4)])
    assert command_line.main(["selftest"]) == 1
    shown = capsys.readouterr()
    assert "DIFFERS made up" in shown.out and "computes something else" in shown.err


def test_without_a_gpu_the_verb_says_so(monkeypatch, capsys):
    monkeypatch.setattr(device_module, "choose_device", lambda word: CPU)
    assert command_line.main(["selftest"]) == 0
    assert "nothing to compare" in capsys.readouterr().out
