"""Sums whose bits do not depend on the order of the additions: integers, and multiples of a power of two.

Floating-point additions do not commute with rounding, so that the last bits of a sum depend on the order in which the
threads of a GPU, or several workers, bring their terms. Integers commute. `FixedPointSums` is an accumulator of
`insert_slices` in 64-bit integers, `exact_sums` the sum of images pixel by pixel.
"""
from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np
from numba import njit, prange

from . import cuda
from .device import array_module, blank, to_host

Array = Any
BITS = 62  # of the magnitude that a sum may reach; 63 would fit beside the sign
PIXELS_PER_CELL = 8  # most pixels of one image that touch a cell: six points of a lattice of step ≥ 1.5 lie within √3
LARGEST_TERM = 2.0 ** 50  # the kernel of the CPU rounds by adding 1.5 · 2⁵² in float64
USUAL_SIGNAL = 64.0  # largest |Z| of an image in units of the largest 1/σ, on average: in pure noise it is 4 to 5
SIGNAL_BITS, WEIGHT_BITS = 36, 48  # at most, below the largest 1/σ and 1/σ²: float32 has 24, and more leave less room
MOST_EXPONENT = 120  # 2^e is a float32
LOWERED_BITS = 12  # after sums that left their range
SUMMABLE = 2.0 ** 40


class OutOfRange(ArithmeticError):
    """Terms or their sum are larger than the scale of a `FixedPointSums` allows."""


def summable(values: Array) -> Array:
    """Values in [0, 1] rounded to multiples of 2⁻⁴⁰: float64 sums of up to 2¹² of them are exact in any order."""
    return (values * SUMMABLE).round() / SUMMABLE


def exponents(largest_weight: float, insertions: float, lowered: int = 0) -> np.ndarray:
    """(2,) exponents e of the scales 2^e of N and D, from what is known before the first image is seen.

    Parameters
    ----------
    largest_weight : of α² C²/σ², for |C| ≤ 1.  insertions : Σγ of all (images times symmetry operators).
    lowered : how often sums with a finer scale have been `OutOfRange`.
    """
    room = BITS - np.log2(PIXELS_PER_CELL * max(insertions, 1.0))
    sigma = np.sqrt(largest_weight)
    exponent = [min(SIGNAL_BITS, room - np.log2(USUAL_SIGNAL)) - np.log2(sigma),
                min(WEIGHT_BITS, room - 1) - np.log2(largest_weight)]
    result: np.ndarray = np.clip(np.floor(exponent), -MOST_EXPONENT, MOST_EXPONENT).astype(int) - LOWERED_BITS * lowered
    return result


class FixedPointSums:
    """Σ as round(2^e · term) in 64-bit integers (nx, nz, ny, 3), one e for Re N and Im N, one for D.

    A cell's |Σ| is at most PIXELS_PER_CELL · Σ max|Z| γ over all insertions (trilinear weights and the damping are at
    most 1). Where 2^e times this bound, or a term, would not fit, `make_room` raises OutOfRange: the sums are then made
    again with smaller exponents. So no cell can overflow, whatever comes, and every worker has the same scale.

    Parameters
    ----------
    shape : of the float32 accumulator.  exponent : (2,), of `exponents`.  xp : numpy or CuPy.
    """

    def __init__(self, shape: Tuple[int, ...], exponent: np.ndarray, xp: Any):
        self.sums = blank(shape, np.int64, xp)
        self.exponent, self.xp = exponent, xp
        self.reached = np.zeros(2)  # bound of |Σ| so far, for N and D

    @property
    def scales(self) -> Tuple[np.float32, np.float32]:
        signal, weight = np.ldexp(1.0, self.exponent)
        return np.float32(signal), np.float32(weight)

    def make_room(self, image: Array, weight: Array, gamma: Array) -> None:
        """Before insertions of images Z and weights W with weights γ: raise OutOfRange if they do not fit."""
        signal, power, total = largest_of(image, weight, gamma)
        largest = np.maximum([signal, power], 1e-30)
        # 1.001: the kernel's own rounding, and Σγ in float32
        self.reached = self.reached + 1.001 * PIXELS_PER_CELL * largest * total
        if (np.ldexp(largest, self.exponent) >= LARGEST_TERM).any() or not self.fit():
            raise OutOfRange

    def fit(self) -> bool:
        """Whether the sums are in their range."""
        return bool((np.ldexp(self.reached, self.exponent) < 2.0 ** BITS).all())

    def to_float(self, xp: Any = np) -> Array:
        """The sums as a float32 accumulator (nx, nz, ny, 3), numpy's or CuPy's, plane by plane."""
        scale = xp.asarray(np.ldexp(1.0, -self.exponent[[0, 0, 1]]))
        result = xp.empty(self.sums.shape, np.float32)
        for x in range(len(result)):
            result[x] = (to_host(self.sums[x]) if xp is np else xp.asarray(self.sums[x])) * scale
        return result


def largest_of(image: Array, weight: Array, gamma: Array) -> Tuple[float, float, float]:
    """A bound of max|Z| (at most √2 times it), max W and Σγ."""
    xp = array_module(image)
    parts = image.view(np.float32)
    largest = xp.stack([abs(parts).max() if xp is not np else max(parts.max(), -parts.min()), weight.max(),
                        gamma.sum().astype(np.float32)])
    signal, power, total = (float(v) for v in to_host(largest))
    return np.sqrt(2.0) * signal, power, total


def exact_sums(values: Array, scale: Array, factor: Optional[Array] = None) -> Array:
    """Σ_i rint(scale_p · f_i · v_ip) (P,) int64 of values (n, …) float32 with P pixels each.

    The same bits for any order and any division of the images. What is beyond ± 2⁵⁰ after scaling is cut off there.

    Parameters
    ----------
    scale : (P,) float64, powers of two.  factor : (n,) float32; None: ones.
    """
    xp, n = array_module(values), len(values)
    flat = values.reshape(n, -1)
    factor = xp.ones(n, np.float32) if factor is None else factor
    return _exact_sums_cpu(flat, scale, factor) if xp is np else cuda.exact_sums(flat, scale, factor)


@njit(parallel=True, cache=True, nogil=True)
def _exact_sums_cpu(values, scale, factor):  # type: ignore[no-untyped-def]
    n, count = values.shape
    sums = np.zeros(count, np.int64)
    piece = 2048  # pixels of a task: their sums stay in the L1 cache
    for task in prange((count + piece - 1) // piece):
        for i in range(n):
            for p in range(task * piece, min((task + 1) * piece, count)):
                term = scale[p] * np.float64(factor[i] * values[i, p])
                sums[p] += np.int64(np.rint(min(max(term, -LARGEST_TERM), LARGEST_TERM)))
    return sums
