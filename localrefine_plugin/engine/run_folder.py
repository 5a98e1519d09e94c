"""Every file name of a run, once.

    RUN/settings.json            the settings as given
    RUN/input.json               input paths, versions, and what "auto" was resolved to
    RUN/error.json               when a verb failed: {"message", "problem", "input", "remedy"}
    RUN/report.json              the report of a finished (or running) run
    RUN/particles.npz            the engine's view of the input particles (records.Particles)
    RUN/mask.mrc                 the mask that was given
    RUN/iter_000/                the input, in the form of an iteration
    RUN/iter_NNN/
        half_H_map.mrc           unfiltered, unmasked half-map               (align step of half H)
        half_H_poses.npz         records.PoseTable                           (align step of half H)
        half_H_noise.npz         noise power per optics group and shell      (align step of half H)
        half_H_motion.npz        covariance of the motion, if it is learned  (align step of half H)
        half_H.json              timings, memory, counts                     (align step of half H; written last)
        half_H_reference.mrc     filtered map the NEXT align step starts from (merge step)
        mask.mrc                 the mask in use from here on, if dynamic    (merge step)
        filter_resolution.mrc    cut-off in Å, if the filter is non-uniform  (merge step)
        fsc.star                 five curves                                 (merge step)
        iteration.json           resolution, limits, convergence decision    (merge step; written last)
    RUN/final/                   particles.star half_map_1.mrc half_map_2.mrc map.mrc map_sharpened.mrc
                                 mask.mrc fsc.star mask_ladder.json tightest_mask.mrc sharpening.json pose_blur.json,
                                 filter_resolution.mrc if non-uniform
"""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, Union

PathLike = Union[str, Path]


def write_atomic(path: PathLike, write: Callable[[str], None]) -> None:
    """Call ``write(temporary name)`` and move the result to ``path`` in one step.

    A killed process leaves either the old file or the new one, never half of one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(str(temporary))
        os.replace(temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()


def write_json(path: PathLike, content: Dict[str, Any]) -> None:
    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8") as handle:
            json.dump(content, handle, indent=1, ensure_ascii=False)
            handle.write("\n")
    write_atomic(path, write)


def read_json(path: PathLike) -> Dict[str, Any]:
    with open(path, encoding="utf-8") as handle:
        content: Dict[str, Any] = json.load(handle)
    return content


class RunFolder:
    """The names of the files of one run; makes folders, opens nothing."""

    def __init__(self, path: PathLike):
        self.path = Path(path)

    settings = property(lambda self: self.path / "settings.json")
    input = property(lambda self: self.path / "input.json")
    error = property(lambda self: self.path / "error.json")
    report = property(lambda self: self.path / "report.json")
    particles = property(lambda self: self.path / "particles.npz")
    mask = property(lambda self: self.path / "mask.mrc")

    def iteration(self, k: int) -> Path:
        return self.path / f"iter_{k:03d}"

    def half_map(self, k: int, half: int) -> Path:
        return self.iteration(k) / f"half_{half}_map.mrc"

    def poses(self, k: int, half: int) -> Path:
        return self.iteration(k) / f"half_{half}_poses.npz"

    def noise(self, k: int, half: int) -> Path:
        return self.iteration(k) / f"half_{half}_noise.npz"

    def motion(self, k: int, half: int) -> Path:
        return self.iteration(k) / f"half_{half}_motion.npz"

    def half_done(self, k: int, half: int) -> Path:
        return self.iteration(k) / f"half_{half}.json"

    def reference(self, k: int, half: int) -> Path:
        return self.iteration(k) / f"half_{half}_reference.mrc"

    def iteration_mask(self, k: int) -> Path:
        return self.iteration(k) / "mask.mrc"

    def mask_in_use(self, k: int) -> Path:
        """The mask of the FSC of iteration k and of the next align step: the last dynamic one, or the given one."""
        dynamic = (self.iteration_mask(i) for i in range(k, 0, -1))
        return next((path for path in dynamic if path.exists()), self.mask)

    def filter_resolution(self, k: int) -> Path:
        return self.iteration(k) / "filter_resolution.mrc"

    def fsc(self, k: int) -> Path:
        return self.iteration(k) / "fsc.star"

    def iteration_done(self, k: int) -> Path:
        return self.iteration(k) / "iteration.json"

    def final(self, name: str) -> Path:
        """One of FINAL_FILES or OPTIONAL_FINAL_FILES in RUN/final."""
        if name not in FINAL_FILES + OPTIONAL_FINAL_FILES:
            raise KeyError(name)
        return self.path / "final" / name

    def iterations_done(self) -> int:
        """Number of the last iteration whose merge step finished; −1 before `prepare` has."""
        k = -1
        while self.iteration_done(k + 1).exists():
            k += 1
        return k


FINAL_FILES = ("particles.star", "half_map_1.mrc", "half_map_2.mrc", "map.mrc", "map_sharpened.mrc",
               "mask.mrc", "fsc.star", "mask_ladder.json", "tightest_mask.mrc", "sharpening.json", "pose_blur.json")
OPTIONAL_FINAL_FILES = ("filter_resolution.mrc",)  # where the filter was non-uniform
