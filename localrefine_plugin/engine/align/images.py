"""Images on their way to the search: read, transformed, and matched with their CTF and noise."""
from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from ..kernels.background import plane_fit, without_background
from ..kernels.device import CPU, Device, array_module
from ..kernels.fft import rfft2
from ..model.ctf import CtfOnPixels
from ..model.optics import aberration_phase, image_shift, magnifications
from ..model.pixels import PixelList, half_plane_frequencies, last_column
from ..records.particles import Particles
from .search import PackedImages

Array = Any


@dataclass(frozen=True)
class Batch:
    """Images of one batch on the half-plane grid: X (n, 2M + 1, M + 1) and C of the same shape, as
    signal Z = C X / σ² and weight W = C² / σ²; power |X|²; magnification (n, 2, 2) or None (optics.py)."""

    signal: Array
    weight: Array
    power: Array
    magnification: Optional[Array] = None

    def joined(self, other: "Batch") -> "Batch":
        """The images of both; either all or none have magnifications."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Batch(**{name: None if a is None else array_module(a).concatenate([a, b])
                        for name, (a, b) in pairs.items()})


class LastTransforms:
    """What was last made of images, for the other bodies of the same images: transforms and CTFs, and random noise."""

    def __init__(self) -> None:
        self.made: Dict[str, Tuple[np.ndarray, Any, Any]] = {}

    def of(self, what: str, index: np.ndarray, key: Any, make: Callable[[], Any]) -> Any:
        """``make()`` of images ``index`` (n,), or what was made of the same before; ``key`` is what it depends on
        besides. Nobody may write to it."""
        known = self.made.pop(what, None)
        if known is None or known[1] != key or not np.array_equal(known[0], index):
            known = None  # its memory is free before the new one is taken
            known = index, key, make()
        self.made[what] = known
        return known[2]


class HalfSetImages:
    """Reads, transforms and weighs the images of a half-set, on ``device``; ``shared`` between its bodies."""

    def __init__(self, particles: Particles, read: Callable[[np.ndarray], np.ndarray], noise_power: np.ndarray,  # noqa: PLR0913
                 max_shell: int, workers: int, device: Device = CPU, shared: Optional[LastTransforms] = None):
        self.shared = shared
        self.particles, self.read, self.workers, self.to_device = particles, read, workers, device.to_device
        self.max_shell, box = max_shell, particles.box_size
        kx, ky = half_plane_frequencies(max_shell)
        self.shape = kx.shape
        self.ctf = CtfOnPixels(particles, kx.ravel(), ky.ravel(), self.to_device)
        self.magnification = magnifications(particles)
        self.corrections = [self.to_device(phase.astype(np.complex64))
                            for phase in phase_corrections(particles, kx, ky)]
        shell = np.minimum(np.rint(np.hypot(kx, ky)).astype(int), max_shell)
        self.inverse_noise = self.to_device((1 / noise_power[:, shell]).astype(np.float32))
        self.rows_of_ft = self.to_device(np.arange(-max_shell, max_shell + 1) % box)
        self.last_column = self.to_device(last_column(max_shell))
        self.last = int(np.max(particles.slice, initial=0)) + 1
        self.background = [self.to_device(part) for part in plane_fit(box)]

    def load(self, index: np.ndarray) -> Tuple[Array, Array]:
        """`loaded`, or a copy of what another body has just loaded; C is not to be written to."""
        if self.shared is None:
            return self.loaded(index)
        ft, c = self.shared.of("images", index, (self.max_shell, self.particles.optics), lambda: self.loaded(index))
        return ft.copy(), c

    def loaded(self, index: np.ndarray) -> Tuple[Array, Array]:
        """Centred transforms X without the phase of odd aberrations, and CTFs C: (n, 2M + 1, M + 1)."""
        images = self.to_device(self.read(index))
        _, first, copy_of = np.unique(self.image_of(index), return_index=True, return_inverse=True)
        if len(first) == len(index):
            ft = self.transforms(images, index)
        else:  # expanded particles: copies of an image
            ft = self.transforms(images[self.to_device(first)], index[first])
            ft = ft.take(self.to_device(copy_of.reshape(-1)), axis=0)
        return ft, self.ctf(index).reshape((len(index),) + self.shape)

    def image_of(self, index: np.ndarray) -> np.ndarray:
        """(n,) int64, which image a particle has; the same number for its expanded copies."""
        particles = self.particles
        of_stack = particles.stack[index].astype(np.int64) * self.last + particles.slice[index]
        number: np.ndarray = of_stack * len(particles.optics) + particles.optics_group[index]
        return number

    def transforms(self, images: Array, index: np.ndarray) -> Array:
        """X of ``images`` (n, N, N), which are those of particles ``index``, less the background."""
        spectra = rfft2(without_background(images, *self.background), self.workers)
        ft = spectra[:, :, :self.max_shell + 1].take(self.rows_of_ft, axis=1)
        if len(self.corrections) == 1:
            ft *= self.corrections[0]
        else:
            group = self.particles.optics_group[index]
            for g in np.unique(group):
                ft[self.to_device(np.flatnonzero(group == g))] *= self.corrections[g]
        return ft

    def batch(self, index: np.ndarray) -> Batch:
        ft, c = self.load(index)
        power = ft.real ** 2 + ft.imag ** 2
        group = self.particles.optics_group[index]
        weight = c * self.inverse_noise_of(index)
        ft *= weight
        weight *= c
        magnification = None if self.magnification is None else self.to_device(self.magnification[group])
        return Batch(ft, weight, power, magnification)

    def inverse_noise_of(self, index: np.ndarray) -> Array:
        """1 / σ² (n, 2M + 1, M + 1) of particles ``index`` (n,)."""
        return self.inverse_noise[self.to_device(self.particles.optics_group[index])]

    def noise_like(self, batch: Batch, index: np.ndarray) -> Batch:
        """Images of nothing but noise, of the power and with the CTFs of the ``batch`` of particles ``index``; the same
        noise for a particle in any batch."""
        unit = self.unit_noise(index) if self.shared is None else self.shared.of(
            "noise", index, self.max_shell, lambda: self.unit_noise(index))
        inverse_noise = self.inverse_noise_of(index)
        signal = unit * (0.5 * batch.weight) ** 0.5  # C N / σ² with E|N|² = σ² and |C| for C
        return replace(batch, signal=signal, power=(unit.real ** 2 + unit.imag ** 2) / (2 * inverse_noise))

    def unit_noise(self, index: np.ndarray) -> Array:
        """N + iN' (n, 2M + 1, M + 1), both of standard deviation 1."""
        noise = np.stack([np.random.default_rng(i).standard_normal((2,) + self.shape, dtype=np.float32) for i in index])
        return self.to_device(noise[:, 0] + 1j * noise[:, 1])


def phase_corrections(particles: Particles, kx: np.ndarray, ky: np.ndarray) -> List[np.ndarray]:
    """What takes transforms to the box centre and odd aberrations out of them, e^{2πi k·c/N − iφ(k)} of each group; one
    for all without aberrations."""
    box = particles.box_size
    to_centre = np.exp(2j * np.pi * (box // 2) / box * (kx + ky))
    if not any(group.odd_zernike for group in particles.optics):
        return [to_centre]
    return [to_centre * np.exp(-1j * aberration_phase(group, True, kx, ky)) for group in particles.optics]


def pack(batch: Batch, pixels: PixelList, centre_shift: Array) -> PackedImages:
    """What the search sees of a batch: only listed pixels, moved so that u = 0 is ``centre_shift`` (n, 2) px."""
    n = len(batch.signal)
    matched = batch.signal.reshape(n, -1).take(pixels.index, axis=1)
    matched *= pixels.phases(image_shift(centre_shift, batch.magnification))
    matched *= 2
    weight = 2 * batch.weight.reshape(n, -1).take(pixels.index, axis=1)
    return PackedImages(pixels, matched, weight, batch.magnification)


def displaced(packed: PackedImages, displacement: Array) -> PackedImages:
    """Packed images whose u = 0 is displaced by (n, 2) px."""
    phases = packed.pixels.phases(image_shift(displacement, packed.magnification))
    return replace(packed, matched=packed.matched * phases)


def scaled(batch: Batch, scale: Array) -> Batch:
    """The batch of images whose signal is ``scale`` (n,) times the model's: Z = α C X / σ², W = α² C² / σ²."""
    factor = scale.astype(np.float32)[:, None, None]
    return replace(batch, signal=batch.signal * factor, weight=batch.weight * factor ** 2)
