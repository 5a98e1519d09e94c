"""The choices of the setting ``prior``: everything the program knows of each stands here.

A new shape is a class here and its name in records/settings.py (PRIORS). Search, checks of the input, the form, the
report and the pictures ask the shape; none of them compares its name.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import List, Optional, Tuple

import numpy as np

from ..records.motion import LearnedMotion
from ..records.resolved import ResolvedSettings
from ..records.settings import PRIORS, Settings
from .motion_prior import (
    Evidence,
    about_point,
    beyond_doubt,
    bound,
    examine,
    isotropic_covariance,
    learn,
    principal_widths,
)

EXTENT_IN_SIGMA = 3.0
SHORTEST_EXTENT_IN_SIGMA = 2.0
LEARNED_EXTENT_IN_SIGMA = 6.0  # four cut off tails: 1.93° instead of 1.91° where the motion is 8°, in the same time
NARROWEST_RAD, NARROWEST_PX = float(np.deg2rad(3.0)), 1.0  # of a search: nothing is learned at its limits
FREE_EXTENTS = 20.0, 10.0  # degrees, Å
LARGEST_ROTATION_EXTENT_DEG = 90.0
# Rotation s.d. of one image from which alignment is doubtful, in search extents without a prior, else in its widths.
# Measured: where it is 3.8° (`mid --snr 0.02`), poses end 9° off within 20° without a prior, a Gaussian of 7° makes
# them worse than the input's, a learned prior does not; where it is 2.2° (`mid`), all three improve them.
DOUBTFUL_EXTENT, DOUBTFUL_GAUSSIAN, DOUBTFUL_LEARNED = 1 / 6, 0.5, 1.0
TAILS = 7.0  # ν: an excess kurtosis of 2, that of the motions tried (docs/explanation/motion-prior.md)


@dataclass(frozen=True)
class PriorShape:
    """"off": every pose within the search extents is as probable as any other. The other shapes derive from it.

    Attributes
    ----------
    pulls : whether poses far from the input pose are penalised.
    tails : ν of the Student-t that the prior has in the search; 0 for a Gaussian.
    learns : whether each half-set learns the covariance from its poses.
    finds_hinge : whether what is learned tells the point that the sub-volume turns about.
    remedy : what to try where one particle does not determine its pose.
    """

    name: str = "off"
    pulls: bool = False
    tails: float = 0.0
    learns: bool = False
    finds_hinge: bool = False
    remedy: str = "Use a prior, or a larger mask"

    def start(self, settings: Settings, fulcrum_to_mask: np.ndarray, pixel_size: float) -> Optional[np.ndarray]:
        """Covariance Σ₀ (6, 6) of rotation (rad) and displacement (px) of `point` to begin with; None: no prior.
        ``fulcrum_to_mask`` (3,) px."""
        return None

    def point(self, fulcrum: np.ndarray, mask_centre: np.ndarray) -> np.ndarray:
        """(3,) px: the point whose displacement Σ is for."""
        return fulcrum

    def extents(self, settings: Settings) -> Tuple[float, float]:
        """Search extents (degrees, Å) where none are given."""
        return FREE_EXTENTS

    def narrowed(self, resolved: ResolvedSettings, learned: Optional[np.ndarray], mask_to_fulcrum: np.ndarray,
                 extents: Tuple[float, float]) -> Tuple[float, float]:
        """The extents (rad, px at the fulcrum) once a covariance (6, 6) has been learned."""
        return extents

    def learn(self, evidence: Evidence, covariance: np.ndarray, start: np.ndarray) -> Optional[LearnedMotion]:
        """What the images of a half-set tell of the motion; ``start`` is Σ₀."""
        return None

    def doubtful_rotation_deg(self, resolved: ResolvedSettings) -> float:
        """If the rotation of one particle is known no better (s.d. per axis), the alignment is doubtful."""
        return DOUBTFUL_EXTENT * resolved.rotation_extent_deg

    def refusal(self, settings: Settings) -> Optional[Tuple[str, str]]:
        """(problem, remedy) where the prior and re-centring cannot go together."""
        return None

    def warnings(self, settings: Settings) -> List[str]:
        """What goes wrong in practice with this prior, these extents and re-centring."""
        if not recentred(settings):
            return []
        return ["Re-centring without a prior lets poses drift from iteration to iteration. Switch the prior on"]

    def sentence(self, settings: Settings) -> str:
        """For the methods section of a paper."""
        return "No prior was used within the search extents."


@dataclass(frozen=True)
class GaussianPrior(PriorShape):
    """"gaussian": independent in rotation and in the displacement of the fulcrum, with the widths of the settings."""

    name: str = "gaussian"
    pulls: bool = True
    remedy: str = "Use the learned prior, or a larger mask"
    doubtful_share: float = DOUBTFUL_GAUSSIAN

    def start(self, settings: Settings, fulcrum_to_mask: np.ndarray, pixel_size: float) -> Optional[np.ndarray]:
        return isotropic_covariance(settings.prior_rotation_deg, settings.prior_shift_angstrom / pixel_size)

    def extents(self, settings: Settings) -> Tuple[float, float]:
        return (min(EXTENT_IN_SIGMA * settings.prior_rotation_deg, LARGEST_ROTATION_EXTENT_DEG),
                EXTENT_IN_SIGMA * settings.prior_shift_angstrom)

    def doubtful_rotation_deg(self, resolved: ResolvedSettings) -> float:
        return self.doubtful_share * resolved.prior_rotation_deg

    def warnings(self, settings: Settings) -> List[str]:
        warnings = []
        for what, unit, given, width in (
                ("rotation", "°", settings.rotation_extent_deg, settings.prior_rotation_deg),
                ("shift", " Å", settings.shift_extent_angstrom, settings.prior_shift_angstrom)):
            if given is not None and given < SHORTEST_EXTENT_IN_SIGMA * width:
                warnings.append(f"The {what} search extent, {given:g}{unit}, is less than two standard deviations "
                                f"of the prior ({width:g}{unit}). Particles will pile up at the limit of the search. "
                                "Leave the extent empty for three standard deviations")
        return warnings

    def sentence(self, settings: Settings) -> str:
        return (f"A Gaussian prior of {settings.prior_rotation_deg}° and {settings.prior_shift_angstrom} Å (standard "
                "deviations) about the input poses was used.")


@dataclass(frozen=True)
class LearnedPrior(GaussianPrior):
    """"learned": starts as the Gaussian one, and its covariance is learned from the particles (motion_prior.py)."""

    name: str = "learned"
    tails: float = TAILS
    learns: bool = True
    finds_hinge: bool = True
    remedy: str = "Use a larger mask"
    doubtful_share: float = DOUBTFUL_LEARNED
    isotropic: bool = False
    learned_words: str = "covariance of rotation and displacement"

    def start(self, settings: Settings, fulcrum_to_mask: np.ndarray, pixel_size: float) -> Optional[np.ndarray]:
        at_fulcrum = isotropic_covariance(settings.prior_rotation_deg, settings.prior_shift_angstrom / pixel_size)
        return about_point(at_fulcrum, fulcrum_to_mask)

    def point(self, fulcrum: np.ndarray, mask_centre: np.ndarray) -> np.ndarray:
        return mask_centre

    def narrowed(self, resolved: ResolvedSettings, learned: Optional[np.ndarray], mask_to_fulcrum: np.ndarray,
                 extents: Tuple[float, float]) -> Tuple[float, float]:
        """Six principal widths of the learned motion, unless the user fixed the extent.

        Never wider than where the search began: beyond that nothing was ever looked at.
        """
        if learned is None:
            return extents
        (rotation_extent, shift_extent), widths = extents, principal_widths(about_point(learned, mask_to_fulcrum))
        if not resolved.rotation_extent_fixed:
            narrow = max(LEARNED_EXTENT_IN_SIGMA * float(widths[0][0]), NARROWEST_RAD)
            rotation_extent = min(rotation_extent, narrow)
        if not resolved.shift_extent_fixed:
            shift_extent = min(shift_extent, max(LEARNED_EXTENT_IN_SIGMA * float(widths[1][0]), NARROWEST_PX))
        return rotation_extent, shift_extent

    def learn(self, evidence: Evidence, covariance: np.ndarray, start: np.ndarray) -> Optional[LearnedMotion]:
        first = np.array_equal(covariance, start)
        learned = learn(evidence, start, start, self.isotropic, least=not first)
        if not first:
            learned = beyond_doubt(evidence, learned, start, covariance)
        return replace(examine(evidence, learned, start), bound=bound(evidence, learned, start))

    def refusal(self, settings: Settings) -> Optional[Tuple[str, str]]:
        if not recentred(settings):
            return None
        return ("A learned prior learns how far the particles are from their input poses. Measured from the poses of "
                "the last iteration it would shrink in every iteration until nothing may move",
                "Switch re-centring off, or use the gaussian prior")

    def sentence(self, settings: Settings) -> str:
        return (f"The prior about the input poses was a Gaussian; its {self.learned_words} was learned from the "
                "particles of each half-set.")


def recentred(settings: Settings) -> bool:
    return settings.recenter_rotations or settings.recenter_shifts


_SHAPES = {shape.name: shape for shape in (
    PriorShape(), GaussianPrior(), LearnedPrior(),
    LearnedPrior("learned-isotropic", finds_hinge=False, isotropic=True, learned_words="two widths"))}
assert tuple(_SHAPES) == PRIORS


def prior_shape(name: str) -> PriorShape:
    """The shape of that name; `Settings` has made sure that there is one."""
    return _SHAPES[name]
