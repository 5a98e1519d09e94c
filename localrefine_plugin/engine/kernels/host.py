"""The machine: how many of its cores are used, and what a step of a run cost. Nothing heavy is imported with
it."""
from __future__ import annotations

import ctypes
import os
import resource
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, malloc.h of glibc
REUSED_BYTES = 256 << 20  # of one array
USUAL_BYTES = 32 << 20  # where glibc's own threshold ends up once such arrays are freed
# Rank and number of ranks, as OpenMPI tells them; MPICH, Intel MPI and srun with PMI; srun with PMIx
LAUNCHERS = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"),
             ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"))


def available_cores() -> int:
    """Cores this process may use: its affinity mask, less if its container has a quota of CPU time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or "max"
        return cores


def rank_of_launcher() -> Optional[int]:
    """The rank of this process among several that mpirun or srun started; None where it is alone."""
    for names in LAUNCHERS:
        rank, size = (os.environ.get(name, "") for name in names)
        if rank.isdigit() and size.isdigit():
            return int(rank) if int(size) > 1 else None
    return None


def worker_count(threads: int) -> int:
    """Threads to use; 0 = all this process may."""
    return threads if threads > 0 else available_cores()


@contextmanager
def few_threads(threads: int) -> Iterator[None]:
    """Compiled loops with no more than so many threads."""
    import numba
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, before))
    try:
        yield
    finally:
        numba.set_num_threads(before)


@contextmanager
def reused_memory() -> Iterator[None]:
    """The block keeps the memory of arrays up to REUSED_BYTES that it frees, for its next ones.

    glibc gives an array of megabytes back to the system at once, which fills each page of the next one with zeros: a
    quarter to a third of the CPU seconds of steps that work on volumes. At the end of the block all is given back.
    Where there is no glibc nothing changes.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return

    def keep(most: int) -> None:
        libc.mallopt(M_MMAP_THRESHOLD, most)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * most)
    keep(REUSED_BYTES)
    try:
        yield
    finally:
        keep(USUAL_BYTES)
        libc.malloc_trim(ctypes.c_size_t(0))


@dataclass
class Cost:
    """What a step of a run took."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """The cost of the block, filled in at its end."""
    cost = Cost()
    wall, cpu = time.perf_counter(), time.process_time()
    forget_peak()
    yield cost
    cost.wall_seconds, cost.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    cost.peak_memory_mb = peak_memory_mb()


def forget_peak() -> None:
    """Let the peak of this process's memory begin anew, where Linux allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory_mb() -> float:
    """The largest resident memory of this process, VmHWM; ru_maxrss would have that of its parent in it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
