"""Forecasts of refinements beside what these then reach, and beside the truth.

    python -m benchmarks.honesty.forecast --data FOLDER [--data FOLDER …] --work FOLDER [--sample 500] \
        [--prior off …] [--write]

The forecast is that of the run's log. Of a finished run in --work that has none it is made now, from its first three
iterations; such a run is not done again. With --sample the verb's forecast, from so many particles of each half-set, is
taken instead; with --prior, runs with these priors instead of the learned one. It ends with the assertion that the
resolution to report is forecast within 10 % (15 % with other priors), and the errors of the poses within 15 %, of what
the run states or of the truth, where the mask holds the moving body.

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py or make_hard.py.
"""
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np

from examples.evaluate import pose_errors, read_map, read_poses
from localrefine_plugin.engine.finish.results import pose_uncertainty
from localrefine_plugin.engine.forecast.first_iterations import start_of_run
from localrefine_plugin.engine.forecast.forecast import START_SECONDS, Inputs, forecast
from localrefine_plugin.engine.forecast.of_run import known_well, tell
from localrefine_plugin.engine.forecast.sample import ITERATIONS, sample_of
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.io.run_store import load_iteration, load_tables
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.kernels.host import worker_count
from localrefine_plugin.engine.records.codec import from_json
from localrefine_plugin.engine.records.forecast import SAMPLE, Forecast
from localrefine_plugin.engine.records.settings import Settings

from ..measure import run_measured
from ..page import DOCS, arguments_of_sets, conclude, table
from ..truth import Truth
from .resolution_to_report import OTHERS_DENSITY, foreign_share

PAGE = DOCS / "explanation" / "forecast.md"
HEAD = ("data", "particles", "to report: forecast", "run", "true", "", "rotation: forecast", "run", "true", "",
        "shift: forecast", "run", "true", "", "memory: forecast, run", "CPU: forecast, run")
ALLOWED, ALLOWED_OF_POSES, ALLOWED_WITHOUT_LEARNING = 0.10, 0.15, 0.15
MEDIAN_OF_ANGLE, MEDIAN_OF_SHIFT = 1.538, 1.177
"""Median length of a vector with three, and with two, components of s.d. 1."""
INPUTS = ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")
GIVEN = ("particles", "half-map-1", "half-map-2", "mask")
ROOT = Path(__file__).resolve().parents[2]
CORES = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))


def finished(data: Path, work: Path, threads: int, prior: Optional[str] = None) -> RunFolder:
    """The run, and in WORK/NAME.seconds what CPU time it took, where it was done here."""
    run = RunFolder(work / (data.name if prior is None else f"{data.name}_{prior}"))
    if not run.results_complete():
        settings, files = work / f"{run.path.name}_settings.json", dict(zip(GIVEN, INPUTS))
        work.mkdir(parents=True, exist_ok=True)
        write_json(settings, {} if prior is None else {"prior": prior})
        given = [word for name, part in files.items() for word in (f"--{name}", str(data / part))]
        command = [sys.executable, "-m", "localrefine_plugin.engine", "refine", *given, "--output", str(run.path),
                   "--settings", str(settings), "--device", "cpu", "--threads", str(threads), "--overwrite"]
        cost = run_measured(command, work / f"{run.path.name}.txt", CORES, ROOT)  # its memory is its own
        seconds_file(run).write_text(f"{cost.cpu_seconds:.1f}\n", encoding="utf-8")
    return run


def seconds_file(run: RunFolder) -> Path:
    return run.path.with_name(f"{run.path.name}.seconds")


def times_of(run: RunFolder, found: Forecast) -> str:
    """CPU seconds, forecast and used. A forecast counts wall seconds of a machine as busy as it was: of those of the
    first iteration its records tell the share that the CPU worked."""
    if not seconds_file(run).exists():
        return "–"
    first = [read_json(run.half_done(1, half)) for half in (1, 2)]
    worked = sum(half["cpu_seconds"] for half in first) / sum(half["wall_seconds"] for half in first)
    forecast_cpu = START_SECONDS + worked * (found.seconds - START_SECONDS)
    return f"{forecast_cpu:.0f} s, {float(seconds_file(run).read_text(encoding='utf-8')):.0f} s"


def of_log(run: RunFolder, threads: int) -> Forecast:
    """What the log of a run said, or would have said."""
    places = [run.forecast(k) for k in (0, ITERATIONS)]
    if not any(place.exists() for place in places):
        workers = worker_count(threads)
        known = known_well(run, start_of_run(run, SAMPLE), CPU, workers)
        tell(run, ITERATIONS, sample_of(run), known, workers)
    return from_json(Forecast, read_json(next(place for place in places if place.exists())))


def true_errors(data: Path, run: RunFolder) -> Tuple[float, float]:
    """S.d. per axis of rotation (degrees) and shift (Å) from the truth, of the images that show the moving body."""
    truth, facts = Truth(data), read_json(data / "truth.json")
    angle, distance, _ = pose_errors(read_poses(run.final("particles.star")), truth.poses, truth.centroid)
    shown = np.ones(len(angle), bool)
    shown[[*facts.get("junk", []), *facts.get("absent", [])]] = False
    return float(np.median(angle[shown])) / MEDIAN_OF_ANGLE, float(np.median(distance[shown])) / MEDIAN_OF_SHIFT


def true_resolution(data: Path, run: RunFolder) -> float:
    """Å at which the mean of the half-maps and the truth have an FSC of 0.5 in the mask of the moving body."""
    truth, halves = Truth(data), [read_map(run.final(f"half_map_{half}.mrc")) for half in (1, 2)]
    return truth.of_map(0.5 * (halves[0] + halves[1]), read_poses(run.final("particles.star")), truth.mask)[
        "fsc_half_angstrom"]


def off(found: float, *reached: float) -> str:
    return ", ".join(f"{100 * (found / one - 1):+.0f} %" for one in reached)


def memory_of(run: RunFolder) -> float:
    """MiB, the largest of the alignments."""
    return max(read_json(run.half_done(k, half))["peak_memory_mb"]
               for k in range(1, run.iterations_done() + 1) for half in (1, 2))


def row(data: Path, options: argparse.Namespace, prior: Optional[str] = None) -> Tuple[List[str], str]:
    """Cells of the table, and what is wrong with them ("" for nothing)."""
    sample, threads = options.sample, options.threads
    run, name = finished(data, options.work, threads, prior), data.name + (f", {prior}" if prior else "")
    if sample is None:
        found = of_log(run, threads)
    else:
        settings = Settings() if prior is None else Settings(prior=prior)
        given = Inputs(*(str(data / part) for part in INPUTS[:3]), settings, sample)  # type: ignore[misc]
        found, = forecast(given, [str(data / INPUTS[3])], "cpu", threads)
    best = load_iteration(run, run.iterations_done()).best_iteration
    report, pixel_size = read_json(run.report), read_json(run.input)["pixel_size"]
    reached = report["resolution_to_report_angstrom"]
    stated = np.median(np.concatenate([pose_uncertainty(t.pose_error_covariance, pixel_size)
                                       for t in load_tables(run, best)]), axis=0)
    true, true_angstrom = true_errors(data, run), true_resolution(data, run)
    problems = []
    if foreign_share(data, Truth(data).mask) < OTHERS_DENSITY and not found.doubt:
        if min(abs(found.to_report_angstrom / one - 1) for one in (reached, true_angstrom)) > (
                ALLOWED if prior is None else ALLOWED_WITHOUT_LEARNING):
            problems.append(f"{name}: {found.to_report_angstrom:.2f} Å, {reached:.2f} Å reached")
        for what, said, *of_run in (("rotation", found.rotation_error_deg, stated[0], true[0]),
                                    ("shift", found.shift_error_angstrom, stated[1], true[1])):
            if min(abs(said / one - 1) for one in of_run) > ALLOWED_OF_POSES:
                problems.append(f"{name}: {what} {said:.2f}, {of_run[0]:.2f} stated, {of_run[1]:.2f} true")
    cells = [name, str(found.particles), f"{found.to_report_angstrom:.2f} Å", f"{reached:.2f} Å",
             f"{true_angstrom:.2f} Å", off(found.to_report_angstrom, reached, true_angstrom),
             f"{found.rotation_error_deg:.2f}°", f"{stated[0]:.2f}°", f"{true[0]:.2f}°",
             off(found.rotation_error_deg, stated[0], true[0]),
             f"{found.shift_error_angstrom:.2f} Å", f"{stated[1]:.2f} Å", f"{true[1]:.2f} Å",
             off(found.shift_error_angstrom, stated[1], true[1]), f"{found.memory_mb:.0f}, {memory_of(run):.0f} MiB",
             times_of(run, found) if sample is None else "–"]
    print(*cells, flush=True)
    return cells, "; ".join(problems)


def main() -> None:
    parser = arguments_of_sets(__doc__)
    parser.add_argument("--sample", type=int, default=None, help="particles of each half-set, for the verb's forecast")
    parser.add_argument("--prior", action="append", help="a prior of the runs instead of the learned one")
    parser.add_argument("--held-out", action="store_true", help="a table of its own")
    options = parser.parse_args()
    rows, problems = zip(*(row(data, options, prior) for data in options.data for prior in options.prior or [None]))
    names = " ".join(f"--data {data.name}" for data in options.data)
    names += "".join(f" --prior {prior}" for prior in options.prior or [])
    how = "" if options.sample is None else f" --sample {options.sample}"
    names += " --held-out" * options.held_out
    section = "forecast" + (", other priors" if options.prior else "") + (", held out" if options.held_out else "")
    conclude(section if options.sample is None else "forecast from a sample", PAGE if options.write else None,
             f"`python -m benchmarks.honesty.forecast {names} --work FOLDER{how} --write`\n\n{table(HEAD, rows)}",
             problems)


if __name__ == "__main__":
    main()
