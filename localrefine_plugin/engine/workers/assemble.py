"""Which team a command asks for: alone, processes of this machine, or the ranks that mpirun started."""
from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Tuple

from ..kernels.device import gpu_count
from ..kernels.host import rank_of_launcher
from ..team import ALONE, Team
from .mpi import Ranks
from .processes import Processes


@contextmanager
def assembled(device: str, threads: int, processes: int = 0) -> Iterator[Tuple[Team, str]]:
    """The team for a command, and what ``device`` means to this member of it.

    Parameters
    ----------
    device : as on the command line; several GPUs for a process each.
    threads : of all processes of this command on this machine; under mpirun of this rank at the most.
    processes : 0, or how many share the threads of a CPU.
    """
    if rank_of_launcher() is not None:
        with Ranks() as ranks:
            yield ranks, gpu_of(device, ranks.local_rank)
        return
    devices = device.split(",") if "," in device else [device] * max(processes, 1)
    if len(devices) == 1:
        yield ALONE, device
        return
    with Processes(devices, max(1, threads // len(devices))) as team:
        yield team, device


def gpu_of(device: str, local_rank: int) -> str:
    """The GPU of a rank among those given, or all there are; the ranks of a machine take turns.

    A launcher that gives each rank a GPU of its own lets it see that one only.
    """
    given, visible = device.split(","), gpu_count()
    if visible and (device in ("auto", "cuda") or visible == 1 < len(given)):
        given = [f"cuda:{number}" for number in range(visible)]
    return given[local_rank % len(given)]
