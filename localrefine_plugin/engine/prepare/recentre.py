"""Particles and maps re-centred on a point of the specimen, and back.

With v′ = v − p, p the point in whole voxels from the box centre, the image of a specimen point v is

    x = P(R v) + t = P(R v′) + t + P(R p).

Image and pose share that displacement: the image is rolled by the whole pixels q = rint(t + P R p), and
t′ = t + P R p − q stays in the pose, at most half a pixel. Maps and mask are rolled by p. Nothing is interpolated,
so the way back, t = t′ − P R p + q, is exact also for poses that were refined in between.

A roll is periodic: what leaves the image at one edge comes in at the other. Cropping the box afterwards removes
the strip that was wrapped round, where the box is smaller by twice the roll.
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import mrcfile
import numpy as np

from ..inputs.frames import displaced
from ..inputs.grids import read_pixel_size
from ..io.columns import RECENTRED_IMAGE
from ..io.mrc import ImageReader, read_map, write_map
from ..io.relion_particles import ORIGINS_ANGSTROM, ORIGINS_PX, ParticleTable, read_particles, write_star
from ..io.resample import centred
from ..io.run_folder import PathLike, write_atomic, write_json
from ..io.star import StarTable
from ..model.optics import image_shift, several_pixel_sizes, specimen_shift
from ..model.pose import project
from ..progress import ProgressBar, say
from ..records.errors import InputError
from ..records.particles import Particles
from .arguments import check_output

BATCH = 200  # images at a time
CUT_OFF = 1e-3  # share of the mask that may lie outside of a smaller box
POINT = ("lrRecentrePointX", "lrRecentrePointY", "lrRecentrePointZ")
ROLL = ("lrRecentreShiftX", "lrRecentreShiftY")
BOX, IMAGE = "lrRecentreBoxSize", RECENTRED_IMAGE
MAP_NAMES = ("map", "half_map_1", "half_map_2", "mask")


class Recentring(NamedTuple):
    """What was done to n particles: point (n, 3) voxels from the box centre, roll (n, 2) px, box size before (n,)."""

    point: np.ndarray
    roll: np.ndarray
    box: np.ndarray


# ---------------------------------------------------------------- arrays

def recentred_shifts(rotation: np.ndarray, shift_px: np.ndarray, point: np.ndarray,
                     distortion: Optional[np.ndarray] = None) -> Tuple[np.ndarray, np.ndarray]:
    """(t′, q): rest of the shift (n, 2) and roll of the image (n, 2) int for rotations (n, 3, 3), shifts (n, 2).

    With magnification matrices (n, 2, 2) shifts are those of the specimen's plane, and q that of the image (optics.py).
    """
    moved = image_shift(shift_px + project(rotation, np.asarray(point, dtype=float)), distortion)
    roll = np.rint(moved).astype(np.int64)
    return specimen_shift(moved - roll, distortion), roll


def restored_shifts(rotation: np.ndarray, shift_px: np.ndarray, point: np.ndarray, roll: np.ndarray,
                    distortion: Optional[np.ndarray] = None) -> np.ndarray:
    """t = t′ − P R p + q: the way back of `recentred_shifts`, for poses (R, t′) as they are now."""
    return shift_px - project(rotation, np.asarray(point, dtype=float)) + specimen_shift(roll, distortion)


def roll_image(image: np.ndarray, roll: Sequence[int], box: int) -> np.ndarray:
    """(N, N) → (box, box): pixel x + roll comes to x, pixels counted from the box centre; edges are periodic."""
    n = image.shape[0]
    rolled = np.roll(image, (-int(roll[1]), -int(roll[0])), axis=(0, 1))
    start = n // 2 - box // 2
    return rolled[start:start + box, start:start + box]


def shift_map(map_zyx: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The map with voxel ``point`` (x, y, z from the box centre) at the box centre; edges are periodic."""
    x, y, z = (-int(v) for v in point)
    return np.roll(map_zyx, (z, y, x), axis=(0, 1, 2))


def recentred_map(map_zyx: np.ndarray, point: np.ndarray, box: int) -> np.ndarray:
    """The map (N, N, N) about a point, in a box (M, M, M) that is no larger."""
    return centred(shift_map(map_zyx, point), box)


def restored_map(map_zyx: np.ndarray, point: np.ndarray, box: int) -> np.ndarray:
    """The way back: outside of what a smaller box held there is the mean of the smaller box's faces."""
    return shift_map(centred(map_zyx, box), -point)


# ---------------------------------------------------------------- files

def recentre(particles: PathLike, output: PathLike, maps: Mapping[str, PathLike],
             point_px: Optional[Sequence[float]] = None, box: Optional[int] = None) -> Dict[str, Any]:
    """Write OUTPUT/particles.star and .mrcs, the maps and the mask about a point, and recentre.json (returned).

    Parameters
    ----------
    maps : name (of MAP_NAMES) → path, those there are.
    point_px : x, y, z from the corner of the box; rounded to a voxel. None: the centre of mass of the mask.
    box : size of the new images, no larger than before; None keeps it.

    Raises InputError for boxes that do not fit together, a box that cuts off the mask and a point outside of the box.
    """
    output = Path(output)
    check_output(output, "new", dict(maps, particles=particles))
    table, parts = _checked_particles(particles, maps)
    volumes = _read_maps(maps, parts)
    point = _voxel(point_px, volumes.get("mask"), parts.box_size)
    new_box = parts.box_size if box is None else int(box)
    _check_box(new_box, parts.box_size, point, volumes.get("mask"))
    shift, roll = recentred_shifts(parts.rotation, parts.shift_px, point, table.distortion)
    output.mkdir(parents=True, exist_ok=True)
    stack = output / "particles.mrcs"
    _write_images(stack, parts, roll, new_box)
    before = recentring_of(table.particles, parts.box_size)
    now = Recentring(before.point + point, before.roll + roll, before.box)
    _write_table(output / "particles.star", table, shift, _columns(now, _image_names(table, parts), stack), new_box)
    for name, volume in volumes.items():
        write_map(output / f"{name}.mrc", recentred_map(volume, point, new_box), parts.pixel_size)
    report = {"point_px": [int(v) for v in point + parts.box_size // 2], "point_from_centre_px": point.tolist(),
              "box_size_before": parts.box_size, "box_size": new_box,
              "largest_roll_px": int(np.abs(roll).max()),
              "warnings": _warnings(parts, roll, new_box) + _places(maps)}
    return _finish(output, report)


def restore(particles: PathLike, output: PathLike, maps: Mapping[str, PathLike]) -> Dict[str, Any]:
    """The way back of `recentre`: poses as they are now in the first frame, with the images from before.

    The new particles.star names the images that were re-centred; none are written. Maps and mask come back to their
    first box, about their first centre.
    """
    output = Path(output)
    check_output(output, "new", dict(maps, particles=particles))
    table, parts = _checked_particles(particles, maps)
    if IMAGE not in table.particles.labels:
        raise InputError(f"has no column {IMAGE}", str(particles), "give particles that were re-centred")
    done = recentring_of(table.particles, parts.box_size)
    volumes = _read_maps(maps, parts)
    point, box = done.point[0], int(done.box[0])
    if volumes and ((done.point != point).any() or (done.box != box).any()):
        raise InputError("has particles that were re-centred on different points", str(particles),
                         "restore their maps set by set")
    names = table.particles.texts([IMAGE])[IMAGE]
    for name in sorted({name.partition("@")[2] for name in names}):
        if not os.path.isfile(name):
            raise InputError(f"names the image stack {name}, which is not there any more", str(particles),
                             "put it back: the restored particles are the images from before")
    shift = restored_shifts(parts.rotation, parts.shift_px, done.point, done.roll, table.distortion)
    output.mkdir(parents=True, exist_ok=True)
    _write_table(output / "particles.star", table, shift, {"rlnImageName": names}, box, (*POINT, *ROLL, BOX, IMAGE))
    for name, volume in volumes.items():
        write_map(output / f"{name}.mrc", restored_map(volume, point, box), parts.pixel_size)
    return _finish(output, {"point_from_centre_px": point.tolist(), "box_size_before": parts.box_size,
                            "box_size": box, "warnings": []})


def recentring_of(table: StarTable, box_size: int) -> Recentring:
    """What the columns of a table say was done to its particles; nothing without them."""
    n = len(table)
    found = {label: np.array(texts, dtype=float).astype(np.int64)
             for label, texts in table.texts((*POINT, *ROLL, BOX)).items()}
    columns = [found.get(label, np.zeros(n, np.int64)) for label in (*POINT, *ROLL)]
    return Recentring(np.stack(columns[:3], axis=1), np.stack(columns[3:], axis=1),
                      found.get(BOX, np.full(n, box_size)))


def _checked_particles(path: PathLike, maps: Mapping[str, PathLike]) -> Tuple[ParticleTable, Particles]:
    """Particles of one box size; of several pixel sizes, in the frame of the maps."""
    given = next((maps[name] for name in MAP_NAMES if maps.get(name) is not None), None)
    frame = None if given is None else read_pixel_size(given, str(given))
    particles, table = read_particles(path, False, frame)
    if len({group.box_size for group in particles.optics}) > 1:
        raise InputError("has particles of different box sizes", str(path), "bring them to one first")
    if given is None and several_pixel_sizes(table.pixel_size):
        raise InputError("has optics groups of several pixel sizes, and the point is in px of the half-maps", str(path),
                         "give a map or a mask, for its pixel size")
    return table, particles


def _read_maps(maps: Mapping[str, PathLike], particles: Particles) -> Dict[str, np.ndarray]:
    volumes = {}
    for name in MAP_NAMES:
        if maps.get(name) is None:
            continue
        volumes[name], pixel_size = read_map(maps[name])
        if volumes[name].shape != (particles.box_size,) * 3 or abs(pixel_size / particles.pixel_size - 1) > 1e-3:
            raise InputError(f"has {volumes[name].shape[0]} voxels of {pixel_size:g} Å, the particles have "
                             f"{particles.box_size} px of {particles.pixel_size:g} Å", str(maps[name]),
                             "bring it to the box and pixel size of the particles")
    return volumes


def _voxel(point_px: Optional[Sequence[float]], mask: Optional[np.ndarray], box: int) -> np.ndarray:
    """The point in whole voxels from the box centre (3,)."""
    if point_px is None:
        if mask is None:
            raise InputError("is not given, and neither is a mask", "point", "give --point X,Y,Z or --mask")
        from ..maps.mask import mask_centre  # needs Numba, and this file is read when Scipion loads the plugin
        point_px = mask_centre(mask).tolist()
    point = np.rint(np.asarray(point_px, dtype=float))
    if not (np.isfinite(point).all() and (point >= 0).all() and (point < box).all()):
        raise InputError(f"{', '.join(f'{v:g}' for v in point_px)} is outside of the box of {box} px", "point",
                         "give x, y, z in px from the corner of the box")
    return point.astype(np.int64) - box // 2


def _check_box(new: int, old: int, point: np.ndarray, mask: Optional[np.ndarray]) -> None:
    if not 16 <= new <= old:
        raise InputError(f"{new} px is not between 16 and the {old} px of the images", "box", "give another box")
    if mask is not None and new < old:
        kept = recentred_map(np.asarray(mask, dtype=np.float32), point, new).sum(dtype=float) / mask.sum(dtype=float)
        if kept < 1 - CUT_OFF:
            raise InputError(f"{new} px cut off {100 * (1 - kept):.1f} % of the mask", "box", "give a larger box")


def _write_images(path: Path, particles: Particles, roll: np.ndarray, box: int) -> None:
    def write(name: str) -> None:
        bar = ProgressBar("re-centring the images", len(particles))
        with ImageReader(particles) as reader, mrcfile.new_mmap(
                name, shape=(len(particles), box, box), mrc_mode=2, overwrite=True) as stack:
            for start in range(0, len(particles), BATCH):
                rows = np.arange(start, min(start + BATCH, len(particles)))
                for row, image in zip(rows, reader.read_unchecked(rows)):
                    stack.data[row] = roll_image(image, roll[row], box)
                bar.update(int(rows[-1]) + 1, len(particles))
            stack.set_image_stack()
            stack.voxel_size = particles.pixel_size
    write_atomic(path, write)


def _image_names(table: ParticleTable, particles: Particles) -> List[str]:
    """NNNNNN@path of the images from before the first re-centring."""
    if IMAGE in table.particles.labels:
        return table.particles.texts([IMAGE])[IMAGE]
    return [f"{number + 1:06d}@{particles.stacks[stack]}" for number, stack in zip(particles.slice, particles.stack)]


def _columns(now: Recentring, names: List[str], stack: Path) -> Dict[str, Sequence[Any]]:
    path = os.path.abspath(stack)
    columns: Dict[str, Sequence[Any]] = {"rlnImageName": [f"{i:06d}@{path}" for i in range(1, len(names) + 1)]}
    columns.update(zip(POINT, now.point.T))
    columns.update(zip(ROLL, now.roll.T))
    columns[BOX], columns[IMAGE] = now.box.tolist(), names
    return columns


def _write_table(path: Path, table: ParticleTable, shift: np.ndarray, columns: Mapping[str, Sequence[Any]], box: int,
                 drop: Sequence[str] = ()) -> None:
    """The input table with new origins and these columns; the angles keep every digit."""
    new, known, shift = dict(columns), set(table.particles.labels), image_shift(shift, table.distortion)
    dialect = ORIGINS_PX if table.optics is None else ORIGINS_ANGSTROM
    for labels, unit in ((ORIGINS_ANGSTROM, table.pixel_size), (ORIGINS_PX, np.ones(len(shift)))):
        if known & set(labels) or (labels is dialect and not known & set(ORIGINS_ANGSTROM + ORIGINS_PX)):
            new.update(zip(labels, -(shift * unit[:, None]).T + 0.0))
    tables = list(table.tables)
    tables[table.index] = table.particles.with_columns(new).without(drop)
    for i, other in enumerate(tables):
        if other is table.optics and "rlnImageSize" in other.labels:
            tables[i] = other.with_columns({"rlnImageSize": [box] * len(other)})
    write_star(path, tables)


def _warnings(particles: Particles, roll: np.ndarray, box: int) -> List[str]:
    warnings = []
    wrapped = int((np.abs(roll).max(axis=1) > (particles.box_size - box) / 2).sum())
    if wrapped:
        strip = int(np.abs(roll).max() - (particles.box_size - box) // 2)
        warnings.append(f"{wrapped} of {len(particles)} images are moved so far that their opposite edge shows, in a "
                        f"strip of up to {strip} px")
    images = len(np.unique(np.stack([particles.stack, particles.slice]), axis=1)[0])
    if images < len(particles):
        warnings.append(f"{len(particles)} particles share {images} images: now each has one of its own, and copies "
                        "cannot be told any more; do not split half-sets anew")
    return warnings


def _places(maps: Mapping[str, PathLike]) -> List[str]:
    """What is said of maps whose headers put them at different places; their voxels are taken as those of one grid."""
    given = [name for name in MAP_NAMES if maps.get(name) is not None]
    return [text for name in given[1:]
            for text in displaced(maps[name], f"{name} {maps[name]}", maps[given[0]], f"{given[0]} {maps[given[0]]}")]


def _finish(output: Path, report: Dict[str, Any]) -> Dict[str, Any]:
    for text in report["warnings"]:
        say(f"warning: {text}")
    write_json(output / "recentre.json", report)
    say(f"box {report['box_size_before']} → {report['box_size']} px, moved by "
        f"{report['point_from_centre_px']} px; results are in {output}")
    return report
