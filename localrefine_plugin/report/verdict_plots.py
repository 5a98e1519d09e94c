"""Picture of the verdicts on particles: pure function of arrays, as in plots.py."""
from __future__ import annotations

from typing import Any, Dict

import numpy as np
from matplotlib.figure import Figure

from ..engine.records.iteration import Verdict
from .plots import BLACK, BLUE, GREY, PURPLE, VERMILION, finish_axes, legend_above, new_figure, percent_weights

BINS = 40


def verdict_figure(halves: Dict[int, Dict[str, np.ndarray]], verdicts: Dict[int, Verdict]) -> Figure:
    """For each half-set the histogram of how well its particles fit, and the mixture that explains it."""
    figure = new_figure("Aligned and other particles", height=4.4)
    panels = figure.subplots(1, len(halves), squeeze=False)[0]
    for axes, (half, table) in zip(panels, sorted(halves.items())):
        draw_half(axes, table["gain"], verdicts[half], half)
    legend_above(figure, panels[0])
    return figure


def draw_half(axes: Any, gain: np.ndarray, verdict: Verdict, half: int) -> None:
    low, high = float(gain.min()), float(np.percentile(gain, 99.9))
    edges = np.linspace(low, max(high, low + 1e-3), BINS + 1)
    axes.hist(gain, bins=edges, weights=percent_weights(gain), color=GREY, alpha=0.35, label="Particles")
    at, width = np.linspace(edges[0], edges[-1], 200), edges[1] - edges[0]
    nulls = [(mean + verdict.shift, sigma) for mean, sigma in (verdict.others, verdict.noise)]
    # the models differ in strength between particles: that widens the aligned ones' peak
    aligned = gain[gain > nulls[0][0] + 2 * nulls[0][1]]
    spread = max(verdict.sigma, float(aligned.std()) if len(aligned) else 0.0)
    total = np.zeros(len(at))
    for share, (mean, sigma), colour, label in zip(
            verdict.shares, ((verdict.mean, spread), *nulls), (BLUE, VERMILION, PURPLE),
            ("Aligned", "Sub-volume elsewhere", "Empty")):
        density = np.exp(-0.5 * ((at - mean) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
        total += 100 * share * width * density
        axes.plot(at, 100 * share * width * density, color=colour, lw=1.6, label=label)
    axes.plot(at, total, color=BLACK, lw=1, ls="--", label="All")
    axes.set_title(f"half-set {half}: {100 * verdict.share_aligned:.0f} % aligned", fontsize=9)
    finish_axes(axes, "Fit at the best pose (s.d. of noise)", "Particles (%)" if half == 1 else "")
