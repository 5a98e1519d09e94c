"""Which density in the mask moves, cell by cell.

The density in the mask is divided into a few cells (cells/divide.py); everything outside the mask is one more. What the
images say of the motion of each (cells/evidence.py) is asked two questions, with the poses of all others free.

- At the poses of the rest of the particle, in maps made there: does the cell move against the particle as a whole? This
  is the motion that a run has not found whose poses are those of the rest.
- At the poses found: does the cell move against the mask as a whole, the pose of the rest free? The poses found are
  those at which the mask as a whole fits each image. So this is the motion that they do not hold, and the blur of the
  cell in the map.

A cell that holds density of the domain and of the rest moves by the mean of both: f u, for the share f that moves by u.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np

from ..align.reference import integer_centre
from ..align.static_part import outline_of
from ..cells.divide import Cells, divide
from ..cells.evidence import CellEvidence, CellReference, HalfTask, cell_evidence, cell_reference, cell_references
from ..cells.relative import Variance, cell_variances
from ..io.mrc import ImageReader, read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_iteration, load_noise, stored_particles, stored_poses
from ..kernels.batches import evenly_spaced
from ..model.fourier import apply_shell_filter
from ..model.pixels import highest_shell, shell_of_resolution
from ..progress import ProgressBar

COUNT = 8
BAND = 1.5  # times the resolution: finer detail is blurred by the motion that is looked for
LEAST_VOXELS = 50  # of a cell
Array = np.ndarray
EvidenceOf = Callable[[int, List[CellReference], int], CellEvidence]
"""What the images of a half-set say of the cells with these references, up to a shell."""


@dataclass(frozen=True)
class MaskCells:
    """C cells of the density in the mask, and the variance (Å², per axis) of the place of each, with its error;
    ``particles`` were looked at."""

    cells: Cells
    moved: List[Variance]
    particles: int


def mask_cells(maps: Sequence[Array], mask: Array, frame: Tuple[float, float], against_mask: bool,
               evidence_of: EvidenceOf) -> Optional[MaskCells]:
    """Of the density in a mask (N, N, N) of two half-maps; None where there is too little of it, or outside of it.

    frame : Å of a pixel, and the resolution.  against_mask : which question.
    """
    (pixel_size, resolution), box, mean = frame, len(mask), 0.5 * (maps[0] + maps[1])
    last = min(int(shell_of_resolution(BAND * resolution, box, pixel_size)), highest_shell(box))
    outline = outline_of(mean, pixel_size, resolution, 1)
    shown = apply_shell_filter(mean, (np.arange(box // 2 + 1) <= last).astype(np.float64))
    inside, outside = outline * mask, outline * (1 - mask)
    if min((shown * inside > 0).sum(), (outside > 0.5).sum()) < COUNT * LEAST_VOXELS:
        return None
    cells, rest = divide(shown, inside, COUNT, pixel_size), integer_centre(outside)
    found = []
    for half in (1, 2):
        of_half = maps[2 - half], maps[half - 1], last
        found.append(evidence_of(half, [*cell_references(cells, *of_half), cell_reference(outside, rest, *of_half)],
                                 last))
    evidence = CellEvidence(*(np.concatenate([getattr(one, name) for one in found]) for name in ("score", "curvature")))
    every = np.arange(COUNT + 1)
    bodies = [every[:COUNT], every[COUNT:]] if against_mask else [every]
    variances = cell_variances(evidence, bodies, np.concatenate([cells.centres, rest[None]]))[:COUNT]
    return MaskCells(cells, [Variance(*(v * pixel_size ** 2 for v in one)) for one in variances], len(evidence.score))


def at_poses_found(run: RunFolder, iteration: int, particles: int) -> Optional[MaskCells]:
    """How the cells move against the mask at the poses of an iteration; so many particles of each half-set at most."""
    everyone, mask = stored_particles(run), read_map(run.mask_in_use(iteration))[0]

    def evidence_of(half: int, references: List[CellReference], last: int) -> CellEvidence:
        table, bar = stored_poses(run, iteration, half), ProgressBar(f"cells of the mask, half {half}", particles)
        assert table is not None  # of an iteration that is done
        index = evenly_spaced(len(table.row), particles)
        some = everyone.take(np.asarray(table.row[index]))
        with ImageReader(some) as reader:
            task = HalfTask(some, reader.read, table.rotation[index], table.shift_px[index],
                            load_noise(run, iteration, half))
            return cell_evidence(task, references, last, bar.update)
    return mask_cells([read_map(run.half_map(iteration, half))[0] for half in (1, 2)], mask,
                      (everyone.pixel_size, load_iteration(run, iteration).resolution_angstrom["corrected"]), True,
                      evidence_of)
