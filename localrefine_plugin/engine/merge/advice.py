"""What a run says about itself afterwards: pure functions from its records to sentences in the words of the field.

Every function returns one sentence, or "" when there is nothing to say. `advise` collects them by topic.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence

import numpy as np

from ..maps.fsc import FscCurves
from ..motion.prior_shapes import prior_shape
from ..records.iteration import IterationRecord
from ..records.resolved import ResolvedSettings
from ..records.results import NullTest
from .hinge import Hinge

MANY_AT_LIMIT = 0.1  # of the particles; a Gaussian cut at three s.d. per axis has 3 %
WORSE = 1.02  # ratio of resolutions: FSC curves of half-sets cross 0.143 with an error of about 1 %
DRIFT_ITERATIONS = 3
DRIFT_GROWTH = 1.05
PLATEAU = 0.8  # of the shells before: signal falls by more, shared noise does not
FSC_FLOOR = 0.1  # mean FSC of the last shells of noise is 0 ± 0.02 in any box worth refining
LAST_SHELLS = 0.1  # of all shells
GRID_POINTS = 256
PILE = 0.97  # of the greatest change: beyond is the limit of the search
VALLEY = 0.6  # of the lower peak: deeper than the noise of hundreds of particles
LEAST_IN_PEAK = 0.1  # of the particles
LEAST_FOR_PEAKS = 200  # particles
MANY_NOT_ALIGNED = 0.03  # of the particles; on good sets it is below 0.005
HINGE_EXPLAINS = 0.25  # of the displacement
LEAST_CHANGE = 1.0  # degrees, or Å: changes that differ by less give no reason to change anything


@dataclass(frozen=True)
class PoseChanges:
    """Changes of particles from the input: rotation (n, 3) in degrees, shift (n, 2) in Å, both of the fulcrum;
    and the share of particles at the limit of each search."""

    rotation_deg: np.ndarray
    shift_angstrom: np.ndarray
    at_rotation_limit: float
    at_shift_limit: float


def advise(motions: PoseChanges, hinge: Hinge, curves: FscCurves, history: Sequence[IterationRecord],
           resolved: ResolvedSettings) -> Dict[str, str]:
    """Sentences by topic on the state of a run after its last iteration.

    Parameters
    ----------
    history : of all iterations, the input first.  resolved : of input.json.
    """
    has_prior = prior_shape(resolved.prior).pulls
    rotation_extent = f"{resolved.rotation_extent_deg:.3g}°"
    shift_extent = f"{resolved.shift_extent_angstrom:.3g} Å"
    said = {
        "rotation limit": at_limit(motions.at_rotation_limit, "rotation", rotation_extent, has_prior),
        "shift limit": at_limit(motions.at_shift_limit, "shift", shift_extent, has_prior),
        "rotation peaks": two_peaks(np.linalg.norm(motions.rotation_deg, axis=1), "rotation", "°"),
        "shift peaks": two_peaks(np.linalg.norm(motions.shift_angstrom, axis=1), "shift", " Å"),
        "fulcrum": far_fulcrum(motions, hinge, resolved, curves.box_size),
        "resolution": worse_than_input(history, resolved),
        "fsc": fsc_does_not_fall(curves),
        "drift": drifting(history, resolved),
    }
    return {topic: sentence for topic, sentence in said.items() if sentence}


def at_limit(share: float, what: str, extent: str, has_prior: bool) -> str:
    """Many particles at the limit of the search."""
    if share <= MANY_AT_LIMIT:
        return ""
    remedy = "use a larger mask" if has_prior else "use a prior or a larger mask"
    return (f"{100 * share:.0f} % of the particles are at the limit of the {what} search ({extent}). If they really "
            f"move further, widen the {what} search extent. If they cannot be aligned well, {remedy}")


def two_peaks(values: np.ndarray, what: str, unit: str) -> str:
    """Two peaks in the histogram of changes (n,) ≥ 0."""
    peaks = peaks_of(values)
    if len(peaks) < 2 or peaks[1] - peaks[0] < LEAST_CHANGE:
        return ""
    places = " and ".join(f"{peak:.2g}{unit}" for peak in peaks[:2])
    return (f"the histogram of {what} changes has two peaks, at {places}. Some of the particles found another optimum, "
            "or there are two conformations. Check the fulcrum and the search extents, or classify the particles")


def peaks_of(values: np.ndarray) -> List[float]:
    """Places of the peaks of the density of values (n,) ≥ 0 that are parted by a true valley and hold enough particles.

    A Gaussian kernel of Silverman's width, reflected at 0. What sits at the very end, which is the limit of the
    search for those who reached it, is left out: that has its own sentence.
    """
    values = np.asarray(values, dtype=np.float64)
    values = np.sort(values[values < PILE * values.max(initial=0.0)])
    if len(values) < LEAST_FOR_PEAKS or values[-1] == 0:  # nothing moved: images that tell nothing
        return []
    low, high = np.percentile(values, (25, 75))
    width = max(0.9 * min(values.std(), (high - low) / 1.34) * len(values) ** -0.2, 1e-9)
    grid = np.linspace(0, values[-1], GRID_POINTS)
    counts = np.bincount(np.rint(values / grid[1]).astype(int), minlength=GRID_POINTS)
    offset = np.arange(GRID_POINTS) * grid[1]
    kernel = np.exp(-0.5 * ((offset[:, None] - offset) / width) ** 2) + np.exp(
        -0.5 * ((offset[:, None] + offset) / width) ** 2)
    density = kernel @ counts
    kept: List[int] = []
    start = 0
    for place in (i for i in range(GRID_POINTS) if density[i] == density[max(i - 1, 0):i + 2].max()):
        valley = kept[-1] + int(np.argmin(density[kept[-1]:place + 1])) if kept else 0
        parted = kept and density[valley] < VALLEY * min(density[kept[-1]], density[place])
        smaller = min(counts[start:valley].sum(), counts[valley:].sum())
        if not kept or (parted and smaller > LEAST_IN_PEAK * len(values)):
            start = valley
            kept.append(place)
        elif density[place] > density[kept[-1]]:
            kept[-1] = place
    return [float(grid[i]) for i in kept]


def verdict_advice(not_aligned: float, empty: float, resolved: ResolvedSettings) -> Dict[str, str]:
    """Many particles that probably do not show the sub-volume where it was looked for; by topic."""
    if not_aligned < MANY_NOT_ALIGNED:
        return {}
    counted = "They count less in the map" if resolved.weight_by_probability else "They count in full in the map"
    return {"verdict": (
        f"about {100 * not_aligned:.0f} % of the particles do not show the sub-volume at the pose that was found "
        f"({100 * empty:.0f} % of all look like noise). {counted}. Look at some of them (lowest lrProbabilityAligned "
        f"in particles.star). If they are ice or broken particles, go on without them ('Keep particles with "
        "probability ≥ 0.5' makes a set of the others). If they are good particles, their input poses are wrong: "
        "refine all particles globally first, or classify them")}


def far_fulcrum(motions: PoseChanges, hinge: Hinge, resolved: ResolvedSettings, box_size: int) -> str:
    """The fulcrum moves further than the rotation moves the surface of the sub-volume."""
    rotation = float(np.median(np.linalg.norm(motions.rotation_deg, axis=1)))
    shift = float(np.median(np.linalg.norm(motions.shift_angstrom, axis=1)))
    if shift <= max(np.deg2rad(rotation) * resolved.mask_radius_angstrom, LEAST_CHANGE):
        return ""
    text = f"the shifts are large ({shift:.1f} Å) and the rotations small ({rotation:.1f}°, medians)"
    if hinge.explained < HINGE_EXPLAINS or np.abs(hinge.point).max() > box_size:
        return text + (". The sub-volume shifts rather than turns. The input may be poorly centred, or the mask too "
                       "small: check both")
    at = ", ".join(f"{v:.0f}" for v in hinge.point + box_size // 2)
    return (text + f". The fulcrum is probably far from the hinge. The poses put the hinge near {at} px from the "
            f"corner of the box, which explains {100 * hinge.explained:.0f} % of the shifts. Set the fulcrum there")


def worse_than_input(history: Sequence[IterationRecord], resolved: ResolvedSettings) -> str:
    """No iteration reached the resolution of the input in the same mask."""
    if len(history) < 2 or resolved.mask_mode != "static":
        return ""
    given, *found = (record.resolution_angstrom["corrected"] for record in history)
    if min(found) <= WORSE * given:
        return ""
    return (f"the resolution of {min(found):.1f} Å is worse than the {given:.1f} Å of the input half-maps in the same "
            "mask. The poses probably got worse. Use a prior or a narrower one, a larger mask, or a finer initial "
            "low-pass")


def fsc_does_not_fall(curves: FscCurves) -> str:
    """The FSC at the end of the box: what a sharp mask, shared noise and large pixels leave there.

    A sharp mask correlates with itself: the FSC of random phases is as high. Shared noise is in all of the box and in
    every shell: the unmasked FSC stays where it is. Signal that the pixels cut off falls with every shell.
    """
    count = max(3, int(LAST_SHELLS * len(curves.tight)))
    last, before = slice(-count - 1, -1), slice(-2 * count - 1, -count - 1)  # the very last shell may be cut off
    unmasked, tight, random = (float(np.mean(c[last])) for c in (curves.unmasked, curves.tight, curves.randomised))
    if max(unmasked, tight) <= FSC_FLOOR:
        return ""
    text = f"the FSC does not fall to zero (mean {max(unmasked, tight):.2f} in the last shells). "
    if tight > unmasked and random > 0.5 * tight:
        return text + "The mask causes this: it is too sharp, or it follows noise. Give it a wider soft edge"
    if unmasked > FSC_FLOOR and unmasked > PLATEAU * float(np.mean(curves.unmasked[before])):
        return text + "The unmasked FSC stays at one level: the half-sets share particles or noise. Look for duplicates"
    return (f"the resolution is limited by the pixel size: the FSC is still {max(unmasked, tight):.2f} near Nyquist "
            f"({2 * curves.pixel_size:.2f} Å). Particles with smaller pixels may show more")


def drifting(history: Sequence[IterationRecord], resolved: ResolvedSettings) -> str:
    """With re-centring on, the median change from the input grows in every one of the last iterations."""
    for switch, key, what in (("recenter_rotations", "rotation_median_deg", "rotation"),
                              ("recenter_shifts", "shift_median_angstrom", "shift")):
        changes = [getattr(record.pose_change, key) for record in history[-DRIFT_ITERATIONS:] if record.pose_change]
        if getattr(resolved, switch) and len(changes) == DRIFT_ITERATIONS and all(
                later > DRIFT_GROWTH * earlier for earlier, later in zip(changes, changes[1:])):
            listed = ", ".join(f"{c:.2g}" for c in changes)
            return (f"the median {what} from the input grows with every iteration ({listed}), and re-centring is on. "
                    "The poses drift. Switch re-centring off, or use a prior")
    return ""


def advise_on_validation(tests: Sequence[NullTest]) -> List[str]:
    """What to do about null tests that did not come out as expected."""
    failed = {test.name: test for test in tests if test.passed is False}
    said = []
    if any(name in failed for name in ("pure_noise", "random_phases", "empty_place")):
        said.append("the half-maps correlate where there is no common signal, so the resolution is too good. Look for "
                    "particles that are in both half-sets, remove them, and repeat the consensus refinement")
    if "other_reference" in failed:
        share = failed["other_reference"].value or 0.0
        said.append(f"{100 * share:.0f} % of the particles follow the noise of their reference. Use a learned or "
                    "narrower prior, narrower search extents, or a larger mask. Until then, report the resolution "
                    "expected against the true structure")
    return said
