"""Poses, maps and uncertainties against the truth with every prior: learned, Gaussian, that at the true hinge, none.

    python -m benchmarks.peers.priors --data FOLDER [--data FOLDER …] --work FOLDER [--write]

A newcomer's Gaussian prior is 7° and 4 Å at the centre of the mask; *off* searches within 20° and 10 Å. *At the true
hinge* has the widths of the motion and of the input poses' errors, which nobody knows. χ² is the median over the
particles of the whitened error of the pose over its expectation: 1 where the uncertainties reported are right.

It ends with the assertion that the learned prior is no worse than the Gaussian one, and within 3 % of the one at the
true hinge.

Data: FOLDER, sets of the benchmark's make_dataset.py (`mid` and its variants).
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
from scipy.stats import chi2

from examples.evaluate import read_map, read_poses
from localrefine_plugin.engine.io.mrc import write_map
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.io.run_store import load_input, load_poses
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine
from localrefine_plugin.engine.validate.null_tests import disagreement

from ..measure import commit, machine
from ..page import DOCS, table, write_section
from ..truth import Truth

MOTION_PRIOR = DOCS / "explanation" / "motion-prior.md"
HEAD = ("set", "prior", "angle", "centroid", "FSC 0.5 to truth / mean", "half-maps", "to report", "χ², half 1 and 2",
        "iterations")
UNKNOWNS = 5
NO_WORSE, AS_IF_KNOWN = 1.01, 1.03
TRUE_NOISE = 0.03
WITH_TRUE_MAP = "gaussian, with the true map"


@dataclass(frozen=True)
class Row:
    """One run: figures of Truth, what it reports, χ² of both halves, iterations."""

    figures: Dict[str, float]
    half_maps: float
    to_report: float
    calibration: List[float]
    iterations: int

    def cells(self) -> List[str]:
        f = self.figures
        return [f"{f['angle_deg']:.2f}°", f"{f['centroid_angstrom']:.2f} Å",
                f"{f['fsc_half_angstrom']:.2f} Å / {f['mean_fsc']:.3f}", f"{self.half_maps:.2f} Å",
                f"{self.to_report:.2f} Å", ", ".join(f"{v:.2f}" for v in self.calibration), str(self.iterations)]


def priors_of(facts: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
    """Settings by name, for a data set of make_dataset.py with these facts (truth.json)."""
    a = facts["args"]
    hinge = (np.array(facts["fulcrum_A"]) / a["apix"] + a["box"] // 2).tolist()
    known = dict(prior="gaussian", fulcrum=hinge,
                 prior_rotation_deg=float(np.hypot(a["sigma_rot"], a["pose_rot"]) / np.sqrt(3)),
                 prior_shift_angstrom=float(np.hypot(a["sigma_shift"], a["pose_shift"] * a["apix"])))
    oracle = dict(prior="gaussian", max_iterations=1, initial_lowpass_angstrom=2.025 * a["apix"])
    return {"learned": {}, "gaussian": {"prior": "gaussian"}, "gaussian at the true hinge": known,
            "off": {"prior": "off"}, WITH_TRUE_MAP: oracle}


def calibration(run: RunFolder, iteration: int, truth: Truth) -> List[float]:
    """Median χ² of the errors of both half-sets' poses, whitened by the covariance reported, over that of χ²₅."""
    given, found = load_input(run), []
    centre = given.resolved.mask_centre_offset(given.box_size)
    for half in (1, 2):
        poses = load_poses(run, iteration, half)
        assert poses is not None
        real = replace(poses, rotation=truth.poses.rotation[poses.row],
                       shift_px=truth.poses.position[poses.row] / truth.pixel_size)
        reported = replace(poses, covariance=poses.pose_error_covariance.astype(np.float64))
        found.append(float(np.median(UNKNOWNS * disagreement(reported, real, centre)) / chi2.median(UNKNOWNS)))
    return found


def true_half_maps(data: Path, folder: Path) -> List[str]:
    """The map of the moving body twice, with a little noise: the same map for both halves is refused, rightly."""
    truth, rng = read_map(data / "gt_B.mrc"), np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"true_{half}.mrc") for half in (1, 2)]
    for path in paths:
        noise = TRUE_NOISE * truth.std() * rng.standard_normal(truth.shape)
        write_map(path, truth + noise.astype(np.float32), Truth(data).pixel_size)
    return paths


def measured(data: Path, work: Path, settings: Dict[str, Any], threads: int, oracle: bool = False) -> Row:
    half_maps = true_half_maps(data, work.with_name(work.name + "_maps")) if oracle else [
        str(data / f"half{half}.mrc") for half in (1, 2)]
    inputs = [str(data / "particles.star"), *half_maps, str(data / "mask_B.mrc")]
    run = refine(*inputs, str(work), Settings(**settings), "cpu", threads, "overwrite")
    truth, poses, report = Truth(data), read_poses(run.final("particles.star")), read_json(run.report)
    figures = dict(truth.of_poses(poses), **truth.of_map(read_map(run.final("map.mrc")), poses, truth.mask))
    last = run.iterations_done()
    best = read_json(run.iteration_done(last))["best_iteration"]
    return Row(figures, report["final_resolution_angstrom"]["corrected"], report["resolution_to_report_angstrom"],
               calibration(run, best, truth), last)


def check(name: str, rows: Dict[str, Row]) -> None:
    learned, gaussian, known = (rows[prior].figures for prior in ("learned", "gaussian", "gaussian at the true hinge"))
    assert learned["angle_deg"] < NO_WORSE * gaussian["angle_deg"], name
    assert learned["angle_deg"] < AS_IF_KNOWN * known["angle_deg"], name
    assert learned["mean_fsc"] > gaussian["mean_fsc"] - 0.003, name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"write the table of {MOTION_PRIOR.name}")
    options = parser.parse_args()
    lines, found = [], {}
    for data in options.data:
        priors = priors_of(read_json(data / "truth.json"))
        rows = {name: measured(data, options.work / f"{data.name}_{i}", settings, options.threads,
                               name == WITH_TRUE_MAP) for i, (name, settings) in enumerate(priors.items())}
        found[data.name] = rows
        lines += [[data.name, name] + row.cells() for name, row in rows.items()]
    text = table(HEAD, lines)
    print(text)
    if options.write:
        command = "python -m benchmarks.peers.priors " + " ".join(f"--data {data.name}" for data in options.data)
        write_section("priors", f"{text}\n\n{machine()}. Commit {commit()}.\n\n    {command} --work priors --write",
                      MOTION_PRIOR)
    for name, rows in found.items():
        check(name, rows)


if __name__ == "__main__":
    main()
