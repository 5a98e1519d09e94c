"""The verb film on runs of a planted hinge, whose density at any angle has a closed form."""
from __future__ import annotations

import json

import mrcfile
import numpy as np
import pytest
from oracles import shell_correlation, soft_ball
from scipy.spatial.transform import Rotation
from two_bodies import (
    AXIS,
    BOX,
    CENTRES,
    FULCRUM,
    PIXEL_SIZE,
    at_angle,
    copy_of,
    films,
    mask_of,
    run_of,
    turned_run,
    two_bodies,
)

from localrefine_plugin.engine import __main__ as cli
from localrefine_plugin.engine.bodies.film import film
from localrefine_plugin.engine.bodies.finished import open_body
from localrefine_plugin.engine.bodies.relative import first_motion, motion_evidence
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.io.run_store import load_motion
from localrefine_plugin.engine.motion.motion_prior import learn
from localrefine_plugin.engine.records.codec import from_json
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.film import Film

RESOLUTION_SHELL = int(BOX * PIXEL_SIZE / 9.5)  # of the refined maps: 9.3 Å


def angle_of(motion):
    """The angle about AXIS, in degrees, of (w, d)."""
    return float(np.array(motion[:3]) @ AXIS)


def test_what_a_run_keeps_of_its_poses_tells_the_motion_it_learned():
    """Evidence put together from poses and posteriors, without the prior of the last search."""
    body = open_body(run_of("B").path)
    start = first_motion(body)
    for half in (1, 2):
        stored = load_motion(body.run, body.iteration, half).covariance
        width = np.sqrt(np.diag(stored))
        again = learn(motion_evidence(body, half), start, start)
        assert np.abs((again - stored) / np.outer(width, width)).max() < 0.05


@pytest.mark.parametrize("rest", [False, True])
def test_the_first_axis_has_the_planted_axis_sign_and_amplitude(rest):
    """Within 10 % of the angles that were drawn, of which errors of the input poses (0.7°) are 0.4 %."""
    _, made = films()[rest]
    first, truth = made.axes[1], two_bodies().angle
    assert first.name == "axis_1" and np.array(first.turns_about) @ AXIS > 0.995
    assert first.rotation_sd_deg == pytest.approx(truth.std(), rel=0.1)
    assert abs(first.rotation_sd_deg - truth.std()) < 3 * first.rotation_sd_deg_error
    ends = angle_of(first.motions[0]), angle_of(first.motions[-1])
    np.testing.assert_allclose(ends, np.percentile(truth, (5, 95)), rtol=0.1)
    through = np.array(first.through_px) - BOX // 2 - FULCRUM
    assert np.linalg.norm(through - (through @ AXIS) * AXIS) < 3.0
    # the mask moves as a sphere about a lever does
    lever = CENTRES["B"] - FULCRUM
    moved = np.deg2rad(truth.std()) * PIXEL_SIZE * np.sqrt(np.sum(np.cross(AXIS, lever) ** 2) + 0.4 * 8.3 ** 2)
    assert first.displacement_sd_angstrom == pytest.approx(moved, rel=0.1)


def test_against_a_run_of_the_rest_the_errors_of_the_input_poses_are_gone():
    """They shift every body by 0.3 px = 1.2 Å along each axis; along the axis of the hinge nothing else does."""
    widths = []
    for rest in (False, True):
        _, made = films()[rest]
        widths.append(sum(axis.displacement_sd_angstrom ** 2 for axis in made.axes[2:]))
    assert widths[1] < 0.8 * widths[0]


@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("frame", [0, 4, 8])
def test_a_frame_is_the_particle_at_the_planted_angle(rest, frame):
    """FSC ≥ 0.8 to the resolution of the map, where the sub-volume is; and not with the hinge the other way round."""
    run, made = films()[rest]
    first = made.axes[1]
    angle = angle_of(first.motions[frame])
    volume = mrcfile.read(run.film.parent / first.frames[frame])
    turned = Rotation.from_rotvec(AXIS * np.deg2rad(angle)).as_matrix()
    where = soft_ball(BOX, 7.5, 9.5, turned @ (CENTRES["B"] - FULCRUM) + FULCRUM)
    curve = shell_correlation(volume * where, at_angle(angle) * where)
    assert curve[1:RESOLUTION_SHELL + 1].min() > 0.8
    if frame != 4:
        wrong = shell_correlation(volume * where, at_angle(-angle) * where)
        assert wrong[8:RESOLUTION_SHELL + 1].mean() < curve[8:RESOLUTION_SHELL + 1].mean() - 0.3


def test_the_rest_is_the_map_of_the_rest():
    run, made = films()[True]
    a, inner = at_angle(0), soft_ball(BOX, 6.0, 7.0, CENTRES["A"])
    volume = mrcfile.read(run.film.parent / made.axes[0].frames[0])
    assert shell_correlation(volume * inner, a * inner)[1:RESOLUTION_SHELL + 1].min() > 0.8


def test_frames_do_not_depend_on_how_a_run_turned_its_sub_volume():
    """The gauge: map, mask and poses of body B turned about the mask's centre, each in its way."""
    gauge = Rotation.from_rotvec(np.deg2rad([2.0, 3.0, -2.5])).as_matrix()
    plain, turned = turned_run("B", np.eye(3), "plain"), turned_run("B", gauge, "turned")
    films_of = [film(str(run.path), frames=3, axes=1, threads=1) for run in (plain, turned)]
    means = [np.array(made.mean_motion[:3]) for made in films_of]
    expected = Rotation.from_matrix(gauge).as_rotvec(degrees=True)
    np.testing.assert_allclose(means[1] - means[0], expected, atol=0.5)  # the poses know of it …
    where = mask_of("B") > 0.9
    for i in (0, 2):
        one, two = (mrcfile.read(run.film.parent / made.axes[1].frames[i])
                    for run, made in zip((plain, turned), films_of))
        assert np.corrcoef(one[where], two[where])[0, 1] > 0.99  # … and the frames do not


def test_the_record_can_be_read_and_lists_its_files():
    run, made = films()[False]
    assert from_json(Film, read_json(run.film)) == made
    assert run.complete(run.film)
    assert [axis.name for axis in made.axes] == ["path", "axis_1", "axis_2", "axis_3"]
    np.testing.assert_allclose(np.array(made.axes[0].percentiles)[[0, -1]], (5, 95), atol=1)
    assert sum(made.axes[1].counts) == made.particles and 380 < made.particles <= 400  # some look like junk
    assert sum(axis.share for axis in made.axes[1:]) <= 1
    assert made.axes[1].share > made.axes[2].share > made.axes[3].share
    script = (run.film.parent / "film.cxc").read_text()
    for axis in made.axes:
        assert f"open {' '.join(axis.frames)} vseries true" in script
    assert "vseries play #1 loop true direction oscillate" in script and "hide #4 models" in script


def test_a_film_is_made_anew_and_goes_with_the_results(tmp_path):
    from localrefine_plugin.engine import refine as engine
    run = copy_of("B", "anew")
    own = run.film.parent / "notes.txt"
    film(str(run.path), frames=5, axes=2, threads=1)
    own.write_text("mine")
    made = film(str(run.path), frames=3, axes=1, threads=1)
    assert {p.relative_to(run.film.parent).as_posix() for p in run.film.parent.rglob("*.mrc")} == {
        name for axis in made.axes for name in axis.frames}
    assert len(made.axes) == 2 and own.exists()
    run.report.unlink()
    engine.finish(str(run.path), threads=1, device="cpu")
    assert not run.film.exists() and not list(run.film.parent.rglob("*.mrc")) and own.exists()


def refused(*arguments, **named):
    with pytest.raises(InputError) as caught:
        film(*arguments, **named)
    return str(caught.value)


def test_what_cannot_be_filmed_is_refused_in_one_sentence(tmp_path):
    run = str(run_of("B").path)
    assert "is not finished" in refused(str(tmp_path))
    assert "--frames" in refused(run, frames=1) and "--axes" in refused(run, axes=7)
    other = copy_of("A", "other_halves")
    with np.load(other.particles) as stored:
        columns = dict(stored)
    columns["half_set"] = 3 - columns["half_set"]
    np.savez(other.particles, **columns)
    assert "has other half-sets than" in refused(run, str(other.path)) and "400 of 400" in refused(run, str(other.path))
    columns["half_set"] = 3 - columns["half_set"]
    columns["slice"] = columns["slice"] + 1
    np.savez(other.particles, **columns)
    assert "has other particles than" in refused(run, str(other.path))
    assert not RunFolder(run).film.exists()


def test_the_verb(capsys):
    run = copy_of("B", "verb")
    assert cli.main(["film", str(run.path), "--rest", str(run_of("A").path), "--frames", "3", "--axes", "1"]) == 0
    said = capsys.readouterr().out
    assert "Axis 1 (" in said and "film.cxc" in said
    assert json.loads(run.film.read_text())["rest"] == str(run_of("A").path)
    assert cli.main(["film", str(run.path), "--rest", "nowhere"]) == 1
    assert "nowhere: is not finished" in capsys.readouterr().err
