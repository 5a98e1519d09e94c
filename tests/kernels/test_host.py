"""What a process does with memory that it frees."""
from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import numpy as np
import pytest

from localrefine_plugin.engine.kernels.host import reused_memory

PIXELS = 1 << 24  # 64 MiB, more than glibc ever keeps by itself


def faults(arrays: int) -> int:
    """How often the system gave a page to arrays that are made and freed one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(arrays):
        np.ones(PIXELS, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_used_again_and_given_back_at_the_end():
    faults(1)
    plain = faults(4)
    with reused_memory():
        faults(1)
        again, kept = faults(4), resident_bytes()
    assert again < plain / 10
    assert resident_bytes() < kept - 3 * PIXELS
    assert faults(4) > plain / 2


def test_an_error_passes_through():
    with pytest.raises(ZeroDivisionError), reused_memory():
        raise ZeroDivisionError
