"""Files that say something else than a reader expects: bytes and their sign, origins, other formats, names."""
from __future__ import annotations

import struct

import numpy as np
import pytest

from localrefine_plugin import convert
from localrefine_plugin.engine.io.mrc import Stack, read_map
from localrefine_plugin.engine.records.errors import InputError

STATISTICS, STAMP = 76, 152  # dmin, dmax, dmean; IMOD's stamp and flags, by its page mrc_format.txt


# ---------------------------------------------------------------- bytes and their sign

def byte_values(shape):
    """Every byte there is, so that the sign of the upper half shows."""
    return np.random.default_rng(4).permutation(np.arange(np.prod(shape)) % 256).reshape(shape).astype(np.uint8)


def write_bytes(path, values, statistics=(0, 0, 0), imod=None, order="<"):
    """An MRC file of mode 0 with these bytes, written field by field as the formats' pages say."""
    nz, ny, nx = values.shape
    header = bytearray(1024)
    struct.pack_into(order + "4i", header, 0, nx, ny, nz, 0)
    struct.pack_into(order + "3i3f3f3i", header, 28, nx, ny, nz, 2 * nx, 2 * ny, 2 * nz, 90, 90, 90, 1, 2, 3)
    struct.pack_into(order + "3f", header, STATISTICS, *statistics)
    if imod is not None:
        struct.pack_into(order + "2i", header, STAMP, 1146047817, imod)
    header[208:216] = b"MAP " + (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    path.write_bytes(bytes(header) + values.tobytes())


SIGNS = {
    # name: (statistics of the header, flags beside IMOD's stamp or None without it, the type that is right)
    "IMOD says signed": ((-128, 127, 0), 1, np.int8),
    "IMOD says signed, among other flags": ((-128, 127, 0), 1 + 4 + 8, np.int8),
    "IMOD says unsigned": ((0, 255, 127.5), 0, np.uint8),
    "IMOD says unsigned, among other flags": ((0, 255, 127.5), 2 + 4, np.uint8),
    "IMOD says unsigned without statistics": ((0, 0, 0), 0, np.uint8),
    "IMOD's flag against the statistics": ((0, 255, 127.5), 1, np.int8),
    "no stamp, statistics of signed bytes": ((-128, 127, 0), None, np.int8),
    "no stamp, statistics of unsigned bytes": ((0, 255, 127.5), None, np.uint8),
    "no stamp, no statistics": ((0, 0, 0), None, np.int8),
    "no stamp, statistics marked as missing": ((0, -1, -2), None, np.int8),
    "no stamp, statistics that are not numbers": ((np.nan, np.nan, np.nan), None, np.int8)}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("name", SIGNS)
def test_bytes_have_the_sign_their_writer_gave_them(tmp_path, name, order):
    statistics, imod, kind = SIGNS[name]
    values = byte_values((8, 8, 8))
    write_bytes(tmp_path / "file.mrc", values, statistics, imod, order)
    right = values.view(kind).astype(np.float32)
    np.testing.assert_array_equal(read_map(tmp_path / "file.mrc")[0], right)
    np.testing.assert_array_equal(convert.read_map(str(tmp_path / "file.mrc")), right)
    stack = Stack(str(tmp_path / "file.mrc"))
    np.testing.assert_array_equal([stack.image(i).astype(np.float32) for i in range(8)], right)
    stack.close()


def test_a_map_of_a_scipion_set_in_unsigned_bytes_is_copied_right(tmp_path):
    values = byte_values((8, 8, 8))
    write_bytes(tmp_path / "map.mrc", values, imod=0)
    copy = convert.mrc_map(str(tmp_path / "map.mrc"), 2.0, str(tmp_path / "copy.mrc"))
    np.testing.assert_array_equal(read_map(copy)[0], values.astype(np.float32))


@pytest.mark.parametrize("statistics", [(-40, 300, 10), (0, 1000, 100)])
def test_statistics_that_no_byte_has_are_refused_where_the_sign_matters(tmp_path, statistics):
    path = tmp_path / "map.mrc"
    write_bytes(path, byte_values((8, 8, 8)), statistics)
    with pytest.raises(InputError, match=f"from {statistics[0]} to {statistics[1]}.*signed.*; export it in mode 2"):
        read_map(path)
    with pytest.raises(InputError, match="export it in mode 2"):
        Stack(str(path))
    small = byte_values((8, 8, 8)) // 2  # the same, signed or not
    write_bytes(path, small, statistics)
    np.testing.assert_array_equal(read_map(path)[0], small)
