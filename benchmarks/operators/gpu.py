"""What `make gpu-check` runs on a machine with an NVIDIA GPU: tests, self-test, figures, and a record of all of it.

    python -m benchmarks.operators.gpu [--device cuda:N]

The record goes to docs/gpu-records/<GPU>-<date>.md. Without a GPU it says what is missing and ends with status 1;
so it does, after the record has been written, where a test, the self-test or a value failed.

Data: 3,000 particles of examples/simulate.py; random arrays for the operators.
"""
from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numba
import numpy as np

from examples import simulate
from localrefine_plugin.engine import refine
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.kernels.device import CPU, Device, choose_device, to_host
from localrefine_plugin.engine.kernels.fixed_point import FixedPointSums
from localrefine_plugin.engine.kernels.insert import insert_slices
from localrefine_plugin.engine.kernels.prefetch import Prefetch
from localrefine_plugin.engine.kernels.slices import extract_slices, gauss_newton_sums, score_grid
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

from ..measure import commit, machine
from ..page import table
from .operators import TOLERANCE, Problem, Shape, best_seconds, difference

RECORDS = Path(__file__).resolve().parents[2] / "docs" / "gpu-records"
SHAPE = Shape(images=512)
SIMULATED = simulate.Options(particles=3000)
ITERATIONS = 2
TRANSFER_BYTES = 1 << 28


@dataclass(frozen=True)
class Outcome:
    """Of a program that was run: its name, whether it ended with 0, and its last lines."""

    name: str
    passed: bool
    lines: List[str]


@dataclass(frozen=True)
class Record:
    """One machine, one day. figures: rows of (what, value); differences: {operator: greatest / r.m.s. to the CPU}."""

    device: Device
    versions: str
    commit: str
    machine: str
    outcomes: List[Outcome]
    figures: List[Tuple[str, str]]
    differences: Dict[str, float]

    @property
    def passed(self) -> bool:
        return all(o.passed for o in self.outcomes) and all(d < TOLERANCE for d in self.differences.values())


class Placed:
    """The problem of `benchmarks.operators.operators` with its arrays on a device."""

    def __init__(self, problem: Problem, device: Device):
        self.problem, self.device = problem, device
        self.shape, self.n_grid, put = problem.shape, problem.n_grid, device.to_device
        self.arrays = {name: put(value) for name, value in vars(problem).items() if isinstance(value, np.ndarray)}
        self.kx, self.ky = put(problem.pixels.kx), put(problem.pixels.ky)
        many = len(problem.insert_rows)
        self.gamma, self.variance = put(np.full(many, 1.0)), put(np.full(many, 0.0))
        self.fixed = FixedPointSums(problem.accumulator.shape, many, device.xp) if device.on_gpu else None

    def sums(self, curvature: bool) -> np.ndarray:
        a = self.arrays
        found = gauss_newton_sums(a["ft"], a["rows"], a["shift"], a["owner"], self.kx, self.ky, len(self.kx),
                                  a["matched"], a["weight"], self.shape.box, curvature)
        return np.concatenate([to_host(part).reshape(self.shape.images, -1) for part in found], axis=1)

    def insert(self, accumulator: Any) -> Any:
        a = self.arrays
        insert_slices(accumulator, a["insert_rows"], a["insert_owner"], self.gamma, a["insert_shift"], self.variance,
                      a["columns"], a["image"], a["image_weight"], self.shape.box)
        return accumulator

    def calls(self) -> Dict[str, Callable[[], Any]]:
        """Named as in Problem.pixel_counts."""
        a, n = self.arrays, self.n_grid
        grid = self.kx[:n].copy(), self.ky[:n].copy()
        return {"slice": lambda: extract_slices(a["ft"], a["rows"], self.kx, self.ky),
                "grid score": lambda: score_grid(a["ft"], a["grid_rows"], *grid, a["grid_matched"], a["grid_weight"]),
                "Gauss–Newton sums": lambda: self.sums(True), "Gauss–Newton gradient only": lambda: self.sums(False),
                "insertion": lambda: self.insert(a["accumulator"])}

    def values(self) -> Dict[str, np.ndarray]:
        """What one call of each gives, on the host."""
        self.arrays["accumulator"][...] = 0
        found = {name: to_host(call()).copy() for name, call in self.calls().items()}
        if self.fixed is not None:
            found["insertion, fixed point"] = self.insert(self.fixed).to_float()
        return found

    def seconds(self, turns: int) -> Dict[str, float]:
        """Least wall seconds of each call, the device's work included."""
        def waited(call: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                call()
                self.device.wait()
            return run
        calls = dict(self.calls())
        if self.fixed is not None:
            calls["insertion, fixed point"] = lambda: self.insert(self.fixed)
        return best_seconds({name: waited(call) for name, call in calls.items()}, turns, time.perf_counter)


def operator_figures(device: Device, shape: Shape, turns: int) -> Tuple[List[Tuple[str, str]], Dict[str, float]]:
    """ns per pixel on the device, and the greatest difference of each operator from the CPU's."""
    problem = Problem(shape)
    expected = Placed(problem, CPU).values()
    expected["insertion, fixed point"] = expected["insertion"]
    problem.accumulator[...] = 0
    placed = Placed(problem, device)
    differences = {name: difference(value, expected[name]) for name, value in placed.values().items()}
    pixels = problem.pixel_counts()
    pixels["insertion, fixed point"] = pixels["insertion"]
    return [(f"{name}, ns per pixel", f"{1e9 * seconds / pixels[name]:.4f}")
            for name, seconds in placed.seconds(turns).items()], differences


def transfer_figures(device: Device, count: int = TRANSFER_BYTES, turns: int = 5) -> List[Tuple[str, str]]:
    """GB/s between pageable host memory and the GPU, and through the pinned buffers that images go through."""
    images = np.zeros(count // 4, np.float32)
    there = device.to_device(images)

    def up() -> None:
        device.to_device(images)
        device.wait()
    seconds = best_seconds({"to the GPU": up, "from the GPU": lambda: to_host(there)}, turns, time.perf_counter)
    with Prefetch(lambda rows: images.reshape(-1, 64, 64)[rows], count // 4 // 64 ** 2, 64, device) as ahead:
        everything = np.arange(count // 4 // 64 ** 2)
        seconds.update(best_seconds({"read ahead, to the GPU": lambda: ahead(everything)}, turns, time.perf_counter))
    return [(f"images {way}, GB/s", f"{count / 1e9 / value:.2f}") for way, value in seconds.items()]


def refinement_figures(device: Device, options: simulate.Options, folder: Path) -> List[Tuple[str, str]]:
    """Particles per second of the align step of a small refinement, and where its seconds went."""
    simulate.simulate(folder / "data", options)
    inputs = [str(folder / "data" / name) for name in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")]
    run = refine.refine(*inputs, str(folder / "run"), Settings(max_iterations=ITERATIONS), device=device.word)
    done = [read_json(run.half_done(k, half)) for k in range(1, run.iterations_done() + 1) for half in (1, 2)]
    phases: Dict[str, float] = {}
    for half in done:
        for phase, seconds in half["phase_seconds"].items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    rate = sum(half["particles"] for half in done) / sum(half["wall_seconds"] for half in done)
    last = read_json(run.iteration_done(run.iterations_done()))["resolution_angstrom"]["corrected"]
    name = f"{options.particles} particles of {options.box_size}² px, {run.iterations_done()} iterations"
    return [(f"{name}: particles per second", f"{rate:.0f}"), ("resolution after the last, Å", f"{last:.2f}"),
            *((f"seconds in {phase}", f"{seconds:.2f}") for phase, seconds in phases.items())]


def outcome(name: str, command: Sequence[str], lines: int, **environment: str) -> Outcome:
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=dict(os.environ, **environment))
    print(done.stdout, flush=True)
    return Outcome(name, done.returncode == 0, done.stdout.strip().splitlines()[-lines:])


def versions(device: Device) -> str:
    return (f"CuPy {device.xp.__version__}, numpy {np.__version__}, Numba {numba.__version__}, "
            f"Python {platform.python_version()}, {platform.system()} {platform.release()}")


def text_of(record: Record, date: str) -> str:
    """The record as a page."""
    judged = [(name, f"{value:.0e}") for name, value in record.differences.items()]
    runs = "\n\n".join(f"**{o.name}: {'passed' if o.passed else 'FAILED'}**\n\n```\n" + "\n".join(o.lines) + "\n```"
                       for o in record.outcomes)
    return "\n\n".join([
        f"# {gpu_name(record.device)}, {date}", f"**{'Everything passed.' if record.passed else 'SOMETHING FAILED.'}** "
        "Written by `make gpu-check`.",
        f"- device: {record.device.description}\n- versions: {record.versions}\n- commit: {record.commit}\n"
        f"- machine: {record.machine}",
        "## Tests", runs, "## Figures", table(["measured", "value"], record.figures),
        f"## Difference from the CPU\n\nGreatest, over the r.m.s.; at most {TOLERANCE:.0e} may be.",
        table(["operator", "difference"], judged)]) + "\n"


def gpu_name(device: Device) -> str:
    """The GPU's name out of "NVIDIA X, compute capability …"."""
    return device.identity.split(",")[0]


def write_record(record: Record, folder: Path, date: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", gpu_name(record.device).lower()).strip("-")
    path = folder / f"{slug}-{date}.md"
    path.write_text(text_of(record, date), encoding="utf-8")
    return path


def measure(device: Device, shape: Shape, options: simulate.Options, turns: int) -> Tuple[
        List[Tuple[str, str]], Dict[str, float]]:
    figures, differences = operator_figures(device, shape, turns)
    figures += transfer_figures(device)
    with tempfile.TemporaryDirectory() as folder:
        figures += refinement_figures(device, options, Path(folder))
    return figures, differences


def main(arguments: Optional[Sequence[str]] = None, folder: Path = RECORDS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device)
    except InputError as missing:
        print(f"gpu-check needs an NVIDIA GPU: {missing}", file=sys.stderr)
        return 1
    print(device.description, flush=True)
    outcomes = [outcome("pytest -m gpu", ["pytest", "-q", "-m", "gpu"], 3, LOCALREFINE_REQUIRE_GPU="1"),
                outcome("engine selftest", ["localrefine_plugin.engine", "selftest", "--device", options.device], 40)]
    figures, differences = measure(device, SHAPE, SIMULATED, turns=10)
    record = Record(device, versions(device), commit(), machine(), outcomes, figures, differences)
    path = write_record(record, folder, time.strftime("%Y-%m-%d"))
    print(path.read_text(encoding="utf-8"))
    print(f"{'passed' if record.passed else 'FAILED'}; record: {path}")
    return 0 if record.passed else 1


if __name__ == "__main__":
    sys.exit(main())
