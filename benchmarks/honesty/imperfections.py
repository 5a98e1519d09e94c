"""What imperfections of the images do to a local refinement, one at a time, and what the program says of them.

    python -m benchmarks.honesty.imperfections --work FOLDER [--relion [PATTERN]] [--write]

Each set is simulated (examples/simulate.py) as the ideal one with one imperfection, refined with the defaults, and
compared with the truth. The ideal set is made with several seeds: what differs by less than they do is no effect. Ends
with the assertions that the ideal sets are better than their input, and that nothing is reported as finer than the
truth by more than a tenth without a word of warning. With --relion those of the sets whose name has the pattern in it
(all without one) are refined by RELION as well, masked; each takes many minutes. What was done is kept in the work
folder and not done again, and the table of RELION has all sets that were ever done there.
"""
from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

from examples.evaluate import read_map, read_poses
from examples.simulate import MODELS, Options, Poses, simulate
from localrefine_plugin.engine.io.run_folder import read_json, write_json
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

from ..measure import run_measured
from ..page import table, write_section
from ..peers import relion
from ..truth import Truth

IDEAL = Options(particles=1000, snr=0.08, threads=1)
SEEDS = (1, 2, 3)
CASES: Dict[str, Dict[str, Any]] = {
    "ice gradient, 2 s.d. from centre to edge": dict(ice_gradient=2.0),
    "another particle overlaps in half of the images": dict(neighbours=0.5),
    "half of the noise is the specimen's": dict(structured_noise=0.5),
    "pixel size 1 % wrong": dict(pixel_size_error=0.01),
    "defocus off by 500 Å": dict(defocus_error_angstrom=500.0),
    "30 % of the images show nothing": dict(junk=0.3),
    "views within 25° of one axis": dict(preferred_view_deg=25.0),
}
SMALL = dict(model="membrane", box_size=64, pixel_size=3.0)
SMALL_CASES = {
    "membrane protein in a micelle, domain of 50 kDa": {},
    "membrane protein and ice gradient": dict(ice_gradient=2.0),
    "membrane protein and neighbours": dict(neighbours=0.5),
    "membrane protein and pixel size 1 % wrong": dict(pixel_size_error=0.01),
}
TWO_HINGES = dict(model="two_hinges", pixel_size=3.0)
HEAD = ("images", "angle: input", "after", "centroid: input", "after", "mean FSC to truth: input", "after",
        "FSC 0.5 to truth", "half-maps, FSC 0.143", "to report", "what is said besides")
RELION_HEAD = ("images", "angle: ours", "RELION", "centroid: ours", "RELION", "mean FSC to truth: ours", "RELION",
               "FSC 0.5 to truth: ours", "RELION", "half-maps, FSC 0.143: ours", "RELION", "RELION's iterations")
SOURCE, FIRST_CLAUSE = re.compile(r"^particles: "), re.compile(r"\. | \(|: ")
EVERY_SET = ("limited by the pixel size",)  # said of the ideal set as well


@dataclass(frozen=True)
class Case:
    """One set, and the body that is refined."""

    name: str
    options: Options
    body: str = "B"

    def data(self, work: Path) -> Path:
        return work / re.sub(r"\W+", "_", self.name)

    def shown(self, data: Path) -> np.ndarray:
        """Rows of the images that show the particle."""
        return np.setdiff1d(np.arange(self.options.particles), read_json(data / "truth.json")["junk"])

    def compared(self, data: Path, poses: Poses, volume: np.ndarray, halves: Sequence[np.ndarray]) -> Dict[str, float]:
        """A result and the truth; poses of images that show nothing do not count."""
        truth, shown = Truth(data, self.body), self.shown(data)
        truth.poses = truth.poses[shown]
        return dict(truth.of_poses(poses[shown]), **truth.of_map(volume, poses[shown], truth.mask),
                    half_maps=truth.of_halves(halves[0], halves[1], truth.mask))


def once(path: Path, job: Callable[[], Dict[str, Any]]) -> Dict[str, Any]:
    """What a job found, from its file if it was done before."""
    if not path.exists():
        found = job()
        write_json(path, found)
    return dict(read_json(path))


def ours(case: Case, data: Path) -> Dict[str, Any]:
    """Refine with the defaults; the input's figures, the result's, and what is said."""
    maps = [str(data / name) for name in ("half1.mrc", "half2.mrc", f"mask_{case.body}.mrc")]
    run = refine(str(data / "particles.star"), *maps, str(data / "run"), Settings(), "cpu", 1, "overwrite")
    given = [read_map(data / f"half{half}.mrc") for half in (1, 2)]
    halves = [read_map(run.final(f"half_map_{half}.mrc")) for half in (1, 2)]
    report = read_json(run.report)
    said = [text for text in (*report["warnings"], *report["advice"]) if not any(s in text for s in EVERY_SET)]
    before = case.compared(data, read_poses(data / "particles.star"), read_map(data / "consensus.mrc"), given)
    after = case.compared(data, read_poses(run.final("particles.star")), read_map(run.final("map.mrc")), halves)
    return dict(input=before, after=after, to_report=report["resolution_to_report_angstrom"],
                said=list(dict.fromkeys(FIRST_CLAUSE.split(SOURCE.sub("", text))[0] for text in said)))


def relions(case: Case, data: Path, cores: str) -> Dict[str, Any]:
    """RELION's auto-refinement of the whole box with the mask; one that was ended goes on after its last iteration."""
    diameter = min(2 * MODELS[case.options.model]().radius + 20, 0.9 * case.options.box_size * case.options.pixel_size)
    output = data / "relion"
    output.mkdir(exist_ok=True)
    inputs = relion.Inputs("particles.star", "consensus.mrc", f"mask_{case.body}.mrc", diameter)
    begun = bool(relion.iterations(output))
    command = (relion.continue_command if begun else relion.refine_command)(inputs, output)
    run_measured(command, output / "log.txt", cores, data)
    found = relion.result(output)
    return dict(case.compared(data, found.poses, found.map, found.half_maps), iterations=len(found.trajectory))


def cells(name: str, f: Dict[str, Any]) -> Tuple[str, ...]:
    before, after = f["input"], f["after"]
    return (name, *pairs(before, after)[:6], f"{after['fsc_half_angstrom']:.2f} Å", f"{after['half_maps']:.2f} Å",
            f"{f['to_report']:.2f} Å", "; ".join(f["said"]) or "nothing")


def pairs(first: Dict[str, Any], second: Dict[str, Any]) -> List[str]:
    """The figures of two results, side by side."""
    forms = dict(angle_deg="{:.2f}°", centroid_angstrom="{:.2f} Å", mean_fsc="{:.3f}", fsc_half_angstrom="{:.2f} Å",
                 half_maps="{:.2f} Å")
    return [form.format(of[key]) for key, form in forms.items() for of in (first, second)]


def check(name: str, f: Dict[str, Any], is_ideal: bool) -> None:
    if is_ideal:
        before, after = f["input"], f["after"]
        assert after["mean_fsc"] > before["mean_fsc"] and after["angle_deg"] < before["angle_deg"], name
    assert f["said"] or f["to_report"] > 0.9 * f["after"]["fsc_half_angstrom"], f"{name}: reported too fine, not a word"


def cases() -> List[Case]:
    sets = {f"ideal, seed {seed}": replace(IDEAL, seed=seed) for seed in SEEDS}
    sets.update({name: replace(IDEAL, **changes) for name, changes in CASES.items()})
    sets.update({name: replace(IDEAL, **SMALL, **changes) for name, changes in SMALL_CASES.items()})
    hinges = [Case(f"complex with two hinges{said}, body {body} ({mass} kDa)",
                   replace(IDEAL, **TWO_HINGES, snr=snr), body)
              for said, snr in (("", IDEAL.snr), (", SNR 0.2", 0.2)) for body, mass in (("B", 82), ("C", 66))]
    return [Case(name, made) for name, made in sets.items()] + hinges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--relion", nargs="?", const="", help="refine with RELION as well where the name has this")
    parser.add_argument("--cores", default="0,1", help="the cores of RELION, as a list of taskset")
    parser.add_argument("--write", action="store_true", help="write the tables into the page")
    options = parser.parse_args()
    rows: List[Tuple[str, ...]] = []
    peers: List[Tuple[str, ...]] = []
    for case in cases():
        data = case.data(options.work)
        if not (data / "truth.json").exists():
            simulate(data, case.options)
        found = once(data / "ours.json", lambda c=case, d=data: ours(c, d))
        rows.append(cells(case.name, found))
        print(*rows[-1], sep=" | ", flush=True)
        check(case.name, found, case.name.startswith("ideal"))
        wanted = options.relion is not None and re.search(options.relion, case.name)
        if wanted or (data / "relion.json").exists():
            theirs = once(data / "relion.json", lambda c=case, d=data: relions(c, d, options.cores))
            peers.append((case.name, *pairs(found["after"], theirs), str(theirs["iterations"])))
            print(*peers[-1], sep=" | ", flush=True)
    if options.write:
        write_section("imperfections", table(HEAD, rows))
    if options.write and peers:
        write_section("imperfections, RELION", table(RELION_HEAD, peers))


if __name__ == "__main__":
    main()
