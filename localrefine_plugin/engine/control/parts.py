"""The control by the rest of the particle, and what its verdict leaves open, asked of the parts of the mask.

A larger sample of the images is aligned to the rest, and the cells of the mask are asked at these poses, in the maps
made there: does one of them move? *Consensus*: the poses found are those of the rest; a part of the mask may move
nevertheless. *Mixed*, or *apart* by little: the rest, which lies over the mask in the images, may have pulled at it,
and nothing moves. If it moves: is every part of the mask where the poses found say? The cells are asked at these poses.

Of a sample that was aligned before a run, the first question is asked. No mask that is too large misleads it: the
mask is not aligned.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..cells.evidence import CellEvidence, CellReference, HalfTask, cell_evidence
from ..io.run_folder import RunFolder
from ..io.run_store import load_iteration, stored_poses
from ..kernels.device import Device
from ..maps.fsc import fsc, resolution_at
from ..progress import ProgressBar
from ..records.errors import InputError
from ..records.iteration import FSC_THRESHOLD
from ..records.poses import PoseTable
from ..records.results import PartOfMask, RestControl
from .alignments import Aligned, taken
from .mask_cells import BAND, EvidenceOf, MaskCells, mask_cells
from .rest_control import control_of, not_done, rest_of
from .sample import Sample, load_samples
from .words import in_question, with_parts_at_rest, with_what_is_left_out

Array = np.ndarray
THERE = 0.1  # of the masks of all cells: what lies below belongs to none
SAMPLE_BAND = 1.2 / BAND  # of the resolution of a sample's maps: a run's resolution is finer than theirs


class Control(NamedTuple):
    """What was found; a soft mask (N, N, N) about the part of the mask that moves most, where its parts do not move
    alike; and the map (N, N, N) that has a value in each part of the mask, where there are parts."""

    record: RestControl
    moving_part: Optional[Array]
    painted: Optional[Callable[[Array], Array]]


def control_with_parts(run: RunFolder, iteration: int, device: Device, workers: int) -> Control:
    """The control of the result of an iteration."""
    try:
        few, sample = load_samples(run, iteration, device, workers)
        record, moving_part = control_of(few)
    except InputError as error:
        return Control(not_done(error), None, None)
    if record.verdict in ("not done", "unclear"):
        return Control(record, moving_part, None)
    resolution, cells = resolution_of(sample), None
    if in_question(record, resolution):
        cells = at_the_rest(sample)
        if cells is not None:
            record = with_parts_at_rest(record, parts_of(sample, cells, resolution), cells.particles, resolution)
    if record.verdict not in ("consensus", "still"):
        cells = at_poses_found(sample)
        if cells is not None:
            record = replace(record, parts=tuple(parts_of(sample, cells, resolution)), parts_particles=cells.particles)
    moving_part = moving_part if record.verdict == "mixed" else None
    if cells is None:
        return Control(record, moving_part, None)
    divided = cells.cells

    def painted(values: Array) -> Array:
        there = divided.paint(np.ones(len(values)))
        value = np.where(there > THERE, divided.paint(values) / np.maximum(there, THERE), 0).astype(np.float32)
        return sample.coarser.full_size(value)
    return Control(record, moving_part, painted)


def before_a_run(run: RunFolder, iteration: int, device: Device,
                 workers: int) -> Tuple[RestControl, Optional[List[PartOfMask]]]:
    """The control of a sample that is a run after its first iterations, and how the parts of the mask move against the
    rest; None where the control was not done, or too little is in the mask."""
    try:
        few, sample = load_samples(run, iteration, device, workers)
        record, _ = control_of(few)
    except InputError as error:
        return not_done(error), None
    return record, None if record.verdict == "not done" else parts_before(sample)


def parts_before(sample: Sample) -> Optional[List[PartOfMask]]:
    rest, outside = rest_of(sample)
    resolution = resolution_at(fsc(rest.maps[0] * outside, rest.maps[1] * outside), FSC_THRESHOLD, sample.box_size,
                               sample.pixel_size)
    cells = cells_against(sample, rest, SAMPLE_BAND * resolution)
    return None if cells is None else parts_of(sample, cells, resolution)


def parts_of(sample: Sample, cells: MaskCells, resolution: float) -> List[PartOfMask]:
    """In the units of people; places are px of the run."""
    middle, scale = np.full(3, sample.coarser.old // 2), sample.coarser.scale
    errors = with_what_is_left_out(cells.error, resolution)
    return [PartOfMask(tuple(float(v) for v in middle + centre / scale), float(share), float(variance), float(error))
            for centre, share, variance, error in zip(cells.cells.centres, cells.cells.share, cells.variance, errors)]


def resolution_of(sample: Sample) -> float:
    return load_iteration(sample.folder, sample.iteration).resolution_angstrom["corrected"]


def at_the_rest(sample: Sample) -> Optional[MaskCells]:
    """How the cells of the mask move against the particle, at the poses of its rest."""
    return cells_against(sample, rest_of(sample)[0], resolution_of(sample))


def cells_against(sample: Sample, rest: Aligned, resolution: float) -> Optional[MaskCells]:
    return mask_cells(rest.maps, sample.mask, (sample.pixel_size, resolution), False, evidence_at(sample, rest.poses))


def at_poses_found(sample: Sample) -> Optional[MaskCells]:
    """How they move against the mask as a whole, at the poses found."""
    poses: List[PoseTable] = []
    for half in (1, 2):
        table = stored_poses(sample.folder, sample.iteration, half)
        assert table is not None  # of an iteration that is done
        poses.append(sample.coarser.poses(taken(table, sample.rows[half])))
    maps = [sample.map(sample.folder.half_map(sample.iteration, half)) for half in (1, 2)]
    return mask_cells(maps, sample.mask, (sample.pixel_size, resolution_of(sample)), True, evidence_at(sample, poses))


def evidence_at(sample: Sample, poses: Sequence[PoseTable]) -> EvidenceOf:
    def evidence_of(half: int, references: List[CellReference], last: int) -> CellEvidence:
        table, particles = poses[half - 1], sample.particles[half]
        bar = ProgressBar(f"control: parts of the mask, half {half}", len(particles))
        with sample.reading(half) as read:
            task = HalfTask(particles, read, table.rotation, table.shift_px, sample.noise(sample.iteration, half))
            return cell_evidence(task, references, last, bar.update)
    return evidence_of
