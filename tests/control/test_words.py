"""What the parts of the mask say: words and resolutions from given motions."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_rest_control import NO_MOTION

from localrefine_plugin.engine.control.words import (
    HALVES,
    SURE,
    blurring,
    by_part,
    in_question,
    seen_from,
    with_parts_at_rest,
    with_what_is_left_out,
)
from localrefine_plugin.engine.finish.results import resolution_of_parts
from localrefine_plugin.engine.records.results import DOUBTFUL, PartOfMask, PoseBlur, RestControl

RESOLUTION = 6.0
ERROR = 0.2  # Å²


def parts(*sure, error=ERROR):
    """Parts of equal share that move by so many standard errors."""
    return [PartOfMask((0.0, 0.0, 0.0), 1 / len(sure), one * error, error) for one in sure]


def at_poses_found(verdict, *sure):
    """With parts that were asked there."""
    return RestControl(verdict, 500, NO_MOTION, NO_MOTION, 0.5, 0.1, 0.5, 0.7, 0.1, sentence="It moves",
                       parts=tuple(parts(*sure)))


def control(verdict, *sure, error=ERROR):
    """With parts that were asked at the poses of the rest."""
    found = dataclasses.replace(at_poses_found(verdict), parts=())
    return with_parts_at_rest(found, parts(*sure, error=error), 1000, RESOLUTION)


def test_a_mask_of_which_no_part_moves_is_still_and_its_resolution_stands():
    found = control("consensus", 0.5, -1.0, 1.5, -0.5)
    assert found.verdict == "still" and not found.doubtful and found.remark == ""
    assert "no part of the mask moves" in found.sentence


def test_what_the_rest_may_have_pulled_at_is_not_said_to_move():
    """Nothing moves at the poses of the rest. Of a mixed mask the question stays open; a motion that is sure, or
    images that would not have shown it, leave the verdict as it was."""
    apart, mixed = (control(verdict, 0.5, -1.0, 1.5, -0.5) for verdict in ("apart", "mixed"))
    assert apart.verdict == "still" and not apart.doubtful
    assert mixed.verdict == "consensus" and mixed.doubtful and mixed.still_share is None
    assert "can pull at it by as much" in mixed.advice and "Either the domain does not move" in mixed.advice
    for verdict in ("apart", "mixed"):
        for asked in (control(verdict, 4.0, -1.0, 1.5, -0.5), control(verdict, 0.5, -1.0, 1.5, -0.5, error=20.0)):
            assert asked.verdict == verdict and not asked.parts


@pytest.mark.parametrize("verdict, moved, asked", [("apart", 0.35, True), ("apart", 0.37, False), ("mixed", 0.9, True),
                                                   ("consensus", 0.1, True)])
def test_the_parts_are_asked_at_the_rest_where_a_rigid_particle_may_have_the_verdict(verdict, moved, asked):
    found = RestControl(verdict, 500, NO_MOTION, NO_MOTION, moved * RESOLUTION)
    assert in_question(found, RESOLUTION) == asked


def test_a_consensus_refinement_of_which_a_part_moves_names_the_share():
    found = control("consensus", 0.0, -1.0, 1.0, 4.0)
    assert found.verdict == "consensus" and found.doubtful
    # mean displacements 0, 0, 1/2 and 1 of that of the part that moves most
    assert found.still_share == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert "62 % of the density in this mask does not move with the domain" in found.advice


def test_images_that_would_not_show_the_motion_leave_the_question_open():
    too_few = (HALVES * RESOLUTION) ** 2 / 2 * 1.1  # two of these errors are a displacement that matters
    found = control("consensus", 0.5, -1.0, 1.5, -0.5, error=too_few)
    assert found.verdict == "consensus" and found.still_share is None
    assert "Either the domain does not move" in found.advice
    assert control("consensus", 2.8, -1.0, 1.5, -0.5).verdict == "consensus", "neither sure to move nor quiet"


def test_a_tenth_of_the_resolution_is_never_sure():
    error = with_what_is_left_out(np.array([0.0, 5.0]), RESOLUTION)
    assert (0.1 * RESOLUTION) ** 2 == pytest.approx(SURE * error[0]) and error[1] == pytest.approx(5.0, rel=1e-3)


def test_a_motion_of_the_limit_halves_the_amplitude_at_the_resolution():
    assert np.exp(-0.5 * (2 * np.pi / RESOLUTION * HALVES * RESOLUTION) ** 2) == pytest.approx(0.5)
    assert seen_from(parts(0.0, 0.0, error=0.5)) == pytest.approx(1.0)


@pytest.mark.parametrize("verdict, sure, expected", [
    ("mixed", (SURE + 1, 0.0), (0.8, 0.0)),  # of one it is sure
    ("apart", (1.0, -1.0), (0.0, 0.0)),      # of none, nor of both together
    ("mixed", (2.5, 2.5), (0.5, 0.5)),       # of both together: their mean
    ("consensus", (2.5, 2.5), (0.0, 0.0))])  # parts that rest are as sharp as the rest
def test_only_what_is_sure_blurs_a_part(verdict, sure, expected):
    np.testing.assert_allclose(blurring(at_poses_found(verdict, *sure)), expected)


def test_a_blurred_part_has_the_resolution_at_which_its_amplitude_is_half():
    """d = 2π √(v / (2 ln 2)) where the half-maps are perfect."""
    box, pixel = 200, 1.0
    blur = PoseBlur(2.0, 2.0, expected_map_to_truth=(1.0,) * (box // 2 + 1))
    found = resolution_of_parts(at_poses_found("mixed", 20.0, 80.0, 0.0), blur, box, pixel)
    np.testing.assert_allclose(found[:2], 2 * np.pi * np.sqrt(ERROR * np.array([20.0, 80.0]) / (2 * np.log(2))),
                               rtol=0.01)
    assert found[2] == 2.0


def test_tenths_of_the_density_are_told_where_parts_differ():
    found = at_poses_found("apart", *[0.0] * 6, 10.0, 10.0)
    assert by_part(found, np.full(8, RESOLUTION), RESOLUTION).resolution_by_part_angstrom == ()
    told = by_part(found, np.array([RESOLUTION] * 6 + [8.0, 9.0]), RESOLUTION)
    assert told.resolution_by_part_angstrom == (RESOLUTION, RESOLUTION, 9.0)
    assert "25 % of the density" in told.advice and "about 9.0 Å" in told.advice
    assert told.remark == "; 10, 50 and 90 % of the density in the mask reach about 6.00, 6.00 and 9.00 Å"
    assert dataclasses.replace(told, verdict="mixed").remark == told.remark + DOUBTFUL
    assert [part.resolution_angstrom for part in told.parts] == [RESOLUTION] * 6 + [8.0, 9.0]
