"""Pictures of maps, viewing directions, noise and scale: pure functions of arrays, as in plots.py."""
from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .plots import (
    BLACK,
    BLUE,
    GREEN,
    HALF_COLOURS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    finish_axes,
    new_figure,
    percent_weights,
    resolution_ticks,
)

BODY_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)
FINER = 6  # pieces a cell is drawn in along each axis, so that its edges follow the curved grid

# ---------------------------------------------------------------- orientations

def orientation_figure(before: np.ndarray, after: np.ndarray) -> Figure:
    """Viewing directions on an equal-area map of the sphere, input and now.

    Parameters
    ----------
    before, after : (n, 3, 3) rotations; the viewing direction is the third row.
    """
    figure = new_figure("Viewing directions", height=5.6)
    counts = [direction_counts(rotations) for rotations in (before, after)]
    top = max(float(c.max()) for c in counts) or 1.0
    for position, (name, values) in enumerate(zip(("Input", "Now"), counts), start=1):
        axes = figure.add_subplot(2, 1, position, projection="mollweide")
        longitude = np.linspace(-np.pi, np.pi, FINER * values.shape[1] + 1)
        latitude = np.arcsin(np.linspace(-1, 1, FINER * values.shape[0] + 1))
        mesh = axes.pcolormesh(longitude, latitude, np.kron(values, np.ones((FINER, FINER))), cmap="cividis",
                               vmin=0, vmax=top, rasterized=True)
        axes.set_xticklabels([])
        axes.set_yticklabels([])
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    figure.colorbar(mesh, ax=figure.axes[:2], shrink=0.8, label="times the mean")
    return figure


def direction_counts(rotations: np.ndarray) -> np.ndarray:
    """Viewing directions per cell of equal area (rows in cos tilt, columns in rot), relative to their mean.

    About ten particles per cell, in 6 × 12 to 18 × 36 cells, so that a uniform set looks uniform.
    """
    rows = int(np.clip(np.sqrt(len(rotations) / 20), 6, 18))
    columns = 2 * rows
    view = np.asarray(rotations, dtype=float)[:, 2, :]
    longitude = np.arctan2(view[:, 1], view[:, 0])
    counts, _, _ = np.histogram2d(np.clip(view[:, 2], -1, 1), longitude, bins=[rows, columns],
                                  range=[[-1, 1], [-np.pi, np.pi]])
    return counts / max(counts.mean(), 1e-12)


# ---------------------------------------------------------------- maps

def map_slices_figure(before: np.ndarray, after: np.ndarray, mask: Optional[np.ndarray] = None,
                      fulcrum_px: Optional[Sequence[float]] = None, pixel_size: float = 1.0) -> Figure:
    """Three central slices of the map before and after, the mask's outline, and the fulcrum.

    Parameters
    ----------
    before, after : maps [z, y, x].   mask : the same shape; its 0.5 outline is drawn.
    fulcrum_px : x, y, z from the corner of the box; the slices go through it (else through the box centre).
    """
    centre = _slice_centre(after.shape, fulcrum_px)
    figure = new_figure("Slices through the fulcrum" if fulcrum_px is not None else "Central slices", height=4.9)
    grid = figure.subplots(2, 3)
    for row, (name, volume) in enumerate((("Input", before), ("Now", after))):
        low, high = np.percentile(volume, [1, 99.8])
        for column, (axis, label) in enumerate(((0, "xy"), (1, "xz"), (2, "yz"))):
            axes = grid[row][column]
            axes.imshow(slice_of(volume, axis, centre), cmap="gray", origin="lower", vmin=low,
                        vmax=max(high, low + 1e-9))
            if mask is not None and mask.shape == volume.shape:
                outline(axes, slice_of(mask, axis, centre))
            if fulcrum_px is not None:
                x, y = _in_plane(fulcrum_px, axis)
                axes.plot(x, y, "+", color=VERMILION, ms=12, mew=2)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{name}, {label}", fontsize=9)
    _scale_bar(grid[1][0], after.shape[-1], pixel_size)
    figure.supxlabel(_slices_caption(mask, fulcrum_px), fontsize=9)
    return figure


def mask_layout_figure(density: np.ndarray, masks: Sequence[np.ndarray]) -> Figure:
    """Where the masks of several bodies lie: slices of the density, each mask in its colour, and what two share.

    Parameters
    ----------
    density : [z, y, x] ≥ 0, of the particle.   masks : two or more of the same shape, 0 … 1.

    The slices go through the middle of what masks share, weighted by the density; without that, of the density.
    """
    ordered = np.sort(np.stack(masks), axis=0)
    shared, covered = ordered[-2], ordered[-1]
    weight = density * np.where(shared > 0.5, shared, 0)
    centre = _centre_of(weight if weight.any() else density)
    figure = new_figure("How the masks lie", width=8.4, height=3.9)
    panels = figure.subplots(1, 3)
    high = max(float(np.percentile(density[density > 0], 99.8)) if (density > 0).any() else 1.0, 1e-9)
    for axes, (axis, label) in zip(panels, ((0, "xy"), (1, "xz"), (2, "yz"))):
        axes.imshow(slice_of(density, axis, centre), cmap="gray_r", origin="lower", vmin=0, vmax=high)
        for k, mask in enumerate(masks):
            inside = slice_of(mask, axis, centre)
            _tint(axes, inside, BODY_COLOURS[k % len(BODY_COLOURS)])
        _tint(axes, np.where(slice_of(shared, axis, centre) > 0.5, 2.0, 0.0), VERMILION)
        bare = slice_of(np.where(covered < 0.5, density, 0), axis, centre) > 0.1 * high
        if bare.any():
            axes.contour(bare, levels=[0.5], colors=[BLACK], linewidths=1.0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(label, fontsize=9)
    patches = [Patch(color=BODY_COLOURS[k % len(BODY_COLOURS)], alpha=0.6, label=f"body {k + 1}")
               for k in range(len(masks))]
    figure.legend(handles=[*patches, Patch(color=VERMILION, alpha=0.7, label="in two masks"),
                           Patch(facecolor="none", edgecolor=BLACK, label="density in no mask")],
                  loc="outside lower center", ncols=len(masks) + 2, fontsize=8, frameon=False)
    return figure


def _tint(axes: Any, share: np.ndarray, colour: str) -> None:
    """A transparent layer of a colour, a third of it where the share (0 … 1) is one."""
    layer = np.empty((*share.shape, 4))
    layer[..., :3] = to_rgb(colour)
    layer[..., 3] = np.clip(0.33 * share, 0, 1)
    axes.imshow(layer, origin="lower")


def _centre_of(weight: np.ndarray) -> Tuple[int, int, int]:
    """Indices [z, y, x] of the centre of mass of a map ≥ 0; the middle of the box if it is empty."""
    total = weight.sum(dtype=np.float64)
    if total <= 0:
        return _slice_centre(weight.shape, None)
    z, y, x = (int(round(float(weight.sum(axis=other, dtype=np.float64) @ np.arange(n) / total)))
               for other, n in zip(((1, 2), (0, 2), (0, 1)), weight.shape))
    return z, y, x


def filter_resolution_figure(cutoff: np.ndarray, mask: Optional[np.ndarray] = None,
                             fulcrum_px: Optional[Sequence[float]] = None) -> Figure:
    """Three slices of the resolution (Å, [z, y, x]) that the non-uniform filter keeps, inside the mask."""
    centre = _slice_centre(cutoff.shape, fulcrum_px)
    inside = np.isfinite(cutoff) & (cutoff > 0)
    if mask is not None and mask.shape == cutoff.shape:
        inside &= mask > 0.5
    low, high = np.percentile(cutoff[inside], [1, 99]) if inside.any() else (0.0, 1.0)
    shown = np.where(inside, cutoff, np.nan)
    figure = new_figure("Resolution of the non-uniform filter", height=3.4)
    panels = figure.subplots(1, 3)
    for axes, (axis, label) in zip(panels, ((0, "xy"), (1, "xz"), (2, "yz"))):
        image = axes.imshow(slice_of(shown, axis, centre), cmap="viridis_r", origin="lower", vmin=low,
                            vmax=max(high, low + 1e-3))
        if mask is not None and mask.shape == cutoff.shape:
            outline(axes, slice_of(mask, axis, centre))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(label, fontsize=9)
    figure.colorbar(image, ax=panels, shrink=0.8, label="Resolution (Å)")
    return figure


def _slices_caption(mask: Optional[np.ndarray], fulcrum_px: Optional[Sequence[float]]) -> str:
    parts = ([] if mask is None else ["blue: mask at 0.5"]) + ([] if fulcrum_px is None else ["cross: fulcrum"])
    return ", ".join(parts + ["bar on the lower left: scale"])


def _slice_centre(shape: Sequence[int], fulcrum_px: Optional[Sequence[float]]) -> Tuple[int, int, int]:
    """Indices [z, y, x] of the slices."""
    if fulcrum_px is None:
        return shape[0] // 2, shape[1] // 2, shape[2] // 2
    z, y, x = (int(np.clip(round(float(v)), 0, n - 1)) for v, n in zip(reversed(list(fulcrum_px)), shape))
    return z, y, x


def slice_of(volume: np.ndarray, axis: int, centre: Sequence[int]) -> np.ndarray:
    """The slice normal to array axis 0 (z), 1 (y) or 2 (x); its columns are x, x, y and its rows y, z, z."""
    return np.take(volume, centre[axis], axis=axis)


def _in_plane(point: Sequence[float], axis: int) -> Tuple[float, float]:
    x, y, z = point
    return ((x, y), (x, z), (y, z))[axis]


def outline(axes: Any, values: np.ndarray) -> None:
    """The 0.5 contour of a slice of the mask."""
    if values.max() > 0.5 > values.min():
        axes.contour(values, levels=[0.5], colors=[SKY], linewidths=1.2)


def _scale_bar(axes: Any, box: int, pixel_size: float) -> None:
    """A bar of a round length, about a quarter of the box."""
    quarter = 0.25 * box * pixel_size
    length = max(v * 10.0 ** e for e in range(-1, 4) for v in (1, 2, 5) if v * 10.0 ** e <= max(quarter, 0.1))
    x, y = 0.06 * box, 0.06 * box
    axes.plot([x, x + length / pixel_size], [y, y], color="white", lw=3, solid_capstyle="butt")
    axes.text(x, y + 0.03 * box, f"{length:g} Å", color="white", fontsize=8)


# ---------------------------------------------------------------- noise and scale

def noise_figure(spectra: Dict[int, np.ndarray], box_size: int, pixel_size: float) -> Figure:
    """Noise power of each half-set and optics group over resolution: {half: (groups, shells)}."""
    figure = new_figure("Noise power of the images")
    axes = figure.add_subplot()
    top = 0.0
    for half, groups in sorted(spectra.items()):
        for number, power in enumerate(np.atleast_2d(groups), start=1):
            frequency = np.arange(len(power)) / (box_size * pixel_size)
            top = max(top, frequency[-1])
            axes.semilogy(frequency[1:], np.maximum(power[1:], 1e-30), color=HALF_COLOURS[half],
                          ls="-" if half == 1 else "--", lw=1.4, label=f"Half-set {half}, optics group {number}")
    ticks = resolution_ticks(top)
    axes.set_xticks([1 / d for d in ticks], [f"{d:g}" for d in ticks])
    finish_axes(axes, "Resolution (Å)", "Noise power per Fourier pixel")
    axes.legend(fontsize=8, frameon=False)
    return figure


def scale_figure(scales: Dict[int, np.ndarray]) -> Figure:
    """Histogram of the per-particle scale of each half-set."""
    figure = new_figure("Scale of the particles")
    axes = figure.add_subplot()
    top = max(float(np.percentile(values, 99.9)) for values in scales.values())
    edges = np.linspace(0, max(top, 1e-3), 41)
    for half, values in sorted(scales.items()):
        axes.hist(values, bins=edges, weights=percent_weights(values), histtype="step", lw=1.8,
                  color=HALF_COLOURS[half], ls="-" if half == 1 else "--", label=f"Half-set {half}")
    axes.axvline(1.0, color=BLACK, lw=1)
    finish_axes(axes, "Scale (1 = mean)", "Particles (%)")
    axes.legend(fontsize=8, frameon=False)
    return figure
