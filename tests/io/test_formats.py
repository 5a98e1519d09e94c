"""Files that say something else than a reader expects: bytes and their sign, origins, other formats, names."""
from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import subprocess

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from particle_files import BOX, PARTICLES, Inputs, radius
from spoil import check

from localrefine_plugin import convert
from localrefine_plugin.engine.io.mrc import ImageReader, Stack, read_map
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
    images = np.zeros((8, 8, 8), np.float32)
    stack.images_into(0, images[:3])
    stack.images_into(3, images[3:])
    np.testing.assert_array_equal(images, right)
    stack.close()


def test_a_map_of_a_scipion_set_in_unsigned_bytes_is_copied_right(tmp_path):
    values = byte_values((8, 8, 8))
    write_bytes(tmp_path / "map.mrc", values, imod=0)
    copy = convert.mrc_map(str(tmp_path / "map.mrc"), 2.0, str(tmp_path / "copy.mrc"))
    np.testing.assert_array_equal(read_map(copy)[0], values.astype(np.float32))


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


def test_images_half_maps_and_mask_in_unsigned_bytes_reach_the_checks(inputs):
    """Every input as IMOD would save it: the images that are used are those that were written."""
    contents = {inputs.stacks[0]: byte_values((PARTICLES // 2, BOX, BOX)),
                inputs.half_1: np.rint(120 + 120 * np.exp(-radius() ** 2 / 18)).astype(np.uint8),
                inputs.mask: (radius() < 5).astype(np.uint8)}
    for path, values in contents.items():
        write_bytes(path, values, imod=0)
    checked = check(inputs)
    np.testing.assert_array_equal(checked.maps[0], contents[inputs.half_1])
    np.testing.assert_array_equal(checked.mask, contents[inputs.mask])
    with ImageReader(checked.particles) as reader:
        np.testing.assert_array_equal(reader.read(np.arange(6)), contents[inputs.stacks[0]])


@pytest.mark.parametrize("statistics", [(-40, 300, 10), (0, 1000, 100)])
def test_statistics_that_no_byte_has_are_refused_where_the_sign_matters(tmp_path, statistics):
    path = tmp_path / "map.mrc"
    write_bytes(path, byte_values((8, 8, 8)), statistics)
    with pytest.raises(InputError, match=f"from {statistics[0]} to {statistics[1]}; .*signed.*export it in mode 2"):
        read_map(path)
    with pytest.raises(InputError, match="export it in mode 2"):
        Stack(str(path))
    small = byte_values((8, 8, 8)) // 2  # the same, signed or not
    write_bytes(path, small, statistics)
    np.testing.assert_array_equal(read_map(path)[0], small)


# ---------------------------------------------------------------- other formats under the name of an MRC file

def spider(order):
    """The header of SPIDER's page on its file format (words 1, 2, 5, 12, 13, 22, 23), of one 16 × 16 × 16 volume."""
    columns = 16
    records = -(-256 // columns)
    words = np.zeros(records * columns, order + "f4")
    words[[0, 1, 4, 11, 12, 21, 22]] = 16, 16, 3, columns, records, records * columns * 4, columns * 4
    return words.tobytes() + np.ones(16 ** 3, order + "f4").tobytes()


OTHERS = {  # name: (the first bytes by the format's own page, what is said, what to do)
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(5000), "is an HDF5 file", "EMAN2: e2proc3d.py"),
    "TIFF": (b"II*\0\x08\0\0\0" + bytes(5000), "is a TIFF file", "tif2mrc"),
    "TIFF, big end first": (b"MM\0*\0\0\0\x08" + bytes(5000), "is a TIFF file", "tif2mrc"),
    "BigTIFF": (b"II+\0\x08\0\0\0" + bytes(5000), "is a TIFF file", "tif2mrc"),
    "SPIDER": (spider("<"), "is a SPIDER file", "relion_image_handler"),
    "SPIDER, big end first": (spider(">"), "is a SPIDER file", "relion_image_handler"),
    "gzip": (gzip.compress(bytes(5000)), "is compressed with gzip", "gunzip"),
    "bzip2": (bz2.compress(bytes(5000)), "is compressed with bzip2", "bunzip2"),
    "xz": (lzma.compress(bytes(5000)), "is compressed with xz", "unxz"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "is a pointer of Git LFS",
                "pull")}


@pytest.mark.parametrize("name", OTHERS)
def test_another_format_is_called_by_its_name_with_how_to_convert_it(inputs, name):
    content, said, remedy = OTHERS[name]
    for path in (inputs.mask, inputs.half_2, inputs.stacks[0]):  # the first in the order of the checks last
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            check(inputs)
        assert said in caught.value.problem and remedy in caught.value.remedy
        assert path.name in caught.value.source


def test_a_volume_that_relion_writes_as_spider_is_recognised(inputs):
    program = require_program("relion_image_handler")
    subprocess.run([program, "--i", str(inputs.half_1) + ":mrc", "--o", str(inputs.folder / "map.spi")], check=True,
                   stdout=subprocess.DEVNULL)
    (inputs.folder / "map.spi").rename(inputs.half_1)
    with pytest.raises(InputError, match="half-map 1 .*is a SPIDER file"):
        check(inputs)


def test_what_is_said_of_spider_files_works(inputs):
    """The command of the message, on a file that RELION wrote: the map comes back, voxel for voxel."""
    program = require_program("relion_image_handler")
    before = read_map(inputs.half_1)[0]
    for source, target in ((f"{inputs.half_1}:mrc", inputs.folder / "map.spi"),
                           (f"{inputs.folder / 'map.spi'}:spi", inputs.folder / "again.mrc")):
        subprocess.run([program, "--i", source, "--o", str(target)], check=True, stdout=subprocess.DEVNULL)
    np.testing.assert_array_equal(mrcfile.read(inputs.folder / "again.mrc"), before)


def test_an_image_stack_marked_as_volumes_of_one_section_is_a_stack_of_images(inputs):
    plain = mrcfile.read(inputs.stacks[0])
    with open(inputs.stacks[0], "r+b") as handle:
        for offset, value in ((88, 401), (36, 1)):  # space group, MZ
            handle.seek(offset)
            handle.write(struct.pack("<i", value))
    with ImageReader(check(inputs).particles) as reader:
        np.testing.assert_array_equal(reader.read(np.arange(6)), plain)


# ---------------------------------------------------------------- names that are nearly right

@pytest.mark.parametrize("wrong, right", [("Mask.MRC", "mask.mrc"), ("mask.mrcs", "mask.mrc"),
                                          ("mask.map", "mask.mrc")])
def test_the_name_of_a_map_that_was_probably_meant_is_offered(inputs, wrong, right):
    inputs.mask = inputs.folder / wrong
    with pytest.raises(InputError, match=f"did you mean '.*/{right}'"):
        check(inputs)


def test_no_name_is_offered_where_none_is_similar(inputs):
    inputs.mask = inputs.folder / "other.mrc"
    with pytest.raises(InputError) as caught:
        check(inputs)
    assert "did you mean" not in str(caught.value)
