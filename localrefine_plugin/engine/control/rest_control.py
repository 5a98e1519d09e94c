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

from dataclasses import dataclass, replace
from typing import List, Optional, Tuple

import numpy as np

from ..align.static_part import outline_of
from ..io.mrc import read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_iteration
from ..kernels.device import Device
from ..merge.motion_report import draws, summarise
from ..motion.motion_prior import examine, inverses, isotropic_covariance, joined_evidence, learn
from ..motion.relative_motion import Moments, Wobble, relative
from ..progress import say
from ..records.errors import InputError
from ..records.motion import LearnedMotion, PrincipalMotion
from ..records.results import RestControl
from .alignments import Aligned, align_part, align_rest
from .moving_part import CoarseGrid, belonging, divided, log_ratio, upper_half
from .sample import Sample, load_sample
from .words import judged

LEAST_REST = 0.1  # of the density's power, outside the mask
KNOWN_DEG = 3.0  # s.d. per axis of one rotation of the rest, in the median: beyond it, errors are no small motions
START = 7.0, 4.0  # degrees, Å: widths that the motion is learned from


def rest_control(run: RunFolder, iteration: int, device: Device,
                 workers: int) -> Tuple[RestControl, Optional[np.ndarray]]:
    """What the rest of the particle says of the result of an iteration, and a soft mask (N, N, N) about the part of the
    mask that moves most, where its parts do not move alike."""
    try:
        return control_of(load_sample(run, iteration, device, workers))
    except InputError as error:
        return not_done(error), None


def not_done(error: InputError) -> RestControl:
    """Results are complete without it; that it is missing is said."""
    return RestControl("not done", sentence=f"The control by the rest of the particle was not done: {error}")


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
    rest, _ = rest_of(sample)
    if np.median(rest.column("log_likelihood")) <= 0:
        return RestControl("not done", sentence="The control by the rest of the particle was not done: the images do "
                           "not show what the half-maps have outside the mask. It was probably subtracted"), None
    if rest.rotation_error_deg > KNOWN_DEG:
        return RestControl("not done", sentence="The control by the rest of the particle was not done: one image tells "
                           f"the rotation of what is outside the mask only to {rest.rotation_error_deg:.1f}° per axis. "
                           "Whether the mask moves by itself is not known"), None
    whole = align_part(sample, None, "the mask")
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


def rest_of(sample: Sample) -> Tuple[Aligned, np.ndarray]:
    """The sample aligned to the rest, and the mask (N, N, N) of the rest."""
    if not sample.rest:
        references = [sample.map(sample.folder.reference(0, half)) for half in (1, 2)]
        outside = outside_of(sample, references)
        sample.rest.append((align_rest(sample, outside, references), outside))
    found: Tuple[Aligned, np.ndarray] = sample.rest[0]
    return found


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
