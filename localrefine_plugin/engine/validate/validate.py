"""Validation of a finished run: what must not be found is looked for, and each finding gets its expected range."""
from __future__ import annotations

from dataclasses import replace
from typing import Optional, Tuple

import numpy as np

from ..control.rest_control import rest_control
from ..control.words import STILL
from ..finish.report import build_report
from ..finish.selection import kept_of
from ..io.run_folder import RunFolder
from ..io.run_store import load_poses, load_report, save_record
from ..kernels.device import choose_device
from ..kernels.host import measured, worker_count
from ..maps.fsc import FscCurves, first_below, resolution_at, standard_error
from ..maps.half_maps import HalfMaps, RandomPhases, read_half_maps, region_of
from ..maps.mask import dense_region
from ..merge.advice import advise_on_validation
from ..model.fourier import forward, inverse
from ..model.pixels import shell_of_resolution
from ..model.pose import project
from ..progress import say
from ..records.errors import InputError
from ..records.iteration import FSC_THRESHOLD
from ..records.poses import PoseTable
from ..records.resolved import ResolvedSettings
from ..records.results import NullTest, Validation
from ..workers.selftest import ensure_tested
from .null_tests import (
    FinishedRun,
    common_shift,
    disagreement,
    load_finished,
    noise_only,
    with_other_reference,
    without_detail,
)

SIGMAS = 3.0
BEYOND = 1.5  # phases are random beyond this many times the resolution
EDGE_SHELLS = 2  # after the first random one: the mask mixes neighbouring shells
LOWPASS_EDGE_SHELLS = 2.0  # width of the edge of the initial low-pass
EMPTY = 0.01  # of a mask may lie on density for the place to count as empty
ELSEWHERE = 6.0  # χ² per degree of freedom, of five: one in 70,000 by chance
FEW = 0.025  # of the particles: see the table of docs/explanation/null-tests.md
SHARED = "the half-sets share images, or noise in them"
DRIFT = 0.25  # of the resolution


def validate(run: str, device: str = "auto", threads: int = 0) -> Validation:
    """Put a finished run through all tests; writes RUN/final/validation.json and the report anew, and returns it.

    Everything in between stays in memory: a test that is killed leaves the run as it was.

    Raises
    ------
    InputError : the run is not finished, or files of it or its particles are gone.
    """
    folder = RunFolder(run)
    if not folder.results_complete():
        raise InputError("is not finished", f"run {run}", "run the verb finish first")
    chosen = choose_device(device)
    ensure_tested(chosen)
    with measured() as cost:
        finished = load_finished(folder, chosen, worker_count(threads))
        say(f"validating iteration {finished.iteration} on {chosen.description}")
        tests = (pure_noise(finished), random_phases(finished), empty_place(finished), other_reference(finished),
                 common_drift(finished), rest_of_the_particle(finished))
    found = Validation(finished.iteration, finished.seed, tests,
                       tuple(len(finished.index[half]) for half in (1, 2)), tuple(advise_on_validation(tests)))
    for test in tests:
        outcome = "not done" if test.passed is None else "as expected" if test.passed else "NOT AS EXPECTED"
        say(f"{outcome}: {test.title}: {test.verdict}")
    save_record(folder.final("validation.json"), found, cost)
    save_record(folder.report, replace(build_report(folder), files=load_report(folder).files))
    return found


def judged(name: str, title: str, value: float, low: float, high: Optional[float], unit: str,
           verdicts: Tuple[str, str]) -> NullTest:
    """A test whose value must not exceed ``high``; without that, a resolution in Å that must not be below ``low``.
    ``verdicts``: what is said if it passes, and if not."""
    passed = bool(value >= low if high is None else value <= high)
    return NullTest(name, title, float(value), float(low), None if high is None else float(high), unit, passed,
                    verdicts[0] if passed else verdicts[1])


# ---------------------------------------------------------------- the tests

def pure_noise(finished: FinishedRun) -> NullTest:
    """The resolution that noise reaches: no finer than the initial low-pass, which is all the references share."""
    curves = noise_only(finished)
    length = curves.box_size * curves.pixel_size
    lowpass = finished.align_resolution(0)
    edge = int(np.ceil(length / lowpass + LOWPASS_EDGE_SHELLS))
    reached, finest = noise_resolution(curves, edge), length / edge
    extent = f"to {reached:.1f} Å" if reached < length else "nowhere"
    found = f"with noise of the same spectrum for images the half-maps agree {extent}"
    return judged("pure_noise", "Noise instead of images", reached, finest, None, "Å", (
        f"{found}, no finer than the initial low-pass of {lowpass:.1f} Å",
        f"{found}, beyond the initial low-pass of {lowpass:.1f} Å: {SHARED}"))


def noise_resolution(curves: FscCurves, edge: int) -> float:
    """Å at FSC 0.143; beyond shell ``edge`` only what is above it by three standard errors counts: in a small mask
    the FSC of noise crosses 0.143 anywhere."""
    sure = curves.corrected - SIGMAS * curves.corrected_error
    sure[:edge + 1] = 1.0
    if first_below(sure, FSC_THRESHOLD) == edge + 1:
        return max(curves.resolutions()["corrected"], curves.box_size * curves.pixel_size / edge)
    return resolution_at(sure, FSC_THRESHOLD, curves.box_size, curves.pixel_size)


def random_phases(finished: FinishedRun) -> NullTest:
    """FSC where there is nothing to find (Chen et al. 2013, doi:10.1016/j.ultramic.2013.06.004)."""
    first, band = randomised_band(finished)
    maps = without_detail(finished, first)
    halves = HalfMaps(maps[0], maps[1], finished.workers)
    masked = halves.under(finished.mask)
    by_mask = RandomPhases(halves, first, region_of(finished.mask), finished.seed).under(finished.mask)
    value, error = masked[band].mean(), band_error(masked, finished.mask, band)
    high = max(0.0, by_mask[band].mean()) + SIGMAS * error
    found = (f"with random phases beyond {angstrom(finished, first)} the FSC from there to "
             f"{angstrom(finished, band.stop - 1)} is {value:.3f} (the mask alone gives {by_mask[band].mean():.3f})")
    return judged("random_phases", "Random phases at high resolution", value, -SIGMAS * error, high, "FSC",
                  (f"{found}: noise alone gives no correlation", f"{found}: {SHARED}"))


def empty_place(finished: FinishedRun) -> NullTest:
    """FSC of the run's half-maps in the same mask where there is no density."""
    title = "The mask in an empty place"
    halves = read_half_maps(finished.folder, finished.iteration, finished.workers)
    dense = dense_region(halves, finished.curves.pixel_size)
    moved, share = emptiest_place(finished.mask, dense)
    if share > EMPTY:
        return NullTest("empty_place", title, None, 0.0, 0.0, "FSC", None,
                        f"the box has no empty place as large as the mask ({100 * share:.0f} % of it would lie on "
                        "density at best)")
    _, band = randomised_band(finished)
    curve = halves.under(moved)
    value, error = curve[band].mean(), band_error(curve, moved, band)
    found = (f"where there is no density the FSC from {angstrom(finished, band.start)} to "
             f"{angstrom(finished, band.stop - 1)} is {value:.3f} in the same mask")
    return judged("empty_place", title, value, -SIGMAS * error, SIGMAS * error, "FSC",
                  (f"{found}: the mask alone gives no correlation", f"{found}: {SHARED}"))


def other_reference(finished: FinishedRun) -> NullTest:
    """Poses by the own and by the other half's reference: the noise of the images is in both, that of the references
    is not, so that perfect references give 0 and a reference as uncertain as an image gives 2. Each particle counts as
    in the map: images of noise go anywhere, and are not in it."""
    centre = finished.resolved.mask_centre_offset(finished.curves.box_size)
    pairs = [with_other_reference(finished, half) for half in (1, 2)]
    chi2 = np.concatenate([disagreement(own, other, centre) for own, other in pairs])
    counts = np.concatenate([counts_of(own, finished.resolved) for own, _ in pairs])
    value = float(np.average(chi2 > ELSEWHERE, weights=counts if counts.any() else None))
    found = (f"aligned to the other half-set's reference, {100 * value:.1f} % of the particles go elsewhere"
             f"{'' if (counts == 1).all() else ', counted as in the map'} (the rest "
             f"differ by {chi2[chi2 <= ELSEWHERE].mean():.2f} times their predicted variance)")
    probabilities = [own.probability_aligned for own, _ in pairs if own.probability_aligned is not None]
    if finished.resolved.selects and len(probabilities) == len(pairs):
        # each half-set by itself, as in the run
        kept = np.concatenate([kept_of(of_half, finished.resolved) for of_half in probabilities])
        found += of_those_kept(chi2 > ELSEWHERE, kept) if kept.any() else ""
    return judged("other_reference", "The other half-set's reference", value, 0.0, FEW, "of the particles", (
        f"{found}: poses depend on the images, not on the noise of the reference",
        f"{found}: poses follow the noise of their own reference, which is overfitting"))


def counts_of(poses: PoseTable, resolved: ResolvedSettings) -> np.ndarray:
    """How much each particle (n,) counts in the map."""
    judged = resolved.weight_by_probability and poses.probability_aligned is not None
    return np.asarray(poses.probability_aligned) if judged else np.ones(len(poses))


def of_those_kept(elsewhere: np.ndarray, kept: np.ndarray) -> str:
    """What share of the particles kept goes elsewhere, and of as many drawn at random with its standard error
    √(p (1 − p) (1/m − 1/n)), from ``elsewhere`` and ``kept``, both (n,) bool."""
    share, count = elsewhere.mean(), int(kept.sum())
    error = np.sqrt(share * (1 - share) * (1 / count - 1 / len(kept)))
    return (f"; counted alike, of those that the selection keeps {100 * elsewhere[kept].sum() / count:.1f} %, of "
            f"as many at random {100 * share:.1f} ± {100 * error:.1f} %")


def common_drift(finished: FinishedRun) -> NullTest:
    """How far the sub-volume as a whole has moved from the input, root mean square over a ball of the mask's radius:
    √(|g|² + ⅖ ρ² |θ|²) for a displacement g of its centre and a rotation θ."""
    pixel_size, resolved = finished.curves.pixel_size, finished.resolved
    centre = resolved.mask_centre_offset(finished.curves.box_size)
    found = [load_poses(finished.folder, finished.iteration, half) for half in (1, 2)]
    tables = [table for table in found if table is not None]
    row, rotation, shift, turned = (np.concatenate([getattr(table, name) for table in tables])
                                    for name in ("row", "rotation", "shift_px", "rotation_change_deg"))
    before, shift_before = finished.particles.rotation[row], finished.particles.shift_px[row]
    moved = shift + project(rotation, centre) - shift_before - project(before, centre)
    g = pixel_size * np.linalg.norm(common_shift(before, moved))
    angle = np.linalg.norm(turned.mean(axis=0))
    radius = resolved.mask_radius_angstrom
    value = np.hypot(g, np.sqrt(0.4) * radius * np.deg2rad(angle))
    words = f"the sub-volume as a whole has turned by {angle:.1f}° and moved by {g:.1f} Å from where the input had it"
    remedy = "fit models and masks to the new map, and check that nothing was re-centred without a prior"
    return judged("common_drift", "Drift common to both half-sets", value, 0.0,
                  DRIFT * finished.curves.resolutions()["corrected"], "Å", (words, f"{words}: {remedy}"))


def rest_of_the_particle(finished: FinishedRun) -> NullTest:
    """The verdict of the control that the verb finish has made; made here for a run of an older version."""
    control = load_report(finished.folder).rest_control
    if control is None:
        control, _ = rest_control(finished.folder, finished.iteration, finished.device, finished.workers)
    title, low = "The rest of the particle", STILL * finished.curves.resolutions()["corrected"]
    passed = {"apart": True, "still": True, "consensus": False, "mixed": False}.get(control.verdict)
    return NullTest("rest", title, None if passed is None else control.displacement_angstrom, low, None, "Å moved",
                    passed, control.sentence)  # the advice is that of the run


# ---------------------------------------------------------------- what they measure with

def randomised_band(finished: FinishedRun) -> Tuple[int, slice]:
    """The first shell with random phases, and the shells to look at: from two further to the resolution."""
    curves = finished.curves
    resolution = curves.resolutions()["corrected"]
    last = int(shell_of_resolution(resolution, curves.box_size, curves.pixel_size))
    first = int(np.ceil(shell_of_resolution(BEYOND * resolution, curves.box_size, curves.pixel_size)))
    return first, slice(first + EDGE_SHELLS, max(last, first + EDGE_SHELLS) + 1)


def angstrom(finished: FinishedRun, shell: int) -> str:
    return f"{finished.curves.box_size * finished.curves.pixel_size / shell:.1f} Å"


def band_error(curve: np.ndarray, mask: np.ndarray, band: slice) -> float:
    """Standard error of the mean of a curve (N // 2 + 1,) over a band of shells.

    A mask of volume V blurs the transform over about N / ∛V shells: so many neighbours count as one.
    """
    error = standard_error(curve, mask)[band]
    together = len(mask) / np.cbrt(mask.sum(dtype=np.float64))
    return float(np.sqrt(np.mean(np.square(error)) * min(1.0, together / len(error))))


def emptiest_place(mask: np.ndarray, dense: np.ndarray) -> Tuple[np.ndarray, float]:
    """The mask turned and moved, all of it in the box, to where the least of it lies on density; and how much does.

    Turned by 0, 120 or 240° about the diagonal of the box; all whole shifts by one correlation each.
    """
    best: Tuple[np.ndarray, float] = (mask, np.inf)
    target = forward(dense)
    for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        turned = np.ascontiguousarray(np.transpose(mask, axes))
        share = inverse(np.conj(forward(turned)) * target, mask.shape) / turned.sum(dtype=np.float64)
        inside = np.full(mask.shape, np.inf, np.float32)
        inside[np.ix_(*(possible_shifts(turned, axis) for axis in range(3)))] = 0
        share += inside
        place = np.unravel_index(int(share.argmin()), share.shape)
        if share[place] < best[1]:
            best = np.roll(turned, place, axis=(0, 1, 2)), max(float(share[place]), 0.0)
    return best


def possible_shifts(mask: np.ndarray, axis: int) -> np.ndarray:
    """Shifts along an axis, modulo N, that keep all of the mask in the box."""
    n = mask.shape[axis]
    used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    return np.arange(-used[0], n - used[-1]) % n
