"""A team of the ranks that ``mpirun`` or ``srun`` started, on any number of machines.

Only a process that was started as one of several ranks imports mpi4py.
"""
from __future__ import annotations

import atexit
import os
import platform
import time
from typing import Any, List, Tuple

from ..kernels.device import to_host
from ..kernels.host import available_cores
from ..records.errors import InputError
from .linked import PIECE, LinkedTeam

Array = Any
LOOK_SECONDS = 0.002  # how often a rank that waits looks for a message: MPI itself would keep a core busy

TURN_SECONDS, MOST_TURN_SECONDS = 0.3, 3.0


class Ranks(LinkedTeam):
    """The ranks of this MPI job."""

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise InputError(f"this process is one of several ranks, and mpi4py cannot be used ({error})", "mpirun",
                             "pip install 'scipion-em-localrefine[mpi]' where MPI is found, or start it without "
                             "mpirun") from None
        self.mpi, self.world = MPI, MPI.COMM_WORLD
        super().__init__(self.world.Get_rank(), self.world.Get_size())
        if self.size == 1:
            raise InputError("each rank finds itself alone: mpi4py was built for another MPI than this mpirun's",
                             "mpirun", "build it with this one: pip install --no-binary mpi4py mpi4py")
        self.hosts: List[Tuple[str, List[int]]] = self.world.allgather((platform.node(), sorted(affinity())))

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None and self.busy or not self.is_first and kind is not None:
            # where all stumble over one thing, as a full disk, the one with the lowest rank ends all and says why
            time.sleep(min(self.rank * TURN_SECONDS, MOST_TURN_SECONDS))
            atexit.register(self.world.Abort, 1)  # once this process has said why: the others are waiting for it
        elif self.is_first:
            self.order(None)

    @property
    def local_rank(self) -> int:
        """The number of this rank among those of its machine."""
        return sum(host == self.hosts[self.rank][0] for host, _ in self.hosts[:self.rank])

    def share(self, threads: int) -> int:
        """Of the cores this rank may use, which it may have in common with others of its machine."""
        host, cores = self.hosts[self.rank]
        ranks = sum(other == host and bool(set(cores) & set(theirs)) for other, theirs in self.hosts)
        return max(1, min(threads, available_cores() // ranks))

    def send(self, rank: int, what: Any) -> None:
        self.world.send(what, rank)

    def receive(self, rank: int) -> Any:
        while not self.world.iprobe(rank):
            time.sleep(LOOK_SECONDS)
        return self.world.recv(source=rank)

    def total(self, sums: Array) -> Array:
        """By MPI's own reduction, in a tree."""
        flat = to_host(sums).reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = flat[start:start + PIECE]
            if self.is_first:
                self.world.Reduce(self.mpi.IN_PLACE, piece, root=0)
            else:
                self.world.Reduce(piece, None, root=0)
        return flat.reshape(sums.shape)


def affinity() -> List[int]:
    return list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
