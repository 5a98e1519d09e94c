"""What a run keeps on disk between its steps, and what a step cost."""
from __future__ import annotations

from dataclasses import asdict
from typing import Any, Dict, Optional

import numpy as np

from ..records.motion import LearnedMotion
from ..records.particles import OpticsGroup, Particles
from ..records.poses import PoseTable
from ..records.settings import Settings
from .run_folder import RunFolder, opened, read_json, write_atomic

# The settings of which nothing in iteration 0 depends; on all others everything does.
STOPPING = ("max_iterations", "extra_final_passes")  # only say when to stop: a finished run can be given more
OF_FINISH = ("sharpen_bfactor",)
OF_MERGE = ("non_uniform", "non_negativity", "mask_mode", "mask_threshold", "mask_threshold_type", "mask_near_angstrom",
            "mask_far_angstrom", "mask_start_resolution_angstrom")
OF_ALIGN = ("marginalize", "per_particle_scale", "deterministic")
TAKEN_AS_THEY_ARE = STOPPING + OF_FINISH + OF_MERGE + OF_ALIGN


def save_arrays(path: Any, **arrays: np.ndarray) -> None:
    def write(name: str) -> None:
        with open(name, "wb") as handle:
            np.savez(handle, **arrays)
    write_atomic(path, write)


def load_settings(run: RunFolder) -> Dict[str, Any]:
    """settings.json, with the defaults of settings that an older version did not have."""
    with opened(run.settings):
        return dict(Settings().as_dict(), **read_json(run.settings))


def load_input(run: RunFolder) -> Dict[str, Any]:
    """input.json; in "resolved" are the settings as they are now, and the defaults of those it lacks."""
    settings = load_settings(run)
    fixed = {name + "_fixed": settings[name + unit] is not None
             for name, unit in (("rotation_extent", "_deg"), ("shift_extent", "_angstrom"))}
    with opened(run.input):
        described = read_json(run.input)
        resolved: Dict[str, Any] = {**settings, **fixed, **described["resolved"], **taken(settings)}
        return dict(described, resolved=resolved)


def taken(settings: Dict[str, Any]) -> Dict[str, Any]:
    return {name: settings[name] for name in TAKEN_AS_THEY_ARE}


def load_particles(run: RunFolder) -> Particles:
    with opened(run.particles), np.load(run.particles, allow_pickle=False) as stored:
        columns = {name: stored[name] for name in Particles.column_names()}
        described = read_json(run.input)
        optics = tuple(OpticsGroup(**group) for group in described["optics"])
        return Particles(optics=optics, stacks=tuple(described["stacks"]), **columns)


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


def save_particles(run: RunFolder, particles: Particles) -> Dict[str, Any]:
    """Store the columns; returns what input.json holds of them."""
    save_arrays(run.particles, **{name: getattr(particles, name) for name in Particles.column_names()})
    return {"optics": [asdict(group) for group in particles.optics], "stacks": list(particles.stacks)}
