"""Images on their way to the search: expanded copies of an image are transformed once."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gpu.fixtures import STAND_IN, install
from small_experiments import small_experiment

from localrefine_plugin.engine.align import images as images_module
from localrefine_plugin.engine.align.images import HalfSetImages
from localrefine_plugin.engine.kernels.device import CPU, to_host


@pytest.mark.parametrize("device", (CPU, STAND_IN), ids=("cpu", "gpu"))
def test_copies_of_an_image_are_transformed_once(monkeypatch, device):
    """Rows 1, 3 and 4 are of image 2, in two optics groups, of which one has coma."""
    install(monkeypatch)
    transformed, rfft2 = [], images_module.rfft2
    monkeypatch.setattr(images_module, "rfft2", lambda a, workers: transformed.append(len(a)) or rfft2(a, workers))
    e = small_experiment(6)
    coma = replace(e.particles.optics[0], name="coma", odd_zernike=(0.0, 0.0, 0.3))
    particles = replace(e.particles, slice=np.array([0, 2, 1, 2, 2, 4]), optics=e.particles.optics + (coma,),
                        optics_group=np.array([0, 0, 1, 0, 1, 1], np.int32))
    stack = e.images.astype(np.float32)
    noise, shell = np.ones((2, 12)), 11
    loader = HalfSetImages(particles, lambda index: stack[particles.slice[index]], noise, shell, 1, device)
    together = [to_host(part) for part in loader.load(np.arange(6))]
    assert transformed == [5]
    for row in range(6):
        for part, of_all in zip(loader.load(np.array([row])), together):
            np.testing.assert_array_equal(to_host(part)[0], of_all[row])
    np.testing.assert_array_equal(together[0][1], together[0][3])
    assert not np.allclose(together[0][1], together[0][4], atol=1e-3)
