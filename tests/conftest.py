"""What all tests share: Scipion's environment in a temporary folder, and optional programs and devices.

Each folder tests the package of the same name in the engine. Others: run/ (whole runs and the command line), scipion/
(protocols, viewers, converters, wizards), chain/ (other packages as producers and consumers), docs/ (docs, examples and
benchmarks), support/ (what tests import; on the path by pyproject.toml). Names of test files are unique.

Scipion's environment is set when this file is imported, before any test module can import pyworkflow.
"""
from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from examples.headless import set_environment

REQUIRE_OPTIONAL = os.environ.get("LOCALREFINE_REQUIRE_OPTIONAL") == "1"
REQUIRE_GPU = os.environ.get("LOCALREFINE_REQUIRE_GPU") == "1"


def _temporary_scipion() -> None:
    """Nothing where Scipion is absent: the engine's tests need none."""
    if importlib.util.find_spec("pyworkflow") is None:
        return
    folder = tempfile.mkdtemp(prefix="localrefine_tests_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    set_environment(Path(folder))


_temporary_scipion()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell begins with Ctrl-C ignored


def require_program(name: str) -> str:
    """Path of an optional program; without it the test is skipped, or fails if optional programs are required."""
    path = shutil.which(name)
    if path is None:
        _missing(f"the program '{name}' is not installed", REQUIRE_OPTIONAL)
    return str(path)


def require_mpi() -> None:
    """mpirun, and an mpi4py that finds its library. Asked in a process of its own: MPI, once initialised, marks the
    environment of all that this one starts."""
    require_program("mpirun")
    if subprocess.run([sys.executable, "-c", "from mpi4py import MPI"], stderr=subprocess.DEVNULL).returncode:
        _missing("mpi4py is not installed, or finds no MPI library", REQUIRE_OPTIONAL)


def require_xmipp() -> None:
    """Xmipp's library, which reads formats that are not MRC; it comes with scipion-em from 3.11 on."""
    try:
        import xmippLib  # noqa: F401
    except ImportError:
        _missing("Xmipp's library is not installed", REQUIRE_OPTIONAL)


def _missing(reason: str, required: bool) -> None:
    if required:
        pytest.fail(reason + ", and this run requires it", pytrace=False)
    pytest.skip(reason)


def _gpu_problem() -> str:
    """Why no GPU can be used ("" when one can): the driver is asked first, for CuPy may raise without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        problem = _gpu_problem()
        if problem:
            _missing(problem, REQUIRE_GPU)


@pytest.fixture(name="require_program")
def _require_program():
    """The function of that name, for tests that prefer a fixture to an import."""
    return require_program


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of `fake_run`, for those who look at runs; modules with a run of their own define it anew."""
    from fake_run import fake_run
    return fake_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def state(run):
    from localrefine_plugin.report.run_state import RunState
    return RunState(run.path)
