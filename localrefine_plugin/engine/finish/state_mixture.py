"""The share of particles in a second state, from how well each fits at three places.

The map that particles are compared with holds a first copy of the sub-volume and, more or less, a second one, which is
the first moved by M = (R, t). z (verdicts.py) of a particle is measured about its pose, about this pose moved by M, and
about it moved by M⁻¹. Where it shows nothing z is n on average, which is measured about poses where neither state is:

    place               pose     moved by M    moved by M⁻¹
    first state         a₁       n             b₁
    second state        b₂       a₂            n

a is the fit to the first copy, b that to the second one: n, where the map has lost it. A mixture of two Gaussians in
three dimensions with these means is fitted by expectation–maximisation. Each mean n leans on the measured one, and a
copy fits somewhat less where it is moved to: (a₂ − n) ≈ ρ (a₁ − n), (b₁ − n) ≈ ρ (b₂ − n), because M is known within
degrees, and density of the mask that does not move fits at the pose alone. The share and its error are mean and
standard deviation over the likelihood of each share, with the best of all else.
"""
from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

import numpy as np

NOTHING_ERROR = 0.2  # of n
MOVED, MOVED_ERROR = 0.75, 0.25  # ρ: 0.5 to 1 in 16 sets of two states
LEAST_FIT = 0.3  # of a − n and b − n in the error of ρ times these
POOLED = 100.0  # particles whose covariance is that of all, in that of a state
BEGINNINGS = 0.25, 0.5, 0.75
SHARES = np.arange(0.05, 0.951, 0.025)
SWEEPS, STILL = 300, 1e-3


class States(NamedTuple):
    """share : of the second state, with its standard ``error``.  gain : log likelihood over one state, a Gaussian.
    moved : the larger of a₂ − n and b₁ − n as a part of the larger of a₁ − n and b₂ − n."""

    share: float
    error: float
    gain: float
    moved: float


class Fit(NamedTuple):
    """log_posterior, the second state's share, means (2, 3) and covariances (2, 3, 3) of both."""

    log_posterior: float
    share: float
    means: np.ndarray
    covariances: np.ndarray


def states_told(z: np.ndarray, nothing: float) -> States:
    """What z (m, 3) at the three places says of both states; ``nothing``: n."""
    best = max((fitted(z, nothing, beginning(z, share)) for share in BEGINNINGS), key=lambda fit: fit.log_posterior)
    posterior = np.empty(len(SHARES))
    for upwards in (True, False):  # each share begins with the fit of the one before
        fit = best
        chosen = np.flatnonzero((best.share <= SHARES) == upwards)
        for index in chosen if upwards else chosen[::-1]:
            fit = fitted(z, nothing, fit, float(SHARES[index]))
            posterior[index] = fit.log_posterior
    weight = np.exp(posterior - posterior.max())
    share = float(weight @ SHARES / weight.sum())
    error = float(np.sqrt(weight @ (SHARES - share) ** 2 / weight.sum()))
    one = -0.5 * len(z) * (3 + np.linalg.slogdet(covariance_of(z))[1])
    copies = best.means[:, 0], best.means[(1, 0), (1, 2)]
    in_place, moved = (float(at.max()) - nothing for at in copies)
    return States(share, error, best.log_posterior - float(one), moved / max(in_place, LEAST_FIT))


def beginning(z: np.ndarray, share: float) -> Fit:
    """Parted by z moved by M less z moved by M⁻¹."""
    d = z[:, 1] - z[:, 2]
    second = 1 / (1 + np.exp(-2 * (d - np.quantile(d, 1 - share))))
    weight = np.stack([1 - second, second])
    means = np.einsum("kn,nj->kj", weight, z) / weight.sum(axis=1, keepdims=True)
    return Fit(-np.inf, share, means, np.stack([0.7 * covariance_of(z)] * 2))


def covariance_of(z: np.ndarray) -> np.ndarray:
    """(3, 3)."""
    offset = z - z.mean(axis=0)
    covariance: np.ndarray = np.einsum("ni,nj->ij", offset, offset) / len(z)
    return covariance


def fitted(z: np.ndarray, nothing: float, fit: Fit, share: Optional[float] = None) -> Fit:
    """The most likely mixture, from ``fit``; with this share if one is given."""
    fit = fit._replace(log_posterior=-np.inf, share=fit.share if share is None else share)
    for _ in range(SWEEPS):
        density = log_densities(z, fit)
        top = density.max(axis=1, keepdims=True)
        total = np.exp(density - top).sum(axis=1, keepdims=True)
        expected, precision = leanings(fit.means, nothing)
        reached = float((top + np.log(total)).sum() - 0.5 * (precision * (fit.means - expected) ** 2).sum())
        if reached - fit.log_posterior < STILL:
            return fit._replace(log_posterior=reached)
        weight = np.exp(density - top) / total
        fit = maximised(z, weight, fit._replace(log_posterior=reached), (expected, precision))
        if share is None:
            fit = fit._replace(share=float(np.clip(weight[:, 1].mean(), 1e-3, 1 - 1e-3)))
    return fit


def log_densities(z: np.ndarray, fit: Fit) -> np.ndarray:
    """(m, 2): log of share times density."""
    columns = []
    for share, mean, covariance in zip((1 - fit.share, fit.share), fit.means, fit.covariances):
        offset = z - mean
        distance = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset)
        columns.append(np.log(share) - 0.5 * (distance + np.linalg.slogdet(covariance)[1]))
    return np.stack(columns, axis=1)


def leanings(means: np.ndarray, nothing: float) -> Tuple[np.ndarray, np.ndarray]:
    """(2, 3) each: what the means lean on, and the precision of that; 0 where they are free."""
    fit_first, fit_second = means[0, 0] - nothing, means[1, 0] - nothing
    expected = np.array([[0, nothing, nothing + MOVED * fit_second], [0, nothing + MOVED * fit_first, nothing]])
    error = [MOVED_ERROR * max(fit, LEAST_FIT) for fit in (fit_first, fit_second)]
    precision = 1 / np.square([[np.inf, NOTHING_ERROR, error[1]], [np.inf, error[0], NOTHING_ERROR]])
    return expected, precision


def maximised(z: np.ndarray, weight: np.ndarray, fit: Fit, leaning: Tuple[np.ndarray, np.ndarray]) -> Fit:
    """Means and covariances from the probabilities (m, 2) of both states."""
    total, means = weight.sum(axis=0) + 1e-9, np.empty((2, 3))
    for k, (expected, precision) in enumerate(zip(*leaning)):
        of_data = total[k] * np.linalg.inv(fit.covariances[k])
        mean = np.einsum("n,nj->j", weight[:, k], z) / total[k]  # BLAS would sum by the number of threads
        means[k] = np.linalg.solve(of_data + np.diag(precision), of_data @ mean + precision * expected)
    scatter = np.stack([np.einsum("n,ni,nj->ij", weight[:, k], z - means[k], z - means[k]) for k in (0, 1)])
    pooled = POOLED * scatter.sum(axis=0) / len(z)
    return fit._replace(means=means, covariances=(scatter + pooled) / (total + POOLED)[:, None, None])
