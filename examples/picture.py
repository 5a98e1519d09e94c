"""The picture of the README, drawn from the demo's output: slices of the map and FSC to the truth, before and after.

    python -m examples.picture demo_output docs/images/demo.png
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, List

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)
import numpy as np  # noqa: E402

from . import evaluate  # noqa: E402

BEFORE, AFTER = "#8a8a8a", "#0072b2"


def main(demo: str, picture: str) -> None:
    data = Path(demo) / "data"
    final = next(Path(demo).glob("scipion_data/projects/demo/Runs/*_ProtLocalRefine/extra/run/final"))
    evaluation = evaluate.Evaluation(data)
    before = weighted([data / f"half{half}.mrc" for half in (1, 2)], evaluation.mask)
    after = weighted([final / f"half_map_{half}.mrc" for half in (1, 2)], evaluation.mask)
    gauge = evaluate.pose_errors(evaluate.read_poses(final / "particles.star"), evaluation.poses,
                                 evaluation.centroid)[2]
    truth = gauge.moved(evaluation.map, evaluation.pixel_size)
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), gridspec_kw=dict(width_ratios=(1, 1, 1, 1.3)),
                                layout="constrained")
    draw_slices(axes[:3], {"consensus": before, "after local refinement": after, "truth": truth}, evaluation)
    draw_fsc(axes[3], {"before": evaluate.fsc(before, evaluation.map, evaluation.mask),
                       "after": evaluate.fsc(after, truth, evaluation.mask)}, evaluation.pixel_size)
    Path(picture).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=100)


def weighted(half_files: List[Path], mask: np.ndarray) -> np.ndarray:
    """Mean of two half-maps weighted by sqrt(2F / (1 + F)), F their FSC in the mask, up to its first zero."""
    first, second = (evaluate.read_map(name) for name in half_files)
    curve = np.clip(evaluate.fsc(first, second, mask), 0, 1)
    curve[np.argmax(curve <= 0) or len(curve):] = 0
    n = first.shape[0]
    full, half = np.fft.fftfreq(n, 1 / n), np.arange(n // 2 + 1)
    shell = np.sqrt(full[:, None, None] ** 2 + full[:, None] ** 2 + half ** 2)
    weight = np.interp(shell, np.arange(len(curve)), np.sqrt(2 * curve / (1 + curve)), right=0)
    return np.fft.irfftn(np.fft.rfftn((first + second) / 2) * weight, s=first.shape)


def draw_slices(axes: np.ndarray, maps: Dict[str, np.ndarray], evaluation: evaluate.Evaluation) -> None:
    """The slice through the centroid of the head, with the outline of the mask."""
    n = evaluation.map.shape[0]
    z = int(round(n // 2 + evaluation.centroid[2] / evaluation.pixel_size))
    for axis, (title, volume) in zip(axes, maps.items()):
        inside = volume[evaluation.mask > 0.5]
        axis.imshow(volume[z], cmap="gray", origin="lower", vmin=np.percentile(inside, 5),
                    vmax=np.percentile(inside, 99.5))
        axis.contour(evaluation.mask[z], levels=[0.5], colors="#e69f00", linewidths=1)
        axis.set_title(title, fontsize=12)
        axis.axis("off")


def draw_fsc(axis: plt.Axes, curves: Dict[str, np.ndarray], pixel_size: float) -> None:
    for (name, curve), colour in zip(curves.items(), (BEFORE, AFTER)):
        frequency = np.arange(len(curve)) / (2 * (len(curve) - 1) * pixel_size)
        label = f"{name}: {evaluate.resolution(curve, pixel_size, 0.5):.1f} Å"
        axis.plot(frequency, curve, color=colour, label=label, lw=2)
    axis.axhline(0.5, color="k", lw=0.7, ls=":")
    axis.set(xlabel="1/Å", ylabel="FSC to the truth in the mask", ylim=(-0.05, 1.05), xlim=(0, None))
    axis.legend(frameon=False, fontsize=9)


if __name__ == "__main__":
    main(*sys.argv[1:])
