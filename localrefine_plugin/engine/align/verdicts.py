"""For every particle, the probability that it shows the sub-volume at the pose that was found.

What an image gains from the model over noise alone is measured by

    z = Re⟨X, Y⟩ / |Y|,

X the whitened image, Y the whitened model at the best pose. For a particle whose pose is right z is about α |Y|, with α
its grey scale in units of the reference's; for anything else z is what the search finds in noise, a few standard
deviations whatever |Y|. How many depends on prior, limits, reference and CTFs. So it is measured (nulls.py): images of
two kinds are searched as the particles are,

    empty    Gaussian noise of the power and with the CTF of particles;
    others   particles at the pose of another one: the sub-volume is there, but not where it is looked for.

The z of all particles are a mixture of three Gaussians, fitted by expectation–maximisation:

    aligned       mean a + b (|Y| − ⟨|Y|⟩), s.d. s       a, b and s fitted
    misaligned    mean m_o + δ, s.d. s_o                 of the others
    empty         mean m_e + δ, s.d. s_e                 of the noise

δ is what an image's share in the reference adds, less what a search that begins at the last pose misses. m_o and m_e
are means over few images, with standard errors s_o / √w and s_e / √w; where the z of the particles say so, they are
moved within these errors. A mixture that explains the particles no better than "all are aligned" is not believed, nor
one whose aligned particles are hardly apart from the others. docs/explanation/verdicts.md has error rates.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Tuple

import numpy as np

from ..kernels.batches import evenly_spaced
from ..records.iteration import Verdict
from .nulls import Moments

LEAST_PARTICLES = 100  # of a half-set, to judge them
MOST_FITTED = 20_000  # particles in the fit: more add nothing to eight numbers
SWEEPS, STILL = 500, 1e-5
START = 0.8, 0.1, 0.1  # shares of the three
SHIFT = -0.2, 0.25  # δ, mean and s.d.: −0.45 to 0.1 in mid, mid02, and three sets at SNR .02, all iterations
SPREAD_WEIGHT, LEAST_SPREAD, GREY_SPREAD = 0.3, 1.15, 0.09  # s² leans on 1.15 + (0.09 a)², noise, what |Y| does not
# tell, and the spread of grey scales, with the weight of 0.3 of the particles: without it a wide s swallows the others
# where noise is high. Measured in these sets: 1.15² to 1.2² at a = 4, 1.35² at a = 9
LEAST_GAIN = 2.0  # log likelihood over "all are aligned"; of 40 sets without others the largest was 0.7
KNOWN_WELL = 1e9  # images of nothing: their mean is not moved
LEAST_APART = 1.8  # s.d. of noise, of the aligned from the others. With δ = 0.3, where 1.3 is the same bound, it was
# up to 0.8 in pure noise, and 1.7 and more in 2 % signal


@dataclass(frozen=True)
class Gains:
    """z and |Y| (n,) of n images."""

    z: np.ndarray
    strength: np.ndarray


@dataclass(frozen=True)
class Nulls:
    """Mean and s.d. of z of images of both kinds, known from a number of images worth ``weight``, and those of δ."""

    others: Moments
    noise: Moments
    weight: float
    shift: Moments = SHIFT


@dataclass(frozen=True)
class Probabilities:
    """Of n particles: z, and the probability to be aligned and to be empty (n,); the rest is misaligned."""

    gain: np.ndarray
    aligned: np.ndarray
    empty: np.ndarray


def gains(cross: np.ndarray, energy: np.ndarray) -> Gains:
    """Of images (n,) from Re⟨X, Y⟩ and |Y|² at their best poses."""
    strength = np.sqrt(np.maximum(energy.astype(np.float64), 1e-12))
    return Gains(cross.astype(np.float64) / strength, strength)


def judged(particles: Gains, nulls: Nulls, copies: float = 1.0) -> Tuple[Verdict, Probabilities]:
    """The mixture of all particles (n,) and what it says of each. ``copies``: of an image in the table, which are
    judged apart, and are no more evidence than one."""
    fitted = evenly_spaced(len(particles.z), MOST_FITTED)
    some = Gains(particles.z[fitted], particles.strength[fitted])
    verdict = fit(some, nulls, LEAST_GAIN * copies)
    aligned, empty = np.empty_like(particles.z), np.empty_like(particles.z)
    for start in range(0, len(aligned), MOST_FITTED):
        part = slice(start, start + MOST_FITTED)
        density = densities(Gains(particles.z[part], particles.strength[part]), verdict)
        density /= density.sum(axis=1, keepdims=True)
        aligned[part], empty[part] = density[:, 0], density[:, 2]
    return verdict, Probabilities(particles.z, aligned, empty)


def fit(particles: Gains, nulls: Nulls, least_gain: float) -> Verdict:
    """Expectation–maximisation."""
    mean, (others, noise) = float(particles.strength.mean()), (nulls.others, nulls.noise)
    beyond = particles.z[particles.z > others[0] + 2 * others[1]]
    start = float(beyond.mean()) if len(beyond) else others[0] + 2
    sigma = max(float(beyond.std()), 1.2) if len(beyond) else 1.2
    alone = maximise(particles, np.ones((len(particles.z), 3)) * (1, 0, 0), Verdict(
        1.0, 0.0, 0.0, start, 0.0, mean, sigma, others, noise), nulls)
    verdict = Verdict(START[0], START[1], START[2], start, 0.0, mean, sigma, others, noise, nulls.shift[0])
    for _ in range(SWEEPS):
        density = densities(particles, verdict)
        before, verdict = verdict, maximise(particles, density / density.sum(axis=1, keepdims=True), verdict, nulls)
        if max(abs(a - b) for a, b in zip(before.shares, verdict.shares)) < STILL:
            break
    gain = log_likelihood(particles, verdict) - log_likelihood(particles, alone) - cost(verdict, nulls)
    apart = verdict.mean - max(others[0], noise[0]) - verdict.shift
    return verdict if gain > least_gain and apart > LEAST_APART else alone


def densities(particles: Gains, v: Verdict) -> np.ndarray:
    """(n, 3): share times density of z, of aligned, misaligned and empty."""
    aligned = v.mean + v.slope * (particles.strength - v.strength)
    means = [aligned] + [np.full(len(aligned), mean + v.shift) for mean, _ in (v.others, v.noise)]
    columns = [share * gaussian(particles.z - mean, sigma)
               for share, mean, sigma in zip(v.shares, means, (v.sigma, v.others[1], v.noise[1]))]
    return np.stack(columns, axis=1) + 1e-300


def gaussian(offset: np.ndarray, sigma: float) -> np.ndarray:
    density: np.ndarray = np.exp(-0.5 * (offset / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    return density


def log_likelihood(particles: Gains, verdict: Verdict) -> float:
    return float(np.log(densities(particles, verdict).sum(axis=1)).sum())


def cost(v: Verdict, nulls: Nulls) -> float:
    """Log likelihood that moving m_o and m_e within their errors costs."""
    moved = [((m - known) / s) ** 2 for (m, s), (known, _) in ((v.others, nulls.others), (v.noise, nulls.noise))]
    return 0.5 * nulls.weight * sum(moved)


def maximise(particles: Gains, of: np.ndarray, v: Verdict, nulls: Nulls) -> Verdict:
    """The M step, from the probabilities (n, 3) of the E step."""
    n, weight = len(particles.z), of[:, 0]
    offset = particles.strength - v.strength
    # einsum: the sums of a threaded BLAS depend on the number of threads
    design = np.stack([np.ones(n), offset], axis=1)
    normal = np.einsum("n,ni,nj->ij", weight, design, design) + np.diag([1e-3, 1e-3 * n])
    mean, slope = np.linalg.solve(normal, np.einsum("n,ni,n->i", weight, design, particles.z))
    residual = particles.z - mean - slope * offset
    expected, pseudo = LEAST_SPREAD + (GREY_SPREAD * mean) ** 2, SPREAD_WEIGHT * n
    sigma = np.sqrt(((weight * residual ** 2).sum() + pseudo * expected) / (weight.sum() + pseudo))
    sums = [(float(of[:, k].sum()), float((of[:, k] * particles.z).sum())) for k in (1, 2)]
    shift, others, noise = moved_nulls(sums, nulls)
    aligned, misaligned, empty = (float(share) for share in of.mean(axis=0))
    return Verdict(aligned, misaligned, empty, float(mean), float(slope), v.strength, float(sigma), others, noise,
                   shift)


def moved_nulls(sums: Sequence[Tuple[float, float]], nulls: Nulls) -> Tuple[float, Moments, Moments]:
    """δ, and the moments with the likeliest means, from Σ1 and Σz over the particles of both kinds."""
    pull, precision = nulls.shift[0] / nulls.shift[1] ** 2, 1 / nulls.shift[1] ** 2
    kinds = [(number, total - number * m, m, s) for (number, total), (m, s) in zip(sums, (nulls.others, nulls.noise))]
    for number, beyond, _, s in kinds:  # the mean is free within its error, so that it tells the less of δ
        told = nulls.weight / (nulls.weight + number) / s ** 2
        pull += beyond * told
        precision += number * told
    shift = pull / precision
    others, noise = ((m + (beyond - number * shift) / (nulls.weight + number), s) for number, beyond, m, s in kinds)
    return shift, others, noise
