"""Verbs as processes of their own, alone or as ranks of MPI, and whether two runs have the same bits."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import require_mpi
from gpu.fixtures import folder

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
COSTS = ("wall_seconds", "cpu_seconds", "phase_seconds", "peak_memory_mb", "device", "device_word", "processes")


def start(words, launcher=(), gpus=False, **variables):
    """A verb as a process of its own, which finds two GPUs if told to."""
    paths = [SUPPORT / "gpu" / "pretend"] * gpus + [ROOT]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, paths)), KERNELS_OF_STAND_IN=str(folder()),
                       OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", **variables)
    command = [*launcher, sys.executable, "-m", "localrefine_plugin.engine", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True)


def engine(words, launcher=(), gpus=False, **variables):
    process = start(words, launcher, gpus, **variables)
    said, failed = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, said, failed)


def ranks(count):
    """The launcher of so many MPI ranks; skips where there is none."""
    require_mpi()
    return ["mpirun", "--oversubscribe", "-n", str(count)]


def results(path):
    """Every file of a run but for what tells its cost and its folder: name → bytes, or text."""
    found = {}
    for file in sorted(Path(path).rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and file.suffix in (".mrc", ".npz", ".star"):
            found[name] = file.read_bytes()
        elif file.name in ("iteration.json", "report.json", "pose_blur.json", "mask_ladder.json"):
            found[name] = without_costs(json.loads(file.read_text().replace(str(path), "RUN")))
    return found


def without_costs(content):
    if isinstance(content, dict):
        return {key: without_costs(value) for key, value in content.items() if key not in COSTS}
    return [without_costs(value) for value in content] if isinstance(content, list) else content


def assert_same_results(one, other):
    one, other = results(one), results(other)
    assert list(one) == list(other) and len(one) > 20
    assert [name for name in one if one[name] != other[name]] == []
