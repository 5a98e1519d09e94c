"""Some particles of each half-set, aligned once to the input half-maps: what a forecast is made from."""
from __future__ import annotations

from dataclasses import replace
from typing import List, NamedTuple, Tuple

import numpy as np

from ..align.half_alignment import HalfSet
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
from ..model.fourier import apply_shell_filter, forward, lowpass, radial_mean_power
from ..model.optics import stretch
from ..model.pixels import highest_shell, pixel_list
from ..model.pose import project
from ..motion.motion_prior import isotropic_covariance, joined_evidence
from ..prepare.prepare import first_references
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings

SEEN = 64  # images of each half-set for what is averaged over poses
POINTS = 80  # of the density, likewise
WARM = 16  # images
BANDS = 16  # of shells, in which the curvature is known
STILL = 0.5  # of the learned width: where less explains the images as well, the part hardly moves


class SampleRun(NamedTuple):
    """n particles of each half-set, at their poses after one alignment.

    particles, results : of each half.  plan : of the alignment.  curves : FSC of the two half-maps made of them.
    """

    particles: List[Particles]
    results: List[HalfResult]
    plan: SearchPlan
    curves: FscCurves

    @property
    def per_half(self) -> float:
        """n, the mean of both half-sets."""
        return float(np.mean([len(p) for p in self.particles]))

    def seconds(self, *phases: str) -> float:
        """Wall seconds of phases, all of them if none is named, for one particle."""
        spent = [sum(s for phase, s in r.phase_seconds.items() if phase in phases or not phases) for r in self.results]
        return sum(spent) / (2 * self.per_half)


def align_sample(inputs: CheckedInputs, resolved: ResolvedSettings, device: Device, workers: int) -> SampleRun:
    """One alignment of all particles of ``inputs``, as in the first iteration of a run."""
    looks, references = first_references(inputs, resolved, workers)
    plan = search_plan(resolved, inputs.particles, resolved.initial_lowpass_angstrom)
    sets, results = [], []
    for half in (1, 2):
        index = np.flatnonzero(inputs.particles.half_set == half)
        particles = inputs.particles.take(index)
        with ImageReader(particles) as reader:
            given = HalfSet(particles, index, reader, references[half - 1] * looks[half - 1].scale, inputs.mask,
                            looks[half - 1].noise_power)
            if half == 1:  # the first images wait until kernels are loaded, or compiled: these are not counted
                some = np.arange(min(WARM, len(index)))
                align_half(replace(given, particles=particles.take(some), index=index[some]), plan, device, workers,
                           verdicts=False)
            results.append(align_half(given, plan, device, workers, verdicts=False))
        sets.append(particles)
    maps = HalfMaps(results[0].half_map, results[1].half_map, workers)
    curves = five_curves(maps, inputs.mask, inputs.pixel_size, resolved.seed, resolved.fsc_randomise_below)
    return SampleRun(sets, results, plan, curves)


def expected_motion(run: SampleRun) -> np.ndarray:
    """Covariance (6, 6) of the motion that a run is expected to learn.

    What the sample learned; but where the smallest motion that explains the images as well, as the later iterations
    ask for, has less than STILL of a width, the geometric mean of both. Of a Gaussian prior it is what was given, and
    without a prior the search extents stand for it (a ball of radius r has the s.d. r / √5 along each axis).
    """
    plan = run.plan
    if plan.motion_covariance is None or plan.motion_start is None:
        return isotropic_covariance(float(np.rad2deg(plan.rotation_extent)) / 5 ** 0.5, plan.shift_extent / 5 ** 0.5)
    learned = [r.motion.covariance for r in run.results if r.motion is not None]
    evidence = [r.evidence for r in run.results if r.evidence is not None]
    if not learned or not evidence:
        return plan.motion_covariance
    found: np.ndarray = np.mean(learned, axis=0)
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


def views_of(run: SampleRun, inputs: CheckedInputs, motion: np.ndarray, seed: int, workers: int) -> Views:
    """What the forecast needs to know of the sample's images."""
    density, phantom = phantom_of(inputs, seed, workers)
    plan, max_shell = replace(run.plan, motion_covariance=motion), highest_shell(inputs.particles.box_size)
    reference = make_reference(phantom, inputs.mask, plan.centre,
                               int(np.ceil(max_shell * stretch(inputs.particles))), workers)
    pixels = pixel_list(inputs.particles.box_size, max_shell, max_shell)
    parts = []
    for particles, result in zip(run.particles, run.results):
        chosen = evenly_spaced(len(particles), SEEN)
        some = particles.take(chosen)
        start = some.shift_px + project(some.rotation, plan.centre)
        packed = read_packed(some, pixels, start, result.noise_power, workers).packed
        rows = slice_rows(some.rotation, reference.scale, packed.magnification)
        owner, still = np.arange(len(some)), np.zeros((len(some), 2))
        nothing = np.zeros_like(packed.matched)
        sums = [gauss_newton_sums(reference.ft, rows, still, owner, pixels.kx, pixels.ky, pixels.prefix(last), nothing,
                                  packed.weight, pixels.box_size)[2] for last in band_ends(max_shell)]
        gaussian = replace(pose_prior(plan, some.rotation), tails=0.0)
        prior = log_prior(gaussian, owner, np.zeros((len(some), 3)), some.rotation, still)[2]
        parts.append((some.rotation, prior, result.poses.covariance[chosen],
                      result.poses.pose_error_covariance[chosen].astype(np.float64),
                      np.moveaxis(np.diff([np.zeros_like(sums[0]), *sums], axis=0), 0, 1)))
    rotation, prior, covariance, error, by_band = (np.concatenate(columns) for columns in zip(*parts))
    return Views(rotation, prior, covariance, error, np.moveaxis(by_band, 1, 0),
                 points_of(density, inputs.mask, plan.centre, seed))


def band_ends(max_shell: int) -> np.ndarray:
    """The last shell of each band."""
    ends: np.ndarray = np.unique(np.linspace(min(3, max_shell), max_shell, BANDS).astype(int))
    return ends


def phantom_of(inputs: CheckedInputs, seed: int, workers: int) -> Tuple[np.ndarray, np.ndarray]:
    """Density (N, N, N) ≥ 0 of the input half-maps where they agree, and white noise where there is density, whose
    spectrum in the mask is 1: detail of a particle of this shape."""
    first, second = inputs.maps
    curves = five_curves(inputs.halves, inputs.mask, inputs.pixel_size, seed)
    density = np.maximum(lowpass(0.5 * (first + second), inputs.pixel_size, curves.resolutions()["corrected"]), 0)
    noise = np.random.default_rng(seed).standard_normal(density.shape).astype(np.float32) * np.sqrt(density)
    for _ in range(2):  # the mask mixes neighbouring shells
        power = radial_mean_power(forward(noise * inputs.mask, workers))
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
