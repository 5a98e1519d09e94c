"""Verdicts on particles beside the planted truth: shares, ROC area, calibration, and what the weights do to the map.

    python -m benchmarks.honesty.verdicts [--data FOLDER …] [--views FOLDER …] --work FOLDER [--write]

Each --data set is refined as it is with weights, without weights, and without the planted wrong particles. It ends with
the assertion that the share of wrong particles is found within a third, and that sets without any lose fewer than 1 %.
What was done is kept in the work folder and not done again.
Each --views set is refined, and what is said of its directions stands beside the truth.

Data: FOLDER, simulated: a set of the benchmark's make_hard.py, whose truth.json lists noise images and other things
("junk") and particles without the sub-volume ("absent"), or one of noise_images.py.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from examples.evaluate import read_map, read_poses
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.io.run_store import load_poses
from localrefine_plugin.engine.io.star import read_star, write_star
from localrefine_plugin.engine.refine import finish
from localrefine_plugin.report.run_figures import draw_if_there, picture_of
from localrefine_plugin.report.run_state import RunState

from ..page import DOCS, IMAGES, table, write_section
from ..peers.versus_relion import engine_poses
from ..truth import Truth
from .imperfections import once
from .sets import best_of, half_maps_of, iterated

PAGE = DOCS / "explanation" / "verdicts.md"
HEAD = ("data", "wrong", "found", "ROC area", "calibration error", "aligned ones lost at p < 0.5",
        "mean FSC to the truth: weighted", "all alike", "wrong ones not given")
VIEW_HEAD = ("views", "cFAR", "SCF*", "directions seen by none", "half-maps, FSC 0.143", "truth, FSC 0.5")
BINS = 10
KINDS = "weighted", "alike", "clean"  # runs of a set; the last without its wrong particles


def wrong_rows(data: Path) -> List[int]:
    truth = json.loads((data / "truth.json").read_text(encoding="utf-8"))
    return sorted({*truth.get("junk", ()), *truth.get("absent", ())})


def without(data: Path, rows: List[int], target: Path) -> Path:
    """A particle file without some rows."""
    tables = read_star(data / "particles.star")
    kept = []
    for entry in tables:
        if entry.name == "particles":
            number = len(entry)
            kept.append(entry.take(np.setdiff1d(np.arange(number), rows)))
        else:
            kept.append(entry)
    write_star(target, kept)
    return target


def probabilities(done: RunFolder, count: int) -> np.ndarray:
    """(n,) of all particles by row, from the best iteration."""
    p = np.ones(count)
    for half in (1, 2):
        poses = load_poses(done, best_of(done), half)
        assert poses is not None and poses.probability_aligned is not None
        p[poses.row] = poses.probability_aligned
    return p


def roc_area(p: np.ndarray, aligned: np.ndarray) -> float:
    """The probability that an aligned particle has a higher p than a wrong one."""
    order = np.argsort(np.argsort(p, kind="stable"))
    good, bad = int(aligned.sum()), int((~aligned).sum())
    return float((order[aligned].sum() - good * (good - 1) / 2) / max(good * bad, 1))


def reliability(p: np.ndarray, aligned: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean p, share of aligned ones, and number of particles, of ten classes of p."""
    of = np.minimum((BINS * p).astype(int), BINS - 1)
    used = [b for b in range(BINS) if (of == b).any()]
    return (np.array([p[of == b].mean() for b in used]), np.array([aligned[of == b].mean() for b in used]),
            np.array([np.count_nonzero(of == b) for b in used]))


def fsc_to_truth(data: Path, done: RunFolder, rows: np.ndarray) -> float:
    """Mean FSC of the mean of the half-maps to the truth, in the frame of the particles ``rows``; the run had all or
    just these."""
    truth = Truth(data)
    found = engine_poses(done, best_of(done), truth.pixel_size)
    truth.poses = truth.poses[rows]
    found = found if len(found.rotation) == len(rows) else found[rows]
    first, second = half_maps_of(done)
    return truth.of_map((first + second) / 2, found, truth.mask)["mean_fsc"]


def measured(data: Path, work: Path, threads: int, kind: str) -> Dict[str, Any]:
    """The mean FSC to the truth of a run of a KIND, and the probabilities of all particles by row."""
    wrong, count = wrong_rows(data), len(read_poses(data / "particles.star").rotation)
    particles, settings = None, {}
    if kind == "clean":
        particles = without(data, wrong, data / "particles_clean.star")  # beside the images
    elif kind == "alike":
        settings = dict(weight_by_probability=False)
    done = iterated(data, work / f"{data.name}_{kind}", threads, particles, **settings)
    rows = np.setdiff1d(np.arange(count), wrong)
    return dict(mean_fsc=fsc_to_truth(data, done, rows), probabilities=probabilities(done, count).tolist())


def row(data: Path, work: Path, threads: int) -> Tuple[List[str], Tuple[np.ndarray, np.ndarray]]:
    wrong = wrong_rows(data)
    runs = {kind: once(work / f"{data.name}_{kind}.json", lambda k=kind: measured(data, work, threads, k))
            for kind in (KINDS if wrong else KINDS[:1])}
    p, quality = np.array(runs["weighted"]["probabilities"]), [found["mean_fsc"] for found in runs.values()]
    aligned = ~np.isin(np.arange(len(p)), wrong)
    share, said = 1 - aligned.mean(), 1 - p.mean()
    lost = float((p[aligned] < 0.5).mean())
    mean, is_aligned, number = reliability(p, aligned)
    error = float(np.abs(mean - is_aligned) @ number / len(p))
    cells = [data.name, f"{100 * share:.0f} %", f"{100 * said:.1f} %",
             f"{roc_area(p, aligned):.3f}" if wrong else "–", f"{error:.3f}", f"{100 * lost:.1f} %"]
    cells += [f"{q:.3f}" for q in quality] + ["–"] * (3 - len(quality))
    print(*cells, flush=True)
    assert not wrong or abs(said - share) < share / 3, f"{data.name}: {share:.2f} wrong, {said:.2f} found"
    assert wrong or lost < 0.01, f"{data.name}: {lost:.3f} lost"
    return cells, (p, aligned)


def draw(found: Dict[str, Tuple[np.ndarray, np.ndarray]]) -> None:
    """The reliability diagram of all sets with wrong particles."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle("color", colormaps["tab20"].colors)  # type: ignore[attr-defined]
    axes.plot([0, 1], [0, 1], color="0.6", lw=1)
    for name, (p, aligned) in found.items():
        if not aligned.all():
            mean, share, number = reliability(p, aligned)
            shown = number >= 10
            axes.plot(mean[shown], share[shown], "o-", ms=4, lw=1, label=name)
    axes.set_xlabel("probability to be aligned")
    axes.set_ylabel("share that is aligned")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(IMAGES / "verdicts_reliability.png", dpi=110)


def view_row(data: Path, work: Path, threads: int) -> List[str]:
    """What a run says of the directions of its map, beside the truth."""
    done = iterated(data, work / f"{data.name}_views", threads)
    finish(str(done.path), threads)
    found, halves = read_json(done.final("directions.json")), read_json(done.report)["final_resolution_angstrom"]
    truth = Truth(data)
    real = truth.of_map(read_map(done.final("map.mrc")), read_poses(done.final("particles.star")), truth.mask)
    return [data.name, f"{found['cfar']:.2f}", f"{found['scf_star']:.2f}", f"{100 * found['unseen']:.0f} %",
            f"{halves['corrected']:.2f} Å", f"{real['fsc_half_angstrom']:.2f} Å"]


def save_picture(run_folder: Path, name: str) -> None:
    state = RunState(run_folder)
    draw_if_there(picture_of(name), state).savefig(IMAGES / f"viewer_{name}.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--views", type=Path, action="append", default=[], help="sets with other views")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows, found = [], {}
    for data in options.data:
        cells, found[data.name] = row(data, options.work, options.threads)
        rows.append(cells)
    views = [view_row(data, options.work, options.threads) for data in options.views]
    if options.write and views:
        save_picture(options.work / f"{options.views[-1].name}_views", "directions")
        names = " ".join(f"--views {data.name}" for data in options.views)
        write_section("directions", f"`python -m benchmarks.honesty.verdicts {names} --work FOLDER --write`\n\n"
                      f"{table(VIEW_HEAD, views)}", PAGE)
    if options.write and rows:
        draw(found)
        first = next(name for name, (_, aligned) in found.items() if not aligned.all())
        finish(str(options.work / f"{first}_weighted"), options.threads)
        save_picture(options.work / f"{first}_weighted", "particles")
        names = " ".join(f"--data {data.name}" for data in options.data)
        write_section("verdicts", f"`python -m benchmarks.honesty.verdicts {names} --work FOLDER --write`\n\n"
                      f"{table(HEAD, rows)}", PAGE)


if __name__ == "__main__":
    main()
