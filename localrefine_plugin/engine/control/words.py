"""The verdict of the control by the rest of the particle, and the sentences that say it."""
from __future__ import annotations

from dataclasses import replace
from typing import List, Optional, Sequence, Tuple

import numpy as np

from ..records.results import PartOfMask, RestControl

# All measured: docs/explanation/rest-as-control.md.
FOLLOWED = 0.85  # of the motion of the part that moves most: less of it, and the resolution may be that of the rest
STILL = 0.16  # of the resolution: a displacement that images of rigid particles show as well
SMALL = 0.27  # of the resolution: the same, where the parts seem not to move alike
PULLED = 0.36  # of the resolution: the same, of a mask that is said to be apart
SURE = 3.0  # standard errors: a part that moves; one of eight that rest shows as much in a hundredth of the runs
LEAST_MOTION = 0.1  # of the resolution: less may be what the model leaves out (rigidity.py)
QUIET, QUIET_TOGETHER = 2.5, 2.0  # the same: the part that moves most, and all together, of a mask that rests
DIFFERS, WARNED = 1.05, 1.1  # times the resolution to report: a part that is less resolved
HALVES = float(np.sqrt(2 * np.log(2)) / (2 * np.pi))  # of the resolution: a displacement that halves amplitudes there


def judged(found: RestControl, resolution: float) -> RestControl:
    """The record with its verdict and its sentences; ``resolution`` of the half-maps, Å."""
    assert found.displacement_angstrom is not None and found.followed is not None
    moved = found.displacement_angstrom / resolution
    if moved < STILL:
        seen = found.detectable_angstrom is not None and found.detectable_angstrom < STILL * resolution
        verdict = "consensus" if seen else "unclear"
    elif found.followed >= FOLLOWED:
        verdict = "apart"
    else:
        verdict = "consensus" if moved < SMALL else "mixed"
    found = replace(found, verdict=verdict, still_share=found.still_share if verdict == "mixed" else None)
    found = replace(found, sentence=sentence(found))
    return replace(found, advice=advice(found))


def in_question(found: RestControl, resolution: float) -> bool:
    """Whether a rigid particle may have the verdict: then the parts of the mask are asked at the poses of the rest."""
    assert found.displacement_angstrom is not None
    return found.verdict in ("consensus", "mixed") or (
        found.verdict == "apart" and found.displacement_angstrom < PULLED * resolution)


def with_parts_at_rest(found: RestControl, parts: Sequence[PartOfMask], particles: int,
                       resolution: float) -> RestControl:
    """The record with what the parts of the mask say at the poses of the rest. If none of them moves, and a motion that
    halves the amplitudes at the ``resolution`` would have been seen (two standard errors), *consensus* and *apart* are
    *still*, and *mixed*, of which more may be wrong, is *consensus*."""
    variance, error, _ = columns_of(parts)
    quiet = (variance / error).max() < QUIET and together(parts) < QUIET_TOGETHER
    rests = quiet and seen_from(parts) < HALVES * resolution
    if found.verdict != "consensus" and not rests:
        return found
    was, verdict = found.verdict, "still" if rests and found.verdict != "mixed" else "consensus"
    found = replace(found, verdict=verdict, parts=tuple(parts), parts_particles=particles,
                    still_share=still_share(parts))
    if verdict == "consensus":
        return replace(found, advice=of_a_pulled_mask(found) if was == "mixed" else advice(found))
    return replace(found, sentence=f"{sentence(found)}. {of_still_parts(found)}", advice="")


def still_share(parts: Sequence[PartOfMask]) -> Optional[float]:
    """Share of the density that does not move with the part that is surest to move; None where none is sure to."""
    variance, error, share = columns_of(parts)
    surest = (variance / error).argmax()
    if variance[surest] < SURE * error[surest]:
        return None
    return float(share @ np.maximum(1 - np.sqrt(np.maximum(variance, 0) / variance[surest]), 0))


def columns_of(parts: Sequence[PartOfMask]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variance, its error, and share, each (C,)."""
    return (np.array([part.variance_angstrom2 for part in parts]),
            np.array([part.variance_error_angstrom2 for part in parts]), np.array([part.share for part in parts]))


def together(parts: Sequence[PartOfMask]) -> float:
    """How many standard errors the motion of all parts is, if each counts alike."""
    variance, error, _ = columns_of(parts)
    return float((variance / error).sum() / np.sqrt(len(parts)))


def blurring(found: RestControl) -> np.ndarray:
    """Å² (C,) per axis by which each part is blurred in the map: what is sure of it; where only all of them
    together are sure to move against the poses found, the mean."""
    variance, error, _ = columns_of(found.parts)
    sure = variance >= SURE * error
    if sure.any() or found.verdict not in ("apart", "mixed") or together(found.parts) < SURE:
        return np.where(sure, variance, 0.0)
    return np.full(len(variance), (variance / error ** 2).sum() / (error ** -2.0).sum())


def with_what_is_left_out(error: np.ndarray, resolution: float) -> np.ndarray:
    """Errors (C,) of variances, Å², at which a displacement of LEAST_MOTION is not sure however many images there
    are."""
    result: np.ndarray = np.hypot(error, (LEAST_MOTION * resolution) ** 2 / SURE)
    return result


def seen_from(parts: Sequence[PartOfMask]) -> float:
    """Å per axis: the displacement of a part whose variance is two standard errors, in the median."""
    return float(np.sqrt(2 * np.median([part.variance_error_angstrom2 for part in parts])))


def moving(parts: Sequence[PartOfMask]) -> List[PartOfMask]:
    return [part for part in parts if part.variance_angstrom2 >= SURE * part.variance_error_angstrom2]


def most(parts: Sequence[PartOfMask]) -> str:
    """How far the part moves that moves most."""
    part = max(parts, key=lambda one: one.variance_angstrom2)
    moved = float(np.sqrt(part.variance_angstrom2))
    return f"{moved:.1f} ± {0.5 * part.variance_error_angstrom2 / moved:.1f} Å"


def of_quiet_parts(found: RestControl) -> str:
    return (f"At the poses of the rest no part of the mask moves: {found.parts_particles} images would show "
            f"{seen_from(found.parts):.1f} Å per axis in half of {len(found.parts)} parts")


def of_still_parts(found: RestControl) -> str:
    return f"{of_quiet_parts(found)}. The domain does not move, and the resolution stands"


def of_a_pulled_mask(found: RestControl) -> str:
    return (f"it is not known whether the domain moves by itself. {found.sentence}. But the rest, which lies over the "
            f"mask in the images, can pull at it by as much. {of_quiet_parts(found)}. {of_moving_parts(found)}. Look "
            "at the domain in the map, and draw a mask of the domain alone")


def of_moving_parts(found: RestControl) -> str:
    """Of a consensus refinement."""
    parts = moving(found.parts)
    if not parts:
        return ("Either the domain does not move, or the mask holds too much of the rest, and then the resolution is "
                "that of the rest and the domain is blurred")
    share = 100 * sum(part.share for part in parts)
    return (f"But a part of the mask ({share:.0f} % of its density) moves by {most(parts)} per axis against the rest: "
            f"about {100 * (found.still_share or 0):.0f} % of the density in this mask does not move with the domain. "
            "The resolution is that of the rest, and the domain is blurred")


def of_parts_before(parts: Sequence[PartOfMask]) -> str:
    """Of a sample that was aligned before a run."""
    still = still_share(parts)
    if still is None:
        return (f"no part of the mask is seen to move against the rest of the particle ({seen_from(parts):.1f} Å per "
                "axis would be seen in half of its parts)")
    share = 100 * sum(part.share for part in moving(parts))
    return (f"{share:.0f} % of the density in the mask is sure to move against the rest of the particle (by up to "
            f"{most(parts)} per axis), and about {100 * still:.0f} % does not move with it")


def by_part(found: RestControl, resolutions: np.ndarray, resolution: float) -> RestControl:
    """The record with the resolution (Å) of each part; and those that 10, 50 and 90 % of the density reach, if the last
    is coarser than the ``resolution`` to report by a twentieth."""
    order = np.argsort(resolutions, kind="stable")
    reached = np.cumsum(np.array([part.share for part in found.parts])[order]) / sum(p.share for p in found.parts)
    tenths = tuple(float(resolutions[order[int(np.searchsorted(reached, share - 1e-9))]]) for share in (0.1, 0.5, 0.9))
    parts = tuple(replace(part, resolution_angstrom=float(r)) for part, r in zip(found.parts, resolutions))
    found = replace(found, parts=parts)
    if tenths[-1] < DIFFERS * resolution:
        return found
    found = replace(found, resolution_by_part_angstrom=tenths)
    if found.verdict != "apart" or tenths[-1] < WARNED * resolution:
        return found
    share = 100 * sum(part.share for part in parts if (part.resolution_angstrom or 0) >= WARNED * resolution)
    return replace(found, advice=(
        f"the mask does not move as one. {share:.0f} % of the density in it moves against the poses found, by up to "
        f"{most(parts)} per axis, and reaches about {max(resolutions):.1f} Å. final/resolution_by_part.mrc shows "
        "where. Refine again with a mask of what moves together"))


def sentence(found: RestControl) -> str:
    assert found.motion is not None and found.moving is not None
    text = (f"Against the rest of the particle the mask moves by {moved_by(found.motion.rotation_widths_deg, '°')} and "
            f"{moved_by(found.motion.displacement_widths_angstrom, ' Å')} (r.m.s. per axis), its density by "
            f"{found.displacement_angstrom:.2f} ± {found.displacement_error_angstrom:.2f} Å")
    if found.verdict == "unclear":
        return text + (f". So few images would not show less than {found.detectable_angstrom:.1f} Å: whether the mask "
                       "moves by itself is not known")
    return text + (f"; the half of its density that moves most moves by "
                   f"{moved_by(found.moving.rotation_widths_deg, '°')} and "
                   f"{moved_by(found.moving.displacement_widths_angstrom, ' Å')}, of which the poses found hold "
                   f"{100 * (found.followed or 0):.0f} ± {100 * (found.followed_error or 0):.0f} %")


def advice(found: RestControl) -> str:
    if found.verdict == "consensus":
        return ("the poses found in the mask are those of the rest of the particle: this was a consensus refinement. "
                f"{found.sentence}. Images of a rigid particle show as much. {of_moving_parts(found)}. Look at the "
                "domain in the map, and draw a mask of the domain alone")
    if found.verdict == "mixed":
        return (f"about {100 * (found.still_share or 0):.0f} % of the density in this mask does not move with the "
                f"domain, and the poses follow it in part. {found.sentence}. The resolution is too good for the "
                "domain. final/moving_part.mrc is a mask about what moves: check it, and refine again with it or with "
                "a mask of the domain alone")
    return ""


def moved_by(widths: Sequence[float], unit: str) -> str:
    """r.m.s. of the widths along the principal axes."""
    return f"{float(np.sqrt(np.mean(np.square(widths)))):.1f}{unit}"
