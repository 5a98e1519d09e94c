"""`make gpu-check` without a GPU: what it says, and its figures and record on the stand-in."""
from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gpu.fixtures import STAND_IN, install

from benchmarks.operators import gpu
from benchmarks.operators.operators import Shape
from examples import simulate
from localrefine_plugin.engine import refine as refine_module
from localrefine_plugin.engine.io.run_folder import read_json, write_json
from localrefine_plugin.engine.kernels import device as device_module
from localrefine_plugin.engine.kernels.device import CPU, Device
from localrefine_plugin.engine.prepare import prepare as prepare_module

TINY = Shape(box=24, align_shell=11, grid_shell=6, images=8, rotations=5, shifts=3)
MADE_UP = Device("cuda:1", "GPU 1: NVIDIA Made Up 9000, 20.0 of 24.0 GiB free",
                 "NVIDIA Made Up 9000, compute capability 8.6, driver for CUDA 12.4, CUDA 12, CuPy 13.6.0")


def made_up_record(**changes):
    record = gpu.Record(MADE_UP, "CuPy 13.6.0", "abc1234", "a CPU",
                        [gpu.Outcome("pytest -m gpu", True, ["3 passed in 9.9s"]),
                         gpu.Outcome("engine selftest", True, ["ok      slices"])],
                        [("slice, ns per pixel", "0.0123")], {"slice": 1e-6})
    return replace(record, **changes)


def test_without_a_gpu_it_says_what_is_missing(monkeypatch, capsys, tmp_path):
    def no_driver():
        raise OSError
    monkeypatch.setattr(device_module, "load_driver", no_driver)
    assert gpu.main([], tmp_path / "records") == 1
    assert "no NVIDIA driver (libcuda.so.1)" in capsys.readouterr().err
    assert not (tmp_path / "records").exists()


def test_the_record_names_gpu_versions_commit_and_figures(tmp_path):
    path = gpu.write_record(made_up_record(), tmp_path, "2031-02-03")
    assert path.name == "nvidia-made-up-9000-2031-02-03.md"
    text = path.read_text(encoding="utf-8")
    for word in ("24.0 GiB free", "CuPy 13.6.0", "abc1234", "3 passed in 9.9s",
                 "| slice, ns per pixel | 0.0123 |", "| slice | 1e-06 |", "Everything passed."):
        assert word in text


@pytest.mark.parametrize("changes", [
    dict(differences={"slice": 1e-6, "insertion": 0.5}), dict(differences={"slice": float("nan")}),
    dict(outcomes=[gpu.Outcome("pytest -m gpu", False, ["1 failed"])])], ids=["value", "nan", "test"])
def test_a_failure_is_in_the_record(tmp_path, changes):
    record = made_up_record(**changes)
    assert not record.passed
    assert "SOMETHING FAILED" in gpu.write_record(record, tmp_path, "2031-02-03").read_text(encoding="utf-8")


def test_figures_of_the_operators_and_that_a_wrong_value_is_seen(monkeypatch):
    install(monkeypatch)
    figures, differences = gpu.operator_figures(STAND_IN, TINY, turns=1)
    assert len(figures) == len(differences) == 6 and all(float(value) > 0 for _, value in figures)
    assert all(value < gpu.TOLERANCE for value in differences.values()), differences  # NaN is not less
    slices = gpu.extract_slices
    monkeypatch.setattr(gpu, "extract_slices", lambda ft, *rest: slices(ft, *rest) * np.float32(
        1.0 if isinstance(ft, np.ndarray) else 1.01))
    _, differences = gpu.operator_figures(STAND_IN, TINY, turns=1)
    assert differences["slice"] > gpu.TOLERANCE > differences["grid score"]


def test_figures_of_transfers_and_of_a_refinement(monkeypatch, tmp_path):
    install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in (prepare_module, refine_module):
        monkeypatch.setattr(module, "choose_device", lambda word: CPU if word == "cpu" else STAND_IN)
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 37\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(gpu, "LOOK_SECONDS", 0.01)
    assert all(float(value) > 0 for _, value in gpu.transfer_figures(STAND_IN, 1 << 16, 1))
    options = simulate.Options(particles=40, box_size=40, pixel_size=7.2, threads=1)
    first, last = gpu.refinement_figures(STAND_IN, options, tmp_path, simulate.simulate)
    assert last[:len(first)] == first and len(last) == len(first) + 3
    figures = dict(last)
    found = {name.partition(": ")[2]: value for name, value in figures.items()}
    assert all(name.startswith("40 particles of 40² px, ") for name in figures)
    assert float(found["particles per second in align"]) > 0 and found["GPU busy, by nvidia-smi"] == "37 %"
    steps = ("prepare", "align", "merge", "finish, starts and the rest")
    parts = [float(found[f"seconds in {step}"]) for step in steps]
    assert sum(parts) == pytest.approx(float(found["seconds in all"]), abs=0.2)
    assert "seconds in align: search" in found and float(found["seconds on all CPU cores"]) > 0


def test_without_nvidia_smi_how_busy_the_gpu_is_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu, "LOOK_SECONDS", 0.01)
    with gpu.Busy(STAND_IN) as busy:
        busy.thread.join()
    assert busy.mean is None


def test_the_whole_of_it_with_its_parts_made_up(monkeypatch, tmp_path, capsys):
    install(monkeypatch)
    asked = []

    def outcome(name, command, lines, **environment):
        asked.append((command, environment))
        if "--part" in command and name != "large box":  # which is stopped before it has written anything
            differences = {"slice": 0.0} if name == "operators" else {}
            write_json(command[-1], dict(figures=[[f"of {name}", "1"]], differences=differences))
        return gpu.Outcome(name, name != "large box", ["said"])
    monkeypatch.setattr(gpu, "choose_device", lambda word: MADE_UP)
    monkeypatch.setattr(gpu, "outcome", outcome)
    assert gpu.main(["--device", "cuda:1"], tmp_path) == 1
    text = next(tmp_path.glob("nvidia-made-up-9000-*.md")).read_text(encoding="utf-8")
    assert "| of operators | 1 |" in text and "| of small box | 1 |" in text and "of large box" not in text
    assert "**large box: FAILED**" in text and "| slice | 0e+00 |" in text
    assert [command[command.index("--part") + 1] for command, _ in asked[2:]] == list(gpu.LIMITS)[2:]
    assert asked[0] == (["pytest", "-q", "-m", "gpu"], {"LOCALREFINE_REQUIRE_GPU": "1"})
    assert asked[1][0] == ["localrefine_plugin.engine", "selftest", "--device", "cuda:1"]
    assert "FAILED; record:" in capsys.readouterr().out


def test_a_program_that_fails_is_an_outcome_that_did_not_pass():
    assert not gpu.outcome(gpu.SELFTEST, ["localrefine_plugin.engine", "no-such-verb"], 1).passed
    assert gpu.outcome(gpu.SELFTEST, ["localrefine_plugin.engine", "settings"], 1) == gpu.Outcome(
        gpu.SELFTEST, True, ["]"])


def test_a_program_that_hangs_is_stopped_with_its_children(monkeypatch, tmp_path):
    started, wait = tmp_path / "started", subprocess.Popen.wait
    (tmp_path / "hangs.py").write_text(
        "import pathlib, subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\nprint(child.pid, flush=True)\n"
        f"pathlib.Path({str(started)!r}).touch()\ntime.sleep(600)\n")

    def waited(process, timeout=None):
        while timeout and not started.exists():
            time.sleep(0.1)
        return wait(process, timeout and 0.1)
    monkeypatch.setattr(subprocess.Popen, "wait", waited)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = gpu.outcome(gpu.TESTS, ["hangs"], 3)
    assert not found.passed and found.lines[-1] == f"stopped after {gpu.LIMITS[gpu.TESTS]} s"
    state = Path(f"/proc/{found.lines[0]}/stat")

    def ended():
        try:
            return state.read_text().split()[2] == "Z"
        except OSError:  # not even its number is left
            return True
    limit = time.monotonic() + 30  # a signal has been sent; a busy machine takes a while to deliver it
    while not ended() and time.monotonic() < limit:
        time.sleep(0.1)
    assert ended()


def test_all_parts_together_take_at_most_twelve_minutes():
    assert sum(gpu.LIMITS.values()) <= 720


@pytest.mark.parametrize("part", ["operators", "transfers", "small box", "large box"])
def test_a_part_writes_what_it_finds(monkeypatch, tmp_path, part):
    """As main does it in a process of its own, with less to do."""
    install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in (gpu, prepare_module, refine_module):
        monkeypatch.setattr(module, "choose_device", lambda word: CPU if word == "cpu" else STAND_IN)
    few = simulate.Options(particles=40, box_size=40, pixel_size=7.2, threads=1)
    for name, value in dict(SHAPE=TINY, SIMULATED=few, LARGE=few, ITERATIONS=1, TRANSFER_BYTES=1 << 16).items():
        monkeypatch.setattr(gpu, name, value)
    assert gpu.main(["--part", part, "--device", "cuda", "--into", str(tmp_path / "found.json")], tmp_path) == 0
    found = read_json(tmp_path / "found.json")
    assert len(found["figures"]) >= 3 and (len(found["differences"]) == 6) == (part == "operators")
