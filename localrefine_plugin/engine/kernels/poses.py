"""The small matrices of poses on a GPU: launchers of newton.cu and posterior.cu.

Their twins on the CPU are numpy's, in align/search.py, prior.py, marginalize.py and reference_errors.py, which call
these when their arrays are CuPy's. Everything is float64 but what slices.cu takes. The arrays:

    images (n, 63)      R0 (9), precision (25) and mean (5) of the prior; form (9), last rotation (9) and last shift (2)
                        of the self-noise; magnification (4)
    limits (9,)         prior point (3) and fulcrum (3) from the mask centre, rotation extent, shift extent, tails
    records (m, 71)     align/modes.py
    work (m, 45)        the curvature that the steps go by (25), damping, step (5), trial: w, shift and rotation (14)
    insertions (m, 13)  rotation (9), shift (2), weight, variance of the shift
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Optional, Tuple

import numpy as np

from .cuda import BLOCK, blocks, checked, kernel
from .device import array_module

Array = Any
IMAGE, LIMITS, RECORD, WORK, INSERTION = 63, 9, 71, 45, 13
CORNERS = 4  # insertions of a mode, at most
OWN_PRECISION, MEAN, FORM, LAST_ROTATION, LAST_SHIFT, MAGNIFICATION = 9, 34, 39, 48, 57, 59


@dataclass(frozen=True)
class PoseTable:
    """What the kernels read of n images: images (n, 63) and limits (9,) as above; of the self-noise, strength (n, S)
    and rates (n, S, 2) float32, with S = 0 where there is none."""

    images: Array
    limits: Array
    strength: Array
    rates: Array

    @classmethod
    def of(cls, rotation0: Array, precision: Array, mean: Array, limits: np.ndarray,
           magnification: Optional[Array] = None) -> "PoseTable":
        """Of rotation0 (n, 3, 3), precision (n, 5, 5), mean (n, 5) and magnification (n, 2, 2), None for ones."""
        xp, n = array_module(rotation0), len(rotation0)
        images = xp.zeros((n, IMAGE))
        images[:, :OWN_PRECISION] = rotation0.reshape(n, 9)
        images[:, OWN_PRECISION:MEAN] = precision.reshape(n, 25)
        images[:, MEAN:FORM] = mean
        if magnification is None:
            images[:, MAGNIFICATION::3] = 1.0
        else:
            images[:, MAGNIFICATION:] = magnification.reshape(n, 4)
        none = xp.zeros((n, 0), np.float32)
        return cls(images, xp.asarray(limits), none, none.reshape(n, 0, 2))

    def with_self_noise(self, strength: Array, rates: Tuple[Array, Array], form: Array, rotation: Array,
                        shift: Array) -> "PoseTable":
        """With strength (n, S) and rates (n, S) by rotation and by shift, form (n, 3, 3), last rotation and shift."""
        n = len(self.images)
        self.images[:, FORM:LAST_ROTATION] = form.reshape(n, 9)
        self.images[:, LAST_ROTATION:LAST_SHIFT] = rotation.reshape(n, 9)
        self.images[:, LAST_SHIFT:MAGNIFICATION] = shift
        return replace(self, strength=strength, rates=array_module(form).stack(list(rates), axis=2))

    def take(self, index: Array) -> "PoseTable":
        return PoseTable(self.images[index], self.limits, self.strength[index], self.rates[index])

    @property
    def places(self) -> Tuple[Array, Array]:
        """The arguments ``images`` and ``limits`` of kernels."""
        xp, n = array_module(self.images), len(self.images)
        return (checked(xp, "images", self.images, np.float64, (n, IMAGE)),
                checked(xp, "limits", self.limits, np.float64, (LIMITS,)))

    @property
    def self_noise(self) -> Tuple[np.int32, Array, Array]:
        """The arguments ``shells``, ``strength`` and ``rates``."""
        xp, (n, shells) = array_module(self.images), self.strength.shape
        return (np.int32(shells), checked(xp, "strength", self.strength, np.float32, (n, shells)),
                checked(xp, "rates", self.rates, np.float32, (n, shells, 2)))


def launch(xp: Any, source: str, name: str, items: int, arguments: Tuple[Any, ...]) -> None:
    """A kernel with one thread for each of so many items, whose number is its first argument."""
    if items:
        kernel(xp, source, name)((blocks(items),), (BLOCK,), arguments)


def owners(xp: Any, owner: Array) -> Tuple[np.int32, Array]:
    """The arguments ``m`` and ``owner``."""
    return np.int32(len(owner)), checked(xp, "owner", owner, np.int32, (len(owner),))


def place_modes(table: PoseTable, owner: Array, w: Array, shift: Array) -> Array:
    """Records (m, 71) of modes at w (m, 3) and shift (m, 2), moved inside the extents; see search.modes_at."""
    xp, m = array_module(w), len(owner)
    records = xp.empty((m, RECORD), np.float64)
    poses = xp.concatenate([w, shift], axis=1)
    launch(xp, "newton.cu", "place_modes", m, (*owners(xp, owner), checked(xp, "poses", poses, np.float64, (m, 5)),
                                               *table.places, records))
    return records


class Newton:
    """Newton steps of m modes of images in a `PoseTable`; see search.gauss_newton. None of it waits: modes that are
    done stay in their rows, and kernels pass them over.

    records : (m, 71), changed in place.  rows (m, 2, 3), shifts (m, 2) float32, active (m,) int32: where slices.cu is
    to sum next, and for which modes.
    """

    def __init__(self, table: PoseTable, owner: Array, records: Array, scale: float, box_size: int):
        self.xp, self.table, m = array_module(records), table, len(owner)
        self.owner, self.scale, self.omega = owner, np.float64(scale), np.float64(2 * np.pi / box_size)
        self.records = checked(self.xp, "records", records, np.float64, (m, RECORD))
        self.work = self.xp.empty((m, WORK), np.float64)
        self.active = self.xp.empty(m, np.int32)
        self.rows, self.shifts = self.xp.empty((m, 2, 3), np.float32), self.xp.empty((m, 2), np.float32)
        launch(self.xp, "newton.cu", "sample_modes", m, (*owners(self.xp, owner), self.records, table.places[0],
                                                         self.scale, self.rows, self.shifts))

    def begin(self, sums: Array) -> None:
        """Score and derivatives at the start, from sums (22, m) there."""
        m = len(self.owner)
        launch(self.xp, "newton.cu", "begin_newton", m, (
            *owners(self.xp, self.owner), checked(self.xp, "sums", sums, np.float64, (22, m)), self.omega,
            *self.table.places, *self.table.self_noise, self.records, self.work, self.active))

    def propose(self, least_gain: float) -> None:
        """Where to sum next; a step that gains less than least_gain / 2 ends a mode."""
        launch(self.xp, "newton.cu", "propose_steps", len(self.owner), (
            *owners(self.xp, self.owner), self.records, *self.table.places, np.float64(least_gain), self.scale,
            self.work, self.active, self.rows, self.shifts))

    def accept(self, sums: Array) -> None:
        """Keep what is better, from sums (7, m) where `propose` said."""
        m = len(self.owner)
        launch(self.xp, "newton.cu", "accept_steps", m, (
            *owners(self.xp, self.owner), self.active, checked(self.xp, "sums", sums, np.float64, (7, m)), self.omega,
            *self.table.places, *self.table.self_noise, self.records, self.work))


def kept_modes(order: Array, owner: Array, records: Array, most: int, margin: float,
               same: Tuple[float, float]) -> Array:
    """Which (m,) int32 of the modes in an ``order`` by image and score stay; see search.prune."""
    xp, m = array_module(records), len(owner)
    kept = xp.empty(m, np.int32)
    number, owner = owners(xp, owner)
    launch(xp, "newton.cu", "mark_modes", m, (
        number, checked(xp, "order", order.astype(np.int32), np.int32, (m,)), owner,
        checked(xp, "records", records, np.float64, (m, RECORD)), np.int32(most), np.float64(margin),
        np.float64(same[0]), np.float64(same[1]), kept))
    return kept


def weigh_modes(owner: Array, records: Array, n: int) -> Tuple[Array, Array]:
    """Weights (m,) of modes and their spread (n, 5, 5); see marginalize.weigh."""
    xp, m = array_module(records), len(owner)
    weights, spread = xp.empty(m, np.float64), xp.empty((n, 5, 5), np.float64)
    launch(xp, "posterior.cu", "weigh_modes", m, (
        *owners(xp, owner), checked(xp, "records", records, np.float64, (m, RECORD)), weights, spread))
    return weights, spread


def make_insertions(owner: Array, records: Array, weights: Array, smallest: float,
                    voxels_per_radian: float) -> Tuple[Array, Array]:
    """Insertions (k, 13) and their modes (k,); see marginalize.posterior_insertions. Counting them waits."""
    xp, m = array_module(records), len(owner)
    insertions, used = xp.empty((m, CORNERS, INSERTION), np.float64), xp.empty((m, CORNERS), np.int32)
    launch(xp, "posterior.cu", "make_insertions", m, (
        *owners(xp, owner), checked(xp, "records", records, np.float64, (m, RECORD)),
        checked(xp, "weights", weights, np.float64, (m,)), np.float64(smallest), np.float64(voxels_per_radian),
        insertions, used))
    index = xp.nonzero(used.ravel())[0]
    return insertions.reshape(m * CORNERS, INSERTION)[index], index // CORNERS


def pose_errors(curvature: Array, precision: Array, share: Array) -> Array:
    """(n, 5, 5); see reference_errors.pose_error_covariance."""
    xp, n = array_module(precision), len(precision)
    errors = xp.empty((n, 5, 5), np.float64)
    square = [checked(xp, name, xp.ascontiguousarray(part), np.float64, (n, 5, 5))
              for name, part in (("curvature", curvature), ("precision", precision))]
    share = checked(xp, "share", share.astype(np.float64), np.float64, (n,))
    launch(xp, "posterior.cu", "pose_errors", n, (np.int32(n), *square, share, errors))
    return errors


def add_grid_prior(table: PoseTable, w: Array, turns: Array, shifts: Array, reach: float, scores: Array) -> None:
    """To scores (n, G, S) in place; see prior.grid_log_prior."""
    xp, (n, n_rotations, n_shifts) = array_module(scores), scores.shape
    launch(xp, "posterior.cu", "add_grid_prior", n * n_rotations, (
        np.int32(n), np.int32(n_rotations), np.int32(n_shifts), checked(xp, "w", w, np.float64, (n_rotations, 3)),
        checked(xp, "turns", turns, np.float64, (n_rotations, 3, 3)),
        checked(xp, "shifts", shifts, np.float64, (n_shifts, 2)), *table.places, np.float64(reach),
        checked(xp, "scores", scores, np.float32, scores.shape)))


def sum_shells(weights: Array, first: np.ndarray) -> Array:
    """Sums (n, S) float32 of weights (n, K) over pixels first[s] … first[s + 1] − 1; first (S + 1,) is the host's."""
    xp, (n, n_pixels), shells = array_module(weights), weights.shape, len(first) - 1
    sums = xp.empty((n, shells), np.float32)
    launch(xp, "posterior.cu", "sum_shells", n * shells, (
        np.int32(n), np.int32(shells), np.int32(n_pixels), xp.asarray(first.astype(np.int32)),
        checked(xp, "weights", weights, np.float32, (n, n_pixels)), sums))
    return sums
