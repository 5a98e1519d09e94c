"""Particles that come from a local refinement: what their images say of their poses."""
from __future__ import annotations

from typing import List

from ..io.relion_particles import ParticleTable

UNCERTAINTY_LABELS = ("lrRotationUncertainty", "lrShiftUncertainty")
"""Columns that a run adds to its particles (finish/results.py)."""


def refined_before(table: ParticleTable, star: str) -> List[str]:
    """A warning of half-maps that may be of the same refinement.

    Measured with 688 particles of SNR .08, refined again in the same mask: a motion of 0.1° was said to be excluded, of
    poses whose stated error was 1.3°.
    """
    if not set(UNCERTAINTY_LABELS) <= set(table.particles.labels):
        return []
    return [f"{star}: these particles were refined locally before (column {UNCERTAINTY_LABELS[0]}). If the half-maps "
            "are of that refinement, each image agrees with its own noise in them. In the same mask the poses then "
            "hardly change, and 'no motion' says nothing of their errors. Another mask is refined as usual"]
