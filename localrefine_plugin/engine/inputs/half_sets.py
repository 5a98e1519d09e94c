"""Half-sets: new ones for particles whose old ones shall not count, and signs that they were replaced before."""
from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Optional, Tuple

import numpy as np

from ..io.star import StarTable
from ..records.errors import InputError
from ..records.particles import Particles

TUBE = "rlnHelicalTubeID"
LEAST_FOR_PARITY = 24  # particles; a random split has the parity of so many with a chance of 1e-7
PARITY_TEXT = ("half-set = 1 + parity of the particle's id, which is what cryosparc2 5.0.1 writes over the split of a "
               "set it is given; only half-maps that were made with this split are independent "
               "(docs/how-to/chain-programs.md)")


def resplit(particles: Particles, seed: int, tubes: Optional[np.ndarray] = None) -> Particles:
    """The particles in two new random half-sets; all copies of one image, and all segments of one filament, stay
    together.

    Of images there are equally many in both; of filaments, each in turn, the longest first, goes to the smaller one.

    Parameters
    ----------
    tubes : (n,) of `tubes_of`.
    """
    if tubes is None:
        images = np.stack([particles.stack.astype(np.int64), particles.slice])
        distinct, together = np.unique(images, axis=1, return_inverse=True)
        count = distinct.shape[1]
    else:
        together = tubes
        count = int(tubes.max()) + 1
    if count < 2:
        raise InputError("all rows are copies of one image" if tubes is None else "all segments are of one filament",
                         "particles", "give at least two images" if tubes is None else "give at least two filaments")
    half = np.random.default_rng(seed).permutation(count) % 2 + 1 if tubes is None else _balanced(tubes, count, seed)
    return replace(particles, half_set=half[together.reshape(-1)].astype(np.int8))


def _balanced(tubes: np.ndarray, count: int, seed: int) -> np.ndarray:
    size = np.bincount(tubes, minlength=count)
    order = np.random.default_rng(seed).permutation(count)
    half, filled = np.empty(count, np.int64), [0, 0]
    for tube in order[np.argsort(-size[order], kind="stable")]:
        smaller = int(filled[1] < filled[0])
        half[tube] = smaller + 1
        filled[smaller] += int(size[tube])
    return half


def tubes_of(table: StarTable) -> Optional[np.ndarray]:
    """(n,) number of each row's filament, by rlnHelicalTubeID in its micrograph; None where no row has one."""
    columns = table.texts(["rlnMicrographName", TUBE])
    if TUBE not in columns:
        return None
    numbers = np.array([_number(text) for text in columns[TUBE]])
    if not (numbers > 0).any():  # other programs fill the column with 0
        return None
    micrographs = columns.get("rlnMicrographName", [""] * len(numbers))
    known: Dict[Tuple[str, float], int] = {}
    keys = [(micrograph, number) if number > 0 else (f"row {row}", 0.0)  # without a filament a row is on its own
            for row, (micrograph, number) in enumerate(zip(micrographs, numbers))]
    return np.array([known.setdefault(key, len(known)) for key in keys])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def filament_warning(tubes: Optional[np.ndarray], half_set: np.ndarray, star: str) -> List[str]:
    """What is said of filaments with segments in both half-sets."""
    if tubes is None:
        return []
    count = int(tubes.max()) + 1
    in_both = np.ones(count, bool)
    for half in (1, 2):
        in_both &= np.bincount(tubes[half_set == half], minlength=count) > 0
    if not in_both.any():
        return []
    return [f"{star}: {int(in_both.sum())} of {count} filaments ({TUBE}) have segments in both half-sets. Segments "
            "that overlap show the same pixels, so the half-maps share noise and the FSC is too good. Give the "
            "half-sets of a helical refinement, which keeps a filament together, or set resplit_half_sets"]


def parity_split(ids: np.ndarray, half_set: np.ndarray) -> bool:
    """Whether every half-set (n,) is 1 + id mod 2, for ids (n,) of both parities."""
    odd = np.asarray(ids) % 2
    mixed = len(odd) >= LEAST_FOR_PARITY and 0 < odd.sum() < len(odd)
    return bool(mixed) and np.array_equal(np.asarray(half_set), 1 + odd)
