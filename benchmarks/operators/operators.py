"""The four hot operators: nanoseconds per pixel beside a plain C++ loop, threads, and BLAS for the product.

    python -m benchmarks.operators.operators --write

Shapes are those of the benchmark set `mid` at its last iteration (box 96, aligned to shell 46, grid to shell 18).
The C++ loops (operators.cpp) are compiled on the fly with -O3 -march=native, and once more with -ffast-math, which
is the freedom the Numba kernels have. All take turns; the best of several turns counts. The run ends with a
comparison of the values.

Data: random arrays of those shapes.
"""
from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numba
import numpy as np

from localrefine_plugin.engine.align.reference import slice_rows
from localrefine_plugin.engine.kernels.insert import insert_slices
from localrefine_plugin.engine.kernels.slices import N_SUMS, extract_slices, gauss_newton_sums, score_grid, unpack_sums
from localrefine_plugin.engine.maps.reconstruct import PADDING, new_accumulator
from localrefine_plugin.engine.model.pixels import last_column, pixel_list
from localrefine_plugin.engine.model.pose import random_rotations

from ..measure import commit, machine
from ..page import PAGE, table, write_section

SOURCE = Path(__file__).with_name("operators.cpp")
FLAGS = {"C++ -O3": ("-O3", "-march=native"), "C++ -O3 -ffast-math": ("-O3", "-march=native", "-ffast-math")}
INSERTIONS_PER_IMAGE = 16  # together as many as in a batch of the engine: a slab of the accumulator stays in cache
TOLERANCE = 1e-3  # of the r.m.s.: float32 sums over some thousand pixels in another order


@dataclass(frozen=True)
class Shape:
    """Sizes of the problem, in px, shells and images."""

    box: int = 96
    align_shell: int = 46
    grid_shell: int = 18
    scale: float = 1.19
    images: int = 64
    rotations: int = 150
    shifts: int = 16


class Problem:
    """Random images and a random reference of one shape, and the operators called on them by either side."""

    def __init__(self, shape: Shape, seed: int = 1):
        rng = np.random.default_rng(seed)
        self.shape, self.max_shell = shape, (shape.box - 1) // 2
        reach = int(np.ceil(shape.align_shell * shape.scale)) + 2
        self.ft = complex_noise(rng, (2 * reach + 1, 2 * reach + 1, reach + 2))
        self.pixels = pixel_list(shape.box, shape.align_shell, self.max_shell)
        n = shape.images
        self.rotation, self.shift = random_rotations(n, rng), rng.uniform(-2, 2, (n, 2))
        self.rows, self.owner = slice_rows(self.rotation, shape.scale), np.arange(n)
        self.matched = complex_noise(rng, (n, len(self.pixels)))
        self.weight = rng.uniform(0.1, 1, self.matched.shape).astype(np.float32)
        self.n_grid = self.pixels.prefix(shape.grid_shell)
        few = max(1, n // 8)
        self.grid_rows = slice_rows(random_rotations(few * shape.rotations, rng), shape.scale).reshape(few, -1, 2, 3)
        self.grid_matched = complex_noise(rng, (few, shape.shifts, self.n_grid))
        self.grid_weight = rng.uniform(0.1, 1, (few, self.n_grid)).astype(np.float32)
        plane = (n, 2 * self.max_shell + 1, self.max_shell + 1)
        self.image, self.image_weight = complex_noise(rng, plane), rng.uniform(0.1, 1, plane).astype(np.float32)
        self.columns = last_column(self.max_shell)
        many = n * INSERTIONS_PER_IMAGE
        self.insert_owner = np.repeat(np.arange(n), INSERTIONS_PER_IMAGE)
        self.insert_rows = slice_rows(random_rotations(many, rng), PADDING)
        self.insert_shift = rng.uniform(-2, 2, (many, 2))
        self.accumulator = new_accumulator(self.max_shell)

    def grid_pixels(self) -> Tuple[np.ndarray, np.ndarray]:
        return self.pixels.kx[:self.n_grid].copy(), self.pixels.ky[:self.n_grid].copy()

    def pixel_counts(self) -> Dict[str, int]:
        """Slice pixels that one call of each operator visits."""
        full = self.shape.images * len(self.pixels)
        return {"slice": full, "grid score": self.grid_rows.shape[0] * self.grid_rows.shape[1] * self.n_grid,
                "Gauss–Newton sums": full, "Gauss–Newton gradient only": full,
                "insertion": len(self.insert_rows) * int((self.columns + 1).sum())}

    def ours(self) -> Dict[str, Callable[[], np.ndarray]]:
        p, s = self.pixels, self.shape

        def sums(curvature: bool) -> np.ndarray:
            found = gauss_newton_sums(self.ft, self.rows, self.shift, self.owner, p.kx, p.ky, len(p), self.matched,
                                      self.weight, s.box, curvature)
            return np.concatenate([np.reshape(part, (s.images, -1)) for part in found], axis=1)

        def insert() -> np.ndarray:
            m = len(self.insert_rows)
            insert_slices(self.accumulator, self.insert_rows, self.insert_owner, np.ones(m), self.insert_shift,
                          np.zeros(m), self.columns, self.image, self.image_weight, s.box)
            return self.accumulator
        return {"slice": lambda: extract_slices(self.ft, self.rows, p.kx, p.ky),
                "grid score": lambda: score_grid(self.ft, self.grid_rows, *self.grid_pixels(), self.grid_matched,
                                                 self.grid_weight),
                "Gauss–Newton sums": lambda: sums(True), "Gauss–Newton gradient only": lambda: sums(False),
                "insertion": insert}

    def value(self, call: Callable[[], np.ndarray]) -> np.ndarray:
        """What one call gives; insertions add up otherwise."""
        self.accumulator[...] = 0
        return call().copy()

    def judge(self, library: ctypes.CDLL) -> Dict[str, Callable[[], np.ndarray]]:
        """The same calls into the C++ loops."""
        p, s, volume = self.pixels, self.shape, (pointer(self.ft), *map(ctypes.c_int, self.ft.shape))

        def slices() -> np.ndarray:
            out = np.empty(self.matched.shape, np.complex64)
            library.extract_slices(*volume, pointer(self.rows), s.images, pointer(p.kx), pointer(p.ky), len(p),
                                   pointer(out))
            return out

        def scores() -> np.ndarray:
            n, n_rot = self.grid_rows.shape[:2]
            out, work = np.empty((n, n_rot, s.shifts), np.float32), np.empty(2 * self.n_grid, np.float32)
            kx, ky = self.grid_pixels()
            library.score_grid(*volume, pointer(self.grid_rows), n, n_rot, pointer(kx), pointer(ky), self.n_grid,
                               pointer(self.grid_matched), s.shifts, pointer(self.grid_weight), pointer(work),
                               pointer(out))
            return out

        def sums(curvature: bool) -> np.ndarray:
            max_k = int(np.abs(p.ky).max())
            out, tables = np.empty((s.images, N_SUMS)), self.phases(self.shift, max_k)
            library.gauss_newton_sums(*volume, pointer(self.rows), s.images, *map(pointer, tables), max_k,
                                      pointer(p.kx), pointer(p.ky), len(p), pointer(self.matched),
                                      pointer(self.weight), int(curvature), pointer(out))
            found = unpack_sums(out, 2 * np.pi / s.box)
            return np.concatenate([np.reshape(part, (s.images, -1)) for part in found], axis=1)

        def insert() -> np.ndarray:
            tables, owner = self.phases(self.insert_shift, self.max_shell), self.insert_owner.astype(np.int32)
            library.insert_slices(pointer(self.accumulator), *map(ctypes.c_int, self.accumulator.shape[:3]),
                                  pointer(self.insert_rows), pointer(owner),
                                  len(self.insert_rows), *map(pointer, tables), self.max_shell, pointer(self.columns),
                                  pointer(self.image), pointer(self.image_weight))
            return self.accumulator
        return {"slice": slices, "grid score": scores, "Gauss–Newton sums": lambda: sums(True),
                "Gauss–Newton gradient only": lambda: sums(False), "insertion": insert}

    def phases(self, shift: np.ndarray, max_k: int) -> List[np.ndarray]:
        """e^{2πi k x/N} and e^{2πi k y/N} (n, …) complex64, made at each call as the kernels' wrappers do."""
        k = np.arange(-max_k, max_k + 1) * (2 * np.pi / self.shape.box)
        both = np.exp(1j * k * shift[:, :, None]).astype(np.complex64)
        return [np.ascontiguousarray(both[:, 0, max_k:]), np.ascontiguousarray(both[:, 1])]


def complex_noise(rng: np.random.Generator, shape: Tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape + (2,)).astype(np.float32).view(np.complex64)[..., 0]


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """Where the data are; the caller keeps the array alive."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def compiled(flags: Sequence[str], folder: Path) -> ctypes.CDLL:
    path = folder / ("operators" + "".join(flags).replace("=", "") + ".so")
    subprocess.run(["g++", *flags, "-shared", "-fPIC", str(SOURCE), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def best_seconds(calls: Dict[str, Callable[[], Any]], turns: int, clock: Callable[[], float]) -> Dict[str, float]:
    """Least seconds of each call, taking turns, after one call each to warm up."""
    best = {name: np.inf for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if turn:
                best[name] = min(best[name], clock() - start)
    return best


def difference(ours: np.ndarray, judge: np.ndarray) -> float:
    """Greatest difference relative to the r.m.s. of its column (last axis), or of all where columns are many."""
    if ours.ndim == 2 and ours.shape[1] < 64:
        scale = np.sqrt((np.abs(judge) ** 2).mean(axis=0)) + 1e-30
    else:
        scale = np.sqrt((np.abs(judge) ** 2).mean())
    return float((np.abs(ours - judge) / scale).max())


def operator_rows(problem: Problem, libraries: Dict[str, ctypes.CDLL], turns: int) -> Tuple[List[List[str]], float]:
    """Rows of the table, and the greatest difference between ours and C++."""
    numba.set_num_threads(1)
    judges, rows, worst = {name: problem.judge(library) for name, library in libraries.items()}, [], 0.0
    for name, ours in problem.ours().items():
        calls = dict({"ours": ours}, **{flags: judge[name] for flags, judge in judges.items()})
        seconds = best_seconds(calls, turns, time.process_time)
        per_pixel = {side: 1e9 * value / problem.pixel_counts()[name] for side, value in seconds.items()}
        values = problem.value(ours)
        differences = [difference(values, problem.value(judge[name])) for judge in judges.values()]
        worst = max([worst] + differences)
        threads = thread_gain(ours, 3 * turns)
        rows.append([name, f"{per_pixel['ours']:.2f}"]
                    + [f"{per_pixel[f]:.2f} ({100 * per_pixel[f] / per_pixel['ours']:.0f} %)" for f in judges]
                    + [threads, f"{max(differences):.0e}"])
    return rows, worst


def thread_gain(call: Callable[[], Any], turns: int) -> str:
    """Wall time of one thread over that of two: a figure only where nothing else runs."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        return "–"
    if busy_cores() > 0.1:
        return "not measured: others use the cores"

    def with_threads(count: int) -> Callable[[], None]:
        def run() -> None:
            numba.set_num_threads(count)
            call()
        return run
    seconds = best_seconds({"1": with_threads(1), "2": with_threads(2)}, turns, time.perf_counter)
    numba.set_num_threads(1)
    return f"{seconds['1'] / seconds['2']:.2f}"


def busy_cores(seconds: float = 0.5) -> float:
    """How many cores of this machine are at work while this process sleeps."""
    def idle_ticks() -> int:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return int(fields[4]) + int(fields[5])  # idle and waiting for a disk
    before, start = idle_ticks(), time.perf_counter()
    time.sleep(seconds)
    idle = (idle_ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - start)
    return max(0.0, (os.cpu_count() or 1) - idle)


def product_against_blas(problem: Problem, turns: int) -> Tuple[str, float]:
    """The product of slices and shifted images inside the grid score, and numpy's SGEMM on the same shapes."""
    n, n_rot = problem.grid_rows.shape[:2]
    kx, ky = problem.grid_pixels()
    flat = problem.grid_rows.reshape(-1, 2, 3)
    slices = extract_slices(problem.ft, flat, kx, ky).view(np.float32).reshape(n, n_rot, -1)
    images = np.ascontiguousarray(problem.grid_matched).view(np.float32).transpose(0, 2, 1)
    calls = {"score": problem.ours()["grid score"], "slices": lambda: extract_slices(problem.ft, flat, kx, ky),
             "BLAS": lambda: slices @ images}
    seconds = best_seconds(calls, turns, time.process_time)
    operations = 2.0 * slices.size * problem.shape.shifts
    product = operations / (seconds["score"] - seconds["slices"]) / 1e9
    blas = operations / seconds["BLAS"] / 1e9
    power = np.einsum("nk,ngk->ng", problem.grid_weight, np.abs(slices.view(np.complex64)) ** 2)
    worst = difference(problem.ours()["grid score"](), slices @ images - 0.5 * power[..., None])
    text = (f"The product inside the grid score ({n_rot} rotations × {2 * problem.n_grid} numbers × "
            f"{problem.shape.shifts} shifts per image): {product:.1f} GFLOP/s on one core, numpy's SGEMM on that shape "
            f"{blas:.1f} ({100 * product / blas:.0f} %); the slices alone take "
            f"{100 * seconds['slices'] / seconds['score']:.0f} % of the grid score.")
    return text, worst


def with_one_blas_thread() -> None:
    """Start again with a single BLAS thread, which numpy only reads when it is imported."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.operators.operators", *sys.argv[1:]])


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=Shape.images)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--write", action="store_true", help=f"write the section of {PAGE.name}")
    options = parser.parse_args(arguments)
    problem = Problem(Shape(images=options.images))
    with tempfile.TemporaryDirectory() as folder:
        libraries = {name: compiled(flags, Path(folder)) for name, flags in FLAGS.items()}
        rows, worst = operator_rows(problem, libraries, options.turns)
    product, product_worst = product_against_blas(problem, options.turns)
    head = ["operator", "ours, ns per pixel"] + [f"{name} (speed of ours)" for name in FLAGS] + [
        "two threads over one", "greatest difference / r.m.s."]
    text = table(head, rows) + "\n\n" + product
    print(text)
    if options.write:
        compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
        versions = f"Numba {numba.__version__}, numpy {np.__version__}, {compiler}"
        write_section("operators", f"{text}\n\nMachine: {machine()}. Commit {commit()}. {versions}.\n\n"
                      "    python -m benchmarks.operators.operators --write")
    assert worst < TOLERANCE and product_worst < TOLERANCE, (worst, product_worst)


if __name__ == "__main__":
    with_one_blas_thread()
    main()
