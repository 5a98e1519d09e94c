"""Sums of two half-spectra over cells of samples: Re F₁F₂*, |F₁|² and |F₂|², each in the order of the samples.

GPU twin: cones.cu.
"""
from __future__ import annotations

from typing import Any, Tuple

import numpy as np
from numba import njit

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
    sums, numbers = np.zeros((count, 3)), np.zeros(count, np.int64)
    rows = [np.ascontiguousarray(f, np.complex64).view(np.float32).reshape(-1, 2) for f in (first, second)]
    _cell_sums_cpu(np.ascontiguousarray(cells).ravel(), *rows, sums, numbers)
    return sums, numbers


@njit(cache=True, nogil=True)
def _cell_sums_cpu(cells, first, second, sums, numbers):  # type: ignore[no-untyped-def]
    for i in range(len(cells)):
        cell = cells[i]
        if cell < len(numbers):
            a, b = first[i], second[i]
            sums[cell, 0] += a[0] * b[0] + a[1] * b[1]
            sums[cell, 1] += a[0] * a[0] + a[1] * a[1]
            sums[cell, 2] += b[0] * b[0] + b[1] * b[1]
            numbers[cell] += 1
