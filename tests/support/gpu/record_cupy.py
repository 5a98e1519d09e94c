"""Writes what stand_in.py may offer, names and arguments only, from the CuPy that is installed; no GPU is needed.

    python tests/support/gpu/record_cupy.py            cupy_names.json: the newest release that setup.py allows
    python tests/support/gpu/record_cupy.py --older    cupy_older.json: how the oldest one differs (null: not there)
"""
from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from pathlib import Path

RECORD = Path(__file__).parent / "cupy_names.json"
OLDER = RECORD.with_name("cupy_older.json")
NAMESPACES = ("", "linalg", "fft", "fft.config", "cuda", "cuda.runtime", "cuda.memory")
BESIDE = {"cupyx.scipy.ndimage": ("label",)}  # of which the engine calls no more than this
NOT_ARITHMETIC = set(dir(object)) - {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}
CLASSES = ("ndarray", "RawModule", "RawKernel", "cuda.MemoryPool", "cuda.Device", "cuda.Stream", "cuda.Event", "ufunc")


def described(function) -> str:
    """Arguments as "a, b=, *, c=": a name with "=" may be left out. "?" where CuPy does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return from_docstring(inspect.getdoc(function) or "")
    words, keyword_only = [], False
    for p in parameters:
        if p.kind == p.KEYWORD_ONLY and not keyword_only:
            words.append("*")
            keyword_only = True
        prefix = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        words.append(prefix + p.name + ("=" if p.default is not p.empty else ""))
    return ", ".join(words)


def from_docstring(text: str) -> str:
    """The same from the first line of a Cython docstring: "_ndarray_base.sum(self, axis=None, …) -> …"."""
    found = re.match(r"[\w.]+\((.*?)\)(?: ->.*)?$", text.split("\n")[0])
    if not found:
        return "?"
    words = []
    for argument in filter(None, (a.strip() for a in found.group(1).split(","))):
        name, equals, _ = argument.partition("=")
        words.append(name.split()[-1] + ("=" if equals else ""))
    return ", ".join(word.lstrip("\\") for word in words if word != "self")


def found_in(module) -> dict:
    import cupy
    names = {}
    for name in dir(module):
        value = getattr(module, name)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if isinstance(value, cupy.ufunc):
            names[name] = f"ufunc {value.nin}"
        elif inspect.isclass(value):
            names[name] = "class"
        elif callable(value):
            names[name] = described(value)
        elif isinstance(value, float) or value is None:
            names[name] = "constant"
    return names


def members(cls) -> dict:
    names = {}
    for name in dir(cls):
        if name.startswith("_") and (not re.fullmatch(r"__\w+__", name) or name in NOT_ARITHMETIC):
            continue
        value = getattr(cls, name)
        names[name] = described(value) if callable(value) and not inspect.isclass(value) else "attribute"
        names[name] = re.sub(r"^self(, )?", "", names[name])
    return names


def resolve(root, dotted: str):
    for part in filter(None, dotted.split(".")):
        root = getattr(root, part)
    return root


def record() -> dict:
    import cupy
    return {"version": cupy.__version__,
            "functions": {**{n: found_in(resolve(cupy, n)) for n in NAMESPACES},
                          **{n: {name: described(getattr(importlib.import_module(n), name)) for name in names}
                             for n, names in BESIDE.items()}},
            "classes": {n: members(resolve(cupy, n)) for n in CLASSES}}


def differences(newest: dict, older: dict) -> dict:
    """The entries of ``newest`` that ``older`` has otherwise, or not at all."""
    return {"version": older["version"], **{
        kind: {where: {name: older[kind][where].get(name) for name, declared in names.items()
                       if older[kind][where].get(name) != declared} for where, names in newest[kind].items()}
        for kind in ("functions", "classes")}}


if __name__ == "__main__":
    older = sys.argv[1:] == ["--older"]
    content = differences(json.loads(RECORD.read_text()), record()) if older else record()
    (OLDER if older else RECORD).write_text(json.dumps(content, indent=0, sort_keys=True) + "\n")
