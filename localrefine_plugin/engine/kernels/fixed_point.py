"""Sums whose bits do not depend on the order of the additions: integers, and multiples of a power of two.

A GPU adds what its threads bring in any order, and floating-point additions do not commute with rounding. Integers
do. `FixedPointSums` is an accumulator of `insert_slices` in 64-bit integers.
"""
from __future__ import annotations

import copy
from typing import Any, Tuple

import numpy as np

from .device import to_host

Array = Any
BITS = 62  # of the magnitude that a cell may reach; 63 would fit beside the sign
PIXELS_PER_CELL = 8  # most pixels of one image that touch a cell: six points of a lattice of step ≥ 1.5 lie within √3
GROWTH = 16  # how much larger the largest value of a later batch may be before the sums lose bits
MOST_EXPONENT = 120
SUMMABLE = 2.0 ** 40


def summable(values: Array) -> Array:
    """Values in [0, 1] rounded to multiples of 2⁻⁴⁰: float64 sums of up to 2¹² of them are exact in any order."""
    return (values * SUMMABLE).round() / SUMMABLE


class FixedPointSums:
    """Σ as round(scale · term) in 64-bit integers (nx, nz, ny, 3), one scale for Re N and Im N, one for D.

    A cell's |Σ| is at most PIXELS_PER_CELL · max|Z| · Σγ over all insertions so far (trilinear weights and the damping
    are at most 1). The scale is the largest power of two that keeps this bound, for all the insertions to be expected,
    under 2^BITS / GROWTH; where later values are larger the sums are halved as often as it takes before they are
    added to. So no cell can overflow, whatever comes.

    Parameters
    ----------
    shape : of the float32 accumulator.  expected : Σγ to be expected in all (images times symmetry operators).
    xp : CuPy.
    """

    def __init__(self, shape: Tuple[int, ...], expected: float, xp: Any):
        self.sums = xp.zeros(shape, np.int64)
        self.expected, self.xp = expected, xp
        self.exponent = np.zeros(2, int)  # the scales are 2^exponent
        self.reached = np.zeros(2)  # bound of |Σ| so far, for N and D
        self.empty = True

    @property
    def scales(self) -> Tuple[np.float32, np.float32]:
        signal, weight = np.ldexp(1.0, self.exponent)
        return np.float32(signal), np.float32(weight)

    def make_room(self, image: Array, weight: Array, gamma: Array) -> None:
        """Before insertions of images Z and weights W with weights γ: scales with which they cannot overflow."""
        xp = self.xp
        largest = xp.stack([xp.abs(image).max(), weight.max(), gamma.sum().astype(np.float32)])
        signal, power, total = (float(v) for v in to_host(largest))
        added = PIXELS_PER_CELL * np.maximum([signal, power], 1e-30)
        if self.empty:
            self.exponent = largest_exponents(added * GROWTH * self.expected)
            self.empty = False
        # 1.001: the kernel's own rounding, and Σγ in float32
        self.reached = self.reached + 1.001 * added * total
        self.shift_right(np.maximum(self.exponent - largest_exponents(self.reached), 0))

    def __add__(self, other: "FixedPointSums") -> "FixedPointSums":
        """The sums of both, at the finest scales that hold them."""
        parts = [part.copied() for part in (self, other) if not part.empty]
        if not parts:
            return self.copied()
        reached = self.reached + other.reached
        common = np.minimum.reduce([part.exponent for part in parts] + [largest_exponents(reached)])
        total, *more = parts
        for part in parts:
            part.shift_right(part.exponent - common)
        for part in more:
            total.sums += part.sums
        total.reached = reached
        return total

    def copied(self) -> "FixedPointSums":
        new = copy.copy(self)
        new.sums = self.sums.copy()
        return new

    def shift_right(self, bits: np.ndarray) -> None:
        """Halve N and D as often as told, rounding down."""
        for part, count in zip((self.sums[..., :2], self.sums[..., 2:]), bits):
            if count:
                self.xp.right_shift(part, int(count), out=part)
        self.exponent = self.exponent - bits

    def to_float(self, xp: Any = np) -> Array:
        """The sums as a float32 accumulator (nx, nz, ny, 3), numpy's or CuPy's, plane by plane."""
        scale = xp.asarray(np.ldexp(1.0, -self.exponent[[0, 0, 1]]))
        result = xp.empty(self.sums.shape, np.float32)
        for x in range(len(result)):
            result[x] = (to_host(self.sums[x]) if xp is np else self.sums[x]) * scale
        return result


def largest_exponents(bound: np.ndarray) -> np.ndarray:
    """Largest exponents e (2,) with 2^e · bound < 2^BITS, and 2^e well inside float32's range."""
    return np.minimum(BITS - np.ceil(np.log2(bound) + 1e-9), MOST_EXPONENT).astype(int)
