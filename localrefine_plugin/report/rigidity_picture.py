"""The motion inside a particle as a picture: projections coloured by motion and by body, and the motion of every cell.

    python -m localrefine_plugin.report.rigidity_picture RUN [FILE.png]

writes RUN/final/rigidity/rigidity.png, or FILE.png.
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, List, Optional

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ..engine.io.run_folder import write_atomic
from ..engine.records.rigidity import CellMotion, Rigidity
from .plots import finish_axes, new_figure
from .run_state import RunState

NO_RIGIDITY = ("Nobody has looked for moving parts in this run yet. Use Scipion's protocol 'find moving bodies', which "
               "shows them itself, or python -m localrefine_plugin.engine rigidity RUN")
COLOURS = ("#6e6e6e", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
VIEWS = ((0, "xy"), (1, "xz"), (2, "yz"))  # the axis of [z, y, x] that is looked along


def still(state: RunState) -> Optional[Figure]:
    """The picture of what the verb rigidity found; None where it was not used or its maps are gone."""
    found, folder = state.rigidity, state.folder.rigidity.parent
    if found is None:
        return None
    density, motion = state.map(state.folder.final("map.mrc")), state.map(folder / "motion.mrc")
    masks = [state.map(folder / body.mask) for body in found.bodies]
    if density is None or motion is None or any(mask is None for mask in masks):
        return None
    return rigidity_figure(found, np.maximum(density - found.level, 0), motion, [m for m in masks if m is not None])


def rigidity_figure(found: Rigidity, density: np.ndarray, motion: np.ndarray, masks: List[np.ndarray]) -> Figure:
    """density (N, N, N) above the level; motion in Å of the place of each voxel; masks of the bodies."""
    figure = new_figure("Motion inside the particle", height=7.4)
    grid = figure.add_gridspec(3, 3, height_ratios=(1, 1, 1.15))
    most = max(1.0, *(cell.displacement_angstrom for cell in found.cells))
    image: Any = None
    left = figure.add_subplot(grid[0, 0])
    for column, (axis, name) in enumerate(VIEWS):
        top = left if column == 0 else figure.add_subplot(grid[0, column])
        image = draw_motion(top, density, motion, axis, most)
        top.set_title(name, fontsize=8)
        below = figure.add_subplot(grid[1, column])
        draw_bodies(below, density, masks, axis)
        for axes in (top, below):
            axes.set_xticks([])
            axes.set_yticks([])
    figure.colorbar(image, ax=figure.axes[:len(VIEWS) * 2:2], label="Å per axis", shrink=0.9)
    draw_cells(figure.add_subplot(grid[2, :]), found.cells)
    return figure


def draw_motion(axes: Any, density: np.ndarray, motion: np.ndarray, axis: int, most: float) -> Any:
    """The motion in the mean over the density along a line."""
    total = density.sum(axis=axis)
    mean = (density * motion).sum(axis=axis) / np.maximum(total, 1e-9)
    shown = np.ma.masked_where(total < 0.03 * total.max(), mean)
    return axes.imshow(shown, origin="lower", cmap="viridis", vmin=0, vmax=most, interpolation="nearest")


def draw_bodies(axes: Any, density: np.ndarray, masks: List[np.ndarray], axis: int) -> None:
    """The projection of the density, each body in its colour."""
    inside = np.maximum(np.sum(masks, axis=0), 1)
    parts = [(density * mask / inside).sum(axis=axis) for mask in masks]
    largest = max(float(np.sum(parts, axis=0).max()), 1e-9)
    picture = np.ones(parts[0].shape + (3,))
    for k, part in enumerate(parts):
        picture -= np.clip(part / largest, 0, 1)[..., None] ** 0.5 * (1 - np.array(to_rgb(COLOURS[k % len(COLOURS)])))
    axes.imshow(np.clip(picture, 0, 1), origin="lower", interpolation="nearest")


def draw_cells(axes: Any, cells: Any) -> None:
    """Every cell's motion with its error, by body, and from where a motion is seen."""
    order: List[CellMotion] = sorted(cells, key=lambda cell: (cell.body, cell.displacement_angstrom))
    x = np.arange(len(order))
    for body in sorted({cell.body for cell in order}):
        these = [i for i, cell in enumerate(order) if cell.body == body]
        axes.errorbar(x[these], [order[i].displacement_angstrom for i in these],
                      [order[i].displacement_error_angstrom for i in these], fmt="o", ms=4, lw=1,
                      color=COLOURS[(body - 1) % len(COLOURS)],
                      label=f"body {body}, {100 * sum(order[i].share for i in these):.0f} % of the density")
    axes.step(x, [cell.detectable_angstrom for cell in order], where="mid", color="black", lw=1, ls=":",
              label="seen from (2 standard errors)")
    axes.set_xticks([])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    finish_axes(axes, "Cells", "Motion against body 1 (Å per axis)")


def write_png(run: str, path: Optional[Path] = None) -> Optional[Path]:
    """Write the picture beside the record, or elsewhere; None where there is nothing to show."""
    state = RunState(run)
    figure = still(state)
    if figure is None:
        return None
    target = path or state.folder.rigidity.with_name("rigidity.png")
    write_atomic(target, lambda name: figure.savefig(name, dpi=110))
    return target


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    written = write_png(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) == 3 else None)
    sys.exit(NO_RIGIDITY if written is None else 0)


if __name__ == "__main__":
    main()
