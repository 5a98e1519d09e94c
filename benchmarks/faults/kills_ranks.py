"""Runs of several MPI ranks, or processes, of which one is killed at a random moment and which are then continued.

Used by benchmarks.faults.reliability. Data: those of growth/memory.py; a second mask is the first one, moved.
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
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

from localrefine_plugin.engine.io.mrc import read_map, write_map
from localrefine_plugin.engine.io.run_folder import BodiesFolder, write_json

from .kills import SETTINGS, Tally, finished_steps, results, temporary_files

ROOT = Path(__file__).resolve().parents[2]
ENGINE = [sys.executable, "-m", "localrefine_plugin.engine", "refine"]
RANKS, PROCESSES = ["mpirun", "--oversubscribe", "-n", "3"], ["--processes", "3"]
WAYS: Dict[str, Tuple[List[str], List[str], int]] = {  # launcher, more words, masks
    "3 MPI ranks": (RANKS, [], 1), "3 processes": ([], PROCESSES, 1), "3 processes, two masks": ([], PROCESSES, 2)}
GAUSSIAN = dict(prior="gaussian", prior_rotation_deg=3.0, prior_shift_angstrom=3.0)  # noise has no motion to learn
ENDED_SECONDS = 60.0  # in which all are to end after one was killed, on a busy machine


def members(process: int) -> List[int]:
    """The process, and all that it and they have started."""
    children = Path(f"/proc/{process}/task/{process}/children")
    found = children.read_text().split() if children.exists() else []
    return [process] + [member for child in found for member in members(int(child))]


def other_mask(mask: Path) -> Path:
    """The mask moved by a quarter of the box along z."""
    values, pixel_size = read_map(mask)
    path = mask.with_name("mask_2.mrc")
    write_map(path, np.roll(values, len(values) // 4, axis=0), pixel_size)
    return path


def of_all(run: Path, what: Callable[[Path], Dict[str, Any]]) -> Dict[str, Any]:
    """``what`` of a run, or of all its bodies and, once it is there, of their composite."""
    bodies = BodiesFolder(run).bodies()
    found = {f"{body.path.name}/{name}": value for body in bodies for name, value in what(body.path).items()}
    return found if bodies else what(run)


def results_of(run: Path) -> Dict[str, bytes]:
    composite = {path.name: path.read_bytes() for path in BodiesFolder(run).composite.glob("*.mrc")}
    return {**of_all(run, results), **composite}


class RanksCampaign:
    """Kills and continuations; ``inputs``: option → file."""

    def __init__(self, inputs: Sequence[str], work: Path, way: str):
        self.work, (self.launcher, self.more, masks) = work, WAYS[way]
        write_json(work / "settings.json", dict(GAUSSIAN, max_iterations=SETTINGS.max_iterations))
        names = ("--particles", "--half-map-1", "--half-map-2", "--mask")
        self.words = [word for pair in zip(names, map(str, inputs)) for word in pair]
        self.words += ["--mask", str(other_mask(Path(inputs[-1])))] * (masks - 1)
        self.words += ["--settings", str(work / "settings.json"), "--device", "cpu", "--threads", "1"]
        straight, start = work / "straight", time.monotonic()
        if self.started(straight).wait():
            raise RuntimeError("the undisturbed run failed")
        self.seconds, self.expected, self.tally = time.monotonic() - start, results_of(straight), Tally()
        self.slowest = 0.0  # seconds from a kill until all have ended

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
        killed = time.monotonic()
        status = process.wait(ENDED_SECONDS if process.poll() is None else None)
        self.wait_for_all(all_of_them)
        if status == 0:  # it had ended, or the one that was killed was no longer needed
            return
        self.slowest = max(self.slowest, time.monotonic() - killed)
        done = of_all(run, finished_steps) if run.exists() else {}
        self.tally.kills += 1
        self.tally.inside["random"] += 1
        self.tally.steps[len(done)] += 1
        if self.started(run).wait():
            raise RuntimeError("the killed run could not be continued")
        now = of_all(run, finished_steps)
        self.tally.repeated += sum(now.get(name) != moment for name, moment in done.items())
        self.tally.different += results_of(run) != self.expected
        self.tally.temporary += len(temporary_files(run))

    def wait_for_all(self, processes: Sequence[int]) -> None:
        end = time.monotonic() + ENDED_SECONDS
        while any(Path(f"/proc/{number}").exists() for number in processes):
            if time.monotonic() > end:
                raise RuntimeError("processes of a killed run go on")
            time.sleep(0.05)


def ranks_campaign(inputs: Sequence[str], work: Path, way: str, count: int) -> Tuple[Tally, float]:
    """What became of the runs, and the most seconds that passed until all processes of one had ended."""
    campaign, rng = RanksCampaign(inputs, work, way), random.Random(1)
    while campaign.tally.kills < count:
        campaign.kill(rng)
    return campaign.tally, campaign.slowest
