"""MRC files: stacks, half-maps and masks that cannot be used are refused; every true form of them is read."""
from __future__ import annotations

import bz2
import gzip
import os
import re
import shutil
import struct

import mrcfile
import numpy as np
import pytest
from particle_files import BOX, PARTICLES, PIXEL_SIZE, Inputs, radius, soft_mask, write_mrc
from spoil import assert_refused, change, check, data_of, put, set_header, truncate

from localrefine_plugin.engine.io.mrc import ImageReader, read_map
from localrefine_plugin.engine.records.errors import InputError

# mrcfile computes the statistics of the NaN that these tests write
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:mrcfile", "ignore:invalid value:RuntimeWarning")


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


def field(path, offset, *values, order="<"):
    """Overwrite numbers of the header."""
    with open(path, "r+b") as handle:
        handle.seek(offset)
        handle.write(struct.pack(order + "i" * len(values), *values))


def compressed(path, compress):
    path.write_bytes(compress(path.read_bytes()))


def swapped_for(path, make):
    path.unlink()
    make(path)


NX, NZ, MODE, MX, SPACE_GROUP, EXTENDED, STAMP = 0, 8, 12, 28, 88, 92, 212  # offsets in the header

# name: (what is spoilt, words of the sentence that name the input and the problem, words of the remedy)
STACKS = {
    "truncated stack": (lambda i: truncate(i.stacks[0], 1024 + 5 * BOX * BOX * 4 + 100), "a.mrcs: is truncated",
                        "copy or export"),
    "stack of zero bytes": (lambda i: i.stacks[0].write_bytes(b""), "a.mrcs: is truncated or not", "copy or export"),
    "stack is text": (lambda i: i.stacks[0].write_text("see " * 999), "a.mrcs: is truncated or not", "copy or export"),
    "stack of complex numbers": (lambda i: change(i.stacks[0], lambda d: d.astype(np.complex64)),
                                 "a.mrcs: has MRC mode 4", "mode 2"),
    "stack of a smaller box": (lambda i: change(i.stacks[1], lambda d: d[:, 2:, 2:]), "b.mrcs: has images of 14 × 14",
                               "extract the particles anew"),
    "images not square": (lambda i: change(i.stacks[1], lambda d: d[:, 2:]), "b.mrcs: has images of 16 × 14",
                          "extract the particles anew"),
    "NaN in an image": (lambda i: change(i.stacks[1], put((2, 3, 4), np.nan)),
                        "row 9 \\(image 3 of .*b.mrcs\\) holds NaN", "re-extract"),
    "infinity in an image": (lambda i: change(i.stacks[0], put((0, 3, 4), np.inf)),
                             "row 1 \\(image 1 of .*a.mrcs\\) holds NaN or infinite", "re-extract"),
    "constant image": (lambda i: change(i.stacks[1], put(4, 2.5)),
                       "row 11 \\(image 5 of .*b.mrcs\\) is constant \\(2.5",
                       "re-extract"),
    "stack with too many images in its header": (lambda i: field(i.stacks[0], NZ, 60), "a.mrcs: is truncated", "copy"),
    "stack with fewer images in its header": (lambda i: field(i.stacks[0], NZ, 3), "holds 3 images, row 6 .* number 6",
                                              "truncated"),
    "stack of minus six images": (lambda i: field(i.stacks[0], NZ, -6), "a.mrcs: is truncated or not", "copy"),
    "stack of 2 billion columns": (lambda i: field(i.stacks[0], NX, 2 ** 31 - 1), "a.mrcs: is truncated", "copy"),
    "stack with an extended header beyond its end": (lambda i: field(i.stacks[0], EXTENDED, 2 ** 30),
                                                     "a.mrcs: is truncated or not", "copy"),
    "stack of complex integers": (lambda i: field(i.stacks[0], MODE, 3), "a.mrcs: has MRC mode 3", "mode 2"),
    "stack of 4 bits": (lambda i: field(i.stacks[0], MODE, 101), "a.mrcs: has MRC mode 101", "mode 2"),
    "stack of volumes": (lambda i: (field(i.stacks[0], SPACE_GROUP, 401), field(i.stacks[0], 36, 2)),
                         "a.mrcs: is a stack of volumes \\(3 × 2 sections, by space group 401",
                         "two-dimensional images; if it is one"),
    "stack in gzip": (lambda i: compressed(i.stacks[0], gzip.compress), "a.mrcs: is compressed with gzip", "gunzip"),
    "stack in bzip2": (lambda i: compressed(i.stacks[0], bz2.compress), "a.mrcs: is compressed with bzip2", "bunzip2"),
    "stack that ends in its header": (lambda i: truncate(i.stacks[0], 700), "a.mrcs: is truncated or not", "copy"),
    "one pixel of 1e30": (lambda i: change(i.stacks[0], put((0, 3, 4), 1e30)), "row 1 .* grey values that span 1e\\+30",
                          "re-extract"),
    "grey values of 1e-20": (lambda i: [change(p, lambda d: d * 1e-20) for p in i.stacks], "most images", "normal"),
}


HALF_MAPS = {
    "no half-map 1": (lambda i: i.half_1.unlink(), "half-map 1 .*half_1.mrc: cannot be read", "existing MRC"),
    "no half-map 2": (lambda i: i.half_2.unlink(), "half-map 2 .*half_2.mrc: cannot be read", "existing MRC"),
    "half-maps identical": (lambda i: shutil.copy(i.half_1, i.half_2), "half-map 2 .*: is identical to half-map 1",
                            "two half-maps of one"),
    "half-maps identical but for scale": (lambda i: write_mrc(i.half_2, data_of(i.half_1) * 3 + 1),
                                          "half-map 2 .*: is identical to half-map 1", "two half-maps of one"),
    "half-map inverted": (lambda i: write_mrc(i.half_2, -data_of(i.half_1)), "identical .* contrast inverted",
                          "two half-maps"),
    "half-map of another box": (lambda i: change(i.half_1, lambda d: d[2:, 2:, 2:]),
                                "half-map 1 .* has 14 voxels of 2 Å \\(28 Å\\), the particles "
                                "have a box of 16 px", "recentre (--box 14)"),
    "half-map of a larger box": (lambda i: change(i.half_1, lambda d: np.pad(d, 12)), "half-map 1 .* has 40 voxels .* "
                                 "another box, not another sampling", "a box of 40 px, or"),
    "half-map of half the pixel size": (lambda i: change(i.half_1, lambda d: d, 1.0),
                                        "half-map 1 .* pixel size of 1.0000", "correct the header or the STAR"),
    "half-map not cubic": (lambda i: change(i.half_1, lambda d: d[2:]), "half-map 1 .* not cubic \\(16 × 16 × 14",
                           "to a cube"),
    "half-map of another pixel size": (lambda i: change(i.half_2, lambda d: d, 1.9),
                                       "half-map 2 .* pixel size of 1.9000 Å, the particles have 2.0000", "header"),
    "half-map without pixel size": (lambda i: change(i.half_2, lambda d: d, 0), "half-map 2 .* has no pixel size",
                                    "relion_image_handler"),
    "half-map with oblong voxels": (lambda i: change(i.half_2, lambda d: d, (2, 2, 3)),
                                    "half-map 2 .* voxels of 2.0000 × 2.0000 × 3.0000", "cubic voxels"),
    "half-map is a slice": (lambda i: change(i.half_1, lambda d: d[0]), "half-map 1 .* has 2 dimensions", "three-dim"),
    "NaN in a half-map": (lambda i: change(i.half_1, put((1, 1, 1), np.nan)), "half-map 1 .* 1 NaN", "reconstruct"),
    "half-map of zeros": (lambda i: change(i.half_2, np.zeros_like), "half-map 2 .* constant \\(0", "reconstructed"),
    "half-map truncated": (lambda i: truncate(i.half_1, 9000), "half-map 1 .* truncated", "copy or export"),
    "half-map mode 99": (set_header("half_1", mode=99), "half-map 1 .* not an MRC", "copy or export"),
    "half-map is a pipe": (lambda i: swapped_for(i.half_1, os.mkfifo), "half-map 1 .* cannot be read \\(it is", "MRC"),
    "half-map is a folder": (lambda i: swapped_for(i.half_1, os.mkdir), "half-map 1 .* cannot be read", "existing MRC"),
    "half-map in gzip": (lambda i: compressed(i.half_2, gzip.compress), "half-map 2 .* compressed with gzip", "gunzip"),
    "half-map is the STAR file": (lambda i: shutil.copy(i.star, i.half_1), "half-map 1 .* not an MRC", "copy"),
    "half-map is a stack of particles": (lambda i: shutil.copy(i.stacks[0], i.half_1), "half-map 1 .* cubic", "cube"),
    "half-map of more sections than there are": (lambda i: field(i.half_1, NZ, 64), "half-map 1 .* truncated", "copy"),
    "half-map of fewer sections": (lambda i: field(i.half_1, NZ, 8), "half-map 1 .* not cubic", "cube"),
    "half-map is a stack of volumes": (lambda i: (field(i.half_1, SPACE_GROUP, 401), field(i.half_1, 36, 8)),
                                       "half-map 1 .* is a stack of volumes \\(2 × 8 sections", "ISPG"),
    "half-map of space group 401 with MZ 1": (lambda i: (field(i.half_1, SPACE_GROUP, 401), field(i.half_1, 36, 1)),
                                              "half-map 1 .* stack of volumes \\(16 × 1 sections", "ISPG"),
    "half-map of volumes with a rest": (lambda i: (field(i.half_1, SPACE_GROUP, 401), field(i.half_1, 36, 3)),
                                        "half-map 1 .* 16 sections are no whole number of volumes of 3", "ISPG"),
    "half-map of volumes of no section": (lambda i: (field(i.half_1, SPACE_GROUP, 401), field(i.half_1, 36, 0)),
                                          "half-map 1 .* no whole number of volumes of 0", "ISPG"),
    "half-map of volumes larger than itself": (lambda i: (field(i.half_1, SPACE_GROUP, 401), field(i.half_1, 36, 99)),
                                               "half-map 1 .* no whole number of volumes of 99", "ISPG"),
    "half-map with MZ of a stack": (lambda i: field(i.half_1, 36, 1),
                                    "half-map 1 .* MX, MY, MZ = 16, 16, 1 .* but 16 × 16 × 16 voxels", "MX, MY and MZ"),
    "half-map of complex numbers": (lambda i: change(i.half_1, lambda d: d.astype(np.complex64)), "mode 4", "mode 2"),
    "half-map of 0 samples": (lambda i: field(i.half_1, MX, 0, 0, 0), "half-map 1 .* no pixel size", "relion"),
    "half-map with a signalling NaN for a cell": (lambda i: field(i.half_1, 40, 0x7fa00001), "half-map 1 .* no pixel",
                                                  "relion"),
    "half-map of values of 1e20": (lambda i: change(i.half_1, lambda d: d * 1e20), "half-map 1 .* has values from",
                                   "normalised"),
    "half-map of values of 1e-20": (lambda i: change(i.half_1, lambda d: d * 1e-20), "half-map 1 .* has values from",
                                    "normalised"),
}


MASKS = {
    "no mask": (lambda i: i.mask.unlink(), "mask .*mask.mrc: cannot be read", "existing MRC"),
    "mask above 1": (lambda i: write_mrc(i.mask, soft_mask() * 1.5), "mask .* from 0 to 1.5", "relion_mask_create"),
    "mask below 0": (lambda i: write_mrc(i.mask, soft_mask() - 0.1), "mask .* from -0.1 to", "relion_mask_create"),
    "mask empty": (lambda i: write_mrc(i.mask, soft_mask() * 0), "mask .* is empty", "1 over the part"),
    "mask NaN": (lambda i: change(i.mask, put((1, 1, 1), np.nan)), "mask .* not numbers", "anew"),
    "mask of another box": (lambda i: write_mrc(i.mask, soft_mask(20)), "mask .* 20 × 20 × 20 voxels",
                            "box of the particles"),
    "mask of another pixel size": (lambda i: write_mrc(i.mask, soft_mask(), 2.02), "mask .* pixel size of 2.0200",
                                   "header"),
    "mask beside the density": (lambda i: write_mrc(i.mask, (radius() > 11.8).astype(np.float32)),
                                "mask .* covers no density", "origin"),
    "mask is a pipe": (lambda i: swapped_for(i.mask, os.mkfifo), "mask .* cannot be read \\(it is a", "existing MRC"),
    "mask in gzip": (lambda i: compressed(i.mask, gzip.compress), "mask .* compressed with gzip", "gunzip"),
    "mask of two dimensions": (lambda i: change(i.mask, lambda d: d[8]), "mask .* 2 dimensions", "three-dimensional"),
    "mask not cubic": (lambda i: change(i.mask, lambda d: d[2:]), "mask .* 16 × 16 × 14 voxels", "box of the"),
    "mask infinite": (lambda i: change(i.mask, put((1, 1, 1), np.inf)), "mask .* not numbers", "anew"),
    "mask of integers to 255": (lambda i: write_mrc(i.mask, (255 * soft_mask()).astype(np.int16)), "mask .* to 255",
                                "relion_mask_create"),
    "mask is a half-map": (lambda i: shutil.copy(i.half_1, i.mask), "mask .* outside 0", "relion_mask_create"),
}


@pytest.mark.parametrize("name", STACKS)
def test_refused_stacks(inputs, capsys, name):
    assert_refused(inputs, capsys, STACKS[name])


@pytest.mark.parametrize("name", HALF_MAPS)
def test_refused_half_maps(inputs, capsys, name):
    assert_refused(inputs, capsys, HALF_MAPS[name])


@pytest.mark.parametrize("name", MASKS)
def test_refused_masks(inputs, capsys, name):
    assert_refused(inputs, capsys, MASKS[name])


# Every true form of a file. Of a stack (a.mrcs), a half-map and the mask: name → function that rewrites the data.

def in_mode(dtype, order="<"):
    return lambda data: data.astype(np.dtype(dtype).newbyteorder(order))


MODES = {"mode 0": in_mode(np.int8), "mode 1": in_mode(np.int16), "mode 1, big end first": in_mode(np.int16, ">"),
         "mode 2": in_mode(np.float32), "mode 2, big end first": in_mode(np.float32, ">"), "mode 6": in_mode(np.uint16),
         "mode 6, big end first": in_mode(np.uint16, ">"), "mode 12": in_mode(np.float16),
         "mode 12, big end first": in_mode(np.float16, ">")}


def whole_numbers(inputs):
    """Contents that every mode can hold, for a stack, a half-map and the mask."""
    rng = np.random.default_rng(2)
    return {inputs.stacks[0]: rng.integers(0, 100, (PARTICLES // 2, BOX, BOX)),
            inputs.half_1: np.rint(100 * np.exp(-radius() ** 2 / 18)) + rng.integers(0, 10, (BOX,) * 3),
            inputs.mask: (radius() < 5).astype(int)}


def assert_read(inputs, contents):
    checked = check(inputs)
    np.testing.assert_array_equal(checked.maps[0], contents[inputs.half_1])
    np.testing.assert_array_equal(checked.mask, contents[inputs.mask])
    with ImageReader(checked.particles) as reader:
        np.testing.assert_array_equal(reader.read(np.arange(6)), contents[inputs.stacks[0]])
    assert not checked.excluded


@pytest.mark.parametrize("name", MODES)
def test_every_mode_and_byte_order(inputs, name):
    contents = whole_numbers(inputs)
    for path, data in contents.items():
        write_mrc(path, MODES[name](data))
    assert_read(inputs, contents)


def longer(path):
    with open(path, "ab") as handle:
        handle.write(b"\x7f" * 5000)


def extended(path):
    with mrcfile.open(str(path), mode="r+") as mrc:
        mrc.set_extended_header(np.zeros(9, dtype="V128"))


def no_label(path):
    with open(path, "r+b") as handle:
        handle.seek(208)
        handle.write(b"\0" * 4)


HEADERS = {
    "space group 0": lambda path: field(path, SPACE_GROUP, 0),
    "space group 1": lambda path: field(path, SPACE_GROUP, 1),
    "machine stamp of zeros": lambda path: field(path, STAMP, 0),
    "machine stamp of the other order": lambda path: field(path, STAMP, 0x1111),
    "machine stamp of text": lambda path: field(path, STAMP, 0x20202020),
    "no 'MAP '": no_label,
    "bytes after the end": longer,
    "extended header": extended,
    "axes not set": lambda path: field(path, 64, 0, 0, 0),
    "origin and statistics not numbers": lambda path: field(path, 76, *[-1] * 3) or field(path, 196, *[-1] * 3),
}


@pytest.mark.parametrize("name", HEADERS)
def test_odd_headers_of_right_data(inputs, name):
    contents = whole_numbers(inputs)
    for path, data in contents.items():
        write_mrc(path, data.astype(np.float32))
        HEADERS[name](path)
    assert_read(inputs, contents)


def test_a_wrong_machine_stamp_on_a_file_of_the_other_order(inputs):
    """The stamp says little end first, the numbers say big: the numbers are right."""
    contents = whole_numbers(inputs)
    for path, data in contents.items():
        write_mrc(path, data.astype(">f4"))
        with open(path, "r+b") as handle:
            handle.seek(STAMP)
            handle.write(b"\x44\x44\0\0")
    assert_read(inputs, contents)


def test_a_volume_stack_of_one_volume_is_no_map(inputs):
    write_mrc(inputs.half_1, data_of(inputs.half_1))
    field(inputs.half_1, SPACE_GROUP, 401)
    with pytest.raises(InputError, match="stack of volumes .1 × 16 sections"):
        read_map(inputs.half_1)


DOUBTFUL_MASKS = {
    "with a hard edge": ((radius() < 5).astype(np.float32), "mask edge"),
    "to the edge of the box": (soft_mask(inner=2, outer=9), "edge"),
    "over everything": (np.ones((BOX,) * 3, np.float32), "edge|box"),
    "inverted": (1 - soft_mask(), "edge|box"),
    "of one voxel": ((radius() == 0).astype(np.float32), "mask edge|small"),
}


@pytest.mark.parametrize("name", DOUBTFUL_MASKS)
def test_a_doubtful_mask_is_warned_of_or_refused(inputs, name):
    mask, words = DOUBTFUL_MASKS[name]
    write_mrc(inputs.mask, mask, PIXEL_SIZE)
    try:
        said = " ".join(text for text in check(inputs).warnings if text.startswith("mask"))
    except InputError as error:
        said = str(error)
    assert re.search(words, said), said
