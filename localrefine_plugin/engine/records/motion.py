"""What a half-set tells of the motion of the sub-volume."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

import numpy as np


@dataclass(frozen=True)
class LearnedMotion:
    """What one half-set tells of the motion, all about the mask centre, in (w in rad, d in px).

    Attributes
    ----------
    covariance : Σ (6, 6).
    error : (21, 21) covariance of the symmetric A (upper triangle, row by row) in Σ' = L exp(A) Lᵀ, Σ = L Lᵀ:
        how uncertain Σ is.
    mean, mean_error : (6,) the mean motion and its covariance (6, 6).
    along_axes : (n, 2) of each particle, its motion along the first principal axis of rotation and along that of
        displacement, divided by what their standard deviation would be if the motion were Gaussian.
    counts : (n,) the probability that a particle is none of the junk.
    """

    covariance: np.ndarray
    error: np.ndarray
    mean: np.ndarray
    mean_error: np.ndarray
    along_axes: np.ndarray
    counts: np.ndarray

    def columns(self) -> Dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}
