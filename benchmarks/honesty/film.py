"""The amplitudes of a film beside the motion that was planted, and its frames beside the truth at their angle.

    python -m benchmarks.honesty.film --data FOLDER --run RUN_B [--rest RUN_A] [--write]

FOLDER is a simulated set with true_A.star and true_B.star (examples/simulate.py or the benchmark's make_dataset.py),
RUN_B a finished run of body B in mask_B.mrc with its film, RUN_A one of body A. The planted motion is that of the true
poses of B against what the film's motion is against: the true poses of A, or the input poses. The truth at a frame is
gt_A + gt_B, the latter turned and displaced as the frame says, by splines of scipy.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import List, Optional

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from examples.evaluate import fsc, read_map, read_poses, resolution
from examples.simulate import Poses
from localrefine_plugin.engine.bodies.axes import places_along, principal_axes_of, size_of_motion
from localrefine_plugin.engine.bodies.film import film
from localrefine_plugin.engine.bodies.finished import Body, open_body
from localrefine_plugin.engine.model.pose import log_map, project
from localrefine_plugin.engine.motion.motion_prior import Evidence, examine, isotropic_covariance, learn
from localrefine_plugin.engine.records.film import Film, FilmAxis

from ..page import DOCS, table, write_section

PAGE = DOCS / "how-to" / "watch-the-motion.md"
HEAD = ("motion against", "axis", "s.d., film", "s.d., planted", "5th to 95th percentile, film", "planted",
        "FSC 0.5 to the truth at both ends")
KNOWN = np.array([1e3] * 3 + [1e2] * 2)  # 1/rad and 1/px: so well are true poses known
WIDE = isotropic_covariance(7.0, 1.5)


def planted(body: Body, data: Path, rest: bool) -> np.ndarray:
    """True motions (n, 6) about their mean, in rad and px; what no image shows, as places_along has it."""
    pixel_size, centre = body.given.pixel_size, body.centre
    b, a = read_poses(data / "true_B.star"), read_poses(data / "true_A.star")
    start = a if rest else Poses(body.particles.rotation, body.particles.shift_px * pixel_size)
    w = log_map(np.swapaxes(start.rotation, 1, 2) @ b.rotation)
    u = (b.position - start.position) / pixel_size + project(b.rotation - start.rotation, centre)
    pull = np.concatenate([w, u], axis=1) * KNOWN ** 2
    evidence = Evidence(start.rotation, np.tile(np.diag(KNOWN ** 2), (len(w), 1, 1)), pull, np.ones(len(w)))
    motion = examine(evidence, learn(evidence, WIDE, WIDE), WIDE)
    axes = principal_axes_of(motion, size_of_motion(body.map("mask.mrc"), centre))
    places = places_along(axes, evidence, motion.covariance)
    found: np.ndarray = places.place @ axes.axes
    return found


def rows_of(data: Path, run: Path, rest: Optional[Path]) -> List[List[str]]:
    body, made = open_body(run), film(str(run), None if rest is None else str(rest))
    truth = planted(body, data, rest is not None)
    size = np.linalg.cholesky(size_of_motion(body.map("mask.mrc"), body.centre))
    rows = []
    for axis in made.axes[1:]:
        along = direction(axis, made) @ size
        along /= np.linalg.norm(along)
        place = truth @ size @ along * made.pixel_size
        low, high = np.percentile(place, (5, 95))
        ends = axis.displacement_range_angstrom
        against = "input poses" if rest is None else "body A"
        rows.append([against if axis is made.axes[1] else "", axis.name.replace("_", " "),
                     f"{axis.displacement_sd_angstrom:.2f} ± {axis.displacement_sd_angstrom_error:.2f} Å",
                     f"{place.std():.2f} Å", f"{ends[0]:+.1f} to {ends[1]:+.1f} Å", f"{low:+.1f} to {high:+.1f} Å",
                     " and ".join(f"{to_truth(data, run, made, axis, i):.2f} Å" for i in (0, -1))])
    return rows


def direction(axis: FilmAxis, made: Film) -> np.ndarray:
    """(6,) in rad and px, from the first frame to the last."""
    unit = np.array([np.deg2rad(1)] * 3 + [1 / made.pixel_size] * 3)
    return (np.array(axis.motions[-1]) - np.array(axis.motions[0])) * unit


def to_truth(data: Path, run: Path, made: Film, axis: FilmAxis, frame: int) -> float:
    """Å at FSC 0.5 of a frame to the particle with B where the frame has it, in B's mask moved there."""
    x = np.array(axis.motions[frame])
    turn = Rotation.from_rotvec(x[:3], degrees=True).as_matrix().T[::-1, ::-1]
    centre = np.array(made.centre_px)[::-1]
    offset = centre - turn @ (centre + x[:2:-1] / made.pixel_size)
    body_a, body_b, mask = (read_map(data / f"{name}.mrc") for name in ("gt_A", "gt_B", "mask_B"))
    moved = ndimage.affine_transform(body_b, turn, offset, order=5)
    where = np.clip(ndimage.affine_transform(mask, turn, offset, order=1), 0, 1)
    volume = read_map(run / "final" / "film" / axis.frames[frame])
    return resolution(fsc(volume, body_a + moved, where), made.pixel_size, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--rest", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = rows_of(options.data, options.run, None)
    if options.rest is not None:
        rows += rows_of(options.data, options.run, options.rest)
    text = table(HEAD, rows)
    print(text)
    if options.write:
        write_section("film", text, PAGE)


if __name__ == "__main__":
    main()
