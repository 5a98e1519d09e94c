"""The poses of a half-set after an iteration.

The tables of millions of particles are what an iteration takes of memory beside its maps. So a covariance is kept as
its upper triangle in float32 (`Covariances`), what only people look at is float32, and tables of an earlier iteration
are read from their file by rows (io/stored.py). A column is then no array, but can be indexed and becomes one.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import numpy as np

TRIANGLE = np.triu_indices(5)


def packed(matrices: np.ndarray) -> np.ndarray:
    """(m, 15) float32, the upper triangles of symmetric matrices (m, 5, 5)."""
    triangles: np.ndarray = matrices[:, TRIANGLE[0], TRIANGLE[1]].astype(np.float32)
    return triangles


class Covariances:
    """A column of covariances (m, 5, 5) float32 of which the upper ``triangles`` (m, 15) are in memory."""

    dtype = np.dtype(np.float32)

    def __init__(self, triangles: np.ndarray):
        self.triangles = triangles
        self.shape = (len(triangles), 5, 5)

    def __len__(self) -> int:
        return len(self.triangles)

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, tuple):
            found: np.ndarray = self[index[0]][(slice(None), *index[1:])]
            return found
        triangles = self.triangles[index]
        matrices = np.empty(triangles.shape[:-1] + (5, 5), self.dtype)
        matrices[..., TRIANGLE[0], TRIANGLE[1]] = matrices[..., TRIANGLE[1], TRIANGLE[0]] = triangles
        return matrices

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


@dataclass(frozen=True)
class PoseTable:
    """Poses of the m particles of one half-set after an iteration (what half_H_poses.npz holds).

    Attributes
    ----------
    row : (m,) int64, row in the input table.
    rotation, shift_px : the poses, as in Particles.
    rotation_change_deg : (m, 3) float32, w = Log(R0ᵀ R) in degrees, relative to the INPUT pose.
    shift_change_angstrom : (m, 2) float32, displacement of the projected fulcrum relative to the INPUT pose.
    covariance : (m, 5, 5) float32, posterior covariance of (w in radians, displacement of the projected mask
        centre in px), as if the reference had no noise: what the search goes by.
    pose_error_covariance : (m, 5, 5) float32, of the errors, those made by the reference's noise (reference_errors.py)
        and by other modes (marginalize.py) included: what is reported.
    log_likelihood : (m,) of the best pose, relative to no signal, less what its own noise in the reference adds.
    modes : (m,) int32, modes kept.  insertions : (m,) int32, poses at which the image was inserted.
    at_rotation_limit, at_shift_limit : (m,) bool.
    scale : (m,) grey scale of each particle, mean 1; None where it is not fitted.
    gain : (m,) z of verdicts.py, how well the best pose fits, in standard deviations of noise.
    probability_aligned, probability_empty : (m,) of verdicts.py; the rest is misaligned. None of too few particles.
    """

    row: np.ndarray
    rotation: np.ndarray
    shift_px: np.ndarray
    rotation_change_deg: np.ndarray
    shift_change_angstrom: np.ndarray
    covariance: np.ndarray
    pose_error_covariance: np.ndarray
    log_likelihood: np.ndarray
    modes: np.ndarray
    insertions: np.ndarray
    at_rotation_limit: np.ndarray
    at_shift_limit: np.ndarray
    scale: Optional[np.ndarray] = None
    gain: Optional[np.ndarray] = None
    probability_aligned: Optional[np.ndarray] = None
    probability_empty: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def column_names(cls) -> Tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(cls))

    def columns(self) -> Dict[str, np.ndarray]:
        """The columns there are, by name."""
        return {name: getattr(self, name) for name in self.column_names() if getattr(self, name) is not None}
