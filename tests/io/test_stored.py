"""Columns that are read from an .npz file by rows, against what numpy loads of it."""
from __future__ import annotations

import zipfile

import numpy as np
import pytest

from localrefine_plugin.engine.io.run_store import save_arrays
from localrefine_plugin.engine.io.stored import LONGEST_GAP, JoinedColumn, stored_columns
from localrefine_plugin.engine.records.poses import Covariances, packed

N = 3 * LONGEST_GAP
INDEXES = {"neighbours": np.arange(10, 200), "in disorder": np.array([700, 3, 4, 699, 3]),
           "far apart": np.array([0, N - 1]),
           "none": np.zeros(0, int), "a slice": slice(5, None, 7), "of which": np.arange(N) % 3 == 1, "one": 17,
           "rows and columns": (slice(0, 9), slice(None, 2))}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(1)
    return dict(rotation=rng.standard_normal((N, 3, 3)), half_set=rng.integers(1, 3, N).astype(np.int8),
                stack=np.arange(N, dtype=np.int32), aligned=rng.random(N) < 0.5)


@pytest.fixture
def stored(arrays, tmp_path):
    save_arrays(tmp_path / "table.npz", **arrays)
    return stored_columns(tmp_path / "table.npz")


@pytest.mark.parametrize("what", INDEXES)
def test_rows_are_those_that_numpy_loads(arrays, stored, what):
    for name, column in arrays.items():
        if what == "rows and columns" and column.ndim == 1:
            continue
        found = stored[name][INDEXES[what]]
        assert found.dtype == column.dtype and stored[name].shape == column.shape and len(stored[name]) == N
        np.testing.assert_array_equal(found, column[INDEXES[what]])
        np.testing.assert_array_equal(np.asarray(stored[name]), column)


def test_columns_of_some_rows_and_of_several_tables(arrays, stored):
    rows = np.flatnonzero(arrays["half_set"] == 2)
    some = stored["rotation"].of_rows(rows)
    np.testing.assert_array_equal(some[4:90], arrays["rotation"][rows][4:90])
    joined = JoinedColumn([some, stored["rotation"]])
    expected = np.concatenate([arrays["rotation"][rows], arrays["rotation"]])
    assert len(joined) == len(expected)
    for index in (np.array([0, len(rows), len(rows) - 1, len(expected) - 1]), slice(len(rows) - 3, len(rows) + 3), 5):
        np.testing.assert_array_equal(joined[index], expected[index])


def test_a_damaged_file_is_noticed_when_it_is_opened(arrays, tmp_path):
    path = tmp_path / "table.npz"
    save_arrays(path, **arrays)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        stored_columns(path)


def test_a_file_that_is_cut_short_afterwards_is_noticed_when_it_is_read(stored, tmp_path):
    with open(tmp_path / "table.npz", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="was cut short"):
        stored["rotation"][:]


def test_covariances_are_kept_as_triangles_of_float32():
    factor = np.random.default_rng(2).standard_normal((7, 5, 5))
    covariance = factor @ np.swapaxes(factor, 1, 2)
    kept = Covariances(packed(covariance))
    assert kept.triangles.nbytes == 60 * len(covariance) and kept.shape == covariance.shape and len(kept) == 7
    for index in (slice(None), np.array([3, 1]), 2, (slice(None), slice(0, 3), slice(0, 3))):
        np.testing.assert_array_equal(kept[index], covariance.astype(np.float32)[index])
    np.testing.assert_array_equal(np.asarray(kept), np.swapaxes(covariance, 1, 2).astype(np.float32))
