"""Where a refinement of N particles ends: map and poses that agree with each other.

    F = S / (1 + S),    S = N P₀ ⟨m(s)²⟩ / (ν₀ ⟨m(p)²⟩)               half-maps, from the errors of the poses
    m(s) = s / (1 − (1 − s) f)                                        a blur, of a map that is its own reference
    H = Σ_k H_k P₀ ⟨m(s)²⟩ f² / F                                     curvature, from the reference
    errors = (ρH + Q)⁻¹ (H + Q) (ρH + Q)⁻¹,    ρ by F_ref             poses (align/reference_errors.py)

and again, until nothing changes. s is the amplitude that errors and posteriors of the poses leave, p that of the
posteriors alone, with the other peaks that they have without a prior (peaks.py); P₀ and ν₀ are those of spectrum.py,
H_k is the curvature of a map of spectrum 1, Q the prior's where poses are found, f the filter of the reference up to
the end of the alignment, and F_ref the FSC of two references. Measured in runs (`mid`, box 80 at SNR .08 and .02), the
non-uniform filter has f ≈ 1.2 F, at most 1, and F_ref ≈ √F, at least .45; without it both are F.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, NamedTuple

import numpy as np

from ..align.prior import UNKNOWNS
from ..align.search_plan import align_shell_of
from ..finish.pose_blur import expected_map_to_truth, expected_resolution
from ..finish.results import pose_uncertainty
from ..maps.fsc import resolution_at
from ..model.pixels import highest_shell
from ..motion.motion_prior import inverses
from ..motion.prior_shapes import prior_shape
from ..records.iteration import FSC_THRESHOLD
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings
from .blur import attenuation
from .peaks import ONE_PEAK, Peaks, peaks_of
from .sample import Views, band_ends
from .spectrum import Spectrum

MOST_ITERATIONS = 15
SAME = 1e-3  # relative change of the resolution
FARTHEST = 1000.0  # times as many particles
FILTER_OVER_F, REFERENCE_POWER, LEAST_AGREEMENT = 1.2, 0.5, 0.45  # of the non-uniform filter


class End(NamedTuple):
    """Å at FSC 0.143, Å to report, s.d. per axis of rotation (degrees) and shift (Å) in the median."""

    resolution: float
    to_report: float
    rotation_error: float
    shift_error: float


class Poses(NamedTuple):
    """Of m images: covariance of the posterior and of the errors, within one peak, and of where poses may be
    (m, 5, 5)."""

    covariance: np.ndarray
    error: np.ndarray
    anywhere: np.ndarray
    peaks: Peaks

    def stated(self) -> np.ndarray:
        """(m, 5, 5) of the errors that are stated of the poses, other peaks of the posterior included."""
        found: np.ndarray = self.error + self.peaks.elsewhere()[:, None, None] * self.anywhere
        return found


class Blur(NamedTuple):
    """(p, S) of the amplitude that is left: of the signal, of an image's noise, and by the errors of poses alone."""

    kept: np.ndarray
    smeared: np.ndarray
    exact: np.ndarray


@dataclass(frozen=True)
class Refinement:
    """A refinement of particles like those of a sample, which ``views`` and ``spectrum`` stand for."""

    views: Views
    spectrum: Spectrum
    resolved: ResolvedSettings
    particles: Particles

    @property
    def tails(self) -> float:
        return prior_shape(self.resolved.prior).tails

    def left(self, covariance: np.ndarray) -> np.ndarray:
        return attenuation(covariance, self.views.rotation, self.views.points,
                           np.arange(len(self.spectrum.signal)), self.particles.box_size)

    def half_map_fsc(self, count: float, kept: np.ndarray, smeared: np.ndarray, known: np.ndarray) -> np.ndarray:
        """F (S,) of half-maps of ``count`` particles, from what the blur leaves of signal and noise (p, S), and what
        of both the reference gives back (S,)."""
        signal, noise = self.spectrum
        left, of_noise = ((given_back(amplitude, known) ** 2).mean(axis=0) for amplitude in (kept, smeared))
        ratio = count * signal * left / np.maximum(noise * of_noise, 1e-30)
        last = highest_shell(self.particles.box_size)
        ratio[last + 1:] = ratio[last]
        curve: np.ndarray = ratio / (1 + ratio)
        curve[0] = 1.0
        return curve

    def filter_of(self, curve: np.ndarray) -> np.ndarray:
        """f (S,) of the reference of half-maps of this FSC."""
        box, pixel = self.particles.box_size, self.particles.pixel_size
        last = align_shell_of(resolution_at(curve, FSC_THRESHOLD, box, pixel), self.resolved, self.particles)
        filtered = np.minimum(FILTER_OVER_F * curve, 1) if self.resolved.non_uniform else curve
        cut: np.ndarray = np.where(np.arange(len(curve)) <= last, filtered, 0.0)
        return cut

    def prior(self, covariance: np.ndarray) -> np.ndarray:
        """Q (m, 5, 5) where poses are found whose last posteriors are these: a Student t pulls (ν + 5) / (ν + m²) times
        as much as a Gaussian, with m² of poses found about 5 − tr(Q C)."""
        q, tails = self.views.prior, self.tails
        if not tails:
            return q
        m2 = np.clip(UNKNOWNS - np.einsum("mij,mji->m", q, covariance), 0, UNKNOWNS)
        pulled: np.ndarray = q * ((tails + UNKNOWNS) / (tails + m2))[:, None, None]
        return pulled

    def poses(self, curve: np.ndarray, kept: np.ndarray, last: np.ndarray) -> Poses:
        """Poses found with references of half-maps of this FSC; ``last``, the posterior covariance before."""
        box, filtered = self.particles.box_size, self.filter_of(curve)
        amplitude = given_back(kept, filtered * self.resolved.marginalize)
        power = self.spectrum.signal * (amplitude ** 2).mean(axis=0) * filtered ** 2 / np.maximum(curve, 1e-9)
        share = np.maximum(curve ** REFERENCE_POWER, LEAST_AGREEMENT) if self.resolved.non_uniform else curve
        in_bands = [by_band(values, highest_shell(box)) for values in (power, power * share)]
        curvature, of_signal = (np.einsum("b,bmij->mij", values, self.views.by_band) for values in in_bands)
        energy, signal = (values @ self.views.energy(box) for values in in_bands)
        limits = self.prior(last) + 1e-9 * np.eye(5)
        peaks, prior, elsewhere = ONE_PEAK, limits, limits
        if not self.views.has_prior:
            elsewhere = limits + self.held_by_shape(limits, power * share)
            size = 0.5 * (np.linalg.slogdet(curvature + limits)[1] - np.linalg.slogdet(limits)[1])
            peaks, prior = peaks_of(energy, signal, size), 1e-9 * np.eye(5)
        precision, shrunk = curvature + prior, inverses(of_signal + prior)
        return Poses(inverses(precision), shrunk @ precision @ shrunk, inverses(elsewhere), peaks)

    def held_by_shape(self, limits: np.ndarray, power: np.ndarray) -> np.ndarray:
        """(m, 5, 5) the curvature that is left where the rotation is anywhere: the shape of the sub-volume, as all
        these rotations leave it of a signal of this ``power`` (S,), still holds the shift."""
        turned = inverses(limits)
        turned[:, 3:, :] = turned[:, :, 3:] = 0
        left = (self.left(turned) ** 2).mean(axis=0)
        held: np.ndarray = np.einsum("b,bmij->mij", by_band(power * left, highest_shell(self.particles.box_size)),
                                     self.views.by_band)
        held[:, :3, :] = held[:, :, :3] = 0
        return held

    def end(self, count: float) -> End:
        """With so many particles in each half-set."""
        found, before = Poses(self.views.covariance, self.views.error, inverses(self.views.prior), ONE_PEAK), np.inf
        known: np.ndarray = np.zeros(len(self.spectrum.signal))
        for _ in range(MOST_ITERATIONS):
            blur = self.blur(found)
            curve = self.half_map_fsc(count, blur.kept, blur.smeared, known)
            resolution = resolution_at(curve, FSC_THRESHOLD, self.particles.box_size, self.particles.pixel_size)
            if abs(resolution - before) < SAME * resolution:
                break
            before = resolution
            found = self.poses(curve, blur.kept, found.covariance)
            known = self.filter_of(curve) * self.resolved.marginalize
        to_truth = expected_map_to_truth(curve, shape_kept(blur.exact) * shape_kept(blur.smeared))
        expected = expected_resolution(to_truth, self.particles.box_size, self.particles.pixel_size)
        rotation, shift = np.median(pose_uncertainty(found.stated(), self.particles.pixel_size), axis=0)
        return End(resolution, max(expected, resolution), float(rotation), float(shift))

    def blur(self, found: Poses) -> Blur:
        exact, smeared, anywhere = (self.left(c) for c in (found.error, found.covariance, found.anywhere))
        if not self.resolved.marginalize:
            smeared = np.ones_like(smeared)
        true, together = float(found.peaks.true.mean()), float(np.sqrt(found.peaks.together).mean())
        return Blur(true * exact * smeared + (1 - true) * anywhere, together * smeared + (1 - together) * anywhere,
                    true * exact + (1 - true) * anywhere)


def given_back(left: np.ndarray, known: np.ndarray) -> np.ndarray:
    """s / (1 − (1 − s) f) (p, S): the amplitude that a blur s (p, S) leaves of a map that is made again and again with
    itself, filtered by f (S,), as the reference."""
    amplitude: np.ndarray = left / (1 - (1 - left) * known)
    return amplitude


def shape_kept(left: np.ndarray) -> np.ndarray:
    """κ (S,): the correlation of a map with itself after a blur that leaves so much (p, S) of its parts."""
    kappa: np.ndarray = left.mean(axis=0) / np.sqrt(np.maximum((left ** 2).mean(axis=0), 1e-30))
    return kappa


def by_band(values: np.ndarray, max_shell: int) -> np.ndarray:
    """Mean (bands,) of values by shell, weighted as shells count in a curvature: pixels times k²."""
    ends, shells = band_ends(max_shell), np.arange(len(values))
    band = np.minimum(np.searchsorted(ends, shells), len(ends) - 1)
    weight = shells.astype(np.float64) ** 3 * (shells <= max_shell)
    total, of_values = (np.bincount(band, w, len(ends)) for w in (weight, weight * values))
    mean: np.ndarray = of_values / np.maximum(total, 1e-30)
    return mean


def count_for(end: Callable[[float], End], wanted: float, now: float) -> float:
    """Particles of each half-set with which ``wanted`` Å can be reported, by halving of the logarithm; inf if FARTHEST
    times as many as ``now`` do not do."""
    low, high = np.log(now / FARTHEST), np.log(now * FARTHEST)
    if end(float(np.exp(high))).to_report > wanted:
        return float("inf")
    for _ in range(12):
        middle = 0.5 * (low + high)
        if end(float(np.exp(middle))).to_report > wanted:
            low = middle
        else:
            high = middle
    return float(np.exp(high))
