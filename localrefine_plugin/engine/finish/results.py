"""RUN/final: what a user takes away, from the best iteration."""
from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any, Dict, Sequence

import numpy as np

from ..inputs.changes import changes_at_the_end
from ..io.mrc import read_map, write_map
from ..io.relion_particles import read_table, write_particles
from ..io.run_folder import FINAL_FILES, OPTIONAL_FINAL_FILES, RunFolder, remove, remove_temporary, write_atomic
from ..io.run_store import load_input, load_iteration, load_noise, load_particles, load_poses, save_record
from ..maps.fsc import FscCurves, read_fsc
from ..maps.sharpen import applied_b_factor, sharpen
from ..model.fourier import apply_shell_filter
from ..progress import say
from ..records.results import PoseBlur, Sharpening
from ..records.run_input import InputChanges
from .mask_ladder import mask_ladder
from .pose_blur import Share, advice, as_half_map_fsc, blur_correlation, expected_map_to_truth, expected_resolution
from .report import build_report

ALIKE = 0.02  # of the share of half-map 1: closer to ½ the plain mean is as good
UNCERTAINTY_LABELS = ("lrRotationUncertainty", "lrShiftUncertainty")


def write_results(run: RunFolder, workers: int) -> None:
    """Unfiltered half-maps, their mean, the sharpened map, poses, mask and FSC of the best iteration."""
    last = run.iterations_done()
    k = load_iteration(run, last).best_iteration
    final, names = run.path / "final", FINAL_FILES + OPTIONAL_FINAL_FILES
    for path in [run.report] + [run.final(name) for name in names]:
        remove(path)
    final.mkdir(exist_ok=True)
    for folder in (run.path, final):
        remove_temporary(folder)
    for half in (1, 2):
        copy(run.half_map(k, half), run.final(f"half_map_{half}.mrc"))
    copy(run.mask_in_use(k), run.final("mask.mrc"))
    if run.filter_resolution(k).exists():
        copy(run.filter_resolution(k), run.final("filter_resolution.mrc"))
    copy(run.fsc(k), run.final("fsc.star"))
    maps, curves = [read_map(run.half_map(k, half))[0] for half in (1, 2)], read_fsc(run.fsc(k))
    share = share_of_first(run, k, len(curves.corrected))
    mean, mask = weighted_mean(maps, share, workers), read_map(run.mask_in_use(k))[0]
    write_maps(run, mean, curves, workers)
    write_ladder(run, maps, mask, curves, workers)
    write_final_particles(run, k)
    blur = pose_blur(run, k, mean, mask, curves, share)
    save_record(run.final("pose_blur.json"), blur)
    changes = changes_at_the_end(run)
    if changes:
        save_record(run.final("input_changes.json"), InputChanges(tuple(changes)))
    for text in changes:
        say(f"warning: {text}")
    files = [run.final(name) for name in names if run.final(name).exists()]
    report = build_report(run)
    save_record(run.report, replace(report, files=run.sizes(files)))
    say(f"resolution to report: {blur.resolution_to_report_angstrom:.2f} Å")
    for text in report.advice:
        say(f"advice: {text}")
    say(f"results of iteration {k} are in {final}")


def write_maps(run: RunFolder, mean: np.ndarray, curves: FscCurves, workers: int) -> None:
    """The mean of the half-maps, as it is and sharpened, and how it was sharpened."""
    given = load_input(run)
    pixel_size, b_factor = given.pixel_size, given.resolved.sharpen_bfactor
    write_map(run.final("map.mrc"), mean, pixel_size)
    sharpened, fit = sharpen(mean, pixel_size, curves.corrected, curves.resolutions()["corrected"], b_factor, workers)
    write_map(run.final("map_sharpened.mrc"), sharpened, pixel_size)
    save_record(run.final("sharpening.json"), Sharpening(
        b_factor_applied=applied_b_factor(fit, b_factor), b_factor_guinier=fit.b_factor,
        guinier_correlation=fit.correlation, guinier_shells=fit.shells))


def write_ladder(run: RunFolder, maps: Sequence[np.ndarray], mask: np.ndarray, curves: FscCurves,
                 workers: int) -> None:
    """The resolution in ever tighter masks, and the tightest that adds no correlation of its own."""
    given = load_input(run)
    ladder = mask_ladder(maps[0], maps[1], mask, curves, given.resolved.seed, workers)
    write_map(run.final("tightest_mask.mrc"), ladder.mask, given.pixel_size)
    save_record(run.final("mask_ladder.json"), ladder.record)


def share_of_first(run: RunFolder, iteration: int, shells: int) -> Share:
    """The share of what both half-maps know that half-map 1 knows: D₁ / (D₁ + D₂) by shell (N // 2 + 1,); ½ where the
    half-sets are alike."""
    first, second = (load_noise(run, iteration, half, "accumulator_mean") for half in (1, 2))
    both = first + second
    share = np.divide(first, both, out=np.full(len(both), 0.5), where=both > 0)
    share = np.pad(share, (0, shells - len(share)), mode="edge")
    return 0.5 if abs(float(share.mean()) - 0.5) < ALIKE else share


def weighted_mean(maps: Sequence[np.ndarray], share: Share, workers: int) -> np.ndarray:
    """The mean of two half-maps (N, N, N), each weighted by what it knows, shell by shell."""
    if isinstance(share, float):
        return share * (maps[0] + maps[1])
    say(f"the half-sets are unequal: half-map 1 has {100 * share.mean():.0f} % of the weight in the final map")
    mean: np.ndarray = apply_shell_filter(maps[0], share, workers) + apply_shell_filter(maps[1], 1 - share, workers)
    return mean


def pose_blur(run: RunFolder, iteration: int, volume: np.ndarray, mask: np.ndarray, curves: FscCurves,
              share: Share) -> PoseBlur:
    """κ and the FSC to the truth to be expected of the final map (pose_blur.py)."""
    given = load_input(run)
    resolved, pixel_size = given.resolved, given.pixel_size
    reported = curves.resolutions()["corrected"]
    tables = [t for t in (load_poses(run, iteration, half) for half in (1, 2)) if t is not None]
    rotation = np.concatenate([t.rotation for t in tables])

    def blurred(name: str) -> np.ndarray:
        return blur_correlation(volume, mask, curves.corrected, np.concatenate([getattr(t, name) for t in tables]),
                                rotation, reported / pixel_size, resolved.seed)
    kappa = blurred("pose_error_covariance") * (blurred("covariance") if resolved.marginalize else 1)
    curve = expected_map_to_truth(curves.corrected, kappa, share)
    expected = expected_resolution(curve, len(volume), pixel_size)
    return PoseBlur(expected, max(expected, reported), tuple(curve.tolist()), tuple(as_half_map_fsc(curve).tolist()),
                    tuple(kappa.tolist()), advice(expected, reported))


def write_final_particles(run: RunFolder, iteration: int) -> None:
    """particles.star with every input column, new angles and origins, and every row but those left out (exclude.py).

    Half-sets that were split anew replace rlnRandomSubset; fitted scales are added as lrScale, and how well each
    pose is known as lrRotationUncertainty and lrShiftUncertainty (see `pose_uncertainty`).
    """
    given = load_input(run)
    particles = load_particles(run)
    rotation, shift, scale = particles.rotation.copy(), particles.shift_px.copy(), np.ones(len(particles))
    uncertainty = np.zeros((len(particles), 2))
    for half in (1, 2):
        poses = load_poses(run, iteration, half)
        if poses is not None:
            rotation[poses.row], shift[poses.row] = poses.rotation, poses.shift_px
            scale[poses.row] = 1 if poses.scale is None else poses.scale
            uncertainty[poses.row] = pose_uncertainty(poses.pose_error_covariance, particles.pixel_size)
    extra: Dict[str, np.ndarray] = dict(zip(UNCERTAINTY_LABELS, uncertainty.T))
    if given.resolved.resplit_half_sets:
        extra["rlnRandomSubset"] = particles.half_set
    if given.resolved.per_particle_scale:
        extra["lrScale"] = scale
    # the run's own copy: the user's file may have changed. Older versions kept none
    source = run.given_particles if run.given_particles.exists() else given.particles
    table = read_table(source, particles)
    used = np.flatnonzero(particles.half_set > 0)
    write_particles(run.final("particles.star"), table.take(used), rotation[used], shift[used],
                    {label: values[used].tolist() for label, values in extra.items()})


def pose_uncertainty(covariance: np.ndarray, pixel_size: float) -> np.ndarray:
    """(n, 2) standard deviation per axis, root mean square over the axes, of covariances (n, 5, 5) of the errors.

    Of the rotation sqrt(tr C_w / 3) in degrees (three axes), and of the in-plane position of the centre of the
    mask sqrt(tr C_u / 2) in Å (two axes). With the prior and the reference's noise in it (reference_errors.py).
    """
    variance = np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0)
    rotation, shift = variance[:, :3].mean(axis=1), variance[:, 3:].mean(axis=1)
    return np.stack([np.rad2deg(np.sqrt(rotation)), pixel_size * np.sqrt(shift)], axis=1)


def copy(source: Any, target: Any) -> None:
    def write(name: str) -> None:
        shutil.copyfile(source, name)
    write_atomic(target, write)


