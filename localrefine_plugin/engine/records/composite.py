"""What a composite map holds beside its maps."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple


@dataclass(frozen=True)
class PlacedBody:
    """One body of a composite.

    Attributes
    ----------
    run : the run folder.  is_frame : whether the others were placed relative to it.
    placement : (6,) w in degrees and d in Å of the centre of its mask: the mean of its poses in the frame.
    placement_error_angstrom : standard error of the placement, root mean square over the mask.
    centre_px : of its mask, x, y, z from the corner of the box.
    mask : file of the mask where the body was placed.
    resolution_angstrom : of the composite in that mask; own_resolution_angstrom : of the run's map in its mask. Both at
        FSC 0.143, corrected for the mask.
    overlap : share of its mask that lies in masks of other bodies.
    """

    run: str
    is_frame: bool
    placement: Tuple[float, ...]
    placement_error_angstrom: float
    centre_px: Tuple[float, ...]
    mask: str
    resolution_angstrom: float
    own_resolution_angstrom: float
    overlap: float


@dataclass(frozen=True)
class Composite:
    """composite.json.

    Attributes
    ----------
    frame : the run in whose frame the composite is, or "" for the input poses of the first run.
    rest : the two half-maps of the rest.  rest_placement : (6,) w in degrees and d in Å of the centre of the box.
    rest_share : share of the particle that no mask covers.
    box_size : px.  pixel_size : Å.
    resolution_angstrom : by name of FSC_CURVES, at FSC 0.143, in mask.mrc.
    words : what the composite is, in sentences.  warnings : what is doubtful.
    files : written before this record: name → bytes.
    """

    frame: str
    rest: Tuple[str, ...]
    rest_placement: Tuple[float, ...]
    rest_share: float
    box_size: int
    pixel_size: float
    resolution_angstrom: Dict[str, float]
    bodies: Tuple[PlacedBody, ...]
    words: Tuple[str, ...]
    warnings: Tuple[str, ...]
    files: Dict[str, int]
