"""The control by the rest of the particle, and what its verdict leaves open, asked of the parts of the mask.

*Consensus*: the poses found are those of the rest. Does a part of the mask move nevertheless? A larger sample of the
images is aligned to the rest, and the cells of the mask are asked at these poses, in the maps made there.
Otherwise: is every part of the mask where the poses found say? The cells are asked at these poses.
"""
from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional, Sequence

import numpy as np

from ..cells.evidence import CellEvidence, CellReference, HalfTask, cell_evidence
from ..io.run_folder import RunFolder
from ..io.run_store import load_iteration, stored_poses
from ..kernels.device import Device
from ..progress import ProgressBar
from ..records.errors import InputError
from ..records.poses import PoseTable
from ..records.results import PartOfMask, RestControl
from .alignments import align_rest, taken
from .mask_cells import EvidenceOf, MaskCells, mask_cells
from .rest_control import outside_of, rest_control
from .sample import MANY, Sample, load_sample
from .words import with_parts, with_what_is_left_out

Array = np.ndarray
THERE = 0.1  # of the masks of all cells: what lies below belongs to none


class Control(NamedTuple):
    """What was found; a soft mask (N, N, N) about the part of the mask that moves most, where its parts do not move
    alike; and the map (N, N, N) that has a value in each part of the mask, where there are parts."""

    record: RestControl
    moving_part: Optional[Array]
    painted: Optional[Callable[[Array], Array]]


def control_with_parts(run: RunFolder, iteration: int, device: Device, workers: int) -> Control:
    """The control of the result of an iteration."""
    record, moving_part = rest_control(run, iteration, device, workers)
    if record.verdict in ("not done", "unclear"):
        return Control(record, moving_part, None)
    try:
        sample = load_sample(run, iteration, device, workers, few=MANY)
    except InputError:  # a file went away since the control: its own sentence tells of what there was
        return Control(record, moving_part, None)
    cells = at_the_rest(sample) if record.verdict == "consensus" else at_poses_found(sample)
    if cells is None:
        return Control(record, moving_part, None)
    middle, scale = np.full(3, sample.coarser.old // 2), sample.coarser.scale
    errors = with_what_is_left_out(cells.error, resolution_of(sample))
    parts = [PartOfMask(tuple(float(v) for v in middle + centre / scale), float(share), float(variance), float(error))
             for centre, share, variance, error in zip(cells.cells.centres, cells.cells.share, cells.variance,
                                                       errors)]

    def painted(values: Array) -> Array:
        there = cells.cells.paint(np.ones(len(values)))
        value = np.where(there > THERE, cells.cells.paint(values) / np.maximum(there, THERE), 0).astype(np.float32)
        return sample.coarser.full_size(value)
    return Control(with_parts(record, parts, cells.particles, resolution_of(sample)), moving_part, painted)


def resolution_of(sample: Sample) -> float:
    return load_iteration(sample.folder, sample.iteration).resolution_angstrom["corrected"]


def at_the_rest(sample: Sample) -> Optional[MaskCells]:
    """How the cells of the mask move against the particle, at the poses of its rest."""
    references = [sample.map(sample.folder.reference(0, half)) for half in (1, 2)]
    rest = align_rest(sample, outside_of(sample, references), references)
    return mask_cells(rest.maps, sample.mask, (sample.pixel_size, resolution_of(sample)), False,
                      evidence_at(sample, rest.poses))


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
