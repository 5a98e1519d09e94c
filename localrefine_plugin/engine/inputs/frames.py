"""Where the headers of half-maps and mask say that they are: one frame, or another one.

Only the place of one map relative to another means something. Origin 0 says nothing (RELION, cryoSPARC), and an
origin of −N/2 or N/2 voxels is 0 counted from the centre of the box (Scipion, EMAN2). Any other one is the place of
the first voxel in Å, as ChimeraX writes it for a map that was cut out of another or moved.
"""
from __future__ import annotations

from typing import List, Tuple

import numpy as np

from ..io.mrc import first_voxel, open_mrc, pixel_size_of
from ..io.run_folder import PathLike
from ..records.errors import InputError

WHOLE = 0.1  # px; by less than this a shift is one by a whole number of voxels
ON_GRID = "bring it onto their grid, for instance in ChimeraX: volume resample #mask onGrid #map"


def refuse_other_frame(path: PathLike, name: str, half_map: PathLike) -> None:
    """InputError if the header of a map of another grid puts its centre elsewhere than that of the half-map.

    Maps are resampled about the centre of the box.
    """
    first, middle, _ = _place(path)
    expected, middle_of_half_map, pixel_size = _place(half_map)
    if not first.any() or _from_the_centre(first, middle, pixel_size):
        return
    distance = np.abs(_relative(first, expected, middle_of_half_map, pixel_size) + middle - middle_of_half_map).max()
    if distance > pixel_size / 2:
        raise InputError(f"is in another frame: its header puts its centre {distance:.1f} Å from the half-maps'", name,
                         ON_GRID)


def displacement(path: PathLike, half_map: PathLike) -> Tuple[np.ndarray, float]:
    """Where the header of a map puts it from a half-map of the same grid: (x, y, z) in px, and the pixel size in Å."""
    first, middle, pixel_size = _place(path)
    expected = _place(half_map)[0]
    if all(not place.any() or _from_the_centre(place, middle, pixel_size) for place in (first, expected)):
        return np.zeros(3), pixel_size
    return _relative(first, expected, middle, pixel_size) / pixel_size, pixel_size


def displaced(path: PathLike, name: str, other: PathLike, other_name: str, remedy: str = "") -> List[str]:
    """What is said of a map of the grid of another one whose header puts it elsewhere; it is used as it is."""
    shift, pixel_size = displacement(path, other)
    if np.abs(shift).max() <= WHOLE:
        return []
    return [f"{name}: its header puts it {_angstrom(shift, pixel_size)} in x, y, z from {other_name}, but it was used "
            f"as if both began at the same point{remedy}"]


def same_frame_warnings(path: PathLike, name: str, half_map: PathLike) -> List[str]:
    """`displaced` of half-map 2 or the mask, with what to do."""
    remedy = ("If it was moved or cut out, set honour_mask_origin; if it lies where it should, ignore this"
              if name.startswith("mask") else "Check that both half-maps are of one refinement")
    return displaced(path, name, half_map, "half-map 1", ". " + remedy)


def place_mask(mask: np.ndarray, path: PathLike, name: str, half_map: PathLike) -> Tuple[np.ndarray, List[str]]:
    """The mask (N, N, N) at the place its header gives it, 0 where it had no voxels, and what was done.

    Raises InputError for a shift by a part of a voxel, and for one that moves the mask out of the box.
    """
    shift, pixel_size = displacement(path, half_map)
    whole = np.rint(shift).astype(int)
    if np.abs(shift - whole).max() > WHOLE:
        raise InputError(f"lies {_angstrom(shift, pixel_size)} in x, y, z from half-map 1 by its header, which is no "
                         "whole number of voxels", name, ON_GRID)
    if not whole.any():
        return mask, []
    moved = np.zeros_like(mask)
    source, target = [], []
    for n, by in zip(mask.shape, np.clip(whole[::-1], -max(mask.shape), max(mask.shape))):
        source.append(slice(max(-by, 0), n - max(by, 0)))
        target.append(slice(max(by, 0), n - max(-by, 0)))  # both empty where |by| = n
    moved[tuple(target)] = mask[tuple(source)]
    total, kept = (float(np.abs(m).sum(dtype=np.float64)) for m in (mask, moved))
    if kept < 0.99 * total:
        raise InputError(f"lies {_angstrom(shift, pixel_size)} in x, y, z from half-map 1 by its header, and "
                         f"{100 * (1 - kept / total):.0f} % of it outside of the box", name,
                         "switch honour_mask_origin off, or make the mask anew on the grid of the half-maps")
    return moved, [f"{name}: was moved by {_angstrom(whole, pixel_size)} in x, y, z, as its header says"]


def _place(path: PathLike) -> Tuple[np.ndarray, np.ndarray, float]:
    """Place of the first voxel and, from there, of voxel N // 2, x, y, z in Å; and the pixel size."""
    with open_mrc(path) as mrc:
        pixel_size = pixel_size_of(mrc, str(path))
        return (first_voxel(mrc, pixel_size), np.array(mrc.data.shape[::-1]) // 2 * pixel_size, pixel_size)


def _from_the_centre(first: np.ndarray, middle: np.ndarray, pixel_size: float) -> bool:
    """Whether an origin is −N/2 or N/2 voxels, in odd boxes rounded either way."""
    return bool((np.abs(np.abs(first) - middle) <= pixel_size).all() and abs(np.sign(first).sum()) == 3)


def _relative(first: np.ndarray, expected: np.ndarray, middle: np.ndarray, pixel_size: float) -> np.ndarray:
    """``first`` from the half-map's first voxel; from 0 if the half-map's origin says nothing and that is nearer."""
    candidates = [first - expected]
    if _from_the_centre(expected, middle, pixel_size):
        candidates.append(first)
    return min(candidates, key=lambda shift: float(np.abs(shift).max()))


def _angstrom(shift: np.ndarray, pixel_size: float) -> str:
    return (", ".join(f"{value * pixel_size:.1f}" for value in shift) + " Å ("
            + ", ".join(f"{value:.4g}" for value in np.round(shift, 2) + 0.0) + " px)")
