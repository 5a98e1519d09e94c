"""What one worker does of a half-set: align some of its particles and insert them into the map.

Images travel in batches: read, transformed, matched with their CTF, searched, inserted, forgotten.
"""
from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

import numpy as np

from ..kernels.batches import evenly_spaced
from ..kernels.device import Device, array_module, to_host, to_host_at_once
from ..kernels.fixed_point import FixedPointSums, exact_sums, exponents
from ..kernels.insert import insert_slices
from ..kernels.prefetch import Read
from ..kernels.slices import extract_slices
from ..maps.reconstruct import PADDING, accumulator_shape, new_accumulator, working_bytes
from ..model.optics import image_shift, stretch
from ..model.pixels import pixel_list
from ..model.pose import project
from ..motion.motion_prior import MOST_PARTICLES, evidence_at
from ..records.iteration import NullMoments
from ..records.particles import Particles
from ..records.poses import PoseTable
from .half_sums import BestPoses, FoundOfImages, FoundOfNulls, HalfFindings, NoiseSums, pose_columns
from .images import Batch, HalfSetImages, LastTransforms, pack, scaled
from .marginalize import Insertions, best_only, posterior_insertions, weigh
from .modes import Modes, best_modes
from .nulls import null_images
from .other_bodies import OtherBodies, OtherBody
from .prior import PosePrior, log_prior
from .reference import Reference, make_reference, slice_rows
from .reference_errors import ReferenceErrors, SelfNoiseBias, pose_error_covariance, self_noise_bias, signal_share
from .search import PackedImages, search
from .search_plan import SearchPlan, grid_of, levels_of
from .starts import known_start, pose_prior, search_centre, unsettled
from .static_part import SIGMA, static_reference, subtract, surface_motion

Array = Any
ALIKE = 0.99  # probability to be aligned from which particles count in full, if all have it


@dataclass(frozen=True)
class HalfSet:
    """What an align step is given of one half-set.

    Attributes
    ----------
    particles : the m particles with their INPUT poses.  index : (m,) their rows in the input table.
    read : of given particles (positions in ``particles``), as prefetch.py has it.
    reference_map : (N, N, N) filtered, unmasked map of this half.  mask : (N, N, N).
    noise_power : (groups, M + 1) σ² = E|N(k)|² per shell.
    previous : poses of the last iteration; None in the first.
    reference_errors : what is known of the errors of the reference; None for one without noise.
    static_part : (N, N, N) map of the whole particle whose part outside the mask is subtracted; None subtracts nothing.
    nulls : what images of nothing have told in earlier iterations.
    others : bodies that are taken out of the images.
    """

    particles: Particles
    index: np.ndarray
    read: Read
    reference_map: np.ndarray
    mask: np.ndarray
    noise_power: np.ndarray
    previous: Optional[PoseTable] = None
    reference_errors: Optional[ReferenceErrors] = None
    static_part: Optional[np.ndarray] = None
    nulls: Optional[NullMoments] = None
    others: Sequence[OtherBody] = ()

    @property
    def max_shell(self) -> int:
        """M: the last shell of the map."""
        return self.noise_power.shape[1] - 1


class PhaseTimer:
    """Wall seconds per phase, the device's work included."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.seconds: Dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.device.wait()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


class HalfAlignment:
    """A half-set being aligned: what all batches share, and what they have added up to so far.

    Parameters
    ----------
    lowered : how often the sums of the map have been out of their range; None: they are float32.
    shared : the transforms that another body has just made of the same images; None without other bodies.
    """

    def __init__(self, half: HalfSet, plan: SearchPlan, device: Device, workers: int,
                 lowered: Optional[int] = 0, shared: Optional[LastTransforms] = None):
        self.half, self.plan, self.device, self.workers = half, plan, device, workers
        self.to_device, self.timer = device.to_device, PhaseTimer(device)
        self.particles, self.previous = half.particles, half.previous
        self.counts = particle_counts(half.previous) if plan.weight_by_probability else None
        scale = None if half.previous is None else half.previous.scale
        self.scale: Optional[np.ndarray] = None if scale is None else np.asarray(scale)
        box = self.particles.box_size
        pixels = pixel_list(box, plan.align_shell, half.max_shell)
        grid, grid_shell = grid_of(plan, box, self.particles.pixel_size)
        self.levels = levels_of(pixels, grid_shell, plan.align_shell)
        self.pixels, self.grid = pixels.to_device(self.to_device), grid.to_device(self.to_device)
        self.images = HalfSetImages(self.particles, half.read, half.noise_power, half.max_shell, workers, device,
                                    shared)
        largest = float((1 / half.noise_power).max()) * (1.0 if self.scale is None else float(self.scale.max()) ** 2)
        self.exponent = exponents(largest, len(self.particles) * len(plan.symmetry), lowered or 0)
        self.accumulator = self.empty_accumulator(lowered is not None)
        pixels_of_plane = int(np.prod(self.images.shape))
        self.weight_scale = device.xp.full(pixels_of_plane, np.ldexp(1.0, self.exponent[1]))
        self.findings = HalfFindings(NoiseSums(self.particles, half.noise_power),
                                     device.xp.zeros(pixels_of_plane, np.int64))
        self.set_reference()

    def empty_accumulator(self, fixed: bool) -> Any:
        if not fixed:
            return new_accumulator(self.half.max_shell, self.device.xp)
        return FixedPointSums(accumulator_shape(self.half.max_shell), self.exponent, self.device.xp)

    def set_reference(self) -> None:
        half, plan, self.static = self.half, self.plan, None
        with self.timer("reference"):
            last = int(np.ceil(plan.align_shell * stretch(self.particles)))
            box = self.particles.box_size
            roomy = self.device.on_gpu and self.device.memory_bytes() >= working_bytes(box)
            on = self.to_device if roomy else np.asarray
            if half.static_part is not None:
                reach = plan.shift_extent if plan.motion_covariance is None else SIGMA * surface_motion(
                    plan.motion_covariance, plan.mask_radius)
                static = static_reference(on(half.static_part), half.mask, reach, self.particles.pixel_size, last,
                                          self.workers)
                self.static = replace(static, ft=self.to_device(static.ft))
            reference = make_reference(on(half.reference_map), half.mask, plan.centre, last, self.workers)
            self.reference = replace(reference, ft=self.to_device(reference.ft))
            reach = int(np.ceil(half.max_shell * stretch(self.particles)))
            self.others = None if not half.others else OtherBodies(
                half.others, box, half.max_shell, reach, self.to_device, self.workers)

    def batch(self, index: np.ndarray) -> Batch:
        """The images of an index (n,) without the other bodies."""
        batch = self.images.batch(index)
        if self.others is not None:
            scale = None if self.scale is None else self.to_device(self.scale[index])
            self.others.take_out(batch, index, self.images.inverse_noise_of(index), scale)
        return batch

    def add(self, index: np.ndarray) -> None:
        """Align and insert the particles of an index (n,). Nothing is kept before all of it has fitted into memory."""
        plan, n, found, to_device = self.plan, len(index), self.findings, self.to_device
        with self.timer("read and transform"):
            batch = self.batch(index)
            if self.scale is not None:
                batch = scaled(batch, to_device(self.scale[index]))
        counts = None if self.counts is None else self.counts[index]
        rotation0, shift0 = search_centre(self.particles, self.previous, plan, index)
        u0 = shift0 + project(rotation0, plan.centre)
        with self.timer("pack"):
            packed = pack(batch, self.pixels, to_device(u0))
            removed = 0
            if self.static is not None:
                packed, removed = subtract(packed, self.static, to_device(self.particles.rotation[index]),
                                           to_device(self.particles.shift_px[index] - u0))
            prior = replace(pose_prior(plan, rotation0), self_noise_bias=self.self_noise_bias(index, packed, u0))
        with self.timer("search"):
            modes = self.search(index, packed, prior, u0)
            best = best_modes(modes, n)
        with self.timer("noise"):
            cross, energy = model_match(self.reference, packed, best)
            weights, spread = weigh(modes, best, n)
            errors = self.pose_error_covariance(best, energy) + spread
            factor = None if counts is None else to_device(counts.astype(np.float32))
            weight_sum = found.weight_sum + exact_sums(batch.weight, self.weight_scale, factor)
        with self.timer("insert"):
            chosen = weighted(insertions(modes, best, weights, plan, n), counts)
            *of_best, owner, inserted, errors, match = to_host_at_once(
                best.owner, best.table, modes.owner, chosen.owner, errors, match_sums(cross, energy))
            insert_batch(self.accumulator, batch, chosen, to_device(u0), plan, self.images.last_column,
                         self.particles.box_size)
        with self.timer("noise"):
            found.noise.add(self.particles.optics_group[index], batch.power, energy - 2 * cross + removed,
                            self.pixels.shell)
        found.weight_sum = weight_sum
        best = Modes(*of_best)
        evidence, some = None, np.isin(index, evenly_spaced(len(self.particles), MOST_PARTICLES))
        if plan.prior.learns:
            gradient = likelihood_gradient(prior, best)
            evidence = evidence_at(rotation0, best.w, best.shift, best.curvature, gradient,
                                   np.ones(n) if counts is None else counts).take(some)
        at = BestPoses(index, best, owner, u0, np.bincount(inserted, minlength=n), errors)
        found.include(FoundOfImages(index, pose_columns(self.particles, at, plan), match.copy(), evidence, index[some]))

    def search(self, index: np.ndarray, packed: PackedImages, prior: PosePrior, u0: np.ndarray) -> Modes:
        known = known_start(self.previous, prior.rotation0, u0, self.plan, index)
        start = None if known is None else (self.to_device(known[0]), self.to_device(known[1]))
        there = prior.to_device(self.to_device, packed.magnification)
        return search(self.reference, packed, there, self.grid, self.levels, start, unsettled(self.previous, index))

    def self_noise_bias(self, index: np.ndarray, packed: PackedImages, u0: np.ndarray) -> Optional[SelfNoiseBias]:
        """What the own noise of images (n,) in the reference adds to their scores; None before there are last poses."""
        last, errors = self.previous, self.half.reference_errors
        if last is None or errors is None:
            return None
        rotation = last.rotation[index]
        shift = last.shift_px[index] + project(rotation, self.plan.centre) - u0
        inserted_over = last.covariance[index].astype(np.float64) * self.plan.marginalize
        # counts in this map; in the last one they were other numbers, close to these
        in_reference = (last.modes[index] == 1) * (1.0 if self.counts is None else self.counts[index])
        return self_noise_bias(errors, self.pixels, packed.weight, *(
            self.to_device(a) for a in (inserted_over, rotation, shift, in_reference.astype(np.float32))))

    def pose_error_covariance(self, best: Modes, energy: Array) -> Array:
        """(n, 5, 5) of the best poses; ``energy`` of `model_match`."""
        errors = self.half.reference_errors
        agreement = np.ones(self.half.max_shell + 1) if errors is None else errors.agreement
        return pose_error_covariance(best.curvature, best.precision, signal_share(agreement, self.pixels, energy))

    def drop_references(self) -> None:
        """Give back the memory of what images are compared with, once all have been added."""
        del self.reference, self.static, self.others

    def float_accumulator(self) -> Array:
        """The sums of the map in float32, on the GPU if its memory holds the reconstruction; they are used up."""
        accumulator, self.accumulator = self.accumulator, None
        fixed = isinstance(accumulator, FixedPointSums)
        floats = 4 * int(np.prod(accumulator_shape(self.half.max_shell))) if fixed else 0
        needed = working_bytes(self.particles.box_size) + floats
        on_gpu = self.device.on_gpu and self.device.memory_bytes() >= needed
        if fixed:
            return accumulator.to_float(self.device.xp if on_gpu else np)
        return accumulator if on_gpu else to_host(accumulator)

    def add_nulls(self, numbers: np.ndarray) -> None:
        """Search images that show nothing where they are looked at (verdicts.py), these of `null_images`: particles at
        the pose of another one, and noise."""
        with self.timer("judge"):
            everyone = null_images(len(self.particles), self.half.nulls)
            index, n = everyone[numbers], len(numbers)
            rotation, shift = search_centre(self.particles, self.previous, self.plan, index)
            donor = np.roll(everyone, len(everyone) // 2)[numbers]
            elsewhere, _ = search_centre(self.particles, self.previous, self.plan, donor)
            images = self.batch(index)
            both = images.joined(self.images.noise_like(images, index))
            match = self.null_match(both, np.concatenate([elsewhere, rotation]), np.concatenate([shift, shift]))
        self.findings.include(FoundOfNulls(numbers, match[:, :n], match[:, n:]))

    def null_match(self, images: Batch, rotation0: np.ndarray, shift0: np.ndarray) -> np.ndarray:
        """Sums (2, n) of `model_match` of images that do not show what is looked for about these poses."""
        n, u0 = len(rotation0), shift0 + project(rotation0, self.plan.centre)
        packed = pack(images, self.pixels, self.to_device(u0))
        prior = pose_prior(self.plan, rotation0).to_device(self.to_device, packed.magnification)
        modes = search(self.reference, packed, prior, self.grid, self.levels, None, np.ones(n, bool))
        return to_host(match_sums(*model_match(self.reference, packed, best_modes(modes, n))))


def likelihood_gradient(prior: PosePrior, best: Modes) -> np.ndarray:
    """(n, 5) at the best poses of n images, all on the host: the posterior's less the prior's."""
    of_prior = log_prior(prior, np.arange(len(best.owner)), best.w, best.rotation, best.shift)[1]
    gradient: np.ndarray = best.gradient - of_prior
    return gradient


def model_match(reference: Reference, packed: PackedImages, best: Modes) -> Tuple[Array, Array]:
    """Re(conj(Z) Y) and W|Y|² per pixel (n, K): log L = Σ (cross − ½ energy), and σ²/2 · (energy − 2 cross) is
    |X − C Y|² − |X|²."""
    slices = modelled(reference, packed, best)
    cross = packed.matched.real * slices.real + packed.matched.imag * slices.imag
    return cross, packed.weight * (slices.real ** 2 + slices.imag ** 2)


def modelled(reference: Reference, packed: PackedImages, best: Modes) -> Array:
    """Y (n, K) of n images at these poses."""
    p, m = packed.pixels, packed.magnification
    slices = extract_slices(reference.ft, slice_rows(best.rotation, reference.scale, m), p.kx, p.ky)
    slices *= p.phases(-image_shift(best.shift, m))
    return slices


def match_sums(cross: Array, energy: Array) -> Array:
    """(2, n) of `model_match`, summed over the pixels."""
    return array_module(cross).stack([cross.sum(axis=1), energy.sum(axis=1)])


def particle_counts(previous: Optional[PoseTable]) -> Optional[np.ndarray]:
    """How much the particles (m,) count in the map by what was found of them before: None where all do alike."""
    if previous is None or previous.probability_aligned is None:
        return None
    found = np.asarray(previous.probability_aligned)
    return None if (found > ALIKE).all() else found


def weighted(chosen: Insertions, counts: Optional[np.ndarray]) -> Insertions:
    """The insertions of images that count so much (n,); None: in full."""
    if counts is None:
        return chosen
    counts = array_module(chosen.weight).asarray(counts.astype(np.float32))
    return replace(chosen, weight=chosen.weight * counts[chosen.owner])


def insertions(modes: Modes, best: Modes, weights: Array, plan: SearchPlan, n: int) -> Insertions:
    """At which poses n images are inserted, not counting symmetry; ``weights`` (m,) of the modes."""
    if not plan.marginalize:
        return best_only(best)
    return posterior_insertions(modes, weights, PADDING * plan.align_shell, n)


def insert_batch(accumulator: Array, batch: Batch, chosen: Insertions, u0: Array, plan: SearchPlan, last: Array,
                 box_size: int) -> None:
    """Insert the images of a batch; ``last`` is their `last_column`, u0 (n, 2) where the search began.

    V(S v) = V(v) means that an image at R is as well one at R·S with the same shift about the box centre.
    """
    xp = array_module(chosen.rotation)
    shift = u0[chosen.owner] + chosen.shift - project(chosen.rotation, xp.asarray(plan.centre))
    magnification = None if batch.magnification is None else batch.magnification[chosen.owner]
    shift = image_shift(shift, magnification)
    for operator in plan.symmetry:
        rows = slice_rows(chosen.rotation @ xp.asarray(operator), PADDING, magnification)
        insert_slices(accumulator, rows, chosen.owner, chosen.weight, shift, chosen.shift_variance, last,
                      batch.signal, batch.weight, box_size)
