"""What the doors share: the engine as a process of its own, and settings as another program writes them."""
from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from ..engine.records.errors import InputError
from ..engine.records.settings import DESCRIBED, Settings

PACKAGES = "numpy", "scipy", "numba", "mrcfile", "emtable"
PATIENCE_SECONDS = 20.0  # for the engine to end when it is asked to


# ---------------------------------------------------------------- the engine

def missing_packages() -> List[str]:
    """Packages that the engine needs and this Python does not have."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def check_packages() -> None:
    missing = missing_packages()
    if missing:
        raise InputError(
            f"lacks {', '.join(missing)}, which the refinement needs", f"the Python environment {sys.prefix}",
            f"pip install {' '.join(missing)}, or start the program of the environment that has them")


def engine_command(verb: str, *arguments: str) -> List[str]:
    return [sys.executable, "-m", "localrefine_plugin.engine", verb, *arguments]


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
    """The engine while the block lasts; it is ended when the block is left before it has, also by SIGTERM.

    options : of `subprocess.Popen`.
    """
    own = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))
    with leaving_on_sigterm():
        engine = subprocess.Popen(command, env=dict(os.environ, PYTHONPATH=path), **options)
        try:
            yield engine
        finally:
            if engine.poll() is None:
                engine.terminate()
                try:
                    engine.wait(PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    engine.kill()
                    engine.wait()


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Leave the block by SystemExit at SIGTERM, so that what follows it is done."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---------------------------------------------------------------- settings

def settings_of(rest: Sequence[str], program: str) -> Settings:
    """Settings of ["--name", "value", …], as RELION's form gives them; InputError names what is wrong."""
    values: Dict[str, Any] = {}
    for label, value in pairs(rest):
        name = label.lstrip("-").replace("-", "_")
        if name not in DESCRIBED:
            raise InputError(f"there is no setting '{name}'", "parameters of the job",
                             f"'{program} --help' says what can be given")
        values[name] = read_value(name, value)
    return Settings.from_dict(values)


def pairs(rest: Sequence[str]) -> List[Tuple[str, str]]:
    found, words = [], list(rest)
    while words:
        label = words.pop(0)
        if not label.startswith("--") or not words:
            raise InputError(f"'{label}' is not a label with its value", "parameters of the job",
                             "give a label and a value in each line of the form")
        found.append((label, words.pop(0)))
    return found


def read_value(name: str, text: str) -> Any:
    """Of a setting's kind: yes and no for true and false, auto for what is chosen from the data, x,y,z for a point."""
    info = DESCRIBED[name]
    if info.optional and text.lower() in ("auto", "none", "null"):
        return None
    if info.kind == "bool":
        return {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}.get(text.lower(), text)
    if info.kind == "fulcrum" and "," in text:
        text = f"[{text.strip('[]')}]"
    try:
        return text if info.kind in ("choice", "symmetry") else json.loads(text)
    except ValueError:
        return text
