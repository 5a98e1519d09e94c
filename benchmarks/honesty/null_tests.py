"""The null tests beside the truth: what they find in runs of simulated data, and how far each is ahead of the truth.

    python -m benchmarks.honesty.null_tests --data FOLDER --run RUN [--data … --run …] [--write] [--picture PNG]

RUN is a finished run; one that has not been validated is (in place: it writes RUN/final/validation.json). The picture
(docs/images/null_tests.png) is that of the first one.

Data: FOLDER, simulated: a set of examples/simulate.py or of the benchmark's make_dataset.py (`mid`).
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List

from examples.evaluate import read_map, read_poses
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.validate.validate import validate
from localrefine_plugin.report.html_report import png
from localrefine_plugin.report.run_state import RunState
from localrefine_plugin.report.validation_plots import validation_figure

from ..page import DOCS, table, write_section
from ..truth import Truth

NULL_TESTS = DOCS / "explanation" / "null-tests.md"
HEAD = ("data", "prior", "reported", "FSC 0.5 to truth", "ahead by", "expected to truth", "poses off (median)",
        "noise reaches (initial low-pass)", "random phases: FSC (at most)", "empty place: FSC (at most)",
        "go elsewhere", "drift")


def row_of(data: Path, run: RunFolder) -> List[str]:
    if not run.final("validation.json").exists():
        validate(str(run.path))
    report, tests = read_json(run.report), {t["name"]: t for t in read_json(run.final("validation.json"))["tests"]}
    truth, poses = Truth(data), read_poses(run.final("particles.star"))
    to_truth = truth.of_map(read_map(run.final("map.mrc")), poses, truth.mask)["fsc_half_angstrom"]
    reported = report["final_resolution_angstrom"]["corrected"]
    lowpass = report["iterations"][0]["align_resolution_angstrom"]
    reached, elsewhere = tests["pure_noise"]["value"], tests["other_reference"]
    return [data.resolve().name, report["settings"]["prior"], f"{reported:.2f} Å", f"{to_truth:.2f} Å",
            f"{100 * (to_truth / reported - 1):.0f} %", f"{report['expected_truth_resolution_angstrom']:.2f} Å",
            f"{truth.of_poses(poses)['angle_deg']:.1f}°",
            f"{f'{reached:.1f} Å' if reached < 100 else 'nowhere'} ({lowpass:.1f} Å)", limited(tests["random_phases"]),
            limited(tests["empty_place"]), marked(elsewhere, f"{100 * elsewhere['value']:.1f} %"),
            f"{tests['common_drift']['value']:.1f} Å"]


def limited(test: Dict[str, Any]) -> str:
    return marked(test, "not done" if test["value"] is None else f"{test['value']:.3f} ({test['high']:.3f})")


def marked(test: Dict[str, Any], text: str) -> str:
    return f"**{text}**" if test["passed"] is False else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--run", type=Path, action="append", required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    text = table(HEAD, [row_of(data, RunFolder(run)) for data, run in zip(options.data, options.run)])
    print(text)
    if options.write:
        write_section("null-tests", text, NULL_TESTS)
    if options.picture:
        options.picture.write_bytes(png(validation_figure(RunState(options.run[0]).null_tests())))


if __name__ == "__main__":
    main()
