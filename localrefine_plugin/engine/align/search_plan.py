"""From settings and data to the numbers of a run: what "auto" stands for, and the plan of a search."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np

from ..maps.mask import mask_centre, mask_radius
from ..model.pixels import PixelList, highest_shell
from ..model.symmetry import operators
from ..motion.prior_shapes import PriorShape, prior_shape
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings
from ..records.settings import Settings
from .search import Grid, Levels, make_grid

LOWPASS_MARGIN_ANGSTROM = 1.5
GRID_RESOLUTION_ANGSTROM = 14.0


@dataclass(frozen=True)
class SearchPlan:
    """What the search of an iteration was told: all lengths in px of the images.

    centre : (3,) mask centre, whole px from the box centre.  fulcrum, prior_point : (3,) likewise.
    mask_radius : effective radius of the mask about the centre.
    rotation_extent : rad.  shift_extent : px.
    prior : its shape.
    motion_covariance : (6, 6) of the prior on rotation (rad) and displacement (px) of the prior point in the
        body frame, or None without a prior.  motion_start : the same in the first iteration.
    align_shell : information beyond this shell is not used.
    symmetry : (g, 3, 3) operators about the box centre.  per_particle_scale : whether scales are fitted.
    weight_by_probability : whether an image counts in the map as much as it is probably aligned.
    """

    centre: np.ndarray
    fulcrum: np.ndarray
    prior_point: np.ndarray
    mask_radius: float
    rotation_extent: float
    shift_extent: float
    prior: PriorShape
    motion_covariance: Optional[np.ndarray]
    motion_start: Optional[np.ndarray]
    align_shell: int
    marginalize: bool
    recenter_rotations: bool
    recenter_shifts: bool
    symmetry: np.ndarray
    per_particle_scale: bool
    weight_by_probability: bool


def automatic_lowpass(input_resolution: float, pixel_size: float) -> float:
    """Å of the initial low-pass where none is given: finer would be noise, coarser loses good poses."""
    return max(input_resolution + LOWPASS_MARGIN_ANGSTROM, 2 * pixel_size)


def resolve(settings: Settings, mask: np.ndarray, input_resolution: float, pixel_size: float) -> ResolvedSettings:
    """Every value the run goes by: the settings with "chosen from the data" filled in, fulcrum and mask geometry.

    ``input_resolution``: Å at FSC 0.143 of the input half-maps inside the mask. Points are in px from
    the corner of the box, xyz.
    """
    box, centre = mask.shape[0], mask_centre(mask)
    rotation_extent, shift_extent = settings.rotation_extent_deg, settings.shift_extent_angstrom
    automatic = prior_shape(settings.prior).extents(settings)
    lowpass = settings.initial_lowpass_angstrom
    fulcrum = {"mask": centre, "box": np.full(3, box // 2)}.get(str(settings.fulcrum))
    return ResolvedSettings.of(
        settings,
        rotation_extent_deg=automatic[0] if rotation_extent is None else rotation_extent,
        shift_extent_angstrom=automatic[1] if shift_extent is None else shift_extent,
        rotation_extent_fixed=rotation_extent is not None, shift_extent_fixed=shift_extent is not None,
        initial_lowpass_angstrom=automatic_lowpass(input_resolution, pixel_size) if lowpass is None else lowpass,
        fulcrum_px=tuple(float(v) for v in (settings.fulcrum if fulcrum is None else fulcrum)),
        mask_centre_px=tuple(float(v) for v in centre),
        mask_radius_angstrom=mask_radius(mask, centre).effective * pixel_size)


def align_shell_of(resolution_angstrom: float, resolved: ResolvedSettings, particles: Particles) -> int:
    """Last shell used in alignment for this resolution, within the maximum alignment resolution and Nyquist."""
    limit = resolution_angstrom
    if resolved.max_align_resolution_angstrom is not None:
        limit = max(limit, resolved.max_align_resolution_angstrom)
    shell = int(particles.box_size * particles.pixel_size / limit)
    return int(np.clip(shell, 3, highest_shell(particles.box_size)))


def search_plan(resolved: ResolvedSettings, particles: Particles, align_resolution: float,
                learned: Optional[np.ndarray] = None) -> SearchPlan:
    """The plan of one iteration's search; ``learned`` is the motion's covariance after the last iteration."""
    pixel = particles.pixel_size
    fulcrum, centre = resolved.fulcrum_offset(particles.box_size), resolved.mask_centre_offset(particles.box_size)
    shape = prior_shape(resolved.prior)
    start = shape.start(resolved, centre - fulcrum, pixel)
    widest = float(np.deg2rad(resolved.rotation_extent_deg)), resolved.shift_extent_angstrom / pixel
    extents = shape.narrowed(resolved, learned, fulcrum - centre, widest)
    return SearchPlan(
        centre=centre, fulcrum=fulcrum, prior_point=shape.point(fulcrum, centre),
        mask_radius=resolved.mask_radius_angstrom / pixel, rotation_extent=extents[0], shift_extent=extents[1],
        prior=shape, motion_covariance=start if learned is None else learned, motion_start=start,
        align_shell=align_shell_of(align_resolution, resolved, particles), marginalize=resolved.marginalize,
        recenter_rotations=resolved.recenter_rotations, recenter_shifts=resolved.recenter_shifts,
        symmetry=operators(resolved.symmetry), per_particle_scale=resolved.per_particle_scale,
        weight_by_probability=resolved.weight_by_probability)


def grid_of(plan: SearchPlan, box_size: int, pixel_size: float) -> Tuple[Grid, int]:
    """The coarse grid and the shell its scores go to.

    Step = d / (2 ρ) in rotation and d / 2 in shift at resolution d: a pose is then at most a quarter of d
    from a grid pose at the mask's effective radius ρ, inside the basin of the refinement that
    follows (measured on `mid`: a step of d / (2.5 ρ) costs twice as much and gains nothing).
    """
    shell = min(plan.align_shell, int(box_size * pixel_size / GRID_RESOLUTION_ANGSTROM))
    wavelength = box_size / shell
    lever = 2 * np.sin(plan.rotation_extent / 2) * float(np.linalg.norm(plan.fulcrum - plan.centre))
    return make_grid(plan.rotation_extent, plan.shift_extent + lever, 0.5 * wavelength / plan.mask_radius,
                     0.5 * wavelength), shell


def levels_of(pixels: PixelList, grid_shell: int, align_shell: int) -> Levels:
    """The grid level and refining levels whose shells grow by 1.5."""
    shells = [grid_shell]
    while shells[-1] < align_shell:
        shells.append(min(align_shell, int(np.ceil(1.5 * shells[-1]))))
    if len(shells) == 1:
        shells.append(align_shell)
    return Levels([pixels.prefix(s) for s in shells], [4] * (len(shells) - 1))
