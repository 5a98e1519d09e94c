"""Sums of a few functions on many pixels, with coefficients of each image: a matrix product of small inner size.

BLAS chooses its kernel by the number of images, and the last bits with it; what an image gives must not depend on those
that it is computed with.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .device import array_module

Array = Any


def combined(coefficients: Array, functions: Array) -> Array:
    """Σ_j c_nj f_jk (n, K) float32 of c (n, J) and f (J, K) float32, added in the order of j."""
    if array_module(functions) is np:
        return _combined_cpu(coefficients, functions)
    out = coefficients[:, :1] * functions[0]
    for j in range(1, len(functions)):
        out += coefficients[:, j:j + 1] * functions[j]
    return out


@njit(parallel=True, cache=True, nogil=True)
def _combined_cpu(coefficients, functions):  # type: ignore[no-untyped-def]
    n, count = coefficients.shape
    out = np.empty((n, functions.shape[1]), np.float32)
    for i in prange(n):
        row = out[i]
        row[:] = coefficients[i, 0] * functions[0]
        for j in range(1, count):
            c, f = coefficients[i, j], functions[j]
            for k in range(row.shape[0]):
                row[k] += c * f[k]
    return out
