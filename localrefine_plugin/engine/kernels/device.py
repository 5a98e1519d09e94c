"""Which array library and which card: the only place that knows both numpy and CuPy.

The device is a word at the edge ("auto", "cpu", "cuda", "cuda:1"); inside the engine an array
carries it and `array_module` asks the array.
"""
from __future__ import annotations

from typing import Any

import numpy as np


def array_module(array: Any) -> Any:
    """numpy or cupy, whichever ``array`` belongs to (Python scalars count as numpy)."""
    if type(array).__module__.split(".")[0] == "cupy":
        import cupy
        return cupy
    return np
