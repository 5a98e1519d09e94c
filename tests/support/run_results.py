"""What two runs leave, compared bit by bit."""
from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from localrefine_plugin.engine.inputs.changes import file_states, keep_inputs
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.run_store import load_input, load_poses


@lru_cache(maxsize=None)
def temporary_folder():
    import atexit
    import shutil

    folder = Path(mkdtemp(prefix="localrefine_refine_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def results(run):
    """Bytes of everything that is a result and not a timing; of the records of half-sets the verdicts."""
    patterns = "iter_*/*.mrc", "iter_*/*.npz", "iter_*/*.star", "final/*"
    files = {
        str(p.relative_to(run.path)): p.read_bytes() for pattern in patterns for p in sorted(run.path.glob(pattern))
    }
    verdicts = {
        str(p.relative_to(run.path)): json.dumps(read_json(p)["verdict"]).encode()
        for p in sorted(run.path.glob("iter_*/half_[12].json"))
    }
    return {**files, **verdicts}


def assert_same_bits(one, other):
    first, second = results(one), results(other)
    assert sorted(first) == sorted(second) and len(first) > 15
    assert [name for name in first if first[name] != second[name]] == []


def poses_of(run, iteration):
    """(rotation, shift_px) in input order."""
    tables = [load_poses(run, iteration, half) for half in (1, 2)]
    order = np.argsort(np.concatenate([t.row for t in tables]))
    return [np.concatenate([getattr(t, name) for t in tables])[order] for name in ("rotation", "shift_px")]


def accept_changed_files(run):
    """A prepared run whose input files a test has replaced goes on as if they had been so from the beginning."""
    given = load_input(run)
    paths = {name: getattr(given, name) for name in ("particles", "half_map_1", "half_map_2", "mask")}
    keep_inputs(run, paths, given.stacks, file_states(paths))
