"""How cells, and groups of cells, move against each other: what the images say once poses of groups are free.

Cells of a group move together, x_c = Σ_k B_kc ξ_k; the evidence of ξ is B g and B H Bᵀ. The pose of a group that is not
asked for has a flat prior. Then what is asked for, δ, has the Gaussian likelihood

    H = H_δδ − H_δν H_νν⁻¹ H_νδ,        pull  g = g_δ − H_δν H_νν⁻¹ g_ν,

whatever the pose was that the image had: errors of poses, and the noise that a pose follows, are gone. Of a motion of
covariance Σ, g has the covariance H + H Σ H. Of an isotropic displacement of variance v, hence, with h the eigenvalues
of H of all images and y = g / h along their axes,

    v = Σ w (y² − 1/h) / Σ w,        w = 1 / (v + 1/h)²,        error (2 / Σ h²)^½ where nothing moves:

the likeliest v of a Gaussian motion, and for any motion the mean of what has no noise in it. It begins with w = h², the
locally best test of v = 0. The error that is stated is from the scatter of the images; the one from the curvature alone
is known before any image is looked at.
"""
from __future__ import annotations

from typing import List, NamedTuple, Sequence, Tuple

import numpy as np

from ..kernels.cells import MOTIONS
from ..motion.motion_prior import Step, expected, inverses
from .evidence import CellEvidence, about_box_centre

RIDGE = 1e-4  # of the diagonal: an image tells nothing of the motion along its view
CHUNK = 128  # images at a time: their matrices of all cells stay in the cache
START = 2.0, 1.0  # degrees, px: the widths that a motion is learned from
SWEEPS, STILL = 60, 1e-3
NOTHING = 1e-6  # of the largest eigenvalue: what is next to nothing along the view
Array = np.ndarray


def grouped(evidence: CellEvidence, weights: Array) -> CellEvidence:
    """The evidence of ξ (n, K, 6), for weights B (K, C)."""
    n, k = len(evidence.score), len(weights)
    curvature = np.empty((n, k, MOTIONS, k, MOTIONS))
    for part in chunks(n):
        half = np.einsum("ncidj,kd->ncikj", evidence.curvature[part], weights, optimize=True)
        curvature[part] = np.einsum("ncikj,lc->nlikj", half, weights, optimize=True)
    return CellEvidence(np.einsum("kc,nci->nki", weights, evidence.score), curvature)


def chunks(n: int) -> List[slice]:
    return [slice(start, start + CHUNK) for start in range(0, n, CHUNK)]


def without_others(evidence: CellEvidence, asked: int) -> Tuple[Array, Array]:
    """g (n, 6a) and H (n, 6a, 6a) of the last ``asked`` groups, the others' poses free."""
    n, k = evidence.score.shape[:2]
    score, curvature = evidence.score.reshape(n, -1), evidence.curvature.reshape(n, MOTIONS * k, MOTIONS * k)
    first = MOTIONS * (k - asked)
    cross = curvature[:, first:, :first] @ regular_inverses(curvature[:, :first, :first])
    pull = score[:, first:] - (cross @ score[:, :first, None])[..., 0]
    left = curvature[:, first:, first:] - cross @ curvature[:, :first, first:]
    return pull, 0.5 * (left + np.swapaxes(left, 1, 2))


def regular_inverses(matrices: Array) -> Array:
    """Inverses (n, k, k) of curvatures that may be singular, scaled to a unit diagonal with RIDGE added."""
    scale = 1 / np.sqrt(np.maximum(np.einsum("nii->ni", matrices), 1e-12))
    scaled = matrices * scale[:, :, None] * scale[:, None] + RIDGE * np.eye(matrices.shape[1])
    result: Array = inverses(scaled) * scale[:, :, None] * scale[:, None]
    return result


def about(pull: Array, curvature: Array, centre: Array) -> Tuple[Array, Array]:
    """The same evidence, g (n, 6) and H (n, 6, 6) about the box centre, of (w, d) about a point (3,)."""
    back = np.linalg.inv(about_box_centre(centre))
    return pull @ back, back.T @ curvature @ back


class Variance(NamedTuple):
    """Variance per axis of a displacement, px²; its error from the images' scatter, and as predicted from H alone."""

    value: float
    error: float
    predicted: float


def displacement_variance(pull: Array, curvature: Array) -> Variance:
    """v of the displacement in g (n, 6) and H (n, 6, 6), about the point they are for."""
    h, axes = np.linalg.eigh(curvature[:, 3:, 3:])
    noise = 1 / np.maximum(h, NOTHING * h.max())
    excess = (np.einsum("nij,ni->nj", axes, pull[:, 3:]) * noise) ** 2 - noise
    predicted, value = float(np.sqrt(2 / (noise ** -2).sum())), 0.0
    for _ in range(SWEEPS):
        before, weight = value, (max(value, 0.0) + noise) ** -2
        value = float((weight * excess).sum() / weight.sum())
        if abs(value - before) < STILL * predicted:
            break
    of_images = (weight * (excess - value)).sum(axis=1)
    return Variance(value, float(np.sqrt((of_images ** 2).sum()) / weight.sum()), predicted)


def cell_variances(evidence: CellEvidence, bodies: Sequence[Array], centres: Array) -> List[Variance]:
    """Of every cell, how it moves against the first of ``bodies`` (cell numbers of each); all other bodies are free."""
    cells = evidence.score.shape[1]
    weights = np.array([np.isin(np.arange(cells), body).astype(np.float64) for body in bodies])
    half = np.concatenate([np.einsum("ncidj,kd->ncikj", evidence.curvature[part], weights, optimize=True)
                           for part in chunks(len(evidence.score))])
    whole = np.einsum("ncikj,lc->nlikj", half, weights, optimize=True)
    score = np.einsum("kc,nci->nki", weights, evidence.score)
    found = []
    for cell in range(cells):
        k = len(bodies)
        curvature = np.empty((len(score), k + 1, MOTIONS, k + 1, MOTIONS))
        curvature[:, :k, :, :k], curvature[:, k, :, :k] = whole, half[:, cell]
        curvature[:, :k, :, k] = np.transpose(half[:, cell], (0, 2, 3, 1))
        curvature[:, k, :, k] = evidence.curvature[:, cell, :, cell]
        joined = CellEvidence(np.concatenate([score, evidence.score[:, cell, None]], axis=1), curvature)
        pull, left = without_others(grouped(joined, freed(weights, cell)), 1)
        found.append(displacement_variance(*about(pull, left, centres[cell])))
    return found


def freed(weights: Array, cell: int) -> Array:
    """B for the groups (bodies …, the cell): the cell taken out of its body, and moving with the first but for δ."""
    k = len(weights)
    out = np.eye(k + 1)
    own = int(weights[:, cell].argmax())
    if own > 0:
        out[0, k], out[own, k] = 1, -1
        if weights[own].sum() == 1:  # it was the whole body
            out = np.delete(out, own, axis=0)
    return out


def learned(pull: Array, curvature: Array, pixel_size: float) -> Tuple[Array, Step]:
    """Σ (6, 6) by EM, and the E step at it, from g (n, 6) and H (n, 6, 6)."""
    covariance = np.diag([np.deg2rad(START[0]) ** 2] * 3 + [(START[1] / pixel_size) ** 2] * 3)
    for _ in range(SWEEPS):
        step = expected(curvature, pull, covariance)
        before, covariance = covariance, second_moment(step)
        width = np.sqrt(np.diag(covariance))
        if np.abs((covariance - before) / np.outer(width, width)).max() < STILL:
            break
    return covariance, expected(curvature, pull, covariance)


def displacement_over(covariance: Array, place: Array, share: Array) -> float:
    """r.m.s. displacement per axis, px, of places (C, 3) px from the box centre, weighted by their share, under a
    motion Σ (6, 6) about the box centre."""
    each = [about_box_centre(one)[3:] for one in place]
    variance = np.array([np.trace(matrix @ covariance @ matrix.T) / 3 for matrix in each])
    return float(np.sqrt(share @ variance / share.sum()))


def second_moment(step: Step) -> Array:
    """The M step without a prior: ⟨m mᵀ + Λ⁻¹⟩."""
    result: Array = (np.einsum("ni,nj->ij", step.mean, step.mean) + step.spread.sum(axis=0)) / len(step.mean)
    return result
