"""Two bodies in one run beside RELION's multi-body refinement on the same cores.

    python -m benchmarks.peers.multibody --data FOLDER --work FOLDER [--diameter 255] [--go-on] [--write]

RELION: a refinement of the whole particle from the input poses, then multi-body refinement from where it ended, with
priors near the true motion. Ours: one run with both masks from the input poses, defaults. Both are compared with the
truth of both bodies: poses, and maps in the mask of each body. The truth of a map is the body alone or with the other
body where its own poses have it, whichever fits the map better (RELION subtracts the other body). Data: a set with
true_X.star, mask_X.mrc and gt_X.mrc of bodies A and B. Complete parts in --work are not run again; --go-on continues
RELION where it was ended. It ends with assertions: ours is better on every column, at 1/15 of the CPU seconds or less.
"""
from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import mrcfile
import numpy as np

from examples.evaluate import fsc, pose_errors, read_map, read_poses, resolution
from examples.imaging import rotation_from_euler
from examples.simulate import Poses
from localrefine_plugin.engine.io.run_folder import BodiesFolder, read_json

from ..measure import Cost, chained, commit, joined, machine, run_measured
from ..page import ROOT, table, write_section
from . import relion
from .versus_relion import once

BODIES = ("A", "B")
SIGMA_DEG, SIGMA_ANGSTROM = 5.0, 4.0  # RELION's priors; B turns by 5° and moves by 2.5 Å against the input poses
COLUMNS = ["", "CPU s", "iterations", "wall s", *(f"{what} of {body}" for body in BODIES for what in (
    "angle", "centroid", "FSC 0.5 to truth", "mean FSC to truth"))]


class Body:
    """Truth of one body."""

    def __init__(self, data: Path, name: str):
        self.poses, self.mask = read_poses(data / f"true_{name}.star"), read_map(data / f"mask_{name}.mrc")
        own = read_map(data / f"gt_{name}.mrc")
        self.truths = own, sum(read_map(data / f"gt_{other}.mrc") for other in BODIES)
        with mrcfile.open(str(data / f"gt_{name}.mrc"), header_only=True) as handle:
            self.pixel_size = float(handle.voxel_size.x)
        self.centroid = relion.mask_centre(own) * self.pixel_size

    def figures(self, poses: Poses, volume: Optional[np.ndarray]) -> Tuple[float, ...]:
        """Angle (°), centroid (Å), FSC 0.5 (Å) and mean FSC to the truth."""
        angle, distance, gauge = pose_errors(poses, self.poses, self.centroid)
        found = float(np.median(angle)), float(np.median(distance))
        curves = [fsc(volume, gauge.moved(truth, self.pixel_size), self.mask) for truth in self.truths]
        best = max(curves, key=lambda curve: float(curve[1:-1].mean()))
        return (*found, resolution(best, self.pixel_size, 0.5), float(best[1:-1].mean()))


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    cost: Optional[Cost]
    iterations: str
    figures: Tuple[float, ...]

    def cells(self) -> List[str]:
        text = [f"{value:{form}}" for value, form in zip(self.figures, (".2f", ".2f", ".2f", ".3f") * 2)]
        units = [value + unit for value, unit in zip(text, ("°", " Å", " Å", "") * 2)]
        cost = ["–", "–", "–"] if self.cost is None else [f"{self.cost.cpu_seconds:.0f}", self.iterations,
                                                          f"{self.cost.wall_seconds:.0f}"]
        return [self.name, *cost, *units]


# ---------------------------------------------------------------- ours

def ours(data: Path, work: Path, truth: Dict[str, Body], cores: str) -> Row:
    command = [sys.executable, "-m", "localrefine_plugin.engine", "refine", "--particles", str(data / "particles.star"),
               "--half-map-1", str(data / "half1.mrc"), "--half-map-2", str(data / "half2.mrc"), "--device", "cpu",
               *(word for name in BODIES for word in ("--mask", str(data / f"mask_{name}.mrc"))),
               "--output", str(work / "ours"), "--overwrite"]
    cost = once(work / "ours.json", lambda: run_measured(command, work / "ours.log", cores, ROOT))
    runs = BodiesFolder(work / "ours").bodies()
    figures = [truth[name].figures(read_poses(run.final("particles.star")), read_map(run.final("map.mrc")))
               for name, run in zip(BODIES, runs)]
    iterations = " and ".join(str(run.iterations_done()) for run in runs)
    return Row("ours, both masks in one run", cost, iterations, (*figures[0], *figures[1]))


# ---------------------------------------------------------------- RELION

def write_bodies(path: Path) -> None:
    """The table of the bodies, each turning about the line to the other."""
    labels = ("BodyMaskName", "BodyRotateRelativeTo", "BodySigmaAngles", "BodySigmaOffsetAngst")
    lines = ["data_", "", "loop_", *(f"_rln{label} #{i}" for i, label in enumerate(labels, 1))]
    lines += [f"mask_{name}.mrc {len(BODIES) - k} {SIGMA_DEG:g} {SIGMA_ANGSTROM:g}" for k, name in enumerate(BODIES)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def multibody_command(consensus: Path, output: Path, pixel_size: float) -> List[str]:
    """Options as RELION's window gives them; --continue starts at iteration 1 of the bodies.

    Version 3.1.3 multiplies range and step of the offsets by the pixel size twice here (_rlnOffsetStep of
    run_it000_sampling.star tells): they are divided by it, so that they are 2 and 1.5 px, as in the window.
    """
    offset = [f"{pixels / pixel_size:.4f}" for pixels in (2.0, 1.5)]
    stem = last_stem(consensus)
    write_bodies(output / "bodies.star")
    command = relion.refine_command(relion.Inputs("", "", "", 0), output)
    return command[:command.index("--auto_refine")] + [
        "--continue", f"{stem}_optimiser.star", "--solvent_correct_fsc", "--multibody_masks",
        str(output / "bodies.star"), "--reconstruct_subtracted_bodies", "--oversampling", "1", "--healpix_order", "4",
        "--auto_local_healpix_order", "4", "--offset_range", offset[0], "--offset_step", offset[1],
        "--dont_combine_weights_via_disc", "--pool", "30", "--pad", "2", "--preread_images", "--j", "1"]


def go_on_command(output: Path) -> List[str]:
    command = relion.continue_command(relion.Inputs("", "", "", 0), output)
    return [*command, "--reconstruct_subtracted_bodies"]


def last_stem(output: Path) -> str:
    """The last iteration's files, without what they end in."""
    return str(relion.iterations(output)[-1][1]).replace("_data.star", "")


def legs_of(name: str, commands: Tuple[List[str], Optional[List[str]]], data: Path, options: argparse.Namespace,
            minutes: float) -> List[Cost]:
    """A job in legs: begun once, and gone on with (the second command) if wished for; each ended after ``minutes``."""
    work = options.work.resolve()
    legs = [Cost(**read_json(path)) for path in sorted(work.glob(f"{name}_leg*.json"))]
    start, again = commands
    command = again if legs else start
    if command is not None:
        number = len(legs) + 1
        legs.append(once(work / f"{name}_leg{number}.json", lambda: run_measured(
            command, work / f"{name}_{number}.log", options.cores, data, 60 * minutes)))
    return legs


def turned_towards_z(axis: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) RELION takes to bring an axis (3,), which is not x, to z."""
    x, y, z = axis / np.linalg.norm(axis)
    length = np.hypot(y, z)
    return np.array([[length, -x * y / length, -x * z / length], [0, z / length, -y / length], [x, y, z]])


def poses_of_bodies(star: Path, masks: Sequence[np.ndarray], pixel_size: float) -> List[Poses]:
    """Poses of two bodies from a table of RELION's multi-body refinement, in the frame of the whole images.

    It holds the pose of the particle, and of each body a rotation against it, about the line to the other body turned
    to z and taken from (0°, 90°, 0°), and a displacement of the body's centre, which is a whole pixel:
    A_b = A Oᵀ P A_residual O with P = R(0°, −90°, 0°), x ↦ A_b (x − c) + A c − o − o_b.
    """
    from emtable import Table
    whole = relion.poses_of(star)
    order = np.argsort([int(text.split("@")[0]) for text in Table(
        fileName=str(star), tableName="particles").getColumnValues("rlnImageName")])
    centres = [np.trunc(relion.mask_centre(mask) + np.copysign(0.5, relion.mask_centre(mask))) for mask in masks]
    found, back = [], rotation_from_euler(np.array([[0.0, -90.0, 0.0]]))[0]
    for k, centre in enumerate(centres):
        images = Table(fileName=str(star), tableName=f"images_body_{k + 1}")
        residual = rotation_from_euler(columns(images, [f"rlnAngle{a}" for a in ("Rot", "Tilt", "Psi")])[order])
        towards = turned_towards_z(centre - centres[1 - k])
        rotation = whole.rotation @ towards.T @ back @ residual @ towards
        moved = columns(images, ["rlnOriginXAngst", "rlnOriginYAngst"])[order]
        shift = ((whole.rotation - rotation) @ centre)[:, :2] * pixel_size
        found.append(Poses(rotation, whole.position + shift - moved))
    return found


def columns(table_of_star: Any, labels: Sequence[str]) -> np.ndarray:
    """(n, len(labels)) numbers."""
    return np.stack([np.array(table_of_star.getColumnValues(label), float) for label in labels], axis=1)


def done_with_bodies(output: Path) -> bool:
    """Whether the multi-body refinement has converged."""
    return (output / "run_body001.mrc").exists()


def body_map(output: Path, number: int) -> np.ndarray:
    """The unfiltered map of a body, final or of the last iteration that made one: RELION ends with a body earlier."""
    stems = [str(output / "run")] if done_with_bodies(output) else [
        str(star).replace("_data.star", "") for _, star in reversed(relion.iterations(output))]
    names = [[Path(f"{stem}_half{half}_body{number:03d}_unfil.mrc") for half in (1, 2)] for stem in stems]
    first, second = next(pair for pair in names if all(path.exists() for path in pair))
    volume: np.ndarray = (read_map(first) + read_map(second)) / 2
    return volume


def peers(data: Path, work: Path, truth: Dict[str, Body], options: argparse.Namespace) -> List[Row]:
    whole_mask = work / "mask_whole.mrc"
    relion.write_map(whole_mask, np.max([truth[name].mask for name in BODIES], axis=0), truth["A"].pixel_size)
    inputs = relion.Inputs("particles.star", "consensus.mrc", str(whole_mask), options.diameter)
    consensus, output = work / "consensus", work / "multibody"
    for folder in (consensus, output):
        folder.mkdir(parents=True, exist_ok=True)
    first = legs_of("consensus", (relion.refine_command(inputs, consensus), None), data, options,
                    options.whole_minutes)
    before = chained(first, relion.moments(consensus))
    masks, pixel_size = [truth[name].mask for name in BODIES], truth["A"].pixel_size
    again = None
    if options.go_on and relion.iterations(output) and not done_with_bodies(output):
        again = go_on_command(output)
    legs = legs_of("multibody", (multibody_command(consensus, output, pixel_size), again), data, options,
                   options.limit_minutes)
    moments = [star.stat().st_mtime for _, star in relion.iterations(output)]
    cost = chained(legs, moments)
    whole = relion.result(consensus)
    rows = [Row("RELION 3.1.3, whole particle" + ("" if whole.converged else ", not converged"), before,
                str(len(whole.trajectory)), tuple(v for name in BODIES for v in truth[name].figures(
                    whole.poses, whole.map)))]
    done = done_with_bodies(output)
    star = output / "run_data.star" if done else relion.iterations(output)[-1][1]
    poses = poses_of_bodies(star, masks, pixel_size)
    figures = [truth[name].figures(poses[k], body_map(output, k + 1)) for k, name in enumerate(BODIES)]
    note = "" if done else ", not converged"
    rows.append(Row("RELION 3.1.3, then multi-body" + note, joined([before, cost]),
                    f"{len(whole.trajectory)} + {relion.iterations(output)[-1][0]}", (*figures[0], *figures[1])))
    return rows


# ---------------------------------------------------------------- the table

def input_row(data: Path, truth: Dict[str, Body]) -> Row:
    poses, volume = read_poses(data / "particles.star"), read_map(data / "consensus.mrc")
    return Row("input", None, "", tuple(v for name in BODIES for v in truth[name].figures(poses, volume)))


def check(mine: Row, theirs: Sequence[Row]) -> None:
    assert mine.cost is not None
    for row in theirs:
        for k, (own, other) in enumerate(zip(mine.figures, row.figures)):
            assert own > other if k % 4 == 3 else own < other, (row.name, k, own, other)
    last = theirs[-1].cost
    assert last is not None and mine.cost.cpu_seconds < last.cpu_seconds / 15, (mine.cost.cpu_seconds, last.cpu_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cores", default="0,1", help="as taskset takes them")
    parser.add_argument("--diameter", type=float, default=210, help="of the particle, Å, for RELION")
    parser.add_argument("--whole-minutes", type=float, default=20, help="for RELION's refinement of the whole particle")
    parser.add_argument("--limit-minutes", type=float, default=60, help="for its multi-body refinement")
    parser.add_argument("--go-on", action="store_true", help="continue RELION where it was ended at the limit")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    data, work = options.data.resolve(), options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    truth = {name: Body(data, name) for name in BODIES}
    mine = ours(data, work, truth, options.cores)
    theirs = peers(data, work, truth, options)
    text = table(COLUMNS, [row.cells() for row in (input_row(data, truth), mine, *theirs)])
    print(text)
    if options.write:
        command = (f"python -m benchmarks.peers.multibody --data {options.data.name} --work WORK --diameter "
                   f"{options.diameter:g} --whole-minutes {options.whole_minutes:g} --write")
        write_section("multibody", f"{text}\n\nMachine: {machine()}. Commit {commit()}. {relion.version()}: "
                      f"{relion.LACKS}.\n\n    {command}")
    check(mine, theirs)


if __name__ == "__main__":
    main()
