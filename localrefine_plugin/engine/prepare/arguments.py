"""What a run is given besides its data: the settings file, and a folder to write to."""
from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from ..io.run_folder import BodiesFolder, PathLike, RunFolder, check_regular_file, read_json
from ..records.errors import InputError
from ..records.run_input import INPUT_NAMES
from ..records.settings import Settings


class OutputError(InputError):
    """The output folder must not be touched; not even error.json is written there."""


def read_settings(path: Optional[PathLike]) -> Settings:
    """Settings of a JSON file, what it leaves out at its default; all defaults without a file."""
    if path is None:
        return Settings()
    source = str(path)
    try:
        check_regular_file(path)
        content = read_json(path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", source, "give an existing JSON file") from None
    except RecursionError:
        raise InputError("is not a JSON file (nested too deeply)", source, "write {\"setting\": value, ...}") from None
    except ValueError as error:  # JSONDecodeError, and bytes that are not UTF-8
        raise InputError(f"is not a JSON file ({error})", source, "write {\"setting\": value, ...}") from None
    if not isinstance(content, dict):
        raise InputError("holds no JSON object", source, "write {\"setting\": value, ...}")
    try:
        return Settings.from_dict(content)
    except (TypeError, OverflowError):  # a number too large for a float
        raise InputError("has a number too large", source, "correct it") from None


def check_output(output: PathLike, mode: str, inputs: Mapping[str, PathLike]) -> None:
    """Raise OutputError unless a run in this mode may write to this folder.

    Parameters
    ----------
    mode : "new" wants a folder that is empty or not there yet (an error.json of a failed attempt may stay);
        "overwrite" and "continue" take a run as well, but never a folder of other files.
    inputs : name (one of INPUT_NAMES) → path; overwriting must not delete them.
    """
    path, run = Path(output), RunFolder(output)
    source = f"output {output}"
    if path.exists() and not path.is_dir():
        raise OutputError("is not a folder", source, "give another name")
    present = {entry.name for entry in path.iterdir()} - {run.error.name} if path.is_dir() else set()
    if not present:
        return
    if mode == "new":
        raise OutputError("exists already and is not empty", source,
                          "give another name, or --overwrite to replace it or --continue to resume it")
    for name in sorted(present):
        if (path / name).is_symlink():
            raise OutputError(f"holds a link ({name}), and writing through it would change files elsewhere", source,
                              "remove the link, or give another name")
    if run.settings.name not in present and not all(_of_a_run(name, run) for name in present):
        raise OutputError("holds files that are not of a run", source, "give another name")
    for name, given in inputs.items():
        if mode == "overwrite" and Path(os.path.realpath(path)) in Path(os.path.realpath(given)).parents:
            raise OutputError(f"holds the input {name} ({given}), which overwriting would delete", source,
                              "give another name")


def check_forecast_file(path: PathLike) -> None:
    """Raise InputError unless forecasts may be written to this file: it is new, or holds forecasts."""
    folder, source = Path(os.path.abspath(path)).parent, f"--json {path}"
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError("lies in no folder that can be written to", source, "make the folder, or give another name")
    if os.path.lexists(path) and "forecasts" not in _content(Path(path)):
        raise InputError("is there already and holds no forecasts", source, "give another name")


def _of_a_run(name: str, run: RunFolder) -> bool:
    """Whether a run has a file or folder of this name, or leaves it behind when it is killed."""
    names = {path.name for path in (run.input, run.report, run.particles, run.mask)} | {"final", "bodies.json"}
    return name in names or re.fullmatch(r"iter_\d{3,}|body_\d+|\..*\.tmp\.\w+", name) is not None


def check_same_run(run: RunFolder, inputs: Mapping[str, PathLike]) -> None:
    """Raise OutputError, naming what differs, unless the run in the folder has these inputs."""
    bodies = BodiesFolder(run.path).bodies()
    if bodies:
        raise OutputError(f"holds a run of {len(bodies)} masks", f"output {run.path}",
                          "continue with the same masks, or give another name")
    known = _content(run.input)
    differences = [f"{name} (was {known[name]}, now {os.path.abspath(inputs[name])})" for name in INPUT_NAMES
                   if name in known and os.path.realpath(str(known[name])) != os.path.realpath(inputs[name])]
    if differences:
        raise OutputError("holds a run with other inputs: " + ", ".join(differences), f"output {run.path}",
                          "continue with the same, or give another name")


def _content(path: Path) -> Dict[str, Any]:
    """The JSON object of a file; empty without one, for a run killed before it was written differs in nothing."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
