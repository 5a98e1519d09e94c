"""Scipion sets ↔ the files of a run: the only module that speaks both pwem's data and STAR/MRC.

Scipion keeps, for particles aligned to a volume (ALIGN_PROJ), the matrix that takes the image to the
volume. With A = Euler_angles2matrix(rot, tilt, psi) and s = rlnOrigin in px (s_z = 0):

    T = inv([A | −s]),   so   T[:3, :3] = Aᵀ,  T[:3, 3] = Aᵀ s,   and back   A = M[:3, :3],  s = −M[:3, 3],  M = inv(T).

Rows and items are paired by Scipion's object id, which travels in the column rlnImageId: never by
position, because iterating a set includes disabled items that a copy of it skips.
"""
from __future__ import annotations

import os
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from pwem.constants import NO_INDEX
from pwem.emlib.image import ImageHandler
from pwem.objects import FSC, Transform
from pyworkflow.object import Float, Integer, Scalar, String

from .convert_cryosparc import FILE_ATTRIBUTE, UID_ATTRIBUTE, origin
from .convert_optics import OPTICS_ATTRIBUTE, acquisition_of, optics_groups
from .engine.io.star import StarTable, named_table, write_star
from .engine.records.errors import InputError
from .engine.records.iteration import FSC_CURVES

STACKS_READ_IN_PLACE = (".mrcs", ".mrc")
MAPS_READ_IN_PLACE = (".mrc", ".map", ".ccp4")
ROTATION_TOLERANCE = 1e-3  # of A Aᵀ; Scipion keeps matrices as text with all digits, angles by hand may have three
VOXEL_SIZE_TOLERANCE = 1e-3  # relative; single-precision cell edges are good to 1e-7, rounding by hand to 1e-3

POSE_LABELS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
SUBSET_ATTRIBUTE = "_rlnRandomSubset"

# ---------------------------------------------------------------- matrices

def pose_columns(transforms: np.ndarray, pixel_size: float) -> np.ndarray:
    """(n, 5) rot, tilt, psi (degrees), origin x, y (Å) of ALIGN_PROJ matrices (n, 4, 4)."""
    from .engine.model.pose import euler_deg_from_rotation
    inverse = np.linalg.inv(np.asarray(transforms, dtype=np.float64))
    angles = euler_deg_from_rotation(inverse[:, :3, :3])
    return np.hstack([angles, -inverse[:, :2, 3] * pixel_size])


def transforms_from_columns(columns: np.ndarray, pixel_size: float) -> np.ndarray:
    """ALIGN_PROJ matrices (n, 4, 4) of rot, tilt, psi (degrees), origin x, y (Å); inverse of `pose_columns`."""
    from .engine.model.pose import rotation_from_euler_deg
    columns = np.asarray(columns, dtype=np.float64)
    transposed = rotation_from_euler_deg(columns[:, :3]).transpose(0, 2, 1)
    transforms = np.tile(np.eye(4), (len(columns), 1, 1))
    transforms[:, :3, :3] = transposed
    transforms[:, :3, 3] = np.einsum("nij,nj->ni", transposed[:, :, :2], columns[:, 3:5] / pixel_size)
    return transforms


# ---------------------------------------------------------------- particles: Scipion → STAR

def write_particles(particles: Any, star_file: str, stack_folder: str) -> int:
    """Write a SetOfParticles as a RELION 3.1 STAR file; returns the number of rows.

    Image stacks are referenced where they are, by absolute paths. Stacks that are not MRC are
    converted into ``stack_folder``. Disabled items are left out, as Scipion does when it copies a set.

    Raises
    ------
    InputError
        No enabled item, an item without transformation or with one that is no rotation, or optics groups that
        contradict each other.
    """
    items = _item_columns(particles)
    columns = items.pop("columns")
    pixel_size = float(particles.getSamplingRate())
    _refuse_no_rotation(items["ids"], items["transforms"])
    poses = pose_columns(np.array(items["transforms"]), pixel_size)
    stacks = _stack_paths(items["files"], stack_folder)
    names = [f"{max(index, 1):06d}@{stacks[name]}" for index, name in zip(items["indices"], items["files"])]
    table: Dict[str, Sequence[Any]] = {"rlnImageName": names, "rlnImageId": items["ids"]}
    table.update({label: poses[:, j] for j, label in enumerate(POSE_LABELS)})
    source = origin(items["files"], columns)
    table.update(columns)
    groups, optics = optics_groups(particles, items["ids"], items["acquisitions"], items["groups"])
    table["rlnOpticsGroup"] = groups
    write_star(star_file, [source] * (source is not None) + [optics, StarTable.from_columns("particles", table)])
    return len(items["ids"])


def _item_columns(particles: Any) -> Dict[str, Any]:
    """What the rows need, gathered in one pass over the set (the same object is yielded every time)."""
    found: Dict[str, Any] = {name: [] for name in ("ids", "indices", "files", "transforms", "acquisitions", "groups")}
    columns: Dict[str, List[Any]] = {}
    readers: Optional[List[Tuple[str, Callable[[Any], Any]]]] = None
    for item in particles.iterItems():
        if not item.isEnabled():
            continue
        if readers is None:
            readers = _column_readers(item)
            columns = {label: [] for label, _ in readers}
        found["ids"].append(item.getObjId())
        index, name = item.getLocation()
        found["indices"].append(0 if index is None or index == NO_INDEX else index)
        found["files"].append(name)
        found["transforms"].append(_matrix(item))
        found["acquisitions"].append(acquisition_of(item))
        found["groups"].append(item.getAttributeValue(OPTICS_ATTRIBUTE, None))
        for label, read in readers:
            columns[label].append(read(item))
    if not found["ids"]:
        raise InputError("holds no enabled particle", "input particles", "choose a set with particles")
    found["columns"] = columns
    return found


def _matrix(item: Any) -> np.ndarray:
    if not item.hasTransform():
        raise InputError(f"item {item.getObjId()} has no transformation", "input particles",
                         "use particles of a 3D refinement")
    return np.array(item.getTransform().getMatrix(), dtype=np.float64)


def _refuse_no_rotation(ids: Sequence[int], transforms: Sequence[np.ndarray]) -> None:
    """InputError for the first matrix that mirrors, scales or shears."""
    a = np.array(transforms)[:, :3, :3]
    mirrored = np.linalg.det(a) < 0
    skewed = np.abs(a @ a.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2)) > ROTATION_TOLERANCE
    for bad, problem, remedy in (
            (mirrored, "mirrors (its determinant is negative)",
             "write the mirror into the angles (tilt + 180°), or mirror map and particles together"),
            (skewed, "is no rotation", "use particles of a 3D refinement")):
        if bad.any():
            raise InputError(f"the transformation of item {ids[int(bad.argmax())]} {problem}; so do "
                             f"{int(bad.sum())} of {len(ids)}" if bad.sum() > 1 else
                             f"the transformation of item {ids[int(bad.argmax())]} {problem}",
                             "input particles", remedy)


def _column_readers(item: Any) -> List[Tuple[str, Callable[[Any], Any]]]:
    """(label, function of an item) of every column besides image, pose and optics group."""
    readers = _ctf_readers(item) + _coordinate_readers(item)
    taken = {label for label, _ in readers} | set(POSE_LABELS) | {
        "rlnImageName", "rlnImageId", "rlnOpticsGroup", "rlnOriginZAngst"}
    for name, value in item.getAttributes():
        label = name[1:]
        wanted = name.startswith("_rln") or name in (UID_ATTRIBUTE, FILE_ATTRIBUTE)
        if wanted and isinstance(value, Scalar) and label not in taken:
            readers.append((label, _attribute_reader(name, isinstance(value, String))))
    return readers


def _attribute_reader(name: str, text: bool) -> Callable[[Any], Any]:
    missing = "None" if text else 0

    def read(item: Any) -> Any:
        value = item.getAttributeValue(name, None)
        return missing if value is None else value
    return read


def _ctf_readers(item: Any) -> List[Tuple[str, Callable[[Any], Any]]]:
    if not item.hasCTF():
        return []
    return [("rlnDefocusU", lambda i: _ctf_value(i, "getDefocusU")),
            ("rlnDefocusV", lambda i: _ctf_value(i, "getDefocusV")),
            ("rlnDefocusAngle", lambda i: _ctf_value(i, "getDefocusAngle")),
            ("rlnPhaseShift", lambda i: float(i.getCTF().getPhaseShift() or 0.0))]


def _ctf_value(item: Any, getter: str) -> float:
    value = getattr(item.getCTF(), getter, lambda: None)()
    if value is None:
        raise InputError(f"item {item.getObjId()} has no CTF", "input particles",
                         "estimate the CTF of all particles, or leave out those without")
    return float(value)


def _coordinate_readers(item: Any) -> List[Tuple[str, Callable[[Any], Any]]]:
    if item.getCoordinate() is None:
        return []

    def micrograph(i: Any) -> str:
        coordinate = i.getCoordinate()
        return str(coordinate.getMicName() or coordinate.getMicId() or "unknown")
    return [("rlnMicrographName", micrograph),
            ("rlnCoordinateX", lambda i: float(i.getCoordinate().getX())),
            ("rlnCoordinateY", lambda i: float(i.getCoordinate().getY()))]


def _stack_paths(files: Sequence[str], stack_folder: str) -> Dict[str, str]:
    """File name in the set → absolute path of an MRC stack with the same images."""
    paths = {}
    for number, name in enumerate(sorted(set(files)), start=1):
        if os.path.splitext(name)[1].lower() in STACKS_READ_IN_PLACE:
            paths[name] = os.path.abspath(name)
        else:
            os.makedirs(stack_folder, exist_ok=True)
            base = os.path.splitext(os.path.basename(name))[0]
            paths[name] = os.path.abspath(os.path.join(stack_folder, f"{number:04d}_{base}.mrcs"))
            ImageHandler().convertStack(name, paths[name])
    return paths


# ---------------------------------------------------------------- particles: STAR → Scipion

class RefinedParticles:
    """The rows of a refined particles.star by Scipion's object id.

    Parameters
    ----------
    star_file : the refined table.
    input_star : the table the refinement was given; columns it lacks become new attributes of the items.
    pixel_size : Å.
    """

    def __init__(self, star_file: str, input_star: str, pixel_size: float):
        table = particles_table(star_file)
        given = particles_table(input_star)
        known = set(given.labels)
        needed = POSE_LABELS + ("rlnImageId", "rlnRandomSubset")
        self._new = [label for label in table.labels if label not in known and label not in needed]
        texts = table.texts(list(needed) + self._new)
        for label in needed:
            if label not in texts:
                raise InputError(f"has no column {label}", star_file, "run the refinement again")
        self._given = {int(value) for value in given.texts(["rlnImageId"]).get("rlnImageId", [])}
        self._row = {int(value): row for row, value in enumerate(texts["rlnImageId"])}
        self._subset = np.array(texts["rlnRandomSubset"]).astype(float).astype(int)
        poses = np.stack([np.array(texts[label], dtype=np.float64) for label in POSE_LABELS], axis=1)
        self._transforms = transforms_from_columns(poses, pixel_size)
        self._columns = {label: _typed(texts[label]) for label in self._new}

    def __len__(self) -> int:
        return len(self._row)

    def update(self, item: Any, _row: Any = None) -> None:
        """Give the item its new pose, half-set and the engine's columns (a callback of copyItems).

        An item that the engine left out, for its image cannot be used, is not copied.
        Raises InputError when the item was not among those given to the engine.
        """
        row = self._row.get(item.getObjId())
        item._appendItem = row is not None  # the same object comes for every item
        if row is None and item.getObjId() in self._given:
            return
        if row is None:
            raise InputError(f"there is no row for item {item.getObjId()}", "refined particles",
                             "the input set changed during the run: restart the protocol")
        item.setTransform(Transform(matrix=self._transforms[row].copy()))
        setattr(item, SUBSET_ATTRIBUTE, Integer(int(self._subset[row])))  # new on items that were split anew
        for label, (values, make) in self._columns.items():
            setattr(item, "_" + label, make(values[row]))


def _typed(texts: List[str]) -> Tuple[List[Any], Callable[[Any], Any]]:
    """Values and the Scipion class for them: integers, numbers, or text."""
    for convert, make in ((int, Integer), (float, Float)):
        try:
            return [convert(text) for text in texts], make
        except ValueError:
            continue
    return list(texts), String


def particles_table(star_file: str) -> StarTable:
    """The table data_particles of a STAR file."""
    return named_table(star_file, "particles")


# ---------------------------------------------------------------- volumes

def mrc_map(file_name: str, pixel_size: float, target: str) -> str:
    """Absolute path of an MRC file with this map and this voxel size in its header.

    The file itself when it already is one; otherwise a float32 copy is written to ``target``. Scipion's
    sampling rate rules: headers are often left at 1 Å or 0. A copy has its origin at the same voxel.
    """
    name = plain_name(file_name)
    if _readable_in_place(name, pixel_size):
        return os.path.abspath(name)
    from .engine.io.mrc import write_map
    write_map(target, read_map(file_name), pixel_size, _origin(name, pixel_size))
    return os.path.abspath(target)


def _origin(name: str, pixel_size: float) -> Optional[np.ndarray]:
    """x, y, z in Å of the first voxel of a map, for this pixel size; None where the file does not say."""
    if os.path.splitext(name)[1].lower() not in MAPS_READ_IN_PLACE:
        return None
    from .engine.io.mrc import first_voxel, open_mrc
    with open_mrc(name) as mrc:
        given = float(mrc.voxel_size.x) or pixel_size
        return first_voxel(mrc, given) * (pixel_size / given)


def read_map(file_name: str) -> np.ndarray:
    """A map as float32 [z, y, x], from any format Scipion reads."""
    name = plain_name(file_name)
    if os.path.splitext(name)[1].lower() in MAPS_READ_IN_PLACE:
        from .engine.io.mrc import map_of, open_mrc
        with open_mrc(name) as mrc:
            return map_of(mrc, name)
    return np.asarray(ImageHandler().read(name).getData(), dtype=np.float32)


def plain_name(file_name: str) -> str:
    """A file name without the ':mrc' that Xmipp appends."""
    return file_name.split(":")[0] if file_name.endswith((":mrc", ":mrcs")) else file_name


def _readable_in_place(name: str, pixel_size: float) -> bool:
    if os.path.splitext(name)[1].lower() not in MAPS_READ_IN_PLACE:
        return False
    import mrcfile
    with mrcfile.open(name, permissive=True, header_only=True) as handle:
        header = handle.header
        voxel = float(handle.voxel_size.x)
        standard_axes = (int(header.mapc), int(header.mapr), int(header.maps)) in ((1, 2, 3), (0, 0, 0))
        return int(header.mode) == 2 and standard_axes and abs(voxel / pixel_size - 1) < VOXEL_SIZE_TOLERANCE


# ---------------------------------------------------------------- FSC

def fsc_objects(columns: Dict[str, np.ndarray]) -> Iterator[FSC]:
    """One pwem FSC per curve in the table, labelled as in the plots."""
    for curve in FSC_CURVES:
        if curve.label in columns:
            yield fsc_object(curve.title, columns["rlnResolution"], columns[curve.label])


def fsc_object(title: str, frequency: np.ndarray, values: np.ndarray) -> FSC:
    """A pwem FSC of one curve, x in 1/Å ascending.

    pwem's own viewer calls FSC.calculateResolution() unguarded, which divides by zero when the last two
    values of a curve without a crossing are equal, and reads past the front when the first value is below
    the threshold. So undefined values are left out, the curve starts with 1 at frequency 0, and a flat
    end is tilted by a millionth.
    """
    frequency, values = np.asarray(frequency, dtype=float), np.asarray(values, dtype=float)
    keep = np.isfinite(frequency) & np.isfinite(values) & (frequency > 0)
    x = np.concatenate([[0.0], frequency[keep]])
    y = np.concatenate([[1.0], values[keep]])
    if len(y) > 1 and abs(y[-1] - y[-2]) < 1e-6:
        y[-1] = y[-2] - 1e-6
    fsc = FSC(objLabel=title)
    fsc.setData([float(v) for v in x], [float(v) for v in y])
    return fsc
