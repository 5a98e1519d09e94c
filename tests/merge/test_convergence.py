"""When a refinement stops, and which of its iterations it keeps."""
from __future__ import annotations

from dataclasses import replace

import pytest

from localrefine_plugin.engine.merge.convergence import decide
from localrefine_plugin.engine.records.iteration import IterationRecord, PoseChange
from localrefine_plugin.engine.records.motion import MotionSummary, PrincipalMotion
from localrefine_plugin.engine.records.resolved import ResolvedSettings

BOX_ANGSTROM = 256.0
RESOLVED = ResolvedSettings(max_iterations=8, mask_radius_angstrom=40.0)


def decision(*resolutions, moved_sigma=1.0, resolved=RESOLVED):
    """Of iterations 0, 1, … with these corrected resolutions in Å."""
    change = PoseChange(5.0, 3.0, rotation_since_last_median_sigma=moved_sigma)
    history = [IterationRecord(k, {"corrected": d}, pose_change=change) for k, d in enumerate(resolutions)]
    return decide(history, resolved, BOX_ANGSTROM)


def test_goes_on_while_resolution_or_poses_change():
    assert not decision(12.0, 8.0, 6.0, moved_sigma=0.1).converged
    assert not decision(12.0, 6.0, 6.0, 6.0, 6.0, moved_sigma=0.5).converged


def test_stops_when_neither_changes():
    result = decision(12.0, 6.0, 6.0, 6.0, moved_sigma=0.1)
    assert result.converged and "converged" in result.stop_reason


@pytest.mark.parametrize("resolutions, best", [((12.0, 6.0, 5.5, 5.6), 2), ((5.0, 6.0, 6.5), 1)])
def test_keeps_the_best_iteration_never_the_input(resolutions, best):
    assert decision(*resolutions).best_iteration == best


def test_the_first_iteration_of_a_learned_prior_must_be_clearly_finer():
    """Box 256 Å: 10.6, 11.0 and 12.5 Å are shells 24.2, 23.3 and 20.5."""
    learned, gaussian = (replace(RESOLVED, prior=prior) for prior in ("learned", "gaussian"))
    assert decision(12.0, 10.6, 11.2, 11.0, resolved=learned).best_iteration == 3
    assert decision(12.0, 10.6, 11.2, 11.0, resolved=gaussian).best_iteration == 1
    assert decision(12.0, 10.6, 12.5, resolved=learned).best_iteration == 1


def moved(half_1, half_2):
    """Rotation (°) and displacement (Å) learned by each half-set, the same along all axes."""
    halves = [PrincipalMotion((w,) * 3, (0.1,) * 3, (), (d,) * 3, (0.1,) * 3, (), None, (0.0,) * 3, (0.0,) * 3, 0.0,
                              {}, {}, 0.0) for w, d in (half_1, half_2)]
    return MotionSummary(halves[0], *halves)


@pytest.mark.parametrize("first, second, third, best", [
    (7.0, ((2.5, 1.0), (2.0, 1.0)), ((0.1, 0.2), (2.0, 1.0)), 4),  # a half-set shows no such motion in iteration 3
    (7.0, ((2.5, 1.0), (2.0, 1.0)), ((2.4, 0.4), (2.0, 1.0)), 4),
    (7.0, ((2.5, 1.0), (2.0, 1.0)), ((2.4, 0.9), (2.0, 1.0)), 3),
    (6.5, ((0.1, 0.2), (0.1, 0.2)), ((0.1, 0.2), (0.1, 0.2)), 3),  # nor the first iteration, even if it is finer
])
def test_poses_that_were_free_to_follow_noise_are_not_the_result(first, second, third, best):
    """Box 256 Å: 7.0 and 7.2 Å are 1.02 shells apart."""
    change = PoseChange(5.0, 3.0, rotation_since_last_median_sigma=1.0)
    of = [None, moved((2.5, 1.0), (2.5, 1.0)), moved(*second), moved(*third), moved(*third)]
    history = [IterationRecord(k, {"corrected": d}, pose_change=change, motion=motion)
               for k, (d, motion) in enumerate(zip((9.0, first, 7.2, 7.0, 7.2), of))]
    assert decide(history, replace(RESOLVED, prior="learned"), BOX_ANGSTROM).best_iteration == best


def test_stops_at_the_maximum():
    assert decision(12.0, *[6.0 + k for k in range(8)]).stop_reason == "maximum number of iterations"


def test_stops_where_the_half_maps_agree_on_nothing_and_keeps_what_was_before():
    """Coarser than the mask is wide: references of that are empty, and empty maps correlate by chance."""
    result = decision(12.0, 9.0, BOX_ANGSTROM)
    assert result.converged and result.best_iteration == 1
    assert "no longer agree" in result.stop_reason
    assert not decision(12.0, 9.0, 79.0).converged
