"""Whether a part of the images has another CTF, by what all images say together.

Where the half-maps were made from these images with the wrong CTF, or where there is little signal, no image tells by
itself which of two CTFs C and D it has. All together do. If a share p of the images has D, the mean of the images
along a slice Y is that of the CTF (1 − p) C + p D. With

    x₁ = Re Σ X* C Y / σ²,   x₂ = Re Σ X* D Y / σ²,
    e₁₁ = Σ C² |Y|² / σ²,   e₁₂ = Σ C D |Y|² / σ²,   e₂₂ = Σ D² |Y|² / σ²

in shell k, summed over images, the log likelihood at the likeliest amplitude a_k of each shell is

    L(p) = Σ_k ½ ((1 − p) x₁ + p x₂)² / ((1 − p)² e₁₁ + 2 p (1 − p) e₁₂ + p² e₂₂).

As a_k is free, it does not matter how much the map has lost in a shell, by noise, blur or wrong CTFs. Y is of the
half-map of the other half-set, which does not hold the noise of these images.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, NamedTuple, Sequence, Tuple, Union

import numpy as np

from ..align.reference import Reference
from ..model.optics import electron_wavelength
from ..model.pixels import shell_starts
from ..records.errors import InputError
from ..records.particles import Particles
from .parts import DEFOCUS_REMEDY, DEFOCUS_SHARES, FEWEST_IMAGES, MOST_SHARE, PHASE_SHARES, with_defocus
from .readings import PHASES, READINGS, Explained, Reading, is_better, likelihood
from .samples import Match, Sample, joined_matches, slices

Ctf = Union[str, float]  # PHASES, or a factor of the defocus
SHARES = np.arange(-0.3, 1.0025, 0.005)
FIRST_CTFS: Tuple[Ctf, ...] = (PHASES, 0.82, 1.22)
SOME_CTFS: Tuple[Ctf, ...] = (PHASES, 0.65, 0.74, 0.82, 1.22, 1.35, 1.54)  # of a part: nearer ones are like one of all
ALL_FACTORS = (0.55, 0.59, 0.64, 0.69, 0.74, 0.78, 0.82, 0.86, 0.9, 0.95, 0.975, 1.025, 1.05, 1.11, 1.16, 1.22, 1.28,
               1.35, 1.45, 1.57, 1.7)
NEAR = 0.88, 1.14  # factors for all that are said; beyond them no map is sharp, and they are refused
VOLTAGES = 80.0, 100.0, 120.0, 200.0, 300.0  # kV, of microscopes
SAME_FACTOR = 0.04
OPPOSITE = 5.0  # standard errors
CTF_REMEDY = "check defocus, voltage, spherical aberration, amplitude contrast and pixel size of all micrographs"
SUSPECT = 2.0  # standard errors of a share from which more images are looked at
CERTAIN = 12.5  # log L over no other CTF, 5 s.d.; 25 good sets had up to 8
PART_OR_ALL = 5.0  # log L by which a part of the images is likelier than all of them with a smaller factor
EVEN = 0.2  # images count by 1 / (their own information + this of the mean): a share of images, not of information
STEP = 3  # of SHARES, for the curvature of L


@dataclass(frozen=True)
class Against:
    """Images of a half-set and slices (n, K), at their poses, of the half-map of the other half-set."""

    sample: Sample
    slices: np.ndarray

    def some(self, chosen: np.ndarray) -> "Against":
        return Against(self.sample.some(chosen), self.slices[chosen])


def against(sample: Sample, reference: Reference) -> Against:
    return Against(sample, slices(sample, reference, sample.particles.rotation, sample.particles.shift_px))


class Fitted(NamedTuple):
    """share of the images with the other CTF, its error, log L over a share of 0, and that of all images."""

    share: float
    error: float
    gain: float
    of_all: float


def check_other_ctf(few: Sequence[Against], look_at_more: Callable[[], List[Against]], particles: Particles
                    ) -> List[str]:
    """A sentence where images fit better with another CTF; InputError where it is certainly much of them, or an optics
    group. ``look_at_more``: more images, to finer detail."""
    if not another_ctf(few):
        return []
    found = look_at_more()
    phases = fitted(found, PHASES)
    if phases.share > MOST_SHARE and phases.of_all > CERTAIN:
        raise InputError(f"do not fit the half-maps: {READINGS[PHASES].problem}", "particles", READINGS[PHASES].remedy)
    check_each_group(found, particles)
    some = {ctf: fitted(found, ctf) for ctf in SOME_CTFS}
    gain = {ctf: f.gain if f.share > 0 else 0.0 for ctf, f in some.items()}
    whole, factor = max((fitted(found, ctf).of_all, ctf) for ctf in ALL_FACTORS)
    best = max(gain.values())
    if max(best, whole) < CERTAIN:
        return []
    if best < whole + PART_OR_ALL:
        return said_of_all(factor, particles)
    return said_of(found, [ctf for ctf in SOME_CTFS if gain[ctf] > best - CERTAIN])


def another_ctf(few: Sequence[Against]) -> bool:
    """Whether more images should be asked."""
    return any(abs(f.share) > SUSPECT * f.error for f in (fitted(few, ctf) for ctf in FIRST_CTFS))


def opposite_in_detail(own: Match) -> bool:
    """Whether images have the opposite sign of their slices at fine detail. A wrong CTF does that; so do maps that are
    moved by much, whose images do not surely fit their poses."""
    _, fine, error = own.fine_scales
    return fine < -OPPOSITE * error


def other_defoci(found: Sequence[Explained], particles: Particles) -> List[Tuple[Reading, Match]]:
    """Readings of all images with another defocus, or another voltage, that fit better than flipped phases; where
    images have the opposite sign at fine detail, or fit with flipped phases."""
    own, phases = joined_matches([f.own for f in found]), joined_matches([f.readings[PHASES] for f in found])
    if not (opposite_in_detail(own) or is_better(phases, own)):
        return []
    tried = []
    for factor in ALL_FACTORS:
        if not NEAR[0] < factor < NEAR[1]:
            words = f"the images fit with about {factor:g} times their defocus{of_voltage(factor, particles)}"
            tried.append((Reading(f"defocus {factor:g}", words, CTF_REMEDY), with_defocus(found, factor)))
    return [(reading, m) for reading, m in tried if likelihood(m) > likelihood(phases)]


def said_of_all(factor: float, particles: Particles) -> List[str]:
    """A sentence on another defocus of all images; InputError beyond NEAR."""
    text = (f"the images fit the half-maps better with about {factor:g} times their defocus"
            f"{of_voltage(factor, particles)}, or some of them with more")
    if not NEAR[0] < factor < NEAR[1]:
        raise InputError(f"do not have the CTF of the particle file: {text}", "particles", CTF_REMEDY)
    return [f"particles: {text}. {CTF_REMEDY[0].upper()}{CTF_REMEDY[1:]}"]


def of_voltage(factor: float, particles: Particles) -> str:
    """The voltage that acts as this factor of the defocus, in words; its phase is π λ Δz k² at low k."""
    given = {group.voltage_kv for group in particles.optics}
    if len(given) > 1 or NEAR[0] < factor < NEAR[1]:
        return ""
    kv = given.pop()
    off = {v: abs(electron_wavelength(v) / electron_wavelength(kv) / factor - 1) for v in VOLTAGES}
    likely = min(VOLTAGES, key=lambda v: off[v])
    return f" (as with {likely:g} kV instead of {kv:g})" if off[likely] < SAME_FACTOR else ""


def said_of(found: Sequence[Against], ctfs: Sequence[Ctf]) -> List[str]:
    """Of a part of the images, by CTFs that are about as likely: said or refused by its share."""
    flipped = PHASES in ctfs
    ctfs = [PHASES] if flipped else ctfs
    parts = sorted(fitted(found, ctf, even=True)[:2] for ctf in ctfs)
    (least, error), (most, _) = parts[0], parts[-1]
    shares = PHASE_SHARES if flipped else DEFOCUS_SHARES
    if least < shares.said:
        return []
    about = f"{100 * least:.0f} ± {100 * error:.0f}" if len(parts) == 1 else f"{100 * least:.0f} to {100 * most:.0f}"
    problem, remedy = words_of(ctfs)
    text = f"do not all have the CTF of the particle file: about {about} % of the images are different: {problem}"
    if least - error > shares.refused:
        raise InputError(text, "particles", remedy)
    return [f"particles: they {text}. {remedy[0].upper()}{remedy[1:]}"]


def words_of(ctfs: Sequence[Ctf]) -> Tuple[str, str]:
    if PHASES in ctfs:
        return READINGS[PHASES].problem, READINGS[PHASES].remedy
    factors = sorted(float(ctf) for ctf in ctfs)
    about = f"{factors[0]:g}" if len(factors) == 1 else f"{factors[0]:g} to {factors[-1]:g}"
    return f"they fit with about {about} times their defocus", DEFOCUS_REMEDY


def check_each_group(found: Sequence[Against], particles: Particles) -> None:
    """InputError for an optics group all of which has another CTF."""
    for g in range(len(particles.optics)) if len(particles.optics) > 1 else ():
        mine = [f.some(np.flatnonzero(f.sample.particles.optics_group == g)) for f in found]
        if sum(len(f.slices) for f in mine) < FEWEST_IMAGES:
            continue
        best = max(((fitted(mine, ctf), str(ctf), ctf) for ctf in SOME_CTFS), key=lambda f: f[0].of_all)
        if best[0].of_all > CERTAIN:
            problem, remedy = words_of([best[2]])
            raise InputError(f"does not have the CTF of the particle file: {problem}",
                             f"optics group {particles.optics[g].name}", remedy)


# ---------------------------------------------------------------- the fit

def fitted(found: Sequence[Against], ctf: Ctf, even: bool = False) -> Fitted:
    """The share of images with another CTF. Sums (5, shells) are those of `sums_of`; with ``even`` each image counts
    about as much as any other, however much the two CTFs differ at its defocus."""
    one = sum(sums_of(f, ctf, even) for f in found)
    assert isinstance(one, np.ndarray)
    x, mean, covariance = one[0], one[1], one[2]
    there = np.linalg.det(covariance) > 1e-6 * covariance[:, 0, 0] * covariance[:, 1, 1]
    x, mean, covariance = x[there][:, 0], mean[there], covariance[there]
    mixed = np.stack([1 - SHARES, SHARES])
    model = np.einsum("kab,bg->kag", mean, mixed)
    weighted = np.linalg.solve(covariance, model)
    along, energy = np.einsum("ka,kag->kg", x, weighted), np.einsum("kag,kag->kg", model, weighted)
    logs = 0.5 * (np.maximum(along, 0) ** 2 / np.maximum(energy, 1e-30)).sum(axis=0)
    best, none = int(logs.argmax()), int(np.abs(SHARES).argmin())
    middle = int(np.clip(best, STEP, len(SHARES) - 1 - STEP))
    curvature = -(logs[middle - STEP] - 2 * logs[middle] + logs[middle + STEP]) / (STEP * (SHARES[1] - SHARES[0])) ** 2
    share = float(SHARES[best])
    drawn = max(share * (1 - share), 0.0) / sum(len(f.slices) for f in found)  # of how many there are in a sample
    return Fitted(share, float(np.sqrt(1 / max(curvature, 1e-6) + drawn)), float(logs[best] - logs[none]),
                  float(logs[-1] - logs[none]))


def sums_of(found: Against, ctf: Ctf, even: bool) -> np.ndarray:
    """By shells (3, shells, 2, 2): x₁ and x₂ in the first row; columns of their means for p = 0 and 1; covariance."""
    sample, y = found.sample, found.slices
    own = sample.contrast
    other = np.abs(own) if isinstance(ctf, str) else sample.contrast_at(ctf)
    ratio = np.divide(other, own, out=np.zeros_like(own), where=np.abs(own) > 1e-3)
    packed = sample.packed
    x1, e11 = packed.matched.real * y.real + packed.matched.imag * y.imag, packed.weight * (y.real ** 2 + y.imag ** 2)
    e12 = e11 * ratio
    e22 = e12 * ratio
    count = np.ones(len(y))
    if even:
        own_information = (e11 - 2 * e12 + e22).sum(axis=1)
        count = 1 / np.maximum(own_information + EVEN * own_information.mean(), 1e-30)
        count /= max(count.mean(), 1e-30)
    starts = shell_starts(packed.pixels.shell)

    def by_shell(values: np.ndarray, power: int) -> np.ndarray:
        summed: np.ndarray = np.add.reduceat(np.einsum("n,nk->k", count ** power, values, dtype=np.float64), starts)
        return summed
    zero = np.zeros(len(starts))
    parts = [[by_shell(x1, 1), by_shell(x1 * ratio, 1), zero, zero]]
    parts += [[by_shell(e11, n), by_shell(e12, n), by_shell(e12, n), by_shell(e22, n)] for n in (1, 2)]
    return np.array(parts).transpose(0, 2, 1).reshape(3, len(starts), 2, 2)
