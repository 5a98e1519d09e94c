"""RUN/final: what a user takes away, from the best iteration."""
from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any, Callable, Dict, Optional, Sequence

import numpy as np

from ..control.rest_control import rest_control
from ..inputs.changes import changes_at_the_end
from ..io.cryosparc import UID, go_back, write_cs
from ..io.mrc import read_map, write_map
from ..io.relion_particles import origins_angstrom, read_table, write_particles
from ..io.run_folder import FINAL_FILES, OPTIONAL_FINAL_FILES, RunFolder, remove, remove_temporary, write_atomic
from ..io.run_store import load_input, load_iteration, load_noise, load_particles, load_tables, save_record
from ..kernels.device import CPU, Device, device_for_volumes, to_host
from ..maps.fsc import FscCurves, read_fsc
from ..maps.half_maps import HalfMaps, read_half_maps
from ..maps.sharpen import applied_b_factor, sharpen
from ..model.fourier import by_shell
from ..progress import say
from ..records.particles import Particles
from ..records.poses import PoseTable
from ..records.resolved import ResolvedSettings
from ..records.results import DOUBTFUL, PoseBlur, RestControl, Sharpening
from ..records.run_input import InputChanges
from .directions import write_directions
from .mask_ladder import mask_ladder
from .pose_blur import (
    BlurredMap,
    Share,
    advice,
    as_half_map_fsc,
    expected_map_to_truth,
    expected_range,
    expected_resolution,
)
from .report import build_report
from .second_copy import second_copy
from .selection import effect, select, sentence, wanted
from .supported import support_advice, supported

Array = Any
ALIKE = 0.02  # of the share of half-map 1: closer to ½ the plain mean is as good
UNCERTAINTY_LABELS = ("lrRotationUncertainty", "lrShiftUncertainty")


def write_results(run: RunFolder, workers: int, device: Device = CPU) -> None:
    """Unfiltered half-maps, their mean, the sharpened map, poses, mask and FSC of the best iteration; maps are worked
    on on ``device``."""
    given, last = load_input(run), run.iterations_done()
    k = load_iteration(run, last).best_iteration
    final, names = run.path / "final", FINAL_FILES + OPTIONAL_FINAL_FILES
    for path in [run.report] + [run.final(name) for name in names]:
        remove(path)
    run.forget_film()  # of earlier results
    final.mkdir(exist_ok=True)
    for folder in (run.path, final):
        remove_temporary(folder)
    for half in (1, 2):
        copy(run.half_map(k, half), run.final(f"half_map_{half}.mrc"))
    copy(run.mask_in_use(k), run.final("mask.mrc"))
    if run.filter_resolution(k).exists():
        copy(run.filter_resolution(k), run.final("filter_resolution.mrc"))
    copy(run.fsc(k), run.final("fsc.star"))
    halves = read_half_maps(run, k, workers, device_for_volumes(device, given.box_size))
    curves = read_fsc(run.fsc(k))
    share = share_of_first(run, k, len(curves.corrected))
    mean, mask = weighted_mean(halves, share), read_map(run.mask_in_use(k))[0]
    believed = supported(curves, mask)
    write_maps(run, mean, curves, workers)
    write_ladder(run, halves, mask, curves)
    rows = select(run, k) if wanted(given.resolved) else None
    write_final_particles(run, k, rows)
    if rows is not None:
        selection = effect(run, k, rows, workers)
        save_record(run.final("selection.json"), selection)
        say(sentence(selection))
    write_directions(run, halves, mask, np.concatenate([table.rotation for table in load_tables(run, k)]))
    save_record(run.final("second_copy.json"),
                second_copy(halves, mask, given.pixel_size, given.resolved.symmetry))
    blur = pose_blur(run, k, BlurredMap.of(mean, mask, believed.corrected, believed.resolutions()["corrected"]
                                           / given.pixel_size, workers), believed, share)
    blur = replace(blur, advice=". ".join(text for text in (support_advice(curves, believed), blur.advice) if text))
    save_record(run.final("pose_blur.json"), blur)
    del halves, mean  # their memory is the control's now
    control = write_control(run, k, workers, device)
    changes = changes_at_the_end(run)
    if changes:
        save_record(run.final("input_changes.json"), InputChanges(tuple(changes)))
    for text in changes:
        say(f"warning: {text}")
    files = [run.final(name) for name in names if run.final(name).exists()]
    report = build_report(run)
    save_record(run.report, replace(report, files=run.sizes(files)))
    say("resolution to report: {:.2f} Å ({:.2f} to {:.2f} Å by the error of the FSC)".format(
        blur.resolution_to_report_angstrom, *blur.range_to_report_angstrom) + (DOUBTFUL if control.doubtful else ""))
    for text in report.advice:
        say(f"advice: {text}")
    say(f"results of iteration {k} are in {final}")


def write_control(run: RunFolder, iteration: int, workers: int, device: Device) -> RestControl:
    """What the rest of the particle says of the poses found, and a mask of what moves where not all of it does."""
    control, part = rest_control(run, iteration, device, workers)
    if part is not None:
        write_map(run.final("moving_part.mrc"), part, load_input(run).pixel_size)
    save_record(run.final("rest_control.json"), control)
    if not control.advice:
        say(control.sentence)
    return control


def write_maps(run: RunFolder, mean: Array, curves: FscCurves, workers: int) -> None:
    """The mean of the half-maps, as it is and sharpened, and how it was sharpened."""
    given = load_input(run)
    pixel_size, b_factor = given.pixel_size, given.resolved.sharpen_bfactor
    write_map(run.final("map.mrc"), to_host(mean), pixel_size)
    sharpened, fit = sharpen(mean, pixel_size, curves.corrected, curves.resolutions()["corrected"], b_factor, workers)
    write_map(run.final("map_sharpened.mrc"), to_host(sharpened), pixel_size)
    save_record(run.final("sharpening.json"), Sharpening(
        b_factor_applied=applied_b_factor(fit, b_factor), b_factor_guinier=fit.b_factor,
        guinier_correlation=fit.correlation, guinier_shells=fit.shells))


def write_ladder(run: RunFolder, halves: HalfMaps, mask: np.ndarray, curves: FscCurves) -> None:
    """The resolution in ever tighter masks, and the tightest that adds no correlation of its own."""
    given = load_input(run)
    ladder = mask_ladder(halves, mask, curves, given.resolved.seed)
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


def weighted_mean(halves: HalfMaps, share: Share) -> Array:
    """The mean of two half-maps (N, N, N), each weighted by what it knows, shell by shell."""
    if isinstance(share, float):
        return share * (halves.maps[0] + halves.maps[1])
    say(f"the half-sets are unequal: half-map 1 has {100 * share.mean():.0f} % of the weight in the final map")
    return halves.combined(by_shell(share), by_shell(1 - share))


def pose_blur(run: RunFolder, iteration: int, blurred_map: BlurredMap, curves: FscCurves, share: Share) -> PoseBlur:
    """κ and the FSC to the truth to be expected of the final map (pose_blur.py)."""
    given = load_input(run)
    resolved = given.resolved
    reported = curves.resolutions()["corrected"]
    tables = load_tables(run, iteration)
    rotation = np.concatenate([t.rotation for t in tables])

    def blurred(name: str) -> np.ndarray:
        covariance = np.concatenate([getattr(t, name) for t in tables])
        return blurred_map.correlation(covariance, rotation, resolved.seed)
    kappa = blurred("pose_error_covariance") * (blurred("covariance") if resolved.marginalize else 1)
    curve = expected_map_to_truth(curves.corrected, kappa, share)
    expected = expected_resolution(curve, given.box_size, given.pixel_size)
    to_report = max(expected, reported)
    finer, coarser = expected_range(curves, kappa, share)
    return PoseBlur(expected, to_report, (min(finer, to_report), max(coarser, to_report)), tuple(curve.tolist()),
                    tuple(as_half_map_fsc(curve).tolist()), tuple(kappa.tolist()), advice(expected, reported, coarser))


def write_final_particles(run: RunFolder, iteration: int, kept: Optional[Dict[int, np.ndarray]] = None) -> None:
    """particles.star with every input column, new angles and origins, and every row but those left out (exclude.py).

    Half-sets that were split anew replace rlnRandomSubset; fitted scales are added as lrScale, and how well each
    pose is known as lrRotationUncertainty and lrShiftUncertainty (see `pose_uncertainty`), the verdict as
    lrProbabilityAligned and lrProbabilityEmpty (verdicts.py). ``kept``, the rows of each half-set that a selection
    keeps: these and the others are written as tables of their own as well.
    """
    given, particles = load_input(run), load_particles(run)
    tables = load_tables(run, iteration)
    rotation, shift = particles.rotation.copy(), particles.shift_px.copy()
    for poses in tables:
        rotation[poses.row], shift[poses.row] = poses.rotation, poses.shift_px
    extra = new_columns(particles, tables, given.resolved)
    del tables, poses
    # the run's own copy: the user's file may have changed. Older versions kept none
    source = run.given_particles if run.given_particles.exists() else given.particles
    table = read_table(source, particles)
    used = np.flatnonzero(particles.half_set > 0)
    files = {"particles.star": used}
    if kept is not None:
        is_kept = np.isin(used, np.concatenate(list(kept.values())))
        files.update({"particles_kept.star": used[is_kept], "particles_left_out.star": used[~is_kept]})
    for name, rows in files.items():
        taken = table.take(rows)
        write_particles(run.final(name), taken, rotation[rows], shift[rows],
                        {label: values[rows] for label, values in extra.items()})
        if go_back(table.tables, table.particles):
            write_cs(run.final(name).with_suffix(".cs"), table.tables, taken.particles.texts([UID])[UID],
                     rotation[rows], origins_angstrom(taken, shift[rows]))


def new_columns(particles: Particles, tables: Sequence[PoseTable], resolved: ResolvedSettings) -> Dict[str, np.ndarray]:
    """What the run found out about each particle (n,), by label; 0 of those that were left out."""
    def column(of_table: Callable[[PoseTable], Optional[np.ndarray]], otherwise: float = 0.0) -> np.ndarray:
        values = np.zeros(len(particles))
        for table in tables:
            found = of_table(table)
            values[table.row] = otherwise if found is None else found
        return values

    uncertainty = np.zeros((len(particles), 2))
    for table in tables:
        uncertainty[table.row] = pose_uncertainty(table.pose_error_covariance, particles.pixel_size)
    found = dict(zip(UNCERTAINTY_LABELS, uncertainty.T))
    if any(table.probability_aligned is not None for table in tables):
        found["lrProbabilityAligned"] = np.round(column(lambda table: table.probability_aligned, 1.0), 4)
        found["lrProbabilityEmpty"] = np.round(column(lambda table: table.probability_empty), 4)
    if resolved.resplit_half_sets:
        found["rlnRandomSubset"] = particles.half_set
    if resolved.per_particle_scale:
        found["lrScale"] = column(lambda table: table.scale, 1.0)
    return found


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


