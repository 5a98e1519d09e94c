"""What a run of several masks says of all its bodies together."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Bodies:
    """bodies.json.

    Attributes
    ----------
    density_share : of each body, the share of the particle's density that is in its mask.
    shared_with_others : of each body, the share of its density that is in other masks, too.
    rest_share : of the particle's density, that no mask covers.
    words : how the masks lie, in sentences.  warnings : what is doubtful.
    """

    density_share: Tuple[float, ...]
    shared_with_others: Tuple[float, ...]
    rest_share: float
    words: Tuple[str, ...] = ()
    warnings: Tuple[str, ...] = ()
