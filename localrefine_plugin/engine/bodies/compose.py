"""The verb compose: one map, with half-maps, of several bodies and the consensus, in the frame of one of them.

Each run has its own frame: its map is where its poses put it, a little turned and moved from the input's. The poses say
how: body k is placed at the mean of its particles' motion against the poses of the frame (motion/motion_prior.py: the
generalised least squares of what all images say, junk apart). Nothing is fitted to density: two maps of different blur
fit best where their blur does. The placement, six numbers from all particles, is the same for both half-maps, as a mask
is; no voxel of one half comes into the other.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..align.static_part import outline_of
from ..io.mrc import write_map
from ..io.run_folder import PathLike
from ..io.run_store import load_iteration, save_record
from ..kernels.host import worker_count
from ..maps.fsc import (
    FscCurves,
    first_below,
    five_curves,
    masked_curves,
    random_phases,
    resolution_at,
    write_fsc,
)
from ..maps.half_maps import HalfMaps, region_of
from ..maps.sharpen import sharpen
from ..model.pose import exp_map
from ..prepare.arguments import check_output
from ..progress import say
from ..records.composite import Composite, PlacedBody
from ..records.errors import InputError
from ..records.iteration import FSC_THRESHOLD
from .axes import size_of_motion
from .blend import Weights, blended, overlap_share, weights_of
from .finished import Body, matching_rows, open_body
from .relative import mean_motion_of
from .rigid import RigidPart
from .scene import half_maps_of_rest

RECORD = "composite.json"
SEED = 1  # of the random phases of the FSC
RANDOMISE_BELOW = 0.8
SAME_POSE = 1e-6
DOUBTFUL = 0.25  # of the resolution: a placement known no better is told of
MUCH_REST = 0.05


@dataclass(frozen=True)
class Placement:
    """A rigid motion (6,), rad and px of a body's centre; its standard error in px, root mean square over the mask; and
    whether the body is the frame itself."""

    motion: np.ndarray
    error_px: float = 0.0
    is_frame: bool = False


def compose(runs: Sequence[PathLike], output: PathLike, frame: int = 1, threads: int = 0) -> Composite:
    """Write the composite of finished runs of the same particles to a new folder.

    Parameters
    ----------
    frame : number of the run (from 1) whose frame it is; 0 for the input poses of the first run.

    Raises InputError where a run is not finished or given twice, or the runs have other particles, half-sets or boxes.
    """
    folder, workers = Path(output), worker_count(threads)
    check_output(folder, "new", {})
    bodies = opened(runs, frame)
    reference = bodies[frame - 1] if frame else None
    placements = [placed(body, reference) for body in bodies]
    rest_motion = motion_of_rest(reference)
    masks = [np.clip(part_of(body, np.ones_like(body.map("mask.mrc")), placement), 0, 1)
             for body, placement in zip(bodies, placements)]
    parts = [HalfMaps(part_of(body, body.map("half_map_1.mrc"), placement),
                      part_of(body, body.map("half_map_2.mrc"), placement), workers)
             for body, placement in zip(bodies, placements)]
    weights = weights_of(masks, parts)
    source = reference or bodies[0]
    rest, given = half_maps_of_rest(source, None), source.given
    resolution_px = load_iteration(source.run, 0).resolution_angstrom["corrected"] / given.pixel_size
    first, second = (blended([part.maps[half] for part in parts], moved_whole(rest[half], rest_motion, resolution_px),
                             weights, workers) for half in (0, 1))
    halves = HalfMaps(first, second, workers)
    folder.mkdir(parents=True, exist_ok=True)
    mask = mask_of(halves, weights, given.pixel_size)
    curves = write_maps(folder, halves, mask, given.pixel_size)
    told = [described(folder, body, placement, weights, halves, k) for k, (body, placement) in enumerate(
        zip(bodies, placements))]
    return write_record(folder, source, reference, rest_motion, curves, told, rest_share(mask, weights))


def opened(runs: Sequence[PathLike], frame: int) -> List[Body]:
    """The bodies of runs that can be put together; the runs are compared with the one of the frame."""
    if not 0 <= frame <= len(runs):
        raise InputError(f"{frame} is not 0 to {len(runs)}", "--frame", "give the number of a run, or 0 for the input")
    paths = [Path(run).resolve() for run in runs]
    twice = next((run for run, path in zip(runs, paths) if paths.count(path) > 1), None)
    if twice is not None:
        raise InputError("is given twice", f"run {twice}", "give each run once")
    bodies = [open_body(run) for run in runs]
    first = bodies[max(frame - 1, 0)]
    for body in bodies:
        if body is not first:
            rows = matching_rows(first, body)
            if frame == 0:
                check_input_poses(first, body, rows)
    return bodies


def check_input_poses(first: Body, body: Body, rows: np.ndarray) -> None:
    """InputError unless both runs began from the same poses, which are then one frame."""
    used = rows >= 0
    same = all(np.allclose(getattr(first.particles, name)[used], getattr(body.particles, name)[rows[used]],
                           atol=SAME_POSE) for name in ("rotation", "shift_px"))
    if not same:
        raise InputError(f"has other input poses than {first}, so that they have no input frame in common", str(body),
                         "choose the frame of one of the runs (--frame 1)")


# ---------------------------------------------------------------- where everything is

def placed(body: Body, frame: Optional[Body]) -> Placement:
    """Where a body is in a frame: of another body, of itself, or, without one, of the input poses."""
    if body is frame:
        return Placement(np.zeros(6), is_frame=True)
    motion = mean_motion_of(body, frame)
    size = size_of_motion(body.map("mask.mrc"), body.centre)
    return Placement(motion.mean, float(np.sqrt(np.trace(size @ motion.mean_error))))


def motion_of_rest(frame: Optional[Body]) -> np.ndarray:
    """(6,) of the box's centre by which the input half-maps come into a frame: the inverse of where the body is in the
    frame of its input.

    v → E (v − c) + c + d  has the inverse  v → Eᵀ (v − c − d) + c,  and that takes the centre of the box, 0, to
    c − Eᵀ (c + d).
    """
    if frame is None:
        return np.zeros(6)
    there = placed(frame, None).motion
    back = exp_map(-there[:3])
    return np.concatenate([-there[:3], frame.centre - back @ (frame.centre + there[3:])])


def part_of(body: Body, volume: np.ndarray, placement: Placement) -> np.ndarray:
    """volume · mask of a body where it was placed (N, N, N); in its own frame nothing is interpolated."""
    if placement.is_frame:
        return volume * body.map("mask.mrc")
    return RigidPart(volume, body.map("mask.mrc"), body.centre).moved(placement.motion[:3], placement.motion[3:])


def moved_whole(volume: np.ndarray, motion: np.ndarray, resolution_px: float) -> np.ndarray:
    """A whole map after a motion (6,), rad and px, of the centre of the box."""
    if not motion.any():
        return volume
    return RigidPart(volume, np.ones_like(volume), np.zeros(3), resolution_px).moved(motion[:3], motion[3:])


# ---------------------------------------------------------------- what is written

def mask_of(halves: HalfMaps, weights: Weights, pixel_size: float) -> np.ndarray:
    """The mask (N, N, N) of the composite: that of the bodies, and of what a low-passed map shows beyond."""
    resolution = resolution_at(halves.unmasked, FSC_THRESHOLD, halves.box_size, pixel_size)
    outline = outline_of(0.5 * (halves.maps[0] + halves.maps[1]), pixel_size, resolution, halves.workers)
    return np.asarray(np.maximum(outline, weights.covered), np.float32)


def rest_share(mask: np.ndarray, weights: Weights) -> float:
    """The share of the particle that no mask of a body covers."""
    return float(np.sum(mask * (1 - weights.covered), dtype=np.float64) / np.sum(mask, dtype=np.float64))


def write_maps(folder: Path, halves: HalfMaps, mask: np.ndarray, pixel_size: float) -> FscCurves:
    """Half-maps, their mean, the sharpened map, the mask and fsc.star."""
    curves = five_curves(halves, mask, pixel_size, SEED, RANDOMISE_BELOW)
    mean = 0.5 * (halves.maps[0] + halves.maps[1])
    sharpened, _ = sharpen(mean, pixel_size, curves.corrected, curves.resolutions()["corrected"],
                           workers=halves.workers)
    for name, volume in (("half_map_1", halves.maps[0]), ("half_map_2", halves.maps[1]), ("map", mean),
                         ("map_sharpened", sharpened), ("mask", mask)):
        write_map(folder / f"{name}.mrc", volume, pixel_size)
    write_fsc(folder / "fsc.star", curves)
    return curves


def described(folder: Path, body: Body, placement: Placement, weights: Weights, halves: HalfMaps, k: int) -> PlacedBody:
    """Body k in the composite; writes its mask."""
    pixel_size, mask, name = body.given.pixel_size, weights.masks[k], f"body_{k + 1}_mask.mrc"
    write_map(folder / name, mask, pixel_size)
    start = first_below(halves.unmasked, RANDOMISE_BELOW)
    corrected = masked_curves(halves.under(mask), mask, random_phases(halves, start, region_of(mask), SEED))[2]
    return PlacedBody(
        str(body.run.path), placement.is_frame, in_units(placement.motion, pixel_size),
        placement.error_px * pixel_size, tuple(float(v) for v in body.centre + body.given.box_size // 2), name,
        resolution_at(corrected, FSC_THRESHOLD, halves.box_size, pixel_size), body.curves.resolutions()["corrected"],
        overlap_share(weights.overlap, mask))


def in_units(motion: np.ndarray, pixel_size: float) -> Tuple[float, ...]:
    """(6,) in degrees and Å."""
    return tuple(float(v) for v in motion * np.array([np.rad2deg(1)] * 3 + [pixel_size] * 3))


def write_record(folder: Path, source: Body, frame: Optional[Body], rest_motion: np.ndarray, curves: FscCurves,
                 told: Sequence[PlacedBody], share: float) -> Composite:
    given = source.given
    files: Dict[str, int] = {path.name: path.stat().st_size for path in sorted(folder.glob("*.mrc"))}
    files["fsc.star"] = (folder / "fsc.star").stat().st_size
    name = "" if frame is None else str(frame.run.path)
    made = Composite(name, given.half_maps, in_units(rest_motion, given.pixel_size), share,
                     given.box_size, given.pixel_size, curves.resolutions(), tuple(told),
                     composite_words(name, told, share, curves), tuple(placement_warnings(told)), files)
    save_record(folder / RECORD, made)
    for text in made.words:
        say(text)
    for text in made.warnings:
        say(f"warning: {text}")
    say(f"the composite is in {folder}")
    return made


def composite_words(frame: str, told: Sequence[PlacedBody], share: float, curves: FscCurves) -> Tuple[str, ...]:
    """What the composite means, in sentences."""
    where = f"the frame of {frame}" if frame else "the frame of the input poses"
    number = f"{len(told)} {'body' if len(told) == 1 else 'bodies'}"
    words = [f"The composite shows {number} in {where}, each at the mean of its poses there. It is one "
             "arrangement, the mean relative pose; particles are spread about it, and the film shows how. Distances "
             "between bodies are means, too",
             f"Resolution in the mask of the whole: {curves.resolutions()['corrected']:.2f} Å (FSC {FSC_THRESHOLD}, "
             "corrected)"]
    for k, body in enumerate(told, 1):
        angle, moved = (np.linalg.norm(part) for part in (body.placement[:3], body.placement[3:]))
        at = "the frame" if body.is_frame else (f"placed by {angle:.2f}° and {moved:.2f} Å "
                                                f"(± {body.placement_error_angstrom:.2f} Å)")
        words.append(f"Body {k} ({body.run}): {at}; {body.resolution_angstrom:.2f} Å in its mask, "
                     f"{body.own_resolution_angstrom:.2f} Å in its own run")
        if body.overlap > 0.01:
            words.append(f"{100 * body.overlap:.0f} % of the mask of body {k} lie in other masks. There the maps are "
                         "weighted by their masks and by the FSC of each in the overlap")
    if share > MUCH_REST:
        words.append(f"{100 * share:.0f} % of the particle lie outside of all masks. There the composite is the input "
                     "map, no sharper than it was")
    return tuple(words)


def placement_warnings(told: Sequence[PlacedBody]) -> List[str]:
    """Bodies whose place is hardly known."""
    return [f"the place of body {k} is known to ± {body.placement_error_angstrom:.1f} Å only, beside a resolution of "
            f"{body.resolution_angstrom:.1f} Å; look at the distance to the other bodies with care"
            for k, body in enumerate(told, 1) if body.placement_error_angstrom > DOUBTFUL * body.resolution_angstrom]
