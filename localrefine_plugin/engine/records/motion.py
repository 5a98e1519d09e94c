"""What a half-set tells of the motion of the sub-volume, as arrays and as numbers for people."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple

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
    probability_not_junk : (n,) of each particle.
    bound : (2,) widths of rotation and displacement that the images exclude; NaN where nobody asked.
    """

    covariance: np.ndarray
    error: np.ndarray
    mean: np.ndarray
    mean_error: np.ndarray
    along_axes: np.ndarray
    probability_not_junk: np.ndarray
    bound: np.ndarray = field(default_factory=lambda: np.full(2, np.nan))

    def columns(self) -> Dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class HingeSummary:
    """The point a motion turns about, and how well it is known.

    Attributes
    ----------
    point_px, point_angstrom : x, y, z from the corner of the box.  error_angstrom : along x, y, z.
    determined : in how many directions it is.
    axis : the direction along which it is not, if that is one (the motion turns about one axis; the point given is
        then the one nearest to the centre of the mask); else None.
    explained : share of the displacement² at the centre of the mask that turning about the point accounts for.
    displacement_widths_angstrom : (3,) at the point.
    """

    point_px: Tuple[float, ...]
    point_angstrom: Tuple[float, ...]
    error_angstrom: Tuple[float, ...]
    determined: int
    axis: Optional[Tuple[float, ...]]
    explained: float
    displacement_widths_angstrom: Tuple[float, ...]

    @property
    def known(self) -> bool:
        """Whether it is a point or an axis, rather than anywhere."""
        return self.determined >= 2


@dataclass(frozen=True)
class PrincipalMotion:
    """A motion in degrees, Å and px from the corner of the box. Errors are standard deviations.

    Attributes
    ----------
    rotation_widths_deg, displacement_widths_angstrom : (3,) standard deviations along the principal axes, largest
        first, the latter at the centre of the mask.  rotation_axes, displacement_axes : (3, 3), a row per axis.
    hinge : None where the prior is isotropic.
    mean_rotation_deg, mean_displacement_angstrom : (3,).  mean_chi2 : of the mean, per degree of freedom.
    excess_kurtosis, peaks : of "rotation" and "displacement" along their first axis, in standard deviations, without
        the junk.
    junk_share : share of the particles that lie anywhere in the search rather than in the motion.
    excluded_rotation_deg, excluded_displacement_angstrom : widths that the images would show (motion_prior.bound); None
        of a motion that older versions learned.
    """

    rotation_widths_deg: Tuple[float, ...]
    rotation_widths_deg_error: Tuple[float, ...]
    rotation_axes: Tuple[Tuple[float, ...], ...]
    displacement_widths_angstrom: Tuple[float, ...]
    displacement_widths_angstrom_error: Tuple[float, ...]
    displacement_axes: Tuple[Tuple[float, ...], ...]
    hinge: Optional[HingeSummary]
    mean_rotation_deg: Tuple[float, ...]
    mean_displacement_angstrom: Tuple[float, ...]
    mean_chi2: float
    excess_kurtosis: Dict[str, float]
    peaks: Dict[str, Tuple[float, ...]]
    junk_share: float
    excluded_rotation_deg: Optional[float] = None
    excluded_displacement_angstrom: Optional[float] = None


@dataclass(frozen=True)
class MotionSummary:
    """The key "motion" of iteration.json: the motion of each half-set, and pooled for display; ``words`` are sentences
    on the pooled motion."""

    pooled: PrincipalMotion
    half_1: Optional[PrincipalMotion] = None
    half_2: Optional[PrincipalMotion] = None
    words: Tuple[str, ...] = ()

    def of_half(self, half: int) -> Optional[PrincipalMotion]:
        return self.half_1 if half == 1 else self.half_2
