"""Some particles of each half-set after the first iterations of a run: what a forecast is made from.

After one iteration, to the input half-maps, the errors of the poses have 0.5 to 1.4 times the variances that are stated
of them, after three 0.7 to 1.2 times. What the reference of an iteration holds is measured.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..align.half_alignment import particle_counts
from ..align.prior import log_prior
from ..align.reference import make_reference, slice_rows
from ..align.search_plan import SearchPlan, align_shell_of, search_plan
from ..align.starts import pose_prior
from ..inputs.first_look import read_packed
from ..io.mrc import read_map
from ..io.run_folder import RunFolder, read_json, reading
from ..io.run_store import load_input, load_iteration, load_motion, load_noise, stored_half_set, stored_poses
from ..kernels.batches import evenly_spaced
from ..kernels.slices import gauss_newton_sums
from ..maps.fsc import FscCurves, read_fsc
from ..model.fourier import apply_shell_filter, forward, radial_mean_power
from ..model.optics import stretch
from ..model.pixels import highest_shell, pixel_list
from ..model.pose import project
from ..motion.motion_prior import isotropic_covariance
from ..records.codec import from_json
from ..records.iteration import HalfRecord
from ..records.particles import Particles
from ..records.poses import PoseTable

ITERATIONS = 3  # that the particles are aligned
SEEN = 64  # images of each half-set for what is averaged over poses
POINTS = 80  # of the density, likewise
BANDS = 16  # of shells, in which the curvature is known


@dataclass(frozen=True)
class SampleHalf:
    """A half-map of ``count`` particles, after ITERATIONS.

    particles : (k,) some of them, at their input poses, which stand for all.  covariance, error : (k, 5, 5) of their
    poses found, of the posterior and of the errors.  half_map, reference : (N, N, N), the second is what the last
    iteration aligned to.  accumulator_mean : D of the half-map by shell.  seconds : wall, by phase, of all particles,
    of each iteration.  motion : Σ (6, 6) as learned, if it is.
    purity : of all particles, the mean probability to be aligned where each counts by its own.
    """

    particles: Particles
    covariance: np.ndarray
    error: np.ndarray
    half_map: np.ndarray
    reference: np.ndarray
    noise_power: np.ndarray
    accumulator_mean: np.ndarray
    count: int
    seconds: Sequence[Dict[str, float]]
    motion: Optional[np.ndarray] = None
    purity: float = 1.0


@dataclass(frozen=True)
class SampleRun:
    """Both half-sets after ITERATIONS.

    plan : of the first alignment.  curves : FSC of the two half-maps, in the mask (N, N, N).  align_shells : the
    last ones that the iterations aligned to.
    """

    halves: Sequence[SampleHalf]
    plan: SearchPlan
    mask: np.ndarray
    curves: FscCurves
    align_shells: Sequence[int]

    @property
    def per_half(self) -> float:
        """Particles, the mean of both half-sets."""
        return float(np.mean([half.count for half in self.halves]))

    @property
    def particles(self) -> Particles:
        """Some, for what all have alike."""
        return self.halves[0].particles

    def seconds(self, iteration: int, *phases: str) -> float:
        """Wall seconds of phases for one particle in an iteration (from 0)."""
        spent = [sum(s for phase, s in half.seconds[iteration].items() if phase in phases) for half in self.halves]
        return sum(spent) / (2 * self.per_half)


def sample_of(run: RunFolder) -> SampleRun:
    """Of a run after ITERATIONS: all its particles."""
    resolved, halves = load_input(run).resolved, [half_of(run, half) for half in (1, 2)]
    particles = halves[0].particles
    aligned_to = [load_iteration(run, k).align_resolution_angstrom for k in range(ITERATIONS)]
    return SampleRun(halves, search_plan(resolved, particles, resolved.initial_lowpass_angstrom),
                     read_map(run.mask_in_use(ITERATIONS))[0], read_fsc(run.fsc(ITERATIONS)),
                     [align_shell_of(one, resolved, particles) for one in aligned_to])


def half_of(run: RunFolder, half: int) -> SampleHalf:
    (rows, particles), poses = stored_half_set(run, half), stored_poses(run, ITERATIONS, half)
    motion = load_motion(run, ITERATIONS, half)
    assert poses is not None  # of an iteration that is done
    seconds = []
    for done in (run.half_done(k, half) for k in range(1, ITERATIONS + 1)):
        with reading(done):
            seconds.append(from_json(HalfRecord, read_json(done)).phase_seconds)
    chosen = seen(poses)
    return SampleHalf(
        particles.take(chosen), poses.covariance[chosen], poses.pose_error_covariance[chosen].astype(np.float64),
        read_map(run.half_map(ITERATIONS, half))[0], read_map(run.reference(ITERATIONS - 1, half))[0],
        load_noise(run, ITERATIONS, half), load_noise(run, ITERATIONS, half, "accumulator_mean"), len(rows), seconds,
        None if motion is None else motion.covariance, purity(poses))


def seen(poses: PoseTable) -> np.ndarray:
    """Places of the images that stand for all: SEEN of those that probably show the sub-volume."""
    counts = particle_counts(poses)
    shown = np.arange(len(poses)) if counts is None else np.flatnonzero(counts >= min(0.5, counts.max()))
    return shown[evenly_spaced(len(shown), SEEN)]


def purity(poses: PoseTable) -> float:
    """Mean probability to be aligned of particles that count by it."""
    counts = particle_counts(poses)
    return 1.0 if counts is None else float((counts ** 2).sum() / max(float(counts.sum()), 1e-30))


def expected_motion(run: SampleRun) -> np.ndarray:
    """Covariance (6, 6) of the motion that a run is expected to learn: what was learned. Of a Gaussian prior it is what
    was given, and without a prior the search extents stand for it (a ball of radius r has the s.d. r / √5 along each
    axis)."""
    plan = run.plan
    if plan.motion_covariance is None or plan.motion_start is None:
        return isotropic_covariance(float(np.rad2deg(plan.rotation_extent)) / 5 ** 0.5, plan.shift_extent / 5 ** 0.5)
    learned = [half.motion for half in run.halves if half.motion is not None]
    found: np.ndarray = np.mean(learned, axis=0) if learned else plan.motion_covariance
    return found


class Views(NamedTuple):
    """m images that stand for all, and points (p, 3) px about the mask centre that stand for the density.

    rotation : (m, 3, 3).  prior : Q (m, 5, 5), as wide as the search where it ``has_prior`` False.  covariance, error :
    (m, 5, 5) after ITERATIONS, the posterior's and of the errors.  by_band : curvature (bands, m, 5, 5) of a map
    of spectrum 1 in the mask, by bands of shells.
    """

    rotation: np.ndarray
    prior: np.ndarray
    covariance: np.ndarray
    error: np.ndarray
    by_band: np.ndarray
    points: np.ndarray
    has_prior: bool = True

    def energy(self, box_size: int) -> np.ndarray:
        """(bands, m) |Y|² of a map of spectrum 1: the curvature along both shifts is (2π / N)² k² of it."""
        shells = np.arange(highest_shell(box_size) + 1)
        ends = band_ends(shells[-1])
        band = np.searchsorted(ends, shells)
        k2 = np.bincount(band, shells ** 3.0) / np.bincount(band, shells)
        of_shifts = self.by_band[..., 3, 3] + self.by_band[..., 4, 4]
        energy: np.ndarray = of_shifts / ((2 * np.pi / box_size) ** 2 * k2[:, None])
        return energy


def views_of(run: SampleRun, motion: np.ndarray, seed: int, workers: int) -> Views:
    """What the forecast needs to know of the sample's images."""
    density, phantom = phantom_of(run, seed, workers)
    plan, box = replace(run.plan, motion_covariance=motion), run.particles.box_size
    max_shell = highest_shell(box)
    reference = make_reference(phantom, run.mask, plan.centre, int(np.ceil(max_shell * stretch(run.particles))),
                               workers)
    pixels = pixel_list(box, max_shell, max_shell)
    parts = []
    for half in run.halves:
        some = half.particles
        start = some.shift_px + project(some.rotation, plan.centre)
        packed = read_packed(some, pixels, start, half.noise_power, workers).packed
        rows = slice_rows(some.rotation, reference.scale, packed.magnification)
        owner, still = np.arange(len(some)), np.zeros((len(some), 2))
        nothing = np.zeros_like(packed.matched)
        sums = [gauss_newton_sums(reference.ft, rows, still, owner, pixels.kx, pixels.ky, pixels.prefix(last), nothing,
                                  packed.weight, pixels.box_size)[2] for last in band_ends(max_shell)]
        gaussian = replace(pose_prior(plan, some.rotation), tails=0.0)
        prior = log_prior(gaussian, owner, np.zeros((len(some), 3)), some.rotation, still)[2]
        parts.append((some.rotation, prior, half.covariance, half.error,
                      np.moveaxis(np.diff([np.zeros_like(sums[0]), *sums], axis=0), 0, 1)))
    rotation, prior, covariance, error, by_band = (np.concatenate(columns) for columns in zip(*parts))
    return Views(rotation, prior, covariance, error, np.moveaxis(by_band, 1, 0),
                 points_of(density, run.mask, plan.centre, seed), run.plan.motion_covariance is not None)


def band_ends(max_shell: int) -> np.ndarray:
    """The last shell of each band."""
    ends: np.ndarray = np.unique(np.linspace(min(3, max_shell), max_shell, BANDS).astype(int))
    return ends


def phantom_of(run: SampleRun, seed: int, workers: int) -> Tuple[np.ndarray, np.ndarray]:
    """Density (N, N, N) ≥ 0 of the references, and white noise where there is density, whose spectrum
    in the mask is 1: detail of a particle of this shape."""
    density = np.maximum(np.mean([half.reference for half in run.halves], axis=0), 0)
    noise = np.random.default_rng(seed).standard_normal(density.shape).astype(np.float32) * density
    for _ in range(2):  # the mask mixes neighbouring shells
        power = radial_mean_power(forward(noise * run.mask, workers))
        noise = apply_shell_filter(noise, 1 / np.sqrt(np.maximum(power, 1e-30)), workers)
    return density, noise


def points_of(density: np.ndarray, mask: np.ndarray, centre: np.ndarray, seed: int) -> np.ndarray:
    """(p, 3) px about ``centre`` (px from the box centre, xyz), as often as there is density in the mask."""
    weight = (density * mask ** 2).astype(np.float64).ravel()
    if weight.sum() <= 0:
        weight = mask.astype(np.float64).ravel()
    drawn = np.random.default_rng(seed).choice(weight.size, POINTS, p=weight / weight.sum())
    points: np.ndarray = np.stack(np.unravel_index(drawn, mask.shape), axis=1)[:, ::-1] - mask.shape[0] // 2 - centre
    return points
