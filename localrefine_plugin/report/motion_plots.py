"""The picture of a learned motion: a pure function of arrays and of MotionSummary."""
from __future__ import annotations

import textwrap
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure

from ..engine.records.motion import HingeSummary, MotionSummary
from .map_plots import outline, slice_of
from .plots import BLACK, HALF_COLOURS, VERMILION, finish_axes, new_figure, percent_weights
from .pose_plots import LINE

PLANES = ((0, "xy", (0, 1)), (1, "xz", (0, 2)), (2, "yz", (1, 2)))  # array axis cut, name, coordinates shown
SPAN = 4.0  # standard deviations shown of the motion along an axis


def motion_figure(history: Sequence[Tuple[int, MotionSummary]], density: np.ndarray, mask: Optional[np.ndarray],
                  along_axes: Dict[int, np.ndarray], pixel_size: float,
                  fulcrum_px: Optional[Sequence[float]] = None) -> Figure:
    """Principal widths over the iterations, the motion along its main axes, and the hinge on slices of the map.

    Parameters
    ----------
    history : (iteration, its "motion") in order, the last one to be shown.  density, mask : [z, y, x].
    along_axes : of each half-set (n, 2), the motion of each particle along the first axis of rotation and of
        displacement, in standard deviations.   fulcrum_px : x, y, z from the corner of the box.
    """
    iteration, motion = history[-1]
    figure = new_figure(f"Motion learned from the particles, iteration {iteration}", height=6.4)
    (rotation, shift, shape), lower = figure.subplots(2, 3)
    draw_widths(rotation, history, "rotation_widths_deg", "Rotation s.d. (°)")
    draw_widths(shift, history, "displacement_widths_angstrom", "Mask centre s.d. (Å)")
    draw_shape(shape, along_axes)
    hinge = motion.pooled.hinge
    shown = hinge.point_px if hinge is not None and hinge.known else fulcrum_px
    centre = [n // 2 for n in density.shape] if shown is None else [
        int(np.clip(round(float(v)), 0, n - 1)) for v, n in zip(reversed(list(shown)), density.shape)]
    for axes, plane in zip(lower, PLANES):
        draw_slice(axes, plane, density, mask, centre)
        if hinge is not None and hinge.known:
            mark_hinge(axes, plane[2], hinge, pixel_size)
        if fulcrum_px is not None:
            axes.plot(*(fulcrum_px[i] for i in plane[2]), "x", color=BLACK, mec="white", ms=7, mew=1.5)
    said = list(motion.words) + ["Red: hinge and ± 2 s.d., a line where it is open; x: fulcrum; blue: mask"]
    figure.supxlabel("\n".join(textwrap.fill(text, LINE) for text in said), fontsize=8.5)
    return figure


def draw_widths(axes: Any, history: Sequence[Tuple[int, MotionSummary]], key: str, label: str) -> None:
    """Three principal widths of each half-set with their errors."""
    for half, colour in HALF_COLOURS.items():
        halves = [(k, motion.of_half(half)) for k, motion in history]
        found = [(k, motion) for k, motion in halves if motion is not None]
        if not found:
            continue
        k = np.array([k for k, _ in found]) + 0.05 * (2 * half - 3)
        values, errors = (np.array([getattr(m, name) for _, m in found]) for name in (key, key + "_error"))
        for i in range(3):
            axes.errorbar(k, values[:, i], errors[:, i], color=colour, lw=1.4, ls="-" if half == 1 else "--",
                          marker="o", ms=3, label=f"Half-set {half}" if i == 0 else None)
    axes.set_ylim(bottom=0)
    axes.set_xticks([k for k, _ in history])
    finish_axes(axes, "Iteration", label)
    axes.legend(fontsize=7, frameon=False, loc="lower left")


def draw_shape(axes: Any, along_axes: Dict[int, np.ndarray]) -> None:
    """Both halves together along the first axis of rotation and of displacement, over a normal distribution."""
    edges = np.linspace(-SPAN, SPAN, 41)
    middle = 0.5 * (edges[1:] + edges[:-1])
    joined = np.concatenate(list(along_axes.values())) if along_axes else np.zeros((0, 2))
    for column, (name, style) in enumerate((("Rotation", "-"), ("Displacement", ":"))):
        values = np.clip(joined[:, column], -SPAN, SPAN)
        axes.hist(values, bins=edges, weights=percent_weights(values), histtype="step", lw=1.6, ls=style,
                  color=VERMILION, label=name)
    normal = np.exp(-0.5 * middle ** 2) / np.sqrt(2 * np.pi) * (edges[1] - edges[0])
    axes.plot(middle, 100 * normal, color=BLACK, lw=1, label="Gaussian")
    axes.set_ylim(top=1.5 * axes.get_ylim()[1])
    finish_axes(axes, "Main axis (s.d.)", "Particles (%)")
    axes.legend(fontsize=7, frameon=False, loc="upper left")


def draw_slice(axes: Any, plane: Tuple[int, str, Tuple[int, int]], density: np.ndarray, mask: Optional[np.ndarray],
               centre: Sequence[int]) -> None:
    axis, name, _ = plane
    low, high = np.percentile(density, [1, 99.8])
    axes.imshow(slice_of(density, axis, centre), cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-9))
    if mask is not None and mask.shape == density.shape:
        outline(axes, slice_of(mask, axis, centre))
    axes.set_xlim(-0.5, density.shape[2 - min(plane[2])] - 0.5)
    axes.set_ylim(-0.5, density.shape[2 - max(plane[2])] - 0.5)
    axes.set_autoscale_on(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(name, fontsize=9)


def mark_hinge(axes: Any, shown: Tuple[int, int], hinge: HingeSummary, pixel_size: float) -> None:
    """Two standard deviations about the point, or a line along the axis on which it is open."""
    angle = np.linspace(0, 2 * np.pi, 73)
    x, y = (hinge.point_px[i] for i in shown)
    wide, high = (max(2 * hinge.error_angstrom[i] / pixel_size, 0.5) for i in shown)
    axes.plot(x + wide * np.cos(angle), y + high * np.sin(angle), color=VERMILION, lw=1.4)
    axes.plot(x, y, "+", color=VERMILION, ms=10, mew=1.8)
    if hinge.axis is not None:
        along = np.array([hinge.axis[i] for i in shown])
        reach = 1000 * np.array([-1, 1])
        axes.plot(x + reach * along[0], y + reach * along[1], color=VERMILION, lw=1.2)
