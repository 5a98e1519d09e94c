"""What an iteration leaves behind: iteration.json of the merge step, half_H.json of each align step."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, NamedTuple, Optional, Tuple

from .motion import MotionSummary

FSC_THRESHOLD = 0.143
"""Of two half-maps: Rosenthal & Henderson 2003, doi:10.1016/j.jmb.2003.07.013."""

TRUTH_THRESHOLD = 0.5
"""Of a map to the truth; of half-maps it is the older threshold, given beside 0.143."""


class Curve(NamedTuple):
    """One of the FSC curves: its name in records, its column in fsc.star, its title in pictures."""

    name: str
    label: str
    title: str


FSC_CURVES = (  # "lr" where RELION has no label
    Curve("unmasked", "rlnFourierShellCorrelationUnmaskedMaps", "No mask"),
    Curve("spherical", "lrFourierShellCorrelationSpherical", "Spherical"),
    Curve("loose", "lrFourierShellCorrelationLoose", "Loose"),
    Curve("tight", "rlnFourierShellCorrelationMaskedMaps", "Tight"),
    Curve("corrected", "rlnFourierShellCorrelationCorrected", "Corrected"))
RANDOMISED = Curve("randomised", "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps", "Random phases")
STANDARD_ERROR = Curve("corrected_error", "lrFourierShellCorrelationCorrectedError", "Standard error")
CURVE_NAMES = tuple(curve.name for curve in FSC_CURVES)


@dataclass(frozen=True)
class PoseChange:
    """Medians over all particles: change of pose from the input and since the last iteration; the rotation since the
    last also in posterior standard deviations. Shifts are those of the projected fulcrum."""

    rotation_median_deg: float
    shift_median_angstrom: float
    rotation_since_last_median_deg: float = 0.0
    shift_since_last_median_angstrom: float = 0.0
    rotation_since_last_median_sigma: float = 0.0


@dataclass(frozen=True)
class IterationRecord:
    """iteration.json. Iteration 0 is the input.

    Attributes
    ----------
    resolution_angstrom, resolution_at_half_angstrom : by name of FSC_CURVES, at FSC 0.143 and 0.5.
    resolution_range_angstrom : the corrected curve plus and minus its standard error, at 0.143; finer first.
    align_resolution_angstrom : how far the next alignment goes.
    reference_fsc : (N // 2 + 1,) between the two references, in the mask.
    pose_change : None for the input.
    at_rotation_limit, at_shift_limit : share of the particles.  insertions_mean : poses an image was inserted at.
    best_iteration, converged, stop_reason : the decision (merge/convergence.py).
    share_not_aligned, share_empty : of the particles by their verdicts; None where there are too few to judge.
    motion : what a learned prior found; None without one.
    advice : sentences by topic on the state after this iteration.  warnings : those that no earlier one had.
    files : what the step wrote before this record: name in the run folder → bytes.
    """

    iteration: int
    resolution_angstrom: Dict[str, float]
    resolution_at_half_angstrom: Dict[str, float] = field(default_factory=dict,
                                                          metadata={"json": "resolution_0.5_angstrom"})
    resolution_range_angstrom: Tuple[float, ...] = ()
    align_resolution_angstrom: float = 0.0
    reference_fsc: Tuple[float, ...] = ()
    pose_change: Optional[PoseChange] = None
    at_rotation_limit: float = 0.0
    at_shift_limit: float = 0.0
    insertions_mean: float = 0.0
    share_not_aligned: Optional[float] = None
    share_empty: Optional[float] = None
    best_iteration: int = 0
    converged: bool = False
    stop_reason: str = ""
    motion: Optional[MotionSummary] = None
    advice: Dict[str, str] = field(default_factory=dict)
    warnings: Tuple[str, ...] = ()
    files: Dict[str, int] = field(default_factory=dict)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def resolution(self, curve: str = "corrected", threshold: float = FSC_THRESHOLD) -> Optional[float]:
        """Å at one of the two thresholds; None where an old run has no such curve."""
        found = self.resolution_angstrom if threshold == FSC_THRESHOLD else self.resolution_at_half_angstrom
        return found.get(curve)


@dataclass(frozen=True)
class NullMoments:
    """What images of nothing have told so far of z, less what is expected of a search of its size (align/nulls.py).

    Attributes
    ----------
    drawn : how many of each kind.  weight : what they count, earlier ones less.
    others, noise : mean and mean square, of particles at the pose of another one, and of pure noise.
    """

    drawn: int
    weight: float
    others: Tuple[float, ...]
    noise: Tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """Three kinds of particles in a half-set, and how they are told apart (align/verdicts.py).

    Attributes
    ----------
    share_aligned, share_misaligned, share_empty : of the particles.
    mean, slope, sigma : z of the aligned ones at a model of this ``strength``, its change with it, and its s.d.
    others, noise : mean and s.d. of z of particles at the pose of another one, and of pure noise.
    shift : how much higher z is of particles that are in the reference.
    nulls : what ``others`` and ``noise`` come from; None in old runs.
    """

    share_aligned: float
    share_misaligned: float
    share_empty: float
    mean: float
    slope: float
    strength: float
    sigma: float
    others: Tuple[float, ...]
    noise: Tuple[float, ...]
    shift: float = 0.0
    nulls: Optional[NullMoments] = None

    @property
    def shares(self) -> Tuple[float, float, float]:
        return self.share_aligned, self.share_misaligned, self.share_empty


@dataclass(frozen=True)
class HalfRecord:
    """half_H.json: what an align step did and what it took; ``files`` as in `IterationRecord`; ``verdict``: None of too
    few particles. Device, seconds and memory are those of the first of ``processes``."""

    iteration: int
    half: int
    particles: int = 0
    processes: int = 1
    verdict: Optional[Verdict] = None
    phase_seconds: Dict[str, float] = field(default_factory=dict)
    device: str = ""
    files: Dict[str, int] = field(default_factory=dict)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0

