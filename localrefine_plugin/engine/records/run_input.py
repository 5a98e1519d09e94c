"""input.json: what a run was given, and what was settled before its first iteration; and how its files looked then."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from .particles import OpticsGroup
from .resolved import ResolvedSettings

INPUT_NAMES = ("particles", "half_map_1", "half_map_2", "mask")
"""The files that a run is given, as `RunInput` and the command line name them."""


@dataclass(frozen=True)
class Excluded:
    """A particle left out: its row (from 1) in the input table, its image (NNNNNN@stack), and why."""

    row: int
    image: str
    reason: str


@dataclass(frozen=True)
class RunInput:
    """Attributes
    ----------
    particles, half_map_1, half_map_2, mask : real paths of the files given.
    box_size : px.  pixel_size : Å.
    resolved : the settings in use.
    optics, stacks : of the particles; their columns are in particles.npz.
    grey_scale : of each half-map, by which its references are multiplied to fit the images.
    warnings : sentences on the input.  excluded : particles left out.
    device : in words; device_word : as it was asked for ("auto", "cpu", "cuda:0,cuda:1").
    predicted_memory_mb : of the machine; 0 where a GPU does the work.
    versions : of what computes.
    other_bodies : names of the run folders beside this one that hold the other bodies of a run of several masks.
    """

    particles: str
    half_map_1: str
    half_map_2: str
    mask: str
    box_size: int
    pixel_size: float
    resolved: ResolvedSettings
    optics: Tuple[OpticsGroup, ...]
    stacks: Tuple[str, ...]
    grey_scale: Tuple[float, ...] = (1.0, 1.0)
    warnings: Tuple[str, ...] = ()
    excluded: Tuple[Excluded, ...] = ()
    device: str = ""
    device_word: str = ""
    predicted_memory_mb: float = 0.0
    versions: Optional[Dict[str, str]] = None
    other_bodies: Tuple[str, ...] = ()

    @property
    def half_maps(self) -> Tuple[str, str]:
        """The half-maps of half-sets 1 and 2, as they are used."""
        given = self.half_map_1, self.half_map_2
        return given[::-1] if self.resolved.exchange_half_maps else given

    @property
    def subtracted_bodies(self) -> Tuple[str, ...]:
        """Names of the run folders of the bodies that are taken out of the images."""
        return self.other_bodies if self.resolved.subtract_bodies else ()


@dataclass(frozen=True)
class Fingerprint:
    """How a file looked: size in bytes, time of its last change (ns), and a digest of its content, or of a sample."""

    size: int
    modified_ns: int
    digest: str


@dataclass(frozen=True)
class InputFingerprints:
    """iter_000/fingerprints.json: of the particles, half-maps and mask by their names in `RunInput`; of each stack."""

    files: Dict[str, Fingerprint]
    stacks: Tuple[Fingerprint, ...]


@dataclass(frozen=True)
class InputChanges:
    """final/input_changes.json: sentences on the input files that changed while the run went on."""

    changes: Tuple[str, ...]
