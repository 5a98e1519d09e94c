"""Some of many items, and a loop over all in batches that a device's memory can hold."""
from __future__ import annotations

from typing import Callable, Tuple

import numpy as np

from ..records.errors import InputError
from .device import Device

SMALLEST_BATCH = 16  # fewer items at a time would leave a GPU idle


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """0 … count − 1, or so many of these from end to end."""
    return np.unique(np.linspace(0, count - 1, most).astype(int))


def in_batches(do: Callable[[np.ndarray], None], span: Tuple[int, int], size: int, device: Device,
               remedy: Callable[[float], str]) -> None:
    """``do(index)`` for a span (first, end) in order, ``size`` at a time.

    When the device's memory is full the batch is halved and tried again, down to SMALLEST_BATCH; ``do`` must not
    have kept anything of a batch that it did not finish. ``remedy`` says what would fit into so many bytes.

    Raises
    ------
    InputError : the smallest batch does not fit.
    """
    start, end = span
    while start < end:
        index = np.arange(start, min(start + size, end))
        try:
            do(index)
        except Exception as full:
            if not device.says_full(full):
                raise
            if len(index) <= SMALLEST_BATCH:
                raise InputError(f"its memory is full with {len(index)} images at a time ({full})",
                                 f"device {device.word}", remedy(device.memory_bytes())) from None
            size = max(SMALLEST_BATCH, len(index) // 2)
        else:
            start = int(index[-1]) + 1
            continue
        device.release()  # out here the exception, and the arrays its frames held, are gone
