"""How far a refinement is from the truth of a simulated data set, whichever simulator made it.

A local refinement may turn and move the whole sub-volume a little, with the map following. Such a common rigid
motion (the gauge) is no error: it is fitted to the poses and taken out of every figure.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, Optional

import numpy as np
from scipy import ndimage

from examples.evaluate import fsc, pose_errors, read_map, read_poses, resolution
from examples.simulate import Poses


class Truth:
    """True poses of a body, the map they give (the others smeared by their motion relative to it), and its mask."""

    def __init__(self, data: Path, body: str = "B"):
        facts = json.loads((data / "truth.json").read_text(encoding="utf-8"))
        if "options" in facts:  # examples/simulate.py
            self.pixel_size = float(facts["options"]["pixel_size"])
            self.centroid = np.array(facts[f"centroid_{body.lower()}_angstrom"])
        else:
            self.pixel_size, self.centroid = float(facts["args"]["apix"]), np.array(facts["comB_A"])
        self.poses = read_poses(data / f"true_{body}.star")
        self.mask, self.map = read_map(data / f"mask_{body}.mrc"), read_map(data / f"gt_in{body}.mrc")

    def of_poses(self, poses: Poses) -> Dict[str, float]:
        """Medians over the particles of the angle and of the centroid's distance in the image."""
        angle, distance, _ = pose_errors(poses, self.poses, self.centroid)
        return dict(angle_deg=float(np.median(angle)), centroid_angstrom=float(np.median(distance)))

    def of_map(self, volume: np.ndarray, poses: Poses, mask: np.ndarray, centre_px: Optional[np.ndarray] = None
               ) -> Dict[str, float]:
        """FSC to the truth in the frame of the poses; ``centre_px`` (xyz, from the box centre) of a cropped map."""
        gauge = pose_errors(poses, self.poses, self.centroid)[2]
        centre = np.full(3, self.map.shape[0] // 2)
        matrix = gauge.rotation[::-1, ::-1]
        offset = (self.centroid + gauge.rotation @ (gauge.displacement - self.centroid))[::-1] / self.pixel_size
        truth = ndimage.affine_transform(self.map, matrix, centre - matrix @ centre + offset, order=5)
        if centre_px is not None:
            truth = cropped(truth, centre_px, volume.shape[0])
        curve = fsc(volume, truth, mask)
        return dict(fsc_half_angstrom=resolution(curve, self.pixel_size, 0.5), mean_fsc=float(curve[1:-1].mean()))

    def of_halves(self, first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
        """Å at which the half-maps' FSC inside the mask falls below 0.143."""
        return resolution(fsc(first, second, mask), self.pixel_size, 0.143)


def cropped(volume: np.ndarray, centre_px: np.ndarray, edge: int) -> np.ndarray:
    """The cube of this edge about a point (xyz, px from the box centre), moved there by a phase ramp."""
    n = volume.shape[0]
    full, half = np.fft.fftfreq(n), np.fft.rfftfreq(n)
    x, y, z = centre_px
    ramp = np.exp(2j * np.pi * (full[:, None, None] * z + full[:, None] * y + half * x))
    low = n // 2 - edge // 2
    part = slice(low, low + edge)
    moved: np.ndarray = np.fft.irfftn(np.fft.rfftn(volume) * ramp, volume.shape)[part, part, part]
    return moved.astype(np.float32)
