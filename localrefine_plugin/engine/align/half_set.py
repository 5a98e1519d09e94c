"""One half-set, one iteration: align every particle and reconstruct (the E and the M step).

Images travel in batches: read, transformed, matched with their CTF, searched, inserted, forgotten.
Nothing of the other half-set is known here.
"""
from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from ..kernels.batches import in_batches
from ..kernels.device import CPU, Device, array_module, to_host
from ..kernels.fixed_point import FixedPointSums
from ..kernels.insert import insert_slices
from ..kernels.prefetch import Prefetch, Read
from ..kernels.slices import extract_slices
from ..maps.reconstruct import PADDING, accumulator_shape, new_accumulator, reconstruct, working_bytes
from ..model.optics import image_shift, stretch
from ..model.pixels import pixel_list
from ..model.pose import project
from ..motion.motion_prior import Evidence, evidence_at
from ..progress import say, silent
from ..records.iteration import Verdict
from ..records.motion import LearnedMotion
from ..records.particles import Particles
from ..records.poses import PoseTable
from .half_sums import BestPoses, HalfSums, NoiseSums, pose_columns, refitted_scales
from .images import Batch, HalfSetImages, pack, scaled
from .marginalize import Insertions, best_only, mode_weights, posterior_insertions, spread_of_modes
from .memory import MemoryNeed, check_fits, need_of
from .prior import PosePrior, log_prior
from .reference import Reference, make_reference, slice_rows
from .reference_errors import (
    ReferenceErrors,
    SelfNoiseBias,
    accumulator_mean,
    pose_error_covariance,
    self_noise_bias,
    signal_share,
)
from .search import Modes, PackedImages, best_modes, search
from .search_plan import SearchPlan, grid_of, levels_of
from .starts import known_start, pose_prior, search_centre, unsettled
from .static_part import SIGMA, static_reference, subtract, surface_motion
from .verdicts import LEAST_PARTICLES, Probabilities, gains, judged, null_images

Array = Any
BATCH_BYTES = 192 << 20  # on the host
LARGEST_BATCH = 4096  # on a GPU: images enough to keep it busy
NULLS_AT_ONCE = 256
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

    @property
    def max_shell(self) -> int:
        """M: the last shell of the map."""
        return self.noise_power.shape[1] - 1


@dataclass(frozen=True)
class HalfResult:
    """What an align step found: half_map (N, N, N), poses, noise_power (groups, M + 1), accumulator_mean (M + 1,) of
    the accumulator's D by shell, what a learned prior learned, the verdict (None of too few particles, or not asked
    for), wall seconds by phase, and what the images told a learned prior."""

    half_map: np.ndarray
    poses: PoseTable
    noise_power: np.ndarray
    accumulator_mean: np.ndarray
    motion: Optional[LearnedMotion]
    verdict: Optional[Verdict]
    phase_seconds: Dict[str, float]
    evidence: Optional[Evidence] = None


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


def align_half(half: HalfSet, plan: SearchPlan, device: Device = CPU, workers: int = 1,
               progress: Callable[[int, int], None] = silent, verdicts: bool = True) -> HalfResult:
    """Align and reconstruct one half-set, on ``device``; the result is the host's. ``verdicts`` False: aligned
    particles are not told from others, which takes a search of its own."""
    need = need_of(plan, half.particles, half.max_shell, half.mask, device, half.static_part is not None)
    check_fits(device, need)
    if device.on_gpu and not need.fixed:
        say("the GPU's memory does not hold sums in 64-bit integers: the last bits of the map may differ between runs")
    count = len(half.particles)
    with Prefetch(half.read, count, half.particles.box_size, device) as ahead:
        work = HalfAlignment(replace(half, read=ahead), plan, device, workers, need.fixed)

        def batch(index: np.ndarray) -> None:
            work.add(index)
            progress(int(index[-1]) + 1, count)

        size = batch_size(need, device)
        if device.on_gpu:
            say(f"{min(size, count)} images at a time")
        in_batches(batch, count, size, device, need.remedy)
        if verdicts:
            work.judge(min(size, NULLS_AT_ONCE))
    result = work.result()
    device.release()
    return result


def batch_size(need: MemoryNeed, device: Device) -> int:
    """Images per batch: few megabytes on the host, half of what is left of the memory on a GPU."""
    if not device.on_gpu:
        return max(1, int(BATCH_BYTES // need.host_image))
    return int(max(1, min(LARGEST_BATCH, device.memory_bytes() // (2 * need.image))))


class HalfAlignment:
    """A half-set being aligned: what all batches share, and what they have added up to so far."""

    def __init__(self, half: HalfSet, plan: SearchPlan, device: Device, workers: int, fixed: bool = False):
        self.half, self.plan, self.device, self.workers, self.fixed = half, plan, device, workers, fixed
        self.to_device, self.timer = device.to_device, PhaseTimer(device)
        self.particles, self.previous = half.particles, half.previous
        self.counts = particle_counts(half.previous) if plan.weight_by_probability else None
        box = self.particles.box_size
        pixels = pixel_list(box, plan.align_shell, half.max_shell)
        grid, grid_shell = grid_of(plan, box, self.particles.pixel_size)
        self.levels = levels_of(pixels, grid_shell, plan.align_shell)
        self.pixels, self.grid = pixels.to_device(self.to_device), grid.to_device(self.to_device)
        self.images = HalfSetImages(self.particles, half.read, half.noise_power, half.max_shell, workers, device)
        self.sums = self.empty_sums()
        self.verdict: Optional[Verdict] = None
        self.probabilities: Optional[Probabilities] = None
        self.set_reference()

    def empty_sums(self) -> HalfSums:
        shape, xp = accumulator_shape(self.half.max_shell), self.device.xp
        insertions = len(self.particles) * len(self.plan.symmetry)
        accumulator = FixedPointSums(shape, insertions, xp) if self.fixed else new_accumulator(self.half.max_shell, xp)
        return HalfSums(accumulator, xp.zeros(self.images.shape), NoiseSums(self.particles, self.half.noise_power))

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

    def add(self, index: np.ndarray) -> None:
        """Align and insert the particles of an index (n,). Nothing is kept before all of it has fitted into memory."""
        plan, n, sums, to_device = self.plan, len(index), self.sums, self.to_device
        with self.timer("read and transform"):
            batch = self.images.batch(index)
            scale = self.last_scale()
            if scale is not None:
                batch = scaled(batch, to_device(scale[index]))
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
            gradient = self.likelihood_gradient(prior, best) if plan.prior.learns else None
        with self.timer("noise"):
            cross, energy = model_match(self.reference, packed, best)
            match = match_sums(cross, energy)
            weights = mode_weights(modes, n)
            errors = to_host(self.pose_error_covariance(best, energy) + spread_of_modes(modes, best, weights, n))
            weight_sum = sums.weight_sum + weighted_sum(batch.weight, counts)
        with self.timer("insert"):
            chosen = weighted(insertions(modes, best, weights, plan, n), counts)
            insert_batch(sums.accumulator, batch, chosen, to_device(u0), plan, self.images.last_column,
                         self.particles.box_size)
        with self.timer("noise"):
            sums.noise.add(index, batch.power, energy - 2 * cross + removed, self.pixels.shell)
        sums.matches.append(match)
        sums.weight_sum = weight_sum
        best = best.to_host()
        if plan.prior.learns:
            sums.evidence.append(evidence_at(rotation0, best.w, best.shift, best.curvature, to_host(gradient),
                                             np.ones(n) if counts is None else counts))
        inserted = np.bincount(to_host(chosen.owner), minlength=n)
        found = BestPoses(index, best, to_host(modes.owner), u0, inserted, errors)
        sums.tables.append(pose_columns(self.particles, found, plan))

    def search(self, index: np.ndarray, packed: PackedImages, prior: PosePrior, u0: np.ndarray) -> Modes:
        known = known_start(self.previous, prior.rotation0, u0, self.plan, index)
        start = None if known is None else (self.to_device(known[0]), self.to_device(known[1]))
        return search(self.reference, packed, prior.to_device(self.to_device), self.grid, self.levels, start,
                      self.to_device(unsettled(self.previous, index)))

    def likelihood_gradient(self, prior: PosePrior, best: Modes) -> Array:
        """(n, 5) at the best poses of n images: the posterior's less the prior's."""
        everyone = self.device.xp.arange(len(best.owner))
        return best.gradient - log_prior(prior.to_device(self.to_device), everyone, best.w, best.rotation,
                                         best.shift)[1]

    def last_scale(self) -> Optional[np.ndarray]:
        return None if self.previous is None else self.previous.scale

    def self_noise_bias(self, index: np.ndarray, packed: PackedImages, u0: np.ndarray) -> Optional[SelfNoiseBias]:
        """What the own noise of images (n,) in the reference adds to their scores; None before there are last poses."""
        last, errors = self.previous, self.half.reference_errors
        if last is None or errors is None:
            return None
        rotation = last.rotation[index]
        shift = last.shift_px[index] + project(rotation, self.plan.centre) - u0
        inserted_over = last.covariance[index] * self.plan.marginalize
        # counts in this map; in the last one they were other numbers, close to these
        in_reference = (last.modes[index] == 1) * (1.0 if self.counts is None else self.counts[index])
        return self_noise_bias(errors, self.pixels, packed.weight, *(
            self.to_device(a) for a in (inserted_over, rotation, shift, in_reference.astype(np.float32))))

    def pose_error_covariance(self, best: Modes, energy: Array) -> Array:
        """(n, 5, 5) of the best poses; ``energy`` of `model_match`."""
        errors = self.half.reference_errors
        agreement = np.ones(self.half.max_shell + 1) if errors is None else errors.agreement
        return pose_error_covariance(best.curvature, best.precision, signal_share(agreement, self.pixels, energy))

    def judge(self, at_once: int) -> None:
        """Tell aligned particles from others (verdicts.py), once all have been added; ``at_once``: images."""
        if len(self.particles) < LEAST_PARTICLES:
            return
        with self.timer("judge"):
            index, rng = null_images(len(self.particles)), np.random.default_rng(len(self.particles))
            rotation, shift = search_centre(self.particles, self.previous, self.plan, index)
            found: Dict[str, List[np.ndarray]] = {"others": [], "noise": []}
            for start in range(0, len(index), at_once):
                part = slice(start, start + at_once)
                images = self.images.batch(index[part])
                elsewhere = np.roll(rotation, len(index) // 2, axis=0)[part]
                found["others"].append(self.null_match(index[part], images, elsewhere, shift[part]))
                images = self.images.noise_like(images, index[part], rng)
                found["noise"].append(self.null_match(index[part], images, rotation[part], shift[part]))
            cross, energy = np.concatenate(self.sums.matches, axis=1).astype(np.float64)
            scale = self.last_scale()
            particles = gains(cross, energy) if scale is None else gains(cross / scale, energy / scale ** 2)
            nulls = [gains(*np.concatenate(found[kind], axis=1)) for kind in ("others", "noise")]
            different = np.unique(np.stack([self.particles.stack, self.particles.slice]), axis=1).shape[1]
            self.verdict, self.probabilities = judged(particles, nulls[0], nulls[1], len(self.particles) / different)

    def null_match(self, index: np.ndarray, images: Batch, rotation0: np.ndarray, shift0: np.ndarray) -> np.ndarray:
        """Sums (2, n) of `model_match` of images that do not show what is looked for about these poses."""
        u0 = shift0 + project(rotation0, self.plan.centre)
        packed = pack(images, self.pixels, self.to_device(u0))
        prior = pose_prior(self.plan, rotation0).to_device(self.to_device)
        everyone = self.to_device(np.ones(len(index), bool))
        modes = search(self.reference, packed, prior, self.grid, self.levels, None, everyone)
        return match_sums(*model_match(self.reference, packed, best_modes(modes, len(index))))

    def result(self) -> HalfResult:
        """The half-map and everything else, once all particles have been added."""
        box, plan, sums, max_shell = self.particles.box_size, self.plan, self.sums, self.half.max_shell
        del self.reference, self.static  # their memory is the reconstruction's now
        with self.timer("reconstruct"):
            accumulator, sums.accumulator = sums.accumulator, None
            floats = 4 * int(np.prod(accumulator_shape(max_shell))) if self.fixed else 0
            on_gpu = self.device.on_gpu and self.device.memory_bytes() >= working_bytes(box) + floats
            if isinstance(accumulator, FixedPointSums):
                accumulator = accumulator.to_float(self.device.xp if on_gpu else np)
            elif not on_gpu:
                accumulator = to_host(accumulator)
            half_map = to_host(reconstruct(accumulator, box, max_shell, self.workers))
        with self.timer("learn motion"):
            evidence = sums.all_evidence()
            motion = learned_motion(plan, evidence)
        columns = sums.columns()
        if self.probabilities is not None:
            found = self.probabilities
            columns.update(gain=found.gain, probability_aligned=found.aligned, probability_empty=found.empty)
        if plan.per_particle_scale:
            columns["scale"] = refitted_scales(sums.matches, self.last_scale())
        weight_sum = to_host(sums.weight_sum)[sums.noise.counted] * len(plan.symmetry)
        return HalfResult(half_map, PoseTable(row=self.half.index, **columns), sums.noise.power(),
                          accumulator_mean(weight_sum, sums.noise.shell, max_shell), motion, self.verdict,
                          self.timer.seconds, evidence)


def learned_motion(plan: SearchPlan, evidence: Optional[Evidence]) -> Optional[LearnedMotion]:
    """What all images of this half tell of the motion, if the plan asks."""
    if plan.motion_covariance is None or plan.motion_start is None or evidence is None:
        return None
    return plan.prior.learn(evidence, plan.motion_covariance, plan.motion_start)


def model_match(reference: Reference, packed: PackedImages, best: Modes) -> Tuple[Array, Array]:
    """Re(conj(Z) Y) and W|Y|² per pixel (n, K): log L = Σ (cross − ½ energy), and σ²/2 · (energy − 2 cross) is
    |X − C Y|² − |X|²."""
    p, m = packed.pixels, packed.magnification
    slices = extract_slices(reference.ft, slice_rows(best.rotation, reference.scale, m), p.kx, p.ky)
    slices *= p.phases(-image_shift(best.shift, m))
    cross = packed.matched.real * slices.real + packed.matched.imag * slices.imag
    return cross, packed.weight * (slices.real ** 2 + slices.imag ** 2)


def match_sums(cross: Array, energy: Array) -> np.ndarray:
    """(2, n) of `model_match`, summed over the pixels, on the host."""
    sums: np.ndarray = to_host(array_module(cross).stack([cross.sum(axis=1), energy.sum(axis=1)]))
    return sums


def particle_counts(previous: Optional[PoseTable]) -> Optional[np.ndarray]:
    """How much the particles (m,) count in the map by what was found of them before: None where all do alike."""
    found = None if previous is None else previous.probability_aligned
    return None if found is None or (found > ALIKE).all() else found


def weighted(chosen: Insertions, counts: Optional[np.ndarray]) -> Insertions:
    """The insertions of images that count so much (n,); None: in full."""
    if counts is None:
        return chosen
    counts = array_module(chosen.weight).asarray(counts.astype(np.float32))
    return replace(chosen, weight=chosen.weight * counts[chosen.owner])


def weighted_sum(weight: Array, counts: Optional[np.ndarray]) -> Array:
    """Σ C²/σ² (2M + 1, M + 1) float64 of images (n, 2M + 1, M + 1) that count so much (n,)."""
    if counts is None:
        return weight.sum(axis=0, dtype=np.float64)
    return array_module(weight).einsum("n,nyx->yx", array_module(weight).asarray(counts), weight)


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
