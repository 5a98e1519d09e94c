"""Sets built by the converters of other plugins from files of their programs, and what must arrive in our STAR file.

The files are written here, in the programs' own formats; they are read by the plugins.
"""
from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import numpy as np
from conftest import REQUIRE_OPTIONAL, _missing
from relion_files import table
from scipion_data import PIXEL_SIZE, random_transforms, write_map
from scipy.spatial.transform import Rotation

from localrefine_plugin import convert
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.io.star import read_star

N, BOX = 30, 16
TESTED = {"relion": "5.0.2", "cryosparc2": "5.0.1", "xmipp3": "29.0.1", "eman2": "3.7.0"}
OPTICS = dict(rlnOpticsGroupName="first", rlnOpticsGroup=1, rlnVoltage=300.0, rlnSphericalAberration=2.7,
              rlnAmplitudeContrast=0.1, rlnImagePixelSize=PIXEL_SIZE, rlnImageSize=BOX, rlnImageDimensionality=2)
HIGHER = dict(rlnBeamTiltX=0.12, rlnBeamTiltY=-0.34, rlnOddZernike="[0.1,-0.2,0.3,0.4,0.5,-0.6]",
              rlnEvenZernike="[0,1,2,3,4,5,6,7,8]")
MAGNIFICATION = dict(rlnMagMat00=1.01, rlnMagMat01=0.002, rlnMagMat10=0.002, rlnMagMat11=0.99)


def plugin(name: str, module: str = ""):
    """The plugin, or a module of it; the test is skipped (or fails, if optional programs are required) without it."""
    if importlib.util.find_spec(name) is None:
        _missing(f"the Scipion plugin '{name}' is not installed", REQUIRE_OPTIONAL)
    return importlib.import_module(f"{name}.{module}" if module else name)


def new_set(folder: Path, name: str = "particles.sqlite"):
    from pwem.objects import SetOfParticles
    return SetOfParticles(filename=str(folder / name))


def images(folder: Path, name: str = "images.mrcs") -> str:
    return write_map(folder / name, np.random.default_rng(0).normal(size=(N, BOX, BOX)), stack=True)


def known(seed: int = 11):
    """Transforms (N, 4, 4) as Scipion keeps them, and the half-sets, of N particles."""
    return random_transforms(N, seed), np.random.default_rng(seed).integers(1, 3, N)


def angles_and_origins(transforms: np.ndarray):
    """rot, tilt, psi in degrees and origin x, y in px, by scipy: A = inv(T), s = −inv(T)[:3, 3]."""
    inverse = np.linalg.inv(transforms)
    return Rotation.from_matrix(inverse[:, :3, :3]).inv().as_euler("ZYZ", degrees=True), -inverse[:, :2, 3]


def write_star(path: Path, stack: str, transforms: np.ndarray, half, optics=({},), group=None, **columns) -> str:
    """A particles file of RELION 3.1; ``optics`` are changes to OPTICS, one dict per group."""
    groups = [dict(OPTICS, **change) for change in optics]
    angles, origin = angles_and_origins(transforms)
    rows = dict(rlnImageName=[f"{i + 1:06d}@{stack}" for i in range(len(transforms))],
                rlnMicrographName=[f"mics/mic_{i // 10}.mrc" for i in range(len(transforms))],
                rlnCoordinateX=[100.0 + 40 * i for i in range(len(transforms))],
                rlnCoordinateY=[200.0 + 40 * i for i in range(len(transforms))],
                rlnOpticsGroup=[1] * len(transforms) if group is None else group, rlnRandomSubset=half,
                rlnDefocusU=[15000.0 + 10 * i for i in range(len(transforms))],
                rlnDefocusV=[14500.0 + 10 * i for i in range(len(transforms))],
                rlnDefocusAngle=[5.0 * i for i in range(len(transforms))],
                rlnPhaseShift=[2.0 * i for i in range(len(transforms))],
                rlnAngleRot=angles[:, 0], rlnAngleTilt=angles[:, 1], rlnAnglePsi=angles[:, 2],
                rlnOriginXAngst=origin[:, 0] * PIXEL_SIZE, rlnOriginYAngst=origin[:, 1] * PIXEL_SIZE)
    rows.update(columns)
    text = table("optics", list(groups[0]), [list(group.values()) for group in groups])
    text += table("particles", list(rows), list(zip(*rows.values())))
    path.write_text("\n# version 30001\n" + text)
    return str(path)


class Arrived:
    """What the engine sees of a set: written by our converter, read by the engine."""

    def __init__(self, particles, folder: Path, need_half_sets: bool = True):
        self.star = str(folder / "ours.star")
        self.n = convert.write_particles(particles, self.star, str(folder / "stacks"))
        self.particles, _ = read_particles(self.star, need_half_sets=need_half_sets)
        self.tables = {found.name: found for found in read_star(self.star)}

    def column(self, label: str, name: str = "particles"):
        return self.tables[name].texts([label])[label]

    def numbers(self, label: str, name: str = "particles") -> np.ndarray:
        return np.array(self.column(label, name), dtype=float)

    def check_poses(self, transforms: np.ndarray, tolerance: float = 2e-6) -> None:
        """Rotations as matrices, shifts in px: R = A and t = −s."""
        inverse = np.linalg.inv(transforms)
        assert np.abs(self.particles.rotation - inverse[:, :3, :3]).max() < tolerance
        assert np.abs(self.particles.shift_px - inverse[:, :2, 3]).max() < 5 * tolerance
