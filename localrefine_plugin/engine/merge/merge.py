"""The only step that opens both halves: FSC, references for the next iteration, convergence."""
from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from ..io.later import Later
from ..io.mrc import read_map, write_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, load_iteration, load_motion, stored_particles, stored_poses, stored_tables
from ..io.stored import JoinedColumn
from ..kernels.device import CPU, Device, array_module, device_for_volumes, to_host
from ..maps.fsc import FscCurves, five_curves, write_fsc
from ..maps.half_maps import HalfMaps, read_half_maps
from ..maps.mask import DynamicMask, dynamic_mask
from ..maps.reference_filter import next_references, reference_fsc
from ..model.pose import log_map
from ..model.symmetry import operators
from ..records.iteration import IterationRecord, PoseChange
from ..records.motion import MotionSummary
from ..records.poses import PoseTable
from ..records.resolved import ResolvedSettings
from .advice import PoseChanges, advise, verdict_advice
from .convergence import decide
from .hinge import ROWS_AT_ONCE, Hinge, estimate_hinge
from .motion_report import learned_hinge, motion_advice, motion_summary

Array = Any


def merge_halves(run: RunFolder, iteration: int, workers: int, device: Device = CPU) -> IterationRecord:
    """FSC, mask, filtered references and the decision of this iteration; maps are worked on on ``device``."""
    given = load_input(run)
    resolved, pixel_size = given.resolved, given.pixel_size
    halves = read_half_maps(run, iteration, workers, device_for_volumes(device, given.box_size))
    curves, mask = curves_in_mask(run, iteration, halves, resolved, pixel_size)
    write_fsc(run.fsc(iteration), curves)
    references = next_references(halves, mask, curves, resolved)
    files = [run.fsc(iteration), run.reference(iteration, 1), run.reference(iteration, 2),
             run.iteration_mask(iteration), run.filter_resolution(iteration)]
    with Later() as later:
        for half, volume in enumerate(references.maps, 1):
            later(write_map, run.reference(iteration, half), to_host(volume), pixel_size)
        if references.cutoff_angstrom is not None:
            later(write_map, run.filter_resolution(iteration), to_host(references.cutoff_angstrom), pixel_size)
        tables = stored_tables(run, iteration)
        now = replace(
            curves.record(iteration, align_resolution_angstrom=curves.resolutions()["corrected"]),
            reference_fsc=tuple(reference_fsc(references.maps, mask, workers)),
            pose_change=pose_change(tables, [stored_poses(run, iteration - 1, half) for half in (1, 2)], pixel_size),
            at_rotation_limit=mean_of(tables, "at_rotation_limit"), at_shift_limit=mean_of(tables, "at_shift_limit"),
            insertions_mean=mean_of(tables, "insertions"), share_not_aligned=share_not_aligned(tables),
            share_empty=mean_where_judged(tables, "probability_empty"))
    now = replace(now, files=run.sizes(path for path in files if path.exists()))
    earlier = [load_iteration(run, k) for k in range(iteration)]
    now = replace(now, motion=motion_of(run, iteration))
    now = replace(now, **asdict(decide(earlier + [now], resolved, given.box_size * pixel_size)))
    return with_advice(run, now, earlier, tables, curves)


def with_advice(run: RunFolder, now: IterationRecord, earlier: Sequence[IterationRecord], tables: Sequence[PoseTable],
                curves: FscCurves) -> IterationRecord:
    """The record with sentences on the state of the run."""
    given, motion = load_input(run), now.motion
    hinge = (learned_hinge(motion, given.box_size) if motion else None) or hinge_of(run, tables)
    advice = advise(changes_of(tables), hinge, curves, [*earlier, now], given.resolved)
    if motion:
        advice.update(motion_advice(motion, given.resolved))
    if now.share_not_aligned is not None:  # which says more than the shape of the motion
        advice.pop("junk", None)
        advice.update(verdict_advice(now.share_not_aligned, now.share_empty or 0.0, given.resolved))
    return replace(now, advice=advice, warnings=tuple(
        text for topic, text in advice.items() if not any(topic in before.advice for before in earlier)))


def changes_of(tables: Sequence[PoseTable]) -> PoseChanges:
    """Of the particles that do not look like noise, whose poses are anything; of all where there are no others."""
    shown = np.concatenate([np.ones(len(table), bool) if table.probability_empty is None else
                            np.asarray(table.probability_empty) <= 0.5 for table in tables])
    shown |= not shown.any()
    rotation, shift, at_rotation, at_shift = (joined(tables, name)[shown] for name in (
        "rotation_change_deg", "shift_change_angstrom", "at_rotation_limit", "at_shift_limit"))
    return PoseChanges(rotation, shift, float(np.mean(at_rotation)), float(np.mean(at_shift)))


def motion_of(run: RunFolder, iteration: int) -> Optional[MotionSummary]:
    """What a learned prior found in an iteration."""
    given, found = load_input(run), {half: load_motion(run, iteration, half) for half in (1, 2)}
    learned = {half: motion for half, motion in found.items() if motion is not None}
    return motion_summary(learned, given.resolved, given.pixel_size) if learned else None


def hinge_of(run: RunFolder, tables: Sequence[PoseTable]) -> Hinge:
    """The point the sub-volume turns about, by the poses of both halves."""
    given, particles, row = load_input(run), stored_particles(run), joined(tables, "row")
    rotation: Any = particles.rotation
    shift: Any = particles.shift_px
    found: List[Any] = [JoinedColumn([getattr(table, name) for table in tables]) for name in ("rotation", "shift_px")]
    return estimate_hinge(rotation.of_rows(row), shift.of_rows(row), found[0], found[1],
                          given.resolved.fulcrum_offset(given.box_size))


def joined(tables: Sequence[PoseTable], name: str) -> np.ndarray:
    """A column (n, …) of both half-sets, one after the other."""
    return np.concatenate([getattr(table, name) for table in tables])


def share_not_aligned(tables: Sequence[PoseTable]) -> Optional[float]:
    aligned = mean_where_judged(tables, "probability_aligned")
    return None if aligned is None else 1 - aligned


def mean_where_judged(tables: Sequence[PoseTable], name: str) -> Optional[float]:
    """The mean of a column; None where a half-set was too small to be judged."""
    return None if any(getattr(table, name) is None for table in tables) else mean_of(tables, name)


def mean_of(tables: Sequence[PoseTable], name: str) -> float:
    return float(np.mean(joined(tables, name)))


def curves_in_mask(run: RunFolder, iteration: int, halves: HalfMaps, resolved: ResolvedSettings,
                   pixel_size: float) -> Tuple[FscCurves, Array]:
    """The FSC of the half-maps and the mask it is under: the one in use, or one that follows the density.

    A dynamic mask is found in the mean of the half-maps, and written, once the resolution in the mask used so
    far is better than its start resolution.
    """
    xp = array_module(halves.maps[0])
    mask = xp.asarray(read_map(run.mask_in_use(iteration - 1))[0])
    curves = curves_under(mask, halves, resolved, pixel_size)
    resolution = curves.resolutions()["corrected"]
    if resolved.mask_mode == "static" or resolution > resolved.mask_start_resolution_angstrom:
        return curves, mask
    given = xp.asarray(read_map(run.mask)[0])
    mask = dynamic_mask(0.5 * (halves.maps[0] + halves.maps[1]), given, pixel_size, resolution,
                        DynamicMask(resolved.mask_threshold, resolved.mask_near_angstrom, resolved.mask_far_angstrom,
                                    resolved.mask_threshold_type == "absolute"), halves.workers)
    write_map(run.iteration_mask(iteration), to_host(mask), pixel_size)
    return curves_under(mask, halves, resolved, pixel_size), mask


def curves_under(mask: Array, halves: HalfMaps, resolved: ResolvedSettings, pixel_size: float) -> FscCurves:
    """The FSC curves of half-maps under a mask (N, N, N), by the settings of a run."""
    curves = five_curves(halves, mask, pixel_size, resolved.seed, resolved.fsc_randomise_below)
    # symmetry mates are not independent
    order = len(operators(resolved.symmetry))
    return replace(curves, corrected_error=curves.corrected_error * np.sqrt(order))


def pose_change(tables: Sequence[PoseTable], before: Sequence[Optional[PoseTable]], pixel_size: float) -> PoseChange:
    """Medians over both halves; ``before``: the tables of the last iteration, None where that is the input."""
    since = [change_since(now, last, pixel_size) for now, last in zip(tables, before)]
    rotation, shift, in_sigma = (float(np.median(np.concatenate(c))) for c in zip(*since))
    turned = np.linalg.norm(joined(tables, "rotation_change_deg"), axis=1)
    moved = np.linalg.norm(joined(tables, "shift_change_angstrom"), axis=1)
    return PoseChange(float(np.median(turned)), float(np.median(moved)), rotation, shift * pixel_size, in_sigma)


def change_since(now: PoseTable, before: Optional[PoseTable],
                 pixel_size: float) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation in degrees, in-plane shift in px, and rotation in posterior s.d., since the last iteration."""
    found = [change_of_rows(now, before, pixel_size, slice(first, first + ROWS_AT_ONCE))
             for first in range(0, len(now), ROWS_AT_ONCE)]
    rotation, shift, in_sigma = (np.concatenate(column) for column in zip(*found))
    return rotation, shift, in_sigma


def change_of_rows(now: PoseTable, before: Optional[PoseTable], pixel_size: float,
                   rows: slice) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    if before is None:
        w, shift = np.deg2rad(now.rotation_change_deg[rows]), now.shift_change_angstrom[rows] / pixel_size
    else:
        w = log_map(np.swapaxes(before.rotation[rows], 1, 2) @ now.rotation[rows])
        shift = now.shift_px[rows] - before.shift_px[rows]
    sigma = np.sqrt(np.trace(now.covariance[rows][:, :3, :3], axis1=1, axis2=2))
    angle = np.linalg.norm(w, axis=1)
    return np.rad2deg(angle), np.linalg.norm(shift, axis=1), angle / np.maximum(sigma, 1e-9)
