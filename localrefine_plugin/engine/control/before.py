"""The question of the control asked before a run: which density in the mask moves against the rest of the particle?

Some particles of each half-set are aligned to the rest, from the input poses to the input half-map of their half-set.
At these poses, in maps made there, the cells of the mask are asked how they move (mask_cells.py). No mask that is too
large misleads this: the mask is not aligned.
"""
from __future__ import annotations

from dataclasses import replace
from typing import List, NamedTuple, Optional

import numpy as np

from ..align.half_alignment import HalfSet
from ..align.half_set import HalfResult, align_half
from ..align.search_plan import SearchPlan, align_shell_of, search_plan
from ..align.static_part import outline_of
from ..cells.evidence import CellEvidence, CellReference, HalfTask, cell_evidence
from ..io.mrc import ImageReader
from ..kernels.device import Device
from ..kernels.prefetch import from_array
from ..maps.fsc import fsc, resolution_at
from ..maps.mask import mask_centre, mask_radius
from ..motion.prior_shapes import prior_shape
from ..progress import ProgressBar
from ..records.iteration import FSC_THRESHOLD
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings
from ..records.results import PartOfMask
from .alignments import REST_EXTENT, at_input
from .coarser import Coarser
from .mask_cells import BAND, mask_cells
from .moving_part import CoarseGrid
from .rest_control import LEAST_REST
from .words import most, moving, seen_from, still_share, with_what_is_left_out

TOO_MUCH = 0.4  # of the density in the mask that stays with the rest; near a hinge a domain moves little as well
SAMPLE_BAND = 1.2 / BAND  # of the resolution of the sample's maps: a run's resolution is finer than theirs
Array = np.ndarray


class SampleBefore(NamedTuple):
    """Of each half-set: some particles as they are in the files, the reference (N, N, N) of the first iteration and the
    power of the noise (groups, M + 1). And the mask (N, N, N), the settings, and where to compute."""

    particles: List[Particles]
    references: List[Array]
    noise: List[Array]
    mask: Array
    resolved: ResolvedSettings
    device: Device
    workers: int = 1


class MaskBefore(NamedTuple):
    """``still_share`` of the density in the mask does not move with what moves in it (0.15 uncertain; None where
    nothing is seen to move), ``seen_angstrom`` per axis would be seen in half of its parts, and a sentence."""

    still_share: Optional[float]
    seen_angstrom: float
    sentence: str

    @property
    def doubtful(self) -> bool:
        return self.still_share is not None and self.still_share > TOO_MUCH


def mask_before(sample: SampleBefore) -> Optional[MaskBefore]:
    """What the images say of the mask before it is refined; None where there is no rest, or too little in the mask."""
    sample, images = on_fewer_pixels(sample)
    box, pixel_size = len(sample.mask), sample.particles[0].pixel_size
    lowpass = sample.resolved.initial_lowpass_angstrom
    outline = outline_of(0.5 * (sample.references[0] + sample.references[1]), pixel_size, lowpass, sample.workers)
    rest, power = outline * (1 - sample.mask), sample.references[0] * sample.references[1]
    if float((power * rest).sum()) < LEAST_REST * float((power * np.maximum(rest, sample.mask)).sum()):
        return None
    found, plan = [], plan_of(sample, rest)
    for half, particles in enumerate(sample.particles):
        rows = np.arange(len(particles))
        task = HalfSet(particles, rows, from_array(images[half]), sample.references[half], rest, sample.noise[half],
                       at_input(particles, rows))
        bar = ProgressBar(f"the rest of the particle, half {half + 1}", len(rows))
        found.append(align_half(task, plan, sample.device, sample.workers, bar.update, verdicts=False))
    maps = [result.half_map for result in found]
    resolution = resolution_at(fsc(maps[0] * rest, maps[1] * rest), FSC_THRESHOLD, box, pixel_size)
    cells = mask_cells(maps, sample.mask, (pixel_size, SAMPLE_BAND * resolution), False,
                       lambda half, references, last: evidence_of(sample, images, found, half, references, last))
    if cells is None:
        return None
    errors = with_what_is_left_out(cells.error, resolution)
    parts = [PartOfMask((), float(share), float(variance), float(error))
             for share, variance, error in zip(cells.cells.share, cells.variance, errors)]
    share = still_share(parts)
    return MaskBefore(share, seen_from(parts), sentence_of(share, parts))


def sentence_of(still: Optional[float], parts: List[PartOfMask]) -> str:
    if still is None:
        return (f"no part of the mask is seen to move against the rest of the particle ({seen_from(parts):.1f} Å per "
                "axis would be seen in half of its parts)")
    share = 100 * sum(part.share for part in moving(parts))
    return (f"{share:.0f} % of the density in the mask is sure to move against the rest of the particle (by up to "
            f"{most(parts)} per axis), and about {100 * still:.0f} % does not move with it")


def on_fewer_pixels(sample: SampleBefore) -> "tuple[SampleBefore, List[Array]]":
    """The sample on the pixels that the control needs, and its images."""
    first = sample.particles[0]
    shell = align_shell_of(sample.resolved.initial_lowpass_angstrom, sample.resolved, first)
    grid = CoarseGrid.of(first.box_size, first.pixel_size, sample.workers)
    coarser, images = Coarser.holding(first.box_size, max(grid.box // 2 - 1, shell), sample.workers), []
    for particles in sample.particles:
        with ImageReader(particles) as read:
            images.append(coarser.images(read, np.arange(len(particles)), sample.device))
    return sample._replace(particles=[coarser.particles(one) for one in sample.particles],
                           references=[coarser.map(one) for one in sample.references],
                           noise=[coarser.noise(one) for one in sample.noise], mask=coarser.mask(sample.mask),
                           resolved=coarser.resolved(sample.resolved)), images


def plan_of(sample: SampleBefore, rest: Array) -> SearchPlan:
    """The search for the rest, with a prior that learns."""
    centre, resolved = mask_centre(rest), sample.resolved
    corner = tuple(float(v) for v in centre)
    resolved = replace(resolved, prior=resolved.prior if prior_shape(resolved.prior).learns else "learned",
                       mask_centre_px=corner, fulcrum_px=corner, rotation_extent_deg=REST_EXTENT[0],
                       shift_extent_angstrom=REST_EXTENT[1],
                       mask_radius_angstrom=mask_radius(rest, centre).effective * sample.particles[0].pixel_size)
    return search_plan(resolved, sample.particles[0], resolved.initial_lowpass_angstrom)


def evidence_of(sample: SampleBefore, images: List[Array], found: List[HalfResult], half: int,
                references: List[CellReference], last: int) -> CellEvidence:
    result, particles = found[half - 1], sample.particles[half - 1]
    task = HalfTask(particles, from_array(images[half - 1]), result.poses.rotation, result.poses.shift_px,
                    result.noise_power)
    bar = ProgressBar(f"parts of the mask, half {half}", len(particles))
    return cell_evidence(task, references, last, bar.update)
