"""The best poses of the sub-volume near the known one: a coarse grid, then Gauss–Newton.

Coordinates of a pose are x = (w, u): R = R0·Exp(w) and the displacement u (px) of the projected
mask centre c, in which rotation and shift nearly decouple. The fulcrum enters only through the
prior and the extents. What the search sees of an image is its matched filter
Z and its weight W (`PackedImages`): log L = Re⟨Z, P⟩ − ½⟨W, |P|²⟩.

Array-module code: runs on numpy or CuPy arrays alike.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from ..kernels import poses
from ..kernels.cuda import pose_sums
from ..kernels.device import array_module, stable_argsort, working_bytes
from ..kernels.slices import gauss_newton_sums, score_grid
from ..model.optics import derivatives_by_specimen_shift, image_shift, specimen_shift
from ..model.pixels import PixelList
from ..model.pose import exp_map, log_map, rotation_vector_ball, shift_disc
from .modes import Modes
from .prior import PosePrior, clip_to_extents, grid_log_prior, log_prior
from .reference import Reference, slice_rows

Array = Any
MAX_MODES = 4
KEEP_LOG_LIKELIHOOD = 12.0  # a mode this far below the best has posterior weight < 1e-5
SAME_MODE = 0.25  # grid steps: modes closer than this are one
REACH = 0.58  # grid steps: no point of the plane is further from the hexagonal lattice of shifts (1/√3)
CONVERGED_GAIN = 0.03  # log-likelihood units: a quarter of a posterior s.d. is left to the next iteration


@dataclass(frozen=True)
class PackedImages:
    """n images as the search sees them, moved so that u = 0 is the pose the search starts from.

    matched Z (n, K) complex64 = 2 C X e^{+2πi k·u0/N} / σ²;  weight W (n, K) float32 = 2 C² / σ²;
    magnification (n, 2, 2) or None (optics.py).
    """

    pixels: PixelList
    matched: Array
    weight: Array
    magnification: Optional[Array] = None

    def take(self, index: Array) -> "PackedImages":
        return PackedImages(self.pixels, self.matched[index], self.weight[index], self.magnification_of(index))

    def magnification_of(self, owner: Any) -> Optional[Array]:
        return None if self.magnification is None else self.magnification[owner]


@dataclass(frozen=True)
class Grid:
    """The coarse grid: rotations (G, 3) in rad, also as matrices ``turns`` (G, 3, 3), with their neighbours (G, B);
    shifts (S, 2) in px."""

    rotations: Array
    turns: Array
    neighbours: Array
    shifts: Array
    rotation_step: float
    shift_step: float

    def to_device(self, to_device: Callable[[np.ndarray], Array]) -> "Grid":
        """The grid where ``to_device`` puts arrays."""
        names = ("rotations", "turns", "neighbours", "shifts")
        return replace(self, **{name: to_device(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class Levels:
    """Numbers of pixels of the grid level and of each refining level, and most steps of each refining level."""

    pixels: List[int]
    steps: List[int]


def make_grid(rotation_extent: float, shift_reach_px: float, rotation_step: float, shift_step_px: float) -> Grid:
    """Grid of rotation vectors in a ball and shifts in a disc."""
    rotations = rotation_vector_ball(rotation_extent, rotation_step)
    distance = np.linalg.norm(rotations[:, None] - rotations[None], axis=-1)
    near = distance < 1.2 * rotation_step
    width = max(1, int(near.sum(1).max()))
    neighbours = np.argsort(np.where(near, distance, np.inf), axis=1, kind="stable")[:, :width]
    own = np.arange(len(rotations))[:, None]
    neighbours = np.where(np.take_along_axis(near, neighbours, axis=1), neighbours, own)
    shifts = shift_disc(shift_reach_px, shift_step_px)
    return Grid(rotations, exp_map(rotations), neighbours, shifts, rotation_step, shift_step_px)


def evaluate(reference: Reference, images: PackedImages, prior: PosePrior, modes: Modes, n_pixels: int,
             curvature: bool) -> Tuple[Modes, Array]:
    """The modes with score and gradient (m, 5) at their poses; curvature and precision anew only if asked."""
    p, m = images.pixels, images.magnification_of(modes.owner)
    log_l, gradient, h = gauss_newton_sums(
        reference.ft, slice_rows(modes.rotation, reference.scale, m), image_shift(modes.shift, m), modes.owner, p.kx,
        p.ky, n_pixels, images.matched, images.weight, p.box_size, curvature)
    gradient, h = derivatives_by_specimen_shift(gradient, h, m)
    log_p, prior_gradient, prior_curvature = log_prior(prior, modes.owner, modes.w, modes.rotation, modes.shift)
    if prior.self_noise_bias is not None:
        own, own_gradient = prior.self_noise_bias.at(modes.owner, modes.rotation, modes.shift)
        log_l, gradient = log_l - own, gradient - own_gradient
    found = dict(log_likelihood=log_l, score=log_l + log_p)
    if curvature:
        found.update(curvature=h, precision=h + prior_curvature)
    return modes.changed(**found), gradient + prior_gradient


def gauss_newton(reference: Reference, images: PackedImages, prior: PosePrior, modes: Modes, n_pixels: int,
                 max_steps: int) -> Modes:
    """Damped Newton steps on (w, u) from each mode, likelihood to ``n_pixels`` pixels, prior included.

    The curvature begins as Gauss–Newton's at the start, which is what the modes keep as their precision.
    With noisy images the part it leaves out is not small, so the curvature the steps go by is
    corrected by the change of the gradient (BFGS), which also spares its sums at every later pose.
    """
    if prior.table is not None:
        return newton_on_gpu(reference, images, prior.table, modes, n_pixels, max_steps)
    modes, gradient = evaluate(reference, images, prior, modes, n_pixels, curvature=True)
    hessian = modes.precision.copy()
    damping = np.full(len(modes.owner), 1e-3)
    active = np.arange(len(modes.owner))
    for _ in range(max_steps):
        step = damped_step(hessian[active], gradient[active], damping[active])
        going = np.flatnonzero(np.sum(step * gradient[active], axis=-1) > 2 * CONVERGED_GAIN)
        active, step = active[going], step[going]
        if len(active) == 0:
            break
        current = modes.take(active)
        target = moved(prior, current, step)
        trial, trial_gradient = evaluate(reference, images, prior, target, n_pixels, curvature=False)
        hessian[active] = secant_update(hessian[active], step, gradient[active] - trial_gradient)
        better = trial.score > current.score
        damping[active] = np.where(better, damping[active] * 0.1, damping[active] * 10)
        better = np.flatnonzero(better)
        modes.assign(active[better], trial.take(better))
        gradient[active[better]] = trial_gradient[better]
    return modes.changed(gradient=gradient)


def newton_on_gpu(reference: Reference, images: PackedImages, table: poses.PoseTable, modes: Modes, n_pixels: int,
                  max_steps: int) -> Modes:
    """`gauss_newton` where nobody waits to hear which modes go on."""
    p = images.pixels
    newton = poses.Newton(table, modes.owner, modes.table.copy(), reference.scale, p.box_size)

    def sums(active: Optional[Array]) -> Array:
        return pose_sums(reference.ft, newton.rows, newton.shifts, modes.owner, p.kx, p.ky, n_pixels, images.matched,
                         images.weight, p.box_size, active)
    newton.begin(sums(None))
    for _ in range(max_steps):
        newton.propose(2 * CONVERGED_GAIN)
        newton.accept(sums(newton.active))
    return Modes(modes.owner, newton.records)


def secant_update(hessian: Array, step: Array, change: Array) -> Array:
    """BFGS update of m curvatures A (m, 5, 5) by steps s and changes y of the downhill gradient.

    A stays as it is where yᵀs ≤ 0.1 sᵀA s: there the model or the trial is not to be trusted.
    """
    pushed = (hessian @ step[..., None])[..., 0]
    model = np.sum(step * pushed, axis=-1)
    actual = np.sum(step * change, axis=-1)
    trusted = actual > 0.1 * model
    gain = change[:, :, None] * change[:, None, :] / np.where(trusted, actual, 1.0)[:, None, None]
    loss = pushed[:, :, None] * pushed[:, None, :] / np.where(trusted, model, 1.0)[:, None, None]
    return hessian + np.where(trusted[:, None, None], gain - loss, 0.0)


def moved(prior: PosePrior, modes: Modes, step: Array) -> Modes:
    """The modes after steps (δ, Δu) (m, 5), inside the extents."""
    rotation = modes.rotation @ exp_map(step[:, :3])
    w = log_map(np.swapaxes(prior.rotation0[modes.owner], 1, 2) @ rotation)
    w, shift, rotation = clip_to_extents(prior, modes.owner, w, modes.shift + step[:, 3:])
    return modes.changed(w=w, shift=shift, rotation=rotation)


def damped_step(precision: Array, gradient: Array, damping: Array) -> Array:
    """(A + λ diag A)⁻¹ g (m, 5) for A (m, 5, 5) and g (m, 5)."""
    diagonal = np.diagonal(precision, axis1=1, axis2=2)
    ridge = 1e-6 * np.sum(diagonal, axis=-1, keepdims=True) + 1e-12
    a = precision + (damping[:, None] * diagonal + ridge)[:, :, None] * np.eye(5)
    return np.linalg.solve(a, gradient[..., None])[..., 0]


def grid_scores(reference: Reference, images: PackedImages, prior: PosePrior, grid: Grid, n_pixels: int) -> Array:
    """Score (n, G, S) of every grid pose; −inf outside the extents. Here only, prior and extents take the shifts of
    the images for those of the specimen."""
    xp = array_module(images.matched)
    p = images.pixels
    w, shifts = grid.rotations, grid.shifts
    kx, ky = p.kx[:n_pixels], p.ky[:n_pixels]
    phase = xp.exp(2j * np.pi / p.box_size * (shifts[:, :1] * kx + shifts[:, 1:] * ky)).astype(np.complex64)
    out = xp.empty((len(images.matched), len(w), len(shifts)), np.float32)
    chunk = max(1, working_bytes(images.matched) // (8 * n_pixels * (len(shifts) + len(w))))
    for start in range(0, len(out), chunk):  # the prior too: its float64 would be most of the memory of a batch
        part = slice(start, start + chunk)
        rotation = prior.rotation0[part, None] @ grid.turns
        matched = images.matched[part, None, :n_pixels] * phase
        weight = xp.ascontiguousarray(images.weight[part, :n_pixels])
        rows = slice_rows(rotation, reference.scale, images.magnification_of((part, None)))
        out[part] = score_grid(reference.ft, rows, kx, ky, matched, weight)
        if prior.table is None:
            out[part] += grid_log_prior(prior.take(part), w, shifts, rotation, REACH * grid.shift_step)
    if prior.table is not None:
        poses.add_grid_prior(prior.table, w, grid.turns, shifts, REACH * grid.shift_step, out)
    return out


def grid_candidates(scores: Array, grid: Grid) -> Tuple[Array, Array, Array]:
    """Up to MAX_MODES local maxima over rotation per image: owner (m,), w (m, 3), shift (m, 2)."""
    xp = array_module(scores)
    best_shift = xp.argmax(scores, axis=2)
    best = xp.max(scores, axis=2)
    around = xp.max(best[:, grid.neighbours], axis=2)
    peak = xp.where(best >= around, best, -xp.inf)
    order = stable_argsort(-peak, axis=1)[:, :MAX_MODES]
    value = xp.take_along_axis(peak, order, axis=1)
    keep = value > xp.max(value, axis=1, keepdims=True) - KEEP_LOG_LIKELIHOOD
    owner, slot = xp.nonzero(keep)
    g = order[owner, slot]
    return owner, grid.rotations[g], grid.shifts[best_shift[owner, g]]


def prune(modes: Modes, n: int, same_rotation: float, same_shift: float, margin: float = KEEP_LOG_LIKELIHOOD) -> Modes:
    """Drop modes far below the best of their image, and duplicates; modes stay ordered by image, best first."""
    xp = array_module(modes.table)
    order = xp.lexsort(xp.stack([-modes.score, modes.owner.astype(np.float64)]))
    if xp is not np:
        kept = poses.kept_modes(order, modes.owner, modes.table, MAX_MODES, margin, (same_rotation, same_shift))
        return modes.take(order[xp.nonzero(kept)[0]])
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


def search(reference: Reference, images: PackedImages, prior: PosePrior, grid: Grid, levels: Levels,
           known: Optional[Tuple[Array, Array]], unsettled: np.ndarray) -> Modes:
    """All modes of n images, ordered by image, best first.

    Parameters
    ----------
    known : (w, u) of the last iteration's pose of every image, one more start; or None.
    unsettled : (n,) bool on the host, the images that go through the grid; the others start from ``known`` at the
        last level.
    """
    xp = array_module(images.matched)
    n = len(images.matched)
    same = SAME_MODE * grid.rotation_step, SAME_MODE * grid.shift_step
    modes = None if known is None else modes_at(prior, xp.arange(n), *known)
    if unsettled.any():
        index, rest = (xp.asarray(np.flatnonzero(some)) for some in (unsettled, ~unsettled))
        those = (images, prior) if unsettled.all() else (images.take(index), prior.take(index))
        owner, w, shift = grid_candidates(grid_scores(reference, *those, grid, levels.pixels[0]), grid)
        owner = index[owner]
        found = modes_at(prior, owner, w, specimen_shift(shift, images.magnification_of(owner)))
        if modes is not None:
            found = found.join(modes.take(index))
        for n_pixels, steps in zip(levels.pixels[1:-1], levels.steps):
            found = prune(gauss_newton(reference, images, prior, found, n_pixels, steps), n, *same)
        modes = found if modes is None else found.join(modes.take(rest))
    assert modes is not None
    return prune(gauss_newton(reference, images, prior, modes, levels.pixels[-1], levels.steps[-1]), n, *same)


def modes_at(prior: PosePrior, owner: Array, w: Array, shift: Array) -> Modes:
    """Modes not yet evaluated at poses w (m, 3), shift (m, 2) of images owner (m,), moved inside the extents."""
    if prior.table is not None:
        owner = owner.astype(np.int32)
        return Modes(owner, poses.place_modes(prior.table, owner, w, shift))
    w, shift, rotation = clip_to_extents(prior, owner, w, shift)
    return Modes.of(owner, w=w, shift=shift, rotation=rotation)
