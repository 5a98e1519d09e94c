"""Images on their way to the search: read, transformed, and matched with their CTF and noise."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Tuple

import numpy as np

from .ctf import ctf, phase_basis, phase_coefficients
from .kernels.device import CPU, Device, array_module
from .kernels.fft import rfft2
from .pixels import PixelList, half_plane_frequencies, last_column
from .records import Particles
from .search import PackedImages

Array = Any


@dataclass(frozen=True)
class Batch:
    """Images of one batch on the half-plane grid: X (n, 2M + 1, M + 1) and C of the same shape, as
    signal Z = C X / σ² and weight W = C² / σ²; power |X|²."""

    signal: Array
    weight: Array
    power: Array


class HalfSetImages:
    """Reads, transforms and weighs the images of a half-set, on ``device``."""

    def __init__(self, particles: Particles, read: Callable[[np.ndarray], np.ndarray], noise_power: np.ndarray,
                 max_shell: int, workers: int, device: Device = CPU):
        self.particles, self.read, self.workers, self.put = particles, read, workers, device.put
        self.max_shell, box = max_shell, particles.box_size
        kx, ky = half_plane_frequencies(max_shell)
        self.shape = kx.shape
        self.basis = self.put(phase_basis(kx.ravel(), ky.ravel(), box, particles.pixel_size))
        self.coefficients = phase_coefficients(particles)
        self.to_centre = self.put(np.exp(2j * np.pi * (box // 2) / box * (kx + ky)).astype(np.complex64))
        shell = np.minimum(np.rint(np.hypot(kx, ky)).astype(int), max_shell)
        self.inverse_noise = self.put((1 / noise_power[:, shell]).astype(np.float32))
        self.rows_of_ft = self.put(np.arange(-max_shell, max_shell + 1) % box)
        self.last_column = self.put(last_column(max_shell))

    def load(self, rows: np.ndarray) -> Tuple[Array, Array]:
        """Centred transforms X and CTFs C of these particles."""
        ft = rfft2(self.put(self.read(rows)), self.workers)[:, :, :self.max_shell + 1].take(self.rows_of_ft, axis=1)
        ft *= self.to_centre
        return ft, ctf(self.put(self.coefficients[rows]), self.basis).reshape((len(rows),) + self.shape)

    def batch(self, rows: np.ndarray) -> Batch:
        ft, c = self.load(rows)
        power = ft.real ** 2 + ft.imag ** 2
        weight = c * self.inverse_noise[self.put(self.particles.optics_group[rows])]
        ft *= weight
        weight *= c
        return Batch(ft, weight, power)


def pack(batch: Batch, pixels: PixelList, centre_shift: Array) -> PackedImages:
    """What the search sees of a batch: only listed pixels, moved so that u = 0 is ``centre_shift`` (n, 2) px."""
    xp = array_module(batch.signal)
    n = len(batch.signal)
    omega = 2 * np.pi / pixels.box_size
    phase = xp.exp(1j * omega * (centre_shift[:, :1] * pixels.kx + centre_shift[:, 1:] * pixels.ky).astype(np.float32))
    matched = 2 * batch.signal.reshape(n, -1).take(pixels.index, axis=1) * phase
    weight = 2 * batch.weight.reshape(n, -1).take(pixels.index, axis=1)
    return PackedImages(pixels, matched.astype(np.complex64), weight)


def scaled(batch: Batch, scale: Array) -> Batch:
    """The batch of images whose signal is ``scale`` (n,) times the model's: Z = α C X / σ², W = α² C² / σ²."""
    factor = scale.astype(np.float32)[:, None, None]
    return Batch(batch.signal * factor, batch.weight * factor ** 2, batch.power)
