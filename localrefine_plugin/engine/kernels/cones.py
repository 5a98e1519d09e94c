"""Sums of two half-spectra over cells of samples: Re F₁F₂*, |F₁|² and |F₂|², each in the order of the samples.

GPU twin: cones.cu.
"""
from __future__ import annotations

from typing import Any, Tuple

import numpy as np

from . import cuda
from .device import array_module, to_host

Array = Any


def cell_sums(cells: Array, first: Array, second: Array, count: int) -> Tuple[np.ndarray, np.ndarray]:
    """(count, 3) float64, and how many samples each cell has (count,), on the host.

    cells : (…) int32, the cell of each sample; those of ``count`` or more are left out.  first, second : (…) complex64.
    """
    if array_module(cells) is not np:
        sums, numbers = cuda.cell_sums(cells, first, second, count)
        return to_host(sums), to_host(numbers)
    inside = cells < count
    cell = cells[inside]
    values = (first * second.conj()).real, np.abs(first) ** 2, np.abs(second) ** 2
    return (np.stack([np.bincount(cell, value[inside], count) for value in values], axis=1),
            np.bincount(cell, minlength=count))
