"""Images on their way to the search: their background, and expanded copies that are transformed once."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gpu.fixtures import STAND_IN, install
from small_experiments import small_experiment

from localrefine_plugin.engine.align import images as images_module
from localrefine_plugin.engine.align.images import HalfSetImages
from localrefine_plugin.engine.kernels.background import plane_fit, without_background
from localrefine_plugin.engine.kernels.device import CPU, to_host


def normalised(images):
    """As programs extract particles: mean 0 and s.d. 1 outside the circle."""
    n = images.shape[-1]
    offset = np.arange(n) - n // 2
    outside = offset[:, None] ** 2 + offset ** 2 > (n // 2) ** 2
    mean, deviation = (of(images[:, outside], axis=1)[:, None, None] for of in (np.mean, np.std))
    return ((images - mean) / deviation).astype(np.float32)


@pytest.mark.parametrize("device", (CPU, STAND_IN), ids=("cpu", "gpu"))
@pytest.mark.parametrize("box", (40, 41))
def test_a_slope_leaves_no_trace_though_images_were_normalised_with_it(monkeypatch, device, box):
    """Slopes of two to six times the noise, and offsets: signal and noise are those of images without them, but for the
    slope of the noise itself, which is subtracted with them: a hundredth of its power."""
    install(monkeypatch)
    rng, offset = np.random.default_rng(box), np.arange(box) - box // 2
    plain = rng.standard_normal((5, box, box))
    plain[:, box // 4:-box // 4, box // 4:-box // 4] += 3.0
    slopes, constants = rng.uniform(2, 6, (5, 2)) / (box // 2), rng.uniform(-50, 50, 5)
    planes = slopes[:, :1, None] * offset + slopes[:, 1:, None] * offset[:, None] + constants[:, None, None]
    background = [device.to_device(part) for part in plane_fit(box)]
    found = [to_host(without_background(device.to_device(normalised(images)), *background))
             for images in (plain, plain + planes)]
    np.testing.assert_allclose(found[0], normalised(plain), atol=1e-4)  # no slope: nothing but the mean is subtracted
    np.testing.assert_allclose(found[1], found[0], atol=0.25)
    assert np.sqrt(np.mean((found[1] - found[0]) ** 2)) < 0.1
    assert np.abs(normalised(plain + planes) - normalised(plain)).max() > 3


def test_the_background_of_an_image_does_not_depend_on_the_others_and_a_constant_image_stays_finite():
    rng, background = np.random.default_rng(1), plane_fit(24)
    images = rng.standard_normal((6, 24, 24)).astype(np.float32)
    images[2] = 7.0
    together = without_background(images, *background)
    assert np.isfinite(together).all() and np.abs(together[2]).max() < 1e-5
    for i in range(6):
        np.testing.assert_array_equal(without_background(images[i:i + 1], *background)[0], together[i])


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
