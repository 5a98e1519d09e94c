"""MRC maps and stacks of images."""
from __future__ import annotations

import os
import struct
import warnings
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Optional, Sequence, Tuple

import mrcfile
import numpy as np

from ..records.errors import InputError, OtherPixels
from ..records.particles import Particles
from .find_file import did_you_mean
from .image_problems import image_problems
from .other_formats import other_format
from .run_folder import PathLike, check_regular_file, write_atomic

_CHECKED_BYTES = 4 << 20  # images are checked while a cache of the CPU still holds them
_OPEN_STACKS = 32  # kept open at a time; far below the usual limit of 1024 open files
_OTHER_MODES = {3: "complex integers", 4: "complex numbers", 101: "4-bit integers"}
_MRC2014 = 20140  # NVERSION of the standard of 2014
_FARTHEST_BOXES = 10  # a start further away than this was never set
_VOLUME_STACKS = range(401, 631)  # space groups of the standard
_IMOD_STAMP, _SIGNED_BYTES, _STANDARD_ORIGIN = 1146047817, 1, 4  # of bio3d.colorado.edu/imod/doc/mrc_format.txt


def open_mrc(path: PathLike) -> Any:
    """The file as a memory map (an mrcfile.MrcMemmap whose data is known to be complete and real).

    Raises InputError when the file is missing, is not MRC, is truncated, or holds complex numbers.
    """
    source = str(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_regular_file(source)
            _check_header(source)
            mrc = mrcfile.mmap(source, mode="r", permissive=True)
    except OSError as error:
        meant = did_you_mean(source, [os.getcwd()]) if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"cannot be read ({error.strerror or error}){meant}", source,
                         "give an existing MRC file") from None
    except InputError:
        raise
    # A damaged header shows as any of a dozen exceptions, from ValueError to OverflowError.
    except Exception as error:
        raise InputError(f"is truncated or not an MRC file ({_first_line(error)})", source,
                         "copy or export the file again") from None
    if mrc.header is None or mrc.data is None:
        mrc.close()
        raise InputError("is truncated or not an MRC file", source, "copy or export the file again")
    return mrc


def _check_header(path: str) -> None:
    """Raise InputError for another format or a mode not read, ValueError for what is no MRC file.

    mrcfile would reserve up to 2 GB for an extended header that is longer than the file.
    """
    with open(path, "rb") as handle:
        header = handle.read(1024)
    other = other_format(header)
    if other:
        raise InputError(f"is {other[0]}", path, other[1])
    if len(header) < 1024:
        raise ValueError("shorter than an MRC header")
    order = ">" if header[212] == 0x11 else "<"
    if not 0 <= struct.unpack_from(order + "i", header, 12)[0] < 128:  # no mode: the stamp is wrong, as mrcfile assumes
        order = "<" if order == ">" else ">"
    mode = struct.unpack_from(order + "i", header, 12)[0]
    if mode in _OTHER_MODES:
        raise InputError(f"has MRC mode {mode} ({_OTHER_MODES[mode]})", path, "export it in mode 2 (32-bit float)")
    sections, = struct.unpack_from(order + "i", header, 8)
    in_volume, = struct.unpack_from(order + "i", header, 36)
    space_group, extended = struct.unpack_from(order + "2i", header, 88)
    if space_group in _VOLUME_STACKS and (in_volume <= 0 or sections % in_volume):
        raise InputError(f"has space group {space_group}, that of a stack of volumes, but its {sections} sections are "
                         f"no whole number of volumes of {in_volume} (MZ in the header)", path,
                         "set the space group (ISPG) to 0 for images; for a map to 1, and MZ to its number of sections")
    if not 0 <= extended <= os.path.getsize(path) - 1024:
        raise ValueError(f"its extended header would have {extended} bytes")


def imod_flags(mrc: Any) -> Optional[int]:
    """The bit flags of a file that IMOD, or a program that follows it, has stamped; None without the stamp."""
    order = ">" if mrc.header.dtype["nx"].newbyteorder("=") != mrc.header.dtype["nx"] else "="
    stamp, flags = struct.unpack_from(order + "iI", mrc.header.extra2.tobytes(), 40)
    return int(flags) if stamp == _IMOD_STAMP else None


def pixel_type(mrc: Any, source: str) -> np.dtype:
    """The type of the data of an open file: of bytes (mode 0), the sign that their writer gave them.

    Bytes are signed by the standard (MRC2014, doi:10.1016/j.jsb.2015.04.002). IMOD stamps its files and says in a
    flag whether theirs are. Without the stamp they are unsigned where the statistics of the header fit nothing else.
    Raises InputError where these fit neither and it makes a difference.
    """
    kind: np.dtype = mrc.data.dtype
    if kind != np.int8:
        return kind
    flags = imod_flags(mrc)
    if flags is not None:
        return kind if flags & _SIGNED_BYTES else np.dtype(np.uint8)
    low, high = float(mrc.header.dmin), float(mrc.header.dmax)
    if not low < high or high <= 127:  # nothing was noted, or it fits signed bytes
        return kind
    if low >= 0 and high <= 255:
        return np.dtype(np.uint8)
    if any(int(part.min()) < 0 for part in np.atleast_3d(mrc.data)):
        raise InputError(f"has bytes (MRC mode 0), but its header says that its values go from {low:g} to {high:g}; "
                         "whether the bytes are signed cannot be known", source, "export it in mode 2 (32-bit float)")
    return kind


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def pixel_size_of(mrc: Any, source: str) -> float:
    """Pixel size in Å from the cell of the header, to a millionth; it must be the same along every axis."""
    header = mrc.header
    with np.errstate(invalid="ignore"):  # a signalling NaN
        cell = np.array([header.cella.x, header.cella.y, header.cella.z], dtype=np.float64)
    samples = np.array([header.mx, header.my, header.mz], dtype=np.float64)
    if not np.isfinite(cell).all() or (cell <= 0).any() or (samples <= 0).any():
        raise InputError("has no pixel size in its header", source,
                         "set it, for instance with relion_image_handler --rescale_angpix")
    sizes = cell / samples
    if np.ptp(sizes) > 1e-3 * sizes.mean():
        voxels = np.array([header.nx, header.ny, header.nz], dtype=np.float64)
        if np.ptp(cell / voxels) <= 1e-3 * (cell / voxels).mean():
            raise InputError("has MX, MY, MZ = {}, {}, {} in its header, but {} × {} × {} voxels; that makes voxels of "
                             "{:.4g} × {:.4g} × {:.4g} Å".format(*(int(v) for v in (*samples, *voxels)), *sizes),
                             source, "set MX, MY and MZ to the number of voxels")
        raise InputError(f"has voxels of {sizes[0]:.4f} × {sizes[1]:.4f} × {sizes[2]:.4f} Å", source,
                         "resample it to cubic voxels")
    return round(float(sizes[0]), 6)


def first_voxel(mrc: Any, pixel_size: float) -> np.ndarray:
    """x, y, z in Å of the first voxel, by the origin of the header or else its start, as ChimeraX takes them.

    IMOD's files of before MRC2014 have an origin of the other sign, unless a flag says that it is the standard's.
    What is no number, or so large that it was never set, counts as 0.
    """
    header, flags = mrc.header, imod_flags(mrc)
    origin = np.array([header.origin.x, header.origin.y, header.origin.z], dtype=np.float64)
    if flags is not None and not flags & _STANDARD_ORIGIN and int(header.nversion) < _MRC2014:
        origin = -origin + 0.0
    start = np.array([header.nxstart, header.nystart, header.nzstart], dtype=np.float64)  # columns, rows, sections
    axes = [int(header.mapc), int(header.mapr), int(header.maps)]
    if sorted(axes) == [1, 2, 3]:
        start = start[[axes.index(axis) for axis in (1, 2, 3)]]
    farthest = _FARTHEST_BOXES * max(mrc.data.shape)
    start = start * pixel_size if np.abs(start).max() <= farthest else np.zeros(3)
    usable = np.isfinite(origin).all() and origin.any() and np.abs(origin).max() < 1e7 * pixel_size
    return origin if usable else start


def read_map(path: PathLike) -> Tuple[np.ndarray, float]:
    """A map as (float32 array [z, y, x], pixel size in Å).

    The order of axes in the file (MAPC, MAPR, MAPS) is undone; the origin fields are not used.
    Raises InputError when the file is no three-dimensional map or has no usable pixel size.
    """
    with open_mrc(path) as mrc:
        return map_of(mrc, str(path)), pixel_size_of(mrc, str(path))


def map_of(mrc: Any, source: str) -> np.ndarray:
    """The map (N, N, N) of an open file as `read_map` gives it, whatever pixel size the header has."""
    if mrc.data.ndim == 4:
        raise InputError(f"is {_volumes(mrc)}", source, "give a three-dimensional map; if it is one, set the space "
                         "group (ISPG) in its header to 1 and MZ to its number of sections")
    if mrc.data.ndim != 3:
        raise InputError(f"has {mrc.data.ndim} dimensions", source, "give a three-dimensional map")
    header = mrc.header
    axes = [int(header.maps), int(header.mapr), int(header.mapc)]
    with np.errstate(invalid="ignore"):
        volume = np.array(mrc.data.view(pixel_type(mrc, source)), dtype=np.float32)
    if sorted(axes) == [1, 2, 3]:
        volume = volume.transpose([axes.index(axis) for axis in (3, 2, 1)])
    return np.ascontiguousarray(volume)


def _volumes(mrc: Any) -> str:
    volumes, sections = mrc.data.shape[:2]
    return f"a stack of volumes ({volumes} × {sections} sections, by space group {int(mrc.header.ispg)})"


def write_map(path: PathLike, volume: np.ndarray, pixel_size: float,
              origin: Optional[Sequence[float]] = None) -> None:
    """Write a map [z, y, x] as 32-bit floats, in one step; ``origin`` = (x, y, z) in Å of its first voxel.

    The same map gives the same bytes: the date that mrcfile leaves in the header is replaced.
    """
    def write(name: str) -> None:
        with mrcfile.new(name, overwrite=True) as mrc:
            mrc.set_data(np.ascontiguousarray(volume, dtype=np.float32))
            mrc.set_volume()
            mrc.voxel_size = pixel_size
            if origin is not None:
                mrc.header.origin.x, mrc.header.origin.y, mrc.header.origin.z = origin
            mrc.header.label[0] = b"scipion-em-localrefine"
    write_atomic(path, write)


def stack_shape(mrc: Any, source: str) -> Tuple[int, int, int]:
    """(images, rows, columns) of a stack; a single image is a stack of one, and so is a volume of one section."""
    shape = mrc.data.shape
    if len(shape) == 2:
        shape = (1,) + shape
    if len(shape) == 4 and shape[1] == 1:
        shape = shape[:1] + shape[2:]
    if len(shape) != 3:
        raise InputError(f"is {_volumes(mrc)}", source, "give a stack of two-dimensional images; if it is one, set the "
                         "space group (ISPG) in its header to 0")
    return int(shape[0]), int(shape[1]), int(shape[2])


class Stack:
    """An open stack of images, ``shape`` (images, rows, columns).

    Images are read, not mapped: mapped ones would stay in memory as they are read, and a file that is cut short or
    a disk that fails would end the process with a signal instead of an error.
    """

    def __init__(self, path: str):
        with open_mrc(path) as mrc:
            self.shape = stack_shape(mrc, path)
            self._dtype, self._offset = pixel_type(mrc, path), int(mrc.data.offset)
        self.pixels = np.dtype(np.float16 if self._dtype == np.float16 else np.float32)
        self._path, self._handle = path, open(path, "rb", buffering=0)

    def close(self) -> None:
        self._handle.close()

    def images_into(self, number: int, out: np.ndarray) -> None:
        """Images from this 0-based number on, as many as fit into ``out`` (m, rows, columns) float32, which is
        contiguous; OSError or InputError names the file.

        Where the file holds what the array holds, the bytes go from the file's cache to the array and nowhere else.
        """
        direct = self._dtype == out.dtype
        if not direct and out.dtype != np.float32:
            raise OtherPixels
        content = out if direct else np.empty(out.shape, self._dtype)
        offset = self._offset + number * (content.nbytes // len(out))
        try:
            size = os.preadv(self._handle.fileno(), [content.data], offset)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from None
        if size < content.nbytes:
            raise InputError("was cut short while it was in use", self._path, "copy it again and continue the run")
        if not direct:
            out[:] = content


class ImageReader:
    """Reads images of `Particles` from their stacks, with one or several threads, which read from one file together.

    At most 32 stacks are open; the memory it needs does not depend on the number of particles. A stack whose images
    are asked for one after the other is opened once. Not to be shared between threads.
    """

    def __init__(self, particles: Particles, threads: int = 1):
        self._particles, self._threads = particles, threads
        self._open: "OrderedDict[int, Stack]" = OrderedDict()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images") if threads > 1 else None

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        while self._open:
            self._open.popitem()[1].close()

    def read(self, index: Any, out: Optional[np.ndarray] = None) -> np.ndarray:
        """Images (m, N, N) float32 of the particles of this index (m,), a sequence or an array of int, in its order;
        in ``out`` (m, N, N) if it is given, which may be float16 if all stacks are (else `OtherPixels`).

        Raises InputError, naming row, image and stack, for an image that lies beyond the stack, has another box
        size, holds NaN or infinity, or is constant.
        """
        images, problems = self._read(index, out, True)
        for i, problem in sorted(problems.items()):
            raise self._error(int(index[i]), problem, "remove or re-extract the particle")
        return images

    __call__ = read

    def read_unchecked(self, index: Any) -> np.ndarray:
        """As `read`, whatever the pixels hold."""
        return self._read(index, None, False)[0]

    def pixels_of(self, particle: int) -> np.dtype:
        """float16 if that is what the stack of this particle holds, else float32."""
        stack = int(self._particles.stack[np.array([particle])][0])
        self._open_stacks([stack])
        return self._open[stack].pixels

    def _read(self, index: Any, out: Optional[np.ndarray], check: bool) -> Tuple[np.ndarray, Dict[int, str]]:
        """The images, and what `image_problems` says of them; read in the order they have on disk."""
        index, n = np.asarray(index, dtype=np.int64), self._particles.box_size
        images = np.empty((len(index), n, n), dtype=np.float32) if out is None else out
        stack, number = self._particles.stack[index], self._particles.slice[index]
        order = np.lexsort((number, stack))
        piece = max(1, _CHECKED_BYTES // (4 * n * n))
        problems: Dict[int, str] = {}

        def some(part: np.ndarray) -> None:
            for start in range(0, len(part), piece):
                rows = part[start:start + piece]
                self._fill(images, rows, index, (stack[rows], number[rows]))
                if check:
                    problems.update({int(rows[i]): text for i, text in image_problems(images[_as_slice(rows)]).items()})
        distinct = np.unique(stack)
        for start in range(0, len(distinct), _OPEN_STACKS):
            opened = distinct[start:start + _OPEN_STACKS]
            self._open_stacks(opened.tolist())
            here = order[slice(*np.searchsorted(stack[order], [opened[0], opened[-1] + 1]))]
            if self._pool is None:
                some(here)
            else:
                list(self._pool.map(some, np.array_split(here, self._threads)))
        return images, problems

    def _fill(self, images: np.ndarray, rows: np.ndarray, index: np.ndarray,
              place: Tuple[np.ndarray, np.ndarray]) -> None:
        """The images of ``rows``, which are in the order of the disk, at ``place``, stack and number: neighbours at
        once, because each call hands the lock of the interpreter over; one that several particles share is read
        once."""
        stack, number = place
        same, step = np.diff(stack) == 0, np.diff(number)
        shared = np.append(False, same & (step == 0))
        follows = np.append(False, same & (step == 1) & (np.diff(rows) == 1)) & ~np.append(False, shared[:-1])
        starts = np.append(np.flatnonzero(~follows), len(rows))
        with np.errstate(invalid="ignore"):
            for a, b in zip(starts[:-1], starts[1:]):
                if shared[a]:
                    images[rows[a]] = images[rows[a - 1]]
                    continue
                held = self._open[int(stack[a])]
                self._check(held, number[a:b], index[rows[a:b]])
                held.images_into(int(number[a]), images[rows[a]:rows[a] + b - a])

    def _open_stacks(self, stacks: Sequence[int]) -> None:
        """These stacks, as many as may be open, are open afterwards."""
        for stack in stacks:
            if stack in self._open:
                self._open.move_to_end(stack)
        missing = [stack for stack in stacks if stack not in self._open]
        while self._open and len(self._open) + len(missing) > _OPEN_STACKS:
            self._open.popitem(last=False)[1].close()
        opened = map if self._pool is None else self._pool.map
        for stack, held in zip(missing, opened(Stack, [self._particles.stacks[stack] for stack in missing])):
            self._open[stack] = held

    def _check(self, held: Stack, numbers: np.ndarray, particles: np.ndarray) -> None:
        """Raise InputError unless the stack holds images of these numbers, of the particles' box size."""
        (count, rows, columns), box_size = held.shape, self._particles.box_size
        missing = (numbers >= count) | (numbers < 0)
        if missing.any():
            raise self._error(int(particles[missing.argmax()]), f"does not exist, the stack holds {count}",
                              "the stack is truncated or the STAR file belongs to another one")
        if (rows, columns) != (box_size, box_size):
            raise self._error(int(particles[0]), f"is {columns} × {rows} px, not {box_size} × {box_size}",
                              "extract all particles with one box size")

    def _error(self, row: int, problem: str, remedy: str) -> InputError:
        number = int(self._particles.slice[row]) + 1
        return InputError(f"image {number} (row {row + 1} of the particles) {problem}",
                          self._particles.stacks[int(self._particles.stack[row])], remedy)


def _as_slice(rows: np.ndarray) -> Any:
    """``rows`` as a slice where they follow one another: a view instead of a copy."""
    follow = bool(np.all(np.diff(rows) == 1))
    return slice(int(rows[0]), int(rows[-1]) + 1) if follow else rows
