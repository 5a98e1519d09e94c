"""Which images are noise: our probabilities beside the two columns that people cut RELION's particles by.

    python -m benchmarks.peers.selection --data FOLDER [--data FOLDER …] --work FOLDER [--limit-minutes M] [--write]

Each set is refined by us and by RELION's auto-refinement (masked) from the same poses. Of RELION's last particles file
as many are kept with the largest rlnMaxValueProbDistribution, or the largest rlnLogLikeliContribution, as we give a
probability of at least 0.5. All maps but our weighted one are made by relion_reconstruct, and compared with the truth.
What was done is kept in the work folder and not done again; a refinement of RELION's that was ended counts as far as it
came. It ends with the assertion that our probabilities tell noise images from particles better than either column.

Data: FOLDER, simulated: a set with noise images of the benchmark's make_hard.py (option junk), or of
benchmarks/honesty/noise_images.py.
"""
from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from examples.evaluate import read_map, read_poses
from localrefine_plugin.engine.io.run_folder import RunFolder
from localrefine_plugin.engine.io.star import read_star, write_star
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

from ..honesty.imperfections import once
from ..honesty.verdicts import probabilities, roc_area, wrong_rows
from ..measure import run_measured
from ..page import PAGE, arguments_of_sets, conclude, table
from ..truth import Truth
from . import relion

COLUMNS = "rlnMaxValueProbDistribution", "rlnLogLikeliContribution"
HEAD = ("set", "poses of", "kept", "ROC area", "noise images among those kept", "mean FSC to the truth")
KEPT = 0.5


def refined(data: Path, work: Path, threads: int) -> RunFolder:
    run = RunFolder(work / "ours")
    if run.results_complete():
        return run
    inputs = [str(data / name) for name in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")]
    return refine(*inputs, str(run.path), Settings(), "cpu", threads, "overwrite")


def refined_by_relion(data: Path, work: Path, limit_minutes: float) -> Path:
    """The particles file of the last iteration, or of the end."""
    output = work / "relion"
    output.mkdir(parents=True, exist_ok=True)
    box = read_map(data / "mask_B.mrc").shape[0]
    inputs = relion.Inputs("particles.star", "consensus.mrc", "mask_B.mrc", 0.9 * box * Truth(data).pixel_size)
    once(work / "relion.json", lambda: dataclasses.asdict(run_measured(
        relion.refine_command(inputs, output), work / "relion.log", "0,1", data, 60 * limit_minutes,
        dict(OMPI_MCA_mpi_yield_when_idle="1"))))
    return output / "run_data.star" if relion.converged(output) else relion.iterations(output)[-1][1]


def texts(star: Path, label: str) -> List[str]:
    particles, = (entry for entry in read_star(star) if entry.name == "particles")
    return [str(value) for value in particles.texts([label])[label]]


def images_of(star: Path) -> np.ndarray:
    """(n,) rows of the set that the rows of a particles file belong to."""
    return np.array([int(name.split("@")[0]) - 1 for name in texts(star, "rlnImageName")])


def by_image(star: Path, label: str) -> np.ndarray:
    """A column in the order of the set."""
    values = np.empty(len(images_of(star)))
    values[images_of(star)] = np.array(texts(star, label), float)
    return values


def reconstructed(data: Path, star: Path, kept: np.ndarray, target: Path) -> np.ndarray:
    """relion_reconstruct of the images of a particles file that are ``kept`` (n,) in the order of the set."""
    rows = np.flatnonzero(kept[images_of(star)])
    part = target.with_suffix(".star")
    write_star(part, [entry.take(rows) if entry.name == "particles" else entry for entry in read_star(star)])
    subprocess.run(["relion_reconstruct", "--i", str(part.resolve()), "--o", str(target.resolve()), "--ctf", "--pad",
                    "2"], cwd=data, check=True, stdout=subprocess.DEVNULL)
    return read_map(target)


def measured(data: Path, work: Path, threads: int, limit_minutes: float) -> Dict[str, Any]:
    """The rows of the table as lists: poses of, kept, ROC area, share of noise, mean FSC."""
    run, theirs = refined(data, work, threads), refined_by_relion(data, work, limit_minutes)
    truth, right = Truth(data), np.ones(len(read_poses(data / "particles.star").rotation), bool)
    right[wrong_rows(data)] = False
    truth.poses = truth.poses[right]
    p = probabilities(run, len(right))
    number, everyone = int(np.count_nonzero(p >= KEPT)), np.ones(len(right), bool)
    columns = {label: by_image(theirs, label) for label in COLUMNS}
    largest = {label: np.argsort(np.argsort(-value, kind="stable"), kind="stable") < number
               for label, value in columns.items()}
    ours, poses = run.final("particles.star"), {}
    poses["RELION"], poses["ours"] = relion.poses_of(theirs), read_poses(ours)
    choices = [("RELION", theirs, "all", everyone, None),
               *(("RELION", theirs, label, largest[label], columns[label]) for label in COLUMNS),
               ("RELION", theirs, "the right ones, as planted", right, None), ("ours", ours, "all", everyone, None),
               ("ours", ours, f"probability ≥ {KEPT}", p >= KEPT, p),
               ("ours", ours, "the right ones, as planted", right, None)]
    rows = []
    for number, (whose, star, name, kept, score) in enumerate(choices):
        volume = reconstructed(data, star, kept, work / f"map_{number}.mrc")
        rows.append([whose, name, None if score is None else roc_area(score, right), float((~right)[kept].mean()),
                     truth.of_map(volume, poses[whose][right], truth.mask)["mean_fsc"]])
    final = truth.of_map(read_map(run.final("map.mrc")), poses["ours"][right], truth.mask)["mean_fsc"]
    rows.append(["ours", "all, weighted by probability (the map of the run)", None, float((~right).mean()), final])
    return dict(rows=rows, iterations=len(relion.iterations(work / "relion")), converged=relion.converged(
        work / "relion"), kept=int(np.count_nonzero(p >= KEPT)))


def rows_of(data: Path, found: Dict[str, Any]) -> List[Tuple[str, ...]]:
    cells = []
    for whose, name, area, noise, mean in found["rows"]:
        known = "" if whose == "ours" or found["converged"] else f", iteration {found['iterations']}"
        label = f"{found['kept']} with the largest {name}" if name in COLUMNS else name
        cells.append((data.name, whose + known, label, "–" if area is None else f"{area:.3f}", f"{100 * noise:.1f} %",
                      f"{mean:.3f}"))
    return cells


def problem_of(data: Path, found: Dict[str, Any]) -> str:
    areas = {(whose, name): area for whose, name, area, _, _ in found["rows"] if area is not None}
    ours, = (area for (whose, _), area in areas.items() if whose == "ours")
    return "" if ours > max(areas[("RELION", label)] for label in COLUMNS) else f"{data.name}: a column does better"


def main() -> None:
    parser = arguments_of_sets(__doc__)
    parser.add_argument("--limit-minutes", type=float, default=120, help="for each of RELION's refinements")
    options = parser.parse_args()
    rows: List[Tuple[str, ...]] = []
    problems = []
    for data in options.data:
        there, work = data.resolve(), (options.work / data.name).resolve()
        found = once(work / "selection.json", lambda d=there, w=work: measured(
            d, w, options.threads, options.limit_minutes))
        rows += rows_of(data, found)
        problems.append(problem_of(data, found))
    for row in rows:
        print(*row, sep=" | ", flush=True)
    names = " ".join(f"--data {data.name}" for data in options.data)
    command = f"`python -m benchmarks.peers.selection {names} --work FOLDER --write`"
    conclude("selection", PAGE if options.write else None, f"{command}\n\n{table(HEAD, rows)}", problems)


if __name__ == "__main__":
    main()
