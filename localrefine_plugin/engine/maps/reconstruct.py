"""From inserted images to a map.

The accumulators N and D are divided on the padded grid, cropped in real space, and corrected for the trilinear
kernel:

    V = crop F⁻¹[ N / D̄ ] / sinc²,      D̄ = r · smooth(D / r),

with r the radial profile of D and smooth a mean over neighbouring cells with the binomial weights of order 4 along
each axis. Division by D itself gives voxels that a single image touched with a tiny weight the full noise of that
image; dividing by the local average does not. Taking out the profile first leaves the average without the bias that
the curvature of D ∝ 1/|k| and the CTF's rings would give it. The few voxels about the origin, which every image
touched, keep their own D. docs/explanation/tried.md says what this was compared with.
"""
from __future__ import annotations

from typing import Any, Tuple

import numpy as np

from ..kernels.device import array_module, blank
from ..kernels.fft import ifft, irfft
from ..kernels.shells import density_sums
from ..model.fourier import forward, inverse, multiply_radial

Array = Any
PADDING = 2
FLOOR = 0.01  # of the radial profile, for directions hardly any image covers
SMOOTHINGS = 2  # by ¼, ½, ¼ along each axis
OWN_RADIUS = 4  # padded voxels; closer to the origin D is not smoothed
SLAB = 16  # planes at a time on the host; more than OWN_RADIUS


def accumulator_shape(max_shell: int) -> Tuple[int, int, int, int]:
    """(nx, nz, ny, 3) for images used up to ``max_shell`` (cycles per box)."""
    reach = PADDING * max_shell + 2
    return reach + 1, 2 * reach + 1, 2 * reach + 1, 3


def new_accumulator(max_shell: int, xp: Any = np) -> Array:
    """Float32 zeros of `accumulator_shape`, numpy's or CuPy's."""
    return blank(accumulator_shape(max_shell), np.float32, xp)


def enforce_hermitian(accumulator: Array) -> None:
    """Add to the plane x = 0 of (nx, nz, ny, 3) what the Friedel mates of its samples bring (in place)."""
    plane = accumulator[0]
    mate = plane[::-1, ::-1].copy()
    mate[..., 1] *= -1
    plane += mate


def working_bytes(box_size: int) -> int:
    """Most memory `reconstruct` may take on a GPU besides the accumulator: the rows of one axis, before and after their
    transform (8 bytes each a cell), D̄ and its averages, and cuFFT's work space. The host takes a part of it
    (memory.HOST_RECONSTRUCTION)."""
    return 32 * (PADDING * box_size) ** 3


def reconstruct(accumulator: Array, box_size: int, max_shell: int, workers: int = 1) -> Array:
    """Unfiltered, unmasked map (N, N, N) float32 of the images inserted up to ``max_shell``.

    Frequencies beyond ``max_shell`` are zero. The accumulator is used up.
    """
    xp = array_module(accumulator)
    enforce_hermitian(accumulator)
    accumulator = within_padded_box(accumulator, PADDING * box_size)
    rows = divided(accumulator, PADDING * box_size, PADDING * (max_shell + 0.5))
    volume = to_real_space(rows, accumulator.shape[2], box_size, workers)
    correction = (1.0 / xp.sinc((xp.arange(box_size) - box_size // 2) / (PADDING * box_size)) ** 2).astype(np.float32)
    volume *= correction[:, None, None] * correction[None, :, None] * correction
    return cut_beyond(volume, max_shell, workers)


def within_padded_box(accumulator: Array, padded: int) -> Array:
    """The cells below the padded grid's Nyquist frequency; beyond it they would fall on the opposite sign's rows."""
    nz, ny = accumulator.shape[1:3]
    z, y = min(nz // 2, padded // 2 - 1), min(ny // 2, padded // 2 - 1)
    return accumulator[:padded // 2 + 1, nz // 2 - z:nz // 2 + z + 1, ny // 2 - y:ny // 2 + y + 1]


def cut_beyond(volume: Array, max_shell: int, workers: int) -> Array:
    """The map (N, N, N) without frequencies whose rounded radius exceeds ``max_shell``."""
    spectrum = multiply_radial(forward(volume, workers), lambda radius: radius < max_shell + 0.5)
    return inverse(spectrum, volume.shape, workers)


def divided(accumulator: Array, padded: int, last: float) -> Array:
    """N / D̄ (nx, padded, ny) complex64 at its place on the z axis of the padded grid; 0 where there are no images, or
    beyond radius ``last``. By slabs of a few planes, which stay in a cache of the host."""
    xp = array_module(accumulator)
    nx, nz, ny, _ = accumulator.shape
    profile = radial_profile(accumulator)
    rows = xp.empty((nx, padded, ny), np.complex64)
    rows[:, nz - nz // 2:padded - nz // 2] = 0
    for first in range(0, nx, SLAB if xp is np else nx):
        slab = slice(first, min(first + SLAB, nx) if xp is np else nx)
        weight = filter_of(accumulator, profile, slab, last)
        for part in range(2):
            values = (rows.real, rows.imag)[part]
            values[slab, :nz - nz // 2] = accumulator[slab, nz // 2:, :, part] * weight[:, nz // 2:]
            values[slab, padded - nz // 2:] = accumulator[slab, :nz // 2, :, part] * weight[:, :nz // 2]
    return rows


def filter_of(accumulator: Array, profile: Array, slab: slice, last: float) -> Array:
    """What N is multiplied by, 1 / D̄ (planes, nz, ny) float32, of a slab of planes x; ``profile`` of D by squared
    radius."""
    xp = array_module(accumulator)
    nx = len(accumulator)
    planes = slice(max(slab.start - SMOOTHINGS, 0), min(slab.stop + SMOOTHINGS, nx))
    density = xp.ascontiguousarray(accumulator[planes, :, :, 2])
    squared = squared_radius(density.shape, planes.start, xp)
    inside = (squared <= last ** 2) & (density > 0)
    ratio = xp.where(inside, density / profile[squared], xp.float32(1))
    before = xp.ascontiguousarray(ratio[1:1 + SMOOTHINGS][::-1, ::-1, ::-1]) if slab.start == 0 else ratio[:0]
    after = xp.ones((slab.stop + SMOOTHINGS - planes.stop,) + ratio.shape[1:], np.float32)
    ratio = xp.concatenate([before, ratio, after])  # Friedel mates beyond x = 0, 1 where there are no cells
    for _ in range(SMOOTHINGS):
        ratio = averaged(ratio)
    own = slice(slab.start - planes.start, slab.stop - planes.start)
    smooth = xp.maximum(ratio, xp.float32(FLOOR), out=ratio)
    smooth *= profile[squared[own]]
    if slab.start < OWN_RADIUS:
        keep_own(smooth, density[own], profile, slab.start)
    return inside[own].astype(np.float32) / smooth


def keep_own(smooth: Array, density: Array, profile: Array, first: int) -> None:
    """Put D itself into D̄ (planes, nz, ny), in place, at the cells closest to the origin; ``first``: the plane x that
    the planes begin with."""
    xp, near = array_module(smooth), OWN_RADIUS
    _, nz, ny = density.shape
    own = (slice(near - first), slice(nz // 2 - near, nz // 2 + near + 1), slice(ny // 2 - near, ny // 2 + near + 1))
    squared = squared_radius(density[own].shape, first, xp)
    kept = xp.maximum(density[own], xp.float32(FLOOR) * profile[squared])
    smooth[own] = xp.where(squared < near ** 2, kept, smooth[own])


def squared_radius(shape: Tuple[int, ...], first: int, xp: Any) -> Array:
    """Squared distance (planes, nz, ny) int32 of cells from the zero frequency, from plane x = ``first`` on: few
    different integers, for each of which what depends on the radius alone is computed once."""
    planes, nz, ny = shape
    x, z, y = (xp.arange(start, start + n, dtype=np.int32) ** 2
               for start, n in ((first, planes), (-(nz // 2), nz), (-(ny // 2), ny)))
    return x[:, None, None] + z[:, None] + y


def averaged(ratio: Array) -> Array:
    """Mean over 3 × 3 × 3 cells of weights (¼, ½, ¼) along each axis: (planes − 2, nz, ny); 1 outside z and y."""
    xp = array_module(ratio)
    planes, nz, ny = ratio.shape
    wide = xp.ones((planes, nz + 2, ny + 2), np.float32)
    wide[:, 1:-1, 1:-1] = ratio
    for axis in (2, 1, 0):  # the last axis first: it makes the array smaller
        before, here, after = (wide[(slice(None),) * axis + (part,)]
                               for part in (slice(-2), slice(1, -1), slice(2, None)))
        mean = before + after
        mean *= xp.float32(0.5)
        mean += here
        mean *= xp.float32(0.5)
        wide = mean
    return wide


def radial_profile(accumulator: Array) -> Array:
    """Mean of D over shells of one cell, linear between the shells' mean radii: float32 by squared radius; positive."""
    xp = array_module(accumulator)
    sums = density_sums(accumulator[..., 2])
    cells = cells_by_square(accumulator.shape[:3])
    squares = np.arange(len(cells))
    radius = np.sqrt(squares)
    shell = np.rint(radius).astype(np.int64)
    count = np.maximum(np.bincount(shell, cells), 1)
    mean, at = sums / count, np.bincount(shell, cells * radius) / count
    tiny = 1e-12 * max(float(mean.max()), 1e-30)
    return xp.asarray(np.maximum(np.interp(radius, at, mean), tiny).astype(np.float32))


def cells_by_square(shape: Tuple[int, ...]) -> np.ndarray:
    """How many cells of (nx, nz, ny) have each squared radius: float64."""
    nx, nz, ny = shape
    in_plane = np.bincount(squared_radius((1, nz, ny), 0, np).ravel()).astype(np.float64)
    cells = np.zeros((nx - 1) ** 2 + len(in_plane))
    for x in range(nx):
        cells[x * x:x * x + len(in_plane)] += in_plane
    return cells


def to_real_space(rows: Array, ny: int, box_size: int, workers: int) -> Array:
    """Map (N, N, N), origin at N // 2, of the half spectrum of `divided`.

    One axis is transformed at a time and cropped at once: half of the work of a transform of the whole grid.
    """
    xp = array_module(rows)
    nx, padded = rows.shape[:2]
    cropped = around_origin(ifft(rows, 1, workers), 1, box_size)
    rows = xp.empty((nx, box_size, padded), np.complex64)
    rows[:, :, ny - ny // 2:padded - ny // 2] = 0
    rows[:, :, :ny - ny // 2] = cropped[:, :, ny // 2:]
    rows[:, :, padded - ny // 2:] = cropped[:, :, :ny // 2]
    cropped = around_origin(ifft(rows, 2, workers), 2, box_size)
    volume = around_origin(irfft(cropped, padded, 0, workers), 0, box_size)
    return xp.ascontiguousarray(volume.transpose(1, 2, 0))


def around_origin(array: Array, axis: int, box_size: int) -> Array:
    """The ``box_size`` points about point 0 of a periodic axis, in order."""
    xp = array_module(array)
    ahead = (slice(None),) * axis
    before, length = box_size // 2, array.shape[axis]
    return xp.concatenate([array[ahead + (slice(length - before, None),)],
                           array[ahead + (slice(box_size - before),)]], axis=axis)
