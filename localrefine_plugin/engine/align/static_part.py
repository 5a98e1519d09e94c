"""The rest of the particle, taken out of the images while they are searched.

What lies outside the mask stays where the input poses have it. Its projection is noise to the search of the masked
sub-volume, and unlike other noise it can be predicted:

    X̃ = X − C e^{−2πi k·t0/N} S(R0ᵀk),        S = F[(1 − M′) · filtered half-map],

with (R0, t0) the input pose and M′ the mask grown by what it may move, so that nothing of the sub-volume itself is
taken out where it has moved to. The map comes from the half-set's own input half-map, the density's outline from both.
Images are inserted as they are: the refined map keeps its surroundings.

Off by default: measured, it is worth its slice only where images show much (docs/explanation/tried.md).
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any, List, Sequence, Tuple

import numpy as np

from ..kernels.device import array_module
from ..kernels.slices import extract_slices
from ..maps.fsc import first_below, fsc
from ..maps.mask import DynamicMask, dilate_soft, dynamic_mask
from ..model.fourier import apply_shell_filter
from ..model.optics import image_shift
from ..records.iteration import FSC_THRESHOLD
from .reference import Reference, make_reference, slice_rows
from .search import PackedImages

Array = Any
OUTLINE_THRESHOLD = 0.15  # of the greatest density low-passed to 12 Å or coarser
EDGE_ANGSTROM = 8.0
SIGMA = 2.0  # widths of the motion of the mask's surface by which the mask is grown


def static_parts(maps: Sequence[Array], mask: Array, pixel_size: float, resolution_angstrom: float,
                 workers: int) -> List[Array]:
    """Both half-maps (N, N, N), filtered by the FSC of what is outside the mask, within the particle's outline; where
    maps and mask are."""
    outline = outline_of(0.5 * (maps[0] + maps[1]), pixel_size, resolution_angstrom, workers)
    rest = outline * (1 - mask)
    weights = np.clip(fsc(maps[0] * rest, maps[1] * rest, workers), 0, 1)
    weights[first_below(weights, FSC_THRESHOLD) + 1:] = 0
    return [apply_shell_filter(volume, weights, workers) * outline for volume in maps]


def outline_of(volume: Array, pixel_size: float, resolution_angstrom: float, workers: int) -> Array:
    """A soft mask (N, N, N) of the whole particle that a map of this resolution shows."""
    xp, box = array_module(volume), volume.shape[0]
    square = xp.square(xp.arange(box) - box // 2)
    everywhere = (square[:, None, None] + square[:, None] + square < (box // 2) ** 2).astype(np.float32)
    return dynamic_mask(volume, everywhere, pixel_size, resolution_angstrom,
                        DynamicMask(OUTLINE_THRESHOLD, 3.0, 3.0 + EDGE_ANGSTROM), workers)


def surface_motion(covariance: np.ndarray, mask_radius: float) -> float:
    """Width, in the units of length of the (6, 6) covariance, of the motion of a point on the surface of the mask."""
    rotation, shift = (np.trace(covariance[part, part]) / 3 for part in (slice(0, 3), slice(3, 6)))
    return float(np.sqrt(rotation * 2 / 3 * mask_radius ** 2 + shift))


def static_reference(part: np.ndarray, mask: np.ndarray, reach: float, pixel_size: float, max_shell: int,
                     workers: int) -> Reference:
    """What to subtract: ``part`` (N, N, N) outside the mask (N, N, N) grown by ``reach`` px and a soft edge."""
    outside = 1 - dilate_soft(mask, pixel_size, reach * pixel_size, EDGE_ANGSTROM)
    return make_reference(part, outside, np.zeros(3), max_shell, workers)


def subtract(packed: PackedImages, static: Reference, rotation: Array,
             displacement: Array) -> Tuple[PackedImages, Array]:
    """Images without their static part, and W|S|² − 2 Re(conj(Z) S) (n, K), by which their power changes.

    rotation (n, 3, 3) and ``displacement`` (n, 2) px: the input pose, its shift from where u = 0.
    """
    p, m = packed.pixels, packed.magnification
    slices = extract_slices(static.ft, slice_rows(rotation, static.scale, m), p.kx, p.ky)
    slices *= p.phases(-image_shift(displacement, m))
    change = packed.weight * (slices.real ** 2 + slices.imag ** 2)
    change -= 2 * (packed.matched.real * slices.real + packed.matched.imag * slices.imag)
    slices *= packed.weight
    return replace(packed, matched=packed.matched - slices), change
