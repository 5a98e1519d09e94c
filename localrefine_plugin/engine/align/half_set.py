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
from ..kernels.prefetch import Prefetch
from ..kernels.slices import extract_slices
from ..maps.reconstruct import PADDING, accumulator_shape, new_accumulator, reconstruct, working_bytes
from ..model.optics import image_shift, stretch
from ..model.pixels import pixel_list
from ..model.pose import exp_map, log_map, project
from ..progress import say
from ..records.motion import LearnedMotion
from ..records.particles import Particles
from ..records.poses import PoseTable
from .images import Batch, HalfSetImages, pack, scaled
from .marginalize import Insertions, best_only, mode_weights, posterior_insertions
from .memory import MemoryNeed, check_fits, memory_need, reach_of_reference
from .motion_prior import TAILS, Evidence, evidence_at, examine, learn, precision_of
from .noise import NoiseSums
from .prior import Motion, pulling_precision
from .reference import Reference, make_reference, slice_rows, support_box
from .reference_errors import OwnTerm, ReferenceErrors, coverage, error_covariance, own_term, signal_share
from .scale import refitted_scales
from .search import Modes, PackedImages, best_modes, search
from .search_plan import SearchPlan, grid_of, levels_of
from .static_part import SIGMA, static_reference, subtract, surface_motion

Array = Any
BATCH_BYTES = 192 << 20  # on the host
LARGEST_BATCH = 4096  # on a card: images enough to keep it busy


@dataclass(frozen=True)
class HalfResult:
    """What an align step found. ``coverage`` (M + 1,): the mean of the accumulator's D by shell."""

    half_map: np.ndarray
    poses: PoseTable
    noise_power: np.ndarray
    coverage: np.ndarray
    motion: Optional[LearnedMotion]
    phase_seconds: Dict[str, float]


class Clock:
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


def align_half(particles: Particles, row: np.ndarray, read: Callable[[np.ndarray], np.ndarray],
               reference_map: np.ndarray, mask: np.ndarray, noise_power: np.ndarray, plan: SearchPlan,
               previous: Optional[PoseTable], workers: int, progress: Callable[[int, int], None],
               device: Device = CPU, static_part: Optional[np.ndarray] = None,
               errors: Optional[ReferenceErrors] = None) -> HalfResult:
    """Align and reconstruct one half-set, on ``device``; the result is the host's.

    Parameters
    ----------
    particles : the m particles of the half with their INPUT poses; ``row`` (m,) their input rows.
    read : images (b, N, N) float32 of given particles (positions in ``particles``).
    reference_map : filtered, unmasked map of this half; mask : (N, N, N).
    noise_power : (groups, M + 1) σ² = E|N(k)|² per shell.
    previous : poses of the last iteration, or None.
    static_part : (N, N, N) map of the whole particle whose part outside the mask is subtracted, or None.
    errors : of the reference map; None for one without noise.
    """
    need = need_of(plan, particles, noise_power.shape[1] - 1, mask, device, static_part is not None)
    check_fits(device, need)
    with Prefetch(read, len(particles), particles.box_size, device) as ahead:
        work = HalfAlignment(particles, ahead, noise_power, plan, previous, workers, device, errors)
        work.set_reference(reference_map, mask, static_part)

        def batch(rows: np.ndarray) -> None:
            work.add(rows)
            progress(int(rows[-1]) + 1, len(particles))

        size = batch_size(need, device)
        if device.on_card:
            say(f"{min(size, len(particles))} images at a time")
        in_batches(batch, len(particles), size, device, need.remedy)
    result = work.result(row)
    device.release()
    return result


def need_of(plan: SearchPlan, particles: Particles, max_shell: int, mask: np.ndarray, device: Device,
            subtracts: bool = False) -> MemoryNeed:
    """What a half-set takes of memory."""
    box = particles.box_size
    pixels = pixel_list(box, plan.align_shell, max_shell)
    grid, shell = grid_of(plan, box, particles.pixel_size)
    edges = [support_box(mask, plan.centre)] + subtracts * [box]
    return memory_need(box, max_shell, [reach_of_reference(edge, box, plan.align_shell) for edge in edges],
                       len(pixels), pixels.prefix(shell), len(grid.rotations), len(grid.shifts),
                       fixed=plan.deterministic and device.on_card)


def batch_size(need: MemoryNeed, device: Device) -> int:
    """Images per batch: few megabytes on the host, half of what is left of the memory on a card."""
    if not device.on_card:
        return max(1, int(BATCH_BYTES // need.host_image))
    return int(max(1, min(LARGEST_BATCH, device.memory_bytes() // (2 * need.image))))


class HalfAlignment:
    """A half-set being aligned: what all batches share, and what they have added up to so far."""

    def __init__(self, particles: Particles, read: Callable[[np.ndarray], np.ndarray], noise_power: np.ndarray,
                 plan: SearchPlan, previous: Optional[PoseTable], workers: int, device: Device,
                 errors: Optional[ReferenceErrors] = None):
        self.particles, self.plan, self.previous, self.errors = particles, plan, previous, errors
        self.workers, self.device, self.put, self.clock = workers, device, device.put, Clock(device)
        self.max_shell, box = noise_power.shape[1] - 1, particles.box_size
        pixels = pixel_list(box, plan.align_shell, self.max_shell)
        grid, grid_shell = grid_of(plan, box, particles.pixel_size)
        self.levels = levels_of(pixels, grid_shell, plan.align_shell)
        self.pixels, self.grid = pixels.put(self.put), grid.put(self.put)
        self.images = HalfSetImages(particles, read, noise_power, self.max_shell, workers, device)
        self.noise = NoiseSums(particles, noise_power)
        fixed = device.on_card and plan.deterministic
        self.accumulator = (FixedPointSums(accumulator_shape(self.max_shell), len(particles) * len(plan.symmetry),
                                           device.xp) if fixed else new_accumulator(self.max_shell, device.xp))
        self.weight_sum = device.xp.zeros(self.images.shape)
        self.tables: List[Dict[str, np.ndarray]] = []
        self.evidence: List[Evidence] = []
        self.matches: List[np.ndarray] = []

    def set_reference(self, reference_map: np.ndarray, mask: np.ndarray,
                      static_part: Optional[np.ndarray] = None) -> None:
        plan, self.static = self.plan, None
        with self.clock("reference"):
            last = int(np.ceil(plan.align_shell * stretch(self.particles)))
            if static_part is not None:
                reach = plan.shift_extent if plan.motion_covariance is None else SIGMA * surface_motion(
                    plan.motion_covariance, plan.mask_radius)
                static = static_reference(static_part, mask, reach, self.particles.pixel_size, last, self.workers)
                self.static = replace(static, ft=self.put(static.ft))
            reference = make_reference(reference_map, mask, plan.centre, last, self.workers)
            self.reference = replace(reference, ft=self.put(reference.ft))

    def add(self, rows: np.ndarray) -> None:
        """Align and insert these particles. Nothing is kept of them before all of it has fitted into memory."""
        plan, n = self.plan, len(rows)
        with self.clock("read and transform"):
            batch = self.images.batch(rows)
            scale = self.last_scale()
            if scale is not None:
                batch = scaled(batch, self.put(scale[rows]))
        rotation0, shift0 = search_centre(self.particles, self.previous, plan, rows)
        u0 = shift0 + project(rotation0, plan.centre)
        with self.clock("pack"):
            packed = pack(batch, self.pixels, self.put(u0))
            removed = 0
            if self.static is not None:
                packed, removed = subtract(packed, self.static, self.put(self.particles.rotation[rows]),
                                           self.put(self.particles.shift_px[rows] - u0))
            motion = replace(motion_of(plan, rotation0), own=self.own_term(rows, packed, u0))
        with self.clock("search"):
            modes = self.search(rows, packed, motion, u0)
            best = best_modes(modes, n)
        with self.clock("noise"):
            cross, energy = model_match(self.reference, packed, best)
            match = to_host(self.device.xp.stack([cross.sum(axis=1), energy.sum(axis=1)]))
            errors = to_host(self.error_covariance(best, energy))
            weight_sum = self.weight_sum + batch.weight.sum(axis=0, dtype=np.float64)
        with self.clock("insert"):
            chosen = insertions(modes, best, plan, n)
            insert_batch(self.accumulator, batch, chosen, self.put(u0), plan, self.images.last_column,
                         self.particles.box_size)
        with self.clock("noise"):
            self.noise.add(rows, batch.power, energy - 2 * cross + removed, self.pixels.shell)
        self.matches.append(match)
        self.weight_sum = weight_sum
        best = best.to_host()
        if plan.learn:
            precision = pulling_precision(motion, best.w, best.shift)
            self.evidence.append(evidence_at(rotation0, best.w, best.shift, best.curvature, precision))
        inserted = np.bincount(to_host(chosen.owner), minlength=n)
        self.tables.append(pose_columns(self.particles, rows, best, to_host(modes.owner), u0, plan, inserted,
                                        errors))

    def search(self, rows: np.ndarray, packed: PackedImages, motion: Motion, u0: np.ndarray) -> Modes:
        known = known_start(self.previous, motion.rotation0, u0, self.plan, rows)
        start = None if known is None else (self.put(known[0]), self.put(known[1]))
        return search(self.reference, packed, motion.put(self.put), self.grid, self.levels, start,
                      self.put(unsettled(self.previous, rows)))

    def last_scale(self) -> Optional[np.ndarray]:
        return None if self.previous is None else self.previous.scale

    def own_term(self, rows: np.ndarray, packed: PackedImages, u0: np.ndarray) -> Optional[OwnTerm]:
        """What the images' own noise in the reference adds to their scores; None before there are last poses."""
        last = self.previous
        if last is None or self.errors is None:
            return None
        rotation = last.rotation[rows]
        shift = last.shift_px[rows] + project(rotation, self.plan.centre) - u0
        inserted_over = last.covariance[rows] * self.plan.marginalize
        return own_term(self.errors, self.pixels, packed.weight,
                        *(self.put(a) for a in (inserted_over, rotation, shift, last.modes[rows] == 1)))

    def error_covariance(self, best: Modes, energy: Array) -> Array:
        """(n, 5, 5) of the best poses; ``energy`` of `model_match`."""
        agreement = np.ones(self.max_shell + 1) if self.errors is None else self.errors.agreement
        return error_covariance(best.curvature, best.precision, signal_share(agreement, self.pixels, energy))

    def result(self, row: np.ndarray) -> HalfResult:
        """The half-map and everything else, once all particles have been added."""
        box, plan = self.particles.box_size, self.plan
        del self.reference, self.static  # their memory is the reconstruction's now
        with self.clock("reconstruct"):
            if isinstance(self.accumulator, FixedPointSums):
                self.accumulator = self.accumulator.to_float()  # a card's radial profile has no order either
            elif self.device.on_card and self.device.memory_bytes() < working_bytes(box):
                self.accumulator = to_host(self.accumulator)
            half_map = to_host(reconstruct(self.accumulator, box, self.max_shell, self.workers))
        with self.clock("learn motion"):
            motion = learned_motion(plan, self.evidence)
        columns = {name: np.concatenate([t[name] for t in self.tables]) for name in self.tables[0]}
        if plan.per_particle_scale:
            columns["scale"] = refitted_scales(self.matches, self.last_scale())
        weight_sum = to_host(self.weight_sum)[self.noise.counted] * len(plan.symmetry)
        density = coverage(weight_sum, self.noise.shell, self.max_shell)
        return HalfResult(half_map, PoseTable(row=row, **columns), self.noise.power(), density, motion,
                          self.clock.seconds)


def motion_of(plan: SearchPlan, rotation0: np.ndarray) -> Motion:
    n = len(rotation0)
    precision = np.zeros((n, 5, 5))
    if plan.motion_covariance is not None:
        precision = precision_of(plan.motion_covariance, rotation0)
    return Motion(rotation0, precision, np.zeros((n, 5)), plan.prior_point - plan.centre,
                  plan.fulcrum - plan.centre, plan.rotation_extent, plan.shift_extent, TAILS if plan.learn else 0.0)


def learned_motion(plan: SearchPlan, evidence: List[Evidence]) -> Optional[LearnedMotion]:
    """What all batches of this half tell of the motion, if the plan asks."""
    if plan.motion_covariance is None or plan.motion_floor is None or not plan.learn:
        return None
    joined = Evidence(*(np.concatenate([getattr(e, name) for e in evidence])
                        for name in ("rotation0", "curvature", "pull")))
    covariance = learn(joined, plan.motion_covariance, plan.motion_floor, plan.learn == "isotropic")
    return examine(joined, covariance, plan.motion_floor)


def search_centre(particles: Particles, previous: Optional[PoseTable], plan: SearchPlan,
                  rows: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """(R0, t0) the search is centred on: the input pose, or the last one where re-centring is on.

    With only rotations re-centred the projected fulcrum stays where the input pose has it.
    """
    rotation, shift = particles.rotation[rows], particles.shift_px[rows]
    if previous is None or not (plan.recenter_rotations or plan.recenter_shifts):
        return rotation, shift
    turned = previous.rotation[rows] if plan.recenter_rotations else rotation
    at_fulcrum = shift + project(rotation, plan.fulcrum)
    if plan.recenter_shifts:
        at_fulcrum = previous.shift_px[rows] + project(previous.rotation[rows], plan.fulcrum)
    return turned, at_fulcrum - project(turned, plan.fulcrum)


def known_start(previous: Optional[PoseTable], rotation0: np.ndarray, u0: np.ndarray, plan: SearchPlan,
                rows: np.ndarray) -> Optional[Tuple[np.ndarray, np.ndarray]]:
    """The last iteration's poses as (w, u)."""
    if previous is None:
        return None
    rotation = previous.rotation[rows]
    w = log_map(np.swapaxes(rotation0, 1, 2) @ rotation)
    return w, previous.shift_px[rows] + project(rotation, plan.centre) - u0


def unsettled(previous: Optional[PoseTable], rows: np.ndarray) -> np.ndarray:
    """Who needs the grid again (n,): everyone at first, then those that kept more than one mode.

    Measured on `mid`: grid for all in every iteration takes twice the time, same poses within 0.02°.
    """
    return np.ones(len(rows), bool) if previous is None else previous.modes[rows] > 1


def model_match(reference: Reference, packed: PackedImages, best: Modes) -> Tuple[Array, Array]:
    """Re(conj(Z) Y) and W|Y|² per pixel (n, K): log L = Σ (cross − ½ energy), and σ²/2 · (energy − 2 cross) is
    |X − C Y|² − |X|²."""
    p, m = packed.pixels, packed.magnification
    slices = extract_slices(reference.ft, slice_rows(best.rotation, reference.scale, m), p.kx, p.ky)
    slices *= p.phases(-image_shift(best.shift, m))
    cross = packed.matched.real * slices.real + packed.matched.imag * slices.imag
    return cross, packed.weight * (slices.real ** 2 + slices.imag ** 2)


def insertions(modes: Modes, best: Modes, plan: SearchPlan, n: int) -> Insertions:
    """At which poses n images are inserted, not counting symmetry."""
    if not plan.marginalize:
        return best_only(best)
    return posterior_insertions(modes, mode_weights(modes, n), PADDING * plan.align_shell, n)


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


def pose_columns(particles: Particles, rows: np.ndarray, best: Modes, owner: np.ndarray, u0: np.ndarray,
                 plan: SearchPlan, inserted: np.ndarray, errors: np.ndarray) -> Dict[str, np.ndarray]:
    """The columns of records.PoseTable (but ``row``) for one batch; ``owner`` is that of all modes, ``errors``
    are their covariance."""
    shift = u0 + best.shift - project(best.rotation, plan.centre)
    input_rotation, input_shift = particles.rotation[rows], particles.shift_px[rows]
    w = log_map(np.swapaxes(input_rotation, 1, 2) @ best.rotation)
    moved = shift + project(best.rotation, plan.fulcrum) - input_shift - project(input_rotation, plan.fulcrum)
    rotation0 = best.rotation @ np.swapaxes(exp_map(best.w), 1, 2)
    at_fulcrum = best.shift + project(best.rotation - rotation0, plan.fulcrum - plan.centre)
    return dict(
        rotation=best.rotation, shift_px=shift, rotation_change_deg=np.rad2deg(w),
        shift_change_angstrom=moved * particles.pixel_size,
        covariance=np.linalg.inv(best.precision + 1e-9 * np.eye(5)), error_covariance=errors.astype(np.float32),
        log_likelihood=best.log_likelihood,
        modes=np.bincount(owner, minlength=len(rows)), insertions=inserted,
        at_rotation_limit=np.linalg.norm(best.w, axis=1) > 0.98 * plan.rotation_extent,
        at_shift_limit=np.linalg.norm(at_fulcrum, axis=1) > 0.98 * plan.shift_extent)
