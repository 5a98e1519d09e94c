"""Whether a selection prefers particles that agree with the noise of their own half-set's reference.

The particles of a half-set were aligned to, and judged by, the reference of that half-set. Its noise is not in the
other half-set's reference. With Y and Y' the whitened models of an image X, made of the own and of the other reference
at the pose that was found,

    a = (Re⟨X, Y⟩ − S) / |Y| − Re⟨X, Y'⟩ / |Y'|

is how much better the own reference fits, in standard deviations of noise (z of align/verdicts.py, twice). S is what
the image's own noise in the reference adds (align/reference_errors.py): without it every particle prefers the reference
that holds it, and those that count less prefer it less. S is known roughly, so that only differences of a mean
something. A selection of what shows the sub-volume does not raise the mean of a; noise images, which were turned until
they fit the own reference, have a larger one. A selection of particles that agree with the noise raises it. As many
drawn at random have the mean of all, with the standard error s √(1/m − 1/n) of m drawn of n without replacement.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence, Tuple

import numpy as np

from ..align.half_alignment import model_match, particle_counts
from ..align.images import HalfSetImages, pack
from ..align.modes import Modes
from ..align.of_run import errors_of_reference
from ..align.reference import Reference, make_reference
from ..align.reference_errors import DAMPING, ReferenceErrors, self_noise_bias
from ..align.search import PackedImages
from ..align.search_plan import SearchPlan, search_plan
from ..align.verdicts import gains
from ..io.mrc import ImageReader, read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, load_iteration, load_noise, stored_particles, stored_poses
from ..kernels.batches import evenly_spaced
from ..model.optics import stretch
from ..model.pixels import pixel_list
from ..model.pose import project
from ..records.particles import Particles
from ..records.poses import PoseTable

PARTICLES_PER_HALF = 1000
IMAGES_AT_ONCE = 200
SIGMAS = 3.0
WORTH_SAYING = 0.25  # of the spread of a: half of all, those of the largest z, gain 0.03 to 0.18


@dataclass(frozen=True)
class Sample:
    """Some particles of a half-set at the poses that an iteration found, as its search saw them.

    chosen : (m,) index into the pose table.  rotation : (m, 3, 3).  shift : (m, 2) px, of the projected mask centre.
    noise : (groups, M + 1).  mask : (N, N, N).
    """

    chosen: np.ndarray
    particles: Particles
    plan: SearchPlan
    noise: np.ndarray
    mask: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, run: RunFolder, iteration: int, half: int, poses: PoseTable, most: int) -> "Sample":
        """At most so many, evenly spaced."""
        given, chosen, before = load_input(run), evenly_spaced(len(poses), most), iteration - 1
        particles = stored_particles(run).take(poses.row[chosen])
        plan = search_plan(given.resolved, particles, load_iteration(run, before).align_resolution_angstrom)
        rotation = poses.rotation[chosen]
        return cls(chosen, particles, plan, load_noise(run, iteration, half), read_map(run.mask_in_use(before))[0],
                   rotation, poses.shift_px[chosen] + project(rotation, plan.centre))

    def reference(self, volume: np.ndarray, workers: int) -> Reference:
        last = int(np.ceil(self.plan.align_shell * stretch(self.particles)))
        return make_reference(volume, self.mask, self.plan.centre, last, workers)

    def batches(self, workers: int) -> Iterator[Tuple[np.ndarray, PackedImages]]:
        """Index into the sample, and images moved to where the projected mask centre is."""
        max_shell = self.noise.shape[1] - 1
        pixels = pixel_list(self.particles.box_size, self.plan.align_shell, max_shell)
        with ImageReader(self.particles) as reader:
            images = HalfSetImages(self.particles, reader.read, self.noise, max_shell, workers)
            for start in range(0, len(self.chosen), IMAGES_AT_ONCE):
                index = np.arange(start, min(start + IMAGES_AT_ONCE, len(self.chosen)))
                yield index, pack(images.batch(index), pixels, self.shift[index])


def own_advantage(run: RunFolder, iteration: int, half: int, poses: PoseTable,
                  workers: int) -> Tuple[np.ndarray, np.ndarray]:
    """Index (m,) into ``poses`` of at most PARTICLES_PER_HALF particles, evenly spaced, and their a (m,)."""
    some, before = Sample.of(run, iteration, half, poses, PARTICLES_PER_HALF), iteration - 1
    maps = [read_map(run.reference(before, of))[0] for of in (half, 3 - half)]
    references = [some.reference(volume, workers) for volume in maps]
    errors = errors_of_reference(run, before, half, maps[0], some.mask, some.plan.centre)
    previous = stored_poses(run, before, half)
    found = np.empty(len(some.chosen))
    for index, packed in some.batches(workers):
        at = Modes.of(np.arange(len(index)), rotation=some.rotation[index])
        (own, energy), (other, other_energy) = (
            [sums.sum(axis=1) for sums in model_match(reference, packed, at)] for reference in references)
        if previous is not None and errors is not None:
            own = own - self_agreement(errors, rows_of(previous, some.chosen[index]), packed, at, some.shift[index],
                                       some.plan)
        found[index] = gains(own, energy).z - gains(other, other_energy).z
    return some.chosen, found


def rows_of(table: PoseTable, index: np.ndarray) -> PoseTable:
    return PoseTable(**{name: column[index] for name, column in table.columns().items()})


def self_agreement(errors: ReferenceErrors, previous: PoseTable, packed: PackedImages, at: Modes, shift: np.ndarray,
                   plan: SearchPlan) -> np.ndarray:
    """S (n,) of images at their poses ``at``, moved there by ``shift`` (n, 2); ``previous``: those in the reference."""
    counts = particle_counts(previous) if plan.weight_by_probability else None
    in_reference = np.ones(len(previous)) if counts is None else counts
    moved = previous.shift_px + project(previous.rotation, plan.centre) - shift
    bias = self_noise_bias(errors, packed.pixels, packed.weight,
                           previous.covariance.astype(np.float64) * plan.marginalize, previous.rotation, moved,
                           in_reference.astype(np.float32))
    found: np.ndarray = bias.at(at.owner, at.rotation, at.shift)[0] / DAMPING
    return found


@dataclass(frozen=True)
class Advantage:
    """The mean of a over the particles that count, of both half-sets, its standard error if as many were drawn at
    random, and the standard deviation of a over all particles."""

    mean: float
    error: float
    spread: float

    @classmethod
    def of(cls, halves: Sequence[Tuple[np.ndarray, np.ndarray]]) -> "Advantage":
        """Of each half-set: how much each of n particles counts, and a (n,).

        Each half-set has its own mean, and both count alike: where one reference is the better one, the signal in
        the images raises a in one half-set and lowers it in the other.
        """
        means, variances, spreads = [], [], []
        for counts, a in halves:
            drawn = float(np.count_nonzero(counts))
            if drawn:
                means.append(np.average(a, weights=counts))
                variances.append(a.var() * (1 / drawn - 1 / len(a)))
                spreads.append(a.std())
        number = max(len(means), 1)
        return cls(float(sum(means)) / number, float(np.sqrt(sum(variances))) / number, float(sum(spreads)) / number)


def prefers_noise(every: Advantage, kept: Advantage) -> bool:
    """Whether the particles kept agree better with the noise of their own reference than chance explains."""
    return kept.mean - every.mean > max(SIGMAS * kept.error, WORTH_SAYING * every.spread)
