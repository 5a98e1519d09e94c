"""RUN/final: what a user takes away, from the best iteration."""
from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ..control.parts import control_with_parts
from ..control.words import blurring, by_part
from ..inputs.changes import changes_at_the_end
from ..inputs.refined_before import UNCERTAINTY_LABELS
from ..io.cryosparc import UID, go_back, write_cs
from ..io.later import Later
from ..io.mrc import read_map, write_map
from ..io.relion_particles import origins_angstrom, read_table, write_computed
from ..io.rows import Together
from ..io.run_folder import FINAL_FILES, OPTIONAL_FINAL_FILES, RunFolder, remove, remove_temporary, write_atomic
from ..io.run_store import load_input, load_iteration, load_noise, save_record, stored_particles, stored_tables
from ..io.stored import JoinedColumn
from ..kernels.device import CPU, Device, array_module, device_for_volumes, to_host
from ..maps.fsc import FscCurves, read_fsc, write_fsc
from ..maps.half_maps import HalfMaps, read_half_maps
from ..maps.sharpen import applied_b_factor, sharpen
from ..merge.merge import curves_under
from ..model.fourier import by_shell
from ..progress import say
from ..records.particles import Particles
from ..records.poses import PoseTable
from ..records.resolved import ResolvedSettings
from ..records.results import PoseBlur, RestControl, Sharpening
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
from .second_state import counted
from .selection import effect, select
from .supported import support_advice, supported

Array = Any
ALIKE = 0.02  # of the share of half-map 1: closer to ½ the plain mean is as good
Of = Callable[[PoseTable, np.ndarray], Optional[np.ndarray]]
"""What is written of particles at these places of a pose table; None where it was not found out."""


def write_results(run: RunFolder, workers: int, device: Device = CPU,
                  completed: Optional[Sequence[np.ndarray]] = None) -> None:
    """Unfiltered half-maps, their mean, the sharpened map, poses, mask and FSC of the best iteration; maps are worked
    on on ``device``. ``completed``: half-maps (N, N, N) instead of those of the iteration (bodies/complete.py)."""
    last = run.iterations_done()
    k = load_iteration(run, last).best_iteration
    final, names = run.path / "final", FINAL_FILES + OPTIONAL_FINAL_FILES
    for path in [run.report] + [run.final(name) for name in names]:
        remove(path)
    run.forget_film()  # of earlier results
    final.mkdir(exist_ok=True)
    for folder in (run.path, final):
        remove_temporary(folder)
    with Later() as later:
        volumes = device_for_volumes(device, load_input(run).box_size)
        if completed is None:
            for half in (1, 2):
                later(copy, run.half_map(k, half), run.final(f"half_map_{half}.mrc"))
            later(copy, run.fsc(k), run.final("fsc.star"))
            halves, curves = read_half_maps(run, k, workers, volumes), read_fsc(run.fsc(k))
        else:
            halves = HalfMaps(volumes.to_device(completed[0]), volumes.to_device(completed[1]), workers)
            curves = write_completed(run, k, halves, later)
        blur = maps_and_poses(run, k, (halves, curves), later)
        del halves, completed  # their memory is the control's now
        control = write_control(run, k, blur, workers, device)
    changes = changes_at_the_end(run)
    if changes:
        save_record(run.final("input_changes.json"), InputChanges(tuple(changes)))
    for text in changes:
        say(f"warning: {text}")
    files = [run.final(name) for name in names if run.final(name).exists()]
    report = build_report(run)
    save_record(run.report, replace(report, files=run.sizes(files)))
    say("resolution to report: {:.2f} Å ({:.2f} to {:.2f} Å by the error of the FSC)".format(
        blur.resolution_to_report_angstrom, *blur.range_to_report_angstrom) + control.remark
        + (report.directions.beside if report.directions else ""))
    for text in report.advice:
        say(f"advice: {text}")
    say(f"results of iteration {k} are in {final}")


def write_completed(run: RunFolder, k: int, halves: HalfMaps, later: Later) -> FscCurves:
    """Half-maps that are not those of iteration k, and their FSC in its mask."""
    given = load_input(run)
    for half, volume in enumerate(halves.maps, 1):
        later(write_map, run.final(f"half_map_{half}.mrc"), to_host(volume), given.pixel_size)
    mask = array_module(halves.maps[0]).asarray(read_map(run.mask_in_use(k))[0])
    curves = curves_under(mask, halves, given.resolved, given.pixel_size)
    write_fsc(run.final("fsc.star"), curves)
    return curves


def maps_and_poses(run: RunFolder, k: int, found: Tuple[HalfMaps, FscCurves], later: Later) -> PoseBlur:
    """All of `write_results` that is of the half-maps ``found`` and their FSC, and the particles of iteration k."""
    given, (halves, curves) = load_input(run), found
    workers = halves.workers
    later(copy, run.mask_in_use(k), run.final("mask.mrc"))
    if run.filter_resolution(k).exists():
        later(copy, run.filter_resolution(k), run.final("filter_resolution.mrc"))
    mask = read_map(run.mask_in_use(k))[0]
    there = array_module(halves.maps[0]).asarray(mask)
    share = share_of_first(run, k, len(curves.corrected))
    mean, believed = weighted_mean(halves, share), supported(curves, mask)
    write_maps(run, mean, curves, workers, later)
    write_ladder(run, halves, there, curves, later)
    rows = select(run, k) if given.resolved.selects else None
    later(write_final_particles, run, k, rows)
    if rows is not None:
        selection = effect(run, k, rows, workers)
        save_record(run.final("selection.json"), selection)
        say(selection.sentence)
    views: Any = JoinedColumn([table.rotation for table in stored_tables(run, k)])
    write_directions(run, halves, there, views)
    copy_of = second_copy(halves, mask, given.pixel_size, given.resolved.symmetry, map_before(run))
    save_record(run.final("second_copy.json"), counted(run, k, copy_of, workers))
    blur = pose_blur(run, k, BlurredMap.of(mean, mask, believed.corrected, believed.resolutions()["corrected"]
                                           / given.pixel_size, workers), believed, share)
    blur = replace(blur, advice=". ".join(text for text in (support_advice(curves, believed), blur.advice) if text))
    save_record(run.final("pose_blur.json"), blur)
    return blur


def map_before(run: RunFolder) -> np.ndarray:
    """The low-passed input map (N, N, N)."""
    first, second = (read_map(run.reference(0, half))[0] for half in (1, 2))
    first += second
    return first


def write_control(run: RunFolder, iteration: int, blur: PoseBlur, workers: int, device: Device) -> RestControl:
    """What the rest of the particle says of the poses found, a mask of what moves where not all of it does, and a map
    of the resolution where it differs."""
    control, part, painted = control_with_parts(run, iteration, device, workers)
    pixel_size = load_input(run).pixel_size
    if part is not None:
        write_map(run.final("moving_part.mrc"), part, pixel_size)
    if painted is not None:
        resolutions = resolution_of_parts(control, blur, load_input(run).box_size, pixel_size)
        control = by_part(control, resolutions, blur.resolution_to_report_angstrom)
        if control.resolution_by_part_angstrom:
            write_map(run.final("resolution_by_part.mrc"), painted(resolutions), pixel_size)
    save_record(run.final("rest_control.json"), control)
    if not control.advice:
        say(control.sentence)
    return control


def resolution_of_parts(control: RestControl, blur: PoseBlur, box_size: int, pixel_size: float) -> np.ndarray:
    """Å (C,) where the FSC to the truth expected of the map, times exp(−k² v / 2), falls to 0.5: of every part of the
    mask that moves by v per axis against its place in the map."""
    k2 = (2 * np.pi * np.arange(len(blur.expected_map_to_truth)) / (box_size * pixel_size)) ** 2
    each = [expected_resolution(np.array(blur.expected_map_to_truth) * np.exp(-0.5 * k2 * variance), box_size,
                                pixel_size) for variance in blurring(control)]
    return np.maximum(each, blur.resolution_to_report_angstrom)


def write_maps(run: RunFolder, mean: Array, curves: FscCurves, workers: int, later: Later) -> None:
    """The mean of the half-maps, as it is and sharpened, and how it was sharpened."""
    given = load_input(run)
    pixel_size, b_factor = given.pixel_size, given.resolved.sharpen_bfactor
    later(write_map, run.final("map.mrc"), to_host(mean), pixel_size)
    sharpened, fit = sharpen(mean, pixel_size, curves.corrected, curves.resolutions()["corrected"], b_factor, workers)
    later(write_map, run.final("map_sharpened.mrc"), to_host(sharpened), pixel_size)
    save_record(run.final("sharpening.json"), Sharpening(
        b_factor_applied=applied_b_factor(fit, b_factor), b_factor_guinier=fit.b_factor,
        guinier_correlation=fit.correlation, guinier_shells=fit.shells))


def write_ladder(run: RunFolder, halves: HalfMaps, mask: Array, curves: FscCurves, later: Later) -> None:
    """The resolution in ever tighter masks, and the tightest that adds no correlation of its own."""
    given = load_input(run)
    ladder = mask_ladder(halves, mask, curves, given.resolved.seed)
    later(write_map, run.final("tightest_mask.mrc"), to_host(ladder.mask), given.pixel_size)
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
    tables = stored_tables(run, iteration)
    rotation: Any = JoinedColumn([table.rotation for table in tables])

    def blurred(name: str) -> np.ndarray:
        covariance: Any = JoinedColumn([getattr(table, name) for table in tables])
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
    given, particles = load_input(run), stored_particles(run)
    found = FinalColumns(particles, stored_tables(run, iteration), given.resolved)
    # the run's own copy: the user's file may have changed. Older versions kept none
    source = run.given_particles if run.given_particles.exists() else given.particles
    table = read_table(source, particles)
    used = np.flatnonzero(np.asarray(particles.half_set) > 0)
    files = {"particles.star": used}
    if kept is not None:
        is_kept = np.isin(used, np.concatenate(list(kept.values())))
        files.update({"particles_kept.star": used[is_kept], "particles_left_out.star": used[~is_kept]})
    for name, rows in files.items():
        taken = table.take(rows)
        write_computed(run.final(name), taken, found.poses_of(rows), found.extra(rows))
        if go_back(table.tables, table.particles):
            rotation, shift = found.poses_of(rows)(slice(None))
            write_cs(run.final(name).with_suffix(".cs"), table.tables, taken.particles.texts([UID])[UID],
                     rotation, origins_angstrom(taken, shift))


class FinalColumns:
    """What the run found of each particle, by rows of the input: poses, and columns by label."""

    def __init__(self, particles: Particles, tables: Sequence[PoseTable], resolved: ResolvedSettings):
        self.particles, self.tables = particles, tables
        self.row = [np.asarray(table.row) for table in tables]
        self.of_table: Dict[str, Tuple[Of, float]] = {
            label: (uncertainty(k, particles.pixel_size), 0.0) for k, label in enumerate(UNCERTAINTY_LABELS)}
        if any(table.probability_aligned is not None for table in tables):
            for label, name, otherwise in (("lrProbabilityAligned", "probability_aligned", 1.0),
                                           ("lrProbabilityEmpty", "probability_empty", 0.0)):
                self.of_table[label] = rounded(name), otherwise
        if resolved.per_particle_scale:
            self.of_table["lrScale"] = column_named("scale"), 1.0
        self.new_half_sets = resolved.resplit_half_sets

    def mine(self, rows: np.ndarray) -> Iterator[Tuple[PoseTable, np.ndarray, np.ndarray]]:
        """Of each table: which of ``rows`` (n,), ascending, are in it, and where."""
        for table, row in zip(self.tables, self.row):
            place = np.searchsorted(row, rows)
            here = np.flatnonzero(row[np.minimum(place, len(row) - 1)] == rows)
            yield table, here, place[here]

    def poses_of(self, rows: np.ndarray) -> Callable[[slice], Tuple[np.ndarray, np.ndarray]]:
        def poses(part: slice) -> Tuple[np.ndarray, np.ndarray]:
            some = rows[part]
            rotation, shift = self.particles.rotation[some], self.particles.shift_px[some]
            for table, here, place in self.mine(some):
                rotation[here], shift[here] = table.rotation[place], table.shift_px[place]
            return rotation, shift
        return poses

    def extra(self, rows: np.ndarray) -> Dict[str, Any]:
        """Columns (n,) of ``rows`` (n,), computed a slice at a time."""
        def computed(first: int, end: int) -> List[np.ndarray]:
            some = rows[first:end]
            columns = [np.full(len(some), 0.0) for _ in self.of_table]
            for table, here, place in self.mine(some):
                for values, (of, otherwise) in zip(columns, self.of_table.values()):
                    found = of(table, place)
                    values[here] = otherwise if found is None else found
            return [*columns, self.particles.half_set[some]]
        labels = [*self.of_table, "rlnRandomSubset"]
        columns = dict(zip(labels, Together(len(rows), computed).columns(len(labels))))
        return columns if self.new_half_sets else {label: columns[label] for label in self.of_table}


def column_named(name: str) -> Of:
    def of(table: PoseTable, place: np.ndarray) -> Optional[np.ndarray]:
        column = getattr(table, name)
        return None if column is None else column[place]
    return of


def rounded(name: str) -> Of:
    def of(table: PoseTable, place: np.ndarray) -> Optional[np.ndarray]:
        found = column_named(name)(table, place)
        return None if found is None else np.round(found, 4)
    return of


def uncertainty(number: int, pixel_size: float) -> Of:
    return lambda table, place: pose_uncertainty(table.pose_error_covariance[place], pixel_size)[:, number]


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


