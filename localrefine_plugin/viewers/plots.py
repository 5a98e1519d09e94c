"""Pictures of a run: pure functions from records (dicts and arrays) to matplotlib Figures.

The same figure goes into a window, a PNG and the HTML report. Nothing here reads files, opens windows
or touches pyplot. Colours are those of Okabe and Ito, told apart with any colour vision
(https://jfly.uni-koeln.de/color/); a figure is readable at 600 px width.
"""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure

Poses = Dict[str, np.ndarray]

BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"
SKY, GREY, BLACK = "#56b4e9", "#8c8c8c", "#000000"
HALF_COLOURS = {1: BLUE, 2: ORANGE}

# key of a resolution dict → column of fsc.star, name, colour, line style
CURVES = (
    ("unmasked", "rlnFourierShellCorrelationUnmaskedMaps", "No mask", GREY, "-"),
    ("spherical", "lrFourierShellCorrelationSpherical", "Spherical", SKY, "--"),
    ("loose", "lrFourierShellCorrelationLoose", "Loose", GREEN, "-."),
    ("tight", "rlnFourierShellCorrelationMaskedMaps", "Tight", ORANGE, "-"),
    ("corrected", "rlnFourierShellCorrelationCorrected", "Corrected", BLUE, "-"),
)
CORRECTED, ERROR = "rlnFourierShellCorrelationCorrected", "lrFourierShellCorrelationCorrectedError"
FSC_THRESHOLD = 0.143  # Rosenthal & Henderson 2003, doi:10.1016/j.jmb.2003.07.013
MANY_AT_LIMIT = 0.1  # share of particles at a search limit from which the advice is to act
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


def _number(value: Any) -> Optional[float]:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


# ---------------------------------------------------------------- FSC

def fsc_figure(columns: Dict[str, np.ndarray], resolution: Dict[str, Any],
               before: Optional[Dict[str, np.ndarray]] = None, title: str = "Fourier shell correlation") -> Figure:
    """The five curves of one iteration, the standard error of the corrected one, and the input's for comparison.

    Parameters
    ----------
    columns : the columns of fsc.star, by label.
    resolution : resolution in Å at 0.143 by curve ("unmasked", …), for the legend.
    before : the columns of the input's fsc.star; its corrected curve is drawn.
    """
    figure = new_figure(title)
    axes = figure.add_subplot()
    frequency = columns["rlnResolution"]
    if before is not None and CORRECTED in before:
        axes.plot(before["rlnResolution"], before[CORRECTED], color=BLACK, lw=1.2, ls=":", label="Input, corrected")
    for key, label, name, colour, style in CURVES:
        if label in columns:
            axes.plot(frequency, columns[label], color=colour, ls=style, lw=2.2 if key == "corrected" else 1.4,
                      label=_with_resolution(name, resolution.get(key)))
    if CORRECTED in columns and ERROR in columns:
        axes.fill_between(frequency, columns[CORRECTED] - columns[ERROR], columns[CORRECTED] + columns[ERROR],
                          color=BLUE, alpha=0.18, lw=0, label="Standard error")
    _fsc_axes(axes, frequency)
    _fsc_legend(axes)
    return figure


def _fsc_legend(axes: Any, columns: int = 1) -> None:
    """Where curves that start at 1 never are: at low resolution, between the threshold and 1."""
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(0.01, 0.55), ncols=columns)


def _with_resolution(name: str, value: Any) -> str:
    return name if _number(value) is None else f"{name}  {value:.2f} Å"


def _fsc_axes(axes: Any, frequency: np.ndarray) -> None:
    axes.axhline(FSC_THRESHOLD, color=VERMILION, lw=1)
    axes.text(0.0, FSC_THRESHOLD + 0.012, " 0.143", color=VERMILION, fontsize=8, va="bottom")
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


# ---------------------------------------------------------------- change of pose

def pose_change_figure(halves: Dict[int, Poses], settings: Dict[str, Any], title: str = "Change from the input poses",
                       other: Optional[Tuple[str, Dict[int, Poses]]] = None) -> Figure:
    """Histograms of rotation change and of shift change, per half-set, with prior and extents.

    Parameters
    ----------
    halves : pose table of each half-set (records.PoseTable as a dict).
    settings : prior, prior_rotation_deg, prior_shift_angstrom, rotation_extent_deg, shift_extent_angstrom.
    other : (name, tables) of another run to lay over.
    """
    figure = new_figure(title, height=4.8)
    rotation_axes, shift_axes = figure.subplots(1, 2)
    has_prior = settings.get("prior") != "off"
    panels = (
        (rotation_axes, "rotation_change_deg", "at_rotation_limit", "Rotation (°)", "prior_rotation_deg",
         "rotation_extent_deg", maxwell),
        (shift_axes, "shift_change_angstrom", "at_shift_limit", "Shift at the fulcrum (Å)", "prior_shift_angstrom",
         "shift_extent_angstrom", rayleigh))
    for axes, name, limit_name, label, prior_key, extent_key, law in panels:
        extent = _number(settings.get(extent_key))
        edges = _edges([norms(p[name]) for p in _tables(halves, other)], extent)
        _half_histograms(axes, halves, name, edges)
        if other is not None:
            values = np.concatenate([norms(p[name]) for p in other[1].values()])
            axes.hist(values, bins=edges, weights=percent_weights(values), color=GREY, alpha=0.35, label=other[0])
        width = _number(settings.get(prior_key)) if has_prior else None
        if width:
            axes.plot(_middle(edges), 100 * law(_middle(edges), width) * np.diff(edges), color=BLACK, lw=1.2,
                      label="Prior")
        _mark_extent(axes, extent, share_at_limit(halves, limit_name))
        finish_axes(axes, label, "Particles (%)" if axes is rotation_axes else "")
    rotation_axes.legend(fontsize=8, frameon=False, loc="upper right")
    figure.supxlabel(pose_advice(halves, has_prior), fontsize=9, wrap=True)
    return figure


def _tables(halves: Dict[int, Poses], other: Optional[Tuple[str, Dict[int, Poses]]]) -> List[Poses]:
    return list(halves.values()) + (list(other[1].values()) if other is not None else [])


def norms(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.asarray(vectors, dtype=float) ** 2, axis=1))


def _edges(values: Sequence[np.ndarray], extent: Optional[float], bins: int = 40) -> np.ndarray:
    joined = np.concatenate(list(values)) if values else np.zeros(1)
    top = max(float(np.percentile(joined, 99.9)) if len(joined) else 0.0, 1e-3)
    if extent is not None:
        top = min(extent, 1.2 * top) if top < 0.5 * extent else extent
    return np.linspace(0, top * 1.0001, bins + 1)


def _middle(edges: np.ndarray) -> np.ndarray:
    return 0.5 * (edges[1:] + edges[:-1])


def percent_weights(values: np.ndarray) -> np.ndarray:
    return np.full(len(values), 100.0 / max(1, len(values)))


def _half_histograms(axes: Any, halves: Dict[int, Poses], name: str, edges: np.ndarray) -> None:
    for half, table in sorted(halves.items()):
        values = norms(table[name])
        axes.hist(values, bins=edges, weights=percent_weights(values), histtype="step", lw=1.8,
                  color=HALF_COLOURS[half], ls="-" if half == 1 else "--",
                  label=f"Half-set {half}, median {np.median(values):.2f}")


def maxwell(angle: np.ndarray, sigma: float) -> np.ndarray:
    """Density of |w| when w is normal with s.d. sigma on each of three axes."""
    return np.sqrt(2 / np.pi) * angle ** 2 / sigma ** 3 * np.exp(-angle ** 2 / (2 * sigma ** 2))


def rayleigh(length: np.ndarray, sigma: float) -> np.ndarray:
    """Density of |s| when s is normal with s.d. sigma on each of two axes."""
    return length / sigma ** 2 * np.exp(-length ** 2 / (2 * sigma ** 2))


def _mark_extent(axes: Any, extent: Optional[float], share: float) -> None:
    """A line at the search limit, or a note where it lies if it is far outside of the picture."""
    if extent is None:
        return
    text = f"search limit {extent:.3g}\n{100 * share:.1f} % at it"
    right = axes.get_xlim()[1]
    if extent <= 1.05 * right:
        axes.axvline(extent, color=VERMILION, lw=1.4)
    axes.text(0.93, 0.62, text, transform=axes.transAxes, color=VERMILION, fontsize=8, ha="right", va="top",
              bbox=dict(facecolor="white", alpha=0.7, lw=0, pad=1))


def share_at_limit(halves: Dict[int, Poses], name: str) -> float:
    flags = [table[name] for table in halves.values() if name in table]
    return float(np.mean(np.concatenate(flags))) if flags and sum(map(len, flags)) else 0.0


def pose_advice(halves: Dict[int, Poses], has_prior: bool) -> str:
    """One line on what the histograms say, in the words of the field."""
    rotation, shift = (share_at_limit(halves, name) for name in ("at_rotation_limit", "at_shift_limit"))
    which = [f"{100 * share:.0f} % in {name}" for share, name in ((rotation, "rotation"), (shift, "shift"))
             if share > MANY_AT_LIMIT]
    if not which:
        return "Few particles at the search limit: the extents are wide enough."
    remedy = "try wider extents or a larger mask" if has_prior else "use a prior, or try a larger mask"
    return (f"At the search limit: {' and '.join(which)}. Either the motion is larger or the images cannot tell: "
            f"{remedy}.")


def axis_change_figure(halves: Dict[int, Poses]) -> Figure:
    """Rotation change about each axis of the map (diagonal) and of each pair of axes (below)."""
    w = np.concatenate([np.asarray(table["rotation_change_deg"], dtype=float) for table in halves.values()])
    figure = new_figure("Rotation about each axis of the map", height=5.6)
    grid = figure.subplots(3, 3)
    top = max(float(np.percentile(np.abs(w), 99.5)) if len(w) else 1.0, 1e-3)
    edges = np.linspace(-top, top, 41)
    for row in range(3):
        for column in range(3):
            axes = grid[row][column]
            if column > row:
                axes.axis("off")
            elif column == row:
                axes.hist(w[:, row], bins=edges, weights=percent_weights(w), color=BLUE)
                axes.set_title(f"about {'xyz'[row]}: s.d. {w[:, row].std():.2f}°", fontsize=9)
            else:
                axes.hist2d(w[:, column], w[:, row], bins=[edges, edges], cmap="cividis")
            axes.tick_params(labelsize=7)
            if row == 2:
                axes.set_xlabel(f"about {'xyz'[column]} (°)", fontsize=8)
            if column == 0:
                axes.set_ylabel("Particles (%)" if row == 0 else f"about {'xyz'[row]} (°)", fontsize=8)
    grid[0][2].text(0.5, 0.5, principal_axis_text(w), ha="center", va="center", fontsize=8,
                    transform=grid[0][2].transAxes)
    return figure


def principal_axis_text(w: np.ndarray) -> str:
    """The axis about which the sub-volume turns most, and by how much."""
    if len(w) < 3:
        return ""
    values, vectors = np.linalg.eigh(np.cov(w.T))
    x, y, z = vectors[:, -1]
    return f"most motion about\n({x:+.2f}, {y:+.2f}, {z:+.2f})\ns.d. {np.sqrt(max(values[-1], 0)):.2f}°"


# ---------------------------------------------------------------- over the iterations

def progress_figure(iterations: Sequence[Dict[str, Any]]) -> Figure:
    """Resolution, change of pose and share at the limits over the iterations."""
    figure = new_figure("Over the iterations", height=5.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    k = [content["iteration"] for content in iterations]
    for key, name, colour in (("corrected", "FSC 0.143, corrected", BLUE), ("unmasked", "FSC 0.143, no mask", GREY)):
        upper.plot(k, [_nan((c.get("resolution_angstrom") or {}).get(key)) for c in iterations], "o-", color=colour,
                   label=name)
    upper.plot(k, [_nan(c.get("align_resolution_angstrom")) for c in iterations], "s:", color=GREEN, ms=4,
               label="used for the next alignment")
    upper.invert_yaxis()
    finish_axes(upper, "", "Resolution (Å)")
    upper.legend(fontsize=8, frameon=False)
    change = [c.get("pose_change") or {} for c in iterations]
    lower.plot(k, [_nan(c.get("rotation_median_deg")) for c in change], "o-", color=BLUE, label="Rotation (°)")
    lower.plot(k, [_nan(c.get("shift_median_angstrom")) for c in change], "s--", color=ORANGE, label="Shift (Å)")
    finish_axes(lower, "Iteration (0 = input)", "Median change\nfrom the input pose")
    lower.set_xticks(k)
    lower.legend(fontsize=8, frameon=False)
    return figure


def _nan(value: Any) -> float:
    number = _number(value)
    return float("nan") if number is None else number
