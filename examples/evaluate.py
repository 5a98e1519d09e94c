"""How far poses and maps of a simulated data set are from the truth.

    python -m examples.evaluate DATA particles.star [map.mrc]

A local refinement may turn and move the whole sub-volume a little, with the map following: such a common
rigid motion (the gauge) is no error. It is fitted to the poses and taken out of every figure.
"""
from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional, Tuple

import mrcfile
import numpy as np
from scipy import ndimage

from .imaging import rotation_from_euler
from .simulate import Poses

KEPT_FOR_GAUGE = 0.7    # share of the particles nearest to the truth that the common rotation is fitted to


@dataclass(frozen=True)
class Gauge:
    """The common rigid motion of body B: rotation (3, 3) and displacement (3,) in Å of its centroid (3,)."""

    rotation: np.ndarray
    displacement: np.ndarray
    centroid: np.ndarray

    def moved(self, truth: np.ndarray, pixel_size: float) -> np.ndarray:
        """The true map in the frame of the poses: v'(x) = v(b + G (x − b + g))."""
        centre = np.full(3, truth.shape[0] // 2)
        matrix = self.rotation[::-1, ::-1]
        offset = self.centroid + self.rotation @ (self.displacement - self.centroid)
        return ndimage.affine_transform(truth, matrix, centre - matrix @ centre + offset[::-1] / pixel_size, order=3)


def angle_deg(rotation: np.ndarray) -> np.ndarray:
    trace = np.trace(rotation, axis1=-2, axis2=-1)
    return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(matrix)
    return u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v


def pose_errors(poses: Poses, truth: Poses, centroid: np.ndarray) -> Tuple[np.ndarray, np.ndarray, Gauge]:
    """Angle (n,) in degrees and in-plane distance (n,) in Å of body B's centroid from the truth, and the gauge."""
    difference = np.swapaxes(truth.rotation, 1, 2) @ poses.rotation
    common = nearest_rotation(difference.sum(axis=0))
    error = angle_deg(common.T @ difference)
    kept = error <= np.quantile(error, KEPT_FOR_GAUGE)
    common = nearest_rotation(difference[kept].sum(axis=0))
    error = angle_deg(common.T @ difference)
    offset = centroid_position(poses, centroid) - centroid_position(truth, centroid)
    in_plane = poses.rotation[:, :2].reshape(-1, 3)
    displacement = np.linalg.lstsq(in_plane, offset.ravel(), rcond=None)[0]
    distance = np.linalg.norm(offset - (in_plane @ displacement).reshape(-1, 2), axis=1)
    return error, distance, Gauge(common, displacement, centroid)


def centroid_position(poses: Poses, centroid: np.ndarray) -> np.ndarray:
    """Where the centroid of body B lands in the images, (n, 2) in Å."""
    return (poses.rotation @ centroid)[:, :2] + poses.position


def read_poses(star_file: Path) -> Poses:
    """Poses of a particles file with image names NUMBER@FILE, ordered by NUMBER."""
    columns = read_columns(star_file)
    order = np.argsort([int(name.split("@")[0]) for name in columns["rlnImageName"]])
    numbers = {label: np.array(columns[label], dtype=float)[order] for label in columns if label != "rlnImageName"}
    angles = np.stack([numbers["rlnAngle" + name] for name in ("Rot", "Tilt", "Psi")], axis=1)
    return Poses(rotation_from_euler(angles), -np.stack([numbers[f"rlnOrigin{axis}Angst"] for axis in "XY"], axis=1))


def read_columns(star_file: Path) -> Dict[str, list]:
    from emtable import Table
    table = Table(fileName=str(star_file), tableName="particles")
    wanted = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    return {label: table.getColumnValues(label) for label in wanted}


def read_map(path: Path) -> np.ndarray:
    with mrcfile.open(str(path), permissive=True) as handle:
        return np.array(handle.data, dtype=np.float32)


def fsc(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fourier shell correlation (N // 2 + 1,) of two maps inside a mask."""
    n = first.shape[0]
    a, b = np.fft.rfftn(first * mask), np.fft.rfftn(second * mask)
    full, half = np.fft.fftfreq(n, 1 / n), np.arange(n // 2 + 1)
    shell = np.rint(np.sqrt(full[:, None, None] ** 2 + full[:, None] ** 2 + half ** 2)).astype(int).ravel()
    twice = np.broadcast_to(np.where((half == 0) | (2 * half == n), 1, 2), a.shape)

    def shell_sum(values: np.ndarray) -> np.ndarray:
        return np.bincount(shell, (values * twice).ravel())[:n // 2 + 1]
    power = shell_sum(np.abs(a) ** 2) * shell_sum(np.abs(b) ** 2)
    return shell_sum((a * b.conj()).real) / np.sqrt(np.maximum(power, 1e-30))


def resolution(curve: np.ndarray, pixel_size: float, threshold: float) -> float:
    """Å at which the curve first falls below the threshold; the Nyquist limit if it never does."""
    below = np.flatnonzero(curve[2:] < threshold)
    n = 2 * (len(curve) - 1)
    if not len(below):
        return 2 * pixel_size
    i = below[0] + 2
    return n * pixel_size / (i - 1 + (curve[i - 1] - threshold) / (curve[i - 1] - curve[i]))


class Evaluation:
    """The truth of one simulated data set."""

    def __init__(self, data: Path):
        facts = json.loads((data / "truth.json").read_text(encoding="utf-8"))
        self.pixel_size = float(facts["options"]["pixel_size"])
        self.centroid = np.array(facts["centroid_b_angstrom"])
        self.poses = read_poses(data / "true_B.star")
        self.mask, self.map = read_map(data / "mask_B.mrc"), read_map(data / "gt_inB.mrc")

    def of_poses(self, poses: Poses) -> Dict[str, float]:
        """Medians over the particles."""
        angle, distance, _ = pose_errors(poses, self.poses, self.centroid)
        return dict(angle_deg=float(np.median(angle)), centroid_angstrom=float(np.median(distance)))

    def of_map(self, volume: np.ndarray, poses: Poses) -> Dict[str, float]:
        """Agreement inside the mask with the true map, moved into the frame of the poses the map was made from."""
        gauge = pose_errors(poses, self.poses, self.centroid)[2]
        curve = fsc(volume, gauge.moved(self.map, self.pixel_size), self.mask)
        return dict(fsc_half_angstrom=resolution(curve, self.pixel_size, 0.5), mean_fsc=float(curve[1:].mean()))

    def of_halves(self, first: np.ndarray, second: np.ndarray) -> float:
        """Å at which the half-maps' FSC inside the mask falls below 0.143."""
        return resolution(fsc(first, second, self.mask), self.pixel_size, 0.143)


def main(data: str, star_file: str, map_file: Optional[str] = None) -> None:
    evaluation, poses = Evaluation(Path(data)), read_poses(Path(star_file))
    figures = evaluation.of_poses(poses)
    if map_file:
        figures.update(evaluation.of_map(read_map(Path(map_file)), poses))
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
