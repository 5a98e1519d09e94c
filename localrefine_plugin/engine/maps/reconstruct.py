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
from ..kernels.fft import ifft, irfft, irfftn, rfftn

Array = Any
PADDING = 2
FLOOR = 0.01  # of the radial profile, for directions hardly any image covers
SMOOTHINGS = 2  # by ¼, ½, ¼ along each axis
OWN_RADIUS = 4  # padded voxels; closer to the origin D is not smoothed


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
    """Most memory `reconstruct` may take on a GPU besides the accumulator: squared radii and D for its profile (8
    bytes each a cell), D̄ and its averages, the rows of one axis and cuFFT's work space. The host takes a third of it
    (memory.HOST_RECONSTRUCTION)."""
    return 32 * (PADDING * box_size) ** 3


def reconstruct(accumulator: Array, box_size: int, max_shell: int, workers: int = 1) -> Array:
    """Unfiltered, unmasked map (N, N, N) float32 of the images inserted up to ``max_shell``.

    Frequencies beyond ``max_shell`` are zero. The accumulator is used up.
    """
    xp = array_module(accumulator)
    enforce_hermitian(accumulator)
    accumulator = within_padded_box(accumulator, PADDING * box_size)
    weight = filter_of(xp.ascontiguousarray(accumulator[..., 2]), PADDING * (max_shell + 0.5))
    volume = to_real_space(accumulator, weight, box_size, workers)
    correction = (1.0 / xp.sinc((xp.arange(box_size) - box_size // 2) / (PADDING * box_size)) ** 2).astype(np.float32)
    volume *= correction[:, None, None] * correction[None, :, None] * correction
    return cut_beyond(volume, max_shell, workers)


def filter_of(density: Array, last: float) -> Array:
    """What N is multiplied by, 1 / D̄ (nx, nz, ny) float32; 0 where there are no images, or beyond radius ``last``."""
    xp = array_module(density)
    squared = squared_radius(density)
    inside = (squared <= last ** 2) & (density > 0)
    profile = radial_profile(density, squared)
    del squared  # the largest array here
    return xp.where(inside, 1 / local_mean(density, profile, inside), xp.float32(0))


def within_padded_box(accumulator: Array, padded: int) -> Array:
    """The cells below the padded grid's Nyquist frequency; beyond it they would fall on the opposite sign's rows."""
    nz, ny = accumulator.shape[1:3]
    z, y = min(nz // 2, padded // 2 - 1), min(ny // 2, padded // 2 - 1)
    return accumulator[:padded // 2 + 1, nz // 2 - z:nz // 2 + z + 1, ny // 2 - y:ny // 2 + y + 1]


def cut_beyond(volume: Array, max_shell: int, workers: int) -> Array:
    """The map (N, N, N) without frequencies whose rounded radius exceeds ``max_shell``."""
    xp = array_module(volume)
    n = len(volume)
    k = xp.fft.fftfreq(n, 1 / n)
    spectrum = rfftn(volume, workers)
    spectrum *= k[:, None, None] ** 2 + k[:, None] ** 2 + xp.arange(n // 2 + 1) ** 2 < (max_shell + 0.5) ** 2
    return irfftn(spectrum, (n,) * 3, workers).astype(np.float32)


def squared_radius(density: Array) -> Array:
    """Squared distance (nx, nz, ny) of each cell from the zero frequency: few different integers, for each of which
    what depends on the radius alone is computed once."""
    xp = array_module(density)
    x, z, y = (xp.arange(n) - before for n, before in zip(density.shape, (0, *(n // 2 for n in density.shape[1:]))))
    return (x ** 2)[:, None, None] + (z ** 2)[:, None] + y ** 2


def local_mean(density: Array, profile: Array, inside: Array) -> Array:
    """D̄ (nx, nz, ny) > 0, float32."""
    xp = array_module(density)
    ratio = xp.where(inside, density / profile, xp.float32(1))
    for _ in range(SMOOTHINGS):
        ratio = averaged(ratio)
    smooth = xp.maximum(ratio, xp.float32(FLOOR), out=ratio)
    smooth *= profile
    near, (_, nz, ny) = OWN_RADIUS, density.shape
    own = (slice(near), slice(nz // 2 - near, nz // 2 + near + 1), slice(ny // 2 - near, ny // 2 + near + 1))
    kept = xp.maximum(density[own], FLOOR * profile[own])
    smooth[own] = xp.where(squared_radius(kept) < near ** 2, kept, smooth[own])
    return smooth


def averaged(ratio: Array) -> Array:
    """Mean over 3 × 3 × 3 cells of weights (¼, ½, ¼) along each axis; 1 outside, Friedel mates beyond x = 0."""
    xp = array_module(ratio)
    nx, nz, ny = ratio.shape
    wide = xp.ones((nx + 2, nz + 2, ny + 2), np.float32)
    wide[1:-1, 1:-1, 1:-1] = ratio
    wide[0, 1:-1, 1:-1] = ratio[1, ::-1, ::-1]
    for axis in (2, 1, 0):  # the last axis first: it makes the array smaller
        before, here, after = (wide[(slice(None),) * axis + (part,)]
                               for part in (slice(-2), slice(1, -1), slice(2, None)))
        mean = before + after
        mean *= xp.float32(0.5)
        mean += here
        mean *= xp.float32(0.5)
        wide = mean
    return wide


def radial_profile(density: Array, squared: Array) -> Array:
    """Mean of D (nx, nz, ny) over shells of one cell, linear between the shells' mean radii; positive.

    Rounded radii are s for the squared radii from s² − s + 1 to s² + s: shells are runs of a sum by squared radius.
    """
    xp = array_module(density)
    cells = xp.bincount(squared.ravel())
    sums = xp.bincount(squared.ravel(), density.ravel().astype(np.float64))
    radius, shell = xp.sqrt(xp.arange(len(cells))), xp.arange(int(np.rint(np.sqrt(len(cells) - 1))) + 1)
    end = xp.minimum(shell * (shell + 1), len(cells) - 1)

    def by_shell(values: Array) -> Array:
        return xp.diff(xp.concatenate([xp.zeros(1), xp.cumsum(values)[end]]))

    count = xp.maximum(by_shell(cells), 1)
    mean, at = by_shell(sums) / count, by_shell(cells * radius) / count
    tiny = 1e-12 * max(float(mean.max()), 1e-30)
    return xp.maximum(xp.interp(radius, at, mean), tiny).astype(np.float32).take(squared)


def to_real_space(accumulator: Array, weight: Array, box_size: int, workers: int) -> Array:
    """Map (N, N, N), origin at N // 2, of the half spectrum weight · N on the padded grid.

    One axis is transformed at a time and cropped at once: half of the work of a transform of the whole grid.
    """
    xp = array_module(accumulator)
    padded, (nx, nz, ny) = PADDING * box_size, weight.shape
    rows = xp.empty((nx, padded, ny), np.complex64)
    rows[:, nz - nz // 2:padded - nz // 2] = 0
    for part in range(2):
        values = (rows.real, rows.imag)[part]
        values[:, :nz - nz // 2] = accumulator[:, nz // 2:, :, part] * weight[:, nz // 2:]
        values[:, padded - nz // 2:] = accumulator[:, :nz // 2, :, part] * weight[:, :nz // 2]
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
