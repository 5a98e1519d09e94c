"""Arguments of every kernel, small enough for direct sums."""
from __future__ import annotations

import numpy as np

from localrefine_plugin.engine.align.reference import slice_rows
from localrefine_plugin.engine.kernels.device import to_host
from localrefine_plugin.engine.kernels.insert import insert_slices
from localrefine_plugin.engine.kernels.slices import extract_slices, gauss_newton_sums, score_grid
from localrefine_plugin.engine.maps.reconstruct import enforce_hermitian, new_accumulator
from localrefine_plugin.engine.model import pixels as px
from localrefine_plugin.engine.model.pose import random_rotations

BOX, SCALE, REACH = 20, 1.7, 19


def half_volume(reach=REACH, seed=1):
    """Hermitian noise: nothing smooth hides a wrong corner. (2 reach + 1, 2 reach + 1, reach + 1)."""
    rng = np.random.default_rng(seed)
    shape = (2 * reach + 1, 2 * reach + 1, reach + 1)
    half = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    half[..., 0] = 0.5 * (half[..., 0] + half[::-1, ::-1, 0].conj())
    return half


class Problem:
    """Inputs of all four operators, as numpy arrays; ``on`` puts them elsewhere."""

    def __init__(self, n=3, m=7, seed=2, reach=REACH):
        rng = np.random.default_rng(seed)
        self.shell = px.highest_shell(BOX)
        p = px.pixel_list(BOX, self.shell, self.shell)
        self.turns = random_rotations(m, rng)
        self.ft, self.kx, self.ky = half_volume(reach), p.kx, p.ky
        self.rows, self.owner = slice_rows(self.turns, SCALE), np.arange(m) % n
        self.grid_rows = slice_rows(random_rotations(n * 5, rng), SCALE).reshape(n, 5, 2, 3)
        self.shift = rng.uniform(-3, 3, (m, 2))
        self.z = self.complex(rng, (n, len(p)))
        self.grid_z = self.complex(rng, (n, 4, len(p)))
        self.w = rng.uniform(0.1, 1, (n, len(p))).astype(np.float32)
        half_plane = (n, 2 * self.shell + 1, self.shell + 1)
        self.image = self.complex(rng, half_plane)
        self.image_weight = rng.uniform(0.1, 1, half_plane).astype(np.float32)
        self.gamma, self.variance = rng.uniform(0.2, 1, m), rng.uniform(0, 0.5, m)
        self.last = px.last_column(self.shell)
        self.accumulator = new_accumulator(self.shell)

    @staticmethod
    def complex(rng, shape):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)

    def on(self, xp):
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, xp.asarray(value))
        return self

    def slices(self):
        return to_host(extract_slices(self.ft, self.rows, self.kx, self.ky))

    def scores(self):
        return to_host(score_grid(self.ft, self.grid_rows, self.kx, self.ky, self.grid_z, self.w))

    def sums(self, curvature=True, n_pixels=None):
        n_pixels = len(self.kx) if n_pixels is None else n_pixels
        return [to_host(a) for a in gauss_newton_sums(self.ft, self.rows, self.shift, self.owner, self.kx, self.ky,
                                                      n_pixels, self.z, self.w, BOX, curvature)]

    def inserted(self):
        insert_slices(self.accumulator, self.rows, self.owner, self.gamma, self.shift, self.variance, self.last,
                      self.image, self.image_weight, BOX)
        result = to_host(self.accumulator)
        enforce_hermitian(result)
        return result
