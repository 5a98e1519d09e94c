"""What the images of a half-set add up to.

The sums of two parts of a half-set can be added. A + B is what one worker would have got from all of their images:
up to the order of floating-point additions, and to the last bit where the map is summed in integers of one scale
(fixed_point.py).
"""
from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from ..kernels.device import array_module, to_host
from ..kernels.fixed_point import FixedPointSums
from ..model.pixels import half_plane_frequencies
from ..model.pose import exp_map, log_map, project
from ..motion.motion_prior import Evidence, joined_evidence
from ..records.particles import Particles
from .search import Modes
from .search_plan import SearchPlan

Array = Any
PRIOR_IMAGES = 50  # a group leans on the mean of all groups with the weight of so many images
CLIP = 0.2, 5.0  # × median: what is outside is no particle
SMALLEST_VARIANCE = 1e-6


class NoiseSums:
    """Collects the residual power of images by optics group and shell, in float64: σ²(shell) = E|N(k)|².

    ``noise_power`` (groups, M + 1) is the σ² the images' matched filters were made with.
    """

    def __init__(self, particles: Particles, noise_power: np.ndarray):
        self.max_shell = noise_power.shape[1] - 1
        kx, ky = half_plane_frequencies(self.max_shell)
        self.group, self.noise_power = particles.optics_group, noise_power
        self.grey_scale = np.array([optics.grey_scale for optics in particles.optics])
        shell = np.rint(np.hypot(kx, ky)).astype(np.int64)
        self.counted = (shell <= self.max_shell) & ((kx > 0) | (ky > 0))
        self.shell = shell[self.counted]
        self.pixels = np.maximum(np.bincount(self.shell, minlength=self.max_shell + 1), 1)
        self.sums = np.zeros(noise_power.shape)
        self.images = np.zeros(len(noise_power))

    def add(self, index: np.ndarray, power: Array, change: Array, change_shell: np.ndarray) -> None:
        """Add a batch: power |X|² (n, 2M + 1, M + 1), and ``change`` (n, K) = W|Y|² − 2 Re(conj(Z) Y) at
        pixels of shells ``change_shell``; with W = 2 C²/σ², ½ σ² change = |X − C Y|² − |X|²."""
        for group in np.unique(self.group[index]):
            mine = self.group[index] == group
            chosen = slice(None) if mine.all() else array_module(power).asarray(np.flatnonzero(mine))
            total = to_host(power[chosen].sum(axis=0, dtype=np.float64))[self.counted]
            self.sums[group] += np.bincount(self.shell, total, self.max_shell + 1)
            total = to_host(change[chosen].sum(axis=0, dtype=np.float64))
            change_sum = np.bincount(change_shell, total, self.max_shell + 1)
            self.sums[group] += 0.5 * self.noise_power[group] * change_sum
            self.images[group] += mine.sum()

    def power(self) -> np.ndarray:
        """σ² (groups, M + 1)."""
        unit = self.grey_scale[:, None] ** 2  # groups lean on each other at one grey scale
        overall = (self.sums / unit).sum(axis=0) / self.images.sum()
        mean = (self.sums + PRIOR_IMAGES * unit * overall) / (self.images[:, None] + PRIOR_IMAGES) / self.pixels
        mean[:, 0] = mean[:, 1]  # no image of the half-plane without DC has shell 0
        result: np.ndarray = mean
        return result

    def __add__(self, other: "NoiseSums") -> "NoiseSums":
        total = copy.copy(self)
        total.sums, total.images = self.sums + other.sums, self.images + other.images
        return total


@dataclass
class HalfSums:
    """What has been added up of the images of one half-set, in the order of the images.

    Attributes
    ----------
    accumulator : of `insert_slices`, (nx, nz, ny, 3) float32 or integers.
    weight_sum : Σ C²/σ² (2M + 1, M + 1) float64.  noise : of the residuals.
    tables : columns of the pose table, by batch.  matches : (2, n) of `model_match`, by batch.
    evidence : of the motion, by batch; empty where nothing is learned.
    """

    accumulator: Union[Array, FixedPointSums]
    weight_sum: Array
    noise: NoiseSums
    tables: List[Dict[str, np.ndarray]] = field(default_factory=list)
    matches: List[np.ndarray] = field(default_factory=list)
    evidence: List[Evidence] = field(default_factory=list)

    def __add__(self, other: "HalfSums") -> "HalfSums":
        return HalfSums(self.accumulator + other.accumulator, self.weight_sum + other.weight_sum,
                        self.noise + other.noise, self.tables + other.tables, self.matches + other.matches,
                        self.evidence + other.evidence)

    def columns(self) -> Dict[str, np.ndarray]:
        """Columns of the pose table (m, …) of all images."""
        return {name: np.concatenate([table[name] for table in self.tables]) for name in self.tables[0]}

    def all_evidence(self) -> Optional[Evidence]:
        return joined_evidence(self.evidence) if self.evidence else None


# ---------------------------------------------------------------- the pose table

@dataclass(frozen=True)
class BestPoses:
    """The best pose of n images.

    Attributes
    ----------
    index : (n,) of the particles.  best : the modes.  owner : (m,) image of every mode that was kept.
    u0 : (n, 2) where the search of the projected mask centre began, px.
    insertions : (n,) poses each image was inserted at.  pose_error_covariance : (n, 5, 5).
    """

    index: np.ndarray
    best: Modes
    owner: np.ndarray
    u0: np.ndarray
    insertions: np.ndarray
    pose_error_covariance: np.ndarray


def pose_columns(particles: Particles, found: BestPoses, plan: SearchPlan) -> Dict[str, np.ndarray]:
    """The columns of records.PoseTable (but ``row``) for one batch."""
    best, index = found.best, found.index
    shift = found.u0 + best.shift - project(best.rotation, plan.centre)
    input_rotation, input_shift = particles.rotation[index], particles.shift_px[index]
    w = log_map(np.swapaxes(input_rotation, 1, 2) @ best.rotation)
    moved = shift + project(best.rotation, plan.fulcrum) - input_shift - project(input_rotation, plan.fulcrum)
    rotation0 = best.rotation @ np.swapaxes(exp_map(best.w), 1, 2)
    at_fulcrum = best.shift + project(best.rotation - rotation0, plan.fulcrum - plan.centre)
    return dict(
        rotation=best.rotation, shift_px=shift, rotation_change_deg=np.rad2deg(w),
        shift_change_angstrom=moved * particles.pixel_size,
        covariance=np.linalg.inv(best.precision + 1e-9 * np.eye(5)),
        pose_error_covariance=found.pose_error_covariance.astype(np.float32), log_likelihood=best.log_likelihood,
        modes=np.bincount(found.owner, minlength=len(index)), insertions=found.insertions,
        at_rotation_limit=np.linalg.norm(best.w, axis=1) > 0.98 * plan.rotation_extent,
        at_shift_limit=np.linalg.norm(at_fulcrum, axis=1) > 0.98 * plan.shift_extent)


# ---------------------------------------------------------------- grey scales

def fitted_scales(cross: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """The grey scale α (n,) float64 of each particle, from cross (n,) and energy (n,) at its best pose and scale 1.

    With the whitened image X and model Y, cross = Re⟨X, Y⟩ and energy = |Y|², the likelihood of a scale α is a
    Gaussian of mean cross/energy and variance 1/energy. With a Gaussian prior of mean m and variance v,

        α = (cross + m/v) / (energy + 1/v),      then clipped to [0.2, 5] × median, then mean 1,

    m and v from all particles of the half-set by the method of moments (DerSimonian & Laird 1986,
    doi:10.1016/0197-2456(86)90046-2): where the scales scatter no more than noise makes them, all are 1.
    """
    energy = np.maximum(energy, 1e-12)
    alone = cross / energy
    total = energy.sum()
    mean = float((energy * alone).sum() / total)
    scatter = float((energy * (alone - mean) ** 2).sum())
    excess = scatter - (len(energy) - 1)
    variance = max(excess / max(total - float((energy ** 2).sum()) / total, 1e-12), SMALLEST_VARIANCE)
    scale = (cross + mean / variance) / (energy + 1 / variance)
    middle = float(np.median(scale))
    if middle <= 0:  # nothing of the model in the images: no scale means anything
        return np.ones(len(scale))
    scale = np.clip(scale, CLIP[0] * middle, CLIP[1] * middle)
    result: np.ndarray = scale / scale.mean()
    return result


def refitted_scales(matches: Sequence[np.ndarray], last: Optional[np.ndarray]) -> np.ndarray:
    """Scales (m,) of a half-set from batches (2, n) of the sums of `align.model_match`, made with the ``last`` scales
    in Z and W; None: ones."""
    cross, energy = np.concatenate(matches, axis=1).astype(np.float64)
    last = np.ones(len(cross)) if last is None else last
    return fitted_scales(cross / last, energy / last ** 2)
