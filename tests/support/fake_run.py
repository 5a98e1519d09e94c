"""A run folder as the engine leaves it, made of plausible numbers: for viewers, summaries and reports."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import numpy as np
from scipion_data import blob_map, soft_ball, write_map
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.io.run_folder import RunFolder, write_json
from localrefine_plugin.engine.io.star import StarTable, write_star
from localrefine_plugin.engine.maps.directions import half_sphere
from localrefine_plugin.engine.merge.motion_report import motion_summary
from localrefine_plugin.engine.motion.motion_prior import about_point
from localrefine_plugin.engine.records.codec import as_json
from localrefine_plugin.engine.records.iteration import CURVE_NAMES, Verdict
from localrefine_plugin.engine.records.motion import LearnedMotion, MotionSummary
from localrefine_plugin.engine.records.poses import PoseTable
from localrefine_plugin.engine.records.resolved import ResolvedSettings
from localrefine_plugin.engine.records.results import Directions
from localrefine_plugin.engine.records.settings import Settings

BOX, PIXEL = 32, 3.0
VERDICT = Verdict(1.0, 0.0, 0.0, 8.0, 1.0, 7.0, 1.3, (3.5, 1.0), (2.8, 0.8))
SHIFT_ADVICE = "14 % of the particles are at the limit of the shift search: widen it, or use a prior"


def fake_run(path: Path, iterations: int = 3, particles: int = 400, finished: bool = True, seed: int = 0,
             spread_deg: float = 4.0) -> RunFolder:
    """Write a run of so many iterations; ``spread_deg`` is the standard deviation of the change per axis."""
    folder = RunFolder(path)
    path.mkdir(parents=True)
    write_json(folder.settings, Settings().as_dict())
    halves = [write_map(path / f"input_{h}.mrc", blob_map(BOX) + 0.1, PIXEL) for h in (1, 2)]
    np.savez(folder.particles, rotation=Rotation.random(particles, random_state=3).as_matrix())
    write_json(folder.input, {
        "particles": "/data/particles.star", "half_map_1": halves[0], "half_map_2": halves[1],
        "mask": "/data/mask.mrc", "versions": {"localrefine": "0.1.0", "numpy": np.__version__},
        "box_size": BOX, "pixel_size": PIXEL, "grey_scale": [1.01, 0.99],
        "resolved": {"prior_rotation_deg": 7.0, "rotation_extent_deg": 21.0, "shift_extent_angstrom": 12.0,
                     "initial_lowpass_angstrom": 10.5,
                     "prior": "learned", "rotation_extent_fixed": False, "shift_extent_fixed": False,
                     "fulcrum_px": [18.0, 15.5, 17.0], "mask_centre_px": [16.0, 16.0, 16.0],
                     "mask_radius_angstrom": 30.0},
        "optics": [], "stacks": [],
        "warnings": ["the mask's edge is 3.2 px wide: less than five times the resolution"]})
    mask = soft_ball(BOX, 0.28 * BOX, 0.12 * BOX)
    write_map(folder.mask, mask, PIXEL)
    for k in range(iterations + 1):
        fake_iteration(folder, k, particles, seed, spread_deg, last=k == iterations)
    if finished:
        fake_final(folder, iterations, mask)
    return folder


def fake_iteration(folder: RunFolder, k: int, particles: int, seed: int, spread_deg: float, last: bool) -> None:
    folder.iteration(k).mkdir()
    for half in (1, 2) if k else ():
        fake_half(folder, k, half, particles // 2, np.random.default_rng(100 * seed + 10 * k + half), spread_deg)
    resolution = fake_fsc(folder.fsc(k), k)
    change = 0.0 if k == 0 else 1.6 * spread_deg
    learned = {"motion": as_json(fake_motion())} if k else {}
    write_json(folder.iteration_done(k), {
        "iteration": k, "resolution_angstrom": resolution,
        "resolution_0.5_angstrom": {name: 1.3 * v for name, v in resolution.items()},
        "resolution_range_angstrom": [resolution["corrected"] - 0.1, resolution["corrected"] + 0.2],
        "align_resolution_angstrom": resolution["corrected"] + 0.5, "converged": last and k > 0,
        "stop_reason": "neither resolution nor poses changed" if last and k > 0 else "", "best_iteration": k,
        "pose_change": {} if k == 0 else {
                        "rotation_median_deg": change, "shift_median_angstrom": 0.4 * change,
                        "rotation_since_last_median_deg": change / (k + 1), "shift_since_last_median_angstrom": 0.3},
        "at_rotation_limit": 0.02 * (k > 0), "at_shift_limit": 0.04 * (k > 0), "insertions_mean": 1.4, "warnings": [],
        "advice": {"drift": "the poses drift", "shift limit": SHIFT_ADVICE} if k else {}, **learned})


def fake_covariance() -> np.ndarray:
    """A motion (rad, px) about the centre of the mask: turning about a point 3 px away."""
    rotation, hinge = np.diag(np.deg2rad([5.0, 4.0, 2.0]) ** 2), np.array([3.0, -1.0, 0.0])
    covariance = np.diag([0, 0, 0, 0.25, 0.25, 0.25]) + 0.0
    covariance[:3, :3] = rotation
    return about_point(covariance, -hinge)


def fake_directions(folder: RunFolder) -> None:
    directions, cones = half_sphere(100), half_sphere(20)
    curves = np.tile(np.linspace(1, 0, BOX // 2 + 1), (20, 1))
    np.savez(folder.final("directions.npz"), sampling_directions=directions, views=np.arange(100), cone_curves=curves,
             cone_directions=cones, cone_resolution_angstrom=np.linspace(7, 8, 20))
    write_json(folder.final("directions.json"), as_json(Directions(0.9, 0.98, 0.98, 0.0, 7.0, 8.0, (0.0, 0.0, 1.0))))


def fake_motion() -> MotionSummary:
    """The key "motion" of iteration.json."""
    covariance = fake_covariance()
    rng = np.random.default_rng(0)
    motions = {half: LearnedMotion(covariance, 0.002 * np.eye(21), np.zeros(6), 1e-4 * np.eye(6),
                                   rng.standard_normal((200, 2)), np.ones(200)) for half in (1, 2)}
    resolved = ResolvedSettings(prior="learned", mask_centre_px=(16.0,) * 3, mask_radius_angstrom=30.0)
    return motion_summary(motions, resolved, PIXEL)


def fake_half(folder: RunFolder, k: int, half: int, n: int, rng: np.random.Generator, spread_deg: float) -> None:
    density = blob_map(BOX)
    write_map(folder.half_map(k, half), density + rng.normal(0, 0.05 / (k + 1), density.shape), PIXEL)
    write_map(folder.reference(k, half), density, PIXEL)
    w = rng.normal(0, spread_deg, (n, 3)) * [1.5, 1.0, 0.4]
    start = Rotation.random(n, random_state=half).as_matrix()
    spread = np.diag([np.deg2rad(1.0)] * 3 + [0.2] * 2) ** 2  # rad and px
    covariance = spread * rng.gamma(20, 1 / 20, (n, 1, 1))
    np.savez(folder.poses(k, half), **PoseTable(
        row=np.arange(half - 1, 2 * n, 2), rotation=start @ Rotation.from_rotvec(w, degrees=True).as_matrix(),
        shift_px=rng.normal(0, 0.5, (n, 2)), rotation_change_deg=w,
        shift_change_angstrom=rng.normal(0, 2.0, (n, 2)), covariance=covariance, pose_error_covariance=covariance,
        log_likelihood=rng.normal(50, 5, n), modes=np.ones(n, int), insertions=rng.integers(1, 4, n),
        at_rotation_limit=rng.random(n) < 0.02, at_shift_limit=rng.random(n) < 0.04, gain=rng.normal(8, 1.3, n),
        probability_aligned=np.ones(n), probability_empty=np.zeros(n)).columns())
    np.savez(folder.motion(k, half), covariance=fake_covariance(), along_axes=rng.standard_normal((n, 2)))
    shells = BOX // 2 + 1
    power = np.abs(rng.normal(1, 0.02, (1, shells))) * np.exp(-np.arange(shells) / 9.0)
    np.savez(folder.noise(k, half), power=power)
    write_json(folder.half_done(k, half), {"iteration": k, "half": half, "particles": n, "wall_seconds": 4.0,
                                           "cpu_seconds": 7.5, "peak_memory_mb": 300.0, "phase_seconds": {"align": 3.0},
                                           "device": "cpu, 2 threads", "verdict": as_json(VERDICT)})


def fake_fsc(path: Path, k: int) -> Dict[str, float]:
    """Write fsc.star and return the resolution of each curve."""
    shells = np.arange(1, BOX // 2 + 1)
    frequency = shells / (BOX * PIXEL)
    resolution = {name: (11.0 - 1.2 * k) * factor for name, factor in zip(CURVE_NAMES, (1.3, 1.2, 1.08, 0.98, 1.0))}
    curve = {name: 1 / (1 + np.exp((frequency * d - 1) * 9 + np.log(1 / 0.143 - 1) * -1))
             for name, d in resolution.items()}
    general = StarTable.from_columns("general", {"rlnImageSize": [BOX], "rlnPixelSize": [PIXEL]})
    write_star(path, [general, StarTable.from_columns("fsc", {
        "rlnSpectralIndex": shells, "rlnResolution": frequency, "rlnAngstromResolution": 1 / frequency,
        "rlnFourierShellCorrelationUnmaskedMaps": curve["unmasked"],
        "lrFourierShellCorrelationSpherical": curve["spherical"],
        "lrFourierShellCorrelationLoose": curve["loose"],
        "rlnFourierShellCorrelationMaskedMaps": curve["tight"],
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": 0.1 * curve["tight"],
        "rlnFourierShellCorrelationCorrected": curve["corrected"],
        "lrFourierShellCorrelationCorrectedError": 0.06 * (1 - curve["corrected"] ** 2)})])
    return resolution


def fake_final(folder: RunFolder, k: int, mask: Any) -> None:
    (folder.path / "final").mkdir()
    density = blob_map(BOX)
    for name in ("half_map_1.mrc", "half_map_2.mrc", "map.mrc", "map_sharpened.mrc"):
        write_map(folder.final(name), density, PIXEL)
    write_map(folder.final("mask.mrc"), mask, PIXEL)
    resolution = fake_fsc(folder.final("fsc.star"), k)
    rung = {"volume_angstrom3": 5e5, "uncorrected_angstrom": 7.3, "mask_correlation": 0.01}
    write_json(folder.final("mask_ladder.json"), {
        "tightest": 1, "resolution_angstrom": 7.25,
        "rungs": [dict(rung, mask="mask in use", resolution_angstrom=7.4),
                  dict(rung, mask="tighter", resolution_angstrom=7.25)]})
    write_json(folder.final("sharpening.json"), {"b_factor_applied": -85.0, "b_factor_guinier": -85.2,
                                                 "guinier_correlation": -0.99, "guinier_shells": 9})
    fake_directions(folder)
    write_json(folder.report, {"iterations": [], "halves": [], "input": {}, "settings": {}, "wall_seconds": 31.0,
                               "cpu_seconds": 60.0, "peak_memory_mb": 310.0, "final_resolution_angstrom": resolution,
                               "warnings": ["4 % of the particles sit at the shift limit"]})
