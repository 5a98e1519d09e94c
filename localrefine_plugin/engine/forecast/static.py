"""Whether what is in the mask moves against the rest of the particle, asked of a sample before the run.

Density that does not move with the domain counts in a forecast as the domain's, as it does in the FSC of a run. The
control at the end of a run (control/) finds it out, and does so after one alignment as well, where there is signal: it
is given the sample as a run of one iteration. Where there is little, the parts of the mask tell.
"""
from __future__ import annotations

from typing import Sequence

from ..control.parts import before_a_run
from ..control.words import of_parts_before, seen_from, still_share
from ..io.run_folder import RunFolder
from ..kernels.device import Device
from ..progress import say
from ..records.results import PartOfMask, RestControl

DOUBT = ("The sample does not show that all of the density in this mask moves against the rest of the particle. Either "
         "the domain does not move, or the mask holds too much of the rest: then the domain will be known less well "
         "than the forecast says")
TOO_MUCH = 0.4  # of the density in the mask that stays with the rest; near a hinge a domain moves little as well


def doubt(run: RunFolder, device: Device, workers: int) -> str:
    """DOUBT and what the parts of the mask say, or "" where the mask moves by itself, or where that cannot be told.
    ``run``: of the sample, after its first iteration."""
    control, parts = before_a_run(run, device, workers)
    if control.verdict == "not done":
        say(control.sentence)
    if parts is None:
        return DOUBT if control.doubtful else ""
    if not (control.doubtful or contradicted(control, parts)):
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
