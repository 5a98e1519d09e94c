"""The picture of docs/explanation/motion-prior.md:  python docs/tools/draw_motion_prior.py

A sub-volume that turns about one axis through a hinge; what 400 images say about it, and what is learned from them.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, List, Tuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch

from localrefine_plugin.engine.model.pose import exp_map, random_rotations
from localrefine_plugin.engine.motion.motion_prior import (
    Evidence,
    about_point,
    isotropic_covariance,
    learn,
    seen_in_projection,
)
from localrefine_plugin.report.plots import BLUE, GREY, SKY, VERMILION

PICTURE = Path(__file__).resolve().parents[1] / "images" / "motion_prior.png"
HINGE = np.array([-10.0, 0.0, 0.0])  # px from the centre of the mask
WIDTHS_DEG, AT_HINGE_PX, NOISE = (2.0, 2.0, 6.0), 0.5, np.array([np.deg2rad(3.0)] * 3 + [0.6] * 2)


def main() -> None:
    figure = Figure(figsize=(9.6, 3.3), dpi=110, layout="constrained")
    scene, cloud, course = figure.subplots(1, 3)
    draw_scene(scene)
    draw_learning(cloud, course)
    FigureCanvasAgg(figure)
    figure.savefig(PICTURE)


def draw_scene(axes: Any) -> None:
    """The sub-volume where it was and where it went."""
    for angle, colour, style in ((0.0, GREY, "--"), (28.0, BLUE, "-")):
        turn = exp_map(np.array([0, 0, np.deg2rad(angle)]))
        centre = HINGE - turn @ HINGE
        axes.add_patch(Ellipse(centre[:2], 15, 9, angle=angle, fc="none", ec=colour, lw=2, ls=style))
        axes.plot([HINGE[0], centre[0]], [HINGE[1], centre[1]], color=colour, lw=1, ls=style)
        axes.plot(*centre[:2], "o", color=colour)
    axes.add_patch(FancyArrowPatch((0, 0), centre[:2], arrowstyle="-|>", mutation_scale=14, color=VERMILION))
    axes.text(0.5, 1.2, "d", color=VERMILION, fontsize=13)
    axes.text(-6.6, 0.5, "w", fontsize=13)
    axes.plot(*HINGE[:2], "+", ms=14, mew=2.5, color=VERMILION)
    axes.text(HINGE[0], -1.8, "hinge h", ha="center", va="top", fontsize=9)
    axes.text(0, -1.2, "centre of the mask", ha="center", va="top", fontsize=9, color=GREY)
    axes.set(xlim=(-14, 9), ylim=(-8, 13), aspect="equal", title="d = h × w, and what is left")
    axes.axis("off")


def draw_learning(cloud: Any, course: Any) -> None:
    """One cut through six dimensions, and the widths sweep by sweep."""
    own = isotropic_covariance(0.0, AT_HINGE_PX)
    own[:3, :3] = np.diag(np.deg2rad(WIDTHS_DEG) ** 2)
    truth, start = about_point(own, -HINGE), isotropic_covariance(7.0, 1.6)
    evidence, said = simulated(truth, 400)
    cloud.plot(np.rad2deg(said[:, 0]), said[:, 1], ".", ms=3, color=GREY, label="what each image says")
    steps: List[np.ndarray] = [start]
    for _ in range(4):
        steps.append(learn(evidence, steps[-1], start))
    for covariance, colour, name in ((start, SKY, "prior to begin with"), (steps[-1], VERMILION, "learned"),
                                     (truth, "black", "true")):
        x, y = outline(covariance[np.ix_([2, 4], [2, 4])])
        cloud.plot(np.rad2deg(x), y, color=colour, lw=2, ls=":" if name == "true" else "-", label=name)
    cloud.set(xlabel="rotation about z (°)", ylabel="displacement along y (px)", title="two of six dimensions, 2 s.d.",
              xlim=(-22, 22), ylim=(-5.5, 5.5))
    cloud.legend(fontsize=7, loc="upper left", frameon=False)
    names = (("rotation about z", 2, VERMILION), ("about x", 0, BLUE))
    for name, i, colour in names:
        course.plot([np.rad2deg(np.sqrt(s[i, i])) for s in steps], "o-", color=colour, label=name)
        course.axhline(WIDTHS_DEG[i], color=colour, ls=":")
    course.set(xlabel="iteration", ylabel="standard deviation (°)", ylim=(0, 8), title="widths, dotted: true")
    course.legend(fontsize=8, frameon=False)


def simulated(covariance: np.ndarray, n: int) -> Tuple[Evidence, np.ndarray]:
    """Evidence of n images and their (rotation about z, displacement along y) as far as it can be seen."""
    rng = np.random.default_rng(1)
    x = rng.multivariate_normal(np.zeros(6), covariance, n)
    rotation0 = random_rotations(n, rng)
    y = (seen_in_projection(rotation0) @ x[..., None])[..., 0] + NOISE * rng.standard_normal((n, 5))
    curvature = np.tile(np.diag(NOISE ** -2), (n, 1, 1))
    along_y = np.abs(rotation0[:, :2, 1])
    best = along_y.argmax(axis=1)
    seen = y[np.arange(n), 3 + best] / rotation0[np.arange(n), best, 1]
    shown = along_y.max(axis=1) > 0.85
    evidence = Evidence(rotation0, curvature, (curvature @ y[..., None])[..., 0], np.ones(len(y)))
    return evidence, np.stack([y[shown, 2], seen[shown]], axis=1)


def outline(covariance: np.ndarray) -> np.ndarray:
    """(2, 73) points two standard deviations away."""
    angle = np.linspace(0, 2 * np.pi, 73)
    points: np.ndarray = 2 * np.linalg.cholesky(covariance) @ np.stack([np.cos(angle), np.sin(angle)])
    return points


if __name__ == "__main__":
    main()
