"""How well a half-map explains images at their poses, and whether another reading of the input explains them better."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ..align.reference import Reference
from ..model.pose import euler_deg_from_rotation, rotation_from_euler_deg
from ..records.particles import Particles
from .samples import (
    Match,
    Sample,
    joined_matches,
    match_of,
    match_of_pixels,
    moved_slices,
    moving,
    overlap,
    slices,
    slices_of,
)

BELONG = 5.0  # s.d.: fewer are no evidence
SURELY = 0.6  # s.d. per √image from which poses and images surely belong together: good input has 1.3 to 6, a mirrored
# map, which looks alike from afar, up to 0.4
SCALE_STEPS, SHARE_STEPS, SETTLED = 3, 30, 1e-4  # of expectation-maximisation; a change of shares that is none
POSES_MATTER = 0.1  # share of the energy by which slices at other poses differ
BETTER, MUCH_BETTER = 5.0, 1.2  # s.d., and factor of the log likelihood, by which another reading is the right one
ANOTHER_FRAME = 1.05  # that factor for a frame of the maps: it fits no parameter, and particles look like their mirror
ALSO_LARGER = 1.05  # that factor over origins that are made larger by the root of the pixel size
# α of finer pixels over that of coarser ones: of good input 1.0 to 1.2, 0.5 where the map is sharper than the poses
FINE_ENOUGH = 0.35
LEAST_GAIN = 0.25  # log likelihood per image of a right reading; measured: 2 and more, where no reading is right 0.1


@dataclass(frozen=True)
class Reading:
    """Another reading of the input. problem and remedy: what the mistake was, if this one is right. least: the factor
    of the log likelihood by which it must be better."""

    name: str
    problem: str
    remedy: str
    least: float = MUCH_BETTER


NO_ORIGINS, LARGER, SMALLER = "no origins", "larger origins", "smaller origins"
RIVALS = {"origins, sign": NO_ORIGINS, "origins, x": NO_ORIGINS, "origins, y": NO_ORIGINS,
          "origins, x and y": NO_ORIGINS, "origins, px": LARGER, "origins, Å": SMALLER}
MIRROR, AXES, PHASES, MOTION = "mirror", "axes", "phases", "motion"
ROWS = "write the particle file again from the refinement; rows and images must stay together"
READINGS = {reading.name: reading for reading in (
    Reading("next row", "each image fits the pose of the next row", ROWS),
    Reading("previous row", "each image fits the pose of the row before", ROWS),
    Reading("origins, sign", "the images fit with the opposite sign of the origins",
            "correct the sign of rlnOriginX and rlnOriginY"),
    Reading("origins, x", "the images fit with the opposite sign of the origins in x",
            "correct the sign of rlnOriginX"),
    Reading("origins, y", "the images fit with the opposite sign of the origins in y",
            "correct the sign of rlnOriginY"),
    Reading("origins, x and y", "the images fit with the origins in x and y exchanged",
            "exchange rlnOriginX and rlnOriginY"),
    Reading("origins, px", "the images fit with the origins multiplied by the pixel size. They are probably in px",
            "multiply rlnOriginXAngst and rlnOriginYAngst by the pixel size, or call them rlnOriginX and rlnOriginY"),
    Reading("origins, Å", "the images fit with the origins divided by the pixel size. They are probably in Å",
            "divide rlnOriginX and rlnOriginY by the pixel size, or call them rlnOriginXAngst and rlnOriginYAngst"),
    Reading("inverse", "the images fit the inverse rotations", "use the angles in RELION's convention"),
    Reading("tilt", "the images fit with 180° − tilt. Poses and maps are in different frames",
            "use poses and maps of one refinement"),
    Reading(MIRROR, "the images fit the mirrored half-maps", "mirror half-maps and mask (relion_image_handler "
            "--invert_hand), or use the poses that belong to the mirrored map", ANOTHER_FRAME),
    Reading(AXES, "the images fit once the axes of the half-maps are exchanged, or turned by 90° or 180°",
            "use maps and poses of one refinement, with axes x, y, z in the order that their headers say",
            ANOTHER_FRAME),
    Reading(PHASES, "the images fit with flipped phases", "extract them without phase flipping, or correct rlnVoltage, "
            "rlnSphericalAberration, rlnAmplitudeContrast and defocus if these are wrong"))}


@dataclass(frozen=True)
class Explained:
    """How well a half-map explains the images of its half-set: at their poses, at those of others, and in each other
    reading. ``slices`` (n, K) at their poses; ``difference`` (n,) Σ W |Y_own − Y_other|²."""

    sample: Sample
    slices: np.ndarray
    own: Match
    other: Match
    difference: np.ndarray
    readings: Dict[str, Match]

    def some(self, chosen: np.ndarray) -> "Explained":
        return Explained(self.sample.some(chosen), self.slices[chosen], self.own.some(chosen), self.other.some(chosen),
                         self.difference[chosen], {name: m.some(chosen) for name, m in self.readings.items()})


def explained(particles: Particles, sample: Sample, reference: Reference) -> Explained:
    rotation, shift = sample.particles.rotation, sample.particles.shift_px
    unmoved = slices_of(sample, reference, rotation)
    own = moved_slices(sample, unmoved, rotation, shift)
    product = sample.packed.matched.conj() * unmoved
    energy = sample.packed.weight * (own.real ** 2 + own.imag ** 2)
    found = {}
    for name, (turned, moved) in readings(particles, sample):
        if turned is rotation:
            found[name] = match_of_pixels((product * moving(sample, turned, moved, len(energy[0]))).real, energy)
        else:
            found[name] = match_of(sample, slices(sample, reference, turned, moved))
    found[PHASES] = match_of(sample.with_flipped_phases(), own)
    return compared(sample, own, slices(sample, reference, *poses_of_others(sample)), found)


def compared(sample: Sample, own: np.ndarray, other: np.ndarray, found: Optional[Dict[str, Match]] = None) -> Explained:
    """With slices (n, K) at the poses of the images and at those of others."""
    here, there = match_of(sample, own), match_of(sample, other)
    difference = here.energy + there.energy - 2 * overlap(sample, own, other)
    return Explained(sample, own, here, there, difference, found or {})


def poses_of_others(sample: Sample) -> Tuple[np.ndarray, np.ndarray]:
    """For each image, the pose of another one of the sample."""
    order = np.random.default_rng(0).permutation(len(sample.index))
    return sample.particles.rotation[order], sample.particles.shift_px[order]


def readings(particles: Particles, sample: Sample) -> Iterator[Tuple[str, Tuple[np.ndarray, np.ndarray]]]:
    """(name, poses) of other readings of the same file."""
    rotation, shift, n = sample.particles.rotation, sample.particles.shift_px, len(particles)
    for name, step in (("next row", 1), ("previous row", -1)):
        row = (sample.index + step) % n
        yield name, (particles.rotation[row], particles.shift_px[row])
    yield "origins, sign", (rotation, -shift)
    yield "origins, x", (rotation, shift * (-1, 1))
    yield "origins, y", (rotation, shift * (1, -1))
    yield "origins, x and y", (rotation, shift[:, ::-1])
    yield "origins, px", (rotation, shift * particles.pixel_size)
    yield "origins, Å", (rotation, shift / particles.pixel_size)
    yield NO_ORIGINS, (rotation, 0 * shift)
    yield LARGER, (rotation, shift * np.sqrt(particles.pixel_size))
    yield SMALLER, (rotation, shift / np.sqrt(particles.pixel_size))
    yield "inverse", (np.swapaxes(rotation, 1, 2), shift)
    angles = euler_deg_from_rotation(rotation)
    angles[:, 1] = 180 - angles[:, 1]
    yield "tilt", (rotation_from_euler_deg(angles), shift)


# ---------------------------------------------------------------- own and other poses

def evidence_of(found: Sequence[Explained]) -> float:
    """By how many standard deviations own poses explain the images better than others' do."""
    return in_deviations(np.concatenate([f.own.cross - f.other.cross for f in found]))


def surely(found: Sequence[Explained]) -> float:
    """The evidence in standard deviations from which images and poses surely belong together."""
    return SURELY * float(np.sqrt(sum(len(f.own.cross) for f in found)))


def in_deviations(values: np.ndarray) -> float:
    """The mean of values (n,) in standard errors of the mean."""
    if len(values) < 2:
        return 0.0
    return float(values.mean() / max(values.std(ddof=1) / np.sqrt(len(values)), 1e-30))


def poses_matter(found: Sequence[Explained]) -> bool:
    """Whether slices at other poses differ: those of a sphere do not."""
    energy = sum(f.own.energy.sum() + f.other.energy.sum() for f in found)
    return bool(sum(f.difference.sum() for f in found) > POSES_MATTER * energy)


# ---------------------------------------------------------------- readings

def other_readings(found: Sequence[Explained]) -> List[Tuple[Reading, Match]]:
    """Every reading with its match. Other origins count only if they are better than their rival: origins that are
    mostly error are better divided by anything, not by the pixel size above all. Nothing but the right origins is
    better for larger ones."""
    matches = {name: joined_matches([f.readings[name] for f in found]) for name in found[0].readings}
    return [(READINGS[name], m) for name, m in matches.items()
            if name in READINGS and (name not in RIVALS or is_better(
                m, matches[RIVALS[name]], ALSO_LARGER if RIVALS[name] == LARGER else MUCH_BETTER))]


def likelihood(found: Match) -> float:
    """Σ log L at the likeliest grey scale that is not negative."""
    return float(found.likelihood(max(found.scale, 0.0)).sum())


def likeliest(tried: Sequence[Tuple[Reading, Match]], own: Match) -> Optional[Reading]:
    """The reading that explains the images best, of those that do much better than the one given, in detail too."""
    better = [(likelihood(m), i) for i, (reading, m) in enumerate(tried)
              if is_better(m, own, reading.least) and is_of_one_thing(m)]
    return tried[max(better)[1]][0] if better else None


def is_of_one_thing(found: Match) -> bool:
    """Whether images and slices agree by more than chance, and in the finer half of the pixels, too."""
    coarse, fine, error = found.fine_scales
    return likelihood(found) > LEAST_GAIN * len(found.cross) and fine > FINE_ENOUGH * coarse - error


def is_better(one: Match, other: Match, much: float = MUCH_BETTER) -> bool:
    """Whether one match explains the images better than the other, by a factor ``much``, each with its own positive
    grey scale."""
    here, there = (m.likelihood(max(m.scale, 0.0)) for m in (one, other))
    gain = here - there
    deviation = float(np.sqrt((gain ** 2).sum()))
    return bool(gain.sum() > BETTER * max(deviation, 1e-12) and here.sum() > much * there.sum())


# ---------------------------------------------------------------- some of the images

def share_of(other: Match, own: Match) -> Tuple[float, float, np.ndarray]:
    """How many of the images belong to another reading while the others belong to the one given.

    Each image is of one of three kinds: it fits as it is, it fits in the other reading, or it is noise (log L = 0).
    Expectation-maximisation finds the shares and the grey scale. Returns the share of the other reading, the gain in
    Σ log L over none of that kind, and the probability (n,) of each image to be of it.
    """
    scale = max(own.scale, other.scale, 1e-30)
    for _ in range(SCALE_STEPS):
        shares, belongs = _mixture(own.likelihood(scale), other.likelihood(scale))
        cross = belongs[0] @ own.cross + belongs[1] @ other.cross
        scale = max(float(cross / max(belongs[0] @ own.energy + belongs[1] @ other.energy, 1e-30)), 1e-30)
    logs = [own.likelihood(scale), other.likelihood(scale)]
    shares, belongs = _mixture(*logs)
    without, _ = _mixture(logs[0], np.full(len(logs[0]), -np.inf))
    gain = _log_sum(shares, logs).sum() - _log_sum(without, logs).sum()
    return float(shares[1]), float(gain), belongs[1]


def _log_sum(shares: np.ndarray, logs: Sequence[np.ndarray]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        total: np.ndarray = np.logaddexp.reduce(np.log(shares)[:, None] + np.stack([*logs, 0 * logs[0]]), axis=0)
    return total


def _mixture(own: np.ndarray, other: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Shares (3,) of own, other and noise, and the probabilities (3, n) of each image, from log likelihoods (n,)."""
    logs, shares = np.stack([own, other, 0 * own]), np.full(3, 1 / 3)
    likelihoods = np.exp(logs - logs.max(axis=0))
    belongs = np.zeros(logs.shape)
    for _ in range(SHARE_STEPS):
        belongs = likelihoods * shares[:, None]
        belongs /= belongs.sum(axis=0)
        before, shares = shares, belongs.mean(axis=1)
        if np.abs(shares - before).max() < SETTLED:
            break
    return shares, belongs
