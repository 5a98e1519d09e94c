"""A complex with two hinges, made of beads by rule: a core (A) and two domains (B and C) that move.

No coordinates of a real protein are used. A has about 165 kDa, B 82 kDa, C 66 kDa. B and C lie on the core's surface,
110° apart; each turns about the point where it touches the core. Å from the centre of mass.
"""
from __future__ import annotations

import numpy as np

from .helices import ball
from .phantom import Model

RESIDUES = 25  # of a helix
APART = np.deg2rad(110.0)
TO_B, TO_C = np.array([0.0, 0.0, 1.0]), np.array([np.sin(APART), 0.0, np.cos(APART)])
BALLS = (np.zeros(3), 28.5, 60), (54 * TO_B, 22.5, 30), (47 * TO_C, 21.0, 24)  # middle, radius of centres, helices
HINGE_B, HINGE_C = 30 * TO_B, 27 * TO_C
SEED = 20


def model() -> Model:
    rng = np.random.default_rng(SEED)
    parts = [ball(rng, middle, radius, helices, RESIDUES) for middle, radius, helices in BALLS]
    position = np.concatenate(parts)
    body = np.repeat(np.arange(3), [len(part) for part in parts])
    centre = position.mean(axis=0)
    return Model(position - centre, np.ones(len(position)), body == 1, HINGE_B - centre, body == 2,
                 HINGE_C - centre)
