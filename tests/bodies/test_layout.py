"""How masks lie on a particle: shares of a density that can be counted by hand."""
from __future__ import annotations

import numpy as np
import pytest

from localrefine_plugin.engine.bodies.layout import layout_words, shares_of


def slabs(*spans):
    """Masks (10, 2, 2) that are 1 in planes first … end."""
    masks = [np.zeros((10, 2, 2)) for _ in spans]
    for mask, (first, end) in zip(masks, spans):
        mask[first:end] = 1
    return masks


def test_shares_of_bodies_of_what_they_have_in_common_and_of_the_rest():
    """Density 2 in planes 0 and 1, else 1: 12 planes' worth."""
    density = np.ones((10, 2, 2))
    density[:2] = 2
    found = shares_of(density, slabs((0, 4), (2, 8)))
    assert found.density_share == pytest.approx((6 / 12, 6 / 12))
    assert found.shared_with_others == pytest.approx((2 / 6, 2 / 6))
    assert found.rest_share == pytest.approx(2 / 12)


def test_soft_edges_that_cross_share_the_lower_of_both():
    density, masks = np.ones((10, 2, 2)), slabs((0, 6), (5, 10))
    masks[0][5], masks[1][5] = 0.25, 0.75
    assert shares_of(density, masks).shared_with_others == pytest.approx((0.25 / 5.25, 0.25 / 4.75))


@pytest.mark.parametrize("spans, said, warned", [
    (((0, 5), (5, 10)), 2, 0),
    (((0, 5), (5, 9)), 3, 0),          # a rest
    (((0, 10), (6, 10)), 2, 1),        # one inside the other
])
def test_what_is_said_and_warned_of(spans, said, warned):
    found = layout_words(shares_of(np.ones((10, 2, 2)), slabs(*spans)))
    assert (len(found.words), len(found.warnings)) == (said, warned)
    assert ("outside of all masks" in found.words[-1]) == (said == 3)
    assert all("body 2 shares 100 %" in text for text in found.warnings)
