"""A small, complete and valid set of input files, for tests that then spoil one thing."""
from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np

BOX, PIXEL_SIZE, PARTICLES = 16, 2.0, 12

OPTICS = """data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnAmplitudeContrast #3
_rlnSphericalAberration #4
_rlnVoltage #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
1 opticsGroup1 0.1 2.7 300 2.0 16 2
2 opticsGroup2 0.07 2.6 200 2.0 16 2
"""
COLUMNS = ("rlnImageName", "rlnMicrographName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle",
           "rlnPhaseShift", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst",
           "rlnRandomSubset", "rlnClassNumber")


def particle_rows():
    """One dict per particle: label → text."""
    rng = np.random.default_rng(3)
    rows = []
    for i in range(PARTICLES):
        stack = "a" if i < PARTICLES // 2 else "b"
        values = [f"{i % (PARTICLES // 2) + 1:06d}@stacks/{stack}.mrcs", f"mics/{stack}.mrc", 1 + i // 6,
                  f"{15000 + 100 * i}.0", f"{14500 + 100 * i}.0", "30.0", f"{7.5 * i:.2f}",
                  f"{rng.uniform(-180, 180):.6f}", f"{rng.uniform(0, 180):.6f}", f"{rng.uniform(-180, 180):.6f}",
                  f"{rng.uniform(-5, 5):.6f}", f"{rng.uniform(-5, 5):.6f}", 1 + i % 2, 1]
        rows.append(dict(zip(COLUMNS, map(str, values))))
    return rows


def table_text(rows, name="particles"):
    labels = list(rows[0])
    header = "".join(f"_{label} #{j}\n" for j, label in enumerate(labels, 1))
    return f"\ndata_{name}\n\nloop_\n{header}" + "".join(" ".join(row[c] for c in labels) + "\n" for row in rows) + "\n"


def star_text(rows, optics=OPTICS):
    return "\n# version 30001\n\n" + optics + "\n\n# version 30001\n" + table_text(rows)


def rows_of_relion_30(rows):
    """The same particles in the columns of RELION 3.0: one table, origins in px."""
    old = []
    for row in rows:
        row = dict(row)
        first = row.pop("rlnOpticsGroup") == "1"
        for axis in "XY":
            row["rlnOrigin" + axis] = f"{float(row.pop(f'rlnOrigin{axis}Angst')) / PIXEL_SIZE:.6f}"
        row.update(rlnVoltage="300" if first else "200", rlnSphericalAberration="2.7" if first else "2.6",
                   rlnAmplitudeContrast="0.1" if first else "0.07", rlnMagnification="25000", rlnDetectorPixelSize="5")
        old.append(row)
    return old


def dialects():
    """The particles as each version of RELION would write them: name → text."""
    rows = particle_rows()
    newer = [dict(row, rlnCtfMaxResolution="4.5", rlnNormCorrection="0.98", rlnGroupNumber="1",
                  rlnLogLikeliContribution="1.2e+05", rlnMaxValueProbDistribution="0.5",
                  rlnNrOfSignificantSamples="7") for row in rows]
    optics = OPTICS.replace("_rlnImageDimensionality #8\n", "_rlnImageDimensionality #8\n"
                            "_rlnCtfDataAreCtfPremultiplied #9\n").replace("16 2\n", "16 2 0\n")
    return {"3.0": table_text(rows_of_relion_30(rows), ""), "3.1": star_text(rows),
            "4.0": star_text(newer, optics), "5.0": star_text(newer, optics).replace("30001", "50001")}


def write_mrc(path, data, pixel_size=PIXEL_SIZE):
    with mrcfile.new(str(path), overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = pixel_size


def radius(box=BOX):
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.sqrt(x ** 2 + y ** 2 + z ** 2)


def soft_mask(box=BOX, inner=2.0, outer=6.0):
    """Sphere with a cosine edge between two radii."""
    t = np.clip((radius(box) - inner) / (outer - inner), 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * t)).astype(np.float32)


class Inputs:
    """Files of a valid refinement in a folder; change `rows`, `optics` or the files, then `write_star`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.star, self.mask = self.folder / "particles.star", self.folder / "mask.mrc"
        self.half_1, self.half_2 = self.folder / "half_1.mrc", self.folder / "half_2.mrc"
        self.stacks = [self.folder / "stacks" / name for name in ("a.mrcs", "b.mrcs")]
        self.output = self.folder / "run"
        self.rows, self.optics = particle_rows(), OPTICS
        rng = np.random.default_rng(5)
        (self.folder / "stacks").mkdir()
        for stack in self.stacks:
            write_mrc(stack, rng.normal(size=(PARTICLES // 2, BOX, BOX)).astype(np.float32))
        blob = np.exp(-radius() ** 2 / 18)
        for path in (self.half_1, self.half_2):
            write_mrc(path, (blob + 0.1 * rng.normal(size=blob.shape)).astype(np.float32))
        write_mrc(self.mask, soft_mask())
        self.write_star()

    def write_star(self):
        self.star.write_text(star_text(self.rows, self.optics))

    def set_all(self, label, value):
        for row in self.rows:
            row[label] = value
        self.write_star()

    def drop(self, label):
        for row in self.rows:
            del row[label]
        self.write_star()
