"""Every file name of a run, once.

    RUN/settings.json            the settings as given
    RUN/input.json               input paths, versions, and what "auto" was resolved to
    RUN/error.json               when a verb failed: {"message", "problem", "input", "remedy"}
    RUN/report.json              the report of a finished (or running) run
    RUN/particles.npz            the engine's view of the input particles (records.Particles)
    RUN/mask.mrc                 the mask that was given
    RUN/iter_000/                the input, in the form of an iteration
        particles.star           a copy of the particle file that was given
        fingerprints.json        how the input files looked (records.InputFingerprints)
        forecast.json            what the run is expected to reach; of few particles it is in iter_003
    RUN/iter_NNN/
        half_H_map.mrc           unfiltered, unmasked half-map               (align step of half H)
        half_H_poses.npz         records.PoseTable                           (align step of half H)
        half_H_noise.npz         noise power and mean of the accumulator     (align step of half H)
        half_H_motion.npz        covariance of the motion, if it is learned  (align step of half H)
        half_H.json              timings, memory, counts                     (align step of half H; written last)
        half_H_reference.mrc     filtered map the NEXT align step starts from (merge step)
        mask.mrc                 the mask in use from here on, if dynamic    (merge step)
        filter_resolution.mrc    cut-off in Å, if the filter is non-uniform  (merge step)
        fsc.star                 five curves                                 (merge step)
        iteration.json           resolution, limits, convergence decision    (merge step; written last)
    RUN/final/                   particles.star half_map_1.mrc half_map_2.mrc map.mrc map_sharpened.mrc
                                 mask.mrc fsc.star mask_ladder.json tightest_mask.mrc sharpening.json pose_blur.json
                                 directions.json directions.npz second_copy.json,
                                 filter_resolution.mrc if non-uniform, validation.json if validated,
                                 particles_kept.star particles_left_out.star selection.json if selected,
                                 input_changes.json if input files changed meanwhile,
                                 particles.cs, _kept.cs, _left_out.cs if the input was a .cs file
    RUN/final/film/              path/frame_NNN.mrc axis_K/frame_NNN.mrc film.cxc film.json, if a film was made
    RUN/final/rigidity/          motion.mrc motion_error.mrc body_K.mrc rigidity.cxc rigidity.json, if it was looked for

A run of several masks has instead

    RUN/body_N/                  an ordinary run with mask N
    RUN/bodies.json              how the masks lie, and how the bodies move together (written last)
    RUN/final/body_N             a link to RUN/body_N/final
    RUN/final/composite/         what the verb compose made of the bodies

A step is done when the file it writes last is there (half_H.json, iteration.json, report.json), and so are all files
that are listed in it under "files", each as long as it was.
"""
from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Union
from zipfile import BadZipFile

from ..records.errors import InputError

PathLike = Union[str, Path]


def write_atomic(path: PathLike, write: Callable[[str], None]) -> None:
    """Call ``write(temporary name)`` and move the result to ``path`` in one step.

    A killed process leaves either the old file or the new one, never half of one; and its temporary file, which
    `remove_temporary` finds. The temporary name is used once in the world. An OSError names ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        write(str(temporary))
        os.replace(temporary, path)
    except OSError as error:  # on a full disk Python does not say which file it was
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        remove(temporary)


def remove_temporary(folder: Path, names: str = "*") -> None:
    """Remove what killed processes left in a folder of files whose names match."""
    for path in folder.glob(f".{names}.tmp.*"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder, which may be gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):  # asked first: on a read-only disk what is not there could not be removed either
        try:
            path.unlink()
        except FileNotFoundError:
            pass


def check_regular_file(path: PathLike) -> None:
    """Raise OSError unless there is a file of finite length: a pipe or a device can be read for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file")


def write_json(path: PathLike, content: Dict[str, Any]) -> None:
    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8") as handle:
            json.dump(content, handle, indent=1, ensure_ascii=False)
            handle.write("\n")
    write_atomic(path, write)


def read_json(path: PathLike) -> Dict[str, Any]:
    with open(path, encoding="utf-8-sig") as handle:  # Windows editors put a byte order mark in front
        content: Dict[str, Any] = json.load(handle)
    return content


@contextmanager
def reading(path: PathLike) -> Iterator[None]:
    """Turn what reading a damaged file, or one of another version, raises into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError("is not there", str(error.filename or path), "continue the run from its first step: what is "
                         "missing and all that depends on it is made again") from None
    except (LookupError, TypeError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"is damaged, or of another version of this program ({error})", str(path),
                         "start the run again with --overwrite") from None


class RunFolder:
    """The names of the files of one run, and which of its steps are done; of the files it opens only JSON."""

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

    @property
    def given_particles(self) -> Path:
        return self.iteration(0) / "particles.star"

    @property
    def fingerprints(self) -> Path:
        return self.iteration(0) / "fingerprints.json"

    def forecast(self, k: int) -> Path:
        """What was expected of the run before its first iteration (0), or after its third."""
        return self.iteration(k) / "forecast.json"

    def half_map(self, k: int, half: int) -> Path:
        return self.iteration(k) / f"half_{half}_map.mrc"

    def static_part(self, half: int) -> Path:
        return self.iteration(0) / f"half_{half}_static.mrc"

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

    @property
    def film(self) -> Path:
        """Written last by the verb film; its maps lie beside it."""
        return self.path / "final" / "film" / "film.json"

    def forget_film(self) -> None:
        """Remove the files of a film, and no other: its record first, so that no half of a film looks like one."""
        folder = self.film.parent
        for path in (self.film, *(folder / name for name in FILM_FILES), *folder.glob("*/frame_*.mrc")):
            remove(path)

    @property
    def rigidity(self) -> Path:
        """Written last by the verb rigidity; its maps lie beside it."""
        return self.path / "final" / "rigidity" / "rigidity.json"

    def forget_rigidity(self) -> None:
        """Remove what the verb rigidity wrote, and nothing else: its record first."""
        folder = self.rigidity.parent
        for path in (self.rigidity, *(folder / name for name in RIGIDITY_FILES), *folder.glob("body_*.mrc")):
            remove(path)

    def sizes(self, paths: Iterable[Path]) -> Dict[str, int]:
        """What the last file of a step holds as "files": the others by their names in the run folder, in bytes."""
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in paths}

    def complete(self, done: Path) -> bool:
        """Whether the step that writes ``done`` last has finished and what it wrote is still there."""
        try:
            files = read_json(done).get("files", {})
            return all((self.path / name).stat().st_size == size for name, size in files.items())
        except (OSError, ValueError, AttributeError):
            return False

    def half_complete(self, k: int, half: int) -> bool:
        return self.complete(self.half_done(k, half))

    def iteration_complete(self, k: int) -> bool:
        """Whether prepare (0) or both align steps and the merge step of an iteration are done."""
        if k == 0:
            return self.settings.exists() and self.input.exists() and self.complete(self.iteration_done(0))
        return all(self.half_complete(k, half) for half in (1, 2)) and self.complete(self.iteration_done(k))

    def iterations_done(self) -> int:
        """Number of the last iteration that is complete with all before it; −1 before `prepare` is."""
        k = -1
        while self.iteration_complete(k + 1):
            k += 1
        return k

    def results_complete(self) -> bool:
        return self.complete(self.report) and all(self.final(name).exists() for name in FINAL_FILES)

    def stopped_before(self, k: int) -> bool:
        """Whether the refinement ended before iteration k: converged (and its extra passes done), or at the most."""
        with reading(self.settings):
            settings = read_json(self.settings)
            extra = settings.get("extra_final_passes", 0)
            if k > settings["max_iterations"] + extra:
                return True
        return any(read_json(self.iteration_done(i))["converged"]
                   for i in range(k - extra) if self.iteration_done(i).exists())

    def forget_align(self, k: int, half: int) -> None:
        """Remove what an align step wrote, and all that was made of it: the latest first, so that at no moment
        something is left that looks done and is not."""
        self.forget_merge(k)
        remove(self.half_done(k, half))
        for path in (self.half_map(k, half), self.poses(k, half), self.noise(k, half), self.motion(k, half)):
            remove(path)
        remove_temporary(self.iteration(k), f"half_{half}*")

    def forget_merge(self, k: int) -> None:
        """Remove what a merge step wrote, and all that was made of it."""
        remove(self.report)
        for folder in reversed(self.iteration_folders()):
            number = int(folder.name[len("iter_"):])
            if number > k:
                for done in (self.iteration_done(number), self.half_done(number, 1), self.half_done(number, 2)):
                    remove(done)
                remove(folder)
        remove(self.iteration_done(k))
        for path in (self.reference(k, 1), self.reference(k, 2), self.iteration_mask(k), self.filter_resolution(k),
                     self.fsc(k), self.forecast(k)):
            remove(path)

    def iteration_folders(self) -> List[Path]:
        folders = [path for path in self.path.glob("iter_*") if path.name[len("iter_"):].isdigit()]
        return sorted(folders, key=lambda path: int(path.name[len("iter_"):]))


class BodiesFolder:
    """The names of a run of several masks; its bodies are run folders."""

    def __init__(self, path: PathLike):
        self.path = Path(path)

    record = property(lambda self: self.path / "bodies.json")
    composite = property(lambda self: self.path / "final" / "composite")

    def body(self, number: int) -> RunFolder:
        """Of mask ``number``, counted from 1."""
        return RunFolder(self.path / f"body_{number}")

    def link(self, number: int) -> Path:
        return self.path / "final" / f"body_{number}"

    def bodies(self) -> List[RunFolder]:
        """Those that are there, by their number; a folder of that name with other files is none."""
        found = [RunFolder(path) for path in self.path.glob("body_*") if path.name[len("body_"):].isdigit()]
        runs = [run for run in found if run.settings.exists() or run.iteration(0).exists()]
        return sorted(runs, key=lambda run: int(run.path.name[len("body_"):]))


FINAL_FILES = ("particles.star", "half_map_1.mrc", "half_map_2.mrc", "map.mrc", "map_sharpened.mrc",
               "mask.mrc", "fsc.star", "mask_ladder.json", "tightest_mask.mrc", "sharpening.json", "pose_blur.json",
               "directions.json", "directions.npz")
FILM_FILES = ("film.cxc", "film.gif")
RIGIDITY_FILES = ("motion.mrc", "motion_error.mrc", "rigidity.cxc", "rigidity.png")
OPTIONAL_FINAL_FILES = ("filter_resolution.mrc",  # where the filter was non-uniform
                        "particles_kept.star", "particles_left_out.star", "selection.json",  # of a selection
                        "particles.cs", "particles_kept.cs", "particles_left_out.cs",  # of particles of cryoSPARC
                        "rest_control.json", "second_copy.json",  # runs of older versions have none
                        "moving_part.mrc", "resolution_by_part.mrc",  # where parts of the mask do not move alike
                        "validation.json",  # of the verb validate
                        "input_changes.json")  # where input files changed while the run went on
