"""How the masks of several bodies lie on the particle: what they share, and what none of them covers."""
from __future__ import annotations

from dataclasses import replace
from typing import List, Sequence

import numpy as np

from ..align.static_part import outline_of
from ..io.mrc import read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, load_iteration
from ..records.bodies import Bodies

MUCH = 0.5  # of a body's density in other masks; 24 % on the set mid, by soft edges, did no harm to the poses
LEAST_TOLD = 0.02


def layout_of(runs: Sequence[RunFolder], workers: int) -> Bodies:
    """Of prepared runs with the same particles and half-maps."""
    given = load_input(runs[0])
    maps = [read_map(runs[0].reference(0, half))[0] for half in (1, 2)]  # low-passed
    resolution = load_iteration(runs[0], 0).resolution_angstrom["unmasked"]
    density = density_of(0.5 * (maps[0] + maps[1]), given.pixel_size, resolution, workers)
    return shares_of(density, [read_map(run.mask)[0] for run in runs])


def density_of(volume: np.ndarray, pixel_size: float, resolution_angstrom: float, workers: int) -> np.ndarray:
    """The density (N, N, N) ≥ 0 of the particle: what the map shows inside its outline."""
    return np.clip(volume, 0, None) * outline_of(volume, pixel_size, resolution_angstrom, workers)


def shares_of(density: np.ndarray, masks: Sequence[np.ndarray]) -> Bodies:
    """Shares of a density (N, N, N) in soft masks (N, N, N): of body k in other masks it is Σ ρ min(m_k, max_{j≠k} m_j)
    / Σ ρ m_k."""
    total = float(np.sum(density, dtype=np.float64))
    own, common = [], []
    for k, mask in enumerate(masks):
        others = np.max([other for j, other in enumerate(masks) if j != k], axis=0)
        inside = float(np.sum(density * mask, dtype=np.float64))
        own.append(inside / total)
        common.append(float(np.sum(density * np.minimum(mask, others), dtype=np.float64)) / inside)
    covered = np.max(masks, axis=0)
    rest = float(np.sum(density * (1 - covered), dtype=np.float64)) / total
    return Bodies(tuple(own), tuple(common), rest)


def layout_words(found: Bodies) -> Bodies:
    """With sentences."""
    words: List[str] = []
    warnings: List[str] = []
    for k, (share, common) in enumerate(zip(found.density_share, found.shared_with_others), 1):
        text = f"body {k} holds {100 * share:.0f} % of the density of the particle"
        if common > LEAST_TOLD:
            text += f"; {100 * common:.0f} % of that lie in masks of other bodies, too"
        words.append(text)
        if common > MUCH:
            warnings.append(f"body {k} shares {100 * common:.0f} % of its density with others. What belongs to one "
                            "rigid part pulls at the poses of both. Draw the masks so that their soft edges meet")
    if found.rest_share > LEAST_TOLD:
        words.append(f"{100 * found.rest_share:.0f} % of the density lie outside of all masks and are not refined. The "
                     "composite shows the input map there")
    return replace(found, words=tuple(words), warnings=tuple(warnings))
