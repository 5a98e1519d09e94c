"""Runs of several MPI ranks, or processes, of which one is killed at a random moment and which are then continued.

Used by benchmarks.faults.reliability. Data: those of growth/memory.py.
"""
from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Sequence

from localrefine_plugin.engine.io.run_folder import write_json

from .kills import SETTINGS, Tally, finished_steps, results, temporary_files

ROOT = Path(__file__).resolve().parents[2]
ENGINE = [sys.executable, "-m", "localrefine_plugin.engine", "refine"]
WAYS = {"3 MPI ranks": (["mpirun", "--oversubscribe", "-n", "3"], []), "3 processes": ([], ["--processes", "3"])}
ENDED_SECONDS = 20.0  # in which all are to end after one was killed


def members(process: int) -> List[int]:
    """The process, and all that it and they have started."""
    children = Path(f"/proc/{process}/task/{process}/children")
    found = children.read_text().split() if children.exists() else []
    return [process] + [member for child in found for member in members(int(child))]


class RanksCampaign:
    """Kills and continuations; ``inputs``: option → file."""

    def __init__(self, inputs: Sequence[str], work: Path, way: str):
        self.work, (self.launcher, self.more) = work, WAYS[way]
        write_json(work / "settings.json", {"max_iterations": SETTINGS.max_iterations})
        names = ("--particles", "--half-map-1", "--half-map-2", "--mask")
        self.words = [word for pair in zip(names, map(str, inputs)) for word in pair]
        self.words += ["--settings", str(work / "settings.json"), "--device", "cpu", "--threads", "1"]
        straight, start = work / "straight", time.monotonic()
        if self.started(straight).wait():
            raise RuntimeError("the undisturbed run failed")
        self.seconds, self.expected, self.tally = time.monotonic() - start, results(straight), Tally()

    def started(self, run: Path) -> "subprocess.Popen[bytes]":
        environment = dict(os.environ, PYTHONPATH=str(ROOT), OMPI_ALLOW_RUN_AS_ROOT="1",
                           OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        return subprocess.Popen([*self.launcher, *ENGINE, *self.words, *self.more, "--output", str(run), "--continue"],
                                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, rng: random.Random) -> None:
        """One process of a run, chosen by chance, at a moment chosen by chance; unless the run ends before."""
        run = self.work / "killed"
        shutil.rmtree(run, ignore_errors=True)
        process = self.started(run)
        time.sleep(self.seconds * rng.uniform(0.02, 0.95))
        all_of_them = members(process.pid)
        try:
            os.kill(rng.choice(all_of_them), signal.SIGKILL)
        except ProcessLookupError:
            pass  # it had ended before: then the run goes on, and does not count
        status = process.wait(ENDED_SECONDS if process.poll() is None else None)
        self.wait_for_all(all_of_them)
        if status == 0:  # it had ended, or the one that was killed was no longer needed
            return
        done = finished_steps(run) if run.exists() else {}
        self.tally.kills += 1
        self.tally.inside["random"] += 1
        self.tally.steps[len(done)] += 1
        if self.started(run).wait():
            raise RuntimeError("the killed run could not be continued")
        now = finished_steps(run)
        self.tally.repeated += sum(now.get(name) != moment for name, moment in done.items())
        self.tally.different += results(run) != self.expected
        self.tally.temporary += len(temporary_files(run))

    def wait_for_all(self, processes: Sequence[int]) -> None:
        end = time.monotonic() + ENDED_SECONDS
        while any(Path(f"/proc/{number}").exists() for number in processes):
            if time.monotonic() > end:
                raise RuntimeError("processes of a killed run go on")
            time.sleep(0.05)


def ranks_campaign(inputs: Sequence[str], work: Path, way: str, count: int) -> Tally:
    campaign, rng = RanksCampaign(inputs, work, way), random.Random(1)
    while campaign.tally.kills < count:
        campaign.kill(rng)
    return campaign.tally
