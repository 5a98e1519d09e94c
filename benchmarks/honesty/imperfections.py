"""What imperfections of the images do to a local refinement, one at a time, and what the program says of them.

    python -m benchmarks.honesty.imperfections --work FOLDER [--write]

Each set is simulated (examples/simulate.py) as the ideal one with one imperfection, refined with the defaults, and
compared with the truth. The ideal set is made with several seeds: what differs by less than they do is no effect. Ends
with the assertions that the ideal sets are better than their input, and that nothing is reported as finer than the
truth by more than a tenth without a word of warning.
"""
from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from examples.evaluate import read_map, read_poses
from examples.simulate import Options, simulate
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

from ..page import table, write_section
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
    "the same and ice gradient": dict(ice_gradient=2.0),
    "the same and neighbours": dict(neighbours=0.5),
    "the same and pixel size 1 % wrong": dict(pixel_size_error=0.01),
}
HEAD = ("images", "angle of B: input", "after", "centroid of B, after", "mean FSC to truth: input", "after",
        "FSC 0.5 to truth", "half-maps, FSC 0.143", "to report", "what is said besides")
SOURCE, FIRST_CLAUSE = re.compile(r"^particles: "), re.compile(r"\. | \(|: ")
EVERY_SET = ("the mask edge is", "limited by the pixel size")  # said of the ideal set as well


def refined(data: Path, output: Path) -> RunFolder:
    maps = [str(data / name) for name in ("half1.mrc", "half2.mrc", "mask_B.mrc")]
    return refine(str(data / "particles.star"), *maps, str(output), Settings(), "cpu", 1, "overwrite")


def figures(options: Options, data: Path) -> Dict[str, Any]:
    """Simulate, refine, and compare input and result with the truth; poses of images that show nothing do not count."""
    simulate(data, options)
    run = refined(data, data / "run")
    truth, report = Truth(data), read_json(run.report)
    shown = np.setdiff1d(np.arange(options.particles), json.loads((data / "truth.json").read_text())["junk"])
    truth.poses = truth.poses[shown]
    found: Dict[str, Any] = {}
    for name, star, volume in (("input", data / "particles.star", data / "consensus.mrc"),
                               ("after", run.final("particles.star"), run.final("map.mrc"))):
        poses = read_poses(star)[shown]
        found[name] = dict(truth.of_poses(poses), **truth.of_map(read_map(volume), poses, truth.mask))
    halves = [read_map(run.final(f"half_map_{half}.mrc")) for half in (1, 2)]
    found["half_maps"] = truth.of_halves(*halves, truth.mask)
    found["to_report"] = report["resolution_to_report_angstrom"]
    said = [text for text in (*report["warnings"], *report["advice"]) if not any(s in text for s in EVERY_SET)]
    found["said"] = list(dict.fromkeys(FIRST_CLAUSE.split(SOURCE.sub("", text))[0] for text in said))
    return found


def cells(name: str, f: Dict[str, Any]) -> Tuple[str, ...]:
    before, after = f["input"], f["after"]
    return (name, f"{before['angle_deg']:.2f}°", f"{after['angle_deg']:.2f}°", f"{after['centroid_angstrom']:.2f} Å",
            f"{before['mean_fsc']:.3f}", f"{after['mean_fsc']:.3f}", f"{after['fsc_half_angstrom']:.2f} Å",
            f"{f['half_maps']:.2f} Å", f"{f['to_report']:.2f} Å", "; ".join(f["said"]) or "nothing")


def check(name: str, f: Dict[str, Any], is_ideal: bool) -> None:
    if is_ideal:
        before, after = f["input"], f["after"]
        assert after["mean_fsc"] > before["mean_fsc"] and after["angle_deg"] < before["angle_deg"], name
    assert f["said"] or f["to_report"] > 0.9 * f["after"]["fsc_half_angstrom"], f"{name}: reported too fine, not a word"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    options = parser.parse_args()
    sets = {f"ideal, seed {seed}": replace(IDEAL, seed=seed) for seed in SEEDS}
    sets.update({name: replace(IDEAL, **changes) for name, changes in CASES.items()})
    sets.update({name: replace(IDEAL, **SMALL, **changes) for name, changes in SMALL_CASES.items()})
    rows: List[Tuple[str, ...]] = []
    for number, (name, made) in enumerate(sets.items()):
        found = figures(made, options.work / f"set{number:02d}")
        rows.append(cells(name, found))
        print(*rows[-1], sep=" | ", flush=True)
        check(name, found, name.startswith("ideal"))
    if options.write:
        write_section("imperfections", table(HEAD, rows))


if __name__ == "__main__":
    main()
