"""What RUN/final/rigidity holds beside its maps."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from .forecast import Forecast
from .motion import PrincipalMotion


@dataclass(frozen=True)
class CellMotion:
    """One cell.

    Attributes
    ----------
    centre_px : x, y, z from the corner of the box.  share : of the density.  body : its number, from 1.
    variance_angstrom2 : of the cell's place against body 1, per axis, and its standard error; noise may make it
        negative.
    displacement_angstrom : its square root, or 0.  displacement_error_angstrom : what one standard error more adds.
    detectable_angstrom : the displacement whose variance is two standard errors, by the scattering of the cell, the
        noise and the number of images alone.
    moves : whether the variance is four standard errors (a cell that rests in thirty thousand), and the displacement
        a tenth of the resolution.
    """

    centre_px: Tuple[float, ...]
    share: float
    body: int
    variance_angstrom2: float
    variance_error_angstrom2: float
    displacement_angstrom: float
    displacement_error_angstrom: float
    detectable_angstrom: float
    moves: bool


@dataclass(frozen=True)
class RigidBody:
    """Cells that move together.

    Attributes
    ----------
    number : from 1, the largest first.  share : of the density.  mask : file, relative to rigidity.json.
    motion : against body 1, about the centre of the body; None for body 1.
    gain : in log likelihood over moving with body 1; None for body 1.
    forecast : of a local refinement with this mask; None where there is one body only.
    """

    number: int
    share: float
    mask: str
    motion: Optional[PrincipalMotion] = None
    gain: Optional[float] = None
    forecast: Optional[Forecast] = None


@dataclass(frozen=True)
class Rigidity:
    """rigidity.json.

    Attributes
    ----------
    iteration : of the run, whose poses and half-maps were used.  particles : that were looked at.
    band_angstrom : the finest detail that was used.  cells, bodies : what was found.
    words : sentences.  level : density at which ChimeraX shows the map.
    files : written before this record: name in the run folder → bytes.
    """

    iteration: int
    particles: int
    band_angstrom: float
    cells: Tuple[CellMotion, ...]
    bodies: Tuple[RigidBody, ...]
    words: Tuple[str, ...]
    level: float
    files: Dict[str, int]
    part: str = ""
