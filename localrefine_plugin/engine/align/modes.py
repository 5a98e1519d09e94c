"""Pose hypotheses, one row of a table for each: what the search hands from one step to the next."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels.device import array_module, to_host

Array = Any
# Name, place and shape of what a row holds; kernels/poses.cuh has the same numbers.
COLUMNS = {"w": (0, (3,)), "shift": (3, (2,)), "rotation": (5, (3, 3)), "log_likelihood": (14, ()), "score": (15, ()),
           "curvature": (16, (5, 5)), "precision": (41, (5, 5)), "gradient": (66, (5,))}
WIDTH = 71


@dataclass(frozen=True)
class Modes:
    """m pose hypotheses, several per image: owner (m,) int, their image; table (m, WIDTH) float64, of which these are
    views:

    w (m, 3) rad; shift (m, 2) px (u of the mask centre); rotation (m, 3, 3);
    log_likelihood (m,); score (m,) = log likelihood + log prior; curvature (m, 5, 5) of the
    likelihood; precision (m, 5, 5) and gradient (m, 5) of the posterior, in (right increment of R in rad, u in px).
    """

    owner: Array
    table: Array

    @classmethod
    def of(cls, owner: Array, **columns: Array) -> "Modes":
        """Modes of these columns, by name; zeros where none is given."""
        table = array_module(owner).zeros((len(owner), WIDTH))
        return cls(owner, table).changed(**columns)

    def column(self, name: str) -> Array:
        start, shape = COLUMNS[name]
        view = self.table[:, start:start + int(np.prod(shape, dtype=int))]
        return view.reshape((len(view),) + shape) if shape else view[:, 0]

    w = property(lambda self: self.column("w"))
    shift = property(lambda self: self.column("shift"))
    rotation = property(lambda self: self.column("rotation"))
    log_likelihood = property(lambda self: self.column("log_likelihood"))
    score = property(lambda self: self.column("score"))
    curvature = property(lambda self: self.column("curvature"))
    precision = property(lambda self: self.column("precision"))
    gradient = property(lambda self: self.column("gradient"))

    def changed(self, **columns: Array) -> "Modes":
        """The modes with other values in some columns."""
        table = self.table.copy()
        for name, values in columns.items():
            start, shape = COLUMNS[name]
            width = int(np.prod(shape, dtype=int))
            table[:, start:start + width] = values.reshape(len(table), width)
        return Modes(self.owner, table)

    def take(self, index: Array) -> "Modes":
        """These modes, or those where ``index`` is true; a mask is counted once: that waits."""
        index = array_module(index).nonzero(index)[0] if index.dtype == bool else index
        return Modes(self.owner[index], self.table[index])

    def join(self, other: "Modes") -> "Modes":
        xp = array_module(self.table)
        return Modes(xp.concatenate([self.owner, other.owner]), xp.concatenate([self.table, other.table]))

    def assign(self, index: Array, other: "Modes") -> None:
        """Overwrite these modes in place; their images stay the same."""
        self.table[index] = other.table

    def to_host(self) -> "Modes":
        """The modes as numpy arrays."""
        return Modes(to_host(self.owner), to_host(self.table))


def best_modes(modes: Modes, n: int) -> Modes:
    """The best mode of each image, in image order; ``modes`` are in that order, best first."""
    xp = array_module(modes.table)
    return modes.take(xp.searchsorted(modes.owner, xp.arange(n)))
