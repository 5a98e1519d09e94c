"""Parts of the particle aligned by themselves, for the control: the mask, a part of it, and the rest."""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np

from ..align.half_alignment import HalfSet
from ..align.half_set import HalfResult, align_half
from ..align.reference_errors import ReferenceErrors
from ..align.search_plan import SearchPlan, search_plan
from ..io.run_store import load_iteration, load_motion, load_noise, stored_poses
from ..maps.mask import mask_centre, mask_radius
from ..maps.reference_filter import reference_fsc
from ..motion import motion_prior
from ..motion.motion_prior import Evidence
from ..motion.relative_motion import Wobble, evidence_about
from ..progress import ProgressBar
from ..records.particles import Particles
from ..records.poses import PoseTable
from .sample import Sample

REST_EXTENT = 15.0, 10.0  # degrees, Å: further from its input pose the rest is not looked for


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

    @property
    def rotation_error_deg(self) -> float:
        """s.d. per axis of the error of one rotation, in the median."""
        variance = np.trace(self.column("pose_error_covariance")[:, :3, :3], axis1=1, axis2=2) / 3
        return float(np.rad2deg(np.sqrt(np.median(variance))))

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
