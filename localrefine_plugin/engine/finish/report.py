"""The report of a run, put together from the JSON files its steps left behind."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Type, TypeVar, Union

from ..io.run_folder import RunFolder, read_json
from ..io.run_store import input_record
from ..maps.fsc import read_fsc
from ..records.codec import from_json
from ..records.errors import InputError
from ..records.iteration import HalfRecord, IterationRecord
from ..records.results import (
    Directions,
    MaskLadder,
    PoseBlur,
    Report,
    RestControl,
    SecondCopy,
    Selection,
    Sharpening,
    Validation,
)
from ..records.run_input import InputChanges, RunInput
from ..records.settings import Settings

Record = TypeVar("Record")


def build_report(run: RunFolder) -> Report:
    """The report of a finished, running or killed run. A file that a killed step left unreadable is left out, with a
    warning.

    Raises InputError when the folder holds no run.
    """
    if not run.settings.exists() and not run.input.exists():
        raise InputError("holds no run", str(run.path), "give the --output folder of an earlier run")
    unreadable: List[str] = []

    def read(path: Path, make: Callable[[Dict[str, Any]], Record]) -> Optional[Record]:
        return _read(path, make, unreadable)
    settings = read(run.settings, _as(Settings))
    given = read(run.input, lambda content: input_record(content, settings or Settings()))
    numbers = [int(folder.name[len("iter_"):]) for folder in run.iteration_folders()]
    halves = [read(run.half_done(k, half), _as(HalfRecord)) for k in numbers for half in (1, 2)]
    found = [read(run.iteration_done(k), _as(IterationRecord)) for k in numbers]
    iterations, steps = [i for i in found if i is not None], [h for h in halves if h is not None]
    blur = read(run.final("pose_blur.json"), _as(PoseBlur))
    validation = read(run.final("validation.json"), _as(Validation))
    directions = read(run.final("directions.json"), _as(Directions))
    copy = read(run.final("second_copy.json"), _as(SecondCopy))
    control = read(run.final("rest_control.json"), _as(RestControl))
    best = best_iteration(iterations)
    advice = [*(best.advice.values() if best else ()),
              *(found.advice for found in (copy, control, blur, directions) if found),
              *(validation.advice if validation else ())]
    costs: List[Union[IterationRecord, HalfRecord]] = [*iterations, *steps]
    changes = read(run.final("input_changes.json"), _as(InputChanges))
    # what an iteration was warned of and the best one no longer suffers from is history; what it suffers from is advice
    said = unreadable + [text for step in (given, *iterations[:1]) if step for text in step.warnings]
    said += changes.changes if changes else ()
    return Report(
        iterations=tuple(iterations), halves=tuple(steps), input=given, settings=settings,
        wall_seconds=sum(step.wall_seconds for step in costs), cpu_seconds=sum(step.cpu_seconds for step in costs),
        peak_memory_mb=max((step.peak_memory_mb for step in costs), default=0.0),
        warnings=tuple(dict.fromkeys(said)), advice=tuple(text for text in advice if text),
        final_resolution_angstrom=final_resolution(run, given, best),
        expected_truth_resolution_angstrom=blur.expected_resolution_angstrom if blur else None,
        resolution_to_report_angstrom=blur.resolution_to_report_angstrom if blur else None,
        range_to_report_angstrom=blur.range_to_report_angstrom if blur else (),
        mask_ladder=read(run.final("mask_ladder.json"), _as(MaskLadder)),
        directions=directions, second_copy=copy, rest_control=control,
        selection=read(run.final("selection.json"), _as(Selection)),
        sharpening=read(run.final("sharpening.json"), _as(Sharpening)),
        validation=validation.tests if validation else ())


def final_resolution(run: RunFolder, given: Optional[RunInput], best: Optional[IterationRecord]) -> Dict[str, float]:
    """Å of each FSC curve of the results: those of the ``best`` iteration, or of its maps with the other bodies back in
    them (bodies/complete.py); {} before the first iteration."""
    path = run.final("fsc.star")
    if given is not None and given.subtracted_bodies and path.exists():
        return read_fsc(path).resolutions()
    return best.resolution_angstrom if best else {}


def best_iteration(iterations: Sequence[IterationRecord]) -> Optional[IterationRecord]:
    """The iteration whose maps are the result: the best one by the last decision; None before the first."""
    if not iterations:
        return None
    best = iterations[-1].best_iteration
    return next((record for record in iterations if record.iteration == best), iterations[-1])


def _as(record_class: Type[Record]) -> Callable[[Dict[str, Any]], Record]:
    return lambda content: from_json(record_class, content)


def _read(path: Path, make: Callable[[Dict[str, Any]], Record], unreadable: List[str]) -> Optional[Record]:
    """The record of a file; None without one, with a warning if it is there but unreadable."""
    if not path.exists():
        return None
    try:
        return make(read_json(path))
    except (OSError, ValueError, LookupError, TypeError, InputError):
        unreadable.append(f"{path}: cannot be read and is left out of the report")
        return None
