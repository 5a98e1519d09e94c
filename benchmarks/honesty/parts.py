"""How often some images of another kind are found, without a column that tells them apart, and how often good images
are taken for them.

    python -m benchmarks.honesty.parts --data FOLDER [--data FOLDER …] [--write]

A share of the images, drawn at random, is changed in memory and on a stack of its own; the half-maps stay those of the
good set. It ends with the assertion that nothing was said of good images.

Data: FOLDER, simulated: a set of the benchmark's make_dataset.py or make_hard.py, of one stack.
"""
from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, List

import mrcfile
import numpy as np

from localrefine_plugin.engine.inputs.checks import CheckedInputs
from localrefine_plugin.engine.model.ctf import CtfOnPixels
from localrefine_plugin.engine.model.pose import euler_deg_from_rotation, rotation_from_euler_deg

from ..page import DOCS
from .belonging import outcome, with_poses
from .sets import checked_set, table_of_sets

PAGE = DOCS / "explanation" / "belonging.md"
SHARES = 0.05, 0.1, 0.2, 0.3
HEAD = ("data", "some of the images", *(f"{100 * share:.0f} %" for share in SHARES))
Change = Callable[[CheckedInputs, np.ndarray, Path], CheckedInputs]


def with_images(inputs: CheckedInputs, images: np.ndarray, folder: Path) -> CheckedInputs:
    stack = folder / "particles.mrcs"
    with mrcfile.new(str(stack), images.astype(np.float32), overwrite=True) as mrc:
        mrc.voxel_size = inputs.pixel_size
    return with_poses(inputs, stacks=(str(stack),))


def images_of(inputs: CheckedInputs) -> np.ndarray:
    return np.array(mrcfile.read(inputs.particles.stacks[0]), dtype=np.float32)


def inverted(inputs: CheckedInputs, rows: np.ndarray, folder: Path) -> CheckedInputs:
    images = images_of(inputs)
    images[rows] *= -1
    return with_images(inputs, images, folder)


def flipped(inputs: CheckedInputs, rows: np.ndarray, folder: Path) -> CheckedInputs:
    images, box = images_of(inputs), inputs.particles.box_size
    ky, kx = np.meshgrid(np.fft.fftfreq(box, 1 / box), np.arange(box // 2 + 1), indexing="ij")
    contrast = CtfOnPixels(inputs.particles, kx.ravel().astype(np.float32), ky.ravel().astype(np.float32), np.asarray)
    sign = np.sign(contrast(rows)).reshape(len(rows), box, -1)
    images[rows] = np.fft.irfft2(np.fft.rfft2(images[rows]) * sign, s=(box, box))
    return with_images(inputs, images, folder)


def turned_over(inputs: CheckedInputs, rows: np.ndarray, folder: Path) -> CheckedInputs:
    rotation = inputs.particles.rotation.copy()
    angles = euler_deg_from_rotation(rotation[rows])
    angles[:, 1] = 180 - angles[:, 1]
    rotation[rows] = rotation_from_euler_deg(angles)
    return with_poses(inputs, rotation=rotation)


def origins(inputs: CheckedInputs, rows: np.ndarray, folder: Path) -> CheckedInputs:
    shift = inputs.particles.shift_px.copy()
    shift[rows] /= inputs.pixel_size
    return with_poses(inputs, shift_px=shift)


def defocus(factor: float) -> Change:
    def change(inputs: CheckedInputs, rows: np.ndarray, folder: Path) -> CheckedInputs:
        p = inputs.particles
        scale = np.ones(len(p))
        scale[rows] = factor
        return with_poses(inputs, defocus_u=p.defocus_u * scale, defocus_v=p.defocus_v * scale)
    return change


def permuted(inputs: CheckedInputs, rows: np.ndarray, folder: Path) -> CheckedInputs:
    order = np.arange(len(inputs.particles))
    order[rows] = np.random.default_rng(1).permutation(rows)
    return with_poses(inputs, rotation=inputs.particles.rotation[order], shift_px=inputs.particles.shift_px[order])


def of_seventh_row(inputs: CheckedInputs, rows: np.ndarray, folder: Path) -> CheckedInputs:
    """The pose of the row 7 below, for as many rows in a row."""
    order, count = np.arange(len(inputs.particles)), len(inputs.particles)
    order[:len(rows)] = (order[:len(rows)] + 7) % count
    return with_poses(inputs, rotation=inputs.particles.rotation[order], shift_px=inputs.particles.shift_px[order])


def noise(inputs: CheckedInputs, rows: np.ndarray, folder: Path) -> CheckedInputs:
    """Images of Gaussian noise with the mean power spectrum of all images."""
    images, box = images_of(inputs), inputs.particles.box_size
    power = np.mean([np.abs(np.fft.rfft2(image)) ** 2 for image in images], axis=0)
    white = np.fft.rfft2(np.random.default_rng(2).standard_normal((len(rows), box, box))) / box
    images[rows] = np.fft.irfft2(white * np.sqrt(power), s=(box, box))
    return with_images(inputs, images, folder)


CHANGES: Dict[str, Change] = {
    "good": lambda inputs, rows, folder: inputs, "opposite contrast": inverted, "flipped phases": flipped,
    "180° − tilt": turned_over, "origins in px": origins, "defocus × 1.35": defocus(1.35),
    "defocus × 0.74": defocus(0.74), "defocus × 1.15": defocus(1.15), "poses permuted": permuted,
    "pose of the row 7 below": of_seventh_row, "noise instead": noise}


def rows_of(data: Path) -> List[List[str]]:
    given = checked_set(data)
    rows = []
    for name, change in CHANGES.items():
        found = []
        for share in SHARES:
            chosen = np.random.default_rng(int(100 * share)).permutation(len(given.particles))
            some = np.sort(chosen[:int(share * len(chosen))])
            with tempfile.TemporaryDirectory() as folder:
                found.append(outcome(change(replace(given), some, Path(folder))))
        assert name != "good" or set(found) == {"passed"}, f"{data}: something was said of good images"
        rows.append([data.resolve().name, name, *found])
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    table_of_sets(__doc__, HEAD, rows_of, ("parts", PAGE), "`python -m benchmarks.honesty.parts {}`")


if __name__ == "__main__":
    main()
