"""What the alignment of a half-set takes of memory, before it begins."""
from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

import numpy as np

from ..kernels.batches import SMALLEST_BATCH
from ..kernels.device import MEMORY_SHARE, Device
from ..maps.reconstruct import PADDING, accumulator_shape, working_bytes
from ..model.pixels import pixel_list
from ..records.errors import InputError
from ..records.particles import Particles
from .reference import support_box
from .search_plan import SearchPlan, grid_of

GIB = 2 ** 30
# Of a run on the CPU, measured (benchmarks.growth.memory):
PROGRAM_BYTES = 170 * 2 ** 20  # interpreter, libraries, compiled kernels
ROW_BYTES = 200  # a particle in tables (tests/run/test_bytes_of_a_particle.py)
MAP_BYTES = 8  # a voxel of the reference's map and of the mask
HOST_RECONSTRUCTION = 0.345  # of working_bytes, which is for a GPU
SHARED_BYTES = 12  # a pixel of a transform and of its CTF
KEPT_BYTES, KEPT_SHARE = 40 * 2 ** 20, 0.1  # of a batch, that the allocator has not given back when it begins


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes, where the work is done, for images of ``box_size`` whose transforms have ``half_plane`` pixels.

    sums : accumulators.  reference : the Fourier volume.  image : each image of a batch.
    temporaries : besides, for each image of the smallest batch.
    reconstruction : besides the sums, once all images are inserted.
    host_image : on the CPU, each image of a batch, without the image itself.
    fixed : whether the sums are 64-bit integers.
    """

    box_size: int
    half_plane: int
    sums: float
    reference: float
    image: float
    temporaries: float
    reconstruction: float
    host_image: float = 0.0
    fixed: bool = False

    def in_integers(self) -> "MemoryNeed":
        """With sums of 64-bit integers instead of 32-bit floats, of which these are made in the end."""
        return replace(self, sums=2 * self.sums, reconstruction=self.reconstruction + self.sums, fixed=True)

    @property
    def least(self) -> float:
        """With the smallest batch; a GPU may leave the reconstruction to the CPU."""
        return self.sums + self.reference + SMALLEST_BATCH * (self.image + self.temporaries)

    def binned(self, box_size: int) -> "MemoryNeed":
        """For the same images and alignment resolution in fewer pixels."""
        r = box_size / self.box_size
        plane, volume = r ** 2, r ** 3
        return MemoryNeed(box_size, int(self.half_plane * plane), self.sums * volume, self.reference * volume,
                          self.image * plane, self.temporaries * plane, self.reconstruction * volume,
                          self.host_image * plane)

    def largest_box(self, free: float) -> int:
        """Largest even box that fits into ``free`` bytes; 0 if none of at least 32 px does."""
        boxes = range(self.box_size - self.box_size % 2, 31, -2)
        return next((box for box in boxes if self.binned(box).least <= free), 0)

    def remedy(self, free: float) -> str:
        """What would fit."""
        box = self.largest_box(free)
        binning = f"bin the particles to {box} px or fewer, " if 0 < box < self.box_size else ""
        return f"use a GPU with {self.least / MEMORY_SHARE / GIB:.1f} GiB free, {binning}or --device cpu"


class GridSize(NamedTuple):
    """Of the coarse grid: pixels of an image that are compared, rotations, shifts."""

    pixels: int
    rotations: int
    shifts: int


def memory_need(box_size: int, max_shell: int, reaches: Sequence[float], pixels: int,
                grid: GridSize) -> MemoryNeed:
    """The need of images used to ``max_shell`` for the map and with ``pixels`` pixels for the alignment.

    An image takes itself in two batches; transform, CTF and weights; what the search sees of it; scores and prior.

    Parameters
    ----------
    reaches : grid steps from the origin to its faces, of the transform of each reference.
    """
    half_plane = (2 * max_shell + 1) * (max_shell + 1)
    return MemoryNeed(
        box_size, half_plane, sums=12 * float(np.prod(accumulator_shape(max_shell)[:3])),
        reference=sum(8 * (2 * reach + 1) ** 2 * (reach + 2) for reach in reaches),
        image=8 * box_size ** 2 + 80 * half_plane + 60 * pixels + 40 * grid.rotations * grid.shifts,
        temporaries=16 * (grid.rotations + grid.shifts) * grid.pixels, reconstruction=working_bytes(box_size),
        host_image=host_image(half_plane, pixels, grid.rotations, grid.shifts))


def need_of(plan: SearchPlan, particles: Particles, max_shell: int, mask: np.ndarray, device: Device,
            subtracts: bool = False, others: Sequence[np.ndarray] = ()) -> MemoryNeed:
    """What a half-set takes of memory; mask (N, N, N), and those of ``others`` that are subtracted. Sums are 64-bit
    integers, unless a GPU does not hold these."""
    box = particles.box_size
    pixels = pixel_list(box, plan.align_shell, max_shell)
    grid, shell = grid_of(plan, box, particles.pixel_size)
    edges = [(support_box(mask, plan.centre), plan.align_shell)] + subtracts * [(box, plan.align_shell)]
    edges += [(support_box(other, np.zeros(3)), max_shell) for other in others]
    need = memory_need(box, max_shell, [reach_of_reference(edge, box, shell) for edge, shell in edges],
                       len(pixels), GridSize(pixels.prefix(shell), len(grid.rotations), len(grid.shifts)))
    fit = not device.on_gpu or device.memory_bytes() >= need.in_integers().least
    return need.in_integers() if fit else need


def together(needs: Sequence[MemoryNeed]) -> MemoryNeed:
    """Of bodies that are aligned to each batch of images one after the other: sums and references of all, images as for
    the body that takes the most of them, and besides the transforms and CTFs that they share."""
    if len(needs) == 1:
        return needs[0]
    most, shared = max(needs, key=lambda need: need.image), SHARED_BYTES * needs[0].half_plane
    return replace(most, sums=sum(need.sums for need in needs), reference=sum(need.reference for need in needs),
                   image=most.image + shared, temporaries=max(need.temporaries for need in needs),
                   host_image=max(need.host_image for need in needs) + shared, fixed=all(need.fixed for need in needs))


def host_image(half_plane: int, pixels: int, rotations: int, shifts: int) -> float:
    """Bytes an image takes on the CPU beside itself: the most of while it is transformed and weighed, while the
    grid is searched, and while the model's power is compared."""
    weighed = 16 * half_plane  # X or Z, W and |X|², which stay to the end
    searched = 24 * pixels + 8 * rotations * shifts + 100 * rotations  # Z and W twice, scores, peaks among neighbours
    return max(36 * half_plane, weighed + searched, weighed + 40 * pixels)


def reach_of_reference(edge: int, box_size: int, align_shell: int) -> float:
    """Reach of the transform of a cube of ``edge`` voxels, padded, to ``align_shell``; a few per cent too far."""
    return min(1.05 * PADDING * edge / box_size * align_shell + 2, 1.05 * PADDING * edge / 2)


def check_fits(device: Device, need: MemoryNeed) -> None:
    """Raise InputError if a GPU has not the memory for the smallest batch."""
    if device.on_gpu and device.memory_bytes() < need.least:
        free = device.memory_bytes()
        raise InputError(f"its free memory ({free / GIB:.1f} GiB for this run) does not hold what particles of "
                         f"{need.box_size} px take ({need.least / GIB:.1f} GiB)", f"device {device.word}",
                         need.remedy(free))


def host_memory(need: MemoryNeed, batch: int, particles: int) -> float:
    """Peak bytes of a run on the CPU, which is that of the alignment; measured to be within 20 % in boxes of 64
    to 384 px, and 22 % more than is taken at 48 (benchmarks.growth.memory, benchmarks.growth.scaling).

    The largest of what the sums and the batches take, the sums in integers and in floats, and these and the
    reconstruction. An image takes itself in two batches, and `host_image`.
    """
    images = min(batch, (particles + 1) // 2) * (8 * need.box_size ** 2 + need.host_image)
    floats = 0.5 * need.sums
    reconstruction = HOST_RECONSTRUCTION * (need.reconstruction - floats) + KEPT_BYTES + KEPT_SHARE * images
    return (PROGRAM_BYTES + ROW_BYTES * particles + MAP_BYTES * need.box_size ** 3
            + max(need.sums + need.reference + images, need.sums + floats, floats + reconstruction))


def free_host_memory() -> Optional[float]:
    """Bytes this process may still take: of the machine, its control group and its limits; None if nobody says."""
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    except (OSError, StopIteration):
        pass
    for folder, limit, used in (("/sys/fs/cgroup", "memory.max", "memory.current"),
                                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            most, taken = (int((Path(folder) / name).read_text()) for name in (limit, used))
            cached = next(int(line.split()[1]) for line in (Path(folder) / "memory.stat").read_text().splitlines()
                          if line.split()[0] in ("inactive_file", "total_inactive_file"))
            free.append(float(most - taken + cached))
        except (OSError, ValueError, StopIteration):  # no control groups, or "max"
            pass
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        free.append(float(soft))
    return min(free) if free else None


def check_host(taken: float, box_size: int) -> None:
    """Raise InputError if the machine has not the memory a run takes."""
    free = free_host_memory()
    if free is not None and taken > free:
        box = int(box_size * ((free - PROGRAM_BYTES) / taken) ** (1 / 3)) // 2 * 2 if free > PROGRAM_BYTES else 0
        binning = f", or bin the particles to {box} px" if box >= 32 else ""
        raise InputError(f"the run takes about {taken / GIB:.1f} GiB and {free / GIB:.1f} GiB are free", "memory",
                         f"use another machine or wait for other programs to end{binning}")


def prediction(device: Device, need: MemoryNeed) -> str:
    """One line for the log before a run on a GPU."""
    shared = (need.sums + need.reference) / GIB
    free = device.memory_bytes()
    place = "" if free - need.sums >= need.reconstruction else ", for which the CPU is taken"
    return (f"memory of the GPU: {shared:.1f} GiB for sums and reference, {need.image / 2**20:.1f} MiB for an image, "
            f"{need.reconstruction / GIB:.1f} GiB for the reconstruction{place}; {free / GIB:.1f} GiB for this run")
