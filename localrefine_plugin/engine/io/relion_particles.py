"""Particles from and to RELION STAR files; the maps and stacks of `mrc` under the same roof."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..model.optics import (
    commonest_pixel_size,
    electron_wavelength,
    image_shift,
    magnifications,
    several_pixel_sizes,
    specimen_shift,
    with_beam_tilt,
    with_pixel_size,
)
from ..model.pose import euler_deg_from_rotation, rotation_from_euler_deg
from ..records.errors import InputError
from ..records.particles import NO_DISTORTION, OpticsGroup, Particles
from .columns import ANGLES, CTF, Columns
from .find_file import find_file
from .mrc import ImageReader, open_mrc, read_map, stack_shape, write_map
from .rows import CHUNK, Together
from .run_folder import PathLike
from .star import StarTable, read_star, write_star

__all__ = ["ImageReader", "ParticleTable", "StarTable", "read_map", "read_particles", "read_star", "write_map",
           "write_particles", "write_star"]

ORIGINS_ANGSTROM = ("rlnOriginXAngst", "rlnOriginYAngst")
ORIGINS_PX = ("rlnOriginX", "rlnOriginY")
IMAGE = "rlnImageName"
MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
PIXEL_SIZES = ("rlnImagePixelSize", "rlnPixelSize")
MAGNIFICATION = ("rlnDetectorPixelSize", "rlnMagnification")
BEAM_TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
ZERNIKE = ("rlnOddZernike", "rlnEvenZernike")
CONTRADICTION = 1e-3  # relative, of two pixel sizes; RELION writes six digits
FARTHEST_PIXEL_SIZE = 0.1  # relative; sessions of one microscope and setting differ by less than 0.05
LARGEST_DISTORTION = 0.2  # microscopes stay below 0.05; the kernels need less than 0.25
DISTORTION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
USED_COLUMNS = (("rlnImageName", "rlnRandomSubset", "rlnOpticsGroup", "rlnPhaseShift") + ANGLES + ORIGINS_ANGSTROM
                + ORIGINS_PX + CTF + MICROSCOPE + PIXEL_SIZES + MAGNIFICATION + BEAM_TILT)
"""Of the table of particles, what a refinement depends on."""


@dataclass(frozen=True)
class ParticleTable:
    """The STAR file the particles came from: every table, every column, every row in its order.

    tables : all tables of the file.  index : which of them holds the particles.
    pixel_size : (n,) Å, of each row's own image.  distortion : (n, 2, 2) M of each row, None where all are 1; with
        several pixel sizes M of the frame that the particles are in (optics.py).
    """

    tables: Tuple[StarTable, ...]
    index: int
    pixel_size: np.ndarray
    distortion: Optional[np.ndarray]

    @property
    def particles(self) -> StarTable:
        return self.tables[self.index]

    @property
    def optics(self) -> Optional[StarTable]:
        """The table of optics groups; None in a RELION 3.0 file."""
        return _optics_table(self.tables)

    def take(self, rows: np.ndarray) -> "ParticleTable":
        """The file with these rows of the particles only, in this order."""
        tables = list(self.tables)
        tables[self.index] = self.particles.take(rows)
        return replace(self, tables=tuple(tables), pixel_size=self.pixel_size[rows],
                       distortion=_of_rows(self.distortion, rows))


def read_particles(path: PathLike, need_half_sets: bool = True, pixel_size: Optional[float] = None
                   ) -> Tuple[Particles, ParticleTable]:
    """Particles of a RELION STAR file, 3.1 and later (optics groups) or 3.0 (one table).

    rotation = Euler_angles2matrix(rot, tilt, psi); shift_px = −origin / pixel size (M⁻ᵀ times that with a
    magnification matrix M), an absent origin or phase shift is 0. Image paths are sought as given, from the folder
    of the STAR file and from every folder above it (the RELION project is one of them). Without ``need_half_sets``
    the column rlnRandomSubset may be missing or anything; all particles are then of half-set 1, to be split anew.
    Optics groups of several pixel sizes are put into the frame of ``pixel_size``, or else that of the group with the
    most particles (optics.py); without several it is not used.

    Raises InputError when a column is missing or holds no numbers, a half-set is neither 1 nor 2, an
    optics group is unknown, or an image file does not exist.
    """
    source = str(path)
    tables = tuple(read_star(path))
    index = _particle_index(tables, source)
    table = tables[index]
    if any(label.startswith("rlnTomo") for label in table.labels):  # RELION 4 and 5
        raise InputError("the particles are of tomograms", source, "give particles of single-particle images")
    optics, images = _optics_table(tables), ImageNames(len(table), path)
    columns = Columns(table, USED_COLUMNS, {IMAGE: images.add})
    stack, number, stacks = images.in_files(columns)
    group, groups = _optics_groups(optics, columns) if optics is not None else _optics_of_rows(columns)
    columns.forget(("rlnOpticsGroup", *MICROSCOPE, *PIXEL_SIZES, *MAGNIFICATION, *BEAM_TILT))
    groups = _with_box_sizes(groups, group, stack, stacks)
    own_pixel_size = np.array([g.pixel_size for g in groups])[group]
    rotation = _rotations(columns)
    columns.forget(ANGLES)
    shift = _shifts(columns, own_pixel_size)
    columns.forget(ORIGINS_ANGSTROM + ORIGINS_PX)
    particles = Particles(
        rotation=rotation, shift_px=shift,
        half_set=_half_sets(columns) if need_half_sets else np.ones(len(stack), np.int8),
        defocus_u=columns.numbers("rlnDefocusU"), defocus_v=columns.numbers("rlnDefocusV"),
        defocus_angle=columns.numbers("rlnDefocusAngle"), phase_shift=columns.numbers("rlnPhaseShift", 0.0),
        optics_group=group, stack=stack, slice=number, optics=groups, stacks=stacks)
    _check_distortion(groups, source)
    distortion = _of_rows(magnifications(particles), group)
    particles = replace(particles, shift_px=specimen_shift(particles.shift_px, distortion))
    parts = ParticleTable(tables, index, own_pixel_size, distortion)
    if not several_pixel_sizes(own_pixel_size):
        return particles, parts
    return in_frame(particles, parts, pixel_size or commonest_pixel_size(particles))


def read_table(path: PathLike, particles: Particles) -> ParticleTable:
    """The table of a STAR file that ``particles`` were read from, without looking at any image.

    Raises InputError if its rows are not these particles in their order.
    """
    tables = tuple(read_star(path))
    index = _particle_index(tables, str(path))
    table, optics = tables[index], _optics_table(tables)
    images, of_rows = ImageNames(len(table), path), MICROSCOPE + PIXEL_SIZES + MAGNIFICATION + BEAM_TILT
    columns = Columns(table, (IMAGE, "rlnOpticsGroup", *(of_rows if optics is None else ())), {IMAGE: images.add})
    if not np.array_equal(images.slices(columns), particles.slice):
        raise InputError("does not have the particles of this run in their order", str(path), "start a new run")
    group, groups = _optics_groups(optics, columns) if optics is not None else _optics_of_rows(columns)
    own_pixel_size = np.array([g.pixel_size for g in groups])[group]
    return ParticleTable(tables, index, own_pixel_size, _of_rows(magnifications(particles), particles.optics_group))


def particle_table_of(tables: Sequence[StarTable], source: str) -> StarTable:
    """The table of particles among those of a STAR file; InputError without one."""
    return tables[_particle_index(tables, source)]


def in_frame(particles: Particles, table: ParticleTable, pixel_size: float) -> Tuple[Particles, ParticleTable]:
    """Particles of several pixel sizes, and their table, in the frame of ``pixel_size`` (`optics.with_pixel_size`).

    Raises InputError if one of them is too far from it.
    """
    far = np.abs(table.pixel_size / pixel_size - 1) > FARTHEST_PIXEL_SIZE
    if far.any():
        sizes = " and ".join(f"{size:g}" for size in (np.unique(table.pixel_size)[[0, -1]]))
        raise InputError(f"the optics groups have pixel sizes of {sizes} Å, more than {100 * FARTHEST_PIXEL_SIZE:g} % "
                         f"from the {pixel_size:g} Å of most particles or of the half-maps", table.particles.source,
                         "extract the particles of all groups with nearly the same pixel size")
    particles = with_pixel_size(particles, pixel_size)
    _check_distortion(particles.optics, table.particles.source)
    return particles, replace(table, distortion=_of_rows(magnifications(particles), particles.optics_group))


def _of_rows(of_groups: Optional[np.ndarray], group: Any) -> Optional[np.ndarray]:
    return None if of_groups is None else of_groups[group]


def write_particles(path: PathLike, table: ParticleTable, rotation: np.ndarray, shift_px: np.ndarray,
                    extra_columns: Optional[Mapping[str, Any]] = None) -> None:
    """Write every input column and row, in its order, with new angles and origins, in one step.

    Origins go to the columns the input has (Å, px, or both), else to the ones of its dialect; ``shift_px`` is that
    of Particles. ``extra_columns`` (label → n values) replaces columns of that label or is added at the end.
    """
    write_computed(path, table, lambda rows: (rotation[rows], shift_px[rows]), extra_columns or {})


def write_computed(path: PathLike, table: ParticleTable, poses: Callable[[slice], Tuple[np.ndarray, np.ndarray]],
                   extra_columns: Mapping[str, Any]) -> None:
    """As `write_particles`, with the poses that ``poses`` gives of a slice of the rows, and columns that may be read or
    computed a slice at a time: what is in memory does not grow with the rows."""
    labels, dialect = set(table.particles.labels), ORIGINS_ANGSTROM if table.optics is not None else ORIGINS_PX
    origins = [name for names in (ORIGINS_ANGSTROM, ORIGINS_PX) for name in names if labels.intersection(names) or (
        names is dialect and not labels.intersection(ORIGINS_ANGSTROM + ORIGINS_PX))]

    def computed(first: int, end: int) -> List[np.ndarray]:
        rows = slice(first, end)
        rotation, shift = poses(rows)
        origin = origins_angstrom(table, shift, rows).T
        found = dict(zip(ORIGINS_ANGSTROM, origin))
        found.update(zip(ORIGINS_PX, origin / table.pixel_size[rows]))
        return [*euler_deg_from_rotation(rotation).T, *(found[name] for name in origins)]
    names = [*ANGLES, *origins]
    columns: Dict[str, Any] = dict(zip(names, Together(len(table.particles), computed).columns(len(names))))
    columns.update(extra_columns)
    tables = list(table.tables)
    tables[table.index] = table.particles.with_columns(columns)
    write_star(path, tables)


def origins_angstrom(table: ParticleTable, shift_px: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
    """rlnOriginX/YAngst (n, 2) of the particles of these rows with ``shift_px`` (n, 2): −shift, in the pixels of their
    own images."""
    distortion = _of_rows(table.distortion, rows)
    origin: np.ndarray = -(image_shift(np.asarray(shift_px), distortion) * table.pixel_size[rows, None]) + 0.0
    return origin


def _optics_table(tables: Sequence[StarTable]) -> Optional[StarTable]:
    return next((table for table in tables if table.name == "optics"), None)


def _particle_index(tables: Sequence[StarTable], source: str) -> int:
    """The table named particles, or else the first that has images."""
    found = [i for i, table in enumerate(tables) if table.name == "particles" and table.labels]
    found += [i for i, table in enumerate(tables) if "rlnImageName" in table.labels]
    if not found:
        raise InputError("holds no table of particles", source, "give a STAR file with a column rlnImageName")
    if not len(tables[found[0]]):
        raise InputError("holds no particles", source, "give a STAR file with at least two particles")
    return found[0]


class ImageNames:
    """Names NNNNNN@stack of ``rows`` images, added in their order, as numbers."""

    def __init__(self, rows: int, star: PathLike):
        self.star = star
        self.known: Dict[str, int] = {}
        self.stack, self.number = np.empty(rows, np.int32), np.empty(rows, np.int64)
        self.filled, self.wrong = 0, (0, "")

    def add(self, names: List[str]) -> None:
        known, stacks, numbers = self.known, [], []
        for i, name in enumerate(names):
            before, at, after = name.partition("@")
            stacks.append(known.setdefault(after if at else name, len(known)))
            # int() would also take '1_0' and '+1'; 18 digits fit the array
            if at and not (before.isascii() and before.isdigit() and 0 < int(before[:18]) and len(before) < 19):
                self.wrong = self.wrong if self.wrong[0] else (self.filled + i + 1, name)
                at = ""
            numbers.append(int(before) - 1 if at else 0)
        here = slice(self.filled, self.filled + len(names))
        self.stack[here], self.number[here] = stacks, numbers
        self.filled = here.stop

    def slices(self, columns: Columns) -> np.ndarray:
        """(n,) 0-based number of each image in its stack; ``columns`` are those that gave the names."""
        columns.require(IMAGE)
        if self.wrong[0]:
            raise InputError(f"row {self.wrong[0]} has rlnImageName '{self.wrong[1]}'", str(self.star),
                             "image names are NNNNNN@stack.mrcs with NNNNNN counting from 1")
        return self.number

    def in_files(self, columns: Columns) -> Tuple[np.ndarray, np.ndarray, Tuple[str, ...]]:
        """(stack index, 0-based slice, absolute stack paths)."""
        number = self.slices(columns)
        return self.stack, number, _distinct(self.stack, [find_file(name, self.star) for name in self.known])


def _rotations(columns: Columns) -> np.ndarray:
    """(n, 3, 3), a part of the rows at a time."""
    rotation = np.empty((columns.rows, 3, 3))
    for start in range(0, len(rotation), CHUNK):
        part = slice(start, start + CHUNK)
        rotation[part] = rotation_from_euler_deg(np.stack([columns.numbers(a)[part] for a in ANGLES], axis=1))
    return rotation


def _distinct(stack: np.ndarray, paths: Sequence[str]) -> Tuple[str, ...]:
    """The distinct paths; `stack` is renumbered in place when one file goes by two names."""
    order: Dict[str, int] = {}
    renumber = np.array([order.setdefault(path, len(order)) for path in paths], dtype=np.int32)
    stack[:] = renumber[stack]
    return tuple(order)


def _shifts(columns: Columns, pixel_size: np.ndarray) -> np.ndarray:
    origins = []
    for angstrom, px in zip(ORIGINS_ANGSTROM, ORIGINS_PX):
        if angstrom in columns or px not in columns:
            with np.errstate(over="ignore"):  # an origin of no sense is found later, with the others of its kind
                origins.append(columns.numbers(angstrom, 0.0) / pixel_size)
        else:
            origins.append(columns.numbers(px))
    return -np.stack(origins, axis=1) + 0.0  # + 0.0 turns −0 into 0


def _half_sets(columns: Columns) -> np.ndarray:
    subset = columns.integers("rlnRandomSubset")
    wrong = np.flatnonzero((subset != 1) & (subset != 2))
    if len(wrong):
        raise InputError(f"row {wrong[0] + 1} has rlnRandomSubset {subset[wrong[0]]}", columns.source,
                         "half-sets are 1 and 2; use the particles of a refinement that split them into half-sets")
    return subset.astype(np.int8)


def _optics_groups(table: StarTable, columns: Columns) -> Tuple[np.ndarray, Tuple[OpticsGroup, ...]]:
    """(group index of each particle, groups in use) of a RELION 3.1 file."""
    optics = Columns(table, ("rlnOpticsGroup", "rlnOpticsGroupName", "rlnImageSize") + PIXEL_SIZES + MICROSCOPE
                      + BEAM_TILT + ZERNIKE + DISTORTION)
    if not optics.rows:
        raise InputError("table data_optics is empty", columns.source, "give one row per optics group")
    ids = optics.integers("rlnOpticsGroup").tolist()
    if len(set(ids)) < len(ids):
        raise InputError("table data_optics has two rows of one group", columns.source, "number the groups apart")
    names = optics.text("rlnOpticsGroupName") if "rlnOpticsGroupName" in optics else [f"opticsGroup{i}" for i in ids]
    box = optics.integers("rlnImageSize") if "rlnImageSize" in optics else np.zeros(len(ids), dtype=np.int64)
    values = [optics.numbers(label) for label in MICROSCOPE] + [_pixel_sizes(optics)]
    values += [optics.numbers(label, 0.0) for label in BEAM_TILT]
    odd, even = (optics.lists(label) for label in ZERNIKE)
    distortion = [optics.numbers(label, one) for label, one in zip(DISTORTION, NO_DISTORTION)]
    groups = [_group(str(names[i]), [v[i] for v in values], int(box[i]), odd[i], even[i],
                     tuple(float(m[i]) for m in distortion)) for i in range(len(ids))]
    if "rlnOpticsGroup" not in columns and len(ids) == 1:
        number = np.full(columns.rows, ids[0])
    else:
        number = columns.integers("rlnOpticsGroup")
    for unknown in sorted(set(np.unique(number).tolist()) - set(ids)):
        row = int(np.flatnonzero(number == unknown)[0])
        raise InputError(f"row {row + 1} has optics group {unknown}, which table data_optics does not have",
                         columns.source, "add the group to data_optics or correct rlnOpticsGroup")
    return _only_used(np.array([ids.index(i) for i in np.unique(number)])[np.unique(number, return_inverse=True)[1]],
                      groups)


def _optics_of_rows(columns: Columns) -> Tuple[np.ndarray, Tuple[OpticsGroup, ...]]:
    """(group index, groups) of a RELION 3.0 file: rows that share microscope, pixel size and beam tilt are a group."""
    values = np.stack([columns.numbers(label) for label in MICROSCOPE] + [_pixel_sizes(columns)]
                      + [columns.numbers(label, 0.0) for label in BEAM_TILT], axis=1)
    distinct, group = np.unique(values, axis=0, return_inverse=True)
    groups = [_group(f"opticsGroup{i + 1}", row, 0) for i, row in enumerate(distinct)]
    return _only_used(group.reshape(-1), groups)


def _group(name: str, values: Sequence[float], box_size: int, odd: Tuple[float, ...] = (),
           even: Tuple[float, ...] = (), distortion: Tuple[float, ...] = NO_DISTORTION) -> OpticsGroup:
    """``values`` are those of MICROSCOPE, the pixel size and those of BEAM_TILT."""
    voltage, aberration, amplitude_contrast, pixel_size, *tilt = (float(value) for value in values)
    if any(tilt) and voltage > 0:  # a voltage that is not is refused later
        odd = with_beam_tilt(odd, tilt, aberration, electron_wavelength(voltage))
    odd, even = (coefficients if any(coefficients) else () for coefficients in (odd, even))
    return OpticsGroup(name, voltage, aberration, amplitude_contrast, pixel_size, box_size, odd, even, distortion)


def _check_distortion(groups: Sequence[OpticsGroup], source: str) -> None:
    for group in groups:
        if np.abs(np.subtract(group.magnification, NO_DISTORTION)).max() > LARGEST_DISTORTION:
            raise InputError(f"optics group {group.name} has a magnification matrix "
                             f"{', '.join(f'{v:g}' for v in group.magnification)}", source,
                             f"correct rlnMagMat00 … rlnMagMat11: within {LARGEST_DISTORTION:g} of 1, 0, 0, 1")


def _only_used(group: np.ndarray, groups: Sequence[OpticsGroup]) -> Tuple[np.ndarray, Tuple[OpticsGroup, ...]]:
    used, group = np.unique(group, return_inverse=True)
    return group.astype(np.int32), tuple(groups[i] for i in used)


def _pixel_sizes(columns: Columns) -> np.ndarray:
    """(n,) Å; RELION 3.0: detector pixel in µm · 10⁴ / magnification. InputError where columns disagree."""
    found = {label: columns.numbers(label) for label in PIXEL_SIZES if label in columns}
    if all(name in columns for name in MAGNIFICATION):
        detector, magnification = (columns.numbers(name) for name in MAGNIFICATION)
        with np.errstate(over="ignore"):
            found[" / ".join(MAGNIFICATION)] = np.divide(detector * 1e4, magnification, out=np.zeros_like(detector),
                                                         where=magnification > 0)
    if not found:
        columns.numbers(PIXEL_SIZES[0])  # says that it is missing
    label, sizes = next(iter(found.items()))
    wrong = np.flatnonzero(~(sizes > 1e-2) | ~(sizes < 1e3))
    if len(wrong):
        raise InputError(f"row {wrong[0] + 1} of table data_{columns.name} gives a pixel size of "
                         f"{sizes[wrong[0]]:g} Å", columns.source, f"correct {label}")
    for other, values in list(found.items())[1:]:
        apart = np.flatnonzero(~(np.abs(values - sizes) <= CONTRADICTION * sizes))
        if len(apart):
            row = int(apart[0])
            raise InputError(f"row {row + 1} of table data_{columns.name} gives a pixel size of {sizes[row]:.4g} Å "
                             f"by {label}, but of {values[row]:.4g} Å by {other}", columns.source,
                             "correct the one that is wrong, or remove its column")
    return np.round(sizes, 6)


def _with_box_sizes(groups: Sequence[OpticsGroup], group: np.ndarray, stack: np.ndarray,
                    stacks: Sequence[str]) -> Tuple[OpticsGroup, ...]:
    """The groups with the box size of an image of theirs where the STAR file does not say it."""
    complete = []
    for i, optics in enumerate(groups):
        if optics.box_size <= 0:
            path = stacks[int(stack[np.flatnonzero(group == i)[0]])]
            with open_mrc(path) as mrc:
                optics = replace(optics, box_size=stack_shape(mrc, path)[2])
        complete.append(optics)
    return tuple(complete)
