"""What a run reports as its resolution, beside the truth: with the learned prior, a Gaussian one, and none.

    python -m benchmarks.honesty.resolution_to_report --data FOLDER [--data FOLDER …] --work FOLDER [--write]

Without a prior everything is as a newcomer from cryoSPARC finds it: within 20° and 10 Å. It ends with the assertion
that no reported resolution is more than 5 % ahead of the truth, nor the truth coarser than the range that is reported
with it, where the mask holds the moving body.

Data: FOLDER, simulated: a set of examples/simulate.py or of the benchmark's
make_dataset.py (`mid`).
"""
from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np

from examples.evaluate import read_map, read_poses
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

from ..page import DOCS, arguments_of_sets, conclude, table
from ..truth import Truth

RESOLUTION = DOCS / "explanation" / "resolution.md"
HEAD = ("data", "prior", "half-maps", "to report", "its range", "FSC 0.5 to truth", "to report, ahead of the truth by",
        "angle, median")
PRIORS: Dict[str, Dict[str, object]] = {"learned": {}, "gaussian 7°, 4 Å": {"prior": "gaussian"},
                                        "off": {"prior": "off"}}
OTHERS_DENSITY = 0.25
"""Share of the other body in the mask from which the truth, in which that body is blurred, is not the map's."""
ALLOWED = 0.05


def foreign_share(data: Path, mask: np.ndarray) -> float:
    """Share of the density in the mask that belongs to the body that does not move."""
    own, other = (float((read_map(data / f"gt_{body}.mrc") * mask).sum()) for body in "BA")
    return other / (own + other)


def row(data: Path, name: str, work: Path, threads: int) -> Tuple[List[str], str]:
    """Cells of the table, and what is wrong with them ("" for nothing)."""
    inputs = [str(data / part) for part in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")]
    settings = Settings(**PRIORS[name])  # type: ignore[arg-type]
    run = refine(*inputs, str(work / f"{data.name}_{name[:4]}"), settings, "cpu", threads, "overwrite")
    truth, poses = Truth(data), read_poses(run.final("particles.star"))
    report = read_json(run.report)
    halves, said = report["final_resolution_angstrom"]["corrected"], report["resolution_to_report_angstrom"]
    finest, coarsest = report["range_to_report_angstrom"]
    real = truth.of_map(read_map(run.final("map.mrc")), poses, truth.mask)["fsc_half_angstrom"]
    ahead, share = real / said - 1, foreign_share(data, truth.mask)
    honest = share > OTHERS_DENSITY or ahead < ALLOWED or real <= coarsest
    problem = "" if honest else f"{data.name}, prior {name}: {said:.2f} Å, the truth {real:.2f} Å"
    cells = [data.name, name, f"{halves:.2f} Å", f"{said:.2f} Å", f"{finest:.2f} to {coarsest:.2f} Å", f"{real:.2f} Å",
             f"{100 * ahead:.1f} %", f"{truth.of_poses(poses)['angle_deg']:.2f}°"]
    return cells, problem


def main() -> None:
    options = arguments_of_sets(__doc__).parse_args()
    rows = [row(data, name, options.work, options.threads) for data in options.data for name in PRIORS]
    text = table(HEAD, [cells for cells, _ in rows])
    print(text)
    conclude("resolution to report", RESOLUTION if options.write else None, text, [problem for _, problem in rows])


if __name__ == "__main__":
    main()
