"""From settings and data to the numbers of a run: what "auto" stands for, and the plan of a search."""
from __future__ import annotations

from typing import Any, Dict

import numpy as np

from .align import SearchPlan
from .mask import mask_centre, mask_radius
from .pixels import highest_shell
from .records import Particles, Settings
from .reference import integer_centre

EXTENT_IN_SIGMA = 3.0
FREE_ROTATION_EXTENT_DEG, FREE_SHIFT_EXTENT_ANGSTROM = 20.0, 10.0
LOWPASS_MARGIN_ANGSTROM = 1.5


def resolve(settings: Settings, mask: np.ndarray, input_resolution: float, pixel_size: float) -> Dict[str, Any]:
    """Every value the run goes by, JSON-ready: the settings with "auto" filled in, fulcrum and mask geometry.

    ``input_resolution``: Å at FSC 0.143 of the input half-maps inside the mask. Points are in px from
    the corner of the box, xyz.
    """
    box = mask.shape[0]
    values = settings.as_dict()
    has_prior = settings.prior != "off"
    free = FREE_ROTATION_EXTENT_DEG, FREE_SHIFT_EXTENT_ANGSTROM
    wide = EXTENT_IN_SIGMA * settings.prior_rotation_deg, EXTENT_IN_SIGMA * settings.prior_shift_angstrom
    for name, extent in zip(("rotation_extent_deg", "shift_extent_angstrom"), wide if has_prior else free):
        if values[name] is None:
            values[name] = min(extent, 90.0) if name == "rotation_extent_deg" else extent
    if values["initial_lowpass_angstrom"] is None:
        values["initial_lowpass_angstrom"] = max(input_resolution + LOWPASS_MARGIN_ANGSTROM, 2 * pixel_size)
    centre = mask_centre(mask)
    fulcrum = {"mask": centre, "box": np.full(3, box // 2)}.get(str(settings.fulcrum))
    values["fulcrum_px"] = [float(v) for v in (settings.fulcrum if fulcrum is None else fulcrum)]
    values["mask_centre_px"] = [float(v) for v in centre]
    values["mask_radius_angstrom"] = mask_radius(mask, centre).effective * pixel_size
    return values


def align_shell_of(resolution_angstrom: float, resolved: Dict[str, Any], particles: Particles) -> int:
    """Last shell used in alignment for this resolution, within the maximum alignment resolution and Nyquist."""
    limit = resolution_angstrom
    if resolved["max_align_resolution_angstrom"] is not None:
        limit = max(limit, resolved["max_align_resolution_angstrom"])
    shell = int(particles.box_size * particles.pixel_size / limit)
    return int(np.clip(shell, 3, highest_shell(particles.box_size)))


def search_plan(resolved: Dict[str, Any], particles: Particles, mask: np.ndarray, align_resolution: float) -> SearchPlan:
    """The plan of one iteration's search."""
    pixel, half = particles.pixel_size, particles.box_size // 2
    fulcrum = np.array(resolved["fulcrum_px"]) - half
    return SearchPlan(
        centre=integer_centre(mask), fulcrum=fulcrum, prior_point=fulcrum,
        mask_radius=resolved["mask_radius_angstrom"] / pixel,
        rotation_extent=float(np.deg2rad(resolved["rotation_extent_deg"])),
        shift_extent=resolved["shift_extent_angstrom"] / pixel,
        precision=isotropic_precision(resolved, pixel), mean=np.zeros(5),
        align_shell=align_shell_of(align_resolution, resolved, particles), marginalize=resolved["marginalize"],
        recenter_rotations=resolved["recenter_rotations"], recenter_shifts=resolved["recenter_shifts"])


def isotropic_precision(resolved: Dict[str, Any], pixel_size: float) -> np.ndarray:
    """(5, 5) precision of (w in rad, displacement of the fulcrum in px); zeros without a prior."""
    if resolved["prior"] == "off":
        return np.zeros((5, 5))
    rotation = 1 / np.deg2rad(resolved["prior_rotation_deg"]) ** 2
    shift = (pixel_size / resolved["prior_shift_angstrom"]) ** 2
    return np.diag([rotation] * 3 + [shift] * 2)
