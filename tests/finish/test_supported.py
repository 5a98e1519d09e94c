"""What resolution a mask can support."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracles import soft_ball

from localrefine_plugin.engine.finish.supported import mask_correlation, support_advice, supported, volume_bound
from localrefine_plugin.engine.maps.fsc import five_curves
from localrefine_plugin.engine.maps.half_maps import HalfMaps

BOX, PIXEL_SIZE = 48, 3.0


def smooth(volume, shell):
    """Without what lies beyond a shell."""
    ft = np.fft.rfftn(volume)
    k = np.fft.fftfreq(BOX, 1 / BOX)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.fft.rfftfreq(BOX, 1 / BOX) ** 2)
    return np.fft.irfftn(ft * (radius <= shell), s=volume.shape)


def halves_of(shell, noise, seed=1):
    """A ball of structure up to a shell in noise that fills the box."""
    rng = np.random.default_rng(seed)
    structure = smooth(rng.standard_normal((BOX,) * 3), shell) * soft_ball(BOX, 8, 12)
    structure /= structure.std()
    return [(structure + noise * rng.standard_normal((BOX,) * 3)).astype(np.float32) for _ in range(2)]


def test_the_bound_is_reached_where_all_signal_lies_in_a_mask_and_noise_is_even():
    """Then the signal-to-noise ratio under the mask is N³ / Σ m² times that of the box: U and F of one map."""
    halves = HalfMaps(*halves_of(24, 3.0))
    mask = soft_ball(BOX, 12, 14)
    curves = five_curves(halves, mask, PIXEL_SIZE)
    bound, shells = volume_bound(curves.unmasked, mask), slice(8, 20)
    assert (curves.tight[shells] < bound[shells] + 0.05).all()
    assert np.mean(curves.tight[shells]) > 0.85 * np.mean(bound[shells])


def test_no_more_is_quoted_than_the_unmasked_fsc_can_support():
    """Correlation under the mask that the box does not have at all."""
    curves = five_curves(HalfMaps(*halves_of(8, 1.0)), soft_ball(BOX, 8, 14), PIXEL_SIZE)
    made_up = replace(curves, corrected=np.maximum(curves.corrected, 0.6), randomised=0 * curves.randomised)
    assert made_up.resolutions()["corrected"] == 2 * PIXEL_SIZE
    kept = supported(made_up, soft_ball(BOX, 18, 22))
    assert kept.resolutions()["corrected"] > 1.2 * 2 * PIXEL_SIZE
    assert "without it they hold too little signal" in support_advice(made_up, kept)


def test_a_mask_drawn_round_noise_supports_what_a_soft_one_does():
    """Binary, round the bumps of the mean map."""
    halves = HalfMaps(*halves_of(9, 2.0))
    mean = sum(halves.maps) / 2
    ball = soft_ball(BOX, 11, 12)
    mask = ((mean > np.quantile(mean[ball > 0.5], 0.7)) & (ball > 0.5)).astype(np.float32)
    curves = five_curves(halves, mask, PIXEL_SIZE)
    kept = supported(curves, mask)
    assert mask_correlation(curves) > 0.2
    assert kept.resolutions()["corrected"] >= curves.resolutions()["loose"] > curves.resolutions()["corrected"]
    assert "the mask makes correlation itself" in support_advice(curves, kept)


@pytest.mark.parametrize("shell, noise", ((8, 0.3), (12, 0.5), (16, 1.0)))
def test_a_soft_mask_keeps_its_curve(shell, noise):
    mask = soft_ball(BOX, 11, 17)
    curves = five_curves(HalfMaps(*halves_of(shell, noise)), mask, PIXEL_SIZE)
    kept = supported(curves, mask)
    assert kept.resolutions()["corrected"] == pytest.approx(curves.resolutions()["corrected"], rel=0.01)
    assert support_advice(curves, kept) == ""
