"""Columns of a table in an .npz file that are read by rows, when they are asked for.

Columns are read, not mapped: mapped ones would stay in memory, and a disk that fails would end the process with a
signal instead of an error.
"""
from __future__ import annotations

import os
import zipfile
from typing import IO, Any, Dict, Optional, Sequence, Tuple

import numpy as np
from numpy.lib import format as npy

LONGEST_GAP = 256  # rows that are read and not wanted, rather than another call
CHECKED_AT_ONCE = 1 << 20


class OpenFile:
    """A file that is open as long as something is read from it."""

    def __init__(self, path: Any):
        self.path, self.descriptor = str(path), os.open(str(path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read_into(self, out: np.ndarray, offset: int) -> None:
        """The bytes from an offset on, as many as fit into ``out``, which is contiguous. OSError names the file."""
        view, done = out.reshape(-1).view(np.uint8).data, 0
        while done < len(view):  # Linux reads at most 2 GiB at once
            try:
                size = os.preadv(self.descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.path) from None
            if not size:
                raise ValueError(f"{self.path} was cut short")
            done += size


class StoredColumn:
    """A column (m, …) on disk: indexed by rows it gives an array of these, and as an array all.

    Parameters
    ----------
    offset : of the first row in the file, bytes.  shape : of the column of the file.
    rows : (m,) of the file that are those of this column, ascending; None: all.
    """

    def __init__(self, file: OpenFile, offset: int, dtype: np.dtype, shape: Tuple[int, ...],
                 rows: Optional[np.ndarray] = None):
        self.file, self.offset, self.dtype, self.rows = file, offset, dtype, rows
        self.shape = shape if rows is None else (len(rows),) + shape[1:]
        self.row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def of_rows(self, rows: np.ndarray) -> "StoredColumn":
        """Of these rows (m,) of the file, ascending."""
        return StoredColumn(self.file, self.offset, self.dtype, (0,) + self.shape[1:], rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """``index``: (b,) or a slice of rows, or a tuple that begins with one of these."""
        if isinstance(index, tuple):
            found: np.ndarray = self[index[0]][(slice(None), *index[1:])]
            return found
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        if index.ndim == 0:
            one: np.ndarray = self[index[None]][0]
            return one
        return self._of_file(index if self.rows is None else self.rows[index])

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _of_file(self, rows: np.ndarray) -> np.ndarray:
        """These rows of the file; neighbours at once."""
        out = np.empty((len(rows),) + self.shape[1:], self.dtype)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ascending) > LONGEST_GAP) + 1, [len(rows)]])
        for a, b in zip(starts[:-1], starts[1:]):
            if a == b:  # no rows at all
                continue
            first, count = ascending[a], int(ascending[b - 1] - ascending[a]) + 1
            exact = count == b - a == len(rows) and bool((order == np.arange(len(rows))).all())
            part = out if exact else np.empty((count,) + self.shape[1:], self.dtype)
            self.file.read_into(part, self.offset + int(first) * self.row_bytes)
            if not exact:
                out[order[a:b]] = part[ascending[a:b] - first]
        return out


class JoinedColumn:
    """Columns (m, …) of several tables, one after the other: indexed by rows, or by a slice of them, an array."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        if index.ndim == 0:
            one: np.ndarray = self[index[None]][0]
            return one
        of_part = np.searchsorted(self.ends, index, side="right")
        first = self.parts[0]
        out = np.empty((len(index),) + first.shape[1:], first.dtype)
        for number, part in enumerate(self.parts):
            mine = of_part == number
            out[mine] = part[index[mine] - (self.ends[number] - len(part))]
        return out


def header_of(content: IO[bytes]) -> Tuple[Tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of an array in numpy's format."""
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    header: Tuple[Tuple[int, ...], bool, np.dtype] = read[npy.read_magic(content)](content)  # type: ignore[no-untyped-call]
    return header


def stored_columns(path: Any) -> Dict[str, StoredColumn]:
    """The columns of an uncompressed .npz file by name.

    Raises what `numpy.load` does where the file is damaged: its checksums are looked at here, once.
    """
    file, found = OpenFile(path), {}
    with zipfile.ZipFile(str(path)) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
            with archive.open(member) as content:
                shape, fortran, dtype = header_of(content)
                header = content.tell()
                while content.read(CHECKED_AT_ONCE):
                    pass  # at the end the checksum is compared
            if fortran or dtype.hasobject:
                raise ValueError(f"{member.filename} is no column of numbers in rows")
            local = np.empty(30, np.uint8)
            file.read_into(local, member.header_offset)
            names = int.from_bytes(local[26:28].tobytes(), "little") + int.from_bytes(local[28:30].tobytes(), "little")
            offset = member.header_offset + len(local) + names + header
            found[member.filename[:-len(".npy")]] = StoredColumn(file, offset, dtype, shape)
    return found


