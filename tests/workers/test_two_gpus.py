"""Both half-sets at a time on two GPUs, through the command line in processes of its own; Scipion's GPU lists."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from experiments import write_inputs
from gpu.fixtures import folder
from pyworkflow.protocol.constants import VOID_GPU
from pyworkflow.protocol.executor import QueueStepExecutor, StepExecutor
from pyworkflow.protocol.protocol import anonimizeGPUs
from run_results import accept_changed_files
from small_experiments import small_experiment

from localrefine_plugin.engine.__main__ import main
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.io.run_store import load_particles
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.workers import two_gpus
from localrefine_plugin.engine.workers.two_gpus import align_on_two_gpus
from localrefine_plugin.protocols import ProtLocalRefine

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"


def engine(cache, *words):
    """A verb in a process that finds two GPUs."""
    paths = os.pathsep.join(map(str, (SUPPORT / "gpu" / "pretend", ROOT)))
    environment = dict(os.environ, PYTHONPATH=paths, KERNELS_OF_STAND_IN=str(folder()), XDG_CACHE_HOME=str(cache))
    return subprocess.run([sys.executable, "-m", "localrefine_plugin.engine", *map(str, words)], env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same refinement on one GPU and on two: {devices: (run, what was said)}."""
    require_program("g++")
    path = tmp_path_factory.mktemp("GPUs")
    inputs = write_inputs(path / "in", small_experiment(24))
    words = [word for pair in zip(("--particles", "--half-map-1", "--half-map-2", "--mask"), inputs) for word in pair]
    write_json(path / "settings.json", dict(max_iterations=1, rotation_extent_deg=12.0, shift_extent_angstrom=8.0))
    found = {}
    for devices in ("cuda:0", "cuda:0,cuda:1"):
        run = RunFolder(path / devices)
        done = engine(path, "refine", *words, "--output", run.path, "--settings", path / "settings.json",
                      "--device", devices, "--threads", "2")
        assert done.returncode == 0, done.stderr
        found[devices] = run, done.stdout
    return found


def test_each_half_set_has_its_own_gpu_and_the_result_is_that_of_one_gpu(runs):
    one, two = runs["cuda:0"][0], runs["cuda:0,cuda:1"][0]
    assert [read_json(two.half_done(1, half))["device"].split(":")[0] for half in (1, 2)] == ["GPU 0", "GPU 1"]
    for half in (1, 2):
        np.testing.assert_array_equal(read_map(one.half_map(1, half))[0], read_map(two.half_map(1, half))[0])


def test_the_log_names_both_gpus_once_with_their_memory(runs):
    said = runs["cuda:0,cuda:1"][1]
    assert said.count("alignment will run on GPU 0: GPU 0") == 1 == said.count("and GPU 1: GPU 1")
    assert said.count("memory of the GPU") == 2 and "half 2: on" not in said


def test_one_half_that_fails_says_why_and_the_other_is_kept(runs, tmp_path, monkeypatch):
    run = runs["cuda:0,cuda:1"][0]
    path = tmp_path / "run"
    subprocess.run(["cp", "-r", str(run.path), str(path)], check=True)
    copy = RunFolder(path)
    for name in (copy.half_done(1, 1), copy.half_done(1, 2), copy.iteration_done(1)):
        name.unlink()
    particles = load_particles(copy)
    first = np.flatnonzero(particles.half_set == 2)[0]
    bad = int(particles.slice[first])
    with mrcfile.open(particles.stacks[particles.stack[first]], "r+") as stack:
        stack.data[bad] = np.nan
    accept_changed_files(copy)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(InputError, match=f"image {bad + 1} .* holds NaN"):
        align_on_two_gpus(str(path), 1, ["cpu", "cpu"], 2)
    assert copy.half_complete(1, 1) and not copy.half_complete(1, 2)


def test_a_half_that_was_killed_is_named(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    ended = SimpleNamespace(wait=lambda: -9)
    monkeypatch.setattr(subprocess, "Popen", lambda command: ended)
    with pytest.raises(InputError, match="half-set 1 and 2 was stopped from outside"):
        align_on_two_gpus(str(tmp_path / "run"), 3, ["cuda:0", "cuda:1"], 2)


def test_ctrl_c_stops_both_and_they_say_nothing_themselves(tmp_path, monkeypatch):
    """The terminal sends it to all three. The second child sees that it is deaf to it, then sends it to its parent."""
    code = ("import os, signal, sys, time; deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN; "
            "deaf and sys.argv[1] == '2' and os.kill(os.getppid(), signal.SIGINT); time.sleep(600 if deaf else 0)")
    started = []

    def popen(*arguments):
        started.append(subprocess.Popen(*arguments))
        return started[-1]
    monkeypatch.setattr(two_gpus, "subprocess", SimpleNamespace(Popen=popen))
    monkeypatch.setattr(two_gpus, "align_command", lambda run, k, half, *_: [sys.executable, "-c", code, str(half)])
    with pytest.raises(KeyboardInterrupt):
        align_on_two_gpus(str(tmp_path), 1, ("cuda:0", "cuda:1"), 2)
    assert [child.returncode for child in started] == [-signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.parametrize("devices", ["cuda:0,cuda:0", "cpu,cuda:0", "cuda:0,cuda:1,cuda:2", "cuda,cuda:1"])
def test_devices_that_are_no_two_gpus_are_a_usage_error(devices):
    with pytest.raises(SystemExit):
        main(["align", "RUN", "--iteration", "1", "--half", "both", "--device", devices])


def test_two_gpus_for_one_half_are_refused(runs, capsys):
    run = str(runs["cuda:0"][0].path)
    assert main(["align", run, "--iteration", "1", "--half", "1", "--device", "cuda:0,cuda:1"]) == 1
    assert "--half both" in capsys.readouterr().err


# the protocol

def protocol(gpus="0", use=True, executor=None):
    made = ProtLocalRefine(useGpu=use, gpuList=gpus)
    made._stepsExecutor = executor
    return made


@pytest.mark.parametrize("gpus, device", [
    ("0", "cuda:0"), ("3", "cuda:3"), ("2 0", "cuda:2,cuda:0"), ("1-3", "cuda:1,cuda:2"), ("1 1", "cuda:1"),
    (f"{VOID_GPU} 2", "cuda:2")])
def test_the_list_of_the_form_is_respected(gpus, device):
    made = protocol(gpus)
    made._stepsExecutor = StepExecutor(None, gpuList=made.getGpuList())
    assert made._device() == device
    assert protocol(gpus)._device() == device
    assert protocol(gpus, use=False)._device() == "cpu"


def test_in_a_queue_gpus_are_counted_from_zero():
    """What the form calls 4 and 6 is what the queue gives, which the process sees as 0 and 1."""
    made = protocol("4 6")
    made._stepsExecutor = StepExecutor(None, gpuList=anonimizeGPUs(made.getGpuList()))
    assert made._device() == "cuda:0,cuda:1"


def test_each_step_in_a_queue_has_its_slot(monkeypatch):
    executor = QueueStepExecutor(None, {}, 1, gpuList=[5, 7])
    monkeypatch.setattr(executor, "getCurrentStepThread", lambda: SimpleNamespace(needsGPU=lambda: True, thId=9))
    assert protocol("5 7", executor=executor)._device() == "cuda:0,cuda:1"


def test_with_two_gpus_the_first_step_aligns_both_halves(monkeypatch, tmp_path):
    asked = []
    made = protocol("0 1")
    run = RunFolder(tmp_path)
    monkeypatch.setattr(RunFolder, "stopped_before", lambda self, k: False)
    monkeypatch.setattr(made, "_run_folder", lambda: run)
    monkeypatch.setattr(made, "_engine", lambda *words: asked.append(words))
    made.alignStep(1, 1, "token")
    made.gpuList.set("1")
    made.alignStep(1, 2, "token")
    assert asked[0][5:8] == ("both", "--device", "cuda:0,cuda:1") and asked[1][5:8] == ("2", "--device", "cuda:1")
