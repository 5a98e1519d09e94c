"""Maps at another pixel size, brought to the grid of the particles."""
from __future__ import annotations

import numpy as np

from ..model.fourier import box_of, resample_map

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
