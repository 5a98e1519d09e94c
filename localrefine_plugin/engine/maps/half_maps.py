"""Two half-maps, and what is computed of them once and used by many: transforms, correlations, random phases.

    FSC(s) = Re Σ F₁ F₂* / √(Σ|F₁|² Σ|F₂|²)   over the shell s = round(|k|) of the full spectrum,

sums in float64, Friedel mates counted alike. Under a mask only the box that holds it is transformed: the rest is zero,
and where that box begins turns the phases of both halves alike.
"""
from __future__ import annotations

from functools import cached_property
from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from ..io.mrc import read_map
from ..io.run_folder import RunFolder
from ..kernels.device import CPU, Device, array_module, to_host
from ..kernels.fft import irfftn_block, lowest, rfftn_block
from ..model import fourier

Array = Any
Region = Tuple[slice, ...]
Radial = Callable[[np.ndarray], np.ndarray]
"""A weight by |k| in shells."""


class HalfMaps:
    """Two half-maps (N, N, N) float32, numpy's or CuPy's. Nobody writes into them or into their spectra."""

    def __init__(self, first: Array, second: Array, workers: int = 1):
        self.maps, self.workers = (first, second), workers
        self.box_size = fourier.box_of(first.shape)

    @cached_property
    def spectra(self) -> Tuple[Array, Array]:
        """Half-spectra (N, N, N // 2 + 1) complex64 of both."""
        return fourier.forward(self.maps[0], self.workers), fourier.forward(self.maps[1], self.workers)

    @cached_property
    def shell_means(self) -> np.ndarray:
        """Means (3, N // 2 + 1) over shells of |F₁|², |F₂|² and Re F₁ F₂* of both maps as they are."""
        return fourier.shell_means(*self.spectra)

    @cached_property
    def unmasked(self) -> np.ndarray:
        """FSC (N // 2 + 1,) of both maps as they are."""
        power1, power2, cross = self.shell_means
        return closed(ratio(cross, power1 * power2))

    def under(self, mask: Array) -> np.ndarray:
        """FSC (N // 2 + 1,) of both maps times a mask (N, N, N)."""
        return closed(shell_correlation(*self.spectra_under(mask)))

    def spectra_under(self, mask: Array) -> Tuple[Array, Array]:
        """Half-spectra of both maps times a mask (N, N, N), but for phases that both have."""
        region = region_of(mask)
        window = mask[region]
        first, second = (transform_within(half[region] * window, self.box_size, self.workers) for half in self.maps)
        return first, second

    def combined(self, first: Radial, second: Radial, region: Optional[Region] = None) -> Array:
        """The map with the transform first(|k|) F₁ + second(|k|) F₂: (N, N, N) float32, or what of it is in a region.

        Only samples up to the last shell that has a weight are touched.
        """
        return irfftn_block(self._block(first, second, self.box_size // 2), self.box_size,
                            region or whole(self.box_size), self.workers)

    def coarse(self, first: Radial, second: Radial, box_size: int) -> Array:
        """`combined` without its frequencies beyond a smaller box, on the voxels of that box: the same transform.

        Over the same field of view, so grey values are (N / ``box_size``)³ times as large. Both boxes are even, so that
        voxel N // 2 stays the origin.
        """
        block = self._block(first, second, box_size // 2 - 1)
        return irfftn_block(block, box_size, whole(box_size), self.workers)

    def coarse_mean(self, weight: Radial, box_size: int) -> Array:
        """`mean` on the voxels of a smaller box that holds every frequency which has a weight; grey values up to a
        factor."""
        if self.box_size % 2 or box_size == self.box_size:
            return fourier.resample_map(self.mean(weight), box_size, self.workers)
        return self.coarse(weight, weight, box_size)

    def _block(self, first: Radial, second: Radial, most: int) -> Array:
        """first(|k|) F₁ + second(|k|) F₂ up to the last shell that has a weight, or to shell ``most``."""
        radius = np.sqrt(np.arange(3 * (self.box_size // 2) ** 2 + 1))
        weights = [weight(radius).astype(np.float32) for weight in (first, second)]
        used = np.flatnonzero((weights[0] != 0) | (weights[1] != 0))
        last = min(int(np.ceil(radius[used[-1]])) if len(used) else 0, most)
        ft1, ft2 = (low_block(spectrum, last) for spectrum in self.spectra)
        xp = array_module(ft1)
        tables = [xp.asarray(weight) for weight in weights]
        total = xp.empty(ft1.shape, np.complex64)
        for planes, radius_squared in fourier.slabs_radius_squared(ft1):
            total[planes] = ft1[planes] * tables[0][radius_squared] + ft2[planes] * tables[1][radius_squared]
        return total

    def mean(self, weight: Radial, region: Optional[Region] = None) -> Array:
        """The mean of both (N, N, N), filtered, or what of it is in a region."""
        def half(radius: np.ndarray) -> np.ndarray:
            return 0.5 * weight(radius)
        return self.combined(half, half, region)


class RandomPhases:
    """Two half-maps whose phases are random from a shell on, in a region.

    Phases are those of white noise, so that Friedel mates stay conjugate; amplitudes are kept. Random phases of the two
    halves are independent, so what they add to Σ F₁ F₂* has mean zero: the numerator of their FSC is that of the shells
    before, which are not random at all. Only the power of the random part needs a draw. This is the expectation of the
    curve that relion_postprocess draws once, without the 1/√n_eff of noise that one draw carries into F.

    Parameters
    ----------
    first_shell : from which on phases are random.  region : where the masks lie.  seed : of the draw.
    """

    def __init__(self, halves: HalfMaps, first_shell: int, region: Region, seed: int):
        self.box_size, self.workers = halves.box_size, halves.workers
        self.first_shell, self.region = first_shell, region
        self.kept: List[Array] = []
        self.random: List[Array] = []
        for half, spectrum in enumerate(halves.spectra, start=1):
            rng = np.random.default_rng([seed, half])
            parts = kept_part(spectrum, first_shell), random_part(spectrum, first_shell, rng, self.workers)
            for part, cubes in zip(parts, (self.kept, self.random)):
                cubes.append(irfftn_block(part, self.box_size, region, self.workers))

    def under(self, mask: Array) -> np.ndarray:
        """F_n (N // 2 + 1,): the FSC under a mask (N, N, N) that is zero outside the region."""
        window = mask[self.region]
        used = region_of(window)

        def transforms(cubes: List[Array]) -> List[Array]:
            return [transform_within(cube[used] * window[used], self.box_size, self.workers) for cube in cubes]
        *kept, cross = fourier.shell_means(*transforms(self.kept))
        *random, _ = fourier.shell_means(*transforms(self.random))
        return closed(ratio(cross, (kept[0] + random[0]) * (kept[1] + random[1])))


def read_half_maps(run: RunFolder, iteration: int, workers: int = 1, device: Device = CPU) -> HalfMaps:
    """Those that an iteration left, on a device."""
    first, second = (device.to_device(read_map(run.half_map(iteration, half))[0]) for half in (1, 2))
    return HalfMaps(first, second, workers)


def region_of(filled: Array, padding: int = 0) -> Region:
    """Slices of the smallest box that holds what is not zero, grown by ``padding`` inside the array (N, N, N), numpy's
    or CuPy's; all of it where nothing is."""
    used: List[slice] = []
    for axis, length in enumerate(filled.shape):
        left = filled[tuple(used)]
        here = np.flatnonzero(to_host(left.any(axis=tuple(a for a in range(3) if a != axis))))
        used.append(slice(int(here[0]), int(here[-1]) + 1) if len(here) else slice(0, length))
    return tuple(slice(max(part.start - padding, 0), min(part.stop + padding, length))
                 for part, length in zip(used, filled.shape))


def whole(box_size: int) -> Region:
    return (slice(0, box_size),) * 3


def low_block(spectrum: Array, last: int) -> Array:
    """The samples of a half-spectrum with |kx|, |ky|, |kz| ≤ last, as `rfftn_block` gives them; not a copy where these
    are all."""
    return lowest(lowest(spectrum, 0, last), 1, last)[:, :, :last + 1]


def transform_within(part: Array, box_size: int, workers: int) -> Array:
    """Half-spectrum of a box with zeros around ``part``, but for the phases of where it lies."""
    if part.shape == (box_size,) * 3:
        return fourier.forward(part, workers)
    return rfftn_block(part, box_size, box_size // 2, workers)


def shell_correlation(ft1: Array, ft2: Array) -> np.ndarray:
    """FSC of two cubic half-spectra: (N // 2 + 1,) float64; 0 in a shell where either has no power."""
    power1, power2, cross = fourier.shell_means(ft1, ft2)
    return ratio(cross, power1 * power2)


def ratio(cross: np.ndarray, power_product: np.ndarray) -> np.ndarray:
    return np.divide(cross, np.sqrt(power_product), out=np.zeros_like(cross), where=power_product > 0)


def closed(curve: np.ndarray) -> np.ndarray:
    """The curve with shell 0 set to 1: a single coefficient, whose correlation can only be ±1."""
    curve[0] = 1.0
    return curve


def kept_part(map_ft: Array, first_shell: int) -> Array:
    """The block of a half-spectrum before ``first_shell``."""
    return fourier.multiply_radial(low_block(map_ft, first_shell).copy(), lambda radius: radius < first_shell)


def random_part(map_ft: Array, first_shell: int, rng: np.random.Generator, workers: int) -> Array:
    """The half-spectrum from ``first_shell`` on with the phases of white noise, its amplitudes kept; 0 before."""
    xp, n = array_module(map_ft), len(map_ft)
    random = fourier.forward(xp.asarray(rng.random((n,) * 3, dtype=np.float32) - np.float32(0.5)), workers)
    for planes, radius_squared in fourier.slabs_radius_squared(map_ft):
        amplitude = xp.abs(map_ft[planes]) * (radius_squared >= first_shell ** 2)
        random[planes] *= amplitude / xp.maximum(xp.abs(random[planes]), np.finfo(np.float32).tiny)
    return random


def random_phases_beyond(volume: np.ndarray, first_shell: int, seed: int, workers: int = 1) -> np.ndarray:
    """A map (N, N, N) with random phases from ``first_shell`` on, amplitudes kept."""
    spectrum = fourier.forward(volume, workers)
    random = random_part(spectrum, first_shell, np.random.default_rng(seed), workers)
    kept: np.ndarray = irfftn_block(kept_part(spectrum, first_shell), len(volume), whole(len(volume)), workers)
    return kept + fourier.inverse(random, volume.shape, workers)
