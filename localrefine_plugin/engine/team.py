"""Those who align a half-set together: what they hand out, collect and add up.

A team has members that all run the same steps: threads of one process (who is alone is a team of one), processes on one
machine, or ranks of MPI on many (workers/). Its first member also does what is done once.
"""
from __future__ import annotations

from typing import Any, Iterator, List, Optional, Tuple

Array = Any
SHARE = 0.5  # of what is left and of an even division of it, that a member takes at a time
SMALLEST_SPAN = 64  # images; measured: in spans of 64 the search takes a quarter longer than in one of 1,000


class Team:
    """A team of one, and what every team has."""

    size = 1
    is_first = True

    def claims(self, count: int) -> Iterator[int]:
        """Numbers below ``count``: each goes to one member of the team, in rising order."""
        return iter(range(count))

    def collect(self, part: Any) -> Optional[List[Any]]:
        """The parts of all members, in their order, for the first one; None for the others."""
        return [part]

    def agree(self, value: Any) -> Any:
        """The value of the first member, for all."""
        return value

    def total(self, sums: Array) -> Array:
        """For the first member the sum over all members of an array, which is used up; for others anything."""
        return sums

    def check(self) -> None:
        """Raise what stopped another member."""


ALONE = Team()


def spans(count: int, members: int) -> List[Tuple[int, int]]:
    """Spans (first, end) of ``count`` images for a team: long ones first, short ones last, so that all end together.

    A member that is slower, or is late, takes fewer of them.
    """
    if members == 1:
        return [(0, count)] if count else []
    found, first = [], 0
    while first < count:
        length = max(SMALLEST_SPAN, int(SHARE * (count - first) / members))
        found.append((first, min(first + length, count)))
        first = found[-1][1]
    return found
