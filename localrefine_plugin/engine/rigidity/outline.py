"""The verb outline: a mask of the whole particle, for the refinement that rigidity starts from."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from ..align.static_part import outline_of
from ..io.mrc import read_map, write_map
from ..maps.mask import dilate_soft
from ..progress import say
from ..records.errors import InputError

LOWPASS_ANGSTROM = 12.0  # of the map that is outlined
NEAR_ANGSTROM, EDGE_ANGSTROM = 3.0, 25.0


def outline(half_map_1: str, half_map_2: str, path: str) -> np.ndarray:
    """Write a soft mask (N, N, N) of all that two half-maps show.

    Raises InputError where the half-maps do not fit each other, or there is a file at ``path`` already.
    """
    if Path(path).exists():
        raise InputError("is there already", f"mask {path}", "give another name")
    (first, pixel_size), (second, other) = (read_map(name) for name in (half_map_1, half_map_2))
    if first.shape != second.shape or abs(pixel_size - other) > 1e-3 * pixel_size:
        raise InputError(f"has {second.shape[0]} px of {other:.4f} Å, not {first.shape[0]} of {pixel_size:.4f}",
                         str(half_map_2), "give the two half-maps of one refinement")
    inside = outline_of(0.5 * (first + second), pixel_size, LOWPASS_ANGSTROM, 1)
    mask = dilate_soft(inside, pixel_size, NEAR_ANGSTROM, EDGE_ANGSTROM)
    write_map(path, mask, pixel_size)
    say(f"mask of the whole particle: {path}; look at it before you use it")
    return mask
