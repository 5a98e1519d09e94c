"""Comparisons of bits."""
from __future__ import annotations

import numpy as np
from numba import njit

BITS_SET = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(axis=1, dtype=np.uint8)

ROW_BITS, OF_ROW = np.uint64(32), np.uint64((1 << 32) - 1)  # of a number of 64 bits, the last ones are a row


@njit(cache=True, nogil=True)
def alike_neighbours(marks, ordered, farthest, most, bits_set):  # type: ignore[no-untyped-def]
    """Pairs (m,) uint64 of rows of ``marks`` (n, words) uint16 that differ in fewer than ``most`` bits, the first row
    in the upper 32 bits, of those with the same key that are less than ``farthest`` apart in ``ordered`` (n,) uint64:
    the key in the upper 32 bits, and the row."""
    found = []
    for i in range(len(ordered)):
        one = ordered[i] & OF_ROW
        for j in range(i + 1, min(i + farthest, len(ordered))):
            if ordered[i] >> ROW_BITS != ordered[j] >> ROW_BITS:
                break
            other = ordered[j] & OF_ROW
            differ = 0
            for word in range(marks.shape[1]):
                differ += bits_set[marks[np.int64(one), word] ^ marks[np.int64(other), word]]
                if differ >= most:
                    break
            if differ < most:
                found.append(one << ROW_BITS | other)
    pairs = np.empty(len(found), np.uint64)
    for row in range(len(found)):
        pairs[row] = found[row]
    return pairs
