"""A composite of two bodies beside the truth and beside the single maps; and a composite of noise.

    python -m benchmarks.honesty.composite --data FOLDER --run RUN_A --run RUN_B --work FOLDER [--write]

Data: FOLDER, a simulated set with true_A.star, true_B.star and the masks of both bodies (examples/simulate.py or the
benchmark's make_dataset.py). The truth of a composite is gt_A and gt_B, each at the mean of its true poses against the
refined poses of the frame; that of a single map is gt_A + gt_B where its own poses have the body. It ends with two
assertions: no composite is worse than the single maps in their masks, and half-maps of noise do not agree. --write puts
the table and a picture into the docs.
"""
from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import mrcfile
import numpy as np

from examples.evaluate import Gauge, fsc, pose_errors, read_map, read_poses, resolution
from localrefine_plugin.engine.bodies.compose import compose
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.report.html_report import png
from localrefine_plugin.report.map_plots import outline, slice_of
from localrefine_plugin.report.plots import new_figure

from ..page import DOCS, IMAGES, table, write_section

PAGE = DOCS / "how-to" / "compose-bodies.md"
HEAD = ("map", "in the mask of A: FSC 0.5 to truth / mean", "in the mask of B")
NO_WORSE = 0.003
NAMES = ("A", "B")


class Scene:
    """The truth of a data set, and the frames of two runs."""

    def __init__(self, data: Path, runs: Sequence[Path]):
        self.body = {name: read_map(data / f"gt_{name}.mrc") for name in NAMES}
        self.mask = {name: read_map(data / f"mask_{name}.mrc") for name in NAMES}
        with mrcfile.open(str(data / "gt_A.mrc"), header_only=True) as handle:
            self.pixel_size = float(handle.voxel_size.x)
        self.gauge = {(frame, name): self.gauge_of(data, name, run) for frame, run in zip(NAMES, runs)
                      for name in NAMES}
        self.given = read_map(data / "consensus.mrc")

    def gauge_of(self, data: Path, name: str, run: Path) -> Gauge:
        """Where the poses of a run have a body on average."""
        density = np.maximum(self.body[name], 0)
        axis = np.arange(len(density)) - len(density) // 2
        centroid = np.array([density.sum(axis=other) @ axis for other in ((0, 1), (0, 2), (1, 2))]) / density.sum()
        return pose_errors(read_poses(run / "final" / "particles.star"), read_poses(data / f"true_{name}.star"),
                           centroid * self.pixel_size)[2]

    def truth_of(self, frame: str, single: bool) -> np.ndarray:
        """The particle in the frame of a run, or ("") of the truth; of a ``single`` map all of it where its body is."""
        if not frame:
            return self.body["A"] + self.body["B"]
        found: np.ndarray = sum(self.gauge[frame, frame if single else name].moved(self.body[name], self.pixel_size)
                                for name in NAMES)
        return found

    def to_truth(self, volume: np.ndarray, frame: str, within: str, single: bool = False) -> Tuple[float, float]:
        """Å at FSC 0.5 and the mean FSC to the particle."""
        truth = self.truth_of(frame, single)
        curve = fsc(volume, truth, self.mask[within])
        return resolution(curve, self.pixel_size, 0.5), float(curve[1:-1].mean())


def rows_of(scene: Scene, runs: Sequence[Path], work: Path) -> List[List[str]]:
    single: Dict[str, float] = {}
    rows = [row("consensus", scene, scene.given, "")]
    for name, run in zip(NAMES, runs):
        volume = read_map(run / "final" / "map.mrc")
        single[name] = scene.to_truth(volume, name, name, single=True)[1]
        rows.append(row(f"run of body {name}", scene, volume, name, single=True))
    for number, frame in enumerate(NAMES, 1):
        compose(list(runs), work / f"frame_{frame}", frame=number)
        volume = read_map(work / f"frame_{frame}" / "map.mrc")
        rows.append(row(f"composite in the frame of {frame}", scene, volume, frame))
        for name in NAMES:
            found = scene.to_truth(volume, frame, name)[1]
            assert found > single[name] - NO_WORSE, f"composite in the frame of {frame}: {found} in the mask of {name}"
    return rows


def row(name: str, scene: Scene, volume: np.ndarray, frame: str, single: bool = False) -> List[str]:
    return [name, *("{:.2f} Å / {:.4f}".format(*scene.to_truth(volume, frame, within, single)) for within in NAMES)]


def noise_row(runs: Sequence[Path], work: Path) -> str:
    """The FSC of a composite whose half-maps, those of the runs and of the input, are white noise."""
    rng, copies = np.random.default_rng(1), []
    for name, run in zip(NAMES, runs):
        copy = RunFolder(work / f"noise_{name}")
        shutil.copytree(run, copy.path)
        given = read_json(copy.input)
        for half in (1, 2):
            given[f"half_map_{half}"] = str(copy.path / f"noise_{half}.mrc")
            shutil.copy(copy.final("map.mrc"), given[f"half_map_{half}"])
            for path in (copy.final(f"half_map_{half}.mrc"), given[f"half_map_{half}"]):
                with mrcfile.open(str(path), mode="r+") as handle:
                    handle.set_data(rng.standard_normal(handle.data.shape).astype(np.float32))
        write_json(copy.input, given)
        copies.append(copy.path)
    compose(copies, work / "of_noise")
    one, two = (read_map(work / "of_noise" / f"half_map_{half}.mrc") for half in (1, 2))
    found = []
    for name in ("body_1_mask", "body_2_mask", "mask"):
        curve = fsc(one, two, read_map(work / "of_noise" / f"{name}.mrc"))[2:-1]
        found.append(f"{curve.mean():+.4f} ± {curve.std() / np.sqrt(len(curve)):.4f}")
        assert abs(curve.mean()) < 4 * curve.std() / np.sqrt(len(curve)), f"noise agrees in {name}: {found[-1]}"
    return "Mean FSC of a composite of noise in the mask of A, of B, and of the whole: " + ", ".join(found) + "."


def picture(scene: Scene, runs: Sequence[Path], work: Path) -> bytes:
    """Slices through the centre of the box: consensus, both runs, and the composite in the frame of A."""
    maps = [("Consensus", scene.given), *((f"Run of body {name}", read_map(run / "final" / "map.mrc"))
                                          for name, run in zip(NAMES, runs)),
            ("Composite", read_map(work / "frame_A" / "map.mrc"))]
    masks = [[], ["A"], ["B"], ["A", "B"]]
    figure = new_figure("", width=9.6, height=2.7)
    centre = [len(scene.given) // 2] * 3
    for axes, (name, volume), drawn in zip(figure.subplots(1, 4), maps, masks):
        low, high = np.percentile(volume, [1, 99.8])
        axes.imshow(slice_of(volume, 0, centre), cmap="gray", origin="lower", vmin=low, vmax=high)
        for mask in drawn:
            outline(axes, slice_of(scene.mask[mask], 0, centre))
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    return png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, action="append", required=True)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, or one to be made")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    scene = Scene(options.data, options.run)
    text = table(HEAD, rows_of(scene, options.run, options.work)) + "\n\n" + noise_row(options.run, options.work)
    print(text)
    if options.write:
        write_section("composite", text, PAGE)
        (IMAGES / "composite.png").write_bytes(picture(scene, options.run, options.work))


if __name__ == "__main__":
    main()
