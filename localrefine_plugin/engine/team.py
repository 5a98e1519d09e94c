"""Those who align a half-set together: what they hand out, collect and add up.

The members of a team are processes that run the same steps (workers/); who is alone is a team of one. The first member
also does what is done once.
"""
from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

Array = Any
SHARE = 0.5  # of what is left and of an even division of it, that a member takes at a time
SMALLEST_SPAN = 64  # images; measured: in spans of 64 the search takes a quarter longer than in one of 1,000


class Team:
    """A team of one, and what every team has."""

    rank, size = 0, 1
    is_first = True

    def order(self, what: Any) -> None:
        """The first member tells the others what to do next."""

    def done(self) -> None:
        """The first member has seen that all have carried out what was ordered."""

    def share(self, threads: int) -> int:
        """How many of a machine's ``threads`` this member takes while all are at work."""
        return threads

    def claims(self, count: int, folder: Path) -> Iterator[int]:
        """Numbers below ``count``, in rising order: each goes to one member of the team. ``folder``, in the files that
        all members see, is made, and forgotten by `collect`."""
        return iter(range(count))

    def collect(self, part: Any) -> Optional[List[Any]]:
        """The parts of all members, in their order, for the first one; None for the others."""
        return [part]

    def hand_over(self, batches: List[Any]) -> Iterator[Any]:
        """For the first member what the others hand over, one batch after the other: it has no second copy of all that
        one of them found. To be gone through by all members."""
        return iter(())

    def agree(self, value: Any) -> Any:
        """The value of the first member, for all."""
        return value

    def total(self, sums: Array) -> Array:
        """For the first member the sum over all members of an array, which is used up; for others anything."""
        return sums

    def check(self) -> None:
        """Raise what stopped another member."""


ALONE = Team()
NOWHERE = Path()  # who is alone needs no folder for claims


def claimed(count: int, folder: Path) -> Iterator[int]:
    """Numbers below ``count`` that no other process takes: whoever makes the file of that name has the number.

    Making a file that must be new is atomic on every file system, those of clusters included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        try:
            os.close(os.open(folder / f"{number:06d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        yield number


def forget_claims(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


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
