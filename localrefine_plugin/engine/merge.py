"""The only step that opens both halves: FSC, references for the next iteration, convergence."""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from .files import read_map, write_map
from .fourier import apply_shell_filter
from .fsc import FscCurves, first_below, five_curves, write_fsc
from .pose import log_map
from .records import PoseTable
from .run_folder import RunFolder, read_json
from .state import load_poses

FSC_LIMIT = 0.143
STILL_SHELLS = 0.5  # no gain: less than half a shell …
STILL_ITERATIONS = 2  # … in this many iterations in a row
STILL_SIGMA = 0.2  # median change of the rotation, in posterior s.d.


def joined(maps: Sequence[np.ndarray], resolution: float, pixel_size: float, workers: int) -> List[np.ndarray]:
    """Both maps with their average below ``resolution`` Å (0 = never), a cosine of two shells between."""
    if resolution <= 0:
        return [maps[0], maps[1]]
    box = maps[0].shape[0]
    shells = np.arange(box)
    cutoff = box * pixel_size / resolution
    low = 0.5 + 0.5 * np.cos(np.pi * np.clip((shells - cutoff + 1) / 2, 0, 1))
    half_difference = apply_shell_filter(0.5 * (maps[0] - maps[1]), low, workers)
    return [maps[0] - half_difference, maps[1] + half_difference]


def filter_weights(curves: FscCurves) -> np.ndarray:
    """Wiener weight of a half-map by shell, F, up to where the corrected FSC first falls below 0.143.

    A half-map's signal-to-noise ratio is F / (1 − F), hence SNR / (1 + SNR) = F.
    """
    weights = np.clip(curves.corrected, 0, 1)
    end = first_below(curves.corrected, FSC_LIMIT)
    weights[end + 1:] = 0
    return weights


def merge_halves(run: RunFolder, iteration: int, workers: int) -> Dict[str, Any]:
    """FSC, filtered references and the decision of this iteration; returns iteration.json."""
    described = read_json(run.input)
    resolved, pixel_size = described["resolved"], described["pixel_size"]
    maps = [read_map(run.half_map(iteration, half))[0] for half in (1, 2)]
    mask, _ = read_map(run.mask)
    curves = five_curves(maps[0], maps[1], mask, pixel_size, resolved["seed"], workers=workers)
    write_fsc(run.fsc(iteration), curves)
    weights = filter_weights(curves)
    for half, volume in enumerate(joined(maps, resolved["join_halves_resolution_angstrom"], pixel_size, workers), 1):
        write_map(run.reference(iteration, half), apply_shell_filter(volume, weights, workers), pixel_size)
    earlier = [read_json(run.iteration_done(k)) for k in range(iteration)]
    now = {"iteration": iteration, "resolution_angstrom": curves.resolutions(),
           "resolution_0.5_angstrom": curves.resolutions(0.5),
           "align_resolution_angstrom": curves.resolutions()["corrected"]}
    now.update(pose_statistics(run, iteration))
    now.update(decide(earlier + [now], resolved, described["box_size"] * pixel_size))
    now["warnings"] = []
    return now


def pose_statistics(run: RunFolder, iteration: int) -> Dict[str, Any]:
    """Change from the input and since the last iteration, over both halves."""
    tables = [t for t in (load_poses(run, iteration, half) for half in (1, 2)) if t is not None]
    pixel_size = read_json(run.input)["pixel_size"]
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


def change_since(now: PoseTable, before: Optional[PoseTable], pixel_size: float) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation in degrees, in-plane shift in px, and rotation in posterior s.d., since the last iteration."""
    if before is None:
        w, shift = np.deg2rad(now.rotation_change_deg), now.shift_change_angstrom / pixel_size
    else:
        w, shift = log_map(np.swapaxes(before.rotation, 1, 2) @ now.rotation), now.shift_px - before.shift_px
    sigma = np.sqrt(np.trace(now.covariance[:, :3, :3], axis1=1, axis2=2))
    angle = np.linalg.norm(w, axis=1)
    return np.rad2deg(angle), np.linalg.norm(shift, axis=1), angle / np.maximum(sigma, 1e-9)


def decide(history: List[Dict[str, Any]], resolved: Dict[str, Any], box_angstrom: float) -> Dict[str, Any]:
    """Best iteration so far, and whether to stop.

    Still = the corrected resolution gained less than half a shell in each of the last two iterations and
    the median rotation since the last is below 0.2 posterior s.d.
    """
    shells = np.array([box_angstrom / h["resolution_angstrom"]["corrected"] for h in history])
    best = 1 + int(np.argmax(shells[1:] > shells[1:].max() - 1e-9))
    n = len(history) - 1
    gained = shells[-STILL_ITERATIONS:] - shells[:-STILL_ITERATIONS].max() if n > STILL_ITERATIONS else np.inf
    still = bool(np.all(gained < STILL_SHELLS))
    quiet = history[-1]["pose_change"]["rotation_since_last_median_sigma"] < STILL_SIGMA
    converged = still and quiet
    reason = "neither resolution nor poses change any more" if converged else ""
    if not converged and n >= resolved["max_iterations"]:
        reason = "maximum number of iterations"
    return {"best_iteration": best, "converged": converged, "stop_reason": reason}
