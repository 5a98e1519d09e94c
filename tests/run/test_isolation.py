"""A run keeps to itself: its own half, its own folder, no network, no code from its input."""
from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from experiments import experiment, write_inputs

from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.io.run_folder import RunFolder, write_atomic
from localrefine_plugin.engine.records.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "localrefine_plugin"

# A whole refinement in a process whose audit hook notes what it opens and refuses the network and unpickling.
WATCHED = """
import json, os, sys
import localrefine_plugin.engine.refine
from localrefine_plugin.engine.__main__ import main
opened, forbidden = set(), []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if arguments[2] is not None else False
        opened.add((os.path.abspath(arguments[0]), writes))
    if event.split(".")[0] in ("socket", "urllib", "http", "ftplib", "smtplib") or (
            event in ("pickle.find_class", "subprocess.Popen", "os.system")
            and not any("numba" in name for name in files(sys._getframe()))):  # numba keeps its kernels pickled
        forbidden.append(event)
        raise RuntimeError(event)
def files(frame):
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back
os.umask(0o027)
sys.addaudithook(watch)
status = main(sys.argv[2:])
json.dump([status, sorted(opened), forbidden], open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """(folder, files opened with whether for writing, events refused) of a refinement."""
    folder = tmp_path_factory.mktemp("watched")
    particles, half_1, half_2, mask = write_inputs(folder / "data", experiment(40, noise=1.0, seed=3))
    (folder / "settings.json").write_text('{"max_iterations": 1}')
    words = ["refine", "--particles", particles, "--half-map-1", half_1, "--half-map-2", half_2, "--mask", mask,
             "--output", str(folder / "run"), "--settings", str(folder / "settings.json"), "--device", "cpu",
             "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", WATCHED, str(folder / "seen.json"), *words], cwd=ROOT,
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    status, opened, forbidden = json.loads((folder / "seen.json").read_text())
    assert status == 0
    return folder, opened, forbidden


def test_no_network_and_no_program_is_used_and_nothing_is_unpickled(watched):
    assert watched[2] == []


def test_nothing_is_written_outside_the_run_folder(watched):
    """But for the compiled kernels that numba keeps beside the package, and the note of this test itself."""
    folder, opened, _ = watched
    written = {path for path, writes in opened if writes and not path.startswith(("/dev/", "/proc/self/"))}
    assert any(path.startswith(str(folder / "run")) for path in written)
    outside = {path for path in written if not path.startswith(str(folder / "run") + os.sep)}
    assert {path for path in outside if "__pycache__" not in path and "numba" not in path} <= {
        str(folder / "seen.json")}


def test_the_umask_is_respected(watched):
    """0o027: the group may read, others nothing."""
    for path in [watched[0] / "run"] + sorted((watched[0] / "run").rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o750 if path.is_dir() else 0o640), path


def test_an_align_step_opens_nothing_of_the_other_half(tmp_path):
    """Half 2's images and files are replaced by noise of the same length: half 1 comes out the same."""
    inputs = write_inputs(tmp_path / "data", experiment(60, noise=1.0, seed=4))
    run = engine.refine(*inputs, str(tmp_path / "run"), Settings(max_iterations=2), threads=1)
    own = [run.half_map(2, 1), run.poses(2, 1), run.noise(2, 1)]
    before = [path.read_bytes() for path in own]
    rng = np.random.default_rng(0)
    others = [tmp_path / "data" / "half_2.mrcs", tmp_path / "data" / "input_2.mrc"] + sorted(run.path.rglob("half_2*"))
    assert len(others) > 10
    for path in others:
        path.write_bytes(rng.bytes(path.stat().st_size))
    run.forget_align(2, 1)
    assert not any(path.exists() for path in own)
    engine.align(str(run.path), 2, (1,), threads=1)
    assert [path.read_bytes() for path in own] == before


def test_two_writers_of_one_file_never_share_a_temporary_name(tmp_path):
    names = []

    def write(name):
        names.append(name)
        Path(name).write_text("x")
    for _ in range(2):
        write_atomic(tmp_path / "a.json", write)
    assert names[0] != names[1] and all(os.path.dirname(name) == str(tmp_path) for name in names)
    assert os.listdir(tmp_path) == ["a.json"]


def test_two_runs_beside_each_other_do_not_meet(tmp_path):
    """At the same time, on the same input and one scratch folder; each gives what it gives alone."""
    inputs = write_inputs(tmp_path / "data", experiment(40, noise=1.0, seed=3))
    (tmp_path / "settings.json").write_text('{"max_iterations": 1}')
    names = "--particles", "--half-map-1", "--half-map-2", "--mask"
    words = [word for pair in zip(names, inputs) for word in pair]
    running = [subprocess.Popen([sys.executable, "-m", "localrefine_plugin.engine", "refine", *words, "--output",
                                 str(tmp_path / f"run_{i}"), "--settings", str(tmp_path / "settings.json"),
                                 "--threads", "1", "--device", "cpu"], cwd=ROOT, stdout=subprocess.DEVNULL)
               for i in (1, 2)]
    assert [child.wait() for child in running] == [0, 0]
    one, two = (RunFolder(tmp_path / f"run_{i}") for i in (1, 2))
    for name in ("half_map_1.mrc", "half_map_2.mrc", "particles.star"):
        assert one.final(name).read_bytes() == two.final(name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["data", "run_1", "run_2", "settings.json"]


FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "socket", "urllib", "http", "requests", "ftplib",
                     "smtplib", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.chmod", "os.umask",
                   "tempfile.mktemp"}


def dotted(node):
    """A name as it is written, as far as it is one."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(tree):
    """What a module does that could run code from data, speak to the network, or open files to everyone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from {name.name.split(".")[0] for name in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from {str(node.module).split(".")[0]} & FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            name, given = dotted(node.func), {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if name in FORBIDDEN_CALLS or "shell" in given or (
                    name in ("np.load", "numpy.load") and given.get("allow_pickle") is not False):
                yield f"{name} in line {node.lineno}"


def test_no_module_runs_code_from_data_or_speaks_to_the_network():
    found = {str(path.relative_to(PACKAGE)): list(offences(ast.parse(path.read_text(encoding="utf-8"))))
             for path in PACKAGE.rglob("*.py")}
    assert len(found) > 50 and {path: what for path, what in found.items() if what} == {}
    for text in ("import pickle", "from urllib.request import urlopen", "eval(x)", "np.load(p)", "run(c, shell=True)"):
        assert list(offences(ast.parse(text))), text
