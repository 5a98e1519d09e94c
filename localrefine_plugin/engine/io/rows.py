"""Rows of tables that are larger than memory should hold: they stay in their file, or are made when they are written.

A row is a line of text without the white space around it; a line without a row is blank or begins with #.
"""
from __future__ import annotations

import os
import re
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple, overload

import numpy as np

from ..records.errors import InputError

CHUNK = 20_000  # rows at a time
Place = Tuple[int, int]  # of a line in a file: its first byte, and the one after its last
_PIECE = re.compile(rb"[^\r\n]+")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Chunks(Sequence[str]):
    """``count`` rows, which ``lines`` gives a chunk at a time, from the first on, as often as it is called."""

    def __init__(self, lines: Callable[[], Iterator[List[str]]], count: int):
        self.lines, self.rows = lines, count

    def chunks(self) -> Iterator[List[str]]:
        return self.lines()

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[str]:
        for lines in self.chunks():
            yield from lines

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> List[str]: ...

    def __getitem__(self, index: Any) -> Any:
        found = list(picked(self, np.atleast_1d(np.arange(self.rows)[index])))
        return found if isinstance(index, slice) else found[0]


class RowsOfFile(Chunks):
    """Rows that are read from a file again each time they are asked for."""

    def __init__(self, path: str):
        super().__init__(self.read, 0)
        self.path, self.chunk, self.state, self.end = path, CHUNK, _state(path), 0
        self.starts: List[int] = []

    def add(self, place: Place) -> None:
        """A row after those there are."""
        if self.rows % self.chunk == 0:
            self.starts.append(place[0])
        self.rows += 1
        self.end = place[1]

    def read(self) -> Iterator[List[str]]:
        """Raises InputError if the file was written to meanwhile."""
        with open(self.path, "rb") as file:
            for number, (start, end) in enumerate(zip(self.starts, [*self.starts[1:], self.end])):
                file.seek(start)
                text = file.read(end - start).decode("utf-8", "surrogateescape")
                if "\r" in text:
                    text = text.replace("\r\n", "\n").replace("\r", "\n")
                lines = [line for line in map(str.strip, text.split("\n")) if line and line[0] != "#"]
                if len(lines) != min(self.chunk, self.rows - number * self.chunk) or _state(self.path) != self.state:
                    raise InputError("was written to while it was read", self.path, "start again")
                yield lines


def _state(path: str) -> Tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def chunks_of(lines: Sequence[str]) -> Iterator[List[str]]:
    """Lines, a chunk at a time."""
    if isinstance(lines, Chunks):
        yield from lines.chunks()
        return
    for start in range(0, len(lines), CHUNK):
        yield list(lines[start:start + CHUNK])


def picked(lines: Sequence[str], rows: np.ndarray) -> Sequence[str]:
    """Those of these numbers (m,), ascending where the lines are not in memory."""
    if not isinstance(lines, Chunks):
        return [lines[row] for row in rows.tolist()]

    def some() -> Iterator[List[str]]:
        start = 0
        for chunk in chunks_of(lines):
            first, end = np.searchsorted(rows, (start, start + len(chunk)))
            yield [chunk[row - start] for row in rows[first:end].tolist()]
            start += len(chunk)
    if (np.diff(rows) < 0).any():
        raise ValueError("rows of a large table are taken in their order")
    return Chunks(some, len(rows))


def positions_of_lines(path: str) -> Iterator[Tuple[Place, str]]:
    """Every line of a text file that is not blank, stripped, and where it is; lines end as on Linux, Windows, or an old
    Macintosh. File names are bytes and come back as they were (surrogateescape)."""
    with open(path, "rb") as file:
        offset = 0
        for raw in file:
            end = offset + len(raw)
            if not offset and raw.startswith(_BYTE_ORDER_MARK):  # of Windows editors
                raw = raw[len(_BYTE_ORDER_MARK):]
            pieces: Sequence[Tuple[int, bytes]] = [(end - len(raw), raw)]
            if b"\r" in raw.rstrip(b"\r\n"):
                pieces = [(pieces[0][0] + found.start(), found.group()) for found in _PIECE.finditer(raw)]
            for start, piece in pieces:
                line = piece.decode("utf-8", "surrogateescape").strip()
                if line:
                    yield (start, start + len(piece)), line
            offset = end


class Together:
    """Columns of a table that are computed together, for a slice of its rows at a time.

    compute : columns (b, …) of rows first … end − 1, each of b numbers or texts.
    """

    def __init__(self, count: int, compute: Callable[[int, int], Sequence[Any]]):
        self.count, self.compute = count, compute
        self.known: Optional[Tuple[Place, Sequence[Any]]] = None

    def of(self, first: int, end: int) -> Sequence[Any]:
        if self.known is None or self.known[0] != (first, end):
            self.known = (first, end), self.compute(first, end)
        return self.known[1]

    def columns(self, number: int) -> List["ColumnOfThem"]:
        return [ColumnOfThem(self, k) for k in range(number)]


class ColumnOfThem:
    """One of these columns."""

    def __init__(self, together: Together, number: int):
        self.together, self.number = together, number

    def __len__(self) -> int:
        return self.together.count

    def __getitem__(self, part: slice) -> Any:
        first, end, _ = part.indices(len(self))
        return self.together.of(first, end)[self.number]
