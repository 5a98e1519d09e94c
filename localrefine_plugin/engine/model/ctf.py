"""The contrast transfer function, one matrix product for a whole batch.

    C(k) = sin(χ + asin ac),   χ = π λ Δf(θ) s² − (π/2) Cs λ³ s⁴ + phase shift

with Δf(θ) = ½(U + V) + ½(U − V) cos 2(θ − α). C > 0 at low s for underfocus and white particles,
which is RELION's sign. χ is linear in five fixed functions of the pixel, so that the phases of all
images of a batch are one product (n, 5)·(5, K). A magnification matrix has functions of its own, and even Zernike
coefficients are subtracted from χ (optics.py).
"""
from __future__ import annotations

from typing import Any, Callable, Optional, Sequence

import numpy as np

from ..kernels.combined import combined
from ..kernels.device import array_module
from ..records.particles import OpticsGroup, Particles
from .optics import aberration_phase, electron_wavelength, specimen_frequencies

Array = Any


def phase_basis(kx: Array, ky: Array, box_size: int, pixel_size: float) -> Array:
    """(5, K) float32: s², s² cos 2θ, s² sin 2θ, s⁴, 1 at image frequencies kx, ky (cycles per box)."""
    xp = array_module(kx)
    scale = 1.0 / (box_size * pixel_size)
    x, y = kx.astype(np.float64) * scale, ky.astype(np.float64) * scale
    s2 = x * x + y * y
    return xp.stack([s2, x * x - y * y, 2 * x * y, s2 * s2, xp.ones_like(s2)]).astype(np.float32)


def phase_coefficients(particles: Particles, index: np.ndarray) -> np.ndarray:
    """(n, 5) float32, the factors of `phase_basis` for particles of this index (n,)."""
    group = particles.optics_group[index]
    cs, ac = (per_group(particles.optics, f)[group] for f in ("spherical_aberration_mm", "amplitude_contrast"))
    lam = np.array([electron_wavelength(optics.voltage_kv) for optics in particles.optics])[group]
    u, v = particles.defocus_u[index], particles.defocus_v[index]
    mean, half_difference = 0.5 * (u + v), 0.5 * (u - v)
    angle = 2 * np.deg2rad(particles.defocus_angle[index])
    columns = [np.pi * lam * mean, np.pi * lam * half_difference * np.cos(angle),
               np.pi * lam * half_difference * np.sin(angle), -0.5 * np.pi * cs * 1e7 * lam ** 3,
               np.deg2rad(particles.phase_shift[index]) + np.arcsin(ac)]
    return np.stack(columns, axis=1).astype(np.float32)


def per_group(optics: Sequence[OpticsGroup], name: str) -> np.ndarray:
    return np.array([getattr(group, name) for group in optics], dtype=np.float64)


def ctf(coefficients: Array, basis: Array, even: Optional[Array] = None) -> Array:
    """C (n, K) float32 from `phase_coefficients` (n, 5), `phase_basis` (5, K) and what is subtracted from χ (K,)."""
    xp = array_module(basis)
    chi = combined(coefficients, basis)
    if even is not None:
        chi -= even
    return xp.sin(chi, out=chi)


class CtfOnPixels:
    """C of particles at fixed image frequencies kx, ky (K,), with all their optics groups have."""

    def __init__(self, particles: Particles, kx: np.ndarray, ky: np.ndarray, to_device: Callable[[np.ndarray], Array]):
        self.to_device, self.particles, self.optics = to_device, particles, particles.optics
        size = particles.box_size, particles.pixel_size
        self.bases = {group.magnification: to_device(phase_basis(*specimen_frequencies(group, kx, ky), *size))
                      for group in self.optics}
        self.even = [to_device(aberration_phase(group, False, kx, ky).astype(np.float32)) if group.even_zernike
                     else None for group in self.optics]
        self.alike = len(self.bases) == 1 and not any(group.even_zernike or group.grey_scale != 1
                                                      for group in self.optics)

    def __call__(self, index: np.ndarray) -> Array:
        """C (n, K) of these particles."""
        coefficients = self.to_device(phase_coefficients(self.particles, index))
        group = self.particles.optics_group[index]
        present = [0] if self.alike else np.unique(group)
        if len(present) == 1:
            return self._of_group(coefficients, present[0])
        xp = array_module(coefficients)
        out = xp.empty((len(index), next(iter(self.bases.values())).shape[1]), np.float32)
        for g in present:
            mine = self.to_device(np.flatnonzero(group == g))
            out[mine] = self._of_group(coefficients[mine], g)
        return out

    def _of_group(self, coefficients: Array, group: int) -> Array:
        optics = self.optics[group]
        c = ctf(coefficients, self.bases[optics.magnification], self.even[group])
        return c if optics.grey_scale == 1 else c * np.float32(optics.grey_scale)
