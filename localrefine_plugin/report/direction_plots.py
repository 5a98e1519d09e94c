"""Picture of the directions of a map: pure function of arrays, as in plots.py."""
from __future__ import annotations

from typing import Any, Dict, Tuple

import numpy as np
from matplotlib.figure import Figure

from ..engine.records.iteration import FSC_THRESHOLD
from ..engine.records.results import Directions
from .plots import BLACK, BLUE, GREY, VERMILION, finish_axes, new_figure

MARKER_AREA = 14


def direction_figure(arrays: Dict[str, np.ndarray], found: Directions, box_size: int, pixel_size: float) -> Figure:
    """Views at every direction, resolution in cones, and the FSC curves of the cones.

    Parameters
    ----------
    arrays : of RUN/final/directions.npz.
    """
    figure = new_figure(f"Directions: cFAR {found.cfar:.2f}, SCF* {found.scf_star:.2f}", height=5.6)
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 2))
    left, middle, right = (figure.add_subplot(part) for part in (grid[0, 0], grid[0, 1], grid[1, :]))
    views, places = arrays["views"], arrays["sampling_directions"]
    dots = half_sphere(left, places, views / max(views.mean(), 1e-9), "viridis", (0.0, 2.0))
    figure.colorbar(dots, ax=left, label="views, times the mean", shrink=0.9)
    resolution, cones = arrays["cone_resolution_angstrom"], arrays["cone_directions"]
    unseen = views[np.abs(cones @ places.T).argmax(axis=1)] == 0
    dots = half_sphere(middle, cones, np.where(unseen, np.nan, resolution), "viridis_r",
                       (float(resolution.min()), float(np.percentile(resolution, 99))))
    figure.colorbar(dots, ax=middle, label="resolution in a cone (Å)", shrink=0.9)
    if unseen.any():
        middle.set_title("grey: seen by no particle", fontsize=8)
    curves = arrays["cone_curves"][:, 1:]
    frequency = np.arange(1, curves.shape[1] + 1) / (box_size * pixel_size)
    low, high = np.percentile(curves, (5, 95), axis=0)
    right.fill_between(frequency, low, high, color=GREY, alpha=0.35, lw=0, label="5 to 95 % of the cones")
    right.plot(frequency, curves.mean(axis=0), color=BLACK, lw=1.4, label="Mean")
    for which, colour, label in ((resolution.argmin(), BLUE, "Best"), (resolution.argmax(), VERMILION, "Worst")):
        right.plot(frequency, curves[which], color=colour, lw=1.2, label=label)
    right.axhline(FSC_THRESHOLD, color=GREY, lw=1)
    right.set_ylim(-0.1, 1.05)
    finish_axes(right, "Spatial frequency (1/Å)", "FSC in the mask")
    right.legend(fontsize=7, frameon=False, loc="upper right")
    return figure


def half_sphere(axes: Any, directions: np.ndarray, values: np.ndarray, colours: str,
                limits: Tuple[float, float]) -> Any:
    """Half of the sphere from above (+z), areas kept; the other half is its mirror image through the centre. Values
    that are no number are grey."""
    radius = np.sqrt(2 * (1 - directions[:, 2])) / np.maximum(np.hypot(directions[:, 0], directions[:, 1]), 1e-9)
    across, up, known = directions[:, 0] * radius, directions[:, 1] * radius, np.isfinite(values)
    size = MARKER_AREA * 2000 / len(values)
    axes.scatter(across[~known], up[~known], color=GREY, s=size, lw=0, alpha=0.4)
    dots = axes.scatter(across[known], up[known], c=values[known], cmap=colours, vmin=limits[0],
                        vmax=max(limits[1], limits[0] + 1e-6), s=size, lw=0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("x", fontsize=8)
    axes.set_ylabel("y", fontsize=8)
    axes.set_frame_on(False)
    return dots
