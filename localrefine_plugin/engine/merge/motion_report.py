"""What a learned motion says, in numbers for people and in sentences: from LearnedMotion to MotionSummary.

Each half-set is summarised by itself. The two are pooled for display only: no search ever sees the pooled motion.
"""
from __future__ import annotations

from typing import Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from ..motion.motion_prior import about_point, hinge, principal_axes, principal_widths
from ..motion.prior_shapes import prior_shape
from ..records.motion import HingeSummary, LearnedMotion, MotionSummary, PrincipalMotion
from ..records.resolved import ResolvedSettings
from .advice import LEAST_FOR_PEAKS, peaks_of
from .hinge import Hinge

DRAWS = 200  # of Σ for the errors: those are good to 5 %
FLAT = -0.6  # excess kurtosis: 0 of a Gaussian, −1.2 of a flat distribution, −2 of two narrow peaks
STILL_DEG, STILL_ANGSTROM = 0.6, 1.0  # widths below which a sub-volume is said not to move
MUCH_JUNK = 0.03  # of the particles: none are, of a Gaussian motion
WIDTHS_IN_EXTENT = 2.2  # the s.d. per axis of a distribution that fills a ball evenly is the radius / √5
SIGNIFICANT = 4.0  # χ² per degree of freedom
MEAN_DEG, MEAN_ANGSTROM = 1.0, 1.0  # a mean motion worth a sentence


def motion_summary(motions: Dict[int, LearnedMotion], resolved: ResolvedSettings, pixel_size: float) -> MotionSummary:
    """The motion of each half-set, and pooled, with sentences on the latter. ``resolved``: of input.json."""
    halves = {half: summarise(motion, resolved, pixel_size) for half, motion in motions.items()}
    both = summarise(pooled(list(motions.values())), resolved, pixel_size)
    return MotionSummary(both, halves.get(1), halves.get(2), tuple(motion_words(both)))


def pooled(motions: Sequence[LearnedMotion]) -> LearnedMotion:
    """The mean of independent half-sets, for display."""
    n = len(motions)
    covariance, error, mean, mean_error = (np.mean([getattr(m, name) for m in motions], axis=0)
                                           for name in ("covariance", "error", "mean", "mean_error"))
    along_axes, not_junk = (np.concatenate([getattr(m, name) for m in motions])
                            for name in ("along_axes", "probability_not_junk"))
    return LearnedMotion(covariance, error / n, mean, mean_error / n, along_axes, not_junk,
                         np.max([m.bound for m in motions], axis=0))


def summarise(motion: LearnedMotion, resolved: ResolvedSettings, pixel_size: float) -> PrincipalMotion:
    """One motion in the units of people."""
    degree = np.rad2deg(1)
    many = draws(motion)
    rotation, shift = principal_widths(motion.covariance)
    errors = np.std([np.concatenate(principal_widths(s)) for s in many], axis=0)
    z = motion.along_axes[motion.probability_not_junk > 0.5]
    finds_hinge = prior_shape(resolved.prior).finds_hinge
    of_axes = {"rotation": z[:, 0], "displacement": z[:, 1]}
    return PrincipalMotion(
        rotation_widths_deg=numbers(rotation * degree), rotation_widths_deg_error=numbers(errors[:3] * degree),
        rotation_axes=tuple(numbers(axis) for axis in principal_axes(motion.covariance[:3, :3])),
        displacement_widths_angstrom=numbers(shift * pixel_size),
        displacement_widths_angstrom_error=numbers(errors[3:] * pixel_size),
        displacement_axes=tuple(numbers(axis) for axis in principal_axes(motion.covariance[3:, 3:])),
        hinge=hinge_summary(motion.covariance, many, resolved, pixel_size) if finds_hinge else None,
        mean_rotation_deg=numbers(motion.mean[:3] * degree),
        mean_displacement_angstrom=numbers(motion.mean[3:] * pixel_size),
        mean_chi2=float(motion.mean @ np.linalg.solve(motion.mean_error, motion.mean)) / 6,
        excess_kurtosis={name: excess_kurtosis(along) for name, along in of_axes.items()},
        peaks={name: numbers(signed_peaks(along)) for name, along in of_axes.items()},
        junk_share=float(np.mean(motion.probability_not_junk < 0.5)),
        **{name: float(value) for name, value in (
            ("excluded_rotation_deg", motion.bound[0] * degree),
            ("excluded_displacement_angstrom", motion.bound[1] * pixel_size)) if np.isfinite(value)})


def numbers(values: Iterable[float]) -> Tuple[float, ...]:
    return tuple(float(v) for v in values)


def draws(motion: LearnedMotion, count: int = DRAWS) -> np.ndarray:
    """Covariances (count, 6, 6) that Σ may as well be: L exp(A) Lᵀ with A from its error. Always the same ones."""
    lower = np.linalg.cholesky(motion.error)
    row, column = np.triu_indices(6)
    a = np.zeros((count, 6, 6))
    a[:, row, column] = np.random.default_rng(0).standard_normal((count, 21)) @ lower.T
    a[:, column, row] = a[:, row, column]
    value, vector = np.linalg.eigh(a)
    of_motion = np.linalg.cholesky(motion.covariance) @ vector
    drawn: np.ndarray = (of_motion * np.exp(value)[:, None]) @ np.swapaxes(of_motion, 1, 2)
    return drawn


def hinge_summary(covariance: np.ndarray, many: np.ndarray, resolved: ResolvedSettings,
                  pixel_size: float) -> HingeSummary:
    """The point the motion Σ (6, 6) turns about, and how well it is known by the draws ``many`` (n, 6, 6).

    A direction is undetermined if the error along it exceeds the radius of the mask.
    """
    radius = resolved.mask_radius_angstrom / pixel_size
    axes = np.linalg.eigh(hinge(covariance)[1])[1]  # columns, of the smallest eigenvalue first: the least known
    for known in (axes, axes[:, 1:], axes[:, 2:], axes[:, 3:]):
        point = hinge_within(covariance, known)
        deviation = np.array([hinge_within(s, known) for s in many]) - point
        if known.shape[1] == 0 or np.all(half_width(deviation @ known) < radius):
            break
    corner = np.rint(resolved.mask_centre_px)
    left, at_centre = (principal_widths(s)[1] for s in (about_point(covariance, point), covariance))
    undetermined = axes[:, 0] * np.sign(axes[np.abs(axes[:, 0]).argmax(), 0])
    return HingeSummary(
        point_px=numbers(corner + point), point_angstrom=numbers((corner + point) * pixel_size),
        error_angstrom=numbers(half_width(deviation) * pixel_size), determined=int(known.shape[1]),
        axis=numbers(undetermined) if known.shape[1] == 2 else None,
        explained=float(1 - np.sum(left ** 2) / np.sum(at_centre ** 2)),
        displacement_widths_angstrom=numbers(left * pixel_size))


def hinge_within(covariance: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The hinge (3,) among the points spanned by the columns of ``known`` (3, k); see motion_prior.hinge."""
    point, normal = hinge(covariance)
    within = known.T @ normal
    solved: np.ndarray = known @ np.linalg.solve(within @ known, within @ point)
    return solved


def half_width(deviations: np.ndarray) -> np.ndarray:
    """Standard deviation (k,) of each column of (n, k) by its central 68 %: a ratio has long tails."""
    low, high = np.percentile(deviations, (15.87, 84.13), axis=0)
    width: np.ndarray = 0.5 * (high - low)
    return width


def excess_kurtosis(z: np.ndarray) -> float:
    """⟨(z − ⟨z⟩)⁴⟩ / ⟨(z − ⟨z⟩)²⟩² − 3 of z (n,); 0 of fewer than 200 particles, or if they do not move."""
    if len(z) < LEAST_FOR_PEAKS or np.ptp(z) == 0:
        return 0.0
    centred = z - z.mean()
    return float(np.mean(centred ** 4) / np.mean(centred ** 2) ** 2 - 3)


def signed_peaks(z: np.ndarray) -> List[float]:
    """Places of the peaks of the density of z (n,), as advice.peaks_of finds them; the far 0.5 % are left out."""
    if len(z) < LEAST_FOR_PEAKS or np.ptp(z) == 0:
        return []
    low, high = np.percentile(z, (0.5, 99.5))
    return [low + place for place in peaks_of(z[(z >= low) & (z <= high)] - low)]


# ---------------------------------------------------------------- words

def motion_words(motion: PrincipalMotion) -> List[str]:
    """Sentences on one motion: how far, about which point, and what the input was off by on average."""
    rotation = widths_in_words(motion.rotation_widths_deg, "°")
    shift = widths_in_words(motion.displacement_widths_angstrom, " Å")
    if is_still(motion):
        return [still_words(motion, f"learned: {rotation} of rotation, {shift} of the mask's centre")]
    words = [f"Motion learned from the particles (standard deviations along its axes): {rotation} of rotation, "
             f"{shift} of the centre of the mask"]
    if motion.hinge is not None:
        words.append(hinge_words(motion.hinge))
    turned, moved = np.linalg.norm(motion.mean_rotation_deg), np.linalg.norm(motion.mean_displacement_angstrom)
    if motion.mean_chi2 > SIGNIFICANT and (turned > MEAN_DEG or moved > MEAN_ANGSTROM):
        words.append(f"On average the particles turned by {turned:.1f}° and moved by {moved:.1f} Å: the sub-volume of "
                     "the new map is turned and moved by as much from that of the old map")
    return words


def is_still(motion: PrincipalMotion) -> bool:
    """Whether the images show no motion."""
    return motion.rotation_widths_deg[0] < STILL_DEG and motion.displacement_widths_angstrom[0] < STILL_ANGSTROM


def still_words(motion: PrincipalMotion, learned: str) -> str:
    """That nothing moves, and how much would be seen."""
    text = f"The images show no motion of the sub-volume against its input poses ({learned})"
    if motion.excluded_rotation_deg is None or motion.excluded_displacement_angstrom is None:
        return (f"{text}. The input poses were kept: either the sub-volume does not move by itself, or its density is "
                "too small to show it")
    return (f"{text}. They would show a motion of {motion.excluded_rotation_deg:.1f}° or "
            f"{motion.excluded_displacement_angstrom:.1f} Å per axis: the density in the mask, as a whole, does not "
            "move by as much against its input poses. The input poses were kept")


def widths_in_words(widths: Sequence[float], unit: str) -> str:
    first, second, third = (f"{v:.1f}" for v in widths)
    return f"{first}, {second} and {third}{unit}"


def hinge_words(found: HingeSummary) -> str:
    """Where the hinge is."""
    at = ", ".join(f"{v:.1f}" for v in found.point_px)
    error = " × ".join(f"{v:.0f}" for v in found.error_angstrom)
    share = f"turning about it explains {100 * max(found.explained, 0):.0f} % of the variance of the displacement"
    if found.determined == 3:
        return f"Hinge: {at} px from the corner of the box (± {error} Å in x, y, z); {share}"
    if found.axis is not None:
        along = ", ".join(f"{v:+.2f}" for v in found.axis)
        return (f"Hinge: an axis along ({along}) through {at} px from the corner of the box (± {error} Å in x, y, z); "
                f"where on the axis is not determined; {share}")
    return "Hinge: not determined; the particles turn too little"


# ---------------------------------------------------------------- for the engine

def learned_hinge(summary: MotionSummary, box_size: int) -> Optional[Hinge]:
    """The pooled hinge (px from the box centre), or None if the motion does not tell one."""
    found = summary.pooled.hinge
    if found is None or not found.known:
        return None
    return Hinge(np.array(found.point_px) - box_size // 2, found.explained)


def motion_advice(summary: MotionSummary, resolved: ResolvedSettings) -> Dict[str, str]:
    """Sentences by topic on a motion that one Gaussian does not describe, or that the search cut off."""
    both = summary.pooled
    said = {f"{what} shape": shape_advice(what, both.peaks[what], both.excess_kurtosis[what])
            for what in ("rotation", "displacement")}
    said["junk"] = junk_advice(both.junk_share)
    shifts = both.displacement_widths_angstrom if both.hinge is None else both.hinge.displacement_widths_angstrom
    said["rotation width"] = width_advice("rotation", both.rotation_widths_deg[0], resolved.rotation_extent_deg, "°")
    said["shift width"] = width_advice("shift", shifts[0], resolved.shift_extent_angstrom, " Å")
    return {topic: sentence for topic, sentence in said.items() if sentence}


def shape_advice(what: str, peaks: Sequence[float], kurtosis: float) -> str:
    """Two peaks along the first principal axis, or one that is flat."""
    remedy = "Classify the particles first, without alignment, and refine each class"
    if len(peaks) > 1:
        places = " and ".join(f"{peak:+.1f}" for peak in peaks[:2])
        return (f"the {what} along its main axis has two peaks, at {places} standard deviations. There are probably "
                f"two states instead of one continuous motion. {remedy}")
    if kurtosis < FLAT:
        return (f"the {what} along its main axis is flatter than a Gaussian (excess kurtosis {kurtosis:.1f}). There "
                f"may be several states. {remedy}")
    return ""


def junk_advice(share: float) -> str:
    """Many particles that did not move as the others."""
    if share < MUCH_JUNK:
        return ""
    return (f"{100 * share:.0f} % of the particles are spread over the whole search, outside the motion of the others. "
            "They may be damaged, or in a rare state. Classify them separately")


def width_advice(what: str, width: float, extent: float, unit: str) -> str:
    """The learned width fills the search."""
    if width * WIDTHS_IN_EXTENT <= extent:
        return ""
    return (f"the learned {what} (standard deviation {width:.2g}{unit}) fills the search, which ends at "
            f"{extent:.3g}{unit}. Widen the {what} search extent, or the prior it starts from")
