"""Ways to spoil one thing of valid input files, and what must come of it."""
from __future__ import annotations

import json
import os
import re

import mrcfile
import numpy as np
from particle_files import PIXEL_SIZE, rows_of_relion_30, table_text, write_mrc

from localrefine_plugin.engine.__main__ import main
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.records.settings import Settings


def check(inputs, **values):
    return check_inputs(inputs.star, inputs.half_1, inputs.half_2, inputs.mask, Settings(**values))


def prepare(inputs, *more):
    """The verb from the command line; its exit status."""
    return main(["prepare", "--particles", str(inputs.star), "--half-map-1", str(inputs.half_1), "--half-map-2",
                 str(inputs.half_2), "--mask", str(inputs.mask), "--output", str(inputs.output), "--device", "cpu",
                 "--threads", "1", *more])


def files_below(folder):
    """Every path below a folder, with size and time of change where it is a file."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(root, name)
            state = os.lstat(path)
            found[path] = None if name in folders else (state.st_size, state.st_mtime_ns)
    return found


def assert_refused(inputs, capsys, case):
    """`prepare` says one sentence with these words, writes it to error.json, and touches nothing else."""
    spoil, named, remedy = case
    spoil(inputs)
    before = files_below(inputs.folder)
    assert prepare(inputs) == 1
    heard = capsys.readouterr()
    assert heard.err.startswith("error: ") and heard.err.count("\n") == 1 and "Traceback" not in heard.out
    said = json.loads((inputs.output / "error.json").read_text(encoding="utf-8"))
    assert set(said) == {"message", "problem", "input", "remedy", "command"}  # no traceback
    assert said["message"] == f"{said['input']}: {said['problem']}; {said['remedy']}"
    assert heard.err.strip().endswith(f"; {said['remedy']}")
    assert re.search(named, said["message"]), said["message"]
    assert remedy in said["remedy"] and said["input"] and said["problem"]
    after = files_below(inputs.folder)
    assert set(after) - set(before) == {str(inputs.output), str(inputs.output / "error.json")}
    assert {path: after[path] for path in before} == before


def data_of(path):
    return np.array(mrcfile.read(str(path)))


def change(path, function, pixel_size=PIXEL_SIZE):
    """Rewrite an MRC file with function(data), which may work in place."""
    data = data_of(path)
    result = function(data)
    write_mrc(path, data if result is None else result, pixel_size)


def put(where, value):
    def function(data):
        data[where] = value
    return function


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def set_row(row, **values):
    def spoil(inputs):
        inputs.rows[row].update(values)
        inputs.write_star()
    return spoil


def replace_optics(*pairs):
    def spoil(inputs):
        for old, new in pairs:
            assert old in inputs.optics
            inputs.optics = inputs.optics.replace(old, new)
        inputs.write_star()
    return spoil


def without(label):
    return lambda inputs: inputs.drop(label)


def text_replaced(old, new):
    def spoil(inputs):
        text = inputs.star.read_text()
        assert old in text
        inputs.star.write_text(text.replace(old, new))
    return spoil


def set_header(name, **fields):
    def spoil(inputs):
        with mrcfile.open(str(getattr(inputs, name)), mode="r+") as mrc:
            for field, value in fields.items():
                setattr(mrc.header, field, value)
    return spoil


def copy_row(source, target, keep=()):
    """Make row `target` a copy of row `source`, but for some columns."""
    def spoil(inputs):
        kept = {label: inputs.rows[target][label] for label in keep}
        inputs.rows[target] = dict(inputs.rows[source], **kept)
        inputs.write_star()
    return spoil


def relion_30(spoil_row):
    def spoil(inputs):
        rows = rows_of_relion_30(inputs.rows)
        for row in rows:
            spoil_row(row)
        inputs.star.write_text(table_text(rows, ""))
    return spoil


POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
