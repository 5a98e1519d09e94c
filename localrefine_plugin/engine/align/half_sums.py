"""What the images of a half-set add up to.

Everything that is summed over images is summed in 64-bit integers (fixed_point.py), and everything else is known of
each image by itself: the sums of a half-set have the same bits whoever adds them up, in whatever parts and order.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Union

import numpy as np

from ..kernels.device import array_module, to_host
from ..kernels.fixed_point import exact_sums
from ..model.pixels import half_plane_frequencies
from ..model.pose import exp_map, log_map, project
from ..motion.motion_prior import Evidence, joined_evidence
from ..records.particles import Particles
from ..records.poses import packed
from .modes import Modes
from .search_plan import SearchPlan

Array = Any
PRIOR_IMAGES = 50  # a group leans on the mean of all groups with the weight of so many images
POWER_BITS = 26  # of powers in units of the noise's: their sums over 10⁷ images of 600² px stay below 2⁶³
CLIP = 0.2, 5.0  # × median: what is outside is no particle
SMALLEST_VARIANCE = 1e-6


class NoiseSums:
    """Collects the residual power of images by optics group and shell: σ²(shell) = E|N(k)|².

    ``noise_power`` (groups, M + 1) is the σ² the images' matched filters were made with, and the unit of the sums.
    """

    def __init__(self, particles: Particles, noise_power: np.ndarray):
        self.max_shell = noise_power.shape[1] - 1
        kx, ky = half_plane_frequencies(self.max_shell)
        self.noise_power = noise_power
        self.grey_scale = np.array([optics.grey_scale for optics in particles.optics])
        shell = np.rint(np.hypot(kx, ky)).astype(np.int64)
        self.plane_shell = np.minimum(shell, self.max_shell).ravel()
        self.counted = (shell <= self.max_shell) & ((kx > 0) | (ky > 0))
        self.shell = shell[self.counted]
        self.pixels = np.maximum(np.bincount(self.shell, minlength=self.max_shell + 1), 1)
        self.exponent = POWER_BITS - np.ceil(np.log2(noise_power)).astype(int)
        self.power_sums, self.change_sums = (np.zeros(noise_power.shape, np.int64) for _ in range(2))
        self.images = np.zeros(len(noise_power))

    def add(self, group_of: np.ndarray, power: Array, change: Array, change_shell: np.ndarray) -> None:
        """Add a batch of images of these optics groups (n,): power |X|² (n, 2M + 1, M + 1), and ``change`` (n, K) =
        W|Y|² − 2 Re(conj(Z) Y) at pixels of shells ``change_shell``; with W = 2 C²/σ², ½ σ² change =
        |X − C Y|² − |X|²."""
        xp = array_module(power)
        change_scale = xp.asarray(np.full(len(change_shell), 2.0 ** POWER_BITS))
        groups, sums = np.unique(group_of), []
        for group in groups:
            mine = group_of == group
            chosen = slice(None) if mine.all() else xp.asarray(np.flatnonzero(mine))
            scale = xp.asarray(np.ldexp(1.0, self.exponent[group])[self.plane_shell])
            sums += [exact_sums(power[chosen], scale), exact_sums(change[chosen], change_scale)]
            self.images[group] += mine.sum()
        for group, total in zip(groups, to_host(xp.concatenate(sums)).reshape(len(groups), -1)):
            of_power, of_change = np.split(total, [self.counted.size])
            of_power = of_power.reshape(self.counted.shape)[self.counted]
            self.power_sums[group] += integers_by_shell(of_power, self.shell, self.max_shell)
            self.change_sums[group] += integers_by_shell(of_change, change_shell, self.max_shell)

    def power(self) -> np.ndarray:
        """σ² (groups, M + 1)."""
        sums = np.ldexp(self.power_sums.astype(float), -self.exponent)
        sums += 0.5 * self.noise_power * np.ldexp(self.change_sums.astype(float), -POWER_BITS)
        unit = self.grey_scale[:, None] ** 2  # groups lean on each other at one grey scale
        overall = (sums / unit).sum(axis=0) / self.images.sum()
        mean = (sums + PRIOR_IMAGES * unit * overall) / (self.images[:, None] + PRIOR_IMAGES) / self.pixels
        mean[:, 0] = mean[:, 1]  # no image of the half-plane without DC has shell 0
        result: np.ndarray = mean
        return result

    def include(self, other: "NoiseSums") -> None:
        """Add the sums of another part of the half-set."""
        self.power_sums += other.power_sums
        self.change_sums += other.change_sums
        self.images += other.images


def integers_by_shell(values: np.ndarray, shell: np.ndarray, max_shell: int) -> np.ndarray:
    """(M + 1,) int64: sums of integers (K,) by their shells. `np.bincount` adds in float64."""
    order = np.argsort(shell, kind="stable")
    upto = np.concatenate([np.zeros(1, np.int64), np.cumsum(values[order])])
    sums: np.ndarray = np.diff(upto[np.searchsorted(shell[order], np.arange(max_shell + 2))])
    return sums


@dataclass(frozen=True)
class FoundOfImages:
    """What was found of a batch of images.

    Attributes
    ----------
    index : (b,) of the images.  columns : of the pose table; each is used up once.  match : (2, b) of `model_match`.
    evidence : of the motion, of those of the images ``evidence_index`` that it is learned from; None where it is not.
    """

    index: np.ndarray
    columns: Dict[str, np.ndarray]
    match: np.ndarray
    evidence: Optional[Evidence]
    evidence_index: np.ndarray


@dataclass(frozen=True)
class FoundOfNulls:
    """``others`` and ``noise`` (2, b) of `model_match` of images without a particle, by their positions among them."""

    numbers: np.ndarray
    others: np.ndarray
    noise: np.ndarray


Found = Union[FoundOfImages, FoundOfNulls]


@dataclass
class HalfFindings:
    """What is known of some images of a half-set, beside their map; batch by batch.

    Attributes
    ----------
    noise : of the residuals.
    weight_sum : Σ C²/σ² of the half-plane, flattened, in integers.
    images, nulls : of each batch.
    out_of_range : whether the sums of the map left their range, so that nothing of this counts.
    """

    noise: NoiseSums
    weight_sum: Array
    images: List[FoundOfImages] = field(default_factory=list)
    nulls: List[FoundOfNulls] = field(default_factory=list)
    out_of_range: bool = False

    def include_sums(self, other: "HalfFindings") -> None:
        """Add the sums over other images."""
        self.noise.include(other.noise)
        self.weight_sum = self.weight_sum + other.weight_sum
        self.out_of_range |= other.out_of_range

    def include(self, found: Found) -> None:
        """Keep what was found of a batch."""
        if isinstance(found, FoundOfNulls):
            self.nulls.append(found)
        else:
            self.images.append(found)

    def take_batches(self) -> List[Found]:
        """What was found, batch by batch; it is kept no longer."""
        batches: List[Found] = [*self.images, *self.nulls]
        self.images, self.nulls = [], []
        return batches

    def take_columns(self, count: int) -> Dict[str, np.ndarray]:
        """Columns of the pose table (n, …) of all ``count`` images; those of the batches are used up, one after the
        other, so that no more than one of them is in memory twice."""
        columns = {}
        for name in list(self.images[0].columns):
            first = self.images[0].columns[name]
            columns[name] = np.empty((count,) + first.shape[1:], first.dtype)
            for found in self.images:
                columns[name][found.index] = found.columns.pop(name)
        return columns

    def all_matches(self, count: int) -> np.ndarray:
        """(2, n) float64 of all ``count`` images."""
        result = np.empty((2, count))
        for found in self.images:
            result[:, found.index] = found.match
        return result

    def all_nulls(self, kind: str) -> np.ndarray:
        """(2, n) of all images of a kind without a particle."""
        order = np.argsort(np.concatenate([found.numbers for found in self.nulls]), kind="stable")
        result: np.ndarray = np.concatenate([getattr(found, kind) for found in self.nulls], axis=1)[:, order]
        return result

    def all_evidence(self) -> Optional[Evidence]:
        known = [(found.evidence, found.evidence_index) for found in self.images if found.evidence is not None]
        if not known:
            return None
        evidence, index = zip(*known)
        return joined_evidence(evidence).take(np.argsort(np.concatenate(index), kind="stable"))


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
    """The columns of records.PoseTable (but ``row``) for one batch; covariances `packed`. They are no views of the
    modes: these would keep all that is known of a mode in memory."""
    best, index = found.best, found.index
    shift = found.u0 + best.shift - project(best.rotation, plan.centre)
    input_rotation, input_shift = particles.rotation[index], particles.shift_px[index]
    w = log_map(np.swapaxes(input_rotation, 1, 2) @ best.rotation)
    moved = shift + project(best.rotation, plan.fulcrum) - input_shift - project(input_rotation, plan.fulcrum)
    rotation0 = best.rotation @ np.swapaxes(exp_map(best.w), 1, 2)
    at_fulcrum = best.shift + project(best.rotation - rotation0, plan.fulcrum - plan.centre)
    return dict(
        rotation=best.rotation.copy(), shift_px=shift, rotation_change_deg=np.rad2deg(w).astype(np.float32),
        shift_change_angstrom=(moved * particles.pixel_size).astype(np.float32),
        covariance=packed(np.linalg.inv(best.precision + 1e-9 * np.eye(5))),
        pose_error_covariance=packed(found.pose_error_covariance), log_likelihood=best.log_likelihood.copy(),
        modes=np.bincount(found.owner, minlength=len(index)).astype(np.int32),
        insertions=found.insertions.astype(np.int32),
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


def refitted_scales(matches: np.ndarray, last: Optional[np.ndarray]) -> np.ndarray:
    """Scales (m,) of a half-set from the sums (2, m) of `model_match`, made with the ``last`` scales in Z and W; None:
    ones."""
    cross, energy = matches
    last = np.ones(len(cross)) if last is None else last
    return fitted_scales(cross / last, energy / last ** 2)
