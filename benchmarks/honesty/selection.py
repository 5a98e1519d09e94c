"""What a selection of particles does to the half-maps, beside as many chosen at random, and whether it prefers noise.

    python -m benchmarks.honesty.selection --data FOLDER [--data FOLDER …] --work FOLDER [--write]

Each set is refined, and three selections of its particles are judged as the engine does (finish/selection.py): by
probability, by a false discovery rate, and the half that fits best, which a person might keep for its FSC. It ends
with the assertions that no selection by probability is said to prefer noise, and that on sets without wrong particles
it does not raise the resolution of the half-maps. Maps of the particles kept, of all weighted by probability, and of
the right ones as they were planted are made from the same poses, and compared with the truth. Runs are kept in the work
folder and not done again.

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py or make_hard.py.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import numpy as np

from localrefine_plugin.engine.finish.selection import effect, half_maps, kept_of
from localrefine_plugin.engine.io.run_folder import RunFolder
from localrefine_plugin.engine.io.run_store import load_poses
from localrefine_plugin.engine.records.poses import PoseTable
from localrefine_plugin.engine.records.resolved import ResolvedSettings
from localrefine_plugin.engine.records.results import Selection
from localrefine_plugin.engine.records.settings import Settings

from ..page import DOCS, arguments_of_sets, conclude, table
from ..peers.versus_relion import engine_poses
from ..truth import Truth
from .sets import best_of, iterated
from .verdicts import wrong_rows

PAGE = DOCS / "explanation" / "verdicts.md"
HEAD = ("set", "wrong", "kept", "left out", "half-maps, FSC 0.143: kept", "all", "as many at random",
        "own advantage: kept", "all", "as many at random", "difference / spread", "prefers noise",
        "mean FSC to the truth: kept", "all, weighted", "the right ones")


def by_settings(**changes: Any) -> Callable[[PoseTable], np.ndarray]:
    def kept(poses: PoseTable) -> np.ndarray:
        return kept_of(np.asarray(poses.probability_aligned), ResolvedSettings.of(Settings(**changes)))
    return kept


def best_half(poses: PoseTable) -> np.ndarray:
    gain = np.asarray(poses.gain)
    return gain > np.median(gain)


SELECTIONS: Dict[str, Callable[[PoseTable], np.ndarray]] = {
    "p ≥ 0.5": by_settings(keep_probability=0.5), "false discovery rate 1 %": by_settings(false_discovery_rate=0.01),
    "half of all, largest z": best_half}
FLATTERS = "half of all, largest z"


class Judged(NamedTuple):
    """A selection, and the mean FSC to the truth of the particles kept, of all weighted, and of the right ones."""

    of: Selection
    to_truth: Tuple[float, float, float]


def judged(data: Path, work: Path, threads: int) -> Dict[str, Judged]:
    """What every selection does to a set."""
    run = iterated(data, work / data.name, threads)
    k = best_of(run)
    rows: Dict[str, Dict[int, np.ndarray]] = {name: {} for name in SELECTIONS}
    maps: List[List[np.ndarray]] = []
    for half in (1, 2):
        poses = load_poses(run, k, half)
        assert poses is not None and poses.probability_aligned is not None
        for name, choose in SELECTIONS.items():
            rows[name][half] = poses.row[choose(poses)]
        counts = [1.0 * np.isin(poses.row, rows[name][half]) for name in SELECTIONS]
        right = 1.0 - np.isin(poses.row, wrong_rows(data))
        maps.append(half_maps(run, k, half, poses, [*counts, poses.probability_aligned, right], threads))
    *kept, weighted, planted = (mean_fsc(data, run, (first + second) / 2) for first, second in zip(*maps))
    return {name: Judged(effect(run, k, rows[name], threads), (value, weighted, planted))
            for name, value in zip(SELECTIONS, kept)}


def mean_fsc(data: Path, run: RunFolder, volume: np.ndarray) -> float:
    """To the truth, in the frame of the right particles."""
    truth = Truth(data)
    right = np.setdiff1d(np.arange(len(truth.poses.rotation)), wrong_rows(data))
    truth.poses = truth.poses[right]
    return truth.of_map(volume, engine_poses(run, best_of(run), truth.pixel_size)[right], truth.mask)["mean_fsc"]


def cells(data: Path, name: str, found: Judged) -> Tuple[str, ...]:
    of, to_truth = found.of, tuple(f"{value:.3f}" for value in found.to_truth)
    count = of.kept + of.left_out
    start = (data.name, f"{100 * len(wrong_rows(data)) / count:.0f} %", name, f"{100 * of.left_out / count:.1f} %")
    if not of.left_out:
        return (*start, *["as all"] * 7, "–", *to_truth)
    some = [of.effect[choice] for choice in ("kept", "all", "random")]
    difference = (some[0].own_advantage - some[1].own_advantage) / of.own_advantage_spread
    return (*start, *(f"{each.resolution_angstrom:.2f} Å" for each in some),
            *(f"{each.own_advantage:.2f}" for each in some[:2]),
            f"{some[2].own_advantage:.2f} ± {of.own_advantage_error:.2f}", f"{difference:.2f}",
            "yes" if of.prefers_noise else "no", *to_truth)


def problem_of(data: Path, name: str, of: Selection) -> str:
    if name == FLATTERS or not of.left_out:
        return ""
    helped = of.effect["kept"].resolution_angstrom < 0.99 * of.effect["all"].resolution_angstrom
    wrong = of.prefers_noise or (helped and not wrong_rows(data))
    return f"{data.name}, {name}" if wrong else ""


def main() -> None:
    options = arguments_of_sets(__doc__).parse_args()
    rows: List[Tuple[str, ...]] = []
    problems = []
    for data in options.data:
        for name, found in judged(data, options.work, options.threads).items():
            rows.append(cells(data, name, found))
            print(*rows[-1], sep=" | ", flush=True)
            problems.append(problem_of(data, name, found.of))
    names = " ".join(f"--data {data.name}" for data in options.data)
    command = f"`python -m benchmarks.honesty.selection {names} --work FOLDER --write`"
    conclude("selections", PAGE if options.write else None, f"{command}\n\n{table(HEAD, rows)}", problems)


if __name__ == "__main__":
    main()
