"""What the alignment of a half-set takes of memory, before it begins."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from .kernels.batches import SMALLEST_BATCH
from .kernels.device import MEMORY_SHARE, Device
from .reconstruct import PADDING, accumulator_shape, working_bytes
from .records import InputError

GIB = 2 ** 30


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes, where the work is done, for images of ``box_size`` whose transforms have ``half_plane`` pixels.

    sums : accumulators.  reference : the Fourier volume.  image : each image of a batch.
    temporaries : besides, for each image of the smallest batch.
    reconstruction : besides the sums, once all images are inserted.
    """

    box_size: int
    half_plane: int
    sums: float
    reference: float
    image: float
    temporaries: float
    reconstruction: float

    @property
    def least(self) -> float:
        """With the smallest batch; a card may leave the reconstruction to the processor."""
        return self.sums + self.reference + SMALLEST_BATCH * (self.image + self.temporaries)

    def binned(self, box_size: int) -> "MemoryNeed":
        """For the same images and alignment resolution in fewer pixels."""
        r = box_size / self.box_size
        plane, volume = r ** 2, r ** 3
        return MemoryNeed(box_size, int(self.half_plane * plane), self.sums * volume, self.reference * volume,
                          self.image * plane, self.temporaries * plane, self.reconstruction * volume)

    def largest_box(self, free: float) -> int:
        """Largest even box that fits into ``free`` bytes; 0 if none of at least 32 px does."""
        boxes = range(self.box_size - self.box_size % 2, 31, -2)
        return next((box for box in boxes if self.binned(box).least <= free), 0)

    def remedy(self, free: float) -> str:
        """What would fit."""
        box = self.largest_box(free)
        binning = f"bin the particles to {box} px or fewer, " if 0 < box < self.box_size else ""
        return f"use a card with {self.least / MEMORY_SHARE / GIB:.1f} GiB free, {binning}or --device cpu"


def memory_need(box_size: int, max_shell: int, reaches: Sequence[float], pixels: int, grid_pixels: int, rotations: int,
                shifts: int, fixed: bool) -> MemoryNeed:
    """The need of images used to ``max_shell`` for the map and with ``pixels`` pixels for the alignment.

    An image takes itself in two batches; transform, CTF and weights; what the search sees of it; scores and prior.

    Parameters
    ----------
    reaches : grid steps from the origin to its faces, of the transform of each reference.
    grid_pixels, rotations, shifts : of the coarse grid.  fixed : whether the sums are 64-bit integers.
    """
    half_plane = (2 * max_shell + 1) * (max_shell + 1)
    return MemoryNeed(
        box_size, half_plane, sums=(24 if fixed else 12) * float(np.prod(accumulator_shape(max_shell)[:3])),
        reference=sum(8 * (2 * reach + 1) ** 2 * (reach + 2) for reach in reaches),
        image=8 * box_size ** 2 + 80 * half_plane + 60 * pixels + 40 * rotations * shifts,
        temporaries=16 * (rotations + shifts) * grid_pixels, reconstruction=working_bytes(box_size))


def reach_of_reference(edge: int, box_size: int, align_shell: int) -> float:
    """Reach of the transform of a cube of ``edge`` voxels, padded, to ``align_shell``; a few per cent too far."""
    return min(1.05 * PADDING * edge / box_size * align_shell + 2, 1.05 * PADDING * edge / 2)


def check_fits(device: Device, need: MemoryNeed) -> None:
    """Raise InputError if a card has not the memory for the smallest batch."""
    if device.on_card and device.memory_bytes() < need.least:
        free = device.memory_bytes()
        raise InputError(f"its free memory ({free / GIB:.1f} GiB for this run) does not hold what particles of "
                         f"{need.box_size} px take ({need.least / GIB:.1f} GiB)", f"device {device.word}",
                         need.remedy(free))


def prediction(device: Device, need: MemoryNeed) -> str:
    """One line for the log before a run."""
    shared = (need.sums + need.reference) / GIB
    if not device.on_card:
        return f"memory: about {shared + need.reconstruction / GIB:.1f} GiB to align and reconstruct a half-set"
    free = device.memory_bytes()
    place = "" if free - need.sums >= need.reconstruction else ", for which the processor is taken"
    return (f"memory of the card: {shared:.1f} GiB for sums and reference, {need.image / 2**20:.1f} MiB for an image, "
            f"{need.reconstruction / GIB:.1f} GiB for the reconstruction{place}; {free / GIB:.1f} GiB for this run")
