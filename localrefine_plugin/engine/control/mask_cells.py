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
from ..cells.evidence import CellEvidence, CellReference, cell_reference, cell_references
from ..cells.relative import cell_variances
from ..model.fourier import apply_shell_filter
from ..model.pixels import highest_shell, shell_of_resolution

COUNT = 8
BAND = 1.7  # times the resolution: finer detail is blurred by the motion that is looked for
LEAST_VOXELS = 50  # of a cell
Array = np.ndarray
EvidenceOf = Callable[[int, List[CellReference], int], CellEvidence]
"""What the images of a half-set say of the cells with these references, up to a shell."""


@dataclass(frozen=True)
class MaskCells:
    """C cells of the density in the mask, and the variance (Å², per axis) of the place of each and its standard error,
    both (C,); ``particles`` were looked at."""

    cells: Cells
    variance: Array
    error: Array
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
    value, error = pixel_size ** 2 * np.array([[one.value, one.error] for one in variances]).T
    return MaskCells(cells, value, error, len(evidence.score))
