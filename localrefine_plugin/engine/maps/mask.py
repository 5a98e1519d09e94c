"""Masks: their geometry, their checks, dilation with a soft edge, and the dynamic mask.

Masks are [z, y, x] with values 0 … 1; points are x, y, z in pixels counted from the corner voxel.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, NamedTuple, Optional

import numpy as np

from ..kernels.device import array_module, blank
from ..kernels.distance import connected_parts, squared_distances
from ..kernels.shells import shell_sums
from ..model.fourier import forward, lowpass, lowpass_weight, multiply_radial
from ..records.errors import InputError
from .half_maps import HalfMaps, region_of

Array = Any
RANGE_TOLERANCE = 1e-3
"""How far outside [0, 1] a mask may stray: resampled and 8-bit masks do by this much."""

EDGE_RESOLUTIONS = 5.0
"""Width of the soft edge in units of resolution that is recommended: the mask then adds no correlation to shells finer
than about a fifth of the limit (the rule used by the field for FSC masks)."""

SHARP_EDGE = 0.8
"""In the same units, the width below which an edge is named: the FSC then came out up to 27 % too fine. From twice the
resolution on it was 1.2 % at most (benchmarks/honesty/mask_edges.py)."""

PROTEIN_DENSITY_DA_PER_ANGSTROM3 = 0.81
"""Average protein: 1.35 g/cm³ (Fischer, Polikarpov & Craievich 2004, doi:10.1110/ps.04688204) × 0.6022."""

LARGE_PART = 0.1
"""Parts of a dynamic mask smaller than this fraction of the largest are dust and left out."""

DENSITY_SIGMAS = 4.0
"""Density further than this from the solvent's mean, in the solvent's standard deviations, is not solvent."""

DENSITY_LOWPASS_ANGSTROM = 20.0
"""Low-pass before looking for density under a mask; shapes of domains, hardly any noise."""

SOLVENT_STEP = 2
"""Voxels between those that the solvent's statistics are taken of: the low-passed map is smooth."""

NOISE_ANGSTROM = 15.0
"""A mask's structure finer than this is not the shape of a domain."""


class MaskRadius(NamedTuple):
    """Radii in px about a centre: ``effective`` of the sphere with the same second moment, ``maximum``."""

    effective: float
    maximum: float


def mask_centre(mask: np.ndarray) -> np.ndarray:
    """Centre of mass Σ m v / Σ m: (3,) float64, x, y, z in px from the corner. InputError if empty."""
    total = mask.sum(dtype=np.float64)
    if not total > 0:
        raise InputError("is empty", "mask", "give a mask that covers the part to be refined")
    centre = [np.dot(mask.sum(axis=axes, dtype=np.float64), np.arange(mask.shape[kept])) / total
              for kept, axes in ((2, (0, 1)), (1, (0, 2)), (0, (1, 2)))]
    return np.array(centre)


def mask_radius(mask: np.ndarray, centre: np.ndarray) -> MaskRadius:
    """Effective and maximum radius of a mask about a point.

    effective = √(5/3 · Σ m |v − c|² / Σ m), which is R for a sphere of radius R about its centre
    and is not moved by a few stray voxels; maximum = the furthest voxel with m ≥ 0.5.

    Parameters
    ----------
    centre : (3,) x, y, z in px from the corner.
    """
    squares = [np.square(np.arange(n) - c) for n, c in zip(mask.shape, np.asarray(centre)[::-1])]
    second_moment = sum(
        np.dot(mask.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64), squares[axis])
        for axis in range(3)) / mask.sum(dtype=np.float64)
    z, y, x = np.nonzero(mask >= 0.5)
    furthest = np.max(squares[0][z] + squares[1][y] + squares[2][x], initial=0.0)
    return MaskRadius(float(np.sqrt(5 / 3 * second_moment)), float(np.sqrt(furthest)))


def soft_edge_width_px(mask: np.ndarray) -> float:
    """Width of the soft edge, 0 → 1, averaged over the surface of the mask, in px.

    For a raised cosine of width w along the normal, ∫ m (1 − m) = w/8 per unit surface, and
    ∫ |∇m| = 1 per unit surface; so  w = 8 Σ m (1 − m) / Σ |∇m|, whatever the shape. 0 for a binary
    mask, infinite for a mask without a surface. Within 5 % for edges of 3 px or more.
    """
    box = region_of(mask, 2)
    part = np.asarray(mask[box], dtype=np.float32)
    gradient = np.zeros_like(part)
    for axis in range(3):
        gradient += np.square(np.gradient(part, axis=axis))
    surface = np.sqrt(gradient).sum(dtype=np.float64)
    if surface == 0:
        return float("inf")
    return float(8 * (part * (1 - part)).sum(dtype=np.float64) / surface)


def sharpest_edge_px(mask: np.ndarray) -> float:
    """Width of the soft edge of a mask (N, N, N) where it is sharpest, px: π/2 over the slope that a twentieth of the
    edge exceeds. A raised cosine of width w has π / 2w in its middle."""
    part = np.asarray(mask[region_of(mask, 2)], dtype=np.float32)
    slope = np.sqrt(sum(np.square(np.gradient(part, axis=axis)) for axis in range(3)))
    edge = slope[slope > 0.01]
    return float(np.pi / 2 / np.quantile(edge, 0.95)) if len(edge) else float("inf")


def noise_in_mask(mask: Array, difference_ft: Array, pixel_size: float, workers: int = 1) -> float:
    """By how many standard deviations the fine structure of a mask (N, N, N) follows the difference of two half-maps,
    given by its half-spectrum, up to Nyquist.

    Detail finer than NOISE_ANGSTROM of both, Σ m (h₁ − h₂), beside the same sum for the mask at every other place. The
    structure cancels in the difference: a mask drawn around a half-map's bumps follows its noise, one made of both
    half-maps alike, or of a low-passed map, does not.
    """
    if NOISE_ANGSTROM <= 2 * pixel_size:
        return 0.0
    coarse = lowpass_weight(len(mask) * pixel_size / NOISE_ANGSTROM)
    fine = multiply_radial(forward(mask, workers), lambda radius: (1 - coarse(radius)) ** 2)
    # the sum at the mask's place is Σ P / N³ over all frequencies, and by Parseval the s.d. of all is √(Σ |P|²) / N³
    here = float(shell_sums(fine, difference_ft)[2].sum())
    fine *= difference_ft.conj()
    squares = float(shell_sums(fine, fine)[0].sum())
    return here / max(squares ** 0.5, 1e-30)


def check_mask(mask: np.ndarray, box_size: int, pixel_size: float, resolution_angstrom: float,
               dense: Optional[Array] = None, source: str = "mask") -> List[str]:
    """Refuse an unusable mask; return warnings (sentences) about a doubtful one.

    Parameters
    ----------
    mask : any array.  box_size, pixel_size (Å) : of the particles.
    resolution_angstrom : the resolution aimed at, for the width of the soft edge; 0 asks for none.
    dense : (N, N, N) where the map is, of `dense_region`; None skips the check for overlap.
    source : what to call the mask in a message (its path).

    Raises
    ------
    InputError : wrong box, not finite, values outside [0, 1], empty, nothing of the map inside.
    """
    _refuse_unusable(mask, box_size, source)
    warnings = []
    faces = max(float(np.take(mask, (0, -1), axis=axis).max()) for axis in range(3))
    if faces > 0.01:
        warnings.append(f"{source}: the mask touches the edge of the box. Draw a mask with solvent on all sides")
    resolution = resolution_angstrom / pixel_size
    width = min(soft_edge_width_px(mask), sharpest_edge_px(mask)) if resolution > 0 else 0.0
    if width < SHARP_EDGE * resolution:
        warnings.append(f"{source}: the mask edge is {width:.1f} px wide, which is sharper than the resolution of "
                        f"{resolution_angstrom:.1f} Å ({resolution:.1f} px). Such an edge raises the FSC by itself. "
                        f"Use about {EDGE_RESOLUTIONS * resolution:.0f} px (5 × the resolution)")
    if dense is not None:
        warnings += _check_overlap(mask, dense, source)
    return warnings


def _refuse_unusable(mask: np.ndarray, box_size: int, source: str) -> None:
    if mask.shape != (box_size,) * 3:
        raise InputError(f"has {' × '.join(map(str, mask.shape[::-1]))} voxels, the particles have a box of {box_size}",
                         source, "resample or crop the mask to the box of the particles")
    low, high = float(mask.min()), float(mask.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("contains values that are not numbers", source, "make the mask anew")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise InputError(f"has values from {low:.3g} to {high:.3g}, outside 0 … 1", source,
                         "threshold the map and make a soft-edged mask of it, e.g. with relion_mask_create")
    if high < 0.5:
        raise InputError("is empty" if high <= 0 else f"never exceeds {high:.3g}: it is empty", source,
                         "give a mask that is 1 over the part to be refined")


def dense_region(halves: HalfMaps, pixel_size: float) -> Array:
    """Where the mean of two half-maps, low-passed to 20 Å, differs from the solvent in the corners of the box: bool
    (N, N, N), where they are."""
    n, xp = halves.box_size, array_module(halves.maps[0])
    smooth = halves.mean(lowpass_weight(n * pixel_size / DENSITY_LOWPASS_ANGSTROM))
    axis = np.square(np.arange(n) - n // 2)[::SOLVENT_STEP]
    corners = axis[:, None, None] + axis[:, None] + axis > n ** 2 / 4
    solvent = smooth[::SOLVENT_STEP, ::SOLVENT_STEP, ::SOLVENT_STEP][xp.asarray(corners)]
    mean, limit = float(solvent.mean()), DENSITY_SIGMAS * float(solvent.std())
    # on both sides: a map of inverted contrast is refused elsewhere, with a better reason
    return (smooth > mean + limit) | (smooth < mean - limit)


def density_inside(mask: np.ndarray, dense: Array) -> float:
    """The share of the voxels (≥ 0.5) of a mask, the host's, that lie on density of the map, of `dense_region`."""
    inside = array_module(dense).asarray(mask >= 0.5)
    return float((dense & inside).sum() / inside.sum())


def _check_overlap(mask: np.ndarray, dense: Array, source: str) -> List[str]:
    inside = density_inside(mask, dense)
    if inside < 0.001:
        raise InputError("covers no density of the map", source, "check that map and mask share origin and pixel size")
    if inside < 0.05:
        return [f"{source}: only {100 * inside:.1f} % of the mask covers density; do map and mask share an origin?"]
    return []


def dilate_soft(mask: Array, pixel_size: float, dilate_angstrom: float, edge_angstrom: float) -> Array:
    """Grow a mask (N, N, N) and give it a raised-cosine edge.

    1 up to ``dilate_angstrom`` from the region where the mask is ≥ 0.5, a raised cosine over the next
    ``edge_angstrom``, then 0; nowhere less than the mask itself.

    Returns
    -------
    mask.shape float32.
    """
    grown = _soft_edge_around(mask >= 0.5, pixel_size, dilate_angstrom, dilate_angstrom + edge_angstrom)
    return array_module(mask).maximum(grown, mask.astype(np.float32))


def density_mask(smooth: Array, within: Array, pixel_size: float, level: float, near_angstrom: float,
                 far_angstrom: float) -> Array:
    """A mask times a soft mask about the low-passed density in it: what lies above ``level`` × its peak there.

    1 up to ``near_angstrom`` from that density, a cosine to 0 at ``far_angstrom``; dust left out. (N, N, N) float32.
    ``smooth`` is what of the density lies in the mask's `region_of`.
    """
    xp = array_module(within)
    box, mask = region_of(within), blank(within.shape, np.float32, xp)
    within = within[box]
    inside = within >= 0.5
    core = _large_parts(inside & (smooth >= level * xp.where(inside, smooth, -np.inf).max()))
    mask[box] = within * _soft_edge_around(core, pixel_size, near_angstrom, far_angstrom)
    return mask


def _soft_edge_around(region: Array, pixel_size: float, near: float, far: float) -> Array:
    """1 within ``near`` Å of a boolean region, cosine to 0 at ``far`` Å: float32."""
    xp = array_module(region)
    out, reach = blank(region.shape, np.float32, xp), int(np.ceil(far / pixel_size))
    if not bool(region.any()):
        return out
    box = region_of(region, reach + 1)
    distance = np.sqrt(np.arange((reach + 1) ** 2 + 1)) * pixel_size  # of each square that there is
    value = (distance <= near).astype(np.float32)
    edge = (distance > near) & (distance < far)
    value[edge] = 0.5 + 0.5 * np.cos(np.pi * (distance[edge] - near) / (far - near))
    out[box] = xp.asarray(value)[squared_distances(region[box], reach)]
    return out


@dataclass(frozen=True)
class DynamicMask:
    """How a mask follows the density.

    threshold : fraction of the greatest low-passed density inside the user's mask, or, if ``absolute``, a density.
    near_angstrom, far_angstrom : distance from the density up to which the mask is 1, and from which it is 0.
    """

    threshold: float = 0.2
    near_angstrom: float = 3.0
    far_angstrom: float = 12.0
    absolute: bool = False


USUAL_DYNAMIC_MASK = DynamicMask()


def dynamic_mask(density: Array, user_mask: Array, pixel_size: float, resolution_angstrom: float,
                 shape: DynamicMask = USUAL_DYNAMIC_MASK, workers: int = 1) -> Array:
    """A mask that follows the density found so far, near the user's mask.

    The map is low-passed to max(12 Å, 1.5 × resolution) and thresholded; of what lies inside the
    user's mask dilated by ``shape.far_angstrom``, the largest connected part (and any part at least a tenth
    of it) becomes the core; the mask is 1 up to ``near_angstrom`` from it, a cosine to 0 at ``far_angstrom``.

    Parameters
    ----------
    density, user_mask : (N, N, N).  pixel_size : Å.  resolution_angstrom : of the map.

    Returns
    -------
    (N, N, N) float32.

    Raises
    ------
    InputError : no positive density under the user's mask, or none above an absolute threshold.
    """
    smooth = lowpass(density, pixel_size, max(12.0, 1.5 * resolution_angstrom), workers=workers)
    peak = max(float(array_module(smooth).where(user_mask >= 0.5, smooth, -np.inf).max()), 0.0)
    if peak <= 0:
        raise InputError("no positive density under the mask to follow", "mask_mode dynamic",
                         "use the static mask, or check the contrast of the half-maps")
    region = _soft_edge_around(user_mask >= 0.5, pixel_size, shape.far_angstrom, shape.far_angstrom) > 0.5
    level = shape.threshold if shape.absolute else shape.threshold * peak
    if level > peak:
        raise InputError(f"{shape.threshold:g} exceeds the greatest density under the mask, {peak:.3g} (low-passed)",
                         "setting mask_threshold", "lower it")
    core = _large_parts((smooth >= level) & region)
    return _soft_edge_around(core, pixel_size, shape.near_angstrom, shape.far_angstrom)


def _large_parts(region: Array) -> Array:
    """The largest connected part of a boolean region and those at least LARGE_PART as large."""
    xp = array_module(region)
    box, parts = region_of(region), xp.zeros_like(region)
    labels = connected_parts(region[box])
    sizes = xp.bincount(labels.ravel())
    sizes[0] = 0
    kept = (sizes >= LARGE_PART * sizes.max()) & (sizes > 0)
    parts[box] = kept[labels]
    return parts


def volume_angstrom3(mask: np.ndarray, pixel_size: float) -> float:
    """Σ m · pixel_size³ of a mask m (N, N, N), in Å³."""
    return float(mask.sum(dtype=np.float64) * pixel_size ** 3)


def mass_kda(mask: np.ndarray, pixel_size: float) -> float:
    """Mass of protein that would fill the mask, in kDa: an upper bound of what is inside."""
    return volume_angstrom3(mask, pixel_size) * PROTEIN_DENSITY_DA_PER_ANGSTROM3 / 1000
