"""Some particles of each half-set of a run, and what the control needs of the run, on the pixels that it needs."""
from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from ..align.half_alignment import particle_counts
from ..align.of_run import other_bodies
from ..align.other_bodies import OtherBody
from ..align.reference_errors import ReferenceErrors, known_errors
from ..align.search_plan import align_shell_of
from ..inputs.changes import check_stacks
from ..io.mrc import ImageReader, read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, load_iteration, load_noise, stored_particles, stored_poses
from ..kernels.batches import evenly_spaced
from ..kernels.device import Device
from ..kernels.prefetch import Read, from_array
from ..motion.prior_shapes import prior_shape
from ..records.errors import InputError
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings
from ..records.run_input import RunInput
from .coarser import Coarser
from .moving_part import CoarseGrid

FEW, MANY = 250, 500  # particles of each half-set in the sample …
SHARE = 0.2  # … which is this share of it in between: three short alignments of them beside those of the run
LEAST_PARTICLES = 50  # of each half-set
SHOWN = 0.5  # probability to be aligned


@dataclass(frozen=True)
class Sample:
    """Of a run: an ``iteration``, and of each half-set some ``rows`` of the input, as they are in ``files``. All
    else is on the pixels of ``coarser``.

    ``maps``: those that were read.  ``images``: of each half-set, where they are not those of the files.  ``rest``:
    what rest_control.rest_of made of them.  ``larger``: a sample that holds these rows, whose images are taken.
    """

    folder: RunFolder
    given: RunInput
    iteration: int
    rows: Dict[int, np.ndarray]
    files: Dict[int, Particles]
    device: Device
    coarser: Coarser
    maps: Dict[Path, np.ndarray] = field(default_factory=dict)
    images: Dict[int, np.ndarray] = field(default_factory=dict)
    rest: List[Any] = field(default_factory=list)
    larger: Optional["Sample"] = None

    def fewer(self, counts: Dict[int, int]) -> "Sample":
        """So many of each half-set. Maps and images are read once for both samples."""
        if all(counts[half] >= len(rows) for half, rows in self.rows.items()):
            return self
        chosen = {half: evenly_spaced(len(rows), counts[half]) for half, rows in self.rows.items()}
        return replace(self, rows={half: self.rows[half][index] for half, index in chosen.items()},
                       files={half: self.files[half].take(index) for half, index in chosen.items()}, images={},
                       rest=[], larger=self)

    @cached_property
    def particles(self) -> Dict[int, Particles]:
        return {half: self.coarser.particles(some) for half, some in self.files.items()}

    @property
    def workers(self) -> int:
        return self.coarser.workers

    @property
    def resolved(self) -> ResolvedSettings:
        """With a prior that learns, about the input poses: only then an alignment says what the images tell."""
        resolved = self.coarser.resolved(self.given.resolved)
        return resolved if prior_shape(resolved.prior).learns else replace(
            resolved, prior="learned", recenter_rotations=False, recenter_shifts=False)

    @property
    def pixel_size(self) -> float:
        return self.particles[1].pixel_size

    @property
    def box_size(self) -> int:
        return self.coarser.new

    @property
    def mask(self) -> np.ndarray:
        return self.read(self.folder.mask_in_use(self.iteration), self.coarser.mask)

    def map(self, path: Path) -> np.ndarray:
        return self.read(path, self.coarser.map)

    def read(self, path: Path, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        if path not in self.maps:
            self.maps[path] = change(read_map(path)[0])
        return self.maps[path]

    def noise(self, iteration: int, half: int) -> np.ndarray:
        return self.coarser.noise(load_noise(self.folder, iteration, half))

    def others(self, iteration: int, half: int) -> List[OtherBody]:
        """What the run subtracted from the images."""
        return [self.coarser.other_body(other) for other in
                other_bodies(self.folder, iteration, half, self.files[half], self.rows[half])]

    def errors(self, agreement: np.ndarray, maps: Tuple[np.ndarray, np.ndarray], mask: np.ndarray, centre: np.ndarray,
               density: np.ndarray) -> ReferenceErrors:
        """Of a reference and the half-map it was made of; ``density`` is the run's."""
        return known_errors(agreement[:self.box_size // 2 + 1], *maps, mask, centre, self.coarser.density(density))

    @contextmanager
    def reading(self, half: int) -> Iterator[Read]:
        if self.coarser.same:
            with ImageReader(self.files[half]) as reader:
                yield reader
            return
        yield from_array(self.cropped(half))

    def cropped(self, half: int) -> np.ndarray:
        """The images of a half-set on the pixels of ``coarser``."""
        if half not in self.images and self.larger is not None:
            where = np.searchsorted(self.larger.rows[half], self.rows[half])
            self.images[half] = self.larger.cropped(half)[where]
        elif half not in self.images:
            with ImageReader(self.files[half]) as reader:
                index = np.arange(len(self.rows[half]))
                self.images[half] = self.coarser.images(reader, index, self.device)
        return self.images[half]


def load_sample(run: RunFolder, iteration: int, device: Device, workers: int) -> Sample:
    """SHARE of each half-set, at least FEW and at most MANY."""
    return replace(load_samples(run, iteration, device, workers)[0], larger=None)


def load_samples(run: RunFolder, iteration: int, device: Device, workers: int) -> Tuple[Sample, Sample]:
    """`load_sample`, and MANY of each half-set; of particles that probably show the sub-volume: the others tell of no
    motion, which looks like density that does not move."""
    given, particles = load_input(run), stored_particles(run)
    half_set, rows, few = np.asarray(particles.half_set), {}, {}
    for half in (1, 2):
        mine = np.flatnonzero(half_set == half)
        counts = particle_counts(stored_poses(run, iteration, half))
        if counts is not None:
            mine = mine[counts >= SHOWN]
        if len(mine) < LEAST_PARTICLES:
            raise InputError(f"has only {len(mine)} particles{'' if counts is None else ' that show the sub-volume'}",
                             f"half-set {half}", "use more particles")
        few[half] = int(np.clip(SHARE * len(mine), FEW, MANY))
        rows[half] = mine[evenly_spaced(len(mine), MANY)]
    check_stacks(run, given, np.unique(particles.stack[np.concatenate(list(rows.values()))]))
    shells = [align_shell_of(load_iteration(run, k).align_resolution_angstrom, given.resolved, particles)
              for k in (0, iteration - 1)]
    grid = CoarseGrid.of(particles.box_size, particles.pixel_size, workers)
    coarser = Coarser.holding(particles.box_size, max(grid.box // 2 - 1, *shells), workers)
    files = {half: particles.take(index) for half, index in rows.items()}
    many = Sample(run, given, iteration, rows, files, device, coarser)
    return many.fewer(few), many
