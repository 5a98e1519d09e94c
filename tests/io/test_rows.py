"""Tables whose rows stay in their file: they read and write as those in memory."""
from __future__ import annotations

import numpy as np
import pytest

from localrefine_plugin.engine.io import rows, star
from localrefine_plugin.engine.io.star import StarTable, read_star, write_star
from localrefine_plugin.engine.records.errors import InputError

N = 23
TEXT = ("# made here\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n1\n\n"
        "data_particles\n\nloop_\n_a #1\n_name #2\n_x #3\n{}\n")
LINES = [f"{i} 'm {i % 4}.mrc'  {i / 8:.3f}" for i in range(N)]
LAYOUTS = {
    "plain": TEXT.format("\n".join(LINES)), "Windows": TEXT.format("\n".join(LINES)).replace("\n", "\r\n"),
    "old Macintosh": TEXT.format("\n".join(LINES)).replace("\n", "\r"),
    "Windows editor": "\ufeff" + TEXT.format("\n".join(LINES)),
    "comments and blank lines between rows": TEXT.format("\n# said\n\n \t\n  ".join(LINES)),
    "a table after it": TEXT.format("\n".join(LINES)) + "\ndata_more\n\n_b 3\n",
    "no end of line": TEXT.format("\n".join(LINES)).rstrip("\n")}


@pytest.fixture
def in_file(monkeypatch):
    """More than five rows stay in their file, and are read by three."""
    monkeypatch.setattr(star, "KEPT_ROWS", 5)
    monkeypatch.setattr(rows, "CHUNK", 3)


def particles_of(path):
    return next(table for table in read_star(path) if table.name == "particles")


def written(tmp_path, text):
    path = tmp_path / "t.star"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_in_a_file_are_those_in_memory(tmp_path, monkeypatch, layout):
    path = written(tmp_path, LAYOUTS[layout])
    kept = particles_of(path)
    monkeypatch.setattr(star, "KEPT_ROWS", 5)
    monkeypatch.setattr(rows, "CHUNK", 3)
    table = particles_of(path)
    assert isinstance(table.lines, rows.RowsOfFile) and isinstance(kept.lines, list)
    assert list(table.lines) == kept.lines == LINES and len(table) == N
    assert table.lines[4] == LINES[4] and table.lines[20:] == LINES[20:]
    assert table.texts(["name", "x"]) == kept.texts(["name", "x"])
    assert table.comments == kept.comments


def test_changed_rows_are_made_when_they_are_written(tmp_path, in_file):
    path = written(tmp_path, LAYOUTS["plain"])
    table, calls = particles_of(path), []

    def compute(first, end):
        calls.append((first, end))
        return [np.arange(first, end) * 10, np.arange(first, end) + 0.5]
    together = rows.Together(N, compute).columns(2)
    chosen = np.arange(1, N, 2)
    changed = table.with_columns({"a": together[0], "new": together[1]})
    assert not calls
    write_star(tmp_path / "out.star", [changed.take(chosen).without(["x"])])
    assert calls == [(first, min(first + 3, N)) for first in range(0, N, 3)]
    found = particles_of(tmp_path / "out.star").texts(["a", "name", "x", "new"])
    assert found == {"a": [str(10 * i) for i in chosen], "name": [f"m {i % 4}.mrc" for i in chosen],
                     "new": [f"{i + 0.5:.6f}" for i in chosen]}


def test_a_table_can_be_written_over_the_file_that_holds_its_rows(tmp_path, in_file):
    path = written(tmp_path, LAYOUTS["plain"])
    write_star(path, [particles_of(path).with_columns({"x": np.zeros(N)})])
    assert particles_of(path).texts(["a", "x"]) == {"a": [str(i) for i in range(N)], "x": ["0.000000"] * N}


def test_a_file_that_changes_meanwhile_is_refused(tmp_path, in_file):
    path = written(tmp_path, LAYOUTS["plain"])
    table = particles_of(path)
    path.write_text(LAYOUTS["plain"].replace("m 1.mrc", "m 7.mrc") + "\n")
    with pytest.raises(InputError, match="was written to while it was read"):
        table.texts(["name"])


def test_rows_of_a_large_table_are_taken_in_order_only(tmp_path, in_file):
    with pytest.raises(ValueError, match="in their order"):
        particles_of(written(tmp_path, LAYOUTS["plain"])).take(np.array([3, 1]))


def test_texts_are_numbered_in_their_order(in_file):
    names = ["c", "a", "b", "a", "c", "c", "aa"]
    found = StarTable.from_columns("t", {"name": names}).numbered("name")
    assert found.tolist() == np.unique(names, return_inverse=True)[1].tolist() and found.dtype == np.int32
