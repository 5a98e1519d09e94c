"""The best poses of the sub-volume near the known one: a coarse grid, then Gauss–Newton.

Coordinates of a pose are x = (w, u): R = R0·Exp(w) and the displacement u (px) of the projected
mask centre c, in which rotation and shift nearly decouple. The fulcrum enters only through the
prior and the extents (engine.md section 2). What the search sees of an image is its matched filter
Z and its weight W (`PackedImages`): log L = Re⟨Z, P⟩ − ½⟨W, |P|²⟩.

Array-module code: runs on numpy or CuPy arrays alike.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Sequence, Tuple

import numpy as np

from .kernels.device import array_module
from .kernels.gather import gauss_newton_sums, score_grid
from .pixels import PixelList
from .pose import cross_matrix, exp_map, log_map, project, rotation_vector_ball, shift_disc
from .reference import Reference, slice_rows

Array = Any
MAX_MODES = 4
KEEP_LOG_LIKELIHOOD = 12.0  # a mode this far below the best has posterior weight < 1e-5
GRID_CHUNK_BYTES = 1 << 26
CONVERGED_GAIN = 0.01  # log-likelihood units; 0.1 s.d. of the posterior


@dataclass(frozen=True)
class PackedImages:
    """n images as the search sees them, moved so that u = 0 is the pose the search starts from.

    matched Z (n, K) complex64 = 2 C X e^{+2πi k·u0/N} / σ²;  weight W (n, K) float32 = 2 C² / σ².
    """

    pixels: PixelList
    matched: Array
    weight: Array


@dataclass(frozen=True)
class Motion:
    """Where n sub-volumes may be: centre, prior and limits of the search.

    Attributes
    ----------
    rotation0 : (n, 3, 3) float64.
    precision : (n, 5, 5) of (w in rad, displacement in px of the projected prior point); zeros = no prior.
    mean : (n, 5).
    prior_offset, fulcrum_offset : (3,) px, prior point and fulcrum relative to the mask centre.
    rotation_extent : rad.  shift_extent : px; both hard, the shift at the fulcrum.
    """

    rotation0: Array
    precision: Array
    mean: Array
    prior_offset: Array
    fulcrum_offset: Array
    rotation_extent: float
    shift_extent: float


@dataclass(frozen=True)
class Grid:
    """The coarse grid: rotations (G, 3) in rad with their neighbours (G, B), shifts (S, 2) in px."""

    rotations: np.ndarray
    neighbours: np.ndarray
    shifts: np.ndarray


@dataclass(frozen=True)
class Modes:
    """m pose hypotheses, several per image.

    owner (m,) int; w (m, 3) rad; shift (m, 2) px (u of the mask centre); rotation (m, 3, 3);
    log_likelihood (m,); score (m,) = log likelihood + log prior; curvature (m, 5, 5) of the
    likelihood; precision (m, 5, 5) of the posterior, in (right increment of R in rad, u in px).
    """

    owner: Array
    w: Array
    shift: Array
    rotation: Array
    log_likelihood: Array
    score: Array
    curvature: Array
    precision: Array

    def take(self, rows: Array) -> "Modes":
        return Modes(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def put(self, rows: Array, other: "Modes") -> None:
        """Overwrite these rows in place."""
        for name in self.__dataclass_fields__:
            getattr(self, name)[rows] = getattr(other, name)


def make_grid(rotation_extent: float, shift_reach_px: float, rotation_step: float, shift_step_px: float) -> Grid:
    """Grid of rotation vectors in a ball and shifts in a disc."""
    rotations = rotation_vector_ball(rotation_extent, rotation_step)
    distance = np.linalg.norm(rotations[:, None] - rotations[None], axis=-1)
    near = distance < 1.2 * rotation_step
    width = max(1, int(near.sum(1).max()))
    neighbours = np.argsort(np.where(near, distance, np.inf), axis=1, kind="stable")[:, :width]
    own = np.arange(len(rotations))[:, None]
    neighbours = np.where(np.take_along_axis(near, neighbours, axis=1), neighbours, own)
    return Grid(rotations, neighbours, shift_disc(shift_reach_px, shift_step_px))


def inverse_right_jacobian(w: Array) -> Array:
    """dLog(Exp(w) Exp(δ))/dδ at δ = 0 = I + ½[w]× + c [w]×², c = 1/θ² − (1 + cos θ)/(2 θ sin θ); (..., 3, 3)."""
    xp = array_module(w)
    k = cross_matrix(w)
    angle2 = xp.sum(w * w, axis=-1)[..., None, None]
    c = 1 / 12 + angle2 / 720 + angle2 * angle2 / 30240  # series: 1e-6 up to one radian
    return xp.eye(3) + 0.5 * k + c * (k @ k)


def prior_displacement(motion: Motion, owner: Array, rotation: Array, shift: Array, offset: Array) -> Array:
    """Displacement (m, 2) of the projected point c + offset."""
    return shift + project(rotation - motion.rotation0[owner], offset)


def log_prior(motion: Motion, owner: Array, w: Array, rotation: Array, shift: Array) -> Tuple[Array, Array, Array]:
    """−½ (x − μ)ᵀ Q (x − μ) with its gradient (m, 5) and curvature (m, 5, 5) in (δ, u)."""
    xp = array_module(w)
    point = prior_displacement(motion, owner, rotation, shift, motion.prior_offset)
    x = xp.concatenate([w, point], axis=-1) - motion.mean[owner]
    jacobian = xp.zeros(x.shape[:-1] + (5, 5))
    jacobian[:, :3, :3] = inverse_right_jacobian(w)
    jacobian[:, 3:, :3] = -(rotation[:, :2] @ cross_matrix(motion.prior_offset))
    jacobian[:, 3, 3] = jacobian[:, 4, 4] = 1
    q = motion.precision[owner]
    pull = (q @ x[..., None])
    transposed = xp.swapaxes(jacobian, 1, 2)
    gradient = -(transposed @ pull)[..., 0]
    return -0.5 * xp.sum(x * pull[..., 0], axis=-1), gradient, transposed @ q @ jacobian


def clip_to_extents(motion: Motion, owner: Array, w: Array, shift: Array) -> Tuple[Array, Array, Array]:
    """(w, u, R) moved to the nearest pose inside both extents."""
    xp = array_module(w)
    inside = 1 - 1e-7  # so that rounding of a later R0ᵀR never shows a pose outside
    angle = xp.sqrt(xp.sum(w * w, axis=-1))
    w = w * xp.minimum(1.0, inside * motion.rotation_extent / xp.maximum(angle, 1e-12))[:, None]
    rotation = motion.rotation0[owner] @ exp_map(w)
    lever = project(rotation - motion.rotation0[owner], motion.fulcrum_offset)
    at_fulcrum = shift + lever
    length = xp.sqrt(xp.sum(at_fulcrum * at_fulcrum, axis=-1))
    factor = xp.minimum(1.0, inside * motion.shift_extent / xp.maximum(length, 1e-12))
    return w, at_fulcrum * factor[:, None] - lever, rotation


def evaluate(reference: Reference, images: PackedImages, motion: Motion, owner: Array, w: Array, shift: Array,
             rotation: Array, n_pixels: int) -> Tuple[Modes, Array]:
    """Score, curvature and total gradient (m, 5) at these poses."""
    p = images.pixels
    log_l, gradient, curvature = gauss_newton_sums(
        reference.ft, slice_rows(rotation, reference.scale), shift, owner, p.kx, p.ky, n_pixels,
        images.matched, images.weight, p.box_size)
    log_p, prior_gradient, prior_curvature = log_prior(motion, owner, w, rotation, shift)
    modes = Modes(owner, w, shift, rotation, log_l, log_l + log_p, curvature, curvature + prior_curvature)
    return modes, gradient + prior_gradient


def gauss_newton(reference: Reference, images: PackedImages, motion: Motion, modes: Modes, n_pixels: int,
                 max_steps: int) -> Modes:
    """Levenberg–Marquardt on (w, u) from each mode, likelihood to ``n_pixels`` pixels, prior included."""
    xp = array_module(modes.w)
    modes, gradient = evaluate(reference, images, motion, modes.owner, modes.w, modes.shift, modes.rotation, n_pixels)
    damping = xp.full(len(modes.owner), 1e-3)
    active = xp.arange(len(modes.owner))
    for _ in range(max_steps):
        current, g = modes.take(active), gradient[active]
        step = damped_step(current.precision, g, damping[active])
        going = xp.sum(step * g, axis=-1) > 2 * CONVERGED_GAIN
        active, current, step = active[going], current.take(going), step[going]
        if len(active) == 0:
            break
        rotation = current.rotation @ exp_map(step[:, :3])
        w = log_map(xp.swapaxes(motion.rotation0[current.owner], 1, 2) @ rotation)
        w, shift, rotation = clip_to_extents(motion, current.owner, w, current.shift + step[:, 3:])
        trial, trial_gradient = evaluate(reference, images, motion, current.owner, w, shift, rotation, n_pixels)
        better = trial.score > current.score
        modes.put(active[better], trial.take(better))
        gradient[active[better]] = trial_gradient[better]
        damping[active] = xp.where(better, damping[active] * 0.1, damping[active] * 30)
    return modes


def damped_step(precision: Array, gradient: Array, damping: Array) -> Array:
    """(A + λ diag A)⁻¹ g for m systems of five unknowns."""
    xp = array_module(gradient)
    diagonal = xp.diagonal(precision, axis1=1, axis2=2)
    ridge = 1e-6 * xp.sum(diagonal, axis=-1, keepdims=True) + 1e-12
    a = precision + (damping[:, None] * diagonal + ridge)[:, :, None] * xp.eye(5)
    return xp.linalg.solve(a, gradient[..., None])[..., 0]


def grid_scores(reference: Reference, images: PackedImages, motion: Motion, grid: Grid, n_pixels: int) -> Array:
    """Score (n, G, S) of every grid pose; −inf outside the extents."""
    xp = array_module(images.matched)
    p = images.pixels
    w, shifts = xp.asarray(grid.rotations), xp.asarray(grid.shifts)
    kx, ky = p.kx[:n_pixels], p.ky[:n_pixels]
    phase = xp.exp(2j * np.pi / p.box_size * (shifts[:, :1] * kx + shifts[:, 1:] * ky)).astype(np.complex64)
    rotation = motion.rotation0[:, None] @ exp_map(w)
    out = xp.empty((len(images.matched), len(w), len(shifts)), np.float32)
    chunk = max(1, GRID_CHUNK_BYTES // (8 * n_pixels * (len(shifts) + len(w))))
    for start in range(0, len(out), chunk):
        part = slice(start, start + chunk)
        matched = images.matched[part, None, :n_pixels] * phase
        weight = xp.ascontiguousarray(images.weight[part, :n_pixels])
        rows = slice_rows(rotation[part], reference.scale)
        out[part] = score_grid(reference.ft, rows, kx, ky, matched, weight)
    return out + grid_log_prior(motion, w, shifts, rotation)


def grid_log_prior(motion: Motion, w: Array, shifts: Array, rotation: Array) -> Array:
    """log prior (n, G, S) float32 on the grid, −inf outside the extents."""
    xp = array_module(w)
    turned = rotation - motion.rotation0[:, None]

    def at(offset: Array) -> Array:
        return project(turned, offset)[:, :, None] + shifts

    displacement = at(motion.prior_offset)
    x = xp.concatenate([xp.broadcast_to(w[None, :, None], displacement.shape[:-1] + (3,)), displacement], axis=-1)
    x = x - motion.mean[:, None, None]
    energy = xp.einsum("ngsi,nij,ngsj->ngs", x, motion.precision, x, optimize=True)
    fulcrum = at(motion.fulcrum_offset)
    outside = xp.sum(fulcrum * fulcrum, axis=-1) > motion.shift_extent ** 2
    return xp.where(outside, -xp.inf, -0.5 * energy).astype(np.float32)


def grid_candidates(scores: Array, grid: Grid) -> Tuple[Array, Array, Array]:
    """Up to MAX_MODES local maxima over rotation per image: owner (m,), w (m, 3), shift (m, 2)."""
    xp = array_module(scores)
    best_shift = xp.argmax(scores, axis=2)
    best = xp.max(scores, axis=2)
    around = xp.max(best[:, xp.asarray(grid.neighbours)], axis=2)
    peak = xp.where(best >= around, best, -xp.inf)
    order = xp.argsort(-peak, axis=1)[:, :MAX_MODES]
    value = xp.take_along_axis(peak, order, axis=1)
    keep = value > xp.max(value, axis=1, keepdims=True) - KEEP_LOG_LIKELIHOOD
    owner, slot = xp.nonzero(keep)
    g = order[owner, slot]
    return owner, xp.asarray(grid.rotations)[g], xp.asarray(grid.shifts)[best_shift[owner, g]]


def prune(modes: Modes, n: int, same_rotation: float, same_shift: float, margin: float = KEEP_LOG_LIKELIHOOD) -> Modes:
    """Drop modes far below the best of their image, and duplicates; modes stay ordered by image, best first."""
    xp = array_module(modes.w)
    order = xp.lexsort(xp.stack([-modes.score, modes.owner.astype(np.float64)]))
    modes = modes.take(order)
    start = xp.searchsorted(modes.owner, xp.arange(n))
    rank = xp.arange(len(modes.owner)) - start[modes.owner]
    keep = modes.score > modes.score[start[modes.owner]] - margin
    for behind in range(1, MAX_MODES + 1):
        earlier = xp.maximum(xp.arange(len(rank)) - behind, 0)
        close = (xp.sum((modes.w - modes.w[earlier]) ** 2, axis=1) < same_rotation ** 2) & (
            xp.sum((modes.shift - modes.shift[earlier]) ** 2, axis=1) < same_shift ** 2)
        keep &= ~((rank >= behind) & close)
    return modes.take(keep)


def search(reference: Reference, images: PackedImages, motion: Motion, grid: Grid, levels: Sequence[int],
           known: List[Tuple[Array, Array, Array]], steps: Sequence[int]) -> Modes:
    """All modes of n images, ordered by image, best first.

    Parameters
    ----------
    levels : numbers of pixels of the grid level and of each Gauss–Newton level.
    known : further starting poses (owner, w, u), e.g. those of the last iteration.
    steps : most Gauss–Newton steps at each level after the grid.
    """
    xp = array_module(images.matched)
    n = len(images.matched)
    starts = [grid_candidates(grid_scores(reference, images, motion, grid, levels[0]), grid)] + known
    owner, w, shift = (xp.concatenate([s[i] for s in starts]) for i in range(3))
    w, shift, rotation = clip_to_extents(motion, owner, w, shift)
    blank = xp.zeros(len(owner))
    square = xp.zeros((len(owner), 5, 5))
    modes = Modes(owner, w, shift, rotation, blank, blank.copy(), square, square.copy())
    rotation_step = float(np.linalg.norm(grid.rotations[1])) if len(grid.rotations) > 1 else 1.0
    shift_step = float(np.linalg.norm(grid.shifts[1])) if len(grid.shifts) > 1 else 1.0
    for n_pixels, max_steps in zip(levels[1:], steps):
        modes = gauss_newton(reference, images, motion, modes, n_pixels, max_steps)
        modes = prune(modes, n, 0.25 * rotation_step, 0.25 * shift_step)
    return modes


def mode_weights(modes: Modes, n: int) -> Array:
    """Posterior probability (m,) of each mode among those of its image (Laplace): ∝ e^score |A|^{−½}."""
    xp = array_module(modes.w)
    _, log_det = xp.linalg.slogdet(modes.precision + 1e-9 * xp.eye(5))
    log_mass = modes.score - 0.5 * log_det
    start = xp.searchsorted(modes.owner, xp.arange(n))
    top = xp.full(n, -xp.inf)
    maximum_at(top, modes.owner, log_mass)
    mass = xp.exp(log_mass - top[modes.owner])
    total = xp.add.reduceat(mass, start) if xp is np else xp.bincount(modes.owner, mass, n)
    return mass / total[modes.owner]


def maximum_at(target: Array, index: Array, values: Array) -> None:
    xp = array_module(target)
    xp.maximum.at(target, index, values)


def best_modes(modes: Modes, n: int) -> Modes:
    """The best mode of each image, in image order."""
    xp = array_module(modes.w)
    return modes.take(xp.searchsorted(modes.owner, xp.arange(n)))


