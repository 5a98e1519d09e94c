"""What the last steps leave in RUN/final beside maps and particles, and the report of a run."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple

from .iteration import FSC_THRESHOLD, HalfRecord, IterationRecord
from .motion import PrincipalMotion
from .run_input import RunInput
from .settings import Settings


@dataclass(frozen=True)
class Rung:
    """One mask of the ladder.

    Attributes
    ----------
    mask : in words.  volume_angstrom3 : Å³.
    resolution_angstrom, uncorrected_angstrom : Å at FSC 0.143, corrected and not.
    mask_correlation : F_n, the mask's own FSC, at that resolution.
    """

    mask: str
    volume_angstrom3: float
    resolution_angstrom: float
    uncorrected_angstrom: float
    mask_correlation: float


@dataclass(frozen=True)
class MaskLadder:
    """mask_ladder.json: the mask in use first, ever tighter; ``tightest``: index of the last that adds no correlation
    of its own, whose resolution is ``resolution_angstrom``."""

    rungs: Tuple[Rung, ...]
    tightest: int
    resolution_angstrom: float


@dataclass(frozen=True)
class Sharpening:
    """sharpening.json: B-factors in Å², and the line fitted to the Guinier plot."""

    b_factor_applied: float
    b_factor_guinier: float
    guinier_correlation: float
    guinier_shells: int


@dataclass(frozen=True)
class SelectionEffect:
    """Of a pair of half-maps inside the mask: Å at FSC 0.143, not corrected, and the mean of the FSC; and how much
    better its particles fit the reference of their own half-set than the other's, in standard deviations of noise."""

    resolution_angstrom: float
    mean_fsc: float
    own_advantage: float = 0.0


@dataclass(frozen=True)
class Selection:
    """selection.json: how many particles were kept, how many of those are expected to be wrong (a share), and the
    half-maps of "all", of all "weighted" by their probability, of those "kept" and of as many at "random"; the standard
    error of own_advantage of as many at random, its standard deviation from particle to particle, and whether those
    kept agree with the noise of their own reference (finish/cross_half.py). not_judged: of those kept, in half-sets
    that were too small to be judged."""

    kept: int
    left_out: int
    expected_wrong: float
    effect: Dict[str, SelectionEffect]
    own_advantage_error: float = 0.0
    own_advantage_spread: float = 0.0
    prefers_noise: bool = False
    not_judged: int = 0

    @property
    def sentence(self) -> str:
        """What the selection did, for the log, the summary and the report."""
        unseen = "" if not self.not_judged else (
            f": {self.not_judged} of them could not be judged, for their half-set is too small")
        if not self.left_out:
            return f"the selection keeps all particles{unseen}"
        share = 100 * self.left_out / (self.kept + self.left_out)
        text = f"{self.left_out} particles ({share:.0f} %) are left out of the selection"
        if not self.effect:
            return f"{text}, and {self.kept} are kept: too few for two half-maps. Ask for less"
        if unseen:
            text += f", and {self.kept} are kept{unseen}"
        every, kept, random = (self.effect[choice] for choice in ("all", "kept", "random"))
        text += (f"; about {100 * self.expected_wrong:.1f} % of those kept are wrong. Half-maps of the particles kept "
                 f"agree to {kept.resolution_angstrom:.2f} Å, of all to {every.resolution_angstrom:.2f} Å, of as many "
                 f"chosen at random to {random.resolution_angstrom:.2f} Å (FSC {FSC_THRESHOLD} in the mask, not "
                 "corrected)")
        if kept.mean_fsc <= every.mean_fsc:
            text += ". The half-maps do not agree better with the selection"
        text += (". Fit to the own half-set's reference less that to the other's, in standard deviations of noise: "
                 f"{kept.own_advantage:.3f} in those kept, {every.own_advantage:.3f} in all, "
                 f"{random.own_advantage:.3f} ± {self.own_advantage_error:.3f} in as many at random")
        if self.prefers_noise:
            return text + (". The selection prefers particles that agree with the noise of their own reference, and "
                           "their FSC must not be believed. Keep more particles, or use all of them with their weights")
        return text + ". The selection does not prefer particles that agree with the noise of their own reference"


SEEN_BY_NONE = 0.005
"""Share of the directions from which on it is said that no particle sees them."""


@dataclass(frozen=True)
class Directions:
    """directions.json (maps/directions.py): cFAR; SCF, SCF* and the share of directions that no view sees; the best and
    the worst resolution in a cone, the worst cone's direction (x, y, z), and a sentence ("" of an even map)."""

    cfar: float
    scf: float
    scf_star: float
    unseen: float
    best_angstrom: float
    worst_angstrom: float
    worst_direction: Tuple[float, ...]
    advice: str = ""

    @property
    def beside(self) -> str:
        """Stands behind the resolution to report of a map that is not equally good in all directions."""
        if not self.advice:
            return ""
        text = f"; by direction {self.best_angstrom:.1f} to {self.worst_angstrom:.1f} Å"
        return text + (f", and {100 * self.unseen:.0f} % of the directions are seen by no particle"
                       if self.unseen > SEEN_BY_NONE else "")


@dataclass(frozen=True)
class SecondCopy:
    """second_copy.json (finish/second_copy.py): whether the map holds the sub-volume twice, the rotation and the
    displacement between both, by how many standard deviations the likeliest such pair stands out, the least rotation
    that was asked for (0 where nothing was), and a sentence ("" where there is none). Of a copy that was found (or
    suspected, before its particles are counted) its motion about the mask's centre, rotation vector in rad and
    displacement in px; and the share of the particles that are moved so, with its standard error, where it could be
    counted (finish/second_state.py)."""

    found: bool
    rotation_deg: float
    displacement_angstrom: float
    deviations: float
    least_rotation_deg: float
    advice: str = ""
    rotation_vector: Tuple[float, ...] = ()
    displacement_px: Tuple[float, ...] = ()
    share: Optional[float] = None
    share_error: Optional[float] = None


@dataclass(frozen=True)
class PoseBlur:
    """pose_blur.json: κ(k) of all uncertain poses, the FSC to the truth expected with it, the half-map FSC that would
    mean the same (each (N // 2 + 1,)), the resolution at which the former falls to 0.5, the coarser of that and the
    half-maps', how fine and how coarse that may be by the error of the FSC (() in a run of an older version), and a
    sentence ("" where both are alike)."""

    expected_resolution_angstrom: float
    resolution_to_report_angstrom: float
    range_to_report_angstrom: Tuple[float, ...] = ()
    expected_map_to_truth: Tuple[float, ...] = ()
    expected_fsc: Tuple[float, ...] = ()
    kappa: Tuple[float, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class PartOfMask:
    """A cell of the density in the mask (control/mask_cells.py).

    Attributes
    ----------
    centre_px : x, y, z from the corner of the box.  share : of the density in the mask.
    variance_angstrom2, variance_error_angstrom2 : of its place, per axis, and the standard error; noise may make it
        negative.
    resolution_angstrom : about, by the resolution to report and the blur of a motion that is seen.
    """

    centre_px: Tuple[float, ...]
    share: float
    variance_angstrom2: float
    variance_error_angstrom2: float
    resolution_angstrom: Optional[float] = None


@dataclass(frozen=True)
class RestControl:
    """rest_control.json: the rest of the particle, aligned as the mask was, as a control (control/rest_control.py).

    Attributes
    ----------
    verdict : one of REST_VERDICTS.  particles : of both half-sets that were aligned.
    motion : of the mask's poses against those of the rest.  moving : of the half of the mask's density that moves most.
    displacement_angstrom, displacement_error_angstrom, detectable_angstrom : r.m.s. per axis of the mask's density by
        ``motion``, its standard error, and the least that so many images would show.
    followed, followed_error : the part of the motion of the ``moving`` half that the mask's poses hold.
    still_share : share of the density in the mask that does not move with the domain; None where it is not known.
    parts : of the mask; their motion is against the rest of the particle where the mask does not move, and against the
        poses found where it does.  parts_particles : that were looked at.
    resolution_by_part_angstrom : that 10, 50 and 90 % of the density in the mask reach; () where the parts do
        not differ.
    sentence : what was found.  advice : what to do, "" where nothing is wrong.
    """

    verdict: str
    particles: int = 0
    motion: Optional[PrincipalMotion] = None
    moving: Optional[PrincipalMotion] = None
    displacement_angstrom: Optional[float] = None
    displacement_error_angstrom: Optional[float] = None
    detectable_angstrom: Optional[float] = None
    followed: Optional[float] = None
    followed_error: Optional[float] = None
    still_share: Optional[float] = None
    parts: Tuple[PartOfMask, ...] = ()
    parts_particles: int = 0
    resolution_by_part_angstrom: Tuple[float, ...] = ()
    sentence: str = ""
    advice: str = ""

    @property
    def doubtful(self) -> bool:
        """Whether the resolution may be that of density that does not move."""
        return self.verdict in ("consensus", "mixed")

    @property
    def remark(self) -> str:
        """What stands behind the resolution to report."""
        parts = BY_PART.format(*self.resolution_by_part_angstrom) if self.resolution_by_part_angstrom else ""
        return parts + (DOUBTFUL if self.doubtful else "")


REST_VERDICTS = ("apart", "still", "consensus", "mixed", "unclear", "not done")
"""The mask moves by itself; neither the mask nor a part of it moves; its poses are those of the rest; a part of its
density moves more than its poses do; the images are too few to tell; there is no rest to align, or no image of it."""
DOUBTFUL = "; see the advice: it may be that of density that does not move with the domain"
"""Stands behind the resolution to report of a doubtful run."""
BY_PART = "; 10, 50 and 90 % of the density in the mask reach about {:.2f}, {:.2f} and {:.2f} Å"
"""Stands there where the parts of the mask differ."""


@dataclass(frozen=True)
class NullTest:
    """What one test found.

    Attributes
    ----------
    name, title : for programs and for people.
    value, low, high : the number and its expected range, in ``unit``; value is None where the test could not be done,
        high where anything from ``low`` on is expected.
    passed : None where the test could not be done.  verdict : one sentence.
    """

    name: str
    title: str
    value: Optional[float]
    low: float
    high: Optional[float]
    unit: str
    passed: Optional[bool]
    verdict: str


@dataclass(frozen=True)
class Validation:
    """validation.json: what the null tests found in a subset of the particles of one iteration."""

    iteration: int
    seed: int
    tests: Tuple[NullTest, ...]
    particles_per_half: Tuple[int, ...] = ()
    advice: Tuple[str, ...] = ()
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0


@dataclass(frozen=True)
class Report:
    """report.json, and what ``engine report`` prints of a run that is not finished.

    Attributes
    ----------
    iterations, halves, input, settings : every record there is.
    wall_seconds, cpu_seconds : summed over the steps, which may have run side by side.
    peak_memory_mb : of the largest step.
    warnings : on the input.  advice : sentences on the best iteration and the results.
    final_resolution_angstrom : of the results, before the end of the best iteration; empty before the first.
    expected_truth_resolution_angstrom, resolution_to_report_angstrom : of `PoseBlur`; None before the end.
    range_to_report_angstrom : of `PoseBlur`; empty before the end.
    mask_ladder, sharpening, directions, second_copy, rest_control : None before the end.  selection : None without one.
    validation : () without one.
    files : what finish wrote.
    """

    iterations: Tuple[IterationRecord, ...] = ()
    halves: Tuple[HalfRecord, ...] = ()
    input: Optional[RunInput] = None
    settings: Optional[Settings] = None
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    warnings: Tuple[str, ...] = ()
    advice: Tuple[str, ...] = ()
    final_resolution_angstrom: Dict[str, float] = field(default_factory=dict)
    expected_truth_resolution_angstrom: Optional[float] = None
    resolution_to_report_angstrom: Optional[float] = None
    range_to_report_angstrom: Tuple[float, ...] = ()
    mask_ladder: Optional[MaskLadder] = None
    directions: Optional[Directions] = None
    second_copy: Optional[SecondCopy] = None
    selection: Optional[Selection] = None
    rest_control: Optional[RestControl] = None
    sharpening: Optional[Sharpening] = None
    validation: Tuple[NullTest, ...] = ()
    files: Dict[str, int] = field(default_factory=dict)
