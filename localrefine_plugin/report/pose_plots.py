"""Pictures of how the poses changed and how well they are known: pure functions of arrays, as in plots.py."""
from __future__ import annotations

import textwrap
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure

from ..engine.records.resolved import ResolvedSettings
from .plots import (
    BLACK,
    BLUE,
    GREY,
    HALF_COLOURS,
    PURPLE,
    VERMILION,
    finish_axes,
    legend_above,
    new_figure,
    percent_weights,
    shortened,
)

Poses = Dict[str, np.ndarray]
NOTHING_TO_SAY = "Few particles are at the search limits, and the histograms have one peak: no problems found."
LINE = 98  # characters of a line under a figure

# ---------------------------------------------------------------- change of pose

def pose_change_figure(halves: Dict[int, Poses], resolved: Optional[ResolvedSettings],
                       title: str = "Change from the input poses",
                       other: Optional[Tuple[str, Dict[int, Poses]]] = None, advice: Sequence[str] = (),
                       learned: Optional[Dict[str, np.ndarray]] = None,
                       since_last: Optional[Tuple[str, Poses]] = None) -> Figure:
    """Histograms of rotation change and of shift change, per half-set, with prior and extents.

    Parameters
    ----------
    halves : pose table of each half-set (records.PoseTable as a dict).
    resolved : the prior and the extents that were searched; None where they are not known.
    other : (name, tables) of another run to lay over.
    advice : sentences to stand under the picture.
    learned : change of pose under a prior that was learned from the data: a sample, by column of the pose table.
    since_last : (name, change of pose since the iteration before), by column of the pose table.
    """
    figure = new_figure(title, height=5.0)
    rotation_axes, shift_axes = figure.subplots(1, 2)
    panels = (
        (rotation_axes, "rotation_change_deg", "at_rotation_limit", "Rotation", "°", "prior_rotation_deg",
         "rotation_extent_deg", maxwell),
        (shift_axes, "shift_change_angstrom", "at_shift_limit", "Shift at the fulcrum", " Å", "prior_shift_angstrom",
         "shift_extent_angstrom", rayleigh))
    for axes, name, limit_name, label, unit, prior_key, extent_key, law in panels:
        extent = None if resolved is None else float(getattr(resolved, extent_key))
        edges = _edges([norms(p[name]) for p in _tables(halves, other)], extent if other is None else None)
        _half_histograms(axes, {half: norms(table[name]) for half, table in halves.items()}, edges, unit)
        if since_last is not None:
            _draw_since_last(axes, since_last[0], norms(since_last[1][name]), edges, unit)
        if other is not None:
            values = np.concatenate([norms(p[name]) for p in other[1].values()])
            axes.hist(values, bins=edges, weights=percent_weights(values), color=PURPLE, alpha=0.35, zorder=0,
                      label=shortened(other[0]))
        width = float(getattr(resolved, prior_key)) if resolved is not None and resolved.prior == "gaussian" else None
        if width:
            axes.plot(_middle(edges), 100 * law(_middle(edges), width) * np.diff(edges), color=BLACK, lw=1.2,
                      label="Prior")
        if learned is not None:
            values = norms(learned[name])
            axes.plot(_middle(edges), 100 * np.histogram(values, bins=edges)[0] / len(values), color=BLACK, lw=1.2,
                      label="Learned prior")
        _mark_extent(axes, extent, unit, share_at_limit(halves, limit_name))
        finish_axes(axes, f"{label} ({unit.strip()})", "Particles (%)" if axes is rotation_axes else "")
    legend_above(figure, rotation_axes)
    _say_below(figure, advice or [NOTHING_TO_SAY])
    return figure


def _say_below(figure: Figure, sentences: Sequence[str]) -> None:
    figure.supxlabel("\n".join(textwrap.fill(text[:1].upper() + text[1:], LINE) for text in sentences), fontsize=8.5)


def learned_sample(covariance: np.ndarray, rotations: np.ndarray, n: int = 100_000) -> Dict[str, np.ndarray]:
    """Changes of pose under a motion x = (w, d) ~ N(0, covariance) of the sub-volume about its fulcrum.

    Parameters
    ----------
    covariance : (6, 6), rad and Å.   rotations : (m, 3, 3) of the images in which the motion is seen.

    Returns
    -------
    {"rotation_change_deg": w (n, 3) in degrees, "shift_change_angstrom": P R d (n, 2)}.
    """
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal(np.zeros(6), covariance, n, check_valid="ignore")
    seen = np.asarray(rotations)[rng.integers(0, len(rotations), n), :2]
    return {"rotation_change_deg": np.rad2deg(x[:, :3]),
            "shift_change_angstrom": np.einsum("nij,nj->ni", seen, x[:, 3:])}


def _draw_since_last(axes: Any, name: str, values: np.ndarray, edges: np.ndarray, unit: str) -> None:
    """A filled histogram behind the others, which keep the scale: near zero when the poses have settled."""
    top = axes.get_ylim()[1]
    axes.hist(values, bins=edges, weights=percent_weights(values), color=GREY, alpha=0.35, zorder=0, label=name)
    axes.set_ylim(0, 1.1 * top)
    axes.set_title(f"{axes.get_title()}\n{name[:1].lower() + name[1:]}: {np.median(values):.2f}{unit}", fontsize=9)


def uncertainty_figure(halves: Dict[int, Poses], pixel_size: float,
                       title: str = "How well the poses are known") -> Figure:
    """Histograms of the standard deviation of the error of each particle's rotation and shift.

    From the covariance C (5 × 5) of the errors of a particle: sqrt(tr C_w) of the rotation vector, in degrees, and
    sqrt(tr C_s) of the in-plane displacement of the mask's centre, in Å.
    """
    figure = new_figure(title, height=5.0)
    rotation_axes, shift_axes = figure.subplots(1, 2)
    spreads = {half: error_spread(table["pose_error_covariance"], pixel_size) for half, table in halves.items()}
    for column, (axes, label, unit) in enumerate(((rotation_axes, "Rotation", "°"), (shift_axes, "Shift", " Å"))):
        values = {half: both[column][np.isfinite(both[column])] for half, both in spreads.items()}
        _half_histograms(axes, values, _edges(list(values.values()), None), unit)
        finish_axes(axes, f"{label}: s.d. of the error ({unit.strip()})", "Particles (%)" if column == 0 else "")
    legend_above(figure, rotation_axes)
    _say_below(figure, [uncertainty_advice(halves, spreads)])
    return figure


def error_spread(covariance: np.ndarray, pixel_size: float) -> Tuple[np.ndarray, np.ndarray]:
    """(rotation in degrees, shift in Å) of each particle from its covariance (m, 5, 5) in rad and px."""
    diagonal = np.diagonal(np.asarray(covariance, dtype=float), axis1=1, axis2=2)
    diagonal = np.where(diagonal >= 0, diagonal, np.nan)  # a damaged or failed estimate is no estimate
    return np.rad2deg(np.sqrt(diagonal[:, :3].sum(axis=1))), pixel_size * np.sqrt(diagonal[:, 3:].sum(axis=1))


def uncertainty_advice(halves: Dict[int, Poses], spreads: Dict[int, Tuple[np.ndarray, np.ndarray]]) -> str:
    """The rotations found beside what is not known of them."""
    change = np.median(np.concatenate([norms(table["rotation_change_deg"]) for table in halves.values()]))
    known = np.nanmedian(np.concatenate([both[0] for both in spreads.values()]))
    return (f"The median rotation is {change:.1f}°, and a rotation is known to {known:.1f}°. Changes smaller than the "
            "uncertainty are noise; one that grows over the iterations is a warning.")


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


def _half_histograms(axes: Any, values: Dict[int, np.ndarray], edges: np.ndarray, unit: str) -> None:
    """Steps of each half-set; the medians stand in the title."""
    for half, numbers in sorted(values.items()):
        axes.hist(numbers, bins=edges, weights=percent_weights(numbers), histtype="step", lw=1.8,
                  color=HALF_COLOURS[half], ls="-" if half == 1 else "--", label=f"Half-set {half}")
    medians = ", ".join(f"{np.median(v):.2f}{unit}" if len(v) else "–" for _, v in sorted(values.items()))
    axes.set_title(f"median {medians}", fontsize=9)


def maxwell(angle: np.ndarray, sigma: float) -> np.ndarray:
    """Density of |w| when w is normal with s.d. sigma on each of three axes."""
    return np.sqrt(2 / np.pi) * angle ** 2 / sigma ** 3 * np.exp(-angle ** 2 / (2 * sigma ** 2))


def rayleigh(length: np.ndarray, sigma: float) -> np.ndarray:
    """Density of |s| when s is normal with s.d. sigma on each of two axes."""
    return length / sigma ** 2 * np.exp(-length ** 2 / (2 * sigma ** 2))


def _mark_extent(axes: Any, extent: Optional[float], unit: str, share: float) -> None:
    """A line at the search limit, or a note where it lies if it is far outside of the picture."""
    if extent is None:
        return
    if extent <= 1.05 * axes.get_xlim()[1]:
        axes.axvline(extent, color=VERMILION, lw=1.4)
    axes.text(0.92, 0.97, f"search limit {extent:.3g}{unit}\n{100 * share:.1f} % at it", transform=axes.transAxes,
              color=VERMILION, fontsize=8, ha="right", va="top", bbox=dict(facecolor="white", alpha=0.7, lw=0, pad=1))


def share_at_limit(halves: Dict[int, Poses], name: str) -> float:
    flags = [table[name] for table in halves.values() if name in table]
    return float(np.mean(np.concatenate(flags))) if flags and sum(map(len, flags)) else 0.0


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
