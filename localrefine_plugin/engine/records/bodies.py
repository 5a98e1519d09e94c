"""What a run of several masks says of all its bodies together."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

ALIKE_IN_ALL = ("resplit_half_sets", "seed", "symmetry", "resample_maps", "exchange_half_maps")
"""Settings that decide which particles and maps there are: bodies that differ in them could not be put together."""


@dataclass(frozen=True)
class MovingPair:
    """Two bodies that turn together, or not.

    Attributes
    ----------
    first, second : their numbers, from 1.  shared : of the smaller mask, how much lies in the other.
    correlation, error : of the rotations about the strongest pair of axes, each half-set about the axes that the other
        one shows; its standard error, NaN of too few particles.
    move_first : (6,) degrees and Å, one standard deviation of the first body's rotation, with what goes with it.
    move_second : (6,) the mean motion of the second body then.
    """

    first: int
    second: int
    shared: float
    correlation: float
    error: float
    move_first: Tuple[float, ...]
    move_second: Tuple[float, ...]


@dataclass(frozen=True)
class JointMotion:
    """Attributes
    ----------
    bodies : N.  covariance : of each half-set (6N, 6N), of the motions against the input poses, in degrees and Å.
    pairs : of the bodies.  words : in sentences.
    """

    bodies: int
    covariance: Tuple[Tuple[Tuple[float, ...], ...], ...]
    pairs: Tuple[MovingPair, ...]
    words: Tuple[str, ...]


@dataclass(frozen=True)
class Bodies:
    """bodies.json.

    Attributes
    ----------
    density_share : of each body, the share of the particle's density that is in its mask.
    shared_with_others : of each body, the share of its density that is in other masks, too.
    rest_share : of the particle's density, that no mask covers.
    words : how the masks lie, in sentences.  warnings : what is doubtful.
    motion : of all bodies together; None before the end.
    """

    density_share: Tuple[float, ...]
    shared_with_others: Tuple[float, ...]
    rest_share: float
    words: Tuple[str, ...] = ()
    warnings: Tuple[str, ...] = ()
    motion: Optional[JointMotion] = None
