"""Sums of two parts of a half-set, added, are the sums of the whole: what several workers of one half-set rely on."""
from __future__ import annotations

import numpy as np
import pytest
from gpu.fixtures import STAND_IN, install
from small_experiments import RESOLUTION, small_experiment

from localrefine_plugin.engine.align.half_set import HalfAlignment
from localrefine_plugin.engine.kernels.device import CPU, to_host
from localrefine_plugin.engine.kernels.fixed_point import FixedPointSums


def sums_of(e, device, parts, fixed=False, **settings):
    """HalfSums of each part (index arrays), by workers that know nothing of each other."""
    found = []
    for index in parts:
        work = HalfAlignment(e.half_set(), e.plan(RESOLUTION, **settings), device, 1, fixed)
        work.add(index)
        found.append(work.sums)
    return found


def as_array(accumulator):
    return accumulator.to_float() if isinstance(accumulator, FixedPointSums) else to_host(accumulator)


@pytest.mark.parametrize("device, fixed", ((CPU, False), (STAND_IN, False), (STAND_IN, True)))
def test_sums_of_two_parts_add_up_to_those_of_the_whole(monkeypatch, device, fixed):
    install(monkeypatch)
    e = small_experiment()
    everyone = np.arange(len(e.particles))
    settings = dict(fixed=fixed, prior="learned")
    (whole,) = sums_of(e, device, [everyone], **settings)
    first, second = sums_of(e, device, [everyone[:4], everyone[4:]], **settings)
    total = first + second
    expected = as_array(whole.accumulator)
    np.testing.assert_allclose(as_array(total.accumulator), expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(to_host(total.weight_sum), to_host(whole.weight_sum), rtol=1e-9)
    np.testing.assert_allclose(total.noise.power(), whole.noise.power(), rtol=1e-5)
    np.testing.assert_allclose(total.columns()["rotation"], whole.columns()["rotation"], atol=1e-6)
    np.testing.assert_allclose(total.all_evidence().pull, whole.all_evidence().pull, rtol=1e-3, atol=1e-3)
    # nothing of a part has been changed by adding it
    (again,) = sums_of(e, device, [everyone[:4]], **settings)
    np.testing.assert_array_equal(as_array(first.accumulator), as_array(again.accumulator))


def test_sums_in_integers_of_several_scales_add_up_in_any_order(monkeypatch):
    """Three parts on two scales: the same float32 values whichever are added first. An empty part adds nothing."""
    install(monkeypatch)
    e = small_experiment()
    a, b, c = sums_of(e, STAND_IN, np.array_split(np.arange(len(e.particles)), 3), fixed=True)
    b.accumulator.shift_right(np.array([5, 3]))  # as after a batch of much larger values
    nothing = FixedPointSums(a.accumulator.sums.shape, 1.0, STAND_IN.xp)
    totals = [sum((part.accumulator for part in rest), start) for start, *rest in (
        (a.accumulator, b, c), (c.accumulator, a, b), (nothing, b, c, a))]
    for total in totals[1:]:
        np.testing.assert_array_equal(totals[0].exponent, total.exponent)
        np.testing.assert_array_equal(totals[0].to_float(), total.to_float())
    assert (nothing + nothing).empty
