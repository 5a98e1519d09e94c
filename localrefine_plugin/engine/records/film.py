"""What RUN/final/film holds beside its maps."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

FRAMES, AXES = 11, 3
"""Of a film if nothing else is asked for: maps of each series, and principal axes."""


@dataclass(frozen=True)
class FilmAxis:
    """One series of maps.

    Attributes
    ----------
    name : "axis_1", …, or "path".
    frames : files, relative to film.json.
    motions : (frames, 6) of each frame: w in degrees, and d in Å of the centre of the mask.
    positions : (frames,) along the axis in standard deviations of the motion, from its mean.
    percentiles : (frames,) the share of the particles, in %, that are before each frame.
    rotation_sd_deg, displacement_sd_angstrom : of the motion along the axis, and their standard errors; the latter is
        the root mean square over the mask. None for the path, which is no axis.
    rotation_range_deg, displacement_range_angstrom : from the mean to the first frame and to the last.
    turns_about : direction (x, y, z) of the rotation.  through_px : the point of that axis next to the centre of the
        mask, x, y, z from the corner of the box.  along_angstrom : displacement along it, for one standard deviation.
    share : of the mean square displacement of the mask.
    bins, counts : of the particles along the axis; bins in standard deviations.
    cut : whether the frames end before the percentiles, where hardly a particle was seen.
    """

    name: str
    frames: Tuple[str, ...]
    motions: Tuple[Tuple[float, ...], ...]
    positions: Tuple[float, ...]
    percentiles: Tuple[float, ...]
    rotation_range_deg: Tuple[float, ...]
    displacement_range_angstrom: Tuple[float, ...]
    bins: Tuple[float, ...]
    counts: Tuple[int, ...]
    cut: bool = False
    rotation_sd_deg: Optional[float] = None
    rotation_sd_deg_error: Optional[float] = None
    displacement_sd_angstrom: Optional[float] = None
    displacement_sd_angstrom_error: Optional[float] = None
    turns_about: Optional[Tuple[float, ...]] = None
    through_px: Optional[Tuple[float, ...]] = None
    along_angstrom: Optional[float] = None
    share: Optional[float] = None


@dataclass(frozen=True)
class Film:
    """film.json.

    Attributes
    ----------
    iteration : of the run.  rest : the run whose map is the rest, or "" for the input half-maps.
    box_size : px.  pixel_size : Å.  centre_px : of the mask, x, y, z from the corner of the box.
    percentiles : the first and the last that is shown.  particles : shown in the histograms.
    mean_motion : (6,) about which the axes are, w in degrees and d in Å.
    axes : the path first.  words : sentences.  level : density at which ChimeraX shows the maps.
    files : written before this record: name in the run folder → bytes.
    """

    iteration: int
    rest: str
    box_size: int
    pixel_size: float
    centre_px: Tuple[float, ...]
    percentiles: Tuple[float, ...]
    particles: int
    mean_motion: Tuple[float, ...]
    axes: Tuple[FilmAxis, ...]
    words: Tuple[str, ...]
    level: float
    files: Dict[str, int]
