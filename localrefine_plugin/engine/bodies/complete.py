"""The half-maps of a body of a run of several masks, with what was taken out of its images put back.

Images are inserted without the other bodies (align/other_bodies.py). So the map B_k of a body lacks what the others
have in its mask. Each half-map gets it back from the half-maps of the others, of the same half-set:

    C_k = B_k + Σ_j μ_jk∘(m_j B_j),

with m_j the mask of body j and μ_jk the mean of its particles' motion against the poses of body k
(motion/motion_prior.py). So the map of a body shows the particle at the mean relative pose, as a composite does, and
nothing is missing where masks meet. μ is the same for both half-maps, as a mask is.
"""
from __future__ import annotations

from typing import List, Optional

import numpy as np

from ..io.mrc import read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input
from .finished import Body, body_of
from .relative import mean_motion_of
from .rigid import RigidPart


def completed_half_maps(run: RunFolder) -> Optional[List[np.ndarray]]:
    """C_k of both halves (N, N, N), of the iteration that the results are of; None where no bodies were subtracted.

    Raises InputError where another body has no refined poses yet.
    """
    if not load_input(run).subtracted_bodies:
        return None
    body = body_of(run)
    maps = [half_map(body, half).copy() for half in (1, 2)]
    for other in map(body_of, body.subtracted_bodies):
        motion = mean_motion_of(other, body).mean
        mask = read_map(other.run.mask_in_use(other.iteration))[0]
        for half, volume in enumerate(maps, 1):
            volume += RigidPart(half_map(other, half), mask, other.centre).moved(motion[:3], motion[3:])
    return maps


def half_map(body: Body, half: int) -> np.ndarray:
    return read_map(body.run.half_map(body.iteration, half))[0]
