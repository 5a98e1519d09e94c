"""The particles of a second state are counted at the motion of its copy, whatever the map's copies look like."""

from dataclasses import replace

import numpy as np
import pytest
from experiments import contrast_of, experiment, write_inputs
from oracles import imaged
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.finish import second_state
from localrefine_plugin.engine.finish.second_copy import advice
from localrefine_plugin.engine.finish.second_state import about_both_places, at_poses_found, counted, two_gaussians
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


def test_particles_prefer_the_state_they_are_in(two_states):
    run, second = two_states
    for half in (1, 2):
        of = second[load_poses(run, 1, half).row]
        for asked in (about_both_places, at_poses_found):
            d = asked(run, 1, half, COPY, 1)[0]
            assert (d[of][:, None] > d[~of]).mean() > 0.95


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


def test_noise_that_fits_nowhere_is_no_second_state(monkeypatch, two_states):
    rng = np.random.default_rng(3)
    d = np.where(rng.random(600) < 0.3, rng.normal(0.0, 1.0, 600), rng.normal(-4.0, 1.2, 600))
    monkeypatch.setattr(second_state, "about_both_places", lambda *arguments: np.stack([d, np.ones(600)]))
    assert not counted(two_states[0], 1, replace(COPY, found=False), 1).found


def test_where_both_searches_fit_alike_the_poses_found_tell_the_share(monkeypatch, two_states):
    run, second = two_states
    monkeypatch.setattr(second_state, "about_both_places", lambda *arguments: np.stack([np.zeros(120), np.ones(120)]))
    found = counted(run, 1, COPY, 1)
    assert found.share == pytest.approx(second.mean(), abs=2 * found.share_error)


def test_particles_of_one_state_are_not_parted_however_much_their_models_differ():
    rng = np.random.default_rng(1)
    scale = rng.uniform(2, 8, 1000)
    d = -1.2 * scale + rng.normal(0, 1.2, 1000)
    asked = [two_gaussians(np.stack([d, one]))[1] for one in (np.ones(1000), scale)]
    assert asked[0] > second_state.APART > asked[1]


@pytest.mark.parametrize("share", [0.2, 0.45, 0.6])
def test_two_gaussians_are_parted(share):
    rng, n = np.random.default_rng(2), 1000
    d = np.where(rng.random(n) < share, rng.normal(1.4, 1.2, n), rng.normal(-1.7, 1.2, n))
    found, apart, upper = two_gaussians(np.stack([d, np.ones(n)]))
    assert found == pytest.approx(share, abs=0.06) and apart == pytest.approx(3.1 / 1.2, rel=0.15)
    assert upper == pytest.approx(1.4, abs=0.3)
