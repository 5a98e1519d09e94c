"""Half-maps and mask at the box and pixel size of the particles: as they are, resampled, or refused."""
from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Iterator, List, Tuple

import numpy as np

from ..io.mrc import open_mrc, pixel_size_of, read_map
from ..io.resample import on_grid
from ..io.run_folder import PathLike
from ..model.optics import SAME_PIXEL_SIZE
from ..records.errors import InputError
from ..records.particles import Particles

LENGTH_TOLERANCE = 0.1  # relative; a box that was binned is rounded to a number that the FFT likes


def read_pixel_size(path: PathLike, name: str) -> float:
    """Pixel size in Å of a map, by its header."""
    with _named(path, name), open_mrc(path) as mrc:
        return pixel_size_of(mrc, str(path))


@contextmanager
def _named(path: PathLike, name: str) -> Iterator[None]:
    """Errors of reading call the map by its part in the refinement."""
    if not os.fspath(path):
        raise InputError("is missing", name.strip(), "give its file name")
    try:
        yield
    except InputError as error:
        raise InputError(error.problem, name, error.remedy) from None


def read_on_grid(path: PathLike, name: str, particles: Particles, resample: bool) -> Tuple[np.ndarray, List[str]]:
    """A map (N, N, N) at the pixel size of the particles, and what was done to it; InputError if it must not be."""
    with _named(path, name):
        volume, pixel_size = read_map(path)
    expected = particles.pixel_size
    if not resample or (volume.shape == (particles.box_size,) * 3
                        and abs(pixel_size - expected) <= SAME_PIXEL_SIZE * expected):
        _check_box(volume, pixel_size, name, particles)
        _check_pixel_size(len(volume), pixel_size, name, particles)
        return volume, []
    _refuse_not_cubic(volume, name)
    is_mask = name.startswith("mask")
    if not is_mask:
        _refuse_other_length(volume, pixel_size, name, particles)
    fitted = on_grid(volume, pixel_size, particles.box_size, expected)
    if is_mask and 0 <= volume.min() and volume.max() <= 1:
        fitted = np.clip(fitted, 0, 1)  # a hard edge rings
        _refuse_cut_mask(volume, pixel_size, fitted, name, particles)
    return (fitted,
            [f"{name}: was resampled from {len(volume)} voxels of {pixel_size:.4f} Å to {particles.box_size} voxels "
             f"of {expected:.4f} Å"])


def _refuse_other_length(volume: np.ndarray, pixel_size: float, name: str, particles: Particles) -> None:
    """InputError for a half-map whose box is not that of the particles at another sampling, but another box."""
    ours, theirs = particles.box_size * particles.pixel_size, len(volume) * pixel_size
    same_pixel = abs(pixel_size - particles.pixel_size) <= SAME_PIXEL_SIZE * particles.pixel_size
    if not same_pixel and _same_length(len(volume), pixel_size, particles):
        return
    raise InputError(f"has {len(volume)} voxels of {pixel_size:.4g} Å ({theirs:.4g} Å), the particles have a box of "
                     f"{particles.box_size} px of {particles.pixel_size:.4g} Å ({ours:.4g} Å). That is another box, "
                     "not another sampling of the same box, and resampling does not mend it", name,
                     _same_box(len(volume) * pixel_size / particles.pixel_size, particles.box_size))


def _same_length(voxels: int, pixel_size: float, particles: Particles) -> bool:
    ours = particles.box_size * particles.pixel_size
    return abs(voxels * pixel_size - ours) <= LENGTH_TOLERANCE * ours


def _same_box(map_px: float, box_size: int) -> str:
    """How particles and half-maps get one box; ``map_px``: the width of the half-maps in px of the particles."""
    wanted = 2 * round(map_px / 2)
    if map_px > box_size:
        return (f"extract the particles with a box of {wanted} px, or, if the whole particle fits into the smaller "
                f"box, crop half-maps and mask to {box_size} px (relion_image_handler --new_box {box_size})")
    return (f"crop the particles and the mask to {wanted} px with the verb recentre (--box {wanted}) or the protocol "
            "'re-centre particles', or reconstruct the half-maps from these particles")


def _refuse_cut_mask(mask: np.ndarray, pixel_size: float, fitted: np.ndarray, name: str, particles: Particles) -> None:
    """InputError if more than a hundredth of the mask lies outside the box of the particles."""
    before = float(mask.sum(dtype=np.float64)) * pixel_size ** 3
    kept = float(fitted.sum(dtype=np.float64)) * particles.pixel_size ** 3 / max(before, 1e-30)
    if 0 < kept < 0.99:
        raise InputError(f"does not fit into the box of the particles ({particles.box_size} px of "
                         f"{particles.pixel_size:.4g} Å): {100 * (1 - kept):.0f} % of it lie outside", name,
                         "use the mask of the refinement of these particles, or extract them in a larger box")


def _refuse_not_cubic(volume: np.ndarray, name: str) -> None:
    if len(set(volume.shape)) > 1:
        size = " × ".join(map(str, volume.shape[::-1]))
        raise InputError(f"is not cubic ({size} voxels)", name, "crop or pad it to a cube")


def _check_box(volume: np.ndarray, pixel_size: float, name: str, particles: Particles) -> None:
    if name.startswith("mask"):  # check_mask has its own words
        return
    _refuse_not_cubic(volume, name)
    if volume.shape[0] != particles.box_size:
        _refuse_other_length(volume, pixel_size, name, particles)
        raise InputError(f"has {len(volume)} voxels of {pixel_size:.4g} Å, the particles have a box of "
                         f"{particles.box_size} px of {particles.pixel_size:.4g} Å", name,
                         "give the half-maps of the refinement of these particles, or set resample_maps")


def _check_pixel_size(voxels: int, pixel_size: float, name: str, particles: Particles) -> None:
    expected = particles.pixel_size
    if abs(pixel_size - expected) > SAME_PIXEL_SIZE * expected:
        offered = name.startswith("mask") or _same_length(voxels, pixel_size, particles)
        raise InputError(f"has a pixel size of {pixel_size:.4f} Å, the particles have {expected:.4f} Å", name,
                         "set resample_maps, or correct its header if only that is wrong" if offered else
                         "correct the header or the STAR file, whichever is wrong")
