"""The sum of many rotated and displaced copies of a map, by trilinear interpolation.

    out(v) = Σ_d map(A_d v + b_d),      0 outside the map's voxels.

Every output voxel is summed by one thread, copy by copy. GPU twin: moved.cu.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from . import cuda
from .device import array_module

Array = Any


@njit(parallel=True, cache=True, nogil=True)
def _sum_of_moved_cpu(volume, turns, offsets, window, out):  # type: ignore[no-untyped-def]
    nz, ny, nx = volume.shape
    for z in prange(nz):
        for d in range(turns.shape[0]):
            a, b = turns[d], offsets[d]
            for y in range(ny):
                pz = a[0, 0] * np.float32(z) + a[0, 1] * np.float32(y) + b[0]
                py = a[1, 0] * np.float32(z) + a[1, 1] * np.float32(y) + b[1]
                px = a[2, 0] * np.float32(z) + a[2, 1] * np.float32(y) + b[2]
                for x in range(nx):
                    if window[z, y, x] == 0:
                        continue
                    qz = pz + a[0, 2] * np.float32(x)
                    qy = py + a[1, 2] * np.float32(x)
                    qx = px + a[2, 2] * np.float32(x)
                    if qz < 0 or qy < 0 or qx < 0 or qz > nz - 1 or qy > ny - 1 or qx > nx - 1:
                        continue
                    z0, y0, x0 = min(np.int32(qz), nz - 2), min(np.int32(qy), ny - 2), min(np.int32(qx), nx - 2)
                    fz, fy, fx = qz - np.float32(z0), qy - np.float32(y0), qx - np.float32(x0)
                    c = volume[z0:z0 + 2, y0:y0 + 2, x0:x0 + 2]
                    low = c[0, 0, 0] + fx * (c[0, 0, 1] - c[0, 0, 0])
                    high = c[0, 1, 0] + fx * (c[0, 1, 1] - c[0, 1, 0])
                    front = low + fy * (high - low)
                    low = c[1, 0, 0] + fx * (c[1, 0, 1] - c[1, 0, 0])
                    high = c[1, 1, 0] + fx * (c[1, 1, 1] - c[1, 1, 0])
                    back = low + fy * (high - low)
                    out[z, y, x] += front + fz * (back - front)


def sum_of_moved(volume: Array, turns: np.ndarray, offsets: np.ndarray, window: Array) -> Array:
    """out (nz, ny, nx) float32 of a map of that shape, each side at least 2; 0 where ``window`` (nz, ny, nx) is.

    turns A (n, 3, 3) and offsets b (n, 3), host's, in voxels, z, y, x.
    """
    turns, offsets = (np.ascontiguousarray(part, np.float32) for part in (turns, offsets))
    if array_module(volume) is not np:
        return cuda.sum_of_moved(volume, turns, offsets, window)
    out = np.zeros(volume.shape, np.float32)
    _sum_of_moved_cpu(np.ascontiguousarray(volume, np.float32), turns, offsets, window, out)
    return out
