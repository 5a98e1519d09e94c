"""The maps that a film or a composite is put together from: a refined sub-volume, and the rest of the particle.

A film's frame at the motion x is   v(x) = x∘(m · B) + (1 − μ∘m) · R,   with B the refined map, m its mask, R the map of
the rest, and x∘ the motion of a rigid part. The two parts are added, not blended: where the sub-volume leaves its place
there is nothing, and where it comes near the rest both are there. At the mean motion μ the weights add up to 1.
"""
from __future__ import annotations

from typing import Optional, Tuple

import numpy as np

from ..inputs.grids import read_on_grid
from ..io.run_folder import read_json, reading
from ..maps.fsc import resolution_at, spherical_mask
from ..maps.half_maps import HalfMaps
from ..maps.sharpen import sharpen
from ..records.iteration import FSC_THRESHOLD
from .finished import Body
from .rigid import RigidPart


class Scene:
    """The frames of a body that moves against a rest; ``mean`` (6,) is the motion, rad and px, at which the body's mask
    is cut out of the rest."""

    def __init__(self, body: Body, rest: Optional[Body], mean: np.ndarray, workers: int):
        mask = body.map("mask.mrc")
        self.part = RigidPart(body.map("map_sharpened.mrc"), mask, body.centre)
        at_mean = RigidPart(np.ones_like(mask), mask, body.centre).moved(mean[:3], mean[3:])
        outside = 1 - np.clip(at_mean, 0, 1)
        self.rest = outside * map_of_rest(body, rest, outside, workers)

    def frame(self, motion: np.ndarray) -> np.ndarray:
        """The particle with its sub-volume moved by (w, d) (6,), rad and px: (N, N, N) float32."""
        moved = self.part.moved(motion[:3], motion[3:])
        moved += self.rest
        return moved


def map_of_rest(body: Body, rest: Optional[Body], outside: np.ndarray, workers: int) -> np.ndarray:
    """The map (N, N, N) of the rest, weighted by the FSC of its half-maps ``outside`` the mask of the body, and with
    the B-factor that the body's map has."""
    maps = half_maps_of_rest(body, rest)
    halves = HalfMaps(maps[0], maps[1], workers)
    curve = halves.under(outside * spherical_mask(halves.box_size))
    pixel_size = body.given.pixel_size
    resolution = resolution_at(curve, FSC_THRESHOLD, halves.box_size, pixel_size)
    path = body.run.final("sharpening.json")
    with reading(path):
        b_factor = float(read_json(path)["b_factor_applied"])
    return np.asarray(sharpen(0.5 * (maps[0] + maps[1]), pixel_size, curve, resolution, b_factor, workers)[0])


def half_maps_of_rest(body: Body, rest: Optional[Body]) -> Tuple[np.ndarray, np.ndarray]:
    """The half-maps of another run, or those that the body's run was given, on the grey scale of its results."""
    if rest is not None:
        return rest.map("half_map_1.mrc"), rest.map("half_map_2.mrc")
    given = body.given
    first, second = (scale * read_on_grid(path, f"half-map {half} {path}", body.particles,
                                          given.resolved.resample_maps)[0].astype(np.float32)
                     for half, path, scale in zip((1, 2), given.half_maps, given.grey_scale))
    return first, second
