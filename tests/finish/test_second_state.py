"""The particles of a second state are counted at the motion of its copy, whatever the map's copies look like."""

from dataclasses import replace

import numpy as np
import pytest
from experiments import contrast_of, experiment, write_inputs
from oracles import imaged
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.finish import second_state
from localrefine_plugin.engine.finish.second_copy import advice
from localrefine_plugin.engine.finish.second_state import at_places, counted
from localrefine_plugin.engine.io.run_folder import RunFolder
from localrefine_plugin.engine.io.run_store import load_poses
from localrefine_plugin.engine.records.results import SecondCopy
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import align, merge, prepare

PARTICLES, BOX, NOISE, SHARE = 240, 32, 2.0, 0.4
TURN, DISPLACEMENT = Rotation.from_rotvec([20.0, 0.0, 35.0], degrees=True), np.array([2.0, 0.0, -1.0])
COPY = SecondCopy(True, 40.0, 9.0, 12.0, 24.0, "", tuple(TURN.as_rotvec()), tuple(DISPLACEMENT))


@pytest.fixture(scope="module")
def two_states(tmp_path_factory):
    """A run of one iteration from maps of both states; the sub-volume of the particles ``second`` (n,) is moved about
    its centre."""
    e = experiment(PARTICLES, box=BOX, noise=NOISE, seed=11)
    second = np.random.default_rng(12).random(PARTICLES) < SHARE
    moved = e.rotation @ TURN.as_matrix()
    place = e.shift + (e.rotation @ (e.centre + DISPLACEMENT - TURN.apply(e.centre)))[:, :2]
    clean = imaged(e.phantom.projections(moved, place, BOX), contrast_of(e.particles))
    noisy = clean + NOISE * np.random.default_rng(13).standard_normal(clean.shape)
    first = e.phantom
    copy = TURN.apply(first.points - e.centre) + e.centre + DISPLACEMENT
    both = replace(first, points=np.concatenate([first.points, copy]),
                   amplitudes=np.concatenate([(1 - SHARE) * first.amplitudes, SHARE * first.amplitudes]))
    e = replace(e, images=np.where(second[:, None, None], noisy, e.images), phantom=both)
    folder = tmp_path_factory.mktemp("states")
    run = RunFolder(folder / "run")
    given = Settings(prior="gaussian", prior_rotation_deg=3.0, prior_shift_angstrom=3.0)
    prepare(*write_inputs(folder, e), str(run.path), given, "cpu", 1, "new")
    align(str(run.path), 1, (1, 2), "cpu", 1)
    merge(str(run.path), 1, 1)
    return run, second


def test_the_share_of_the_second_state_is_counted(two_states):
    run, second = two_states
    found = counted(run, 1, COPY, 1)
    assert found.share == pytest.approx(second.mean(), abs=2 * found.share_error)
    assert found.share_error < 0.06
    assert f"About {100 * found.share:.0f} ± " in found.advice and "Classify the particles" in found.advice
    assert "Probably a quarter to two thirds" in advice(COPY)


def test_particles_fit_at_the_places_of_their_state(two_states):
    """In the order of state_mixture.py, and not where neither copy is."""
    run, second = two_states
    for half in (1, 2):
        of, z = second[load_poses(run, 1, half).row], at_places(run, 1, half, COPY, 1)
        assert z.shape == (len(of), 4)
        d = z[:, 1] - z[:, 2]
        assert (d[of][:, None] > d[~of]).mean() > 0.95
        for state, (shown, empty) in zip((~of, of), ((2, 1), (1, 2))):
            mean = z[state].mean(axis=0)
            assert min(mean[0], mean[shown]) > max(mean[empty], mean[3]) + 1


def test_the_places_are_the_motion_its_inverse_and_another_of_its_size():
    for half in (1, 2):
        here, there, back, aside = second_state.places(COPY, half)
        point = np.array([3.0, -1.0, 2.0])
        np.testing.assert_allclose(there[0] @ point + there[1], TURN.apply(point) + DISPLACEMENT)
        np.testing.assert_allclose(back[0] @ (there[0] @ point + there[1]) + back[1], point)
        np.testing.assert_allclose(here[0] @ point + here[1], point)
        turn = Rotation.from_matrix(aside[0]).as_rotvec()
        assert np.linalg.norm(turn) == pytest.approx(TURN.magnitude()) and abs(turn @ TURN.as_rotvec()) < 1e-9
        assert np.linalg.norm(aside[1]) == pytest.approx(np.linalg.norm(DISPLACEMENT))


def test_where_no_copy_is_suspected_nothing_is_counted(two_states):
    nothing = replace(COPY, found=False, rotation_vector=(), displacement_px=())
    assert counted(two_states[0], 1, nothing, 1) == nothing


def test_the_particles_decide_on_a_copy_that_the_map_only_suggests(two_states):
    run, second = two_states
    found = counted(run, 1, replace(COPY, found=False), 1)
    assert found.found and found.share == pytest.approx(second.mean(), abs=0.1) and found.advice
    elsewhere = replace(COPY, found=False, rotation_vector=tuple(-TURN.as_rotvec()))
    found = counted(run, 1, elsewhere, 1)
    assert not found.found and found.share is None and not found.rotation_vector and not found.advice


def test_too_few_particles_tell_no_share(monkeypatch, two_states):
    monkeypatch.setattr(second_state, "LEAST_PARTICLES", PARTICLES + 1)
    found = counted(two_states[0], 1, COPY, 1)
    assert found.found and found.share is None and "a quarter to two thirds" in found.advice
    assert not counted(two_states[0], 1, replace(COPY, found=False), 1).found


def test_a_share_that_is_hardly_told_is_not_said(monkeypatch, two_states):
    monkeypatch.setattr(second_state, "TOLD", 1e-3)
    found = counted(two_states[0], 1, COPY, 1)
    assert found.found and found.share is None
