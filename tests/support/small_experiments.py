"""Half-sets of a few particles, aligned on a device and compared with the CPU."""
from __future__ import annotations

import numpy as np
from experiments import experiment

from localrefine_plugin.engine.align.half_set import align_half

RESOLUTION = 12.0


BOX = 24


def small_experiment(n=10, **changes):
    return experiment(n, box=BOX, pixel_size=4.0, noise=0.5, seed=3, centre=(2.0, -1.0, 1.0), **changes)


def aligned(e, device, previous=None, **settings):
    return align_half(e.half_set(previous=previous), e.plan(RESOLUTION, **settings), device)


def assert_same(on_gpu, on_cpu):
    """Equal but for the order of sums: 0.02° and 0.01 px are a hundredth of the poses' uncertainty here."""
    np.testing.assert_allclose(on_gpu.poses.rotation, on_cpu.poses.rotation, atol=np.deg2rad(0.02))
    np.testing.assert_allclose(on_gpu.poses.shift_px, on_cpu.poses.shift_px, atol=0.01)
    np.testing.assert_array_equal(on_gpu.poses.modes, on_cpu.poses.modes)
    np.testing.assert_array_equal(on_gpu.poses.insertions, on_cpu.poses.insertions)
    np.testing.assert_allclose(on_gpu.noise_power, on_cpu.noise_power, rtol=1e-3)
    assert np.linalg.norm(on_gpu.half_map - on_cpu.half_map) < 2e-3 * np.linalg.norm(on_cpu.half_map)
    assert (on_gpu.motion is None) == (on_cpu.motion is None)
    if on_gpu.motion is not None:
        theirs = on_cpu.motion.covariance
        np.testing.assert_allclose(on_gpu.motion.covariance, theirs, atol=5e-3 * np.abs(theirs).max())
    for name, value in on_gpu.poses.columns().items():
        assert type(getattr(value, "triangles", value)) is np.ndarray, name
