"""One picture of all null tests of a run."""
from __future__ import annotations

from typing import Optional, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..engine.records.results import NullTest
from .plots import BLACK, BLUE, GREEN, GREY, VERMILION, new_figure

MOVED = "Å moved"  # of the control by the rest, whose verdict is no range of one number
BELOW, ABOVE = 0.4, 1.2  # how many widths of the expected range are drawn on either side


def validation_figure(tests: Sequence[NullTest]) -> Figure:
    """Each test a row: the expected range as a bar of the same length, what was found as a dot in or out of it.

    Parameters
    ----------
    tests : ``high`` is None for a resolution that must not be finer.
    """
    figure = new_figure("Null tests: all should come out negative", height=1.2 + 0.62 * len(tests))
    axes = figure.add_subplot()
    for row, test in enumerate(tests):
        y = -row
        axes.plot((0, 1), (y, y), color=GREEN, lw=11, alpha=0.35, solid_capstyle="butt")
        axes.text(0, y + 0.3, test.title, fontsize=9, color=BLACK, va="bottom")
        place = place_in_range(test)
        if place is not None:
            at = float(np.clip(place, -BELOW, 1 + ABOVE))
            marker = "o" if at == place else ">" if place > 0 else "<"
            axes.plot(at, y, marker, ms=9, color=BLUE if test.passed else VERMILION)
        axes.text(1.2 + ABOVE, y, found_words(test), fontsize=9, va="center",
                  color=GREY if test.passed is None else BLACK if test.passed else VERMILION)
    axes.set_xlim(-BELOW - 0.1, 4.0)
    axes.set_ylim(0.8 - len(tests), 0.9)
    axes.axis("off")
    return figure


def place_in_range(test: NullTest) -> Optional[float]:
    """0 at the low end of the expected range, 1 at its high end; None without a value.

    An open range begins at the finest resolution expected, on the right, and is as long as that is in Å.
    """
    value, low, high = test.value, test.low, test.high
    if value is None:
        return None
    if test.unit == MOVED:
        return 0.5 if test.passed else -0.5 * BELOW
    if high is None:
        return 2 - value / low
    return (value - low) / (high - low)


def found_words(test: NullTest) -> str:
    if test.value is None:
        return "not done"
    if test.unit == MOVED:
        return f"{test.value:.1f} Å{' by itself' if test.passed else ': follows the rest'}"
    if test.high is None:
        return f"{test.value:.1f} {test.unit}  (not finer than {test.low:.1f})"
    if test.unit == "of the particles":
        return f"{100 * test.value:.1f} %  (at most {100 * test.high:.1f} %)"
    if test.unit == "FSC":
        return f"FSC {test.value:.3f}  (at most {test.high:.3f})"
    return f"{test.value:.1f} {test.unit}  (at most {test.high:.1f})"
