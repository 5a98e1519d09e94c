"""The report of a run, put together from the JSON files its steps left behind."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

from ..io.run_folder import RunFolder, read_json
from ..records.errors import InputError

TIMES = ("wall_seconds", "cpu_seconds")


def build_report(run: RunFolder) -> Dict[str, Any]:
    """The report of a finished, running or killed run.

    Keys: ``iterations`` (every iteration.json), ``halves`` (every half_H.json), ``input``, ``settings``,
    ``wall_seconds`` and ``cpu_seconds`` (summed over the steps, which may have run side by side),
    ``peak_memory_mb`` (of the largest step), ``warnings``, ``final_resolution_angstrom`` (of the best
    iteration; empty before the first), ``expected_truth_resolution_angstrom`` and
    ``resolution_to_report_angstrom``, the coarser of both (pose_blur.py; None before the end), ``advice``
    (sentences on the best iteration), ``sharpening`` (of the final map), ``mask_ladder`` (the resolution
    in ever tighter masks, mask_ladder.py). A file that a killed
    step left unreadable is left out, with a warning.

    Raises InputError when the folder holds no run.
    """
    if not run.settings.exists() and not run.input.exists():
        raise InputError("holds no run", str(run.path), "give the --output folder of an earlier run")
    warnings: List[str] = []
    given, settings = _read(run.input, warnings), _read(run.settings, warnings)
    iterations, halves = [], []
    for folder in run.iteration_folders():
        k = int(folder.name[len("iter_"):])
        halves += [_read(run.half_done(k, half), warnings) for half in (1, 2)]
        iterations.append(_read(run.iteration_done(k), warnings))
    iterations, halves = [i for i in iterations if i], [h for h in halves if h]
    steps = [given] + halves + iterations
    for step in [given] + iterations:
        warnings += [text for text in step.get("warnings", []) if text not in warnings]
    report: Dict[str, Any] = {"iterations": iterations, "halves": halves, "input": given, "settings": settings}
    for name in TIMES:
        report[name] = sum(step.get(name, 0.0) for step in steps)
    report["peak_memory_mb"] = max((step.get("peak_memory_mb", 0.0) for step in steps), default=0.0)
    report["warnings"] = warnings
    best = _best(iterations)
    report["advice"] = list(best.get("advice", {}).values())
    report["final_resolution_angstrom"] = best.get("resolution_angstrom", {})
    blur = _read(run.final("pose_blur.json"), warnings)
    report["expected_truth_resolution_angstrom"] = blur.get("expected_resolution_angstrom")
    report["resolution_to_report_angstrom"] = blur.get("resolution_to_report_angstrom")
    report["advice"] += [blur["advice"]] if blur.get("advice") else []
    report["mask_ladder"] = _read(run.final("mask_ladder.json"), warnings)
    validation = _read(run.final("validation.json"), warnings)
    report["validation"] = validation.get("tests", [])
    report["advice"] += validation.get("advice", [])
    report["sharpening"] = _read(run.final("sharpening.json"), warnings)
    return report


def _read(path: Path, warnings: List[str]) -> Dict[str, Any]:
    """The JSON object of a file; empty without one, with a warning if it is there but unreadable."""
    if not path.exists():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError):
        content = {}
    if not isinstance(content, dict) or not content:
        warnings.append(f"{path}: cannot be read and is left out of the report")
        return {}
    return content


def _best(iterations: List[Dict[str, Any]]) -> Dict[str, Any]:
    """The iteration whose maps are the result: the best one by the last decision; {} before the first."""
    if not iterations:
        return {}
    best = iterations[-1].get("best_iteration", iterations[-1].get("iteration"))
    return next((i for i in iterations if i.get("iteration") == best), iterations[-1])
