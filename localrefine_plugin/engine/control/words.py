"""The verdict of the control by the rest of the particle, and the sentences that say it."""
from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import numpy as np

from ..records.results import RestControl

# All measured: docs/explanation/rest-as-control.md.
FOLLOWED = 0.85  # of the motion of the part that moves most: less of it, and the resolution may be that of the rest
STILL = 0.16  # of the resolution: a displacement that images of rigid particles show as well
SMALL = 0.27  # of the resolution: the same, where the parts seem not to move alike


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
                f"{found.sentence}. Images of a rigid particle show as much. Either the domain does not move, or the "
                "mask holds too much of the rest, and then the resolution is that of the rest and the domain is "
                "blurred. Look at the domain in the map, and draw a mask of the domain alone")
    if found.verdict == "mixed":
        return (f"about {100 * (found.still_share or 0):.0f} % of the density in this mask does not move with the "
                f"domain, and the poses follow it in part. {found.sentence}. The resolution is too good for the "
                "domain. final/moving_part.mrc is a mask about what moves: check it, and refine again with it or with "
                "a mask of the domain alone")
    return ""


def moved_by(widths: Sequence[float], unit: str) -> str:
    """r.m.s. of the widths along the principal axes."""
    return f"{float(np.sqrt(np.mean(np.square(widths)))):.1f}{unit}"
