"""Particles of cryoSPARC, as the STAR file that the engine reads, and back.

A .cs file is an array of records in numpy's own format. A job's fields lie in two of them, joined by ``uid``: what the
job has made, and what it has passed through.

    R = Exp(−alignments3D/pose)                    the pose is an axis–angle vector in rad
    rlnOriginXAngst, rlnOriginYAngst = alignments3D/shift · alignments3D/psize_A
    rlnRandomSubset = alignments3D/split + 1       half-map A is half-map 1

pinned by what pyem makes of a file of cryosparc-tools (tests/chain/data/cryosparc). The STAR file keeps the uid of
every row and, in a table of its own, where it came from; the results are written into the fields of the alignment, and
every other field, the order of the rows and the split stay.
"""
from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from scipy.spatial.transform import Rotation

from ..model.pose import euler_deg_from_rotation, exp_map
from ..records.errors import InputError
from .columns import RECENTRED_IMAGE
from .find_file import find_file
from .run_folder import PathLike, write_atomic
from .star import StarTable, write_star

UID, SOURCE = "lrUid", "cryosparc"  # the column, and the table of where the rows came from
USUAL_GROUP = "alignments3D"
NEEDED = ("blob/path", "blob/idx", "blob/psize_A", "blob/shape", "ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad",
          "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
NOT_USED = ("ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag", "ctf/bfactor")


class Fields(NamedTuple):
    """All fields of the particles in one place, the order of the first file; ``group``: whose pose is used."""

    uid: np.ndarray
    of: Dict[str, np.ndarray]
    group: str


def is_cs(path: PathLike) -> bool:
    return str(path).lower().endswith(".cs")


def read_cs(path: PathLike) -> np.ndarray:
    """The records (n,) of a .cs file; InputError for anything else."""
    source = str(path)
    try:
        with open(source, "rb") as handle:
            records = np.load(handle, allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", source, "give an existing .cs file") from None
    except ValueError:
        records = None
    names = getattr(getattr(records, "dtype", None), "names", None)
    if not isinstance(records, np.ndarray) or not names or "uid" not in names:
        raise InputError("is no .cs file with a field uid", source, "export the particles of the job again")
    return records


def star_of_cs(particles: PathLike, passthrough: Optional[PathLike], target: PathLike) -> List[str]:
    """Write the STAR file of a .cs file; what is to be said of it.

    ``passthrough``: the file with the fields that the job passed through; sought beside the first where it is needed.

    Raises
    ------
    InputError : a file is none, fields are missing, or images do not exist.
    """
    fields, files = all_fields(particles, passthrough)
    optics, optics_of_row = different_optics(fields)
    write_star(target, [source_table(files, fields.group), optics_table(optics),
                        particle_table(fields, optics_of_row, str(particles))])
    return sentences(fields, files)


def source_table(files: Sequence[PathLike], group: Optional[str] = None) -> StarTable:
    """Where rows come from: .cs files and the group of their pose; by the first file if it is not given."""
    if group is None:
        records = read_cs(files[0])
        group = used_group({name: records[name] for name in records.dtype.names})
    return StarTable.from_columns(SOURCE, {"lrFile": [os.path.realpath(path) for path in files],
                                           "lrPoseGroup": [group for _ in files]})


def all_fields(particles: PathLike, passthrough: Optional[PathLike]) -> Tuple[Fields, List[str]]:
    """The fields of both files, and which files were read."""
    first = read_cs(particles)
    found, files = {name: first[name] for name in first.dtype.names}, [str(particles)]
    if passthrough is None and lacking(found):
        passthrough = beside(particles)
    if passthrough is not None:
        rest = read_cs(passthrough)
        order = np.argsort(rest["uid"], kind="stable")
        place = order[np.minimum(np.searchsorted(rest["uid"][order], first["uid"]), len(rest) - 1)]
        absent = int(np.count_nonzero(rest["uid"][place] != first["uid"]))
        if absent:
            raise InputError(f"lacks {absent} of the {len(first)} particles", str(passthrough),
                             "give the passthrough file of the same job")
        found = {**{name: rest[name][place] for name in rest.dtype.names}, **found}
        files.append(str(passthrough))
    missing = lacking(found)
    if missing:
        raise InputError(f"has no field {missing[0]}", str(particles), "give particles of a 3D refinement, with their "
                         "passthrough file (--passthrough)")
    return Fields(first["uid"], found, used_group(found)), files


def used_group(found: Dict[str, np.ndarray]) -> str:
    groups = pose_groups(found)
    return USUAL_GROUP if USUAL_GROUP in groups else groups[0]


def pose_groups(found: Dict[str, np.ndarray]) -> List[str]:
    """Groups of fields that have a pose in space."""
    return sorted(name[:-len("/pose")] for name in found
                  if re.fullmatch(r"alignments3D\w*/pose", name) and found[name].ndim == 2)


def lacking(found: Dict[str, np.ndarray]) -> List[str]:
    """Fields that are needed and not there."""
    missing = [name for name in NEEDED if name not in found]
    return missing + ([] if pose_groups(found) else [f"{USUAL_GROUP}/pose"])


def beside(particles: PathLike) -> Optional[str]:
    """The one passthrough file of particles in the folder of a .cs file, if there is one."""
    folder = Path(particles).resolve().parent
    found = sorted(path for path in folder.glob("*passthrough_particles*.cs") if path != Path(particles).resolve())
    if len(found) > 1:
        raise InputError(f"lies beside {len(found)} passthrough files", str(particles), "name one with --passthrough")
    return str(found[0]) if found else None


def sentences(fields: Fields, files: Sequence[str]) -> List[str]:
    said = [f"{files[0]}: {len(fields.uid)} particles, poses of {fields.group}"
            + (f", other fields of {files[1]}" if len(files) > 1 else "")]
    others = [group for group in pose_groups(fields.of) if group != fields.group]
    if others:
        said.append(f"warning: {files[0]}: the poses of {', '.join(others)} are not used")
    idle = [name for name in NOT_USED if name in fields.of and np.any(np.abs(fields.of[name]) > 1e-6)]
    if idle:
        said.append(f"warning: {files[0]}: {', '.join(idle)} are not used. Give the particles as a STAR file of RELION "
                    "3.1 if beam tilt or magnification matters")
    return said


# ---------------------------------------------------------------- tables

def different_optics(fields: Fields) -> Tuple[np.ndarray, np.ndarray]:
    """Different optics (g, 6): group, kV, mm, contrast, pixel size, box; and which one each row (n,) has."""
    of = fields.of
    group = of["ctf/exp_group_id"] if "ctf/exp_group_id" in of else np.zeros(len(fields.uid))
    columns = [group, of["ctf/accel_kv"], of["ctf/cs_mm"], of["ctf/amp_contrast"], of["blob/psize_A"],
               of["blob/shape"][:, 0]]
    values = np.stack([rounded(column) for column in columns], axis=1)
    different, which = np.unique(values, axis=0, return_inverse=True)
    return different, which.reshape(-1)


def rounded(values: np.ndarray) -> np.ndarray:
    """Single-precision numbers as a person wrote them: 1.06 instead of 1.05999994."""
    unique, which = np.unique(values, return_inverse=True)
    return np.array([float(f"{value:.6g}") for value in unique])[which.reshape(-1)]


def optics_table(different: np.ndarray) -> StarTable:
    """Of `different_optics`."""
    return StarTable.from_columns("optics", {
        "rlnOpticsGroupName": [f"opticsGroup{int(row[0])}" for row in different],
        "rlnOpticsGroup": list(range(1, len(different) + 1)), "rlnVoltage": different[:, 1].tolist(),
        "rlnSphericalAberration": different[:, 2].tolist(), "rlnAmplitudeContrast": different[:, 3].tolist(),
        "rlnImagePixelSize": different[:, 4].tolist(), "rlnImageSize": [int(n) for n in different[:, 5]],
        "rlnImageDimensionality": [2] * len(different)})


def particle_table(fields: Fields, optics_of_row: np.ndarray, source: str) -> StarTable:
    of, group = fields.of, fields.group
    angles = euler_deg_from_rotation(rotation_of(of[f"{group}/pose"]))
    origin = of[f"{group}/shift"].astype(np.float64) * pose_pixel_size(fields)[:, None]
    columns: Dict[str, Any] = {"rlnImageName": image_names(of, source)}
    if {"location/micrograph_path", "location/center_x_frac", "location/micrograph_shape"} <= set(of):
        columns["rlnMicrographName"] = [text_of(name) for name in of["location/micrograph_path"]]
        height, width = of["location/micrograph_shape"].T.astype(np.float64)
        columns["rlnCoordinateX"] = (of["location/center_x_frac"] * width).tolist()
        columns["rlnCoordinateY"] = ((1 - of["location/center_y_frac"]) * height).tolist()  # as pyem
    columns.update(zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), angles.T.tolist()))
    columns.update(zip(("rlnOriginXAngst", "rlnOriginYAngst"), origin.T.tolist()))
    columns.update({
        "rlnDefocusU": of["ctf/df1_A"].tolist(), "rlnDefocusV": of["ctf/df2_A"].tolist(),
        "rlnDefocusAngle": np.rad2deg(of["ctf/df_angle_rad"].astype(np.float64)).tolist(),
        "rlnOpticsGroup": (optics_of_row + 1).tolist()})
    if "ctf/phase_shift_rad" in of:
        columns["rlnPhaseShift"] = np.rad2deg(of["ctf/phase_shift_rad"].astype(np.float64)).tolist()
    if f"{group}/split" in of:
        columns["rlnRandomSubset"] = (of[f"{group}/split"].astype(int) + 1).tolist()
    columns[UID] = [str(int(uid)) for uid in fields.uid]
    return StarTable.from_columns("particles", columns)


def image_names(of: Dict[str, np.ndarray], source: str) -> List[str]:
    """number@stack of each row, with the whole path of the stack; > marks an imported file."""
    paths, which = np.unique(of["blob/path"], return_inverse=True)
    found = [find_file(text_of(path).lstrip(">"), source) for path in paths]
    return [f"{int(number) + 1:06d}@{found[i]}" for number, i in zip(of["blob/idx"], which.reshape(-1))]


def text_of(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def pose_pixel_size(fields: Fields) -> np.ndarray:
    """Å of the pixels (n,) in which the shifts are told."""
    name = f"{fields.group}/psize_A"
    return rounded(fields.of[name if name in fields.of else "blob/psize_A"])


def rotation_of(pose: np.ndarray) -> np.ndarray:
    return exp_map(-pose.astype(np.float64))


# ---------------------------------------------------------------- results

def go_back(tables: Sequence[StarTable], particles: StarTable) -> bool:
    """Whether the poses of these particles belong to the images of a .cs file: not while they are re-centred."""
    return any(table.name == SOURCE for table in tables) and RECENTRED_IMAGE not in particles.labels


def write_cs(path: PathLike, tables: Sequence[StarTable], uid: Sequence[str], rotation: np.ndarray,
             origin_angstrom: np.ndarray) -> None:
    """The .cs file that held the poses, with new ones: rows of these uid (m,), in its order.

    tables : of the STAR file of `star_of_cs`.  rotation (m, 3, 3) and origin (m, 2): rlnOriginX/YAngst.

    Raises InputError if the .cs file has lost particles meanwhile.
    """
    rows = next(table for table in tables if table.name == SOURCE).texts(["lrFile", "lrPoseGroup"])
    group = rows["lrPoseGroup"][0]
    both = ((file, read_cs(file)) for file in rows["lrFile"])
    source, records = next((file, records) for file, records in both if f"{group}/pose" in records.dtype.names)
    place = {int(value): i for i, value in enumerate(np.array(uid, dtype=np.uint64))}
    kept = np.array([int(value) in place for value in records["uid"]])
    if np.count_nonzero(kept) != len(place):
        raise InputError(f"has lost {len(place) - np.count_nonzero(kept)} of the particles since the run began", source,
                         "bring the file back and continue the run; particles.star has all results")
    result = records[kept].copy()
    order = np.array([place[int(value)] for value in result["uid"]], dtype=int)
    if len(order):  # SciPy refuses no rotations; and not log_map: a whole pose may be half a turn
        result[f"{group}/pose"] = -Rotation.from_matrix(rotation[order]).as_rotvec()
    pixel = result[f"{group}/psize_A"] if f"{group}/psize_A" in records.dtype.names else result["blob/psize_A"]
    result[f"{group}/shift"] = origin_angstrom[order] / rounded(pixel)[:, None]

    def write(name: str) -> None:
        with open(name, "wb") as handle:
            np.save(handle, result, allow_pickle=False)
    write_atomic(path, write)
