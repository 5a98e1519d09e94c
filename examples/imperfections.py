"""What experimental images have and ideal ones do not, for the simulator; each is off at 0.

    image = particle (or none: junk) + neighbours + (1 − f)^½ noise + f^½ noise of the specimen + ramp of the ice

The random numbers are apart from those of the simulator: without imperfections, its data sets are what they were.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

import numpy as np
from scipy.spatial.transform import Rotation

from . import imaging

JUNK, DEFOCUS, VIEWS, BATCHES, SECOND_HINGE = range(1, 6)  # streams of random numbers
NEIGHBOUR_DISTANCE = 0.8, 1.4  # of the radius of the particle; two that touch are 2 apart


@dataclass(frozen=True)
class Imperfections:
    """Options of the simulator."""

    preferred_view_deg: float = 0.0       # s.d. of the angle between the view and one axis; 0: all views alike
    junk: float = 0.0                     # share of images without a particle
    neighbours: float = 0.0               # share of images that another particle reaches into
    ice_gradient: float = 0.0             # s.d. of a ramp from the centre to the edge, in s.d. of the noise
    structured_noise: float = 0.0         # share of the noise's power that the specimen makes: the CTF acts on it
    defocus_error_angstrom: float = 0.0   # s.d. of what the STAR file says
    pixel_size_error: float = 0.0         # true pixel size over that of the files, less 1


def stream(seed: int, kind: int, start: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, kind, start, 20731])


def junk_rows(options: Imperfections, seed: int, n: int) -> np.ndarray:
    """Which of n images (n,) show no particle."""
    return stream(seed, JUNK).random(n) < options.junk


def given_defocus(options: Imperfections, seed: int, defocus: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """The defoci of the STAR file: u and v are off by the same."""
    error = stream(seed, DEFOCUS).normal(0, 1, len(defocus["u"])) * options.defocus_error_angstrom
    return dict(defocus, u=defocus["u"] + error, v=defocus["v"] + error)


def preferred_views(options: Imperfections, seed: int, n: int) -> np.ndarray:
    """Rotations (n, 3, 3) whose views lie about the z axis of the particle."""
    rng = stream(seed, VIEWS)
    tilt = np.abs(rng.normal(0, options.preferred_view_deg, n))
    return imaging.rotation_from_euler(np.stack([rng.uniform(-180, 180, n), tilt, rng.uniform(-180, 180, n)], axis=1))


def neighbour_poses(rng: np.random.Generator, n: int, radius: float) -> "tuple[np.ndarray, np.ndarray]":
    """Rotations (n, 3, 3) and positions (n, 2) in Å of particles that overlap with one in the centre."""
    angle, distance = rng.uniform(0, 2 * np.pi, n), rng.uniform(*NEIGHBOUR_DISTANCE, n) * radius
    rotation = Rotation.random(n, random_state=int(rng.integers(2 ** 31))).as_matrix()
    return rotation, distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def ramps(options: Imperfections, rng: np.random.Generator, n: int, box_size: int) -> np.ndarray:
    """Images (n, N, N) that rise in one direction."""
    axis = (np.arange(box_size) - box_size // 2) / (box_size / 2)
    angle, height = rng.uniform(0, 2 * np.pi, (n, 1, 1)), options.ice_gradient * rng.standard_normal((n, 1, 1))
    return height * (np.cos(angle) * axis + np.sin(angle) * axis[:, None])


def specimen_noise(pixels: imaging.Pixels, white: np.ndarray, amplitude: np.ndarray, ctf: np.ndarray) -> np.ndarray:
    """Transforms (n, K) of noise on which the CTF (n, K) has acted, with the variance of ``white · amplitude``."""
    twice = np.where(pixels.kx == 0, 1, 2)
    power = np.sum(amplitude ** 2 * twice)
    own = np.sum((amplitude * ctf) ** 2 * twice, axis=1, keepdims=True)
    return white * amplitude * ctf * np.sqrt(power / own)
