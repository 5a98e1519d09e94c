"""Optics groups and particles, as the engine needs them."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Tuple

import numpy as np

NO_DISTORTION = (1.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class OpticsGroup:
    """One RELION optics group; see optics.py for the three before the last.

    odd_zernike : rad, with the beam tilt.  even_zernike : rad.  magnification : m00, m01, m10, m11.
    grey_scale : of its images relative to those of the largest group; the CTF is multiplied by it.
    """

    name: str
    voltage_kv: float
    spherical_aberration_mm: float
    amplitude_contrast: float
    pixel_size: float
    box_size: int
    odd_zernike: Tuple[float, ...] = ()
    even_zernike: Tuple[float, ...] = ()
    magnification: Tuple[float, ...] = NO_DISTORTION
    grey_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("odd_zernike", "even_zernike", "magnification"):  # lists when they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class Particles:
    """What the engine needs of n particles, in the row order of the input table.

    Attributes
    ----------
    rotation : (n, 3, 3) float64, R of docs/reference/conventions.md (specimen → image frame).
    shift_px : (n, 2) float64, t = −origin / pixel size; with a magnification matrix t′ = M⁻ᵀ t (optics.py).
    half_set : (n,) int8, 1 or 2; 0 = left out (exclude.py).
    defocus_u, defocus_v : (n,) float64, Å.  defocus_angle, phase_shift : (n,) float64, degrees.
    optics_group : (n,) int32, index into ``optics``.
    stack : (n,) int32, index into ``stacks``.  slice : (n,) int64, 0-based image in its stack.
    optics : the optics groups.  stacks : absolute paths of the image stacks.
    """

    rotation: np.ndarray
    shift_px: np.ndarray
    half_set: np.ndarray
    defocus_u: np.ndarray
    defocus_v: np.ndarray
    defocus_angle: np.ndarray
    phase_shift: np.ndarray
    optics_group: np.ndarray
    stack: np.ndarray
    slice: np.ndarray
    optics: Tuple[OpticsGroup, ...]
    stacks: Tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.half_set)
        shapes = dict(rotation=(n, 3, 3), shift_px=(n, 2))
        for name in self.column_names():
            if getattr(self, name).shape != shapes.get(name, (n,)):
                raise ValueError(f"Particles.{name} has shape {getattr(self, name).shape} for {n} particles")

    def __len__(self) -> int:
        return len(self.half_set)

    @classmethod
    def column_names(cls) -> Tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(cls) if f.name not in ("optics", "stacks"))

    def take(self, index: np.ndarray) -> "Particles":
        """The particles of an index (m,), in its order."""
        return dataclasses.replace(self, **{name: getattr(self, name)[index] for name in self.column_names()})

    @property
    def box_size(self) -> int:
        return self.optics[0].box_size

    @property
    def pixel_size(self) -> float:
        return self.optics[0].pixel_size


def image_numbers(particles: Particles) -> np.ndarray:
    """(n,) int64: the same number for the same image of a stack, which copies of a particle share."""
    last = int(np.max(particles.slice, initial=0)) + 1
    numbers: np.ndarray = np.asarray(particles.stack).astype(np.int64)
    numbers *= last
    numbers += particles.slice
    return numbers
