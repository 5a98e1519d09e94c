"""A run killed at many moments and continued: SIGKILL to the engine at random moments and inside every write.

The engine works in a child of this process that has imported everything already; it is killed when it has used a
random share of the CPU time of an undisturbed run, or by itself at its n-th write: with half of the temporary
file written, before it is moved into place, or right after.

Data: the images of noise that reliability.py has made by growth/memory.py.
"""
from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.io.run_folder import RunFolder
from localrefine_plugin.engine.records.settings import Settings

TICKS = os.sysconf("SC_CLK_TCK")
INSIDE = ("half written", "before the move", "after the move")
RESULTS = "iter_*/*.mrc", "iter_*/*.npz", "iter_*/*.star", "final/*"
SETTINGS = Settings(max_iterations=2)


def refine(inputs: Sequence[str], run: Path) -> None:
    engine.refine(*inputs, str(run), SETTINGS, device="cpu", threads=1, mode="continue")


def verb_by_verb(inputs: Sequence[str], run: Path) -> None:
    """As the protocol calls the engine."""
    engine.prepare(*inputs, str(run), SETTINGS, device="cpu", threads=1, mode="continue")
    for k in range(1, SETTINGS.max_iterations + 1):
        for half in (1, 2):
            engine.align(str(run), k, (half,), "cpu", 1)
        engine.merge(str(run), k, 1)
    engine.finish(str(run), 1)


PATHS: Dict[str, Callable[[Sequence[str], Path], None]] = {"refine": refine, "verb by verb": verb_by_verb}


def results(run: Path) -> Dict[str, bytes]:
    """Everything that is a result and not a timing, nor a remark on an input file that was put back."""
    return {str(p.relative_to(run)): p.read_bytes() for pattern in RESULTS for p in sorted(run.glob(pattern))
            if p.name != "input_changes.json"}


def temporary_files(folder: Path) -> List[str]:
    return [str(path) for path in folder.rglob("*") if path.name.startswith(".") or ".tmp" in path.name]


def finished_steps(folder: Path) -> Dict[str, Tuple[int, int]]:
    """The last files of the steps that are complete, with what changes when they are written again."""
    run, found = RunFolder(folder), []
    if run.iteration_complete(0):
        found.append(run.iteration_done(0))
    for path in run.iteration_folders():
        k = int(path.name[len("iter_"):])
        found += [run.half_done(k, half) for half in (1, 2) if k and run.half_complete(k, half)]
        found += [run.iteration_done(k)] if k and run.iteration_complete(k) else []
    found += [run.report] if run.results_complete() else []
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def kill_at_write(number: int, inside: str) -> None:
    """Make this process kill itself at its ``number``-th move of a file into place (from 1)."""
    move, count = os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        count[0] += 1
        if count[0] != number:
            return move(source, target)
        if inside == INSIDE[0]:
            os.truncate(source, os.path.getsize(source) // 2)
        if inside == INSIDE[2]:
            move(source, target)
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace = replace  # type: ignore[assignment]


def forked(work: Callable[[], None], hook: Optional[Callable[[], None]] = None,
           kill_cpu: float = 0.0) -> Tuple[int, float]:
    """Run ``work`` in a child, silently; its exit status (−9: killed) and CPU seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if hook is not None:
                hook()
            work()
            status = 0
        finally:
            os._exit(status)
    if kill_cpu > 0:
        kill_when(child, kill_cpu)
    _, state, usage = os.wait4(child, 0)
    status = -os.WTERMSIG(state) if os.WIFSIGNALED(state) else os.WEXITSTATUS(state)
    return status, usage.ru_utime + usage.ru_stime


def kill_when(child: int, cpu_seconds: float) -> None:
    """SIGKILL to the child's session once it has used so much CPU time, unless it ends before."""
    while True:
        fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
        if fields[0] == "Z":
            return
        if (int(fields[11]) + int(fields[12])) / TICKS >= cpu_seconds:
            os.killpg(child, signal.SIGKILL)
            return
        time.sleep(0.001)


@dataclass
class Tally:
    """What became of the runs that were killed on one path."""

    kills: int = 0
    inside: Counter = field(default_factory=Counter)
    steps: Counter = field(default_factory=Counter)
    different: int = 0
    repeated: int = 0
    temporary: int = 0

    def clean(self) -> bool:
        return not (self.different or self.repeated or self.temporary)


class Campaign:
    """Kills and continuations of one kind of run; ``work`` is a folder, ``inputs`` those of `refine`."""

    def __init__(self, inputs: Sequence[str], work: Path, path: str):
        self.inputs, self.work, self.run_path = inputs, work, PATHS[path]
        straight = work / f"straight {path}"
        status, self.cpu_seconds = forked(lambda: self.run_path(inputs, straight))
        if status:
            raise RuntimeError(f"the undisturbed run failed ({status})")
        self.expected = results(straight)
        self.tally = Tally()

    def random_kill(self, rng: random.Random) -> None:
        self._killed(None, self.cpu_seconds * rng.uniform(0.02, 0.98), "random")

    def write_kill(self, number: int, inside: str) -> bool:
        """Kill at a write; False if the run has fewer."""
        return self._killed(lambda: kill_at_write(number, inside), 0.0, inside)

    def _killed(self, hook: Optional[Callable[[], None]], kill_cpu: float, where: str) -> bool:
        run, tally = self.work / "killed run", self.tally
        shutil.rmtree(run, ignore_errors=True)
        status, _ = forked(lambda: self.run_path(self.inputs, run), hook, kill_cpu)
        if status == 0:
            return False
        if status != -signal.SIGKILL:
            raise RuntimeError(f"the run failed ({status})")
        done = finished_steps(run) if run.exists() else {}
        tally.kills += 1
        tally.inside[where] += 1
        tally.steps[len(done)] += 1
        status, _ = forked(lambda: self.run_path(self.inputs, run))
        if status:
            raise RuntimeError(f"the killed run could not be continued ({status})")
        now = finished_steps(run)
        tally.repeated += sum(now.get(name) != moment for name, moment in done.items())
        tally.different += results(run) != self.expected
        tally.temporary += len(temporary_files(run))
        return True


def engine_campaign(inputs: Sequence[str], work: Path, path: str, count: int, seed: int = 1,
                    every: int = 1) -> Tally:
    """``count`` kills at random moments and one at each write (or every so many of them)."""
    campaign, rng = Campaign(inputs, work, path), random.Random(seed)
    while campaign.tally.inside["random"] < count:
        campaign.random_kill(rng)
    number = 1
    while campaign.write_kill(number, INSIDE[number // every % 3]):
        number += every
    return campaign.tally
