"""What a microscope adds to the contrast transfer function, per optics group: RELION 3.1's higher-order optics.

With M the magnification matrix, an image of frequencies k (cycles per box) shows the specimen at q = M k:

    Y(k) = C(q) · e^{iφ(q)} · e^{−2πi k·t/N} · F(Rᵀ(q, 0)),      t = Mᵀ t′,
    φ(q) = Σ odd_j Z_j(s),      χ(q) → χ(q) − Σ even_j Z_j(s),      s = q / (N a) in 1/Å.

Z are Zernike polynomials without normalisation, R_n^|m|(|s|) · cos(mθ) for m ≥ 0 and sin(|m|θ) for m < 0, ordered by
n, then by m, over odd n = 1, 3, … and over even n = 0, 2, …; |s| in 1/Å is not scaled to a unit disc. A beam tilt τ
(mrad) is the phase −2π·10⁴ Cs λ² |s|² s·τ (Cs in mm), which is part of the odd coefficients here (Zivanov et al. 2020,
doi:10.1107/S2052252520000081).

M acts on frequencies, so that a point P(R v) of the specimen lands at Mᵀ(P(R v) + t′): everywhere in the engine shifts
are those t′ of the specimen's plane, where levers and displacements are lengths. They become t only where an image's
phase is taken. ``None`` stands for magnifications that are all 1, which cost nothing.

Groups of several pixel sizes a_g (merged sessions) are put into the frame of one, a, that of the half-maps: the image's
frequency M k / (N a_g) in 1/Å is q / (N a) with q = M k a / a_g, so that a_g is the magnification M a / a_g about the
centre of the box, and t′ in px of a is t′ a_g / a. RELION 3.1 does the same (applyScaleDifference). As there, grey
values are left as they are.
"""
from __future__ import annotations

from dataclasses import replace
from math import factorial
from typing import Any, Optional, Sequence, Tuple

import numpy as np

from ..kernels.device import array_module
from ..records.particles import NO_DISTORTION, OpticsGroup, Particles

Array = Any
SAME_PIXEL_SIZE = 1e-3
"""Relative: a quarter of a pixel at the edge of a box of 512. Headers in 32-bit floats round a thousand times finer."""


def electron_wavelength(voltage_kv: float) -> float:
    """Relativistic wavelength in Å: 12.2643247 / sqrt(V + 0.978466e-6 V²)."""
    volt = voltage_kv * 1e3
    return float(12.2643247 / np.sqrt(volt * (1 + volt * 0.978466e-6)))


def zernike_order(index: int, odd: bool) -> Tuple[int, int]:
    """(n, m) of the coefficient at ``index`` of an odd or an even list: 1−1, 11, 3−3, 3−1, … or 00, 2−2, 20, 22, …"""
    n = int(odd)
    while index > n:
        index, n = index - (n + 1), n + 2
    return n, 2 * index - n


def zernike(n: int, m: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Z of x and y float64; R = Σ_k (−1)ᵏ (n − k)! / (k! ((n + |m|)/2 − k)! ((n − |m|)/2 − k)!) ρ^{n − 2k}."""
    rho, theta, absolute = np.hypot(x, y), np.arctan2(y, x), abs(m)
    radial = np.zeros_like(rho)
    for k in range((n - absolute) // 2 + 1):
        divisor = factorial(k) * factorial((n + absolute) // 2 - k) * factorial((n - absolute) // 2 - k)
        radial += (-1) ** k * factorial(n - k) / divisor * rho ** (n - 2 * k)
    result: np.ndarray = radial * (np.cos(m * theta) if m >= 0 else np.sin(absolute * theta))
    return result


def zernike_sum(coefficients: Sequence[float], odd: bool, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Σ_j c_j Z_j at x, y in 1/Å."""
    total = np.zeros(np.shape(x))
    for index, coefficient in enumerate(coefficients):
        if coefficient:
            total += coefficient * zernike(*zernike_order(index, odd), x, y)
    return total


def with_beam_tilt(odd: Sequence[float], tilt_mrad: Sequence[float], spherical_aberration_mm: float,
                   wavelength: float) -> Tuple[float, ...]:
    """Odd coefficients with a beam tilt (x, y) in mrad added to them.

    |s|² x = (Z_{3,1} + 2 Z_{1,1}) / 3, likewise y. RELION 3.1 writes a tilt only beside Z_{3,±1} = 0 and replaces them
    when it reads; from 4.0 on it adds, as here.
    """
    if not any(tilt_mrad):
        return tuple(odd)
    x, y = (-2e4 * np.pi * spherical_aberration_mm * wavelength ** 2 / 3 * tilt for tilt in tilt_mrad)
    tilt = (2 * y, 2 * x, 0.0, y, x, 0.0)
    length = max(len(odd), len(tilt))
    return tuple(a + b for a, b in zip(tuple(odd) + (0.0,) * (length - len(odd)),
                                       tilt + (0.0,) * (length - len(tilt))))


def specimen_frequencies(group: OpticsGroup, kx: np.ndarray, ky: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """q = M k in cycles per box, float64, of the shape of kx and ky."""
    m00, m01, m10, m11 = group.magnification
    x, y = np.asarray(kx, np.float64), np.asarray(ky, np.float64)
    return m00 * x + m01 * y, m10 * x + m11 * y


def aberration_phase(group: OpticsGroup, odd: bool, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """φ (odd) or the part subtracted from χ (even), in radians, at image frequencies k in cycles per box."""
    length = group.box_size * group.pixel_size
    x, y = specimen_frequencies(group, kx, ky)
    return zernike_sum(group.odd_zernike if odd else group.even_zernike, odd, x / length, y / length)


def magnifications(particles: Particles) -> Optional[np.ndarray]:
    """M (groups, 2, 2) of the optics groups; None where all are 1."""
    if all(group.magnification == NO_DISTORTION for group in particles.optics):
        return None
    return np.array([group.magnification for group in particles.optics]).reshape(-1, 2, 2)


def several_pixel_sizes(sizes: np.ndarray) -> bool:
    """Whether pixel sizes differ by more than what rounding leaves."""
    return bool(np.ptp(sizes) > SAME_PIXEL_SIZE * np.min(sizes))


def commonest_pixel_size(particles: Particles) -> float:
    """That of the optics group with the most particles."""
    counts = np.bincount(particles.optics_group, minlength=len(particles.optics))
    return particles.optics[int(counts.argmax())].pixel_size


def with_pixel_size(particles: Particles, pixel_size: float) -> Particles:
    """The particles in the frame of ``pixel_size`` (Å): every group's own pixel size is in its magnification matrix."""
    factor = np.array([pixel_size / group.pixel_size for group in particles.optics])
    optics = tuple(replace(group, pixel_size=pixel_size, magnification=tuple(f * m for m in group.magnification))
                   for group, f in zip(particles.optics, factor.tolist()))
    return replace(particles, optics=optics, shift_px=particles.shift_px / factor[particles.optics_group][:, None])


def stretch(particles: Particles) -> float:
    """By how much |M k| may exceed |k|: the largest singular value of all M, at least 1."""
    m = magnifications(particles)
    return 1.0 if m is None else max(1.0, float(np.linalg.norm(m, 2, axis=(1, 2)).max()))


def image_shift(shift: Array, magnification: Optional[Array]) -> Array:
    """t = Mᵀ t′ of shifts (..., 2) and M (..., 2, 2)."""
    return shift if magnification is None else (shift[..., None, :] @ magnification)[..., 0, :]


def specimen_shift(shift: Array, magnification: Optional[Array]) -> Array:
    """t′ = M⁻ᵀ t (n, 2), the inverse of `image_shift`."""
    if magnification is None:
        return shift
    a, b, c, d = (magnification[..., i, j] for i in range(2) for j in range(2))
    x, y = shift[..., 0], shift[..., 1]
    return array_module(shift).stack([d * x - c * y, a * y - b * x], axis=-1) / (a * d - b * c)[..., None]


def derivatives_by_specimen_shift(gradient: Array, curvature: Array, magnification: Optional[Array]
                                  ) -> Tuple[Array, Array]:
    """J g and J A Jᵀ with J = diag(1, 1, 1, M): derivatives by (w, t) (m, 5) and (m, 5, 5) as those by (w, t′)."""
    if magnification is None:
        return gradient, curvature
    xp = array_module(gradient)
    jacobian = xp.zeros(curvature.shape)
    jacobian[:, :3, :3] = xp.eye(3)
    jacobian[:, 3:, 3:] = magnification
    return (jacobian @ gradient[..., None])[..., 0], jacobian @ curvature @ xp.swapaxes(jacobian, 1, 2)
