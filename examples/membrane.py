"""A membrane protein in a micelle, made of beads by rule: twelve helices and a soluble domain that moves.

No coordinates of a real protein are used. Body A is the transmembrane part (about 37 kDa) in its micelle, body B the
soluble domain (about 50 kDa), which turns about the point where it joins. Å from the centre of mass.
"""
from __future__ import annotations

from typing import List

import numpy as np

from .helices import ball, helix
from .phantom import Model

MEMBRANE_HELICES, MEMBRANE_RESIDUES, HELIX_SPACING = 12, 28, 9.5  # 336 residues
DOMAIN_HELICES, DOMAIN_RESIDUES, DOMAIN_RADIUS = 18, 25, 19.0  # 450 residues
DOMAIN_HEIGHT, JOINT_HEIGHT = 52.0, 27.0  # of the centre of body B, and of the hinge
MICELLE_RADIUS, MICELLE_HALF_HEIGHT, MICELLE_SPACING, BUNDLE_HOLE = 44.0, 22.0, 4.0, 21.0
MICELLE_WEIGHT = 0.35  # of a bead: two fifths of the protein's density
SEED = 8


def membrane_part(rng: np.random.Generator) -> np.ndarray:
    """Helices on a sunflower's spiral, which keeps them apart, tilted by up to 15°."""
    beads: List[np.ndarray] = []
    for i in range(MEMBRANE_HELICES):
        angle, distance = 2.39996 * i, 0.57 * HELIX_SPACING * np.sqrt(i + 0.5)
        tilt = np.append(np.tan(np.deg2rad(rng.uniform(-15, 15, 2))) / np.sqrt(2), 1.0)
        beads.append(helix(distance * np.array([np.cos(angle), np.sin(angle), 0]), tilt, MEMBRANE_RESIDUES,
                           rng.uniform(0, 2 * np.pi)))
    return np.concatenate(beads)


def micelle() -> np.ndarray:
    """Points of a grid in a flattened ball around the bundle, outside it: smooth at the resolution of the beads."""
    axis = np.arange(-MICELLE_RADIUS, MICELLE_RADIUS + 1, MICELLE_SPACING)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    across = np.hypot(points[:, 0], points[:, 1])
    inside = (across / MICELLE_RADIUS) ** 2 + (points[:, 2] / MICELLE_HALF_HEIGHT) ** 2 < 1
    return points[inside & (across > BUNDLE_HOLE)]


def model() -> Model:
    rng = np.random.default_rng(SEED)
    parts = membrane_part(rng), micelle(), ball(rng, np.array([0, 0, DOMAIN_HEIGHT]), DOMAIN_RADIUS, DOMAIN_HELICES,
                                                DOMAIN_RESIDUES)
    position = np.concatenate(parts)
    weight = np.concatenate([np.ones(len(parts[0])), np.full(len(parts[1]), MICELLE_WEIGHT), np.ones(len(parts[2]))])
    in_body_b = np.arange(len(position)) >= len(parts[0]) + len(parts[1])
    centre = np.average(position, axis=0, weights=weight)
    return Model(position - centre, weight, in_body_b, np.array([0, 0, JOINT_HEIGHT]) - centre)
