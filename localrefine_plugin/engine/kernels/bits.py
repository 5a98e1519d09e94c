"""Comparisons of bits."""
from __future__ import annotations

import numpy as np
from numba import njit

BITS_SET = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(axis=1, dtype=np.uint8)


@njit(cache=True, nogil=True)
def alike_neighbours(marks, order, keys, farthest, most, bits_set):  # type: ignore[no-untyped-def]
    """Rows (m, 2) of ``marks`` (n, words) uint16 that differ in fewer than ``most`` bits, of those whose ``keys``
    (n,) are the same and which are less than ``farthest`` apart in their ``order`` (n,)."""
    found = []
    for i in range(len(order)):
        for j in range(i + 1, min(i + farthest, len(order))):
            one, other = order[i], order[j]
            if keys[one] != keys[other]:
                break
            differ = 0
            for word in range(marks.shape[1]):
                differ += bits_set[marks[one, word] ^ marks[other, word]]
                if differ >= most:
                    break
            if differ < most:
                found.append((one, other))
    pairs = np.empty((len(found), 2), np.int64)
    for row in range(len(found)):
        pairs[row, 0], pairs[row, 1] = found[row]
    return pairs
