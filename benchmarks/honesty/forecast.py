"""Forecasts of refinements beside what these then reach, and beside the truth.

    python -m benchmarks.honesty.forecast --data FOLDER [--data FOLDER …] --work FOLDER [--write]

A set whose finished run is in --work already is not refined again. It ends with the assertion that the resolution to
report is forecast within 12 % where the mask holds the moving body.

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py or make_hard.py.
"""
from __future__ import annotations

from pathlib import Path
from typing import List, Tuple

import numpy as np

from examples.evaluate import read_poses
from localrefine_plugin.engine.finish.results import pose_uncertainty
from localrefine_plugin.engine.forecast.forecast import Inputs, forecast
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.io.run_store import load_iteration, load_tables
from localrefine_plugin.engine.records.forecast import SAMPLE
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

from ..page import DOCS, arguments_of_sets, conclude, table
from ..truth import Truth
from .resolution_to_report import OTHERS_DENSITY, foreign_share

PAGE = DOCS / "explanation" / "forecast.md"
HEAD = ("data", "particles", "to report: forecast", "run", "", "rotation: forecast", "run", "", "shift: forecast",
        "run", "", "true rotation, shift")
ALLOWED = 0.12
MEDIAN_OF_ANGLE, MEDIAN_OF_SHIFT = 1.538, 1.177
"""Median length of a vector with three, and with two, components of s.d. 1."""


def off(found: float, reached: float) -> str:
    return f"{100 * (found / reached - 1):+.0f} %"


def finished(data: Path, inputs: List[str], work: Path, threads: int) -> RunFolder:
    run = RunFolder(work / data.name)
    if run.results_complete():
        return run
    return refine(*inputs, str(run.path), Settings(), "cpu", threads, "overwrite")


def row(data: Path, work: Path, sample: int, threads: int) -> Tuple[List[str], str]:
    """Cells of the table, and what is wrong with them ("" for nothing)."""
    inputs = [str(data / part) for part in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")]
    found, = forecast(Inputs(*inputs[:3], Settings(), sample), inputs[3:], "cpu", threads)
    run = finished(data, inputs, work, threads)
    best = load_iteration(run, run.iterations_done()).best_iteration
    report, pixel_size = read_json(run.report), read_json(run.input)["pixel_size"]
    reached = report["resolution_to_report_angstrom"]
    stated = np.concatenate([pose_uncertainty(t.pose_error_covariance, pixel_size) for t in load_tables(run, best)])
    rotation, shift = np.median(stated, axis=0)
    truth = Truth(data)
    true = truth.of_poses(read_poses(run.final("particles.star")))
    moving = foreign_share(data, truth.mask) < OTHERS_DENSITY
    wrong = moving and abs(found.to_report_angstrom / reached - 1) > ALLOWED
    cells = [data.name, str(found.particles), f"{found.to_report_angstrom:.2f} Å", f"{reached:.2f} Å",
             off(found.to_report_angstrom, reached), f"{found.rotation_error_deg:.2f}°", f"{rotation:.2f}°",
             off(found.rotation_error_deg, rotation), f"{found.shift_error_angstrom:.2f} Å", f"{shift:.2f} Å",
             off(found.shift_error_angstrom, shift),
             f"{true['angle_deg'] / MEDIAN_OF_ANGLE:.2f}°, {true['centroid_angstrom'] / MEDIAN_OF_SHIFT:.2f} Å"]
    print(*cells, flush=True)
    return cells, f"{data.name}: {found.to_report_angstrom:.2f} Å, {reached:.2f} Å reached" if wrong else ""


def main() -> None:
    parser = arguments_of_sets(__doc__)
    parser.add_argument("--sample", type=int, default=SAMPLE, help="particles of each half-set")
    options = parser.parse_args()
    rows, problems = zip(*(row(data, options.work, options.sample, options.threads) for data in options.data))
    names = " ".join(f"--data {data.name}" for data in options.data)
    conclude("forecast", PAGE if options.write else None, f"`python -m benchmarks.honesty.forecast {names} --work "
             f"FOLDER --write`\n\n{table(HEAD, rows)}", problems)


if __name__ == "__main__":
    main()
