"""When a refinement stops, and which of its iterations is the result."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from ..motion.prior_shapes import prior_shape
from ..records.iteration import IterationRecord
from ..records.resolved import ResolvedSettings

STILL_SHELLS = 0.5  # no gain: less than half a shell …
STILL_ITERATIONS = 2  # … in this many iterations in a row
FIRST_SHELLS = 1.0
OVERSHOT = 0.5
STILL_SIGMA = 0.2  # median change of the rotation, in posterior s.d.

CONVERGED = "converged: resolution and poses changed less than their noise in two iterations"
LOST = ("the half-maps no longer agree on anything inside the mask; use a prior, a larger mask, or more particles")
AT_MOST = "maximum number of iterations"


@dataclass(frozen=True)
class Decision:
    """``converged``: nothing is to be gained by another iteration, or by any (``stop_reason`` says which, or "")."""

    best_iteration: int
    converged: bool
    stop_reason: str


def overshot(record: IterationRecord, before: IterationRecord) -> bool:
    """Whether a half-set of an iteration shows less than OVERSHOT of the motion that was learned before."""
    if record.motion is None or before.motion is None:
        return False
    for half in (1, 2):
        now, last = record.motion.of_half(half), before.motion.of_half(half)
        if now is None or last is None:
            continue
        for name in ("rotation_widths_deg", "displacement_widths_angstrom"):
            if np.linalg.norm(getattr(now, name)) < OVERSHOT * np.linalg.norm(getattr(last, name)):
                return True
    return False


def decide(history: Sequence[IterationRecord], resolved: ResolvedSettings, box_angstrom: float) -> Decision:
    """Best iteration so far, and whether to stop. ``history``: from the input (0) on.

    Best = the last one whose resolution is not half a shell worse than the finest: by less than that resolutions differ
    by chance, while poses go on improving (blm of docs/explanation/motion-prior.md: 2.04° in iteration 3, 1.68° in 6,
    both 6.00 Å). The first iteration of a learned prior is made with the wide prior that learning starts from. It
    must be finer by FIRST_SHELLS more: poses that follow noise blur both half-maps alike (a 90 kDa domain at SNR .03:
    half-maps 10.6 and 11.0 Å, truth 10.9 and 9.7 Å in iterations 1 and 3). And no iteration is the result, if there is
    another, whose own images show less than half of the motion that the one before it had learned: its poses were free
    to follow noise (77 nucleotides that do not move, SNR .03: poses 0.9° off in iteration 2, and 0.3° after it).

    Converged = the corrected resolution gained less than half a shell in each of the last two iterations and the median
    rotation since the last is below 0.2 posterior s.d. Lost = the half-maps agree on nothing finer than the mask:
    references made of that would hold nothing, and empty maps correlate by chance.
    """
    shells = np.array([box_angstrom / record.resolution_angstrom["corrected"] for record in history])
    judged = shells.copy()
    if prior_shape(resolved.prior).learns and len(shells) > 2:
        judged[1] -= FIRST_SHELLS
    founded = np.array([k > 0 and not overshot(history[k], history[k - 1]) for k in range(len(history))])
    founded[1] &= bool(founded[2:].all())  # it was free to follow noise further
    if founded.any():
        judged[~founded] = -np.inf
    best = int(np.flatnonzero(judged > judged[1:].max() - STILL_SHELLS)[-1])
    n = len(history) - 1
    if box_angstrom / shells[-1] > 2 * resolved.mask_radius_angstrom:
        return Decision(best, True, LOST)
    gained = shells[-STILL_ITERATIONS:] - shells[:-STILL_ITERATIONS].max() if n > STILL_ITERATIONS else np.inf
    change = history[-1].pose_change
    if change is not None and np.all(gained < STILL_SHELLS) and change.rotation_since_last_median_sigma < STILL_SIGMA:
        return Decision(best, True, CONVERGED)
    return Decision(best, False, AT_MOST if n >= resolved.max_iterations else "")
