"""Images of maps and maps of images: central slices, their adjoint, the CTF, coloured noise.

Conventions are RELION's. A point v (x, y, z from the box centre) lands in the image at P(R v) + t; hence
Y(k) = C(k)·exp(−2πi k·t/N)·F(Rᵀ(kx, ky, 0)), with F the transform of the map about voxel N // 2.
Written for the examples, independently of the engine that they try out.
"""
from __future__ import annotations

from itertools import product
from typing import Dict, Iterator, Tuple

import numpy as np
import scipy.fft
from scipy.spatial.transform import Rotation

PADDING = 2


def rotation_from_euler(angles_deg: np.ndarray) -> np.ndarray:
    """R (n, 3, 3) of rot, tilt, psi (n, 3): RELION's matrix is the inverse of the active rotation Z-Y'-Z''."""
    return Rotation.from_euler("ZYZ", angles_deg, degrees=True).inv().as_matrix()


def euler_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """rot, tilt, psi (n, 3) in degrees of R (n, 3, 3)."""
    return Rotation.from_matrix(rotation).inv().as_euler("ZYZ", degrees=True)


class Pixels:
    """Half-plane pixels of an image transform below the Nyquist frequency, as a list of K frequencies.

    Attributes
    ----------
    kx, ky : (K,) cycles per box.  where : (K,) index into a flattened half spectrum.
    """

    def __init__(self, box_size: int, pixel_size: float):
        self.box_size, self.pixel_size = box_size, pixel_size
        ky, kx = np.meshgrid(scipy.fft.fftfreq(box_size, 1 / box_size), np.arange(box_size // 2 + 1), indexing="ij")
        self.where = np.flatnonzero(np.hypot(kx, ky) < box_size // 2 - 1)
        self.kx, self.ky = (k.ravel()[self.where].astype(np.float32) for k in (kx, ky))

    @property
    def frequency(self) -> np.ndarray:
        """|k| in 1/Å."""
        return np.hypot(self.kx, self.ky) / (self.box_size * self.pixel_size)

    def shift(self, shift_px: np.ndarray) -> np.ndarray:
        """exp(−2πi k·t/N) (n, K) of shifts (n, 2)."""
        phase = shift_px[:, :1] * self.kx + shift_px[:, 1:] * self.ky
        return np.exp(-2j * np.pi / self.box_size * phase).astype(np.complex64)

    def images(self, transforms: np.ndarray) -> np.ndarray:
        """Images (n, N, N) of their pixels (n, K)."""
        n = self.box_size
        spectra = np.zeros((len(transforms), n * (n // 2 + 1)), np.complex64)
        spectra[:, self.where] = transforms
        return _centred(scipy.fft.irfft2(spectra.reshape(-1, n, n // 2 + 1), s=(n, n)), scipy.fft.fftshift)

    def transforms(self, images: np.ndarray) -> np.ndarray:
        """Pixels (n, K) of images (n, N, N); the inverse of `images` for what it keeps."""
        spectra = scipy.fft.rfft2(_centred(images, scipy.fft.ifftshift))
        return spectra.reshape(len(images), -1)[:, self.where]


def _centred(images: np.ndarray, shift) -> np.ndarray:
    return shift(images, axes=(1, 2))


def ctf(pixels: Pixels, defocus: Dict[str, np.ndarray], optics: Dict[str, float]) -> np.ndarray:
    """C (n, K) = sin(π λ Δf s² − (π/2) Cs λ³ s⁴ + asin ac) · exp(−B s²/4): positive at low s.

    ``defocus`` holds u, v (Å) and angle (degrees), each (n,); ``optics`` voltage_kv, spherical_aberration_mm,
    amplitude_contrast and envelope_b_factor.
    """
    volt = optics["voltage_kv"] * 1e3
    wavelength = 12.2643247 / np.sqrt(volt * (1 + volt * 0.978466e-6))
    s2, theta = pixels.frequency ** 2, np.arctan2(pixels.ky, pixels.kx)
    u, v, angle = (defocus[name][:, None] for name in ("u", "v", "angle"))
    depth = 0.5 * (u + v) + 0.5 * (u - v) * np.cos(2 * (theta - np.deg2rad(angle)))
    phase = np.pi * wavelength * depth * s2
    phase -= np.pi / 2 * optics["spherical_aberration_mm"] * 1e7 * wavelength ** 3 * s2 ** 2
    envelope = np.exp(-optics["envelope_b_factor"] / 4 * s2)
    return (np.sin(phase + np.arcsin(optics["amplitude_contrast"])) * envelope).astype(np.float32)


def noise_amplitude(pixels: Pixels) -> np.ndarray:
    """Amplitude (K,) of coloured noise of unit variance: shot noise, ice and a slow background."""
    s = pixels.frequency
    power = 0.35 + np.exp(-(12 * s) ** 2) + 3 * np.exp(-(60 * s) ** 2)
    twice = np.where(pixels.kx == 0, 1, 2)
    return np.sqrt(power / np.sum(power * twice)).astype(np.float32) * pixels.box_size


class VolumeTransform:
    """The padded transform of a map, to cut central slices from by trilinear interpolation."""

    def __init__(self, volume: np.ndarray):
        n = volume.shape[0]
        self.size = PADDING * n
        start = self.size // 2 - n // 2
        padded = np.zeros((self.size,) * 3, np.float32)
        padded[(slice(start, start + n),) * 3] = volume / _gridding(n)
        transform = scipy.fft.fftn(scipy.fft.ifftshift(padded), workers=2)
        self.values = scipy.fft.fftshift(transform).astype(np.complex64).ravel()

    def extract(self, rotation: np.ndarray, pixels: Pixels) -> np.ndarray:
        """Slices (n, K) for rotations (n, 3, 3)."""
        total = np.zeros((len(rotation), len(pixels.kx)), np.complex64)
        for index, weight in _corners(rotation, pixels, self.size):
            total += self.values[index] * weight
        return total


class Reconstruction:
    """Sums of images in a padded transform (the adjoint of `VolumeTransform.extract`), and the map of them."""

    def __init__(self, box_size: int):
        self.box_size, self.size = box_size, PADDING * box_size
        self.numerator = np.zeros(self.size ** 3, np.complex128)
        self.denominator = np.zeros(self.size ** 3)

    def insert(self, rotation: np.ndarray, pixels: Pixels, images_ft: np.ndarray, c: np.ndarray) -> None:
        """Add centred images (n, K) with CTF (n, K) at rotations (n, 3, 3): C·X to the numerator, C² below."""
        value, square = c * images_ft, c * c
        for index, weight in _corners(rotation, pixels, self.size):
            index = index.ravel()
            part = (value * weight).ravel()
            self.numerator.real += np.bincount(index, part.real, self.size ** 3)
            self.numerator.imag += np.bincount(index, part.imag, self.size ** 3)
            self.denominator += np.bincount(index, (square * weight).ravel(), self.size ** 3)

    def map(self) -> np.ndarray:
        """Unfiltered map (N, N, N): the quotient, with the denominator not below 1e-3 of its shell's mean."""
        shape = (self.size,) * 3
        numerator = _add_friedel_mates(self.numerator.reshape(shape))
        denominator = _add_friedel_mates(self.denominator.reshape(shape))
        floor = 1e-3 * _shell_mean(denominator)
        quotient = numerator / np.maximum(np.maximum(denominator, floor), 1e-12)
        padded = scipy.fft.fftshift(scipy.fft.ifftn(scipy.fft.ifftshift(quotient), workers=2).real)
        start = self.size // 2 - self.box_size // 2
        cropped = padded[(slice(start, start + self.box_size),) * 3]
        return (cropped / _gridding(self.box_size)).astype(np.float32)


def _corners(rotation: np.ndarray, pixels: Pixels, size: int) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """(flat index, weight), each (n, K), of the eight grid points around Rᵀ(kx, ky, 0)."""
    rows = rotation.astype(np.float32) * PADDING
    low, share = [], []
    for axis in range(3):
        position = rows[:, 0, axis, None] * pixels.kx + rows[:, 1, axis, None] * pixels.ky + size // 2
        low.append(position.astype(np.int32))
        share.append(position - low[-1])
    corner = (low[2] * size + low[1]) * size + low[0]
    for x, y, z in product((0, 1), repeat=3):
        weight = ((share[0] if x else 1 - share[0]) * (share[1] if y else 1 - share[1])
                  * (share[2] if z else 1 - share[2]))
        yield corner + (z * size + y) * size + x, weight


def _gridding(box_size: int) -> np.ndarray:
    """What trilinear interpolation of the padded transform multiplies a map with: sinc² per axis."""
    profile = np.sinc((np.arange(box_size) - box_size // 2) / (PADDING * box_size)) ** 2
    return (profile[:, None, None] * profile[:, None] * profile).astype(np.float32)


def _add_friedel_mates(grid: np.ndarray) -> np.ndarray:
    """F(k) + conj F(−k) on a centred grid of even size (index 0 has no mate and holds nothing)."""
    total = grid.copy()
    total[1:, 1:, 1:] += grid[:0:-1, :0:-1, :0:-1].conj()
    return total


def _shell_mean(grid: np.ndarray) -> np.ndarray:
    axis = (np.arange(grid.shape[0]) - grid.shape[0] // 2).astype(np.float32)
    shell = np.rint(np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis ** 2)).astype(int)
    count = np.bincount(shell.ravel())
    return (np.bincount(shell.ravel(), grid.ravel()) / count)[shell]
