"""Phantom maps for the tests of FSC, masks, sharpening and filters: clouds of Gaussian atoms."""
from __future__ import annotations

import numpy as np

from localrefine_plugin.engine.model import fourier


def atoms(count, radius_px, seed=0):
    """(count, 3) points x, y, z in px from the box centre, uniform in a ball."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return direction * radius_px * rng.random((count, 1)) ** (1 / 3)


def density(points, box_size, sigma_px=1.0):
    """Σ exp(−|v − p|²/2σ²) on the grid, origin in voxel N // 2: (N, N, N) float32."""
    axis = np.arange(box_size) - box_size // 2
    x, y, z = (np.exp(-np.square(axis - points[:, i:i + 1]) / (2 * sigma_px ** 2)).astype(np.float32)
               for i in range(3))
    return (z.T @ (y[:, :, None] * x[:, None, :]).reshape(len(points), -1)).reshape((box_size,) * 3)


def ball(box_size, radius_px, edge_px=0.0, centre=(0, 0, 0)):
    """Soft ball: 1 up to radius, raised cosine of width edge; centre x, y, z in px from the box centre."""
    axis = np.arange(box_size) - box_size // 2
    x, y, z = centre
    radius = np.sqrt((axis[:, None, None] - z) ** 2 + (axis[:, None] - y) ** 2 + (axis - x) ** 2)
    return fourier.cosine_edge(radius, radius_px + edge_px / 2, max(edge_px, 1e-6)).astype(np.float32)


def coloured_noise(box_size, seed, fall_off_shells=12.0):
    """White noise times exp(−(|k|/fall_off)²/2): noise without power beyond, like a reconstruction's."""
    white = np.random.default_rng(seed).standard_normal((box_size,) * 3).astype(np.float32)
    shells = np.arange(box_size)
    return fourier.apply_shell_filter(white, 0.2 + np.exp(-(shells / fall_off_shells) ** 2 / 2))


def half_maps(box_size=48, radius_px=13.0, noise=0.35, atom_count=700, sigma_px=1.0, seed=0):
    """(truth, half 1, half 2): the phantom and two copies with independent noise of `noise` × its s.d. inside."""
    truth = density(atoms(atom_count, radius_px, seed), box_size, sigma_px)
    amplitude = noise * truth[ball(box_size, radius_px) > 0.5].std()
    rng = np.random.default_rng([seed, 77])
    halves = [truth + amplitude * rng.standard_normal(truth.shape).astype(np.float32) for _ in range(2)]
    return truth, halves[0].astype(np.float32), halves[1].astype(np.float32)
