"""Independent answers: what the engine must compute, by float64 sums that share no code with it.

A phantom is a sum of Gaussians: its density, its projections and its transform all have closed forms.
Conventions are those of docs/reference/conventions.md; points are x, y, z in px from voxel N // 2, frequencies in
cycles per box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Phantom:
    """Σ a exp(−|v − p|²/2σ²): points (G, 3) px from the box centre, amplitudes (G,), sigma px."""

    points: np.ndarray
    amplitudes: np.ndarray
    sigma: float

    def density(self, box: int) -> np.ndarray:
        """(N, N, N) float32 samples, [z, y, x]."""
        axis = np.arange(box) - box // 2
        x, y, z = (np.exp(-np.square(axis - self.points[:, i : i + 1]) / (2 * self.sigma**2)) for i in range(3))
        return np.einsum("g,gz,gy,gx->zyx", self.amplitudes, z, y, x, optimize=True).astype(np.float32)

    def transform(self, frequency: np.ndarray, box: int) -> np.ndarray:
        """F(q) = Σ a (2πσ²)^{3/2} e^{−2π²σ²|q|²/N²} e^{−2πi q·p/N} of frequencies (..., 3)."""
        q = np.asarray(frequency, dtype=np.float64) / box
        envelope = np.exp(-2 * (np.pi * self.sigma) ** 2 * np.sum(q * q, axis=-1))
        phases = np.exp(-2j * np.pi * q @ self.points.T) @ self.amplitudes
        return (2 * np.pi * self.sigma**2) ** 1.5 * envelope * phases

    def slices(self, rotation: np.ndarray, shift: np.ndarray, kx: np.ndarray, ky: np.ndarray, box: int) -> np.ndarray:
        """e^{−2πi k·t/N} F(Rᵀ(kx, ky, 0)) (n, K)."""
        plane = np.stack([kx, ky, np.zeros_like(kx)], axis=-1).astype(np.float64)
        phase = np.exp(-2j * np.pi / box * (shift @ plane[:, :2].T))
        return np.stack([p * self.transform(plane @ r, box) for r, p in zip(rotation, phase)])

    def projections(self, rotation: np.ndarray, shift: np.ndarray, box: int) -> np.ndarray:
        """Line integrals along the viewing direction in real space (n, N, N), [y, x]."""
        axis = np.arange(box) - box // 2
        out = []
        for r, t in zip(rotation, shift):
            at = self.points @ r[:2].T + t
            x, y = (np.exp(-np.square(axis - at[:, i : i + 1]) / (2 * self.sigma**2)) for i in range(2))
            out.append(np.sqrt(2 * np.pi) * self.sigma * (y * self.amplitudes[:, None]).T @ x)
        return np.array(out)


def random_phantom(count: int, radius: float, sigma: float, seed: int, centre=(0.0, 0.0, 0.0)) -> Phantom:
    """Gaussians uniform in a ball, amplitudes 0.5 … 1.5."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    points = direction * radius * rng.random((count, 1)) ** (1 / 3) + np.asarray(centre)
    return Phantom(points, rng.uniform(0.5, 1.5, count), sigma)


def soft_ball(box: int, inner: float, outer: float, centre=(0.0, 0.0, 0.0)) -> np.ndarray:
    """1 up to ``inner``, raised cosine to 0 at ``outer`` (px), about ``centre``: (N, N, N) float32."""
    axis = np.arange(box) - box // 2
    x, y, z = centre
    radius = np.sqrt((axis[:, None, None] - z) ** 2 + (axis[:, None] - y) ** 2 + (axis - x) ** 2)
    return (0.5 + 0.5 * np.cos(np.pi * np.clip((radius - inner) / (outer - inner), 0, 1))).astype(np.float32)


def ctf_formula(
    kx,
    ky,
    box,
    pixel_size,
    *,
    defocus_u,
    defocus_v,
    defocus_angle,
    voltage_kv,
    spherical_aberration_mm,
    amplitude_contrast,
    phase_shift=0.0,
) -> np.ndarray:
    """sin(π λ Δf s² − (π/2) Cs λ³ s⁴ + phase shift + asin ac), one pixel after the other's formula, in float64.

    λ from the constants of nature: h / √(2 m e V (1 + eV / 2mc²)).
    """
    h, m, e, c = 6.62607015e-34, 9.1093837015e-31, 1.602176634e-19, 299792458.0
    energy = e * voltage_kv * 1e3
    wavelength = 1e10 * h / np.sqrt(2 * m * energy * (1 + energy / (2 * m * c * c)))
    s = np.hypot(kx, ky) / (box * pixel_size)
    theta = np.arctan2(ky, kx) - np.deg2rad(defocus_angle)
    defocus = defocus_u * np.cos(theta) ** 2 + defocus_v * np.sin(theta) ** 2
    chi = np.pi * wavelength * defocus * s**2
    chi -= np.pi / 2 * spherical_aberration_mm * 1e7 * wavelength**3 * s**4
    return np.sin(chi + np.deg2rad(phase_shift) + np.arcsin(amplitude_contrast))


def centred_transform(images: np.ndarray) -> np.ndarray:
    """Full centred transforms (n, N, N) complex128 of images with their origin in pixel N // 2; [ky, kx]
    with zero frequency at N // 2."""
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes=(1, 2))), axes=(1, 2))


def at_frequencies(transforms: np.ndarray, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """(n, K) values of `centred_transform` at integer frequencies."""
    half = transforms.shape[1] // 2
    return transforms[:, np.asarray(ky).astype(int) + half, np.asarray(kx).astype(int) + half]


def full_frequencies(box: int):
    """kx, ky (N, N) of `centred_transform`."""
    axis = np.arange(box) - box // 2
    ky, kx = np.meshgrid(axis, axis, indexing="ij")
    return kx.astype(np.float64), ky.astype(np.float64)


def imaged(projections: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """Projections (n, N, N) seen through CTFs (n, N, N) on `full_frequencies`, float64."""
    spectra = centred_transform(projections) * contrast
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectra, axes=(1, 2))).real, axes=(1, 2))


def hermitian_volume(half: np.ndarray) -> np.ndarray:
    """Full (nz, ny, 2·nx − 1) volume of a half x ≥ 0 whose zero is at [nz // 2, ny // 2, 0]; the mates fill x < 0."""
    mates = half[::-1, ::-1, :0:-1].conj()
    return np.concatenate([mates, half], axis=2).astype(np.complex128)


def corner_sums(shape, rotation: np.ndarray, scale: float, kx: np.ndarray, ky: np.ndarray):
    """(index (3, 8, K), weight (8, K)) of the corners around scale·Rᵀ(kx, ky, 0) in a full centred volume."""
    q = scale * np.stack([kx, ky, np.zeros_like(kx)], axis=-1).astype(np.float64) @ rotation
    position = q[:, ::-1].T + np.array(shape)[:, None] // 2  # z, y, x
    low = np.floor(position).astype(int)
    index, weight = [], []
    for corner in np.ndindex(2, 2, 2):
        offset = np.array(corner)[:, None]
        index.append(low + offset)
        weight.append(np.prod(np.where(offset, position - low, 1 - (position - low)), axis=0))
    return np.stack(index, axis=1), np.array(weight)


def trilinear_slice(full: np.ndarray, rotation: np.ndarray, scale: float, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """P (K,) complex128 from a full centred volume by trilinear interpolation."""
    index, weight = corner_sums(full.shape, rotation, scale, kx, ky)
    return np.sum(full[tuple(index)] * weight, axis=0)


def trilinear_insert(
    shape, rotation: np.ndarray, scale: float, kx: np.ndarray, ky: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """The adjoint: values (K,) added into a full centred volume of zeros."""
    out = np.zeros(shape, np.complex128)
    index, weight = corner_sums(shape, rotation, scale, kx, ky)
    np.add.at(out, tuple(index), weight * values)
    return out


def log_likelihood(image_ft: np.ndarray, model_ft: np.ndarray, noise_power: np.ndarray) -> float:
    """−Σ |X − Y|²/σ² + Σ |X|²/σ² over the given pixels, σ² = E|N|² of a complex pixel."""
    x, y = image_ft.astype(np.complex128), model_ft.astype(np.complex128)
    return float(np.sum((np.abs(x) ** 2 - np.abs(x - y) ** 2) / noise_power))


def shell_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """FSC by shell 0 … N // 2 of two maps, by full complex transforms in float64."""
    n = a.shape[0]
    fa, fb = np.fft.fftn(a.astype(np.float64)), np.fft.fftn(b.astype(np.float64))
    k = np.fft.fftfreq(n, 1 / n)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int).ravel()
    sums = [np.bincount(shell, v.ravel()) for v in ((fa * fb.conj()).real, np.abs(fa) ** 2, np.abs(fb) ** 2)]
    return (sums[0] / np.sqrt(sums[1] * sums[2]))[: n // 2 + 1]


def angle_between_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle (n,) of aᵀb of rotations (n, 3, 3)."""
    relative = np.swapaxes(a, 1, 2) @ b
    twice_sine = np.linalg.norm(
        np.stack(
            [
                relative[:, 2, 1] - relative[:, 1, 2],
                relative[:, 0, 2] - relative[:, 2, 0],
                relative[:, 1, 0] - relative[:, 0, 1],
            ],
            axis=-1,
        ),
        axis=1,
    )
    return np.rad2deg(np.arctan2(twice_sine, np.trace(relative, axis1=1, axis2=2) - 1))
