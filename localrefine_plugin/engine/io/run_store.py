"""What a run keeps on disk between its steps, as records."""
from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import numpy as np

from ..records.codec import from_json
from ..records.motion import LearnedMotion
from ..records.particles import Particles
from ..records.poses import PoseTable
from ..records.run_input import RunInput
from ..records.settings import Settings
from .run_folder import RunFolder, opened, read_json, write_atomic


def save_arrays(path: Any, **arrays: np.ndarray) -> None:
    def write(name: str) -> None:
        with open(name, "wb") as handle:
            np.savez(handle, **arrays)
    write_atomic(path, write)


def load_settings(run: RunFolder) -> Settings:
    """settings.json, with the defaults of settings that an older version did not have."""
    with opened(run.settings):
        return from_json(Settings, read_json(run.settings))


def load_input(run: RunFolder) -> RunInput:
    """input.json; its ``resolved`` are the settings in use now, which may have changed since it was written."""
    settings = load_settings(run)
    with opened(run.input):
        stored = read_json(run.input)
        fixed = dict(rotation_extent_fixed=settings.rotation_extent_deg is not None,
                     shift_extent_fixed=settings.shift_extent_angstrom is not None)
        resolved = {**settings.as_dict(), **fixed, **stored["resolved"]}
        given = from_json(RunInput, dict(stored, resolved=resolved))
        return replace(given, resolved=given.resolved.with_settings(settings))


def load_particles(run: RunFolder) -> Particles:
    given = load_input(run)
    with opened(run.particles), np.load(run.particles, allow_pickle=False) as stored:
        columns = {name: stored[name] for name in Particles.column_names()}
        return Particles(optics=given.optics, stacks=given.stacks, **columns)


def load_poses(run: RunFolder, iteration: int, half: int) -> Optional[PoseTable]:
    """Poses after an iteration; None after iteration 0, which is the input."""
    if iteration == 0:
        return None
    path = run.poses(iteration, half)
    with opened(path), np.load(path, allow_pickle=False) as stored:
        return PoseTable(**{name: stored[name] for name in PoseTable.column_names() if name in stored})


def load_motion(run: RunFolder, iteration: int, half: int) -> Optional[LearnedMotion]:
    """The motion learned in an iteration, or None."""
    path = run.motion(iteration, half)
    if not path.exists():
        return None
    with opened(path), np.load(path, allow_pickle=False) as stored:
        return LearnedMotion(**stored)


def load_noise(run: RunFolder, iteration: int, half: int, name: str = "power") -> np.ndarray:
    """The noise's σ² (groups, M + 1), or another column of that file: "coverage" (M + 1,), from iteration 1 on."""
    path = run.noise(iteration, half)
    with opened(path), np.load(path, allow_pickle=False) as stored:
        column: np.ndarray = stored[name]
    return column


def save_particles(run: RunFolder, particles: Particles) -> None:
    """Store the columns; optics groups and stacks are in input.json."""
    save_arrays(run.particles, **{name: getattr(particles, name) for name in Particles.column_names()})
