"""What is said after a run: each sentence with data that provoke it and data that do not."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from map_phantoms import ball, half_maps
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.align.search_plan import resolve
from localrefine_plugin.engine.maps.fsc import five_curves
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.merge import advice
from localrefine_plugin.engine.merge.hinge import Hinge, estimate_hinge
from localrefine_plugin.engine.merge.merge import changes_of
from localrefine_plugin.engine.model.pose import random_rotations
from localrefine_plugin.engine.records.iteration import IterationRecord, PoseChange
from localrefine_plugin.engine.records.poses import PoseTable
from localrefine_plugin.engine.records.settings import Settings

BOX, PIXEL = 48, 3.0
MASK = ball(BOX, 13, 6)
RADIUS = 45.0  # Å, about that of the mask


def settled(**values):
    return resolve(Settings(**dict(dict(prior="gaussian"), **values)), MASK, 10.0, PIXEL)


def motions(n=1000, rotation=5.0, shift=2.0, at_rotation=0.02, at_shift=0.02, seed=0):
    rng = np.random.default_rng(seed)
    return advice.PoseChanges(rng.normal(0, rotation, (n, 3)), rng.normal(0, shift, (n, 2)), at_rotation, at_shift)


NO_HINGE = Hinge(np.zeros(3), 0.0)


def curves(noise=8.0):
    _, *maps = half_maps(BOX, noise=noise)
    return five_curves(HalfMaps(*maps), MASK, PIXEL)


def iteration(resolution=9.0, rotation=5.0, shift=3.0):
    return IterationRecord(1, {"corrected": resolution}, pose_change=PoseChange(rotation, shift))


START = IterationRecord(0, {"corrected": 10.0})


def test_a_good_run_gets_no_advice():
    assert advice.advise(motions(), NO_HINGE, curves(), [START, iteration()], settled()) == {}


@pytest.mark.parametrize("what, extent", (("rotation", "21°"), ("shift", "12 Å")))
def test_many_at_the_limit(what, extent):
    given = motions(**{f"at_{what}": 0.3})
    said = advice.advise(given, NO_HINGE, curves(), [START, iteration()], settled())
    assert list(said) == [f"{what} limit"]
    sentence = said[f"{what} limit"]
    assert "30 % of the particles" in sentence and extent in sentence and "larger mask" in sentence
    assert f"widen the {what} search extent" in sentence and "use a prior" not in sentence
    free = advice.advise(given, NO_HINGE, curves(), [START, iteration()], settled(prior="off"))
    assert "use a prior" in free[f"{what} limit"]


def two_groups(n, first, second, seed=1):
    rng = np.random.default_rng(seed)
    return np.abs(np.concatenate([rng.normal(first, 1.0, n // 2), rng.normal(second, 1.0, n - n // 2)]))


def test_two_peaks_are_found_where_they_are():
    places = advice.peaks_of(two_groups(1000, 4.0, 12.0))
    np.testing.assert_allclose(places, [4.0, 12.0], atol=0.6)
    given = replace(motions(), rotation_deg=np.eye(3)[0] * two_groups(1000, 4.0, 12.0)[:, None])
    sentence = advice.advise(given, NO_HINGE, curves(), [START, iteration()], settled())["rotation peaks"]
    assert "two peaks" in sentence and "fulcrum" in sentence
    given = replace(motions(shift=0.1), shift_angstrom=np.eye(2)[0] * two_groups(1000, 1.0, 9.0)[:, None])
    assert "shift peaks" in advice.advise(given, NO_HINGE, curves(), [START, iteration()], settled())


def test_where_nothing_moves_there_are_no_peaks():
    """Images that tell nothing, under a prior; one of them at the limit of the search; and peaks 0.08° and Å apart."""
    tiny = 0.01 * two_groups(1000, 4.0, 12.0)[:, None]
    given = replace(motions(), rotation_deg=np.eye(3)[0] * tiny, shift_angstrom=np.eye(2)[0] * tiny)
    assert not {"rotation peaks", "shift peaks"} & set(
        advice.advise(given, NO_HINGE, curves(), [START, iteration()], settled()))
    assert advice.peaks_of(np.zeros(500)) == advice.peaks_of(np.append(np.zeros(500), 20.0)) == []


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("n", (250, 1000, 5000))
def test_one_peak_is_one_peak(n, seed):
    """Gaussian motions of any dimension, cut by a limit, and with outliers: 90 histograms of each without an alarm."""
    rng = np.random.default_rng(seed)
    for dimensions in (1, 2, 3):
        values = np.linalg.norm(rng.normal(0, 5, (n, dimensions)), axis=1)
        assert len(advice.peaks_of(values)) <= 1
        assert len(advice.peaks_of(np.minimum(values, 12))) <= 1
        values[:n // 20] += rng.uniform(10, 30, n // 20)
        assert len(advice.peaks_of(values)) <= 1


def test_few_particles_have_no_peaks():
    assert advice.peaks_of(two_groups(100, 2, 20)) == []


def test_fulcrum_far_from_the_hinge():
    """Shifts of 8 Å with 1°: about a hinge at known pixels, or about none."""
    given = motions(rotation=1.0, shift=8.0)
    hinge = Hinge(np.array([10.0, -4.0, 2.0]), 0.8)
    sentence = advice.advise(given, hinge, curves(), [START, iteration()], settled())["fulcrum"]
    assert "34, 20, 26 px" in sentence and "80 %" in sentence and "Set the fulcrum there" in sentence
    for nowhere in (NO_HINGE, Hinge(np.array([2500.0, 0.0, 0.0]), 0.8)):
        sentence = advice.advise(given, nowhere, curves(), [START, iteration()], settled())["fulcrum"]
        assert "shifts rather than turns" in sentence
    for small in (motions(), motions(rotation=0.01, shift=0.5)):
        assert "fulcrum" not in advice.advise(small, hinge, curves(), [START, iteration()], settled())


def test_resolution_worse_than_the_input():
    history = [START, iteration(10.5), iteration(10.3)]
    sentence = advice.advise(motions(), NO_HINGE, curves(), history, settled())["resolution"]
    assert "10.3 Å is worse than the 10.0 Å" in sentence
    assert advice.worse_than_input([START, iteration(10.5), iteration(10.1)], settled()) == ""
    assert advice.worse_than_input(history, settled(mask_mode="dynamic")) == ""  # another mask


def test_fsc_of_duplicates_does_not_fall():
    """A tenth of the noise power in common: the FSC of noise stays at 0.1 and more."""
    _, first, second = half_maps(BOX, noise=8.0)
    common = np.random.default_rng(9).standard_normal(first.shape).astype(np.float32) * first.std() * 0.6
    sentence = advice.fsc_does_not_fall(five_curves(HalfMaps(first + common, second + common), MASK, PIXEL))
    assert "does not fall to zero" in sentence and "duplicates" in sentence
    assert advice.fsc_does_not_fall(curves()) == ""


def test_fsc_of_a_sharp_mask_does_not_fall():
    """Half-maps with solvent at another level than zero under a binary mask: its edge correlates with itself."""
    _, first, second = half_maps(BOX, noise=8.0)
    sharp = five_curves(HalfMaps(first + 20 * first.std(), second + 20 * first.std()),
                        (MASK > 0.5).astype(np.float32), PIXEL)
    assert "The mask causes this" in advice.fsc_does_not_fall(sharp)


@pytest.mark.parametrize("switch, values, words", (
    ("recenter_rotations", [dict(rotation=r) for r in (3, 4, 5)], "median rotation from the input grows"),
    ("recenter_shifts", [dict(shift=s) for s in (3, 4, 5)], "median shift from the input grows")))
def test_drift(switch, values, words):
    history = [START] + [iteration(**v) for v in values]
    assert words in advice.drifting(history, settled(**{switch: True}))
    assert advice.drifting(history, settled()) == ""
    assert advice.drifting(history[:3], settled(**{switch: True})) == ""
    assert advice.drifting(history + [history[-1]], settled(**{switch: True})) == ""


# ------------------------------------------------------------- the hinge

def turned_about(hinge, n, axes=(1, 1, 1), noise_px=0.0, seed=2):
    rng = np.random.default_rng(seed)
    rotation0, shift0 = random_rotations(n, rng), rng.uniform(-2, 2, (n, 2))
    w = rng.normal(0, 5, (n, 3)) * axes
    rotation = rotation0 @ Rotation.from_rotvec(w, degrees=True).as_matrix()
    shift = shift0 - (rotation - rotation0)[:, :2] @ hinge + noise_px * rng.standard_normal((n, 2))
    return rotation0, shift0, rotation, shift


def test_hinge_is_found_from_another_start():
    hinge = np.array([12.0, -5.0, 7.0])
    found = estimate_hinge(*turned_about(hinge, 500), np.array([-3.0, 2.0, 4.0]))
    np.testing.assert_allclose(found.point, hinge, atol=1e-6)
    assert found.explained == pytest.approx(1)
    noisy = estimate_hinge(*turned_about(hinge, 2000, noise_px=0.5), np.zeros(3))
    np.testing.assert_allclose(noisy.point, hinge, atol=1.0)
    assert 0.7 < noisy.explained < 0.95


def test_no_hinge_where_only_shifts_are_found():
    rotation0, shift0, rotation, shift = turned_about(np.zeros(3), 1000)
    shift = shift + np.random.default_rng(4).normal(0, 2, shift.shape)
    assert estimate_hinge(rotation0, shift0, rotation, shift, np.zeros(3)).explained < 0.02


def test_along_an_axis_the_hinge_stays_where_it_was():
    """Turning about z only tells x and y of the hinge."""
    hinge = np.array([6.0, 3.0, 20.0])
    found = estimate_hinge(*turned_about(hinge, 500, axes=(0, 0, 1)), np.array([0.0, 0.0, -8.0]))
    np.testing.assert_allclose(found.point, [6.0, 3.0, -8.0], atol=1e-4)


def test_resolution_at_nyquist_is_limited_by_the_pixels_not_by_duplicates():
    """Little noise: the FSC falls towards Nyquist and is not zero there."""
    sentence = advice.fsc_does_not_fall(falling(0.9, 0.2))
    assert sentence.startswith("the resolution is limited by the pixel size") and "duplicates" not in sentence
    assert "Look for duplicates" in advice.fsc_does_not_fall(falling(0.3, 0.28))


def test_particles_that_are_not_aligned():
    """A few wrong particles are not worth a word."""
    assert not advice.verdict_advice(0.01, 0.01, settled())
    sentence = advice.verdict_advice(0.104, 0.06, settled())["verdict"]
    for words in ("about 10 % of the particles do not show", "(6 % of all look like noise)", "count less",
                  "go on without them ('Keep particles with probability ≥ 0.5' makes a set of the others)"):
        assert words in sentence, words
    assert "count in full" in advice.verdict_advice(0.1, 0.1, settled(weight_by_probability=False))["verdict"]


def pose_table(turned, limit, empty):
    """Of particles that turned by ``turned`` (n,) degrees, all by 1 Å, with the probability ``empty`` (n,), or None."""
    n = len(turned)
    nothing = np.zeros((n, 5, 5))
    return PoseTable(
        row=np.arange(n), rotation=np.zeros((n, 3, 3)), shift_px=np.zeros((n, 2)), covariance=nothing,
        rotation_change_deg=turned[:, None] * [0, 0, 1.0], shift_change_angstrom=np.ones((n, 2)), modes=np.ones(n),
        pose_error_covariance=nothing, log_likelihood=np.zeros(n), insertions=np.ones(n), at_rotation_limit=limit,
        at_shift_limit=limit, probability_empty=empty)


def test_what_looks_like_noise_gives_no_advice_on_limits_and_peaks():
    """A third of the images are noise, at poses far off and at the limit."""
    n, noise = 600, np.arange(600) % 3 == 0
    turned = np.where(noise, 14.0, 3.0) + np.random.default_rng(0).normal(0, 0.5, n)
    judged, unknown = (pose_table(turned, noise, empty) for empty in (np.where(noise, 0.9, 0.0), None))
    few, every = changes_of([judged, judged]), changes_of([unknown, judged])
    assert len(few.rotation_deg) == 2 * (~noise).sum() and few.at_rotation_limit == few.at_shift_limit == 0
    assert not advice.two_peaks(np.linalg.norm(few.rotation_deg, axis=1), "rotation", "°")
    assert advice.two_peaks(np.linalg.norm(every.rotation_deg, axis=1), "rotation", "°")
    assert len(every.rotation_deg) == n + (~noise).sum() and every.at_rotation_limit == pytest.approx(0.2)
    assert len(changes_of([pose_table(turned, noise, np.ones(n))]).rotation_deg) == n


def falling(start, end):
    """Curves of an FSC that goes from one value to another over the second half of the shells; random phases give 0."""
    given = curves()
    shells = np.arange(len(given.tight)) / (len(given.tight) - 1)
    fsc = np.where(shells < 0.5, 1 - 2 * shells * (1 - start), start + (2 * shells - 1) * (end - start))
    return replace(given, unmasked=fsc, tight=fsc, corrected=fsc, randomised=0 * fsc)
