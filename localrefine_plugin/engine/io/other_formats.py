"""Formats that are not MRC, by the first bytes of a file, whatever its name says."""
from __future__ import annotations

import struct
from typing import Optional, Tuple

_DECOMPRESS = "decompress it first ({})"
_EMAN = "convert it to MRC, for instance with EMAN2: e2proc3d.py (maps) or e2proc2d.py (images) IN OUT.mrc"
_IMOD = "convert it to MRC, for instance with IMOD: tif2mrc IN OUT.mrc"
_RELION = "convert it to MRC, for instance with relion_image_handler --i IN:spi --o OUT.mrc (images: OUT.mrcs)"
_MAGIC = {  # first bytes: (what a file is, what to do)
    b"\x1f\x8b": ("compressed with gzip", _DECOMPRESS.format("gunzip")),
    b"BZh": ("compressed with bzip2", _DECOMPRESS.format("bunzip2")),
    b"\xfd7zXZ\0": ("compressed with xz", _DECOMPRESS.format("unxz")),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", _DECOMPRESS.format("unzstd")),
    b"PK\x03\x04": ("a zip archive", "unpack it first (unzip)"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", _EMAN),
    b"II*\0": ("a TIFF file", _IMOD), b"MM\0*": ("a TIFF file", _IMOD),
    b"II+\0": ("a TIFF file", _IMOD), b"MM\0+": ("a TIFF file", _IMOD),
    b"\x89PNG": ("a PNG picture", "give the MRC file it was made of"),
    b"\xff\xd8\xff": ("a JPEG picture", "give the MRC file it was made of"),
    b"\x93NUMPY": ("a file of numpy", "write it as MRC, for instance with mrcfile.new"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "fetch the file (git lfs pull)")}
_SPIDER_KINDS = (1, 3)  # IFORM of images and of volumes in real space


def other_format(start: bytes) -> Optional[Tuple[str, str]]:
    """(what the file is, what to do) by its first 1024 bytes; None for what is none of these."""
    for magic, answer in _MAGIC.items():
        if start.startswith(magic):
            return answer
    return ("a SPIDER file", _RELION) if is_spider(start) else None


def is_spider(start: bytes) -> bool:
    """Whether these are the 32-bit floats of a SPIDER header, in either byte order.

    IFORM (word 5), NSAM (12) and LABREC (13) are whole numbers, LENBYT (23) = 4 NSAM and LABBYT (22) = LABREC LENBYT.
    The first words of an MRC header are small integers, which are nearly 0 as floats.
    """
    if len(start) < 92:
        return False
    for order in "<>":
        words = struct.unpack(order + "23f", start[:92])
        slices, rows, kind, columns, records, label, record = (words[i] for i in (0, 1, 4, 11, 12, 21, 22))
        if (kind in _SPIDER_KINDS and abs(slices) >= 1 and min(rows, columns, records) >= 1
                and record == 4 * columns and label == records * record):
            return True
    return False
