"""What the mask does to the resolution, beside the truth: the mask in use, a wider one, and the tightest of the ladder.

    python -m benchmarks.honesty.masks --data FOLDER --run RUN [--data FOLDER --run RUN …] [--write]

RUN is a finished run on simulated data. The FSC to the truth is taken in the same mask as the half-maps'. It ends with
the assertion that tightening does not bring a resolution ahead of the truth in its own mask.

Data: FOLDER, simulated: a set of examples/simulate.py or of the benchmark's make_dataset.py (`mid`).
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import List

import numpy as np

from examples.evaluate import read_map, read_poses
from localrefine_plugin.engine.finish.mask_ladder import mask_ladder
from localrefine_plugin.engine.maps.fsc import five_curves
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.maps.mask import dilate_soft

from ..page import DOCS, table, write_section
from ..truth import Truth

RESOLUTION = DOCS / "explanation" / "resolution.md"
HEAD = ("data", "mask in use", "resolution", "FSC 0.5 to truth", "tightest mask", "FSC 0.5 to truth there")
WIDER_ANGSTROM = 12.0, 12.0
NO_WORSE = 0.01


def rows_of(data: Path, run: Path) -> List[List[str]]:
    """Two rows: in the given mask and in a wider one; an assertion on each."""
    truth, poses = Truth(data), read_poses(run / "final" / "particles.star")
    halves = [read_map(run / "final" / f"half_map_{half}.mrc") for half in (1, 2)]
    mean, given = 0.5 * (halves[0] + halves[1]), read_map(run / "final" / "mask.mrc")

    def to_truth(mask: np.ndarray) -> float:
        return truth.of_map(mean, poses, mask)["fsc_half_angstrom"]
    rows = []
    for name, mask in (("given", given), ("wider", dilate_soft(given, truth.pixel_size, *WIDER_ANGSTROM))):
        curves = five_curves(HalfMaps(*halves), mask, truth.pixel_size)
        ladder = mask_ladder(halves[0], halves[1], mask, curves)
        found = curves.resolutions()["corrected"], to_truth(mask), ladder.as_dict()["resolution_angstrom"], to_truth(
            ladder.mask)
        assert found[2] / found[3] > found[0] / found[1] - NO_WORSE, f"{run}: tightening runs ahead of the truth"
        rows.append([data.resolve().name if name == "given" else "", name, *(f"{d:.2f} Å" for d in found)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--run", type=Path, action="append", required=True)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = table(HEAD, [row for pair in zip(options.data, options.run) for row in rows_of(*pair)])
    print(text)
    if options.write:
        write_section("masks", text, RESOLUTION)


if __name__ == "__main__":
    main()
