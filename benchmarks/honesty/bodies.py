"""Several masks in one run beside runs of their own, and what moves with what beside what was planted.

    python -m benchmarks.honesty.bodies cost --data FOLDER --bodies AB --work FOLDER [--write]
    python -m benchmarks.honesty.bodies subtracted --data FOLDER [--data FOLDER …] --work FOLDER [--write]
    python -m benchmarks.honesty.bodies together --data FOLDER [--data FOLDER …] --work FOLDER [--write]

cost: CPU seconds, one thread; poses of each body beside the truth; whether results have the same bits. Data: a
simulated set with mask_X.mrc and true_X.star of each body, as examples/simulate.py writes it.
subtracted: poses, maps and resolutions of each body with and without subtraction of the others.
together: sets of --model two_hinges; all three bodies with the masks as simulated, and with masks that share nothing
but soft edges. Beside the correlations found: those of the true poses against the input poses, and the errors of the
poses that a prior of each body alone, and the joint one, would leave (the mean of the Gaussian posterior; no search).
Runs that are complete in --work are not made again, and then have no CPU seconds.
"""
from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import mrcfile
import numpy as np

from examples.evaluate import Poses, fsc, pose_errors, read_map, read_poses, resolution
from localrefine_plugin.engine.bodies.finished import open_body
from localrefine_plugin.engine.bodies.joint import about_mean, learned, seen_in_half
from localrefine_plugin.engine.io.run_folder import BodiesFolder, RunFolder, read_json, write_json
from localrefine_plugin.engine.model.pose import exp_map, log_map
from localrefine_plugin.engine.motion.motion_prior import expected, mean_motion
from localrefine_plugin.report.html_report import png
from localrefine_plugin.report.plots import new_figure

from ..measure import run_measured
from ..page import DOCS, IMAGES, table, write_section
from ..peers.relion import mask_centre

PAGE = DOCS / "how-to" / "refine-several-bodies.md"
RESULTS = ("half_map_1.mrc", "half_map_2.mrc", "map.mrc", "map_sharpened.mrc", "mask.mrc", "particles.star", "fsc.star",
           "mask_ladder.json", "pose_blur.json", "rest_control.json")
BODIES = "ABC"


def refined(data: Path, masks: Sequence[Path], output: Path, **settings: Any) -> Optional[float]:
    """CPU seconds of a run with these masks; None of one that is there."""
    if BodiesFolder(output).record.exists() or RunFolder(output).results_complete():
        return None
    command = [sys.executable, "-m", "localrefine_plugin.engine", "refine", "--output", str(output),
               "--particles", str(data / "particles.star"), "--half-map-1", str(data / "half1.mrc"),
               "--half-map-2", str(data / "half2.mrc"), "--device", "cpu", "--threads", "1"]
    for mask in masks:
        command += ["--mask", str(mask)]
    if settings:
        write_json(output.with_suffix(".json"), settings)
        command += ["--settings", str(output.with_suffix(".json"))]
    return run_measured(command, output.with_suffix(".log"), "0,1").cpu_seconds


def errors(data: Path, poses: Poses, body: str) -> Tuple[float, float]:
    """Median angle in degrees and distance of the body's centre in Å from the truth, its gauge taken out."""
    density = np.maximum(read_map(data / f"gt_{body}.mrc"), 0)
    axis = np.arange(len(density)) - len(density) // 2
    with mrcfile.open(str(data / f"gt_{body}.mrc"), header_only=True) as handle:
        pixel_size = float(handle.voxel_size.x)
    centroid = np.array([density.sum(axis=other) @ axis for other in ((0, 1), (0, 2), (1, 2))]) / density.sum()
    angle, distance, _ = pose_errors(poses, read_poses(data / f"true_{body}.star"), centroid * pixel_size)
    return float(np.median(angle)), float(np.median(distance))


# ---------------------------------------------------------------- one run beside runs of their own

def cost(data: Path, bodies: str, work: Path) -> str:
    masks = {body: data / f"mask_{body}.mrc" for body in bodies}
    alone = {body: refined(data, [mask], work / f"alone_{body}") for body, mask in masks.items()}
    both = refined(data, list(masks.values()), work / "together")
    apart = refined(data, list(masks.values()), work / "not_subtracted", subtract_bodies=False)
    rows = []
    for number, body in enumerate(bodies, 1):
        run, own = BodiesFolder(work / "not_subtracted").body(number), RunFolder(work / f"alone_{body}")
        same = all(run.final(name).read_bytes() == own.final(name).read_bytes() for name in RESULTS)
        stars = data / "particles.star", run.final("particles.star")
        found = [errors(data, read_poses(star), body) for star in stars]
        rows.append([body, seconds(alone[body]), *(f"{angle:.2f}°, {distance:.2f} Å" for angle, distance in found),
                     "yes" if same else "**no**"])
        assert same, f"body {body} has other results in a run of its own"
    rows.append(["all in one run, not subtracted, with the composite", seconds(apart), "", "", ""])
    rows.append(["all in one run, with the composite", seconds(both), "", "", ""])
    text = table(("body", "CPU s", "input poses", "refined", "same bits in one run, not subtracted"), rows)
    known = [value for value in alone.values() if value is not None]
    if both is not None and apart is not None and len(known) == len(bodies):
        text += (f"\n\nOne run takes {apart / np.mean(known):.2f} × the mean of the runs of one body, and "
                 f"{apart / sum(known):.2f} × all of them; with the other bodies subtracted "
                 f"{both / np.mean(known):.2f} × the mean.")
    return text


# ---------------------------------------------------------------- the other bodies subtracted, or not

def subtracted(data: Sequence[Path], work: Path) -> str:
    """Each body that a set has, with and without subtraction: poses, and its map beside the nearest of these truths:
    the body alone; with the others smeared by their motion against it, if the set has that; and, where the others were
    subtracted and are back at their mean place, or the set has no smeared ones, with the others where its poses are."""
    rows = []
    for one in data:
        maps = {body: read_map(one / f"gt_{body}.mrc") for body in BODIES if (one / f"gt_{body}.mrc").exists()}
        for what, switch in (("no", False), ("yes", True)):
            folder = BodiesFolder(work / f"{one.name}_{'' if switch else 'not_'}subtracted")
            refined(one, [one / f"mask_{body}.mrc" for body in maps], folder.path, subtract_bodies=switch)
            for run, body in zip(folder.bodies(), maps):
                angle, distance = errors(one, read_poses(run.final("particles.star")), body)
                found = to_truth(one, run, body, truths_of(one, body, maps, switch))
                to_report = read_json(run.report)["resolution_to_report_angstrom"]
                rows.append([one.name, body, what, f"{angle:.2f}°, {distance:.2f} Å",
                             "{:.2f} Å / {:.3f}".format(*found), f"{to_report:.2f} Å"])
    rows.sort(key=lambda row: row[:2])
    return table(("set", "body", "others subtracted", "poses", "FSC 0.5 to truth / mean", "to report"), rows)


def truths_of(data: Path, body: str, maps: Dict[str, np.ndarray], others_back: bool) -> List[np.ndarray]:
    smeared, truths = data / f"gt_in{body}.mrc", [maps[body]]
    if smeared.exists():
        truths.append(read_map(smeared))
    if others_back or not smeared.exists():
        truths.append(sum(maps.values()))
    return truths


def to_truth(data: Path, run: RunFolder, body: str, truths: Sequence[np.ndarray]) -> Tuple[float, float]:
    """Å at FSC 0.5 and the mean FSC of the final map, in the mask of the body, to the truth that it is nearest to."""
    with mrcfile.open(str(data / f"gt_{body}.mrc"), header_only=True) as handle:
        pixel_size = float(handle.voxel_size.x)
    centroid = mask_centre(truths[0]) * pixel_size
    gauge = pose_errors(read_poses(run.final("particles.star")), read_poses(data / f"true_{body}.star"), centroid)[2]
    volume, mask = read_map(run.final("map.mrc")), read_map(data / f"mask_{body}.mrc")
    curves = [fsc(volume, gauge.moved(truth, pixel_size), mask) for truth in truths]
    best = max(curves, key=lambda curve: float(curve[1:-1].mean()))
    return resolution(best, pixel_size, 0.5), float(best[1:-1].mean())


def seconds(value: Optional[float]) -> str:
    return "–" if value is None else f"{value:.1f}"


# ---------------------------------------------------------------- what moves with what

def apart(data: Path, work: Path) -> List[Path]:
    """Masks that share soft edges only: A without B and C, and these shared out where they meet."""
    masks = {body: read_map(data / f"mask_{body}.mrc") for body in BODIES}
    others = np.maximum(masks["B"] + masks["C"], 1)
    own = {"A": masks["A"] * (1 - masks["B"]) * (1 - masks["C"]), "B": masks["B"] / others, "C": masks["C"] / others}
    with mrcfile.open(str(data / "mask_A.mrc"), header_only=True) as handle:
        pixel_size = float(handle.voxel_size.x)
    paths = []
    for body, mask in own.items():
        paths.append(work / f"{data.name}_own_{body}.mrc")
        with mrcfile.new(str(paths[-1]), overwrite=True) as handle:
            handle.set_data(mask.astype(np.float32))
            handle.voxel_size = pixel_size
    return paths


def planted(data: Path, b: str, c: str) -> float:
    """The correlation of two bodies' true rotations against the input poses, mean of three axes."""
    back = np.swapaxes(read_poses(data / "particles.star").rotation, 1, 2)
    one, other = (log_map(back @ read_poses(data / f"true_{body}.star").rotation) for body in (b, c))
    return float(np.mean([np.corrcoef(one[:, k], other[:, k])[0, 1] for k in range(3)]))


def by_prior(data: Path, folder: BodiesFolder, body: int, joint: bool) -> Tuple[float, float]:
    """`errors` of a body's poses at the mean of the posterior under the prior of each body alone, or the joint one."""
    bodies = [open_body(run.path) for run in folder.bodies()]
    own, part = bodies[body], slice(6 * body, 6 * body + 6)
    count = len(own.particles)
    rotation, shift = np.zeros((count, 3, 3)), np.zeros((count, 2))
    for half in (1, 2):
        raw = seen_in_half(bodies, half)
        seen = about_mean(raw)
        step = expected(raw.information, raw.pull, raw.alone)
        covariance = learned(seen, seen.alone) if joint else seen.alone
        motion = (mean_motion(step, raw.weight, raw.alone)[0]
                  + expected(seen.information, seen.pull, covariance).mean)[:, part]
        row = own.poses[half].row
        given = own.particles.rotation[row]
        rotation[row] = given @ exp_map(motion[:, :3])
        moved = np.einsum("nij,nj->ni", given[:, :2], motion[:, 3:]) + given[:, :2] @ own.centre
        shift[row] = own.particles.shift_px[row] + moved - rotation[row][:, :2] @ own.centre
    return errors(data, Poses(rotation, shift * own.given.pixel_size), BODIES[body])


def together(data: Sequence[Path], work: Path) -> Tuple[str, bytes]:
    pairs, priors, matrices = [], [], {}
    for one in data:
        drawn = [one / f"mask_{body}.mrc" for body in BODIES]
        for name, masks in (("as simulated", drawn), ("apart", apart(one, work))):
            folder = BodiesFolder(work / f"{one.name}_{name.replace(' ', '_')}")
            refined(one, masks, folder.path)
            motion = read_json(folder.record)["motion"]
            told = {(pair["first"], pair["second"]): pair for pair in motion["pairs"]}
            for b, c in combinations(range(3), 2):
                pair = told[b + 1, c + 1]
                pairs.append([one.name, name, f"{BODIES[b]}, {BODIES[c]}", f"{100 * pair['shared']:.0f} %",
                              f"{planted(one, BODIES[b], BODIES[c]):.2f}",
                              f"{pair['correlation']:.2f} ± {pair['error']:.2f}"])
            for k, body in enumerate(BODIES):
                run = errors(one, read_poses(folder.body(k + 1).final("particles.star")), body)
                found = [run, by_prior(one, folder, k, False), by_prior(one, folder, k, True)]
                priors.append([one.name, name, body, *(f"{angle:.2f}°, {distance:.2f} Å" for angle, distance in found)])
            matrices[f"{one.name}, masks {name}"] = np.mean(motion["covariance"], axis=0)
    text = table(("set", "masks", "bodies", "shared", "planted", "found"), pairs) + "\n\n" + table(
        ("set", "masks", "body", "as refined", "prior of each body", "joint prior"), priors)
    return text, picture(matrices)


def picture(matrices: Dict[str, np.ndarray]) -> bytes:
    """The correlations of all rotations and displacements of the bodies."""
    figure = new_figure("", width=2.9 * len(matrices), height=3.2)
    labels = [f"{body} {what}" for body in BODIES for what in ("turns", "moves")]
    for axes, (name, covariance) in zip(np.atleast_1d(figure.subplots(1, len(matrices))), matrices.items()):
        width = np.sqrt(np.diag(covariance))
        image = axes.imshow(covariance / np.outer(width, width), cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_xticks(np.arange(len(labels)) * 3 + 1, labels, rotation=90, fontsize=7)
        axes.set_yticks(np.arange(len(labels)) * 3 + 1, labels, fontsize=7)
        for at in np.arange(1, len(labels)) * 3 - 0.5:
            axes.axhline(at, color="black", linewidth=0.4)
            axes.axvline(at, color="black", linewidth=0.4)
        axes.set_title(name, fontsize=8)
    figure.colorbar(image, ax=figure.axes, shrink=0.7, label="correlation")
    return png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "subtracted", "together"))
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--bodies", default="AB")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "cost":
        text = cost(options.data[0], options.bodies, options.work)
    elif options.what == "subtracted":
        text = subtracted(options.data, options.work)
    else:
        text, image = together(options.data, options.work)
        if options.write:
            (IMAGES / "bodies_together.png").write_bytes(image)
    print(text)
    if options.write:
        write_section(f"bodies {options.what}", text, PAGE)


if __name__ == "__main__":
    main()
