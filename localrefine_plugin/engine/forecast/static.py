"""Whether what is in the mask moves against the rest of the particle, asked of a sample before the run.

Density that does not move with the domain counts in a forecast as the domain's, as it does in the FSC of a run. The
control at the end of a run (control/) finds it out, and so it does of a sample. Where there is little signal, the
motion that was learned, and the parts of the mask, tell.
"""
from __future__ import annotations

from typing import Sequence

from ..control.parts import before_a_run
from ..control.words import of_parts_before, seen_from, still_share
from ..io.run_folder import RunFolder
from ..kernels.device import Device
from ..merge.merge import motion_of
from ..merge.motion_report import is_still
from ..progress import say
from ..records.results import PartOfMask, RestControl
from .sample import ITERATIONS

DOUBT = ("The sample does not show that all of the density in this mask moves against the rest of the particle. Either "
         "the domain does not move, or the mask holds too much of the rest: then the domain will be known less well "
         "than the forecast says")
TOO_MUCH = 0.45  # of the density in the mask that stays with the rest; near a hinge a domain moves little as well:
# .30 to .36 in nine sets of one domain, .40 and .42 in two with 30 % of noise, .54 and .50 in masks of much else


def doubt(run: RunFolder, device: Device, workers: int) -> str:
    """DOUBT and what the parts of the mask say, or "" where the mask moves by itself, or where that cannot be told.
    ``run``: of the sample, after ITERATIONS."""
    control, parts = before_a_run(run, ITERATIONS, device, workers)
    if control.verdict == "not done":
        say(control.sentence)
    motion = motion_of(run, ITERATIONS)
    doubtful = control.doubtful or (motion is not None and is_still(motion.pooled))
    if parts is None:
        return DOUBT if doubtful else ""
    if not (doubtful or contradicted(control, parts)):
        return ""
    return f"{DOUBT}. By its parts, {of_parts_before(parts)}"


def contradicted(control: RestControl, parts: Sequence[PartOfMask]) -> bool:
    """Whether the parts, which are asked at the poses of the rest, say that too much of the mask stays with it, or do
    not show a motion that they would show.

    With little signal an alignment of a rigid particle makes as much motion as there is in one that moves: 2.6 and
    2.7 Å at SNR .02.
    """
    share = still_share(parts)
    if share is not None:
        return share > TOO_MUCH
    return seen_from(parts) < (control.displacement_angstrom or 0.0)
