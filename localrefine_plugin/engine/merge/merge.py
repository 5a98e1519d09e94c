"""The only step that opens both halves: FSC, references for the next iteration, convergence."""
from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..io.mrc import read_map, write_map
from ..io.run_folder import RunFolder, read_json
from ..io.run_store import load_input, load_motion, load_particles, load_poses
from ..maps.fsc import FscCurves, five_curves, write_fsc
from ..maps.mask import dynamic_mask
from ..maps.reference_filter import next_references, reference_fsc
from ..model.pose import log_map
from ..model.symmetry import operators
from ..records.poses import PoseTable
from ..records.resolved import ResolvedSettings
from .advice import Motions, advise
from .hinge import Hinge, estimate_hinge
from .motion_report import learned_hinge, motion_advice, motion_summary

STILL_SHELLS = 0.5  # no gain: less than half a shell …
STILL_ITERATIONS = 2  # … in this many iterations in a row
STILL_SIGMA = 0.2  # median change of the rotation, in posterior s.d.


def merge_halves(run: RunFolder, iteration: int, workers: int) -> Dict[str, Any]:
    """FSC, mask, filtered references and the decision of this iteration; returns iteration.json."""
    given = load_input(run)
    resolved, pixel_size = given.resolved, given.pixel_size
    maps = [read_map(run.half_map(iteration, half))[0] for half in (1, 2)]
    curves, mask = curves_in_mask(run, iteration, maps, resolved, pixel_size, workers)
    write_fsc(run.fsc(iteration), curves)
    references = next_references(maps, mask, curves, resolved, workers)
    for half, volume in enumerate(references.maps, 1):
        write_map(run.reference(iteration, half), volume, pixel_size)
    if references.cutoff_angstrom is not None:
        write_map(run.filter_resolution(iteration), references.cutoff_angstrom, pixel_size)
    files = [run.fsc(iteration), run.reference(iteration, 1), run.reference(iteration, 2),
             run.iteration_mask(iteration), run.filter_resolution(iteration)]
    earlier = [read_json(run.iteration_done(k)) for k in range(iteration)]
    now: Dict[str, Any] = {
        "iteration": iteration, "resolution_angstrom": curves.resolutions(),
        "resolution_0.5_angstrom": curves.resolutions(0.5), "resolution_range_angstrom": curves.resolution_range(),
        "align_resolution_angstrom": curves.resolutions()["corrected"],
        "reference_fsc": reference_fsc(references.maps, mask, workers),
        "files": run.sizes(path for path in files if path.exists())}
    now.update(pose_statistics(run, iteration))
    now.update(decide(earlier + [now], resolved, given.box_size * pixel_size))
    motions = {half: load_motion(run, iteration, half) for half in (1, 2)}
    learned = {half: motion for half, motion in motions.items() if motion is not None}
    hinge = None
    if learned:
        now["motion"] = motion_summary(learned, resolved, pixel_size)
        hinge = learned_hinge(now["motion"], given.box_size)
    now["advice"] = advise(motions_of(run, iteration, now), hinge or hinge_of(run, iteration), curves, earlier + [now],
                           resolved)
    if learned:
        now["advice"].update(motion_advice(now["motion"], resolved))
    now["warnings"] = [text for topic, text in now["advice"].items()
                       if not any(topic in before.get("advice", {}) for before in earlier)]
    return now


def motions_of(run: RunFolder, iteration: int, now: Dict[str, Any]) -> Motions:
    """Changes of all particles from the input."""
    tables = [load_poses(run, iteration, half) for half in (1, 2)]
    rotation, shift = (np.concatenate([getattr(t, name) for t in tables])
                       for name in ("rotation_change_deg", "shift_change_angstrom"))
    return Motions(rotation, shift, now["at_rotation_limit"], now["at_shift_limit"])


def hinge_of(run: RunFolder, iteration: int) -> Hinge:
    """The point the sub-volume turns about, by the poses of both halves."""
    given, particles = load_input(run), load_particles(run)
    fulcrum = given.resolved.fulcrum_offset(given.box_size)
    tables = [t for t in (load_poses(run, iteration, half) for half in (1, 2)) if t is not None]
    row, rotation, shift = (np.concatenate([getattr(t, name) for t in tables])
                            for name in ("row", "rotation", "shift_px"))
    return estimate_hinge(particles.rotation[row], particles.shift_px[row], rotation, shift, fulcrum)


def curves_in_mask(run: RunFolder, iteration: int, maps: Sequence[np.ndarray], resolved: ResolvedSettings,
                   pixel_size: float, workers: int) -> Tuple[FscCurves, np.ndarray]:
    """The FSC of the half-maps and the mask it is under: the one in use, or one that follows the density.

    A dynamic mask is found in the mean of the half-maps, and written, once the resolution in the mask used so
    far is better than its start resolution.
    """
    def curves_under(mask: np.ndarray) -> FscCurves:
        curves = five_curves(maps[0], maps[1], mask, pixel_size, resolved.seed, resolved.fsc_randomise_below,
                             workers=workers)
        # symmetry mates are not independent
        order = len(operators(resolved.symmetry))
        return replace(curves, corrected_error=curves.corrected_error * np.sqrt(order))

    mask, _ = read_map(run.mask_in_use(iteration - 1))
    curves = curves_under(mask)
    resolution = curves.resolutions()["corrected"]
    if resolved.mask_mode == "static" or resolution > resolved.mask_start_resolution_angstrom:
        return curves, mask
    given, _ = read_map(run.mask)
    mask = dynamic_mask(0.5 * (maps[0] + maps[1]), given, pixel_size, resolution, resolved.mask_threshold,
                        resolved.mask_near_angstrom, resolved.mask_far_angstrom,
                        resolved.mask_threshold_type == "absolute", workers)
    write_map(run.iteration_mask(iteration), mask, pixel_size)
    return curves_under(mask), mask


def pose_statistics(run: RunFolder, iteration: int) -> Dict[str, Any]:
    """Change from the input and since the last iteration, over both halves."""
    tables = [t for t in (load_poses(run, iteration, half) for half in (1, 2)) if t is not None]
    pixel_size = load_input(run).pixel_size
    since = [change_since(now, load_poses(run, iteration - 1, half), pixel_size) for half, now in enumerate(tables, 1)]
    rotation, shift, in_sigma = (np.concatenate(c) for c in zip(*since))
    turned = np.concatenate([np.linalg.norm(t.rotation_change_deg, axis=1) for t in tables])
    moved = np.concatenate([np.linalg.norm(t.shift_change_angstrom, axis=1) for t in tables])
    return {"pose_change": {
                "rotation_median_deg": float(np.median(turned)), "shift_median_angstrom": float(np.median(moved)),
                "rotation_since_last_median_deg": float(np.median(rotation)),
                "shift_since_last_median_angstrom": float(np.median(shift)) * pixel_size,
                "rotation_since_last_median_sigma": float(np.median(in_sigma))},
            "at_rotation_limit": float(np.mean(np.concatenate([t.at_rotation_limit for t in tables]))),
            "at_shift_limit": float(np.mean(np.concatenate([t.at_shift_limit for t in tables]))),
            "insertions_mean": float(np.mean(np.concatenate([t.insertions for t in tables])))}


def change_since(now: PoseTable, before: Optional[PoseTable],
                 pixel_size: float) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation in degrees, in-plane shift in px, and rotation in posterior s.d., since the last iteration."""
    if before is None:
        w, shift = np.deg2rad(now.rotation_change_deg), now.shift_change_angstrom / pixel_size
    else:
        w, shift = log_map(np.swapaxes(before.rotation, 1, 2) @ now.rotation), now.shift_px - before.shift_px
    sigma = np.sqrt(np.trace(now.covariance[:, :3, :3], axis1=1, axis2=2))
    angle = np.linalg.norm(w, axis=1)
    return np.rad2deg(angle), np.linalg.norm(shift, axis=1), angle / np.maximum(sigma, 1e-9)


def decide(history: List[Dict[str, Any]], resolved: ResolvedSettings, box_angstrom: float) -> Dict[str, Any]:
    """Best iteration so far, and whether to stop.

    Best = the last one whose resolution is not half a shell worse than the finest: by less than that resolutions differ
    by chance, while poses go on improving (blm of docs/explanation/motion-prior.md: 2.04° in iteration 3, 1.68° in 6,
    both 6.00 Å).

    Still = the corrected resolution gained less than half a shell in each of the last two iterations and
    the median rotation since the last is below 0.2 posterior s.d. Lost = the half-maps agree on nothing finer than
    the mask: references made of that would hold nothing, and empty maps correlate by chance.
    """
    shells = np.array([box_angstrom / h["resolution_angstrom"]["corrected"] for h in history])
    best = int(np.flatnonzero(shells > shells[1:].max() - STILL_SHELLS)[-1])
    n = len(history) - 1
    gained = shells[-STILL_ITERATIONS:] - shells[:-STILL_ITERATIONS].max() if n > STILL_ITERATIONS else np.inf
    still = bool(np.all(gained < STILL_SHELLS))
    quiet = history[-1]["pose_change"]["rotation_since_last_median_sigma"] < STILL_SIGMA
    converged = still and quiet
    reason = "neither resolution nor poses change any more" if converged else ""
    if box_angstrom / shells[-1] > 2 * resolved.mask_radius_angstrom:
        converged, reason = True, ("the half-maps agree on nothing inside the mask any more; use a prior, a larger "
                                   "mask, or more particles")
    if not converged and n >= resolved.max_iterations:
        reason = "maximum number of iterations"
    return {"best_iteration": best, "converged": converged, "stop_reason": reason}
