"""Images on another grey scale than the others, which no optics group tells apart.

Sessions that were normalised in two ways, or not at all, differ in the grey values of noise and signal alike. The noise
of one image tells its scale to a few per cent. Images of one scale become a group of their own, with its own noise and
grey scale, so that they count as the others do.
"""
from __future__ import annotations

from dataclasses import replace
from typing import List, Tuple

import numpy as np

from ..records.particles import Particles

GREY_SCALES_ALIKE = 1.3  # factor within which images keep their own grey scale; that of an optics group, too
FEWEST = 5  # images of one grey scale
GAP = 2.0


def split_by_level(particles: Particles, level: np.ndarray, star: str) -> Tuple[Particles, List[str]]:
    """The particles with an optics group more for each further cluster of noise levels (n,) in a group; and what is
    said of it."""
    optics, number, said = list(particles.optics), particles.optics_group.copy(), []
    for g, group in enumerate(particles.optics):
        rows = np.flatnonzero((particles.optics_group == g) & (particles.half_set > 0) & (level > 0))
        clusters = clusters_of(level[rows])
        if len(clusters) < 2:
            continue
        largest = max(clusters, key=len)
        for cluster in clusters:
            if cluster is largest:
                continue
            ratio = float(np.median(level[rows[cluster]]) / np.median(level[rows[largest]]))
            number[rows[cluster]] = len(optics)
            optics.append(replace(group, name=f"{group.name} × {ratio:.3g}", grey_scale=group.grey_scale * ratio))
            shown = ", ".join(str(row + 1) for row in np.sort(rows[cluster])[:3])
            said.append(f"{star}: {len(cluster)} of {len(level)} images (rows {shown}, …) have {ratio:.3g} times the "
                        "grey values of the others, by their noise. They are scaled as a group of their own. Check "
                        "that all particles are normalised in the same way")
    return replace(particles, optics=tuple(optics), optics_group=number), said


def clusters_of(level: np.ndarray) -> List[np.ndarray]:
    """Index (m,) of each cluster of positive values (n,): they are split at their largest gap, as long as it is empty
    over GAP standard deviations of either side, and the medians of the sides differ by GREY_SCALES_ALIKE."""
    order, logs = np.argsort(level, kind="stable"), np.sort(np.log(level))
    gaps = np.diff(logs)[FEWEST - 1:len(logs) - FEWEST]
    if not len(gaps):
        return [order]
    end = int(gaps.argmax()) + FEWEST
    low, high = logs[:end], logs[end:]
    if (np.median(high) - np.median(low) < np.log(GREY_SCALES_ALIKE)
            or logs[end] - logs[end - 1] < GAP * max(low.std(), high.std())):
        return [order]
    return [part[cluster] for part in (order[:end], order[end:]) for cluster in clusters_of(level[part])]
