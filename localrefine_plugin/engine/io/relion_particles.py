"""Particles from and to RELION STAR files; the maps and stacks of `mrc` under the same roof."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..model.ctf import electron_wavelength
from ..model.optics import image_shift, magnifications, specimen_shift, with_beam_tilt
from ..model.pose import euler_deg_from_rotation, rotation_from_euler_deg
from ..records.errors import InputError
from ..records.particles import NO_DISTORTION, OpticsGroup, Particles
from .find_file import find_file
from .mrc import ImageReader, open_mrc, read_map, stack_shape, write_map
from .run_folder import PathLike
from .star import StarTable, read_star, unquote, write_star

__all__ = ["ImageReader", "ParticleTable", "StarTable", "read_map", "read_particles", "read_star", "write_map",
           "write_particles", "write_star"]

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS_ANGSTROM = ("rlnOriginXAngst", "rlnOriginYAngst")
ORIGINS_PX = ("rlnOriginX", "rlnOriginY")
CTF = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
PIXEL_SIZES = ("rlnImagePixelSize", "rlnPixelSize")
MAGNIFICATION = ("rlnDetectorPixelSize", "rlnMagnification")
BEAM_TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
ZERNIKE = ("rlnOddZernike", "rlnEvenZernike")
CONTRADICTION = 1e-3  # relative, of two pixel sizes; RELION writes six digits
LARGEST_DISTORTION = 0.2  # microscopes stay below 0.05; the kernels need less than 0.25
DISTORTION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
TEXTS = ("rlnImageName", "rlnOpticsGroupName") + ZERNIKE


@dataclass(frozen=True)
class ParticleTable:
    """The STAR file the particles came from: every table, every column, every row in its order.

    tables : all tables of the file.  index : which of them holds the particles.
    pixel_size : (n,) Å, of each row.  distortion : (n, 2, 2) M of each row, None where all are 1 (optics.py).
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
        tables[self.index] = self.particles.take(rows.tolist())
        return replace(self, tables=tuple(tables), pixel_size=self.pixel_size[rows])


def read_particles(path: PathLike, need_half_sets: bool = True) -> Tuple[Particles, ParticleTable]:
    """Particles of a RELION STAR file, 3.1 and later (optics groups) or 3.0 (one table).

    rotation = Euler_angles2matrix(rot, tilt, psi); shift_px = −origin / pixel size (M⁻ᵀ times that with a
    magnification matrix M), an absent origin or phase shift is 0. Image paths are sought as given, from the folder
    of the STAR file and from every folder above it (the RELION project is one of them). Without ``need_half_sets``
    the column rlnRandomSubset may be missing or anything; all particles are then of half-set 1, to be split anew.

    Raises InputError when a column is missing or holds no numbers, a half-set is neither 1 nor 2, an
    optics group is unknown, or an image file does not exist.
    """
    source = str(path)
    tables = tuple(read_star(path))
    index = _particle_index(tables, source)
    table = tables[index]
    if any(label.startswith("rlnTomo") for label in table.labels):  # RELION 4 and 5
        raise InputError("the particles are of tomograms", source, "give particles of single-particle images")
    optics = _optics_table(tables)
    columns = _Columns(table, ("rlnImageName", "rlnRandomSubset", "rlnOpticsGroup", "rlnPhaseShift") + ANGLES
                       + ORIGINS_ANGSTROM + ORIGINS_PX + CTF + MICROSCOPE + PIXEL_SIZES + MAGNIFICATION + BEAM_TILT)
    stack, number, stacks = _images(columns.text("rlnImageName"), path)
    if optics is not None:
        group, groups = _optics_groups(optics, columns)
    else:
        group, groups = _optics_of_rows(columns)
    groups = _with_box_sizes(groups, group, stack, stacks)
    pixel_size = np.array([g.pixel_size for g in groups])[group]
    particles = Particles(
        rotation=rotation_from_euler_deg(np.stack([columns.numbers(a) for a in ANGLES], axis=1)),
        shift_px=_shifts(columns, pixel_size),
        half_set=_half_sets(columns) if need_half_sets else np.ones(len(stack), np.int8),
        defocus_u=columns.numbers("rlnDefocusU"), defocus_v=columns.numbers("rlnDefocusV"),
        defocus_angle=columns.numbers("rlnDefocusAngle"), phase_shift=columns.numbers("rlnPhaseShift", 0.0),
        optics_group=group, stack=stack, slice=number, optics=groups, stacks=stacks)
    _check_distortion(groups, source)
    of_groups = magnifications(particles)
    distortion = None if of_groups is None else of_groups[group]
    particles = replace(particles, shift_px=specimen_shift(particles.shift_px, distortion))
    return particles, ParticleTable(tables, index, pixel_size, distortion)


def write_particles(path: PathLike, table: ParticleTable, rotation: np.ndarray, shift_px: np.ndarray,
                    extra_columns: Optional[Mapping[str, Sequence[Any]]] = None) -> None:
    """Write every input column and row, in its order, with new angles and origins, in one step.

    Origins go to the columns the input has (Å, px, or both), else to the ones of its dialect; ``shift_px`` is that
    of Particles. ``extra_columns`` (label → n values) replaces columns of that label or is added at the end.
    """
    angles = euler_deg_from_rotation(rotation)
    labels, shift = set(table.particles.labels), image_shift(np.asarray(shift_px), table.distortion)
    columns: Dict[str, Sequence[Any]] = dict(zip(ANGLES, angles.T))
    dialect = ORIGINS_ANGSTROM if table.optics is not None else ORIGINS_PX
    for names, unit in ((ORIGINS_ANGSTROM, table.pixel_size), (ORIGINS_PX, np.ones(len(angles)))):
        if labels.intersection(names) or (names is dialect and not labels.intersection(ORIGINS_ANGSTROM + ORIGINS_PX)):
            columns.update(zip(names, -(shift * unit[:, None]).T + 0.0))
    columns.update(extra_columns or {})
    tables = list(table.tables)
    tables[table.index] = table.particles.with_columns(columns)
    write_star(path, tables)


class _Columns:
    """Columns of one table, read in one pass: names as texts, the others as checked numbers."""

    def __init__(self, table: StarTable, labels: Sequence[str]):
        self.source, self.name, self.rows = table.source, table.name, len(table)
        where = [(label, table.labels.index(label)) for label in labels if label in table.labels]
        self._texts: Dict[str, List[str]] = {label: [] for label, _ in where if label in TEXTS}
        self._numbers = {label: np.empty(self.rows) for label, _ in where if label not in TEXTS}
        self._wrong: Dict[str, Tuple[int, str]] = {}  # the first row that is not a finite number
        for start, rows in table.raw_rows():
            for label, j in where:
                texts = [unquote(row[j]) for row in rows]
                if label in TEXTS:
                    self._texts[label].extend(texts)
                elif label not in self._wrong:
                    self._add_numbers(label, start, texts)

    def _add_numbers(self, label: str, start: int, texts: List[str]) -> None:
        try:
            values = np.array([float(text) for text in texts], dtype=np.float64)
        except ValueError:
            values = np.array([_number(text) for text in texts])
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            self._wrong[label] = start + int(wrong[0]), texts[wrong[0]]
        self._numbers[label][start:start + len(values)] = values

    def __contains__(self, label: str) -> bool:
        return label in self._texts or label in self._numbers

    def text(self, label: str) -> List[str]:
        return self._texts[self._present(label)]

    def numbers(self, label: str, default: Optional[float] = None) -> np.ndarray:
        """(n,) float64, finite."""
        if label not in self and default is not None:
            return np.full(self.rows, default)
        values = self._numbers[self._present(label)]
        if label in self._wrong:
            raise self._not_a_number(label, *self._wrong[label])
        return values

    def lists(self, label: str) -> List[Tuple[float, ...]]:
        """Finite numbers of texts [1.2,-3,…]; none where the column is missing."""
        found = []
        for row, text in enumerate(self._texts.get(label, ["[]"] * self.rows)):
            parts = [part for part in text.strip("[] ").split(",") if part.strip()]
            if not all(np.isfinite(_number(part)) for part in parts):
                raise self._not_a_number(label, row, text, "a list of finite numbers")
            found.append(tuple(float(part) for part in parts))
        return found

    def integers(self, label: str) -> np.ndarray:
        values = self.numbers(label)
        wrong = np.flatnonzero((values != np.rint(values)) | (np.abs(values) > 2 ** 31))
        if len(wrong):
            raise self._not_a_number(label, int(wrong[0]), f"{values[wrong[0]]:g}", "a whole number")
        return values.astype(np.int64)

    def _present(self, label: str) -> str:
        if label not in self:
            raise InputError(f"table data_{self.name} has no column {label}", self.source, _remedy(label))
        return label

    def _not_a_number(self, label: str, row: int, text: str, kind: str = "a finite number") -> InputError:
        return InputError(f"row {row + 1} of table data_{self.name} has {label} '{text}', not {kind}", self.source,
                          "correct or remove the row")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _remedy(label: str) -> str:
    if label == "rlnRandomSubset":
        return "use the particles of a refinement that split them into half-sets (3D auto-refine)"
    if label in ANGLES:
        return "use the particles of a 3D refinement, which have poses"
    if label in CTF:
        return "estimate the CTF and extract the particles with it"
    return "export the particles again with this column"


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


def _images(names: Sequence[str], star: PathLike) -> Tuple[np.ndarray, np.ndarray, Tuple[str, ...]]:
    """(stack index, 0-based slice, absolute stack paths) of names NNNNNN@stack."""
    known: Dict[str, int] = {}
    stack = np.empty(len(names), dtype=np.int32)
    number = np.empty(len(names), dtype=np.int64)
    for i, name in enumerate(names):
        before, at, after = name.partition("@")
        stack[i] = known.setdefault(after if at else name, len(known))
        # int() would also take '1_0' and '+1'; 18 digits fit the array
        if at and not (before.isascii() and before.isdigit() and 0 < int(before[:18]) and len(before) < 19):
            raise InputError(f"row {i + 1} has rlnImageName '{name}'", str(star),
                             "image names are NNNNNN@stack.mrcs with NNNNNN counting from 1")
        number[i] = int(before) - 1 if at else 0
    return stack, number, _distinct(stack, [find_file(name, star) for name in known])


def _distinct(stack: np.ndarray, paths: Sequence[str]) -> Tuple[str, ...]:
    """The distinct paths; `stack` is renumbered in place when one file goes by two names."""
    order: Dict[str, int] = {}
    renumber = np.array([order.setdefault(path, len(order)) for path in paths], dtype=np.int32)
    stack[:] = renumber[stack]
    return tuple(order)


def _shifts(columns: _Columns, pixel_size: np.ndarray) -> np.ndarray:
    origins = []
    for angstrom, px in zip(ORIGINS_ANGSTROM, ORIGINS_PX):
        if angstrom in columns or px not in columns:
            with np.errstate(over="ignore"):  # an origin of no sense is found later, with the others of its kind
                origins.append(columns.numbers(angstrom, 0.0) / pixel_size)
        else:
            origins.append(columns.numbers(px))
    return -np.stack(origins, axis=1) + 0.0  # + 0.0 turns −0 into 0


def _half_sets(columns: _Columns) -> np.ndarray:
    subset = columns.integers("rlnRandomSubset")
    wrong = np.flatnonzero((subset != 1) & (subset != 2))
    if len(wrong):
        raise InputError(f"row {wrong[0] + 1} has rlnRandomSubset {subset[wrong[0]]}", columns.source,
                         "half-sets are 1 and 2; use the particles of a refinement that split them into half-sets")
    return subset.astype(np.int8)


def _optics_groups(table: StarTable, columns: _Columns) -> Tuple[np.ndarray, Tuple[OpticsGroup, ...]]:
    """(group index of each particle, groups in use) of a RELION 3.1 file."""
    optics = _Columns(table, ("rlnOpticsGroup", "rlnOpticsGroupName", "rlnImageSize") + PIXEL_SIZES + MICROSCOPE
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


def _optics_of_rows(columns: _Columns) -> Tuple[np.ndarray, Tuple[OpticsGroup, ...]]:
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


def _pixel_sizes(columns: _Columns) -> np.ndarray:
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
