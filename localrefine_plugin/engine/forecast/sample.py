"""Some particles of each half-set, aligned once to the input half-maps: what a forecast is made from."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..align.half_alignment import HalfSet, particle_counts
from ..align.half_set import HalfResult, align_half
from ..align.prior import log_prior
from ..align.reference import make_reference, slice_rows
from ..align.search_plan import SearchPlan, search_plan
from ..align.starts import pose_prior
from ..inputs.checks import CheckedInputs
from ..inputs.first_look import read_packed
from ..io.mrc import ImageReader
from ..kernels.batches import evenly_spaced
from ..kernels.device import Device
from ..kernels.slices import gauss_newton_sums
from ..maps.fsc import FscCurves, five_curves
from ..maps.half_maps import HalfMaps
from ..model.fourier import apply_shell_filter, forward, radial_mean_power
from ..model.optics import stretch
from ..model.pixels import highest_shell, pixel_list
from ..model.pose import project
from ..motion.motion_prior import Evidence, isotropic_covariance, joined_evidence
from ..prepare.prepare import first_references
from ..records.particles import Particles
from ..records.poses import PoseTable
from ..records.resolved import ResolvedSettings

SEEN = 64  # images of each half-set for what is averaged over poses
POINTS = 80  # of the density, likewise
WARM = 16  # images
BANDS = 16  # of shells, in which the curvature is known
WIDER = 1.15  # times the widths that the first iteration learns: its blurred reference shows less motion than there is
LEAST_ALIGNED = 0.01  # of the particles
STILL = 0.5  # of the learned width: where less explains the images as well, the part hardly moves


@dataclass(frozen=True)
class SampleHalf:
    """A half-map of ``count`` particles, each aligned once.

    particles : (k,) some of them, at their input poses, which stand for all.  covariance, error : (k, 5, 5) of their
    poses found, of the posterior and of the errors.  accumulator_mean : D of the map by shell.  seconds : wall, by
    phase, of all particles.  motion : Σ (6, 6) as learned, and the evidence, where there are any.
    aligned, purity : of all particles, the mean probability to be aligned, and the same where each counts by its own.
    poses : of all particles, where the run has not stored them.
    """

    particles: Particles
    covariance: np.ndarray
    error: np.ndarray
    half_map: np.ndarray
    noise_power: np.ndarray
    accumulator_mean: np.ndarray
    count: int
    seconds: Dict[str, float]
    motion: Optional[np.ndarray] = None
    evidence: Optional[Evidence] = None
    aligned: float = 1.0
    purity: float = 1.0
    poses: Optional[PoseTable] = None


@dataclass(frozen=True)
class SampleRun:
    """Both half-sets after one alignment.

    plan : of the alignment.  references : the two maps (N, N, N) they were aligned to, of the whole particle.
    curves : FSC of the two half-maps found, in the mask (N, N, N).  scales : of the input half-maps, to fit the images.
    """

    halves: Sequence[SampleHalf]
    plan: SearchPlan
    references: Sequence[np.ndarray]
    mask: np.ndarray
    curves: FscCurves
    scales: Tuple[float, ...] = (1.0, 1.0)

    @property
    def per_half(self) -> float:
        """Particles, the mean of both half-sets."""
        return float(np.mean([half.count for half in self.halves]))

    @property
    def particles(self) -> Particles:
        """Some, for what all have alike."""
        return self.halves[0].particles

    def seconds(self, *phases: str) -> float:
        """Wall seconds of phases, all of them if none is named, for one particle."""
        spent = [sum(s for phase, s in half.seconds.items() if phase in phases or not phases) for half in self.halves]
        return sum(spent) / (2 * self.per_half)


def align_sample(inputs: CheckedInputs, resolved: ResolvedSettings, device: Device, workers: int) -> SampleRun:
    """One alignment of all particles of ``inputs``, as in the first iteration of a run."""
    looks, references = first_references(inputs, resolved, workers)
    half_sets = [np.flatnonzero(inputs.particles.half_set == half) for half in (1, 2)]
    scaled = [reference * look.scale for reference, look in zip(references, looks)]
    noise = [look.noise_power for look in looks]
    run = align_once(inputs.particles, half_sets, (scaled, inputs.mask, noise), resolved, (device, workers))
    return replace(run, scales=tuple(look.scale for look in looks))


def align_once(particles: Particles, half_sets: Sequence[np.ndarray],
               shown: Tuple[Sequence[np.ndarray], np.ndarray, Sequence[np.ndarray]], resolved: ResolvedSettings,
               where: Tuple[Device, int]) -> SampleRun:
    """``particles``, of these rows in each half-set, aligned as in the first iteration of a run.

    shown : references, mask (N, N, N), and noise power of each half.  where : device and threads.
    """
    (references, mask, noise), (device, workers) = shown, where
    plan = search_plan(resolved, particles, resolved.initial_lowpass_angstrom)
    halves = []
    for half, rows in enumerate(half_sets):
        mine = particles.take(rows)
        with ImageReader(mine) as reader:
            given = HalfSet(mine, rows, reader, references[half], mask, noise[half])
            if half == 0:  # the first images wait until kernels are loaded, or compiled: these are not counted
                some = np.arange(min(WARM, len(rows)))
                align_half(replace(given, particles=mine.take(some), index=rows[some]), plan, device, workers,
                           verdicts=False)
            halves.append(sample_half(mine, align_half(given, plan, device, workers)))
    maps = HalfMaps(halves[0].half_map, halves[1].half_map, workers)
    curves = five_curves(maps, mask, particles.pixel_size, resolved.seed, resolved.fsc_randomise_below)
    return SampleRun(halves, plan, references, mask, curves)


def sample_half(particles: Particles, result: HalfResult) -> SampleHalf:
    """Of an alignment of all ``particles`` of a half-set."""
    chosen = seen(result.poses)
    return SampleHalf(
        particles.take(chosen), result.poses.covariance[chosen], result.poses.pose_error_covariance[chosen],
        result.half_map, result.noise_power, result.accumulator_mean, len(particles), result.phase_seconds,
        None if result.motion is None else result.motion.covariance, result.evidence, *counted(result.poses),
        result.poses)


def seen(poses: PoseTable) -> np.ndarray:
    """Places of the images that stand for all: SEEN of those that probably show the sub-volume."""
    counts = particle_counts(poses)
    shown = np.arange(len(poses)) if counts is None else np.flatnonzero(counts >= min(0.5, counts.max()))
    return shown[evenly_spaced(len(shown), SEEN)]


def counted(poses: PoseTable) -> Tuple[float, float]:
    """Mean probability to be aligned of all particles, and that of them as they will count in the map."""
    counts = particle_counts(poses)
    if counts is None:
        return 1.0, 1.0
    return max(float(counts.mean()), LEAST_ALIGNED), float((counts ** 2).sum() / max(float(counts.sum()), 1e-30))


def expected_motion(run: SampleRun) -> np.ndarray:
    """Covariance (6, 6) of the motion that a run is expected to learn.

    What the sample learned, WIDER times; but where the smallest motion that explains the images as well, as the later
    iterations ask for, has less than STILL of a width, the geometric mean of both. Of a Gaussian prior it is what was
    given, and without a prior the search extents stand for it (a ball of radius r has the s.d. r / √5 along each axis).
    """
    plan = run.plan
    if plan.motion_covariance is None or plan.motion_start is None:
        return isotropic_covariance(float(np.rad2deg(plan.rotation_extent)) / 5 ** 0.5, plan.shift_extent / 5 ** 0.5)
    learned = [half.motion for half in run.halves if half.motion is not None]
    evidence = [half.evidence for half in run.halves if half.evidence is not None]
    if not learned:
        return plan.motion_covariance
    found: np.ndarray = WIDER ** 2 * np.mean(learned, axis=0)
    if not evidence:
        return found
    joined = joined_evidence(evidence)
    first = plan.prior.learn(joined, plan.motion_start, plan.motion_start)
    later = None if first is None else plan.prior.learn(joined, first.covariance, plan.motion_start)
    if first is None or later is None:
        return plan.motion_covariance
    ratio = np.sqrt(np.diag(later.covariance) / np.diag(first.covariance))
    scale = np.where(ratio < STILL, np.sqrt(ratio), 1.0)
    return found * np.outer(scale, scale)


class Views(NamedTuple):
    """m images that stand for all, and points (p, 3) px about the mask centre that stand for the density.

    rotation : (m, 3, 3).  prior : Q (m, 5, 5).  covariance, error : (m, 5, 5) after the one alignment, the posterior's
    and of the errors.  by_band : curvature (bands, m, 5, 5) of a map of spectrum 1 in the mask, by bands of shells.
    """

    rotation: np.ndarray
    prior: np.ndarray
    covariance: np.ndarray
    error: np.ndarray
    by_band: np.ndarray
    points: np.ndarray


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
        parts.append((some.rotation, prior, half.covariance, half.error.astype(np.float64),
                      np.moveaxis(np.diff([np.zeros_like(sums[0]), *sums], axis=0), 0, 1)))
    rotation, prior, covariance, error, by_band = (np.concatenate(columns) for columns in zip(*parts))
    return Views(rotation, prior, covariance, error, np.moveaxis(by_band, 1, 0),
                 points_of(density, run.mask, plan.centre, seed))


def band_ends(max_shell: int) -> np.ndarray:
    """The last shell of each band."""
    ends: np.ndarray = np.unique(np.linspace(min(3, max_shell), max_shell, BANDS).astype(int))
    return ends


def phantom_of(run: SampleRun, seed: int, workers: int) -> Tuple[np.ndarray, np.ndarray]:
    """Density (N, N, N) ≥ 0 of the low-passed input half-maps, and white noise where there is density, whose spectrum
    in the mask is 1: detail of a particle of this shape."""
    density = np.maximum(0.5 * (run.references[0] + run.references[1]), 0)
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
