"""Squared distances to the nearest voxel of a region, as far as they matter, and the connected parts of a region.

    d²(v) = min over region voxels u of |v − u|²

axis by axis: min over z′ of (z − z′)² + min over y′ of (y − y′)² + min over x′ of (x − x′)². Each minimum looks no
further than ``reach``, so that the cost is that of the edge of a mask and not of a whole box. Integers: the same bits
on every device. GPU twin: distance.cu. CuPy has a distance transform from version 13 on, of the whole box.
"""
from __future__ import annotations

from typing import Any

import numpy as np
import scipy.ndimage
from numba import njit, prange

from . import cuda
from .device import array_module

Array = Any


def squared_distances(region: Array, reach: int) -> Array:
    """d² (nz, ny, nx) int32 of a boolean region (nz, ny, nx), where it is at most reach²; elsewhere more than that."""
    xp, far = array_module(region), np.int32((reach + 1) ** 2)
    squares = xp.where(region, np.int32(0), far)
    if xp is not np:
        for axis in (2, 1, 0):
            squares = cuda.nearest_along(squares, axis, reach)
        return squares
    _nearest_in_planes(squares, reach)
    out = np.empty_like(squares)
    _nearest_across_planes(squares, reach, out)
    return out


def connected_parts(region: Array) -> Array:
    """Numbers (nz, ny, nx) of the parts of a boolean region whose voxels touch by faces, from 1 on; 0 outside. In which
    order they are numbered is free."""
    if array_module(region) is np:
        return scipy.ndimage.label(region)[0]
    import cupyx.scipy.ndimage
    return cupyx.scipy.ndimage.label(region)[0]


@njit(parallel=True, cache=True, nogil=True)
def _nearest_in_planes(squares, reach):  # type: ignore[no-untyped-def]
    """Along x and y, in place."""
    nz, ny, nx = squares.shape
    far = np.int32((reach + 1) ** 2)
    for z in prange(nz):
        plane = np.empty((ny, nx), np.int32)
        for y in range(ny):
            for side in range(2):  # the last voxel of the region that a scan has met
                since = np.int32(reach + 1)
                for i in range(nx):
                    x = i if side == 0 else nx - 1 - i
                    since = np.int32(0) if squares[z, y, x] == 0 else min(since + np.int32(1), np.int32(reach + 1))
                    plane[y, x] = since if side == 0 else min(plane[y, x], since)
        for y in range(ny):
            row = squares[z, y]
            for x in range(nx):
                row[x] = min(plane[y, x] * plane[y, x], far)
            for other in range(max(y - reach, 0), min(y + reach + 1, ny)):
                step = np.int32((other - y) ** 2)
                for x in range(nx):
                    row[x] = min(row[x], step + plane[other, x] * plane[other, x])


@njit(parallel=True, cache=True, nogil=True)
def _nearest_across_planes(squares, reach, out):  # type: ignore[no-untyped-def]
    nz, ny, nx = squares.shape
    for y in prange(ny):
        for z in range(nz):
            row = out[z, y]
            row[:] = squares[z, y]
            for other in range(max(z - reach, 0), min(z + reach + 1, nz)):
                step, there = np.int32((other - z) ** 2), squares[other, y]
                for x in range(nx):
                    row[x] = min(row[x], step + there[x])
