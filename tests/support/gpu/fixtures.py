"""Putting the stand-in in CuPy's place."""
from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
from conftest import require_program

from gpu.stand_in import beside, make_cupy
from localrefine_plugin.engine.kernels.device import Device

STAND_IN = Device("cuda:0", "stand-in")


@lru_cache(maxsize=None)
def folder() -> Path:
    """Where kernels are compiled to, once for all tests of a run."""
    import atexit
    path = Path(tempfile.mkdtemp(prefix="localrefine_kernels_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def install(monkeypatch, sanitizer="", workers=1, backwards=False):
    """A fresh stand-in as the module "cupy"; ``backwards``: threads run from the last to the first."""
    require_program("g++")
    cupy = make_cupy(folder(), sanitizer, workers, backwards)
    for name, module in {"cupy": cupy, **beside(cupy)}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return cupy


@lru_cache(maxsize=None)
def sanitizer_problem(name: str) -> str:
    """Why g++ cannot build and run programs under a sanitizer here, or ""."""
    source = folder() / f"probe_{name}.cpp"
    source.write_text("int main() { return 0; }\n")
    program = source.with_suffix("")
    command = ["g++", f"-fsanitize={name}", "-o", str(program), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return done.stderr
    fixed = [require_program("setarch"), "-R"] if name == "thread" else []
    return subprocess.run([*fixed, str(program)], capture_output=True, text=True).stderr


def install_sanitized(monkeypatch, name, workers=1):
    require_program("g++")
    problem = sanitizer_problem(name)
    if problem:
        pytest.skip(f"no {name} sanitizer here: {problem}")
    return install(monkeypatch, name, workers)
