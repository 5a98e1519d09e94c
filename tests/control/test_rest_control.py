"""The rest of the particle as a control of finished runs, on phantoms of two bodies with the truth known."""
from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from experiments import contrast_of, experiment, write_inputs
from oracles import imaged, random_phantom
from relion_files import write_map

from localrefine_plugin.engine.control import rest_control as rest_control_module
from localrefine_plugin.engine.control import sample as control_sample
from localrefine_plugin.engine.control.coarser import Coarser
from localrefine_plugin.engine.control.parts import before_a_run
from localrefine_plugin.engine.control.rest_control import rest_control
from localrefine_plugin.engine.control.sample import load_sample, load_samples
from localrefine_plugin.engine.control.words import FOLLOWED, SMALL, STILL, judged, of_parts_before
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.run_store import load_iteration, load_poses, load_report
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.records.motion import PrincipalMotion
from localrefine_plugin.engine.records.results import RestControl
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine
from localrefine_plugin.report.run_state import RunState
from localrefine_plugin.report.run_summary import summary_lines

CENTRE, REST_CENTRE = (6.0, -4.0, 3.0), (-7.0, 5.0, -4.0)
TURN_DEG, SHIFT_PX = 3.0, 0.8  # s.d. per axis


def run_of_two(folder, moving, rest_in_images=True, n=800):
    """A run of a body about CENTRE that moves, or does not, against a rest twice as heavy; the input poses are those of
    the rest, 0.5° and 0.4 px off."""
    e = experiment(n, box=44, seed=3, centre=CENTRE, rotation_deg=TURN_DEG if moving else 0,
                   displacement_px=SHIFT_PX if moving else 0)
    rest = random_phantom(60, 6.0, 1.2, seed=200, centre=REST_CENTRE)
    # the truth of the rest is where the input poses were made from; these are then made worse
    contrast, truth = contrast_of(e.particles), (e.particles.rotation, e.particles.shift_px)
    images = e.images + (imaged(rest.projections(*truth, e.box), contrast) if rest_in_images else 0)
    rng, sigma = np.random.default_rng(5), 1.0 * e.images.std()
    images = images + sigma * rng.standard_normal(images.shape)
    from scipy.spatial.transform import Rotation
    worse = dataclasses.replace(
        e.particles, rotation=truth[0] @ Rotation.from_rotvec(rng.normal(0, 0.5, (n, 3)), degrees=True).as_matrix(),
        shift_px=truth[1] + rng.normal(0, 0.4, (n, 2)))
    e = dataclasses.replace(e, images=images, particles=worse, noise=sigma)
    arguments = write_inputs(folder, e)
    whole = e.phantom.density(e.box) + rest.density(e.box)
    for half in (1, 2):
        write_map(folder / f"input_{half}.mrc", whole + 0.5 * whole.std() * rng.standard_normal(whole.shape), 4.0)
    return refine(*arguments, str(folder / "run"), Settings(max_iterations=3), threads=1)


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    return run_of_two(tmp_path_factory.mktemp("moving"), True)


@pytest.fixture(scope="module")
def rigid(tmp_path_factory):
    return run_of_two(tmp_path_factory.mktemp("rigid"), False)


def shown(run, half):
    """Rows of the particles that the best iteration takes for the sub-volume's: nearly all."""
    poses = load_poses(run, load_iteration(run, run.iterations_done()).best_iteration, half)
    found = poses.row[(1.0 if poses.probability_aligned is None else poses.probability_aligned) >= np.full(400, 0.5)]
    assert 380 <= len(found) <= 400
    return found


def rms(widths):
    return float(np.sqrt(np.mean(np.square(widths))))


def test_a_body_that_moves_is_found_to_move_by_the_planted_motion(moving):
    found = load_report(moving).rest_control
    assert found.verdict == "apart" and not found.advice
    assert rms(found.motion.rotation_widths_deg) == pytest.approx(TURN_DEG, rel=0.15)
    assert rms(found.motion.displacement_widths_angstrom) == pytest.approx(4.0 * SHIFT_PX, rel=0.25)
    assert 0.85 < found.followed < 1.15
    assert found.particles == 500  # 250 of each half-set of 400
    assert found.sentence in summary_lines(RunState(moving.path))


def test_of_a_rigid_particle_it_is_said_that_no_part_of_the_mask_moves(rigid):
    report = load_report(rigid)
    found = report.rest_control
    assert found.verdict == "still" and not found.advice
    assert found.displacement_angstrom < STILL * report.final_resolution_angstrom["corrected"]
    assert "no part of the mask moves" in found.sentence and found.sentence in summary_lines(RunState(rigid.path))


@pytest.mark.parametrize("name", ["moving", "rigid"])
def test_the_parts_of_the_mask_are_asked_before_the_run_and_after_it(request, name):
    """The domain fills the mask: nothing in it rests if it moves, and nothing moves if it rests."""
    run, moves = request.getfixturevalue(name), name == "moving"
    said, control = of_parts_before(before_a_run(run, 1, CPU, 1)[1]), load_report(run).rest_control
    print(said)
    share, still = (int(word[:-2]) for word in re.findall(r"\d+ % ", said)) if moves else (0, 0)
    assert share >= 60 and still <= 40 if moves else said.startswith("no part of the mask is seen to move")
    assert len(control.parts) == 8 and control.parts_particles == sum(len(shown(run, half)) for half in (1, 2))
    assert not control.resolution_by_part_angstrom and not run.final("resolution_by_part.mrc").exists()


def test_a_rest_that_was_subtracted_from_the_images_is_no_control(tmp_path):
    run = run_of_two(tmp_path, True, rest_in_images=False, n=200)
    found = load_report(run).rest_control
    assert found.verdict == "not done" and "subtracted" in found.sentence and not found.advice


def test_a_rest_that_is_aligned_badly_is_no_control(moving, monkeypatch):
    """The input poses of this rest are 0.5° off, and it is twice as heavy as the body."""
    monkeypatch.setattr(rest_control_module, "KNOWN_DEG", 0.1)
    found, part = rest_control(moving, load_iteration(moving, moving.iterations_done()).best_iteration, CPU, 1)
    degrees = float(re.search(r"only to ([\d.]+)° per axis", found.sentence).group(1))
    assert found.verdict == "not done" and part is None and 0.1 < degrees < 3.0


def test_the_control_learns_the_motion_from_the_input_poses_even_of_a_run_that_is_re_centred(moving):
    """About the last poses a learned prior would shrink until nothing moves."""
    sample = load_sample(moving, 1, CPU, 1)
    given = dataclasses.replace(sample.given, resolved=dataclasses.replace(
        sample.given.resolved, prior="gaussian", recenter_rotations=True, recenter_shifts=True))
    asked = dataclasses.replace(sample, given=given).resolved
    assert asked.prior == "learned" and not asked.recenter_rotations and not asked.recenter_shifts


def test_the_control_leaves_the_run_as_it_was(moving):
    """Poses and maps are those of the best iteration."""
    record = read_json(moving.iteration_done(moving.iterations_done()))
    for half in (1, 2):
        np.testing.assert_array_equal(read_map(moving.final(f"half_map_{half}.mrc"))[0],
                                      read_map(moving.half_map(record["best_iteration"], half))[0])
    assert not moving.final("moving_part.mrc").exists()


def test_on_fewer_pixels_the_control_finds_the_same(moving, monkeypatch):
    """What of the resolution these hold; the hinge is in px of the run."""
    expected = load_report(moving).rest_control
    monkeypatch.setattr(control_sample.Coarser, "holding", lambda box, last, workers: Coarser(box, 38, workers))
    best = load_iteration(moving, moving.iterations_done()).best_iteration
    found, _ = rest_control(moving, best, CPU, 1)
    assert (found.verdict, found.particles) == ("apart", expected.particles)
    assert found.displacement_angstrom == pytest.approx(expected.displacement_angstrom, rel=0.1)
    assert found.followed == pytest.approx(expected.followed, abs=0.1)
    hinge = found.motion.hinge
    np.testing.assert_allclose(hinge.point_px, np.array(hinge.point_angstrom) / 4.0)
    few, many = load_samples(moving, best, CPU, 1)
    assert [len(few.rows[half]) for half in (1, 2)] == [250, 250] and few.maps is many.maps
    alone = load_sample(moving, best, CPU, 1)
    np.testing.assert_array_equal(few.cropped(1), alone.cropped(1))  # those of the larger sample are its own
    np.testing.assert_array_equal(many.rows[1], shown(moving, 1))  # of 400
    assert not many.coarser.same and len(many.images[1]) == len(many.rows[1]) and len(few.images[1]) == 250


# ---------------------------------------------------------------- verdicts

NO_MOTION = PrincipalMotion(*([(1.0, 1.0, 1.0)] * 2), ((1.0, 0.0, 0.0),), *([(1.0, 1.0, 1.0)] * 2), ((1.0, 0.0, 0.0),),
                            None, (0.0,) * 3, (0.0,) * 3, 0.0, {}, {}, 0.0)


def verdict(moved, followed, detectable=0.1):
    found = RestControl("", 500, NO_MOTION, NO_MOTION, 5.0 * moved, 0.1, 5.0 * detectable, followed, 0.05, 0.4)
    return judged(found, 5.0)


@pytest.mark.parametrize("moved, followed, detectable, expected", [
    (STILL - 0.01, 1.0, 0.1, "consensus"), (STILL - 0.01, 0.5, 0.1, "consensus"), (STILL - 0.01, 1.0, 0.2, "unclear"),
    (STILL + 0.01, FOLLOWED + 0.01, 0.1, "apart"), (STILL + 0.01, FOLLOWED - 0.01, 0.1, "consensus"),
    (SMALL + 0.01, FOLLOWED - 0.01, 0.1, "mixed"), (SMALL + 0.01, FOLLOWED + 0.01, 0.2, "apart")])
def test_verdicts(moved, followed, detectable, expected):
    found = verdict(moved, followed, detectable)
    assert found.verdict == expected
    assert bool(found.advice) == found.doubtful == (expected in ("consensus", "mixed"))
    assert (found.still_share is not None) == (expected == "mixed")


def test_a_mixed_mask_names_the_share_and_the_proposed_mask():
    text = verdict(0.4, 0.6).advice
    assert "40 % of the density in this mask does not move with the domain" in text
    assert "final/moving_part.mrc" in text and "60 ± 5 %" in text
