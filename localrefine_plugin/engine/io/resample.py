"""Maps at another pixel size, brought to the grid of the particles."""
from __future__ import annotations

from typing import Optional

import numpy as np

from ..model.fourier import box_of, resample_map
from ..records.errors import InputError
from .mrc import open_mrc, pixel_size_of
from .run_folder import PathLike

MOST_PADDING = 64  # voxels to look for a box whose length is a whole number of new voxels


def on_grid(map_zyx: np.ndarray, pixel_size: float, new_box: int, new_pixel_size: float) -> np.ndarray:
    """The map on a grid of ``new_box`` voxels of ``new_pixel_size`` Å, its origin (voxel N // 2) kept.

    By padding or cropping the transform of the map, zero-padded to the box (of at most 64 voxels more) whose length
    is nearest to a whole number of new voxels, then padded or cropped about the origin. What the new voxels cannot
    hold is cut off at their Nyquist frequency; the pixel size is met to better than 1e-3 for boxes above 16.

    Returns
    -------
    (new_box,) * 3 float32.
    """
    boxes = box_of(map_zyx.shape) + np.arange(MOST_PADDING + 1)
    length = boxes * pixel_size / new_pixel_size
    padded = int(boxes[np.argmin(np.abs(length / np.rint(length) - 1))])
    fine = resample_map(centred(map_zyx, padded), int(np.rint(padded * pixel_size / new_pixel_size)))
    return centred(fine, new_box)


def centred(map_zyx: np.ndarray, box: int) -> np.ndarray:
    """The map padded with its mean on its faces, or cropped, to (box,) * 3 with voxel N // 2 at box // 2."""
    n = box_of(map_zyx.shape)
    faces = [np.take(map_zyx, (0, -1), axis=axis) for axis in range(3)]
    out = np.full((box,) * 3, np.mean([face.mean() for face in faces]), np.float32)
    start = n // 2 - box // 2
    source = slice(max(start, 0), min(start + box, n))
    target = slice(source.start - start, source.stop - start)
    out[target, target, target] = map_zyx[source, source, source]
    return out


def refuse_other_frame(path: PathLike, name: str, half_map: PathLike) -> None:
    """InputError if the header of a map of another grid puts its centre elsewhere than that of the half-map.

    Maps are resampled about the centre of the box. Origin 0 says nothing (RELION, cryoSPARC); an origin of
    −N/2 voxels counts from the centre (Scipion); any other one counts from the first voxel of the half-map, as
    ChimeraX writes it for a map cut out of another.
    """
    centre = centre_in_header(path)
    if centre is None:
        return
    with open_mrc(half_map) as mrc:
        pixel_size = pixel_size_of(mrc, str(half_map))
        middle = np.full(3, mrc.data.shape[0] // 2 * pixel_size)
    expected = centre_in_header(half_map)
    points = np.zeros(3), middle if expected is None else expected
    distances = [float(np.abs(centre - point).max()) for point in points]
    if min(distances) > pixel_size / 2:
        raise InputError(f"is in another frame: its header puts its centre {distances[1]:.1f} Å from the half-maps'",
                         name, "bring it onto their grid, for instance in ChimeraX: volume resample #mask onGrid #map")


def centre_in_header(path: PathLike) -> Optional[np.ndarray]:
    """x, y, z in Å of voxel N // 2 by the origin (else the start) of an MRC header; None if it says 0."""
    with open_mrc(path) as mrc:
        header, pixel_size = mrc.header, pixel_size_of(mrc, str(path))
        origin = np.array([header.origin.x, header.origin.y, header.origin.z], dtype=np.float64)
        start = np.array([header.nxstart, header.nystart, header.nzstart], dtype=np.float64) * pixel_size
        middle = np.array(mrc.data.shape[::-1]) // 2 * pixel_size
    first = origin if origin.any() else start
    return first + middle if np.isfinite(first).all() and first.any() else None
