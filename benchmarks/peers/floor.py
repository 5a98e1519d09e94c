"""Where the CPU time of a refinement goes, and the least it could take: slices × ns, transforms and reading.

    python -m benchmarks.peers.floor --data FOLDER --write

The engine runs in this process on one thread with a counter around each operator. The floor of an operator is the
number of pixels it visited times the best ns per pixel that `benchmarks.operators.operators` measures, here and now. It
ends with the assertion that the refinement it counted was a correct one.

Data: FOLDER, simulated: a set of examples/simulate.py or of the benchmark's make_dataset.py (`mid`).
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Optional, Sequence

from examples.evaluate import read_poses
from localrefine_plugin.engine import refine
from localrefine_plugin.engine.align import half_alignment as align
from localrefine_plugin.engine.align import search
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.records.settings import Settings

from ..measure import commit, machine
from ..operators.operators import Problem, Shape, best_seconds
from ..page import DOCS, table, write_section
from ..truth import Truth

PERFORMANCE = DOCS / "explanation" / "performance.md"
OPERATORS = ("grid score", "Gauss–Newton sums", "Gauss–Newton gradient only", "slice", "insertion")
SETTINGS = dict(prior="gaussian", prior_rotation_deg=7.0, prior_shift_angstrom=4.0)


class Counter:
    """Calls of one operator: slices, pixels and CPU seconds."""

    def __init__(self) -> None:
        self.slices, self.pixels, self.seconds = 0, 0, 0.0

    def around(self, call: Callable[..., Any], slices: int, pixels: int, *arguments: Any) -> Any:
        start = time.process_time()
        result = call(*arguments)
        self.seconds += time.process_time() - start
        self.slices += slices
        self.pixels += slices * pixels
        return result


def install() -> Dict[str, Counter]:
    """Put counters around the operators where search and align call them, and CPU time into the phases' clock."""
    counters = {name: Counter() for name in OPERATORS}
    sums, grid, slices, insert = search.gauss_newton_sums, search.score_grid, align.extract_slices, align.insert_slices

    def counted_sums(ft: Any, rows: Any, shift: Any, owner: Any, kx: Any, ky: Any, n_pixels: int, *rest: Any) -> Any:
        name = "Gauss–Newton sums" if rest[-1] else "Gauss–Newton gradient only"
        return counters[name].around(sums, len(rows), n_pixels, ft, rows, shift, owner, kx, ky, n_pixels, *rest)

    def counted_grid(ft: Any, rows: Any, kx: Any, *rest: Any) -> Any:
        return counters["grid score"].around(grid, rows.shape[0] * rows.shape[1], len(kx), ft, rows, kx, *rest)

    def counted_slices(ft: Any, rows: Any, kx: Any, ky: Any) -> Any:
        return counters["slice"].around(slices, len(rows), len(kx), ft, rows, kx, ky)

    def counted_insert(accumulator: Any, rows: Any, *rest: Any) -> Any:
        pixels = int((rest[4] + 1).sum())  # last_column
        return counters["insertion"].around(insert, len(rows), pixels, accumulator, rows, *rest)
    search.gauss_newton_sums, search.score_grid = counted_sums, counted_grid  # type: ignore[assignment]
    align.extract_slices, align.insert_slices = counted_slices, counted_insert  # type: ignore[assignment]
    align.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    return counters


def best_ns(turns: int) -> Dict[str, float]:
    """Best ns per pixel of each operator alone, on one thread."""
    problem = Problem(Shape())
    seconds = best_seconds(problem.ours(), turns, time.process_time)
    return {name: 1e9 * seconds[name] / count for name, count in problem.pixel_counts().items()}


def operator_table(counters: Dict[str, Counter], ns: Dict[str, float], visits: int) -> str:
    """``visits``: particles × iterations."""
    rows = [[name, f"{c.slices / visits:.2f}", f"{c.pixels / visits:.0f}", f"{c.seconds:.2f}",
             f"{1e9 * c.seconds / max(c.pixels, 1):.1f}", f"{ns[name]:.1f}", f"{1e-9 * c.pixels * ns[name]:.2f}"]
            for name, c in counters.items()]
    return table(["operator", "slices per particle and iteration", "pixels per particle and iteration", "CPU s",
                  "ns per pixel in the run", "alone", "floor, s"], rows)


def phase_table(report: Dict[str, Any], total: float, counters: Dict[str, Counter]) -> str:
    phases: Dict[str, float] = {}
    for half in report["halves"]:
        for name, seconds in half["phase_seconds"].items():
            phases[name] = phases.get(name, 0.0) + seconds
    kernels = {"search": ("grid score", "Gauss–Newton sums", "Gauss–Newton gradient only"), "insert": ("insertion",),
               "noise": ("slice",)}
    align_cpu = sum(half["cpu_seconds"] for half in report["halves"])
    merge = sum(i["cpu_seconds"] for i in report["iterations"] if i["iteration"] > 0)
    first = next(i["cpu_seconds"] for i in report["iterations"] if i["iteration"] == 0)
    phases["maps, poses and tables read and written"] = align_cpu - sum(phases.values())
    phases.update({"prepare (checks, first look)": first, "merge (FSC, references)": merge,
                   "finish, start-up": total - first - merge - align_cpu})
    rows = []
    for name, seconds in phases.items():
        inside = sum(counters[k].seconds for k in kernels.get(name, ()))
        rows.append([name, f"{seconds:.2f}", f"{100 * seconds / total:.0f} %", f"{inside:.2f}" if inside else "–"])
    return table(["phase, both half-sets, all iterations", "CPU s", "share", "of it in the operators"], rows)


def rest_of_floor(report: Dict[str, Any]) -> float:
    """CPU s of reading and transforming images, reconstruction and merge: taken as they are, for they are FFTs."""
    phases = ("read and transform", "reconstruct", "reference")
    inside = sum(half["phase_seconds"][name] for half in report["halves"] for name in phases)
    return float(inside + sum(i["cpu_seconds"] for i in report["iterations"]))


def run(data: Path, output: Path) -> None:
    refine.refine(str(data / "particles.star"), str(data / "half1.mrc"), str(data / "half2.mrc"),
                  str(data / "mask_B.mrc"), str(output), Settings.from_dict(SETTINGS), "cpu", 1, "overwrite")


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a data set with its truth")
    parser.add_argument("--work", type=Path, default=Path("bench_data"))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--write", action="store_true", help=f"write the section of {PERFORMANCE.name}")
    options = parser.parse_args(arguments)
    data, folder = options.data.resolve(), (options.work / f"floor_{options.data.name}").resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    ns = best_ns(options.turns)
    counters = install()
    start = time.process_time()
    run(data, folder)
    total = time.process_time() - start
    report, truth = read_json(RunFolder(folder).report), Truth(data)
    count = sum(half["particles"] for half in report["halves"])
    floor = sum(1e-9 * c.pixels * ns[name] for name, c in counters.items()) + rest_of_floor(report)
    text = "\n\n".join([
        phase_table(report, total, counters), operator_table(counters, ns, count),
        f"Total {total:.1f} CPU s = {1000 * total / count:.2f} ms per particle and iteration. Floor: the operators at "
        "their best alone, plus reading, transforms, reconstruction, prepare and merge as measured: "
        f"{floor:.1f} CPU s = {1000 * floor / count:.2f} ms ({100 * floor / total:.0f} % of the measured time)."])
    print(text)
    if options.write:
        write_section("floor", f"{text}\n\nMachine: {machine()}, one thread. Commit {commit()}.\n\n"
                      f"    python -m benchmarks.peers.floor --data {data.name} --write", PERFORMANCE)
    final, given = (truth.of_poses(read_poses(star)) for star in (RunFolder(folder).final("particles.star"),
                                                                  data / "particles.star"))
    assert final["angle_deg"] < 0.95 * given["angle_deg"] and final["centroid_angstrom"] < given["centroid_angstrom"]


def with_one_thread() -> None:
    """Start again with one thread, which numpy and Numba only read when they are imported."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    if any(os.environ.get(name) != "1" for name in names):
        os.environ.update({name: "1" for name in names})
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.peers.floor", *sys.argv[1:]])


if __name__ == "__main__":
    with_one_thread()
    main()
