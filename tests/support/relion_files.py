"""RELION files of Particles, written without the engine's own writers."""

from __future__ import annotations

import re
from pathlib import Path

import mrcfile
import numpy as np
from scipy.spatial.transform import Rotation

OPTICS_LABELS = (
    "rlnOpticsGroup",
    "rlnOpticsGroupName",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnImageDimensionality",
)
LABELS = (
    "rlnImageName",
    "rlnMicrographName",
    "rlnOpticsGroup",
    "rlnRandomSubset",
    "rlnClassNumber",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnPhaseShift",
    "rlnCtfMaxResolution",
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnAnglePsi",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
)


def reword(path, pattern, replacement):
    """Replace a pattern that is in the text of a file."""
    text = path.read_text()
    path.write_text(re.sub(pattern, replacement, text))
    assert path.read_text() != text


def euler_angles(rotation):
    """rot, tilt, psi (n, 3) in degrees: R is the inverse of scipy's active rotation ZYZ."""
    return Rotation.from_matrix(rotation).inv().as_euler("ZYZ", degrees=True)


def table(name, labels, rows):
    lines = ["", f"data_{name}", "", "loop_"] + [f"_{label} #{i}" for i, label in enumerate(labels, 1)]
    return "\n".join(lines + [" ".join(map(str, row)) for row in rows]) + "\n\n"


def write_star(path, particles, stack_of, rotation=None, shift_px=None, optics_columns=None):
    """A RELION 3.1 file. ``stack_of`` names the stack, or maps a half-set to its stack; image i of a stack is its
    i-th particle in row order. ``optics_columns``: label → a text per optics group, more columns of data_optics."""
    p = particles
    angles = euler_angles(p.rotation if rotation is None else rotation)
    origins = -(p.shift_px if shift_px is None else shift_px) * p.pixel_size
    optics = [
        (i, g.name, g.voltage_kv, g.spherical_aberration_mm, g.amplitude_contrast, g.pixel_size, g.box_size, 2)
        for i, g in enumerate(p.optics, 1)
    ]
    more = optics_columns or {}
    optics = [row + tuple(column[i] for column in more.values()) for i, row in enumerate(optics)]
    seen, rows = {}, []
    for i in range(len(p)):
        stack = stack_of if isinstance(stack_of, str) else stack_of[int(p.half_set[i])]
        seen[stack] = seen.get(stack, 0) + 1
        rows.append(
            (
                f"{seen[stack]:06d}@{stack}",
                "mic.mrc",
                p.optics_group[i] + 1,
                p.half_set[i],
                1,
                f"{p.defocus_u[i]:.4f}",
                f"{p.defocus_v[i]:.4f}",
                f"{p.defocus_angle[i]:.6f}",
                f"{p.phase_shift[i]:.6f}",
                2,
                *(f"{v:.8f}" for v in angles[i]),
                *(f"{v:.8f}" for v in origins[i]),
            )
        )
    Path(path).write_text(
        "\n# version 30001\n"
        + table("optics", OPTICS_LABELS + tuple(more), optics)
        + "# version 30001\n"
        + table("particles", LABELS, rows)
    )


def read_columns(path, labels):
    """Columns of data_particles of a STAR file as float64 (n, len(labels))."""
    block = Path(path).read_text().split("data_particles")[1]
    lines = [line.split() for line in block.splitlines() if line.strip()]
    where = {words[0][1:]: i for i, words in enumerate(w for w in lines if w[0].startswith("_"))}
    rows = [w for w in lines if not w[0].startswith(("_", "loop_", "#", "data_"))]
    return np.array([[float(w[where[label]]) for label in labels] for w in rows])


def read_poses(path, pixel_size):
    """(rotation, shift_px) of a STAR file."""
    columns = read_columns(path, ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"))
    return Rotation.from_euler("ZYZ", columns[:, :3], degrees=True).inv().as_matrix(), -columns[:, 3:] / pixel_size


def write_map(path, volume, pixel_size):
    with mrcfile.new(str(path), overwrite=True) as mrc:
        mrc.set_data(np.asarray(volume, np.float32))
        mrc.voxel_size = pixel_size
