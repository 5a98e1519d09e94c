"""Where the search of an image begins, and what it is limited to: from its input pose and the last one."""
from __future__ import annotations

from typing import Optional, Tuple

import numpy as np

from ..model.pose import log_map, project
from ..motion.motion_prior import precision_of
from ..records.particles import Particles
from ..records.poses import PoseTable
from .prior import PosePrior
from .search_plan import SearchPlan


def pose_prior(plan: SearchPlan, rotation0: np.ndarray) -> PosePrior:
    """The prior and the limits of n images whose search is centred on rotation0 (n, 3, 3)."""
    n = len(rotation0)
    precision = np.zeros((n, 5, 5))
    if plan.motion_covariance is not None:
        precision = precision_of(plan.motion_covariance, rotation0)
    return PosePrior(rotation0, precision, np.zeros((n, 5)), plan.prior_point - plan.centre,
                     plan.fulcrum - plan.centre, plan.rotation_extent, plan.shift_extent, plan.prior.tails)


def search_centre(particles: Particles, previous: Optional[PoseTable], plan: SearchPlan,
                  index: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """(R0, t0) the search is centred on: the input pose, or the last one where re-centring is on.

    With only rotations re-centred the projected fulcrum stays where the input pose has it.
    """
    rotation, shift = particles.rotation[index], particles.shift_px[index]
    if previous is None or not (plan.recenter_rotations or plan.recenter_shifts):
        return rotation, shift
    turned = previous.rotation[index] if plan.recenter_rotations else rotation
    at_fulcrum = shift + project(rotation, plan.fulcrum)
    if plan.recenter_shifts:
        at_fulcrum = previous.shift_px[index] + project(previous.rotation[index], plan.fulcrum)
    return turned, at_fulcrum - project(turned, plan.fulcrum)


def known_start(previous: Optional[PoseTable], rotation0: np.ndarray, u0: np.ndarray, plan: SearchPlan,
                index: np.ndarray) -> Optional[Tuple[np.ndarray, np.ndarray]]:
    """The last iteration's poses as (w, u)."""
    if previous is None:
        return None
    rotation = previous.rotation[index]
    w = log_map(np.swapaxes(rotation0, 1, 2) @ rotation)
    return w, previous.shift_px[index] + project(rotation, plan.centre) - u0


def unsettled(previous: Optional[PoseTable], index: np.ndarray) -> np.ndarray:
    """Who needs the grid again (n,): everyone at first, then those that kept more than one mode.

    Measured on `mid`: grid for all in every iteration takes twice the time, same poses within 0.02°.
    """
    return np.ones(len(index), bool) if previous is None else previous.modes[index] > 1
