"""What a run keeps on disk between its steps, as records."""
from __future__ import annotations

from dataclasses import asdict, replace
from typing import IO, Any, Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np

from ..kernels.host import Cost
from ..records.codec import as_json, from_json
from ..records.iteration import HalfRecord, IterationRecord, NullMoments
from ..records.motion import LearnedMotion
from ..records.particles import Particles
from ..records.poses import PoseTable
from ..records.results import Report
from ..records.run_input import RunInput
from ..records.settings import Settings
from .run_folder import PathLike, RunFolder, read_json, reading, write_atomic, write_json
from .stored import stored_columns

OLD_NAMES = {"pose_error_covariance": "error_covariance", "probability_not_junk": "counts",
             "accumulator_mean": "coverage"}
"""Column of a .npz file → what it was called in runs of 0.1.0's first version."""


class FileUntilFull:
    """A file for `zipfile`, whose end prints a traceback if a write has failed: the first failure is kept, and what
    comes after it is thrown away."""

    def __init__(self, handle: IO[bytes]):
        self.handle = handle
        self.failure: Optional[OSError] = None

    def write(self, data: bytes) -> int:
        self._try("write", data)
        return len(data)

    def seek(self, *where: int) -> int:
        return self._try("seek", *where)

    def tell(self) -> int:
        return self._try("tell")

    def flush(self) -> None:
        self._try("flush")

    def read(self, size: int = -1) -> bytes:
        """numpy takes what has it for a file."""
        return self.handle.read(size)

    def _try(self, method: str, *arguments: Any) -> int:
        try:
            return 0 if self.failure else getattr(self.handle, method)(*arguments) or 0
        except OSError as error:
            self.failure = error
            return 0


def save_arrays(path: Any, **arrays: np.ndarray) -> None:
    def write(name: str) -> None:
        with open(name, "wb") as handle:
            file = FileUntilFull(handle)
            np.savez(file, **arrays)
            if file.failure is not None:
                raise file.failure
    write_atomic(path, write)


def load_settings(run: RunFolder) -> Settings:
    """settings.json, with the defaults of settings that an older version did not have."""
    with reading(run.settings):
        return from_json(Settings, read_json(run.settings))


def load_input(run: RunFolder) -> RunInput:
    """input.json; its ``resolved`` are the settings in use now, which may have changed since it was written."""
    settings = load_settings(run)
    with reading(run.input):
        return input_record(read_json(run.input), settings)


def input_record(stored: Dict[str, Any], settings: Settings) -> RunInput:
    """The record of an input.json, of old versions too, with the settings in use."""
    fixed = dict(rotation_extent_fixed=settings.rotation_extent_deg is not None,
                 shift_extent_fixed=settings.shift_extent_angstrom is not None)
    known = {name: value for name, value in settings.as_dict().items() if value is not None}
    resolved = {**known, **fixed, **stored["resolved"]}
    given = from_json(RunInput, dict(stored, resolved=resolved))
    return replace(given, resolved=given.resolved.with_settings(settings))


def load_iteration(run: RunFolder, iteration: int) -> IterationRecord:
    """What the merge step (of iteration 0: prepare) left."""
    with reading(run.iteration_done(iteration)):
        return from_json(IterationRecord, read_json(run.iteration_done(iteration)))


def load_report(run: RunFolder) -> Report:
    """What finish left."""
    with reading(run.report):
        return from_json(Report, read_json(run.report))


def save_record(path: PathLike, record: Any, cost: Optional[Cost] = None) -> None:
    """Write a record as JSON, in one step; with what it cost to come to it."""
    write_json(path, as_json(record if cost is None else replace(record, **asdict(cost))))


def load_particles(run: RunFolder) -> Particles:
    given = load_input(run)
    with reading(run.particles), np.load(run.particles, allow_pickle=False) as stored:
        columns = {name: stored[name] for name in Particles.column_names()}
        return Particles(optics=given.optics, stacks=given.stacks, **columns)


def stored_particles(run: RunFolder) -> Particles:
    """As `load_particles`, read by rows when they are asked for."""
    given = load_input(run)
    with reading(run.particles):
        columns: Dict[str, Any] = stored_columns(run.particles)
        return Particles(optics=given.optics, stacks=given.stacks,
                         **{name: columns[name] for name in Particles.column_names()})


def stored_half_set(run: RunFolder, half: int) -> Tuple[np.ndarray, Particles]:
    """Rows (m,) of a half-set in the input table, and its particles, read by rows when they are asked for."""
    everything = stored_particles(run)
    rows = np.flatnonzero(np.asarray(everything.half_set) == half)
    columns: Dict[str, Any] = {name: getattr(everything, name).of_rows(rows) for name in Particles.column_names()}
    return rows, replace(everything, **columns)


def load_poses(run: RunFolder, iteration: int, half: int) -> Optional[PoseTable]:
    """Poses after an iteration; None after iteration 0, which is the input."""
    if iteration == 0:
        return None
    path = run.poses(iteration, half)
    with reading(path), np.load(path, allow_pickle=False) as stored:
        return PoseTable(**columns_of(stored, PoseTable.column_names()))


def stored_poses(run: RunFolder, iteration: int, half: int) -> Optional[PoseTable]:
    """As `load_poses`, read by rows when they are asked for."""
    if iteration == 0:
        return None
    path = run.poses(iteration, half)
    with reading(path):
        return PoseTable(**columns_of(stored_columns(path), PoseTable.column_names()))


def stored_tables(run: RunFolder, iteration: int) -> List[PoseTable]:
    """As `load_tables`, read by rows when they are asked for."""
    return [table for half in (1, 2) for table in [stored_poses(run, iteration, half)] if table is not None]


def load_tables(run: RunFolder, iteration: int) -> List[PoseTable]:
    """The poses of both half-sets after an iteration; none after iteration 0."""
    return [table for half in (1, 2) for table in [load_poses(run, iteration, half)] if table is not None]


def load_motion(run: RunFolder, iteration: int, half: int) -> Optional[LearnedMotion]:
    """The motion learned in an iteration, or None."""
    path = run.motion(iteration, half)
    if not path.exists():
        return None
    with reading(path), np.load(path, allow_pickle=False) as stored:
        return LearnedMotion(**columns_of(stored, tuple(LearnedMotion.__dataclass_fields__)))


def columns_of(stored: Mapping[str, Any], names: Iterable[str]) -> Dict[str, Any]:
    """The columns of a file that are there, by these names or by those that older versions gave them."""
    known = {name: name if name in stored else OLD_NAMES.get(name, name) for name in names}
    return {name: stored[column] for name, column in known.items() if column in stored}


def load_nulls(run: RunFolder, iteration: int, half: int) -> Optional[NullMoments]:
    """What images of nothing had told after an iteration, or None."""
    if iteration == 0:
        return None
    path = run.half_done(iteration, half)
    with reading(path):
        verdict = from_json(HalfRecord, read_json(path)).verdict
    return None if verdict is None else verdict.nulls


def load_noise(run: RunFolder, iteration: int, half: int, name: str = "power") -> np.ndarray:
    """The noise's σ² (groups, M + 1), or another column: "accumulator_mean" (M + 1,), from iteration 1 on."""
    path = run.noise(iteration, half)
    with reading(path), np.load(path, allow_pickle=False) as stored:
        column: np.ndarray = stored[name if name in stored else OLD_NAMES[name]]
    return column


def save_particles(run: RunFolder, particles: Particles) -> None:
    """Store the columns; optics groups and stacks are in input.json."""
    save_arrays(run.particles, **{name: getattr(particles, name) for name in Particles.column_names()})
