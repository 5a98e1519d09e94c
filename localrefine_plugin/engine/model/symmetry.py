"""Point groups as rotation matrices, in RELION's and Xmipp's axes; symmetry of masks and maps.

An operator R is a rotation of the specimen about the box centre (voxel N // 2), acting on x, y, z:
a symmetric map has V(R v) = V(v) for every operator of its group.

Axes:  Cn, Dn  n-fold on z, and for D a 2-fold on x.   T  3-fold on z, 2-fold on (0, √2, 1)/√3.
O  4-fold on z, 3-fold on (1, 1, 1).   I2 (= I)  2-fold on z, 5-fold in the xz plane 31.7° from z, towards x.
I1  2-fold on x, 5-fold in the xz plane at 31.7° from x, towards −z.   I3  5-fold on z, a 2-fold in the xz
plane towards −x.   I4  a 2-fold in the xz plane 31.7° from z, the 5-fold in that plane at 63.4° from z.
"""
from __future__ import annotations

import re
from typing import List, Tuple

import numpy as np
import scipy.ndimage

from ..records.errors import InputError
from .fourier import resample_map

_G = (1 + np.sqrt(5)) / 2  # golden ratio: icosahedral axes are exact in it

Generator = Tuple[int, Tuple[float, float, float]]  # fold, axis

_POLYHEDRAL = {
    "T": ((3, (0, 0, 1)), (2, (0, np.sqrt(2), 1))),
    "O": ((4, (0, 0, 1)), (3, (1, 1, 1))),
    "I1": ((2, (1, 0, 0)), (5, (_G, 0, -1)), (3, (_G ** 2, 1, 0))),
    "I2": ((2, (0, 0, 1)), (5, (1, 0, _G)), (3, (0, 1, _G ** 2))),
    "I3": ((5, (0, 0, 1)), (2, (-1, 0, _G))),
    "I4": ((5, (2, 0, 1)), (2, (1, 0, _G))),
}
_POLYHEDRAL["I"] = _POLYHEDRAL["I2"]

COARSE_BOX = 64
"""Masks are compared in a box of at most this size: a mask has no finer detail that matters."""

MAX_FOLD = 99
"""Largest n of Cn and Dn, as in RELION's names."""


def rotation_about(axis: Tuple[float, float, float], angle_deg: float) -> np.ndarray:
    """Rotation by an angle (degrees, right-handed) about an axis of any length: (3, 3) float64."""
    x, y, z = np.asarray(axis, dtype=np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(angle_deg)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def operators(name: str) -> np.ndarray:
    """All rotations of a point group.

    Parameters
    ----------
    name : Cn, Dn (n = 1 … 99), T, O, I, I1, I2, I3 or I4; upper or lower case.

    Returns
    -------
    (m, 3, 3) float64, the identity first. InputError for any other name.
    """
    group = [np.eye(3)]
    for fold, axis in _generators(name):
        generator = rotation_about(axis, 360 / fold)
        _close(group, generator)
    return np.array(group)


def _generators(name: str) -> Tuple[Generator, ...]:
    symbol = name.strip().upper()
    if symbol in _POLYHEDRAL:
        return _POLYHEDRAL[symbol]
    parts = re.fullmatch(r"([CD])(\d{1,2})", symbol)
    if not parts or int(parts[2]) == 0:
        raise InputError(f"'{name}' is not a point group known here", "setting symmetry",
                         f"use Cn or Dn with n from 1 to {MAX_FOLD}, T, O, I1, I2 (= I), I3 or I4")
    main = (int(parts[2]), (0.0, 0.0, 1.0))
    return (main,) if parts[1] == "C" else (main, (2, (1.0, 0.0, 0.0)))


def _close(group: List[np.ndarray], generator: np.ndarray) -> None:
    """Extend ``group``, in place, to the smallest group that also holds ``generator``."""
    generators = group[1:] + [generator]
    frontier = list(group)
    while frontier:
        found = []
        for left in frontier:
            for right in generators:
                product = left @ right
                if np.abs(np.array(group) - product).max(axis=(1, 2)).min() > 1e-6:
                    group.append(product)
                    found.append(product)
        frontier = found


def _moved(map_zyx: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """V(R v), trilinear, 0 outside the box: float32."""
    centre = np.array(map_zyx.shape) // 2
    in_zyx = rotation[::-1, ::-1]
    return scipy.ndimage.affine_transform(np.asarray(map_zyx, dtype=np.float32), in_zyx,
                                          offset=centre - in_zyx @ centre, order=1)


def symmetrise_map(map_zyx: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean of V(R v) over the operators (g, 3, 3) of a group, trilinear, about the box centre: (N, N, N) float32."""
    total = np.zeros(map_zyx.shape, dtype=np.float64)
    for rotation in group:
        total += _moved(map_zyx, rotation)
    return (total / len(group)).astype(np.float32)


def mask_symmetry_error(mask: np.ndarray, group: np.ndarray) -> float:
    """How much a mask breaks a symmetry: 0 if it does not, 1 if some operator moves it off itself.

    The greatest over the operators of Σ |m(R v) − m(v)| / (2 Σ m). Interpolation of a symmetric mask with
    a soft edge leaves about 0.01 to 0.03; an error above 0.1 means the mask is not symmetric.
    """
    if len(group) == 1:
        return 0.0
    if len(mask) > COARSE_BOX:
        mask = np.clip(resample_map(mask, COARSE_BOX), 0, 1)
    total = float(mask.sum(dtype=np.float64))
    errors = [np.abs(_moved(mask, rotation) - mask).sum(dtype=np.float64) / (2 * total) for rotation in group[1:]]
    return float(min(max(errors), 1.0))
