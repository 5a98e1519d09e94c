"""A team whose members are processes with links to the first one.

The first member orders, the others serve: they wait for an order, do their part of it, and wait again. An order is
followed by what `Team` has, in the same sequence everywhere, so that a link needs to carry no addresses.
"""
from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

from ..kernels.device import to_host
from ..team import Team, claimed, forget_claims

Array = Any
PIECE = 1 << 23  # numbers of an array sent at a time


class LinkedTeam(Team):
    """What teams of processes have in common; ``rank`` 0 is the first."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size, self.is_first = rank, size, rank == 0
        self.busy = False  # whether members are at work on an order
        self.folder: Optional[Path] = None

    def send(self, rank: int, what: Any) -> None:
        raise NotImplementedError

    def receive(self, rank: int) -> Any:
        """What that member sent; raises what stopped it."""
        raise NotImplementedError

    @property
    def others(self) -> List[int]:
        return list(range(1, self.size))

    def order(self, what: Any) -> None:
        self.busy = what is not None
        for rank in self.others:
            self.send(rank, what)

    def claims(self, count: int, folder: Path) -> Iterator[int]:
        self.folder = folder
        return claimed(count, folder)

    def collect(self, part: Any) -> Optional[List[Any]]:
        if not self.is_first:
            self.send(0, part)
            return None
        parts = [part] + [self.receive(rank) for rank in self.others]
        if self.folder is not None:
            forget_claims(self.folder)
        return parts

    def hand_over(self, batches: List[Any]) -> Iterator[Any]:
        for rank in self.others if self.is_first else ():
            for _ in range(self.receive(rank)):
                yield self.receive(rank)
        if not self.is_first:
            self.send(0, len(batches))
            while batches:
                self.send(0, batches.pop())

    def agree(self, value: Any) -> Any:
        if not self.is_first:
            return self.receive(0)
        for rank in self.others:
            self.send(rank, value)
        return value

    def total(self, sums: Array) -> Array:
        flat = to_host(sums).reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = flat[start:start + PIECE]
            if not self.is_first:
                self.send(0, piece)
            for rank in self.others * self.is_first:
                piece += self.receive(rank)
        return flat.reshape(sums.shape)

    def done(self) -> None:
        self.busy = False

    def name(self) -> str:
        return f"rank {self.rank} on {platform.node()}"

    def serve(self, work: Callable[[Any], None]) -> None:
        """What a member that is not the first does: ``work(order)`` until there is no more."""
        while True:
            what = self.receive(0)
            if what is None:
                return
            self.busy = True
            work(what)
            self.busy = False
