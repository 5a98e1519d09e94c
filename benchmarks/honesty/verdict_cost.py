"""What the images of nothing cost that verdicts on particles need (align/nulls.py), in CPU time.

    python -m benchmarks.honesty.verdict_cost --run FOLDER [--run FOLDER …] [--iteration N …] [--write]

In an iteration of a finished run the images of nothing of half-set 1 are searched again, and 200 of its particles are
searched and inserted, with one thread; the least of seven CPU times counts. The share of the iteration is that of what
the run noted for both half-sets, their maps and the merge: a run that compiled its kernels notes too much.
"""
from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import List

import numpy as np

from localrefine_plugin.engine.align.half_alignment import HalfAlignment
from localrefine_plugin.engine.align.nulls import FEWEST_FIRST, null_images
from localrefine_plugin.engine.io.mrc import ImageReader
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.io.run_store import stored_half_set
from localrefine_plugin.engine.kernels.batches import evenly_spaced
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.kernels.host import few_threads
from localrefine_plugin.engine.records.iteration import NullMoments
from localrefine_plugin.engine.refine import half_task

from ..measure import least_cpu_seconds
from ..page import DOCS, table, write_section

PAGE = DOCS / "explanation" / "verdicts.md"
HEAD = ("run", "particles of a half-set", "iteration", "images of each kind", "share of the images' CPU time",
        "share of the iteration's")
REPEATS, PARTICLES = 7, 200


def row(run: RunFolder, iteration: int) -> List[str]:
    with few_threads(1):
        rows, particles = stored_half_set(run, 1)
        count = len(particles)
        with ImageReader(particles) as reader:
            half, plan = half_task(run, iteration, 1, (rows, particles), reader)
            known = None if iteration == 1 else NullMoments(FEWEST_FIRST, FEWEST_FIRST, (0.0, 1.0), (0.0, 1.0))
            work = HalfAlignment(replace(half, nulls=known), plan, CPU, 1)
            numbers, some = np.arange(len(null_images(count, known))), evenly_spaced(count, PARTICLES)
            work.add_nulls(numbers)  # compiles, and warms up
            work.add(some[:5])
            nulls, images = (least_cpu_seconds(job, REPEATS) for job in (
                lambda: work.add_nulls(numbers), lambda: work.add(some)))
    share = nulls / (nulls + images * count / len(some))
    return [run.path.name, str(count), str(iteration), str(len(numbers)), f"{100 * share:.1f} %",
            f"{100 * 2 * nulls / noted(run, iteration):.1f} %"]


def noted(run: RunFolder, iteration: int) -> float:
    """CPU seconds of an iteration by the run's records."""
    files = [run.half_done(iteration, 1), run.half_done(iteration, 2), run.iteration_done(iteration)]
    return float(sum(read_json(path)["cpu_seconds"] for path in files))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", required=True)
    parser.add_argument("--iteration", type=int, action="append")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = []
    for path in options.run:
        for iteration in options.iteration or (1, 2, 4):
            rows.append(row(RunFolder(path), iteration))
            print(*rows[-1], flush=True)
    if options.write:
        names = " ".join(f"--run {path.name}" for path in options.run)
        write_section("verdict cost", f"`python -m benchmarks.honesty.verdict_cost {names} --write`\n\n"
                      f"{table(HEAD, rows)}", PAGE)


if __name__ == "__main__":
    main()
