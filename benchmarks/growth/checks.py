"""What the checks of the input cost beside an iteration of the refinement.

    python -m benchmarks.growth.checks --data FOLDER [--data FOLDER …] [--write]

One process on one thread refines the set for ITERATIONS iterations. Then it asks the checks again, and takes the least
CPU time of REPEATS calls, so that compiling and a busy machine count less. *Reading* (particle file, maps, mask) is
what a run does without any check; all else of `check_inputs`, and `check_belonging`, are checks. *Images* is the look
at every image. The ratio is to the mean of the iterations.

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py or make_hard.py.
"""
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Callable, List

from localrefine_plugin.engine.align.search_plan import resolve
from localrefine_plugin.engine.finish.report import build_report
from localrefine_plugin.engine.inputs.belonging import check_belonging
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.inputs.exclude import exclude_unusable
from localrefine_plugin.engine.inputs.grids import read_on_grid
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.maps.fsc import five_curves
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

from ..honesty.sets import table_of_sets
from ..measure import least_cpu_seconds
from ..page import DOCS

PAGE = DOCS / "reference" / "reliability.md"
NAMES = "particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc"
REPEATS, ITERATIONS, MANY = 5, 3, 100_000
HEAD = ("data", "images", "box, px", "reading", "images", "other checks", "belonging", "an iteration",
        "checks : iteration", "checks of 10⁵ images")


def seconds(work: Callable[[], object]) -> float:
    return least_cpu_seconds(work, REPEATS)


def iteration_seconds(paths: List[str]) -> float:
    """CPU seconds of both alignments and the merge, in the mean of the iterations."""
    with tempfile.TemporaryDirectory() as folder:
        run = refine(*paths, str(Path(folder) / "run"), Settings(max_iterations=ITERATIONS), "cpu", 1)
        report = build_report(run)
    merged = [record for record in report.iterations if record.iteration > 0]
    return sum(step.cpu_seconds for step in (*report.halves, *merged)) / len(merged)


def row_of(data: Path) -> List[str]:
    paths, settings = [str(data / name) for name in NAMES], Settings()
    iteration = iteration_seconds(paths)
    inputs = check_inputs(*paths, settings)
    curves = five_curves(inputs.halves, inputs.mask, inputs.pixel_size)
    resolved = resolve(settings, inputs.mask, curves.resolutions()["corrected"], inputs.pixel_size)
    particles = inputs.particles
    reading = seconds(lambda: (read_particles(paths[0]), [read_on_grid(p, p, particles, False) for p in paths[1:]]))
    images = seconds(lambda: exclude_unusable(particles, paths[0]))
    others = seconds(lambda: check_inputs(*paths, settings)) - reading - images
    belonging = seconds(lambda: check_belonging(inputs, resolved, 1))
    checks, count = images + others + belonging, len(particles)
    row = [data.resolve().name, str(count), str(particles.box_size),
           *(f"{value:.2f} s" for value in (reading, images, others, belonging, iteration)),
           f"{100 * checks / iteration:.1f} %", f"{images * MANY / count + others + belonging:.0f} s"]
    print(*row, flush=True)
    return row


def main() -> None:
    table_of_sets(__doc__, HEAD, lambda data: [row_of(data)], ("checks", PAGE),
                  "`python -m benchmarks.growth.checks {}`, CPU time on one thread:")


if __name__ == "__main__":
    main()
