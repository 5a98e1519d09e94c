"""The film of a motion as a picture: projections of its maps beside the particles along each axis, still or animated.

Pure functions of arrays and of records.film, as in plots.py; `FilmViews` alone reads maps.
"""
from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Sequence

import numpy as np
import scipy.ndimage
from matplotlib.figure import Figure

from ..engine.records.film import Film, FilmAxis
from .plots import BLUE, GREY, VERMILION, finish_axes, new_figure
from .pose_plots import LINE

MOST_VOXELS = 96  # of a side that is projected
MOST_SERIES = 3  # beside each other in a picture
REST_INK, PART_INK = np.array([0.55, 0.55, 0.55]), np.array([0.15, 0.45, 0.85])  # what is taken from white
MILLISECONDS, PAUSE_MILLISECONDS = 110, 500
GIF_COLOURS = 48


class View(NamedTuple):
    """One frame as an RGB picture (n, n, 3), 0 … 1, and where the mask is in it (n, n)."""

    picture: np.ndarray
    outline: np.ndarray


class FilmViews:
    """The frames of a film, projected so that each series moves within the picture.

    folder : of film.json.  mask : (N, N, N) of the run's results.
    """

    def __init__(self, folder: Path, film: Film, mask: np.ndarray):
        self.folder, self.film, self.mask = folder, film, mask
        self.centre = np.array(film.centre_px) - film.box_size // 2

    def of_series(self, axis: FilmAxis, frames: Sequence[int]) -> List[View]:
        """The views of these frames (from 0)."""
        from ..engine.bodies.rigid import RigidPart
        from ..engine.io.mrc import read_map
        part = RigidPart(np.ones_like(self.mask), self.mask, self.centre)
        unit = np.array([np.deg2rad(1)] * 3 + [1 / self.film.pixel_size] * 3)
        ends = [np.array(axis.motions[i]) * unit for i in (0, -1)]
        turn = facing(self.mask, self.centre, ends[1] - ends[0])
        found = []
        for i in frames:
            x = np.array(axis.motions[i]) * unit
            window = np.clip(part.moved(x[:3], x[3:]), 0, 1)
            density = np.maximum(read_map(self.folder / axis.frames[i])[0] - 0.5 * self.film.level, 0)
            found.append((projected(density * (1 - window), turn), projected(density * window, turn),
                          projected(window, turn)))
        brightest = [max(np.percentile(parts[k], 99.8) for parts in found) or 1.0 for k in (0, 1)]
        return [View(inked(rest / brightest[0], moving / brightest[1]), window / window.max())
                for rest, moving, window in found]


def facing(mask: np.ndarray, centre: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) whose rows are the axes of a picture in which the mask moves the most by a motion (6,), rad
    and px: to the right, upwards, and towards the reader."""
    z, y, x = np.nonzero(mask[::2, ::2, ::2] > 0.5)
    points = 2 * np.stack([x, y, z], axis=1) - len(mask) // 2 - centre
    moved = motion[3:] + np.cross(motion[:3], points)
    axes = np.linalg.eigh(moved.T @ moved)[1][:, ::-1].T
    return axes * np.sign(np.linalg.det(axes))


def projected(volume: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """The sum (n, n) of a map along the last row of ``turn``, on at most MOST_VOXELS²."""
    n = min(len(volume), MOST_VOXELS)
    step = len(volume) / n
    matrix = step * turn.T[::-1, ::-1]
    offset = np.full(3, len(volume) // 2) - matrix @ np.full(3, n // 2)
    total: np.ndarray = scipy.ndimage.affine_transform(volume, matrix, offset, (n,) * 3, order=1).sum(axis=0)
    return total


def inked(rest: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """A picture (n, n, 3) on white of two projections, 0 … 1: the rest in grey, what moves in orange."""
    picture = 1 - np.clip(rest, 0, 1)[..., None] * REST_INK - np.clip(moving, 0, 1)[..., None] * PART_INK
    return np.clip(picture, 0, 1)


def shown_series(film: Film) -> List[FilmAxis]:
    """The series of a picture: the principal axes, or what there is of them."""
    return list(film.axes[1:1 + MOST_SERIES])


# ---------------------------------------------------------------- still

def film_figure(film: Film, views: Sequence[Sequence[View]]) -> Figure:
    """First frame, middle and last of each axis, and the particles along it."""
    series = shown_series(film)
    figure = new_figure("Motion of the sub-volume along its principal axes", height=1.5 + 1.85 * len(series))
    grid = figure.subplots(len(series), 4, squeeze=False, gridspec_kw=dict(width_ratios=(1, 1, 1, 1.35)))
    for row, axis, pictures in zip(grid, series, views):
        middle = pictures[len(pictures) // 2].outline
        where = (axis.positions[0], None, axis.positions[-1])
        for axes, view, position in zip(row, pictures, where):
            draw_view(axes, view, middle)
            axes.set_title("middle" if position is None else f"{position:+.1f} s.d.", fontsize=8)
        row[0].set_ylabel(axis.name.replace("_", " "), fontsize=9)
        draw_histogram(row[3], axis)
    figure.supxlabel("\n".join(textwrap.fill(text, LINE) for text in film.words), fontsize=7.5)
    return figure


def draw_view(axes: Any, view: View, middle: np.ndarray) -> None:
    """A frame, with the outline of the mask there and, dotted, in the middle of the series."""
    axes.imshow(view.picture, origin="lower", interpolation="bilinear")
    axes.contour(middle, levels=[0.4], colors=[GREY], linewidths=0.8, linestyles="dotted")
    axes.contour(view.outline, levels=[0.4], colors=[VERMILION], linewidths=1.0)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_histogram(axes: Any, axis: FilmAxis, position: Optional[float] = None) -> None:
    """The particles along an axis in the units of people; grey where no frame goes, a line at the frame shown."""
    bins, counts = np.array(axis.bins), np.array(axis.counts)
    degree, unit = axis.rotation_sd_deg, "Å"
    scale = axis.displacement_sd_angstrom or 1.0
    middle = 0.5 * (bins[1:] + bins[:-1])
    shown = (middle >= axis.positions[0]) & (middle <= axis.positions[-1])
    axes.bar(middle * scale, counts, (bins[1] - bins[0]) * scale, color=np.where(shown, BLUE, "#c8c8c8"))
    if position is not None:
        axes.axvline(position * scale, color=VERMILION, lw=2)
    axes.set_yticks([])
    finish_axes(axes, f"Along the axis ({unit}; {degree or 0:.1f}° per {scale:.1f} Å)", "Particles")
    axes.xaxis.label.set_size(7.5)
    axes.yaxis.label.set_size(7.5)
    axes.tick_params(labelsize=7)


# ---------------------------------------------------------------- animated

def film_gif(film: Film, views: Sequence[Sequence[View]], dpi: float = 80) -> bytes:
    """The axes beside each other, to and fro, as an animated GIF; ``views`` of all frames of `shown_series`."""
    from PIL import Image
    frames = len(views[0])
    images = [Image.fromarray(rendered(gif_figure(film, views, i), dpi)).quantize(GIF_COLOURS) for i in range(frames)]
    there_and_back = images + images[-2:0:-1]
    last = frames - 1
    durations = [PAUSE_MILLISECONDS if i in (0, last) else MILLISECONDS for i in range(len(there_and_back))]
    buffer = io.BytesIO()
    there_and_back[0].save(buffer, "GIF", save_all=True, append_images=there_and_back[1:], duration=durations, loop=0)
    return buffer.getvalue()


def gif_figure(film: Film, views: Sequence[Sequence[View]], frame: int) -> Figure:
    series = shown_series(film)
    figure = Figure(figsize=(2.5 * len(series), 3.9), layout="constrained")
    grid = figure.subplots(2, len(series), squeeze=False, gridspec_kw=dict(height_ratios=(2.2, 1)))
    for column, (axis, pictures) in enumerate(zip(series, views)):
        draw_view(grid[0][column], pictures[frame], pictures[len(pictures) // 2].outline)
        grid[0][column].set_title(caption(axis), fontsize=8)
        draw_histogram(grid[1][column], axis, axis.positions[frame])
    return figure


def caption(axis: FilmAxis) -> str:
    return (f"{axis.name.replace('_', ' ').capitalize()}, {100 * (axis.share or 0):.0f} % of the motion; s.d.\n"
            f"{axis.rotation_sd_deg:.2f} ± {axis.rotation_sd_deg_error:.2f}°, "
            f"{axis.displacement_sd_angstrom:.2f} ± {axis.displacement_sd_angstrom_error:.2f} Å")


def rendered(figure: Figure, dpi: float) -> np.ndarray:
    """The figure as pixels (height, width, 3), drawn without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: np.ndarray = np.asarray(canvas.buffer_rgba())[..., :3]
    return pixels


def pictures_of(folder: Path, film: Film, mask: np.ndarray, frames: Optional[Sequence[int]] = None) -> List[List[View]]:
    """The views of `shown_series`: of all frames, or of some."""
    views = FilmViews(folder, film, mask)
    return [views.of_series(axis, range(len(axis.frames)) if frames is None else frames) for axis in shown_series(film)]
