"""The resolution in ever tighter masks: phantoms under a mask that is far too wide, noise, and a sharp density."""
from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from map_phantoms import ball, density, half_maps

from localrefine_plugin.engine.finish.mask_ladder import MASK_CORRELATION, mask_ladder
from localrefine_plugin.engine.maps.fsc import five_curves, fsc, resolution_at
from localrefine_plugin.engine.maps.half_maps import HalfMaps, region_of
from localrefine_plugin.engine.maps.mask import density_mask, soft_edge_width_px, volume_angstrom3
from localrefine_plugin.engine.model.fourier import lowpass

N, PIXEL = 64, 2.0
WIDE = ball(N, 24, 6)


@lru_cache(maxsize=None)
def phantom():
    """A ball of atoms of 13 px in a mask of 24 px, with enough noise to resolve it to about 6 Å in the wide mask."""
    return half_maps(N, noise=1.2, sigma_px=1.1)


def ladder_of(first, second, mask=WIDE):
    curves = five_curves(HalfMaps(first, second), mask, PIXEL)
    return curves, mask_ladder(HalfMaps(first, second), mask, curves)


def test_the_ladder_starts_in_the_mask_in_use_and_tightens():
    _, *maps = phantom()
    curves, ladder = ladder_of(*maps)
    first = ladder.record.rungs[0]
    assert first.resolution_angstrom == curves.resolutions()["corrected"]
    assert first.uncorrected_angstrom == curves.resolutions()["tight"]
    volumes = [rung.volume_angstrom3 for rung in ladder.record.rungs]
    assert np.all(np.diff(volumes) < 0) and volumes[0] == pytest.approx(volume_angstrom3(WIDE, PIXEL))
    assert ladder.record.resolution_angstrom == ladder.record.rungs[ladder.record.tightest].resolution_angstrom


def test_a_wide_mask_is_tightened_to_the_density_and_its_resolution_is_true():
    """Finer than in the wide mask by more than its error, and at most 5 % finer than FSC 0.5 to the truth there."""
    truth, *maps = phantom()
    curves, ladder = ladder_of(*maps)
    found = ladder.record.resolution_angstrom
    assert ladder.record.tightest >= 2
    assert found < curves.resolution_range()[0]
    assert ladder.mask[ball(N, 11) > 0.5].mean() > 0.99 and ladder.mask[ball(N, 20) < 0.5].max() < 0.1
    to_truth = fsc(0.5 * (maps[0] + maps[1]) * ladder.mask, truth * ladder.mask)
    assert found > 0.95 * resolution_at(to_truth, 0.5, N, PIXEL)


def test_no_rung_up_to_the_tightest_makes_correlation_and_the_next_does():
    """A finely resolved ball, so that the distances come down to a few voxels."""
    _, *maps = half_maps(N, noise=0.3)
    _, ladder = ladder_of(*maps, ball(N, 16, 4))
    *adds_nothing, last = [rung.mask_correlation for rung in ladder.record.rungs]
    assert max(adds_nothing) <= MASK_CORRELATION < last
    assert ladder.record.tightest == len(adds_nothing) - 1


@pytest.mark.parametrize("seed", range(2))
def test_noise_gains_nothing_in_masks_that_follow_it(seed):
    """Below 16 Å both halves are the same, beyond all is noise: no mask drawn about its peaks may find more."""
    rng = np.random.default_rng(seed)
    blob = 30 * density(np.zeros((1, 3)), N, 6.0)
    maps = [blob + rng.standard_normal((N,) * 3).astype(np.float32) for _ in range(2)]
    curves, ladder = ladder_of(*maps)
    assert ladder.record.resolution_angstrom > 0.9 * curves.resolution_range()[0]


def test_the_mask_of_a_rung_is_drawn_about_the_density():
    """A ball of 8 px: its surface at level ½, then 1 up to 6 Å and 0 from 14 Å on, inside the mask given."""
    smooth, given, tight = lowpass(ball(48, 8), 1.0, 4.0), ball(48, 20, 3), ball(48, 10)
    mask = density_mask(smooth[region_of(given)], given, 1.0, 0.5, 6.0, 14.0)
    profile = mask[24, 24, 24:]
    assert np.all(profile[:14] == 1) and np.all(profile[23:] == 0) and 0.3 < profile[18] < 0.7
    assert soft_edge_width_px(mask) == pytest.approx(8, abs=1)
    cut = density_mask(smooth[region_of(tight)], tight, 1.0, 0.5, 6.0, 14.0)
    assert np.all(cut <= tight)
