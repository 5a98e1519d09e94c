"""What a run keeps on disk between its steps, and what a step cost."""
from __future__ import annotations

import os
import resource
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Dict, Iterator, Optional

import numpy as np

from .motion_prior import LearnedMotion
from .records import OpticsGroup, Particles, PoseTable
from .run_folder import RunFolder, read_json, write_atomic


def worker_count(threads: int) -> int:
    """Threads to use; 0 = all this process may."""
    return threads if threads > 0 else len(os.sched_getaffinity(0))


@contextmanager
def measured() -> Iterator[Dict[str, Any]]:
    """Wall and CPU seconds and peak memory of the block, filled in at its end."""
    cost: Dict[str, Any] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cost.update(wall_seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu, peak_memory_mb=peak)


def save_arrays(path: Any, **arrays: np.ndarray) -> None:
    def write(name: str) -> None:
        with open(name, "wb") as handle:
            np.savez(handle, **arrays)
    write_atomic(path, write)


def load_particles(run: RunFolder) -> Particles:
    with np.load(run.particles, allow_pickle=False) as stored:
        columns = {name: stored[name] for name in Particles.column_names()}
    described = read_json(run.input)
    optics = tuple(OpticsGroup(**group) for group in described["optics"])
    return Particles(optics=optics, stacks=tuple(described["stacks"]), **columns)


def load_poses(run: RunFolder, iteration: int, half: int) -> Optional[PoseTable]:
    """Poses after an iteration; None after iteration 0, which is the input."""
    if iteration == 0:
        return None
    with np.load(run.poses(iteration, half), allow_pickle=False) as stored:
        return PoseTable(**{name: stored[name] for name in PoseTable.column_names() if name in stored})


def load_motion(run: RunFolder, iteration: int, half: int) -> Optional[LearnedMotion]:
    """The motion learned in an iteration, or None."""
    if not run.motion(iteration, half).exists():
        return None
    with np.load(run.motion(iteration, half), allow_pickle=False) as stored:
        return LearnedMotion(**stored)


def load_noise(run: RunFolder, iteration: int, half: int) -> np.ndarray:
    with np.load(run.noise(iteration, half), allow_pickle=False) as stored:
        power: np.ndarray = stored["power"]
    return power


def save_particles(run: RunFolder, particles: Particles) -> Dict[str, Any]:
    """Store the columns; returns what input.json holds of them."""
    save_arrays(run.particles, **{name: getattr(particles, name) for name in Particles.column_names()})
    return {"optics": [asdict(group) for group in particles.optics], "stacks": list(particles.stacks)}
