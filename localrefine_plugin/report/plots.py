"""Pictures of a run: pure functions from records (dicts and arrays) to matplotlib Figures.

The same figure goes into a window, a PNG and the HTML report. Nothing here reads files, opens windows
or touches pyplot. Colours are those of Okabe and Ito, told apart with any colour vision
(https://jfly.uni-koeln.de/color/); a figure is readable at 600 px width.
"""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure

from ..engine.records.iteration import FSC_CURVES, FSC_THRESHOLD, STANDARD_ERROR, IterationRecord

BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"
SKY, GREY, BLACK = "#56b4e9", "#8c8c8c", "#000000"
HALF_COLOURS = {1: BLUE, 2: ORANGE}

STYLES = {"unmasked": (GREY, "-"), "spherical": (SKY, "--"), "loose": (GREEN, "-."), "tight": (ORANGE, "-"),
          "corrected": (BLUE, "-")}
CORRECTED, ERROR = FSC_CURVES[-1].label, STANDARD_ERROR.label
NICE_RESOLUTIONS = (100, 50, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.7, 2.4, 2.2, 2, 1.8, 1.6, 1.4, 1.2, 1)
WIDTH, HEIGHT, DPI = 6.4, 4.4, 100


def new_figure(title: str, width: float = WIDTH, height: float = HEIGHT) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure


def message_figure(title: str, text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = new_figure(title)
    axes = figure.add_subplot()
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", va="center", wrap=True, fontsize=11)
    return figure


def finish_axes(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(alpha=0.25)


def number(value: Any) -> Optional[float]:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


def shortened(name: str, length: int = 28) -> str:
    """A run name that fits into a legend."""
    return name if len(name) <= length else name[:length - 1] + "…"


def percent_weights(values: np.ndarray) -> np.ndarray:
    return np.full(len(values), 100.0 / max(1, len(values)))


# ---------------------------------------------------------------- FSC

def fsc_figure(columns: Dict[str, np.ndarray], resolution: Dict[str, float],
               before: Optional[Dict[str, np.ndarray]] = None, title: str = "Fourier shell correlation",
               other: Optional[Tuple[str, Dict[str, np.ndarray], Any]] = None,
               expected: Optional[Tuple[np.ndarray, Any, Sequence[float]]] = None) -> Figure:
    """The five curves of one iteration, the standard error of the corrected one, and the input's for comparison.

    Parameters
    ----------
    columns : the columns of fsc.star, by label.
    resolution : resolution in Å at 0.143 by curve ("unmasked", …), for the legend.
    before : the columns of the input's fsc.star; its corrected curve is drawn.
    other : (name, columns, resolution in Å) of another run; its corrected curve is drawn.
    expected : (curve by shell, resolution in Å, its range or ()) that allows for the uncertainty of the poses.
    """
    figure = new_figure(title)
    axes = figure.add_subplot()
    frequency = columns["rlnResolution"]
    if before is not None and CORRECTED in before:
        axes.plot(before["rlnResolution"], before[CORRECTED], color=BLACK, lw=1.2, ls=":", label="Input, corrected")
    if other is not None and CORRECTED in other[1]:
        axes.plot(other[1]["rlnResolution"], other[1][CORRECTED], color=PURPLE, lw=1.8, ls=(0, (5, 1)),
                  label=_with_resolution(shortened(other[0], 20), other[2]))
    for curve in FSC_CURVES:
        if curve.label in columns:
            colour, style = STYLES[curve.name]
            axes.plot(frequency, columns[curve.label], color=colour, ls=style,
                      lw=2.2 if curve.name == "corrected" else 1.4,
                      label=_with_resolution(curve.title, resolution.get(curve.name)))
    if CORRECTED in columns and ERROR in columns:
        axes.fill_between(frequency, columns[CORRECTED] - columns[ERROR], columns[CORRECTED] + columns[ERROR],
                          color=BLUE, alpha=0.18, lw=0, label="Standard error")
    if expected is not None:
        honest = expected[0][:len(frequency)]
        axes.plot(frequency[:len(honest)], honest, color=VERMILION, lw=1.6, ls=(0, (4, 2)),
                  label=_with_resolution("To report", expected[1]))
        if len(expected[2]) == 2:
            finer, coarser = expected[2]
            axes.plot((1 / coarser, 1 / finer), (FSC_THRESHOLD, FSC_THRESHOLD), color=VERMILION, lw=7, alpha=0.4,
                      solid_capstyle="butt", label=f"its range  {finer:.2f} to {coarser:.2f} Å")
    _fsc_axes(axes, frequency)
    _fsc_legend(axes)
    return figure


def _fsc_legend(axes: Any, columns: int = 1) -> None:
    """Where it hides least of the curves, and readable over what it does hide."""
    axes.legend(fontsize=8, loc="best", ncols=columns, facecolor="white", framealpha=0.8, edgecolor="none")


def _with_resolution(name: str, value: Any) -> str:
    return name if number(value) is None else f"{name}  {value:.2f} Å"


def _fsc_axes(axes: Any, frequency: np.ndarray) -> None:
    axes.axhline(FSC_THRESHOLD, color=VERMILION, lw=1)
    axes.text(0.0, FSC_THRESHOLD + 0.012, f" {FSC_THRESHOLD}", color=VERMILION, fontsize=8, va="bottom")
    axes.set_ylim(-0.1, 1.05)
    top = float(np.nanmax(frequency))
    axes.set_xlim(0, top)
    ticks = resolution_ticks(top)
    axes.set_xticks([1 / d for d in ticks], [f"{d:g}" for d in ticks])
    finish_axes(axes, "Resolution (Å)", "FSC")


def resolution_ticks(top: float) -> List[float]:
    """Round resolutions whose marks on a frequency axis ending at ``top`` do not crowd."""
    ticks: List[float] = []
    for d in NICE_RESOLUTIONS:
        if 1 / d <= top and (not ticks or 1 / d - 1 / ticks[-1] > 0.06 * top):
            ticks.append(d)
    return ticks


def fsc_history_figure(curves: Sequence[Tuple[int, Dict[str, np.ndarray], Any]]) -> Figure:
    """The corrected curve of every iteration: (number, columns, resolution in Å)."""
    from matplotlib import colormaps
    figure = new_figure("Corrected FSC over the iterations")
    axes = figure.add_subplot()
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(2, len(curves))))
    for (k, columns, value), colour in zip(curves, shades):
        name = "Input" if k == 0 else f"Iteration {k}"
        axes.plot(columns["rlnResolution"], columns[CORRECTED], color=colour, lw=1.2 + 0.8 * (k == curves[-1][0]),
                  label=_with_resolution(name, value))
    _fsc_axes(axes, curves[-1][1]["rlnResolution"])
    _fsc_legend(axes, 1 + len(curves) // 11)
    return figure


# ---------------------------------------------------------------- over the iterations

def progress_figure(iterations: Sequence[IterationRecord]) -> Figure:
    """Resolution, change of pose and share at the limits over the iterations."""
    figure = new_figure("Over the iterations", height=5.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    k = [record.iteration for record in iterations]
    for key, name, colour in (("corrected", "corrected", BLUE), ("unmasked", "no mask", GREY)):
        upper.plot(k, [_nan(record.resolution(key)) for record in iterations], "o-", color=colour,
                   label=f"FSC {FSC_THRESHOLD}, {name}")
    upper.plot(k, [record.align_resolution_angstrom for record in iterations], "s:", color=GREEN, ms=4,
               label="used for the next alignment")
    upper.invert_yaxis()
    finish_axes(upper, "", "Resolution (Å)")
    upper.legend(fontsize=8, frameon=False)
    changes = [("rotation_median_deg", "Rotation (°)", "o-", BLUE),
               ("shift_median_angstrom", "Shift (Å)", "s--", ORANGE),
               ("rotation_since_last_median_deg", "Rotation since the last (°)", "o:", BLUE),
               ("shift_since_last_median_angstrom", "Shift since the last (Å)", "s:", ORANGE)]
    for key, name, style, colour in changes:
        lower.plot(k, [_nan(getattr(record.pose_change, key, None)) for record in iterations], style, color=colour,
                   mfc="white" if style.endswith(":") else colour, label=name)
    finish_axes(lower, "Iteration (0 = input)", "Median change\nfrom the input pose")
    lower.set_xticks(k)
    lower.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def _nan(value: Any) -> float:
    known = number(value)
    return float("nan") if known is None else known


def legend_above(figure: Figure, axes: Any) -> None:
    """One legend for all panels, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.95))
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.95), ncols=len(labels), fontsize=8,
                  frameon=False)
