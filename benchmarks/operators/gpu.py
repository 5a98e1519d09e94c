"""What `make gpu-check` runs on a machine with an NVIDIA GPU: tests, self-test, figures, and a record of all of it.

    python -m benchmarks.operators.gpu [--device cuda:N]

The record goes to docs/gpu-records/<GPU>-<date>.md. Without a GPU it says what is missing and ends with status 1;
so it does, after the record has been written, where a test, the self-test or a value failed. Each part is a process
with a time limit, 12 minutes in all; what a part had measured before it was stopped is in the record.

The operators get a smooth reference: with one of noise, single pixels jump where a coordinate rounds to the other side
of a cell. Values are compared in norm; accumulators after what Friedel mates bring has been added.

Data: 2,000 particles of examples/simulate.py in a box of 96 px; 2,000 of growth_data.py in one of 256 px; random
arrays for the operators.
"""
from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numba
import numpy as np

from examples import simulate
from localrefine_plugin.engine import refine
from localrefine_plugin.engine.align.reference import transform_cube
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.kernels.device import CPU, Device, choose_device, to_host
from localrefine_plugin.engine.kernels.fixed_point import FixedPointSums, exponents
from localrefine_plugin.engine.kernels.insert import insert_slices
from localrefine_plugin.engine.kernels.prefetch import Prefetch, from_array
from localrefine_plugin.engine.kernels.slices import extract_slices, gauss_newton_sums, score_grid
from localrefine_plugin.engine.maps.reconstruct import enforce_hermitian
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

from ..growth import growth_data
from ..measure import commit, machine
from ..page import table
from .operators import TOLERANCE, Problem, Shape, best_seconds

RECORDS = Path(__file__).resolve().parents[2] / "docs" / "gpu-records"
SHAPE = Shape(images=512)
SIMULATED = simulate.Options(particles=2000, box_size=96, pixel_size=3.0)
LARGE = simulate.Options(particles=2000, box_size=256, pixel_size=1.4)
ITERATIONS = 3
TESTS = "pytest -m gpu"
SELFTEST = "engine selftest"
LIMITS = {TESTS: 210, SELFTEST: 90, "operators": 60, "transfers": 30, "small box": 90, "large box": 240}  # seconds
LOOK_SECONDS = 0.5  # between two looks at how busy the GPU is
TRANSFER_BYTES = 1 << 28


@dataclass(frozen=True)
class Outcome:
    """Of a program that was run: its name, whether it ended with 0, and its last lines."""

    name: str
    passed: bool
    lines: List[str]


@dataclass(frozen=True)
class Record:
    """One machine, one day. figures: rows of (what, value); differences: {operator: norm of the difference from the
    CPU over the norm}."""

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
        scale = exponents(float(problem.image_weight.max()), many)
        self.fixed = FixedPointSums(problem.accumulator.shape, scale, device.xp) if device.on_gpu else None

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
        for name in found:
            if name.startswith("insertion"):
                enforce_hermitian(found[name])
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
    """ns per pixel on the device, and how far each operator is from the CPU's."""
    problem = Problem(shape)
    problem.ft = smooth_reference(shape)
    expected = Placed(problem, CPU).values()
    expected["insertion, fixed point"] = expected["insertion"]
    problem.accumulator[...] = 0
    placed = Placed(problem, device)
    differences = {name: off_by(value, expected[name]) for name, value in placed.values().items()}
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
    with Prefetch(from_array(images.reshape(-1, 64, 64)), count // 4 // 64 ** 2, 64, device) as ahead:
        everything = np.arange(count // 4 // 64 ** 2)
        seconds.update(best_seconds({"read ahead, to the GPU": lambda: ahead(everything)}, turns, time.perf_counter))
    return [(f"images {way}, GB/s", f"{count / 1e9 / value:.2f}") for way, value in seconds.items()]


def smooth_reference(shape: Shape) -> np.ndarray:
    """The transform of a random map that fills a third of its grid, so that it hardly bends within a cell."""
    padded = 2 * int(round(shape.scale * shape.box / 2))
    cube = np.random.default_rng(2).standard_normal((padded // 3,) * 3).astype(np.float32)
    return to_host(transform_cube(cube, padded, shape.box, shape.align_shell, 1).ft)


def off_by(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The norm of the difference over the norm."""
    return float(np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-30))


class Busy:
    """How busy the GPU is while something runs, by nvidia-smi: mean utilisation in per cent; None where it cannot be
    asked."""

    def __init__(self, device: Device):
        self.index, self.looks, self.over = device.word.partition(":")[2] or "0", [], threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self) -> None:
        query = ["nvidia-smi", "-i", self.index, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self.over.wait(LOOK_SECONDS):
            try:
                said = subprocess.run(query, capture_output=True, text=True, timeout=10)
                self.looks.append(float(said.stdout.split()[0]))
            except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
                return

    def __enter__(self) -> "Busy":
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        self.thread.join()

    @property
    def mean(self) -> Optional[float]:
        return float(np.mean(self.looks)) if self.looks else None


def refined(device: Device, data: Path, run: Path) -> Tuple[RunFolder, float]:
    """The run, and its wall seconds."""
    inputs = [str(data / name) for name in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")]
    start = time.perf_counter()
    done = refine.refine(*inputs, str(run), Settings(max_iterations=ITERATIONS), device=device.word)
    return done, time.perf_counter() - start


def refinement_figures(device: Device, options: simulate.Options, folder: Path,
                       make: Callable[[Path, simulate.Options], None]) -> Iterator[List[Tuple[str, str]]]:
    """A whole run: seconds in all and by step, of the align steps by phase, how busy the GPU was; then also the same
    run on all cores."""
    make(folder / "data", options)
    with Busy(device) as busy:
        run, seconds = refined(device, folder / "data", folder / "run")
    name = f"{options.particles} particles of {options.box_size}² px, {run.iterations_done()} iterations"
    steps = seconds_by_step(run, seconds)
    used = "not known" if busy.mean is None else f"{busy.mean:.0f} %"
    rows = [("seconds in all", f"{seconds:.1f}"), ("GPU busy, by nvidia-smi", used),
            *((f"seconds in {step}", f"{value:.2f}") for step, value in steps.items()),
            ("particles per second in align", f"{particles_aligned(run) / steps['align']:.0f}"),
            ("resolution after the last, Å, GPU", f"{resolution(run):.2f}")]
    yield [(f"{name}: {what}", value) for what, value in rows]
    cpu_run, cpu_seconds = refined(CPU, folder / "data", folder / "cpu")
    rows += [("resolution after the last, Å, CPU", f"{resolution(cpu_run):.2f}"),
             ("seconds on all CPU cores", f"{cpu_seconds:.1f}"),
             ("that many times as long", f"{cpu_seconds / seconds:.1f}")]
    yield [(f"{name}: {what}", value) for what, value in rows]


def halves_of(run: RunFolder) -> List[Dict[str, Any]]:
    return [read_json(run.half_done(k, half)) for k in range(1, run.iterations_done() + 1) for half in (1, 2)]


def particles_aligned(run: RunFolder) -> int:
    return sum(half["particles"] for half in halves_of(run))


def resolution(run: RunFolder) -> float:
    return float(read_json(run.iteration_done(run.iterations_done()))["resolution_angstrom"]["corrected"])


def seconds_by_step(run: RunFolder, total: float) -> Dict[str, float]:
    """Wall seconds of prepare, all align and all merge steps, the rest of the run, and the phases of align."""
    halves = halves_of(run)
    found = {"prepare": read_json(run.iteration_done(0))["wall_seconds"],
             "align": sum(half["wall_seconds"] for half in halves),
             "merge": sum(read_json(run.iteration_done(k))["wall_seconds"]
                          for k in range(1, run.iterations_done() + 1))}
    found["finish, starts and the rest"] = total - sum(found.values())
    for half in halves:
        for phase, seconds in half["phase_seconds"].items():
            found[f"align: {phase}"] = found.get(f"align: {phase}", 0.0) + seconds
    return found


def outcome(name: str, command: Sequence[str], lines: int, **environment: str) -> Outcome:
    """Of a program, stopped with its children at the limit of its name."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=said, stderr=subprocess.STDOUT,
                                   env=dict(os.environ, **environment), start_new_session=True)
        stopped = ""
        try:
            process.wait(LIMITS[name])
        except subprocess.TimeoutExpired:
            stopped = f"\nstopped after {LIMITS[name]} s"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        text = said.read() + stopped
    print(text, flush=True)
    return Outcome(name, process.returncode == 0, text.strip().splitlines()[-lines:])


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
        f"## Difference from the CPU\n\nNorm of the difference over the norm; at most {TOLERANCE:.0e} may be.",
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


def measured(part: str, device: Device) -> Iterator[Dict[str, Any]]:
    """Figures and differences of a part; the last of them are all there are."""
    if part == "operators":
        figures, differences = operator_figures(device, SHAPE, 10)
        yield dict(figures=figures, differences=differences)
    elif part == "transfers":
        yield dict(figures=transfer_figures(device, TRANSFER_BYTES), differences={})
    else:
        options, make = {"small box": (SIMULATED, simulate.simulate), "large box": (LARGE, growth_data.write)}[part]
        with tempfile.TemporaryDirectory() as folder:
            for figures in refinement_figures(device, options, Path(folder), make):
                yield dict(figures=figures, differences={})


def measure(part: str, word: str, into: Path) -> None:
    """Write what a part finds, as soon as it is found."""
    for found in measured(part, choose_device(word)):
        write_json(into, found)


def measure_apart(word: str) -> Tuple[List[Outcome], List[Tuple[str, str]], Dict[str, float]]:
    """All parts, each in a process of its own."""
    outcomes, figures, differences = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for part in (name for name in LIMITS if name not in (TESTS, SELFTEST)):
            into = Path(folder) / f"{part}.json"
            command = ["benchmarks.operators.gpu", "--device", word, "--part", part, "--into", str(into)]
            outcomes.append(outcome(part, command, 3))
            if into.exists():
                found = read_json(into)
                figures += [(what, value) for what, value in found["figures"]]
                differences.update(found["differences"])
    return outcomes, figures, differences


def main(arguments: Optional[Sequence[str]] = None, folder: Path = RECORDS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--part", choices=list(LIMITS), help=argparse.SUPPRESS)  # one of them, in its own process
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        measure(options.part, options.device, options.into)
        return 0
    try:
        device = choose_device(options.device)
    except InputError as missing:
        print(f"gpu-check needs an NVIDIA GPU: {missing}", file=sys.stderr)
        return 1
    print(device.description, flush=True)
    outcomes = [outcome(TESTS, ["pytest", "-q", "-m", "gpu"], 3, LOCALREFINE_REQUIRE_GPU="1"),
                outcome(SELFTEST, ["localrefine_plugin.engine", "selftest", "--device", options.device], 40)]
    parts, figures, differences = measure_apart(options.device)
    record = Record(device, versions(device), commit(), machine(), outcomes + parts, figures, differences)
    path = write_record(record, folder, time.strftime("%Y-%m-%d"))
    print(path.read_text(encoding="utf-8"))
    print(f"{'passed' if record.passed else 'FAILED'}; record: {path}")
    return 0 if record.passed else 1


if __name__ == "__main__":
    sys.exit(main())
