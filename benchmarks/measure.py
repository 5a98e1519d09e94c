"""What a command costs: CPU seconds, wall seconds and peak memory of it and everything it started."""
from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

POLL_SECONDS = 0.25
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2 ** 20


@dataclass(frozen=True)
class Cost:
    """Of one command with its children.

    Attributes
    ----------
    cpu_seconds : user + system.  leader_cpu_seconds : the part of it that MPI's rank 0 took, where there is one.
    peak_memory_mb : greatest sum of resident sizes, looked at every POLL_SECONDS.
    finished : False where it was ended at its time limit.
    samples : (time of day, CPU seconds so far), to date the files it writes.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_memory_mb: float
    finished: bool = True
    leader_cpu_seconds: float = 0.0
    samples: List[Tuple[float, float]] = field(default_factory=list)

    def cpu_at(self, moment: float) -> float:
        """CPU seconds spent when a file of this modification time was written."""
        import numpy as np
        return float(np.interp(moment, *zip(*self.samples))) if self.samples else self.cpu_seconds


@dataclass(frozen=True)
class Process:
    """A line of /proc: CPU seconds of the process, of its dead children, resident MB."""

    pid: int
    session: int
    own_seconds: float
    children_seconds: float
    resident_mb: float


def parse_stat(text: str) -> Process:
    """The content of /proc/PID/stat; the name, in parentheses, may hold anything."""
    pid = int(text.split(" ", 1)[0])
    fields = text[text.rindex(")") + 2:].split()  # from field 3 of proc(5)
    user, system, children_user, children_system = (int(f) / TICKS for f in fields[11:15])
    return Process(pid, int(fields[3]), user + system, children_user + children_system, int(fields[21]) * PAGE_MB)


def session_processes(session: int) -> List[Process]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            process = parse_stat(path.read_text())
        except (OSError, ValueError):  # ended meanwhile
            continue
        if process.session == session:
            found.append(process)
    return found


def is_leader(pid: int) -> bool:
    """Whether this is rank 0 of an Open MPI job, which hands out work and waits in a busy loop."""
    try:
        return b"OMPI_COMM_WORLD_RANK=0" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


class Watch:
    """Follows a session of processes."""

    def __init__(self, session: int) -> None:
        self.session, self.peak_mb, self.samples = session, 0.0, []  # type: int, float, List[Tuple[float, float]]
        self.ranks: Dict[int, bool] = {}
        self.leader_seconds = 0.0

    def look(self) -> None:
        processes = session_processes(self.session)
        self.peak_mb = max(self.peak_mb, sum(p.resident_mb for p in processes))
        cpu = sum(p.own_seconds + p.children_seconds for p in processes)
        self.samples.append((time.time(), max(cpu, self.samples[-1][1] if self.samples else 0.0)))
        for p in processes:
            if not self.ranks.get(p.pid):  # a process is looked at again until it has become a rank
                self.ranks[p.pid] = is_leader(p.pid)
            if self.ranks[p.pid]:
                self.leader_seconds = max(self.leader_seconds, p.own_seconds)

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for p in session_processes(self.session):
                try:
                    os.kill(p.pid, number)
                except ProcessLookupError:
                    pass
            time.sleep(2)


def run_measured(command: Sequence[str], log: Path, cores: str, folder: Optional[Path] = None,
                 limit_seconds: float = 86400.0, environment: Optional[Dict[str, str]] = None) -> Cost:
    """Run a command on these cores (taskset's list), output to ``log``; RuntimeError where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with open(log, "w", encoding="utf-8") as handle:
        child = subprocess.Popen(["taskset", "-c", cores, *command], stdout=handle, stderr=subprocess.STDOUT,
                                 cwd=folder, env={**os.environ, **(environment or {})}, start_new_session=True)
        watch, finished = Watch(child.pid), True
        while True:
            watch.look()
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if finished and time.perf_counter() - start > limit_seconds:
                finished = False
                watch.end()
            time.sleep(POLL_SECONDS)
    child.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    if finished and child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({child.returncode}); see {log}")
    cpu = max(usage.ru_utime + usage.ru_stime, watch.samples[-1][1])
    return Cost(cpu, time.perf_counter() - start, watch.peak_mb, finished, watch.leader_seconds, watch.samples)


def joined(costs: Sequence[Cost]) -> Cost:
    """The cost of commands run one after another."""
    return Cost(sum(c.cpu_seconds for c in costs), sum(c.wall_seconds for c in costs),
                max(c.peak_memory_mb for c in costs), all(c.finished for c in costs),
                sum(c.leader_cpu_seconds for c in costs))


def chained(legs: Sequence[Cost], moments: Sequence[float]) -> Cost:
    """The cost of a job done in several legs; one that was ended counts up to the last of ``moments`` in it.

    ``moments`` are the times of day at which the job left something it can be continued from.
    """
    cpu, wall, leader, samples = 0.0, 0.0, 0.0, []  # type: float, float, float, List[Tuple[float, float]]
    for leg in legs:
        start, end = leg.samples[0][0], leg.samples[-1][0]
        spent, seconds = leg.cpu_seconds, leg.wall_seconds
        if not leg.finished:
            end = max((m for m in moments if start <= m <= end), default=start)
            spent, seconds = leg.cpu_at(end), end - start
        samples += [(moment, cpu + so_far) for moment, so_far in leg.samples if moment <= end] + [(end, cpu + spent)]
        cpu, wall = cpu + spent, wall + seconds
        leader += leg.leader_cpu_seconds * spent / max(leg.cpu_seconds, 1e-9)
    return Cost(cpu, wall, max(leg.peak_memory_mb for leg in legs), legs[-1].finished, leader, samples)


def least_cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Of so many calls: compiling and a busy machine count less."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def machine() -> str:
    """CPU, cores and load of this machine in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    vector = "AVX-512" if any("avx512f" in line for line in lines) else "AVX2" if any(
        "avx2" in line for line in lines) else "no AVX2"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{model} ({vector}), {len(os.sched_getaffinity(0))} cores, load average at the end {load}"


def commit() -> str:
    """Commit of the checkout this runs from, and whether the package differs from it."""
    here = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "localrefine_plugin")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with uncommitted changes" if changed else "")
