"""A tolerant view of a run folder, finished, running or broken: for summaries, viewers and reports.

Whatever is missing, half-written or corrupt reads as "not there"; nothing here raises.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Type, TypeVar

import numpy as np

from ..engine.io.run_folder import RunFolder
from ..engine.io.star import named_table
from ..engine.records.codec import from_json
from ..engine.records.film import Film
from ..engine.records.iteration import HalfRecord, IterationRecord
from ..engine.records.resolved import ResolvedSettings
from ..engine.records.results import (
    Directions,
    MaskLadder,
    NullTest,
    PoseBlur,
    Report,
    RestControl,
    Selection,
    Sharpening,
    Validation,
)
from ..engine.records.rigidity import Rigidity
from ..engine.records.run_input import InputChanges, RunInput
from ..engine.records.settings import Settings

Record = TypeVar("Record")


class RunState:
    """What is known of a run at this moment.

    Attributes
    ----------
    settings, input : settings.json and input.json; None when not there.  error : the message of error.json, or "".
    iterations : every iteration.json, in order, the input (0) first.
    """

    def __init__(self, path: Any):
        self.folder = RunFolder(path)
        self.settings: Optional[Settings] = read_record(self.folder.settings, Settings)
        self.input = self._read_input()
        self.error = str(read_json(self.folder.error).get("message", ""))
        self.iterations = self._read_iterations()

    def _read_input(self) -> Optional[RunInput]:
        from ..engine.io.run_store import input_record
        return attempt(lambda: input_record(read_json(self.folder.input), self.settings or Settings()))

    def _read_iterations(self) -> List[IterationRecord]:
        """iteration.json of iterations 0, 1, …; a broken one is left out, the first missing one ends the list."""
        found = []
        k = 0
        while self.folder.iteration_done(k).exists():
            record = read_record(self.folder.iteration_done(k), IterationRecord)
            if record is not None and record.iteration == k:
                found.append(record)
            k += 1
        return found

    @property
    def started(self) -> bool:
        return self.settings is not None or self.input is not None

    @property
    def finished(self) -> bool:
        return self.folder.final("fsc.star").exists() and self.folder.report.exists()

    @property
    def last(self) -> Optional[IterationRecord]:
        return self.iterations[-1] if self.iterations else None

    @property
    def best(self) -> Optional[IterationRecord]:
        """The iteration whose maps are the result: the engine's choice, else the last one."""
        return None if self.last is None else self.iteration(self.last.best_iteration) or self.last

    def iteration(self, k: int) -> Optional[IterationRecord]:
        return next((record for record in self.iterations if record.iteration == k), None)

    @property
    def resolved(self) -> Optional[ResolvedSettings]:
        return None if self.input is None else self.input.resolved

    @property
    def pixel_size(self) -> float:
        """Å; 1 while it is not known."""
        return 1.0 if self.input is None else self.input.pixel_size

    @property
    def fulcrum_px(self) -> Optional[Tuple[float, ...]]:
        """x, y, z from the corner of the box."""
        return None if self.resolved is None else self.resolved.fulcrum_px

    def poses(self, k: int, half: int) -> Optional[Dict[str, np.ndarray]]:
        return read_npz(self.folder.poses(k, half))

    def noise_power(self, k: int, half: int) -> Optional[np.ndarray]:
        """(groups, shells)."""
        content = read_npz(self.folder.noise(k, half)) or {}
        return content.get("power")

    def input_rotations(self) -> Optional[np.ndarray]:
        """(n, 3, 3) rotations of all input particles."""
        return (read_npz(self.folder.particles) or {}).get("rotation")

    def half_map(self, k: int, half: int) -> Optional[np.ndarray]:
        """The unfiltered half-map of an iteration; of iteration 0 the one the run was given."""
        if k > 0:
            return read_map(self.folder.half_map(k, half))
        return None if self.input is None else read_map(self.input.half_maps[half - 1])

    def mask_in_use(self, k: int) -> Optional[np.ndarray]:
        """The mask of the FSC of an iteration, which is not the one given when it is dynamic."""
        return read_map(self.folder.mask_in_use(k))

    def motion(self, k: int, half: int) -> Optional[np.ndarray]:
        """(6, 6) covariance (rad, px) of the motion that a learned prior found in an iteration; or None."""
        found = (read_npz(self.folder.motion(k, half)) or {}).get("covariance") if k > 0 else None
        return found if found is not None and found.shape == (6, 6) and np.isfinite(found).all() else None

    def learned_hinge_px(self) -> Optional[Tuple[float, ...]]:
        """x, y, z (px from the corner) of the hinge of the motion learned by the best iteration, if it tells one."""
        motion = None if self.best is None else self.best.motion
        hinge = None if motion is None else motion.pooled.hinge
        return hinge.point_px if hinge is not None and hinge.known else None

    def learned_covariance(self, k: int) -> Optional[np.ndarray]:
        """(6, 6) covariance of the learned motion about the fulcrum, rad and Å, mean of the half-sets; or None."""
        from ..engine.motion.motion_prior import about_point
        from ..engine.motion.prior_shapes import prior_shape
        found = [motion for motion in (self.motion(k, half) for half in (1, 2)) if motion is not None]
        if not found or self.input is None:
            return None
        covariance, given, resolved = np.mean(found, axis=0), self.input, self.input.resolved
        fulcrum, mask_centre = (point(given.box_size) for point in (resolved.fulcrum_offset,
                                                                    resolved.mask_centre_offset))
        covariance = about_point(covariance, fulcrum - prior_shape(resolved.prior).point(fulcrum, mask_centre))
        unit = np.array([1.0] * 3 + [given.pixel_size] * 3)
        return covariance * np.outer(unit, unit)

    def half(self, k: int, half: int) -> Optional[HalfRecord]:
        return read_record(self.folder.half_done(k, half), HalfRecord)

    @property
    def input_changes(self) -> Tuple[str, ...]:
        """Sentences on input files that changed while the run went on."""
        found = read_record(self.folder.final("input_changes.json"), InputChanges)
        return found.changes if found is not None else ()

    @property
    def mask_ladder(self) -> Optional[MaskLadder]:
        return read_record(self.folder.final("mask_ladder.json"), MaskLadder)

    @property
    def directions(self) -> Optional[Directions]:
        return read_record(self.folder.final("directions.json"), Directions)

    @property
    def selection(self) -> Optional[Selection]:
        """What keeping particles by their probability did; None where it was not asked for."""
        return read_record(self.folder.final("selection.json"), Selection)

    @property
    def sharpening(self) -> Optional[Sharpening]:
        return read_record(self.folder.final("sharpening.json"), Sharpening)

    @property
    def pose_blur(self) -> Optional[PoseBlur]:
        """What the uncertain poses take from the map, once the run has finished."""
        return read_record(self.folder.final("pose_blur.json"), PoseBlur)

    @property
    def film(self) -> Optional[Film]:
        """The film of the motion, where one was made."""
        return read_record(self.folder.film, Film)

    @property
    def rigidity(self) -> Optional[Rigidity]:
        """Which parts of the particle move, where somebody looked for them."""
        return read_record(self.folder.rigidity, Rigidity)

    def is_result(self, k: int) -> bool:
        """Whether the results are there, and of iteration k."""
        return self.finished and self.best is not None and self.best.iteration == k > 0

    def fsc(self, k: int) -> Optional[Dict[str, np.ndarray]]:
        """Of the results, where they are of this iteration: with other bodies they have more density."""
        return read_fsc(self.folder.final("fsc.star") if self.is_result(k) else self.folder.fsc(k))

    def resolution_angstrom(self, k: int) -> Dict[str, float]:
        """Of each FSC curve; {} without such an iteration."""
        record = self.iteration(k)
        report = read_record(self.folder.report, Report) if self.is_result(k) else None
        found = report.final_resolution_angstrom if report is not None else {}
        return found or ({} if record is None else record.resolution_angstrom)

    def map(self, path: Path) -> Optional[np.ndarray]:
        return read_map(path)

    @property
    def rest_control(self) -> Optional[RestControl]:
        """What the rest of the particle says of the poses; None before the end, and in runs of older versions."""
        return read_record(self.folder.final("rest_control.json"), RestControl)

    def null_tests(self) -> Tuple[NullTest, ...]:
        """What a validation of the results found, test by test (() without one)."""
        found = read_record(self.folder.final("validation.json"), Validation)
        return () if found is None else found.tests

    def warnings(self) -> List[str]:
        """What is to be said of the run as it stands: of its input, then the advice on its best iteration.

        What an earlier iteration was warned of, and the result no longer suffers from, is left out.
        """
        report = read_record(self.folder.report, Report)
        outdated = {text for record in self.iterations[1:] for text in record.warnings}
        found = list(self.input.warnings if self.input is not None else ())
        found += [text for record in self.iterations[:1] for text in record.warnings]
        found += self.best.advice.values() if self.best is not None else ()
        if report is not None:
            found += [*report.advice, *(text for text in report.warnings if text not in outdated)]
        return list(dict.fromkeys([*found, *self.input_changes]))


def attempt(read: Callable[[], Record]) -> Optional[Record]:
    """What ``read`` returns; None where it fails, which damaged files make it do in a dozen ways."""
    try:
        return read()
    except Exception:
        return None


def read_record(path: Path, record_class: Type[Record]) -> Optional[Record]:
    """The record of a JSON file; None where the file is absent, damaged, or holds no such record."""
    return attempt(lambda: from_json(record_class, read_json(path)))


def read_json(path: Path) -> Dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_npz(path: Path) -> Optional[Dict[str, np.ndarray]]:
    def read() -> Dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    return attempt(read)


def read_fsc(path: Path) -> Optional[Dict[str, np.ndarray]]:
    columns = attempt(lambda: fsc_columns(str(path)))
    return columns if columns is not None and "rlnResolution" in columns else None


def fsc_columns(star_file: str) -> Dict[str, np.ndarray]:
    """The columns of a run's fsc.star as float64 arrays, by label."""
    table = named_table(star_file, "fsc")
    return {label: np.array([_number(text) for text in values], dtype=np.float64)
            for label, values in table.texts(table.labels).items()}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def read_map(path: Any) -> Optional[np.ndarray]:
    from ..engine.io.mrc import read_map as read
    return attempt(lambda: read(path)[0])
