"""The rest of the particle as a control: does the density in the mask move by itself, and all of it alike?

A small domain in a generous mask: the alignment follows the surroundings, the domain is blurred alike in both halves,
and the FSC tells of the surroundings. The rest of the particle, everything outside the mask, gives it away. A sample of
each half-set is aligned to the rest in that half-set's own input half-map, by the same search, and the motion of the
mask against the rest is learned (motion/relative_motion.py). Then the half of the mask's density that is sharper at the
mask's poses than at the rest's (moving_part.py) is aligned by itself. If the mask moves as one, this half moves as the
mask does; density of the rest in the mask makes the mask's poses follow the motion in part only. All of it
is done on as many pixels as the resolutions need (coarser.py).

Half-sets never mix: what is looked at of both is maps that are final, and numbers. No pose goes back to the run.
docs/explanation/rest-as-control.md has the measurements behind the limits.
"""
from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from ..align.half_alignment import HalfSet
from ..align.half_set import HalfResult, align_half
from ..align.of_run import other_bodies
from ..align.other_bodies import OtherBody
from ..align.reference_errors import ReferenceErrors, known_errors
from ..align.search_plan import SearchPlan, align_shell_of, search_plan
from ..align.static_part import outline_of
from ..inputs.changes import check_stacks
from ..io.mrc import ImageReader, read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, load_iteration, load_motion, load_noise, stored_particles, stored_poses
from ..kernels.batches import evenly_spaced
from ..kernels.device import Device
from ..kernels.prefetch import Read, from_array
from ..maps.mask import mask_centre, mask_radius
from ..maps.reference_filter import reference_fsc
from ..merge.motion_report import draws, summarise
from ..motion import motion_prior
from ..motion.motion_prior import Evidence, examine, inverses, isotropic_covariance, joined_evidence, learn
from ..motion.prior_shapes import prior_shape
from ..motion.relative_motion import Moments, Wobble, evidence_about, relative
from ..progress import ProgressBar, say
from ..records.errors import InputError
from ..records.motion import LearnedMotion, PrincipalMotion
from ..records.particles import Particles
from ..records.poses import PoseTable
from ..records.resolved import ResolvedSettings
from ..records.results import RestControl
from ..records.run_input import RunInput
from .coarser import Coarser
from .moving_part import CoarseGrid, belonging, divided, log_ratio, upper_half
from .words import judged

FEW, MANY = 250, 500  # particles of each half-set in the sample …
SHARE = 0.2  # … which is this share of it in between: three short alignments of them beside those of the run
LEAST_PARTICLES = 50  # of each half-set
LEAST_REST = 0.1  # of the density's power, outside the mask
START = 7.0, 4.0  # degrees, Å: widths that the motion is learned from
REST_EXTENT = 15.0, 10.0  # degrees, Å: further from its input pose the rest is not looked for


def rest_control(run: RunFolder, iteration: int, device: Device,
                 workers: int) -> Tuple[RestControl, Optional[np.ndarray]]:
    """What the rest of the particle says of the result of an iteration, and a soft mask (N, N, N) about the part of the
    mask that moves most, where its parts do not move alike."""
    try:
        sample = load_sample(run, iteration, device, workers)
        return control_of(sample)
    except InputError as error:  # results are complete without it; that it is missing is said
        return RestControl("not done", sentence=f"The control by the rest of the particle was not done: {error}"), None


@dataclass(frozen=True)
class Sample:
    """Of a run: an ``iteration``, and of each half-set some ``rows`` of the input, as they are in ``files``. All
    else is on the pixels of ``coarser``.

    ``maps``: those that were read.  ``images``: of each half-set, where they are not those of the files.
    """

    folder: RunFolder
    given: RunInput
    iteration: int
    rows: Dict[int, np.ndarray]
    files: Dict[int, Particles]
    device: Device
    coarser: Coarser
    maps: Dict[Path, np.ndarray] = field(default_factory=dict)
    images: Dict[int, np.ndarray] = field(default_factory=dict)

    @cached_property
    def particles(self) -> Dict[int, Particles]:
        return {half: self.coarser.particles(some) for half, some in self.files.items()}

    @property
    def workers(self) -> int:
        return self.coarser.workers

    @property
    def resolved(self) -> ResolvedSettings:
        """With a prior that learns: only then an alignment says what the images tell."""
        resolved = self.coarser.resolved(self.given.resolved)
        return resolved if prior_shape(resolved.prior).learns else replace(resolved, prior="learned")

    @property
    def pixel_size(self) -> float:
        return self.particles[1].pixel_size

    @property
    def box_size(self) -> int:
        return self.coarser.new

    @property
    def mask(self) -> np.ndarray:
        return self.read(self.folder.mask_in_use(self.iteration), self.coarser.mask)

    def map(self, path: Path) -> np.ndarray:
        return self.read(path, self.coarser.map)

    def read(self, path: Path, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        if path not in self.maps:
            self.maps[path] = change(read_map(path)[0])
        return self.maps[path]

    def noise(self, iteration: int, half: int) -> np.ndarray:
        return self.coarser.noise(load_noise(self.folder, iteration, half))

    def others(self, iteration: int, half: int) -> List[OtherBody]:
        """What the run subtracted from the images."""
        return [self.coarser.other_body(other) for other in
                other_bodies(self.folder, iteration, half, self.files[half], self.rows[half])]

    def errors(self, agreement: np.ndarray, maps: Tuple[np.ndarray, np.ndarray], mask: np.ndarray, centre: np.ndarray,
               density: np.ndarray) -> ReferenceErrors:
        """Of a reference and the half-map it was made of; ``density`` is the run's."""
        return known_errors(agreement[:self.box_size // 2 + 1], *maps, mask, centre, self.coarser.density(density))

    @contextmanager
    def reading(self, half: int) -> Iterator[Read]:
        if self.coarser.same:
            with ImageReader(self.files[half]) as reader:
                yield reader
            return
        if half not in self.images:
            with ImageReader(self.files[half]) as reader:
                index = np.arange(len(self.rows[half]))
                self.images[half] = self.coarser.images(reader, index, self.device)
        yield from_array(self.images[half])


def load_sample(run: RunFolder, iteration: int, device: Device, workers: int, few: int = FEW) -> Sample:
    given, particles = load_input(run), stored_particles(run)
    half_set, rows = np.asarray(particles.half_set), {}
    for half in (1, 2):
        mine = np.flatnonzero(half_set == half)
        if len(mine) < LEAST_PARTICLES:
            raise InputError(f"has only {len(mine)} particles", f"half-set {half}", "use more particles")
        count = int(np.clip(SHARE * len(mine), few, MANY))
        rows[half] = mine[evenly_spaced(len(mine), count)]
    check_stacks(run, given, np.unique(particles.stack[np.concatenate(list(rows.values()))]))
    shells = [align_shell_of(load_iteration(run, k).align_resolution_angstrom, given.resolved, particles)
              for k in (0, iteration - 1)]
    grid = CoarseGrid.of(particles.box_size, particles.pixel_size, workers)
    coarser = Coarser.holding(particles.box_size, max(grid.box // 2 - 1, *shells), workers)
    files = {half: particles.take(index) for half, index in rows.items()}
    return Sample(run, given, iteration, rows, files, device, coarser)


# ---------------------------------------------------------------- alignments

@dataclass(frozen=True)
class Aligned:
    """A part of both half-sets' samples: what the images say of its motion, its poses, its maps and their centre."""

    evidence: List[Evidence]
    poses: List[PoseTable]
    maps: List[np.ndarray]
    centre: np.ndarray

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(table, name) for table in self.poses])

    def at(self, centre: np.ndarray) -> List[Evidence]:
        """The evidence about another point (px from the box centre)."""
        return [evidence_about(evidence, centre - self.centre) for evidence in self.evidence]

    def wobble(self) -> Wobble:
        """Of the place of density in its maps: the errors of the poses, and the posteriors it was smeared over."""
        return Wobble.of_poses(self.column("rotation"),
                               self.column("pose_error_covariance") + self.column("covariance"), self.centre)


def plan_about(sample: Sample, part: np.ndarray, resolution: float, motion: Optional[np.ndarray] = None,
               extent: Optional[Tuple[float, float]] = None) -> SearchPlan:
    """The plan of a search for a part (N, N, N) about its own centre; ``motion`` is Σ about the mask's, ``extent`` in
    degrees and Å."""
    centre = mask_centre(part)
    corner = tuple(float(v) for v in centre)
    resolved = replace(sample.resolved, mask_centre_px=corner, fulcrum_px=corner,
                       mask_radius_angstrom=mask_radius(part, centre).effective * sample.pixel_size)
    if extent is not None:
        resolved = replace(resolved, rotation_extent_deg=extent[0], shift_extent_angstrom=extent[1])
    moved = np.rint(centre) - np.rint(np.array(sample.resolved.mask_centre_px))
    return search_plan(resolved, sample.particles[1], resolution,
                       None if motion is None else motion_prior.about_point(motion, moved))


def aligned(sample: Sample, half: int, task: HalfSet, plan: SearchPlan, what: str) -> HalfResult:
    bar = ProgressBar(f"control: {what}, half {half}", len(task.particles))
    return align_half(task, plan, sample.device, sample.workers, bar.update, verdicts=False)


def align_part(sample: Sample, part: Optional[np.ndarray], what: str) -> Aligned:
    """A part of the mask (None: the mask as it was), as the run's last alignment found its poses."""
    last = sample.iteration - 1
    record, found, plan = load_iteration(sample.folder, last), [], None
    for half in (1, 2):
        learned, rows = load_motion(sample.folder, last, half), sample.rows[half]
        covariance = None if learned is None else sample.coarser.motion(learned.covariance, sample.given.resolved)
        resolution, region = record.align_resolution_angstrom, sample.mask if part is None else part
        plan = (search_plan(sample.resolved, sample.particles[half], resolution, covariance) if part is None
                else plan_about(sample, part, resolution, covariance))
        reference = sample.map(sample.folder.reference(last, half))
        poses = stored_poses(sample.folder, max(last, 1), half)
        assert poses is not None
        previous = sample.coarser.poses(taken(poses, rows))
        if last == 0:  # it had no poses, and found these by its grid
            previous = replace(previous, modes=np.ones(len(rows), int))
        shells = None if part is not None else plan.align_shell + 1  # nobody looks at the map of the whole mask
        errors = None  # of the input's: it need not be made of these images
        if last > 0:
            maps = reference, sample.map(sample.folder.half_map(last, half))
            errors = sample.errors(np.array(record.reference_fsc), maps, region, plan.centre,
                                   load_noise(sample.folder, last, half, "accumulator_mean"))
        with sample.reading(half) as read:
            task = HalfSet(sample.particles[half], rows, read, reference, region, sample.noise(last, half)[:, :shells],
                           previous, errors, others=sample.others(last, half))
            found.append(aligned(sample, half, task, plan, what))
    assert plan is not None
    return joined(found, plan)


def align_rest(sample: Sample, rest: np.ndarray, references: List[np.ndarray]) -> Aligned:
    """The rest of the particle, from the input poses and the input half-maps."""
    resolution = load_iteration(sample.folder, 0).align_resolution_angstrom
    plan = plan_about(sample, rest, resolution, extent=REST_EXTENT)
    agreement, found = np.array(reference_fsc(references, rest, sample.workers)), []
    for half, reference in enumerate(references, 1):
        rows, particles = sample.rows[half], sample.particles[half]
        with sample.reading(half) as read:
            task = HalfSet(particles, rows, read, reference, rest, sample.noise(sample.iteration, half),
                           at_input(particles, rows),
                           errors_of_input(sample, half, reference, rest, plan.centre, agreement))
            found.append(aligned(sample, half, task, plan, "the rest of the particle"))
    return joined(found, plan)


def joined(found: List[HalfResult], plan: SearchPlan) -> Aligned:
    evidence = [result.evidence for result in found]
    return Aligned([one for one in evidence if one is not None], [result.poses for result in found],
                   [result.half_map for result in found], plan.centre)


def taken(table: PoseTable, rows: np.ndarray) -> PoseTable:
    """The rows of a table."""
    index = np.searchsorted(np.asarray(table.row), rows)
    return PoseTable(**{name: column[index] for name, column in table.columns().items()})


def at_input(particles: Particles, rows: np.ndarray) -> PoseTable:
    """The input poses as those of a last iteration that settled every particle: no grid is searched for it."""
    m = len(rows)
    none, nowhere = np.zeros(m, bool), np.zeros((m, 5, 5))
    return PoseTable(rows, particles.rotation, particles.shift_px, np.zeros((m, 3)), np.zeros((m, 2)), nowhere, nowhere,
                     np.zeros(m), np.ones(m, int), np.ones(m, int), none, none)


def errors_of_input(sample: Sample, half: int, reference: np.ndarray, rest: np.ndarray, centre: np.ndarray,
                    agreement: np.ndarray) -> Optional[ReferenceErrors]:
    """Those of the input half-map, which holds the noise of the images at their input poses; None where it does not, or
    is not there any more."""
    given = sample.given
    path = given.half_maps[half - 1]
    if given.resolved.resplit_half_sets or not Path(path).exists():
        return None
    half_map = sample.map(Path(path)) * np.float32(given.grey_scale[half - 1])
    return sample.errors(agreement, (reference, half_map), rest, centre,
                         load_noise(sample.folder, 1, half, "accumulator_mean"))


# ---------------------------------------------------------------- what they say

@dataclass(frozen=True)
class Relative:
    """The motion of a part against the rest: as learned, and the images' error of it, (n, 5, 5) about the mask."""

    learned: LearnedMotion
    error: np.ndarray
    rotation: np.ndarray
    centre: np.ndarray

    @classmethod
    def of(cls, part: Aligned, rest: Aligned, centre: np.ndarray, pixel_size: float) -> "Relative":
        evidence = joined_evidence([relative(a, b) for a, b in zip(part.at(centre), rest.at(centre))])
        start = isotropic_covariance(START[0], START[1] / pixel_size)
        learned = examine(evidence, learn(evidence, start, start), start)
        return cls(learned, inverses(evidence.curvature + 1e-6 * np.eye(5)), evidence.rotation0, centre)

    def displacement(self, density: Moments) -> Tuple[float, float]:
        """r.m.s. per axis, px, over a density, and its standard error."""
        def of(covariance: np.ndarray) -> float:
            return float(np.sqrt(Wobble.of_motion(covariance, self.rotation, self.centre).over(density)))
        few = replace(self, rotation=self.rotation[:: max(1, len(self.rotation) // 50)])
        many = [float(np.sqrt(Wobble.of_motion(s, few.rotation, few.centre).over(density)))
                for s in draws(self.learned, 40)]
        return of(self.learned.covariance), float(np.std(many))

    def detectable(self, density: Moments) -> float:
        """The displacement, px, whose variance is two standard errors of it where nothing moves: an image tells v to
        ± √2 v_error in each of three directions."""
        middle = np.median(np.trace(self.error, axis1=1, axis2=2))
        known = np.trace(self.error, axis1=1, axis2=2) <= 4 * middle  # a few views tell next to nothing
        error = Wobble.of_poses(self.rotation[known], self.error[known], self.centre).over(density)
        return float(np.sqrt(error * 2 * np.sqrt(2 / (3 * len(self.rotation)))))


def control_of(sample: Sample) -> Tuple[RestControl, Optional[np.ndarray]]:
    say("the rest of the particle as a control")
    references = [sample.map(sample.folder.reference(0, half)) for half in (1, 2)]
    pixel_size, centre = sample.pixel_size, sample.resolved.mask_centre_offset(sample.box_size)
    rest_mask = outside_of(sample, references)
    power = references[0] * references[1]
    outside = float((power * rest_mask).sum() / max(float((power * np.maximum(rest_mask, sample.mask)).sum()), 1e-30))
    if outside < LEAST_REST:
        return RestControl("not done", sentence="The control by the rest of the particle was not done: there is hardly "
                           f"any density outside the mask ({100 * max(outside, 0):.0f} %)"), None
    rest, whole = align_rest(sample, rest_mask, references), align_part(sample, None, "the mask")
    if np.median(rest.column("log_likelihood")) <= 0:
        return RestControl("not done", sentence="The control by the rest of the particle was not done: the images do "
                           "not show what the half-maps have outside the mask. It was probably subtracted"), None
    grid = CoarseGrid.of(sample.box_size, pixel_size, sample.workers)
    final = [sample.map(sample.folder.half_map(sample.iteration, half)) for half in (1, 2)]
    mask, at_mask, at_rest = grid.mask(sample.mask), [grid.map(m) for m in final], [grid.map(m) for m in rest.maps]
    of_mask, of_rest = grid.agreement(at_mask, mask), grid.agreement(at_rest, mask)
    upper = upper_half(grid, log_ratio(of_mask, of_rest), of_mask, mask)
    moving = align_part(sample, full_size(grid, upper, sample.mask), "the part that moves most")
    by_mask, by_part = (Relative.of(part, rest, centre, pixel_size) for part in (whole, moving))
    share, part = divide(grid, mask, moving, rest, by_part, (at_rest, of_rest))
    found = measured(by_mask, by_part, np.maximum(of_mask, 0), upper, grid.scale)
    control = judged(replace(
        RestControl("", sum(len(r) for r in sample.rows.values())), still_share=share,
        motion=summary(by_mask, sample), moving=summary(by_part, sample),
        displacement_angstrom=found[0] * pixel_size, displacement_error_angstrom=found[1] * pixel_size,
        detectable_angstrom=found[2] * pixel_size, followed=found[3], followed_error=found[4]),
        load_iteration(sample.folder, sample.iteration).resolution_angstrom["corrected"])
    if control.verdict != "mixed":
        return control, None
    whole_mask = read_map(sample.folder.mask_in_use(sample.iteration))[0]
    return control, np.minimum(sample.coarser.full_size(full_size(grid, part, sample.mask)), whole_mask)


def outside_of(sample: Sample, references: List[np.ndarray]) -> np.ndarray:
    """The outline of the particle without the mask."""
    return outline_of(0.5 * (references[0] + references[1]), sample.pixel_size,
                      load_iteration(sample.folder, 0).align_resolution_angstrom, sample.workers) * (1 - sample.mask)


def summary(motion: Relative, sample: Sample) -> PrincipalMotion:
    """In the units of people; px are the run's."""
    found = summarise(motion.learned, sample.resolved, sample.pixel_size)
    if found.hinge is None:
        return found
    point = tuple(v / sample.given.pixel_size for v in found.hinge.point_angstrom)
    return replace(found, hinge=replace(found.hinge, point_px=point))


def full_size(grid: CoarseGrid, mask: np.ndarray, within: np.ndarray) -> np.ndarray:
    """A mask of the grid as one (N, N, N) inside another."""
    volume = CoarseGrid(len(within), 1.0, 1.0, grid.workers).mask(mask)
    return np.minimum(volume, within).astype(np.float32)


def divide(grid: CoarseGrid, mask: np.ndarray, moving: Aligned, rest: Aligned, motion: Relative,
           at_rest: Tuple[List[np.ndarray], np.ndarray]) -> Tuple[float, np.ndarray]:
    """The share of the mask's density that stays with the rest, and a soft mask about the other, on the grid."""
    agreement = grid.agreement([grid.map(volume) for volume in moving.maps], mask)
    k2 = grid.wave_number2(at_rest[0], mask)
    errors, moved = (k2 * variance for variance in (
        rest.wobble().on_grid(grid.box, grid.scale) - moving.wobble().on_grid(grid.box, grid.scale),
        Wobble.of_motion(motion.learned.covariance, motion.rotation, motion.centre).on_grid(grid.box, grid.scale)))
    s = belonging(log_ratio(agreement, at_rest[1]), errors, moved)
    return divided(grid, s, np.maximum(np.maximum(agreement, at_rest[1]), 0), mask)


def measured(by_mask: Relative, by_part: Relative, density: np.ndarray, upper: np.ndarray,
             scale: float) -> Tuple[float, float, float, float, float]:
    """Displacement of the mask, its error, what could be seen (px); and what share of the part's displacement the
    mask's poses hold, with its error."""
    of_mask, of_part = Moments.of(density, scale), Moments.of(density * upper, scale)
    moved, error = by_mask.displacement(of_mask)
    (held, held_error), (all_of_it, its_error) = (r.displacement(of_part) for r in (by_mask, by_part))
    followed = held / max(all_of_it, 1e-9)
    followed_error = followed * float(np.hypot(held_error / max(held, 1e-9), its_error / max(all_of_it, 1e-9)))
    return moved, error, by_mask.detectable(of_mask), followed, followed_error
