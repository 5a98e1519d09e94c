"""RELION 3.1's higher-order optics by explicit polynomials in float64, and images and STAR columns made with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Tuple

import numpy as np
from experiments import OPTICS, Experiment, experiment
from oracles import ctf_formula, full_frequencies

from localrefine_plugin.engine.model.optics import electron_wavelength, with_beam_tilt
from localrefine_plugin.engine.records.particles import OpticsGroup

WAVELENGTH = 0.0196875  # Å at 300 kV: Reimer & Kohl, table 2.1
ODD = (  # x, y in 1/Å; RELION's order: n, then m
    lambda x, y: y,
    lambda x, y: x,
    lambda x, y: 3 * x**2 * y - y**3,
    lambda x, y: (3 * (x**2 + y**2) - 2) * y,
    lambda x, y: (3 * (x**2 + y**2) - 2) * x,
    lambda x, y: x**3 - 3 * x * y**2,
)
EVEN = (
    lambda x, y: 1 + 0 * x,
    lambda x, y: 2 * x * y,
    lambda x, y: 2 * (x**2 + y**2) - 1,
    lambda x, y: x**2 - y**2,
    lambda x, y: 4 * x**3 * y - 4 * x * y**3,
    lambda x, y: (4 * (x**2 + y**2) - 3) * 2 * x * y,
    lambda x, y: 6 * (x**2 + y**2) ** 2 - 6 * (x**2 + y**2) + 1,
    lambda x, y: (4 * (x**2 + y**2) - 3) * (x**2 - y**2),
    lambda x, y: x**4 - 6 * x**2 * y**2 + y**4,
)


@dataclass(frozen=True)
class Aberrations:
    """Of one optics group, in the units of the STAR file: mrad, rad, rad, one."""

    tilt: Tuple[float, ...] = (0.0, 0.0)
    odd: Tuple[float, ...] = (0.0,) * 6
    even: Tuple[float, ...] = (0.0,) * 9
    magnification: Tuple[float, ...] = (1.0, 0.0, 0.0, 1.0)

    @property
    def matrix(self):
        return np.array(self.magnification).reshape(2, 2)

    def frequencies(self, kx, ky):
        """q = M k."""
        return np.tensordot(self.matrix, np.stack([kx, ky]), axes=1)

    def odd_phase(self, kx, ky, length):
        """Radians; ``length`` = N a."""
        x, y = self.frequencies(kx, ky) / length
        tilt = -2 * np.pi * 1e4 * OPTICS["spherical_aberration_mm"] * WAVELENGTH**2 * (x**2 + y**2)
        return sum(c * z(x, y) for c, z in zip(self.odd, ODD)) + tilt * (x * self.tilt[0] + y * self.tilt[1])

    def even_phase(self, kx, ky, length):
        x, y = self.frequencies(kx, ky) / length
        return sum(c * z(x, y) for c, z in zip(self.even, EVEN))

    def group(self, name, pixel_size, box_size):
        odd = with_beam_tilt(
            self.odd, self.tilt, OPTICS["spherical_aberration_mm"], electron_wavelength(OPTICS["voltage_kv"])
        )
        return OpticsGroup(
            name, pixel_size=pixel_size, box_size=box_size, odd_zernike=odd, even_zernike=self.even,
            magnification=self.magnification, **OPTICS,
        )  # fmt: skip


NONE = Aberrations()
# Far stronger than a microscope's: 5 mrad, 4 % and a shear, to show within a tiny box.
STRONG = (
    Aberrations((5.0, -3.0), (0.0, 0.0, 150.0, 0.0, 0.0, -220.0), magnification=(1.04, 0.06, -0.04, 0.97)),
    Aberrations(even=(0.2, 15.0, 4.0, -10.0, 800.0, -20.0, 60.0, 20.0, -900.0), magnification=(0.98, 0.0, 0.02, 1.03)),
)


def star_columns(aberrations):
    """Columns of data_optics, label → a text per group; the tilt is apart, the odd list without it."""
    def numbers(values):
        return "[" + ",".join(f"{v:g}" for v in values) + "]"
    columns = {"rlnOddZernike": [numbers(a.odd) for a in aberrations],
               "rlnEvenZernike": [numbers(a.even) for a in aberrations]}  # fmt: skip
    columns.update({f"rlnBeamTilt{axis}": [str(a.tilt[i]) for a in aberrations] for i, axis in enumerate("XY")})
    labels = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
    columns.update({label: [str(a.magnification[i]) for a in aberrations] for i, label in enumerate(labels)})
    return columns


def image_shifts(particles, shift, aberrations):
    """t = Mᵀ t′ (n, 2): where the STAR file has what the engine has in the specimen's plane."""
    return np.array([aberrations[g].matrix.T @ t for g, t in zip(particles.optics_group, shift)])


def contrast(particles, i, aberration, kx, ky):
    """C(M k) with the even coefficients in χ."""
    length = particles.box_size * particles.pixel_size
    even = np.rad2deg(aberration.even_phase(kx, ky, length))
    names = ("defocus_u", "defocus_v", "defocus_angle")
    return ctf_formula(
        *aberration.frequencies(kx, ky), particles.box_size, particles.pixel_size,
        phase_shift=particles.phase_shift[i] - even, **{name: getattr(particles, name)[i] for name in names}, **OPTICS,
    )  # fmt: skip


def model(phantom, particles, rotation, shift, aberrations, kx, ky):
    """Y(k) = C(q) e^{iφ(q)} e^{−2πi k·t/N} F(Rᵀ(q, 0)), q = M k, of phantoms at poses (R, t′); (n, K)."""
    box, out = particles.box_size, []
    image_shift = image_shifts(particles, shift, aberrations)
    for i, g in enumerate(particles.optics_group):
        a = aberrations[g]
        slices = phantom.slices(rotation[i : i + 1], np.zeros((1, 2)), *a.frequencies(kx, ky), box)[0]
        phase = a.odd_phase(kx, ky, box * particles.pixel_size)
        phase = phase - 2 * np.pi / box * (kx * image_shift[i, 0] + ky * image_shift[i, 1])
        out.append(contrast(particles, i, a, kx, ky) * np.exp(1j * phase) * slices)
    return np.array(out)


def aberrated(n, aberrations=STRONG, noise=0.0, noise_seed=3, wider_shifts=1.0, **arguments) -> Experiment:
    """`experiment` in as many optics groups as ``aberrations``, with images made of the formula above; shifts are
    ``wider_shifts`` times as large, the input's as far from them as before."""
    e = experiment(n, **arguments)
    p = replace(e.particles, shift_px=e.particles.shift_px + (wider_shifts - 1) * e.shift)
    e = replace(e, shift=wider_shifts * e.shift)
    p = replace(
        p,
        optics=tuple(a.group(f"g{i}", p.pixel_size, p.box_size) for i, a in enumerate(aberrations)),
        optics_group=(np.arange(n) // 2 % len(aberrations)).astype(np.int32),
    )
    kx, ky = full_frequencies(p.box_size)
    spectra = model(e.phantom, p, e.rotation, e.shift, aberrations, kx.ravel(), ky.ravel()).reshape(n, *kx.shape)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectra, axes=(1, 2))).real, axes=(1, 2))
    images += noise * np.random.default_rng(noise_seed).standard_normal(images.shape)
    return replace(e, particles=p, images=images, noise=noise)
