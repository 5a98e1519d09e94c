"""Null tests: each passes on a good run, and each planted failure is found by the test that is there for it."""
from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from experiments import experiment, write_inputs
from fake_run import fake_run
from oracles import soft_ball
from relion_files import write_map

from localrefine_plugin.engine import __main__ as command_line
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.io.run_store import load_report, save_record
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.maps.fsc import FscCurves, fsc
from localrefine_plugin.engine.model.pose import exp_map, random_rotations
from localrefine_plugin.engine.records.codec import from_json
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.poses import PoseTable
from localrefine_plugin.engine.records.results import NullTest, Validation
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine
from localrefine_plugin.engine.validate import null_tests, validate
from localrefine_plugin.report.html_report import report_html
from localrefine_plugin.report.run_state import RunState
from localrefine_plugin.report.run_summary import summary_lines
from localrefine_plugin.report.validation_plots import place_in_range, validation_figure

NAMES = ["pure_noise", "random_phases", "empty_place", "other_reference", "common_drift", "rest"]


def run_of(folder, e, half_map_noise=1.0, **settings):
    arguments = write_inputs(folder, e, half_map_noise=half_map_noise, seed=1)
    return refine(*arguments, str(folder / "run"), Settings(**dict(dict(max_iterations=2), **settings)), threads=1)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("good"), experiment(400, box=40, noise=1.0, seed=1))


def outcome(content):
    return {test.name: test.passed for test in content.tests}


def bytes_of(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_a_good_run_passes_every_test_and_stays_as_it_is(good):
    before = bytes_of(good)
    assert command_line.main(["validate", str(good.path), "--threads", "1"]) == 0
    content = from_json(Validation, read_json(good.final("validation.json")))
    assert outcome(content) == dict(dict.fromkeys(NAMES, True), rest=None)  # there is no rest
    assert content.advice == () and content.particles_per_half == (200, 200)
    after = bytes_of(good)
    assert set(after) - set(before) == {good.final("validation.json")}
    assert [path for path in before if after[path] != before[path]] == [good.report]
    assert load_report(good).validation == content.tests and good.results_complete()
    again = validate.validate(str(good.path), threads=1)
    assert again.tests == content.tests  # the same seed
    json.loads(good.final("validation.json").read_text(), parse_constant=pytest.fail)  # no Infinity


def test_images_in_both_half_sets_are_found(tmp_path, monkeypatch):
    """Half-set 2 holds the images of half-set 1: three tests see it, poses and drift have no reason to. (A run of a
    version that did not yet refuse such images.)"""
    monkeypatch.setattr("localrefine_plugin.engine.inputs.checks.check_copies", lambda *_: [])
    e = experiment(400, box=40, noise=2.0, seed=1)
    first = np.repeat(np.arange(0, 400, 2), 2)
    twice = replace(e.particles.take(first), half_set=e.particles.half_set, stack=e.particles.stack,
                    slice=e.particles.slice)
    content = validate.validate(str(run_of(tmp_path, replace(e, particles=twice, images=e.images[first])).path),
                                threads=1)
    assert [name for name, passed in outcome(content).items() if passed is False] == NAMES[:3]
    assert "in both half-sets" in content.advice[0] and len(content.advice) == 1


def test_noise_common_to_the_half_maps_is_found_where_there_is_no_density(good, tmp_path):
    run = RunFolder(shutil.copytree(good.path, tmp_path / "run"))
    k = read_json(run.iteration_done(run.iterations_done()))["best_iteration"]
    maps = [read_map(run.half_map(k, half))[0] for half in (1, 2)]
    noise = np.random.default_rng(3).standard_normal(maps[0].shape) * np.std(maps[0] - maps[1])
    for half, volume in enumerate(maps, 1):
        write_map(run.half_map(k, half), volume + noise, 4.0)
    finished = null_tests.load_finished(run, CPU, 1)
    assert validate.empty_place(finished).passed is False
    assert validate.empty_place(null_tests.load_finished(good, CPU, 1)).passed is True


def test_overfitted_poses_follow_their_own_reference(tmp_path):
    """No prior, 20° and 10 Å, a small mask, and references whose noise is not filtered: two thirds go elsewhere.
    A prior and the automatic low-pass keep the same particles in place."""
    e = experiment(400, box=40, noise=2.0, seed=1, rotation_deg=2.0)
    e = replace(e, mask=soft_ball(40, 6, 8, e.centre))
    free = dict(prior="off", rotation_extent_deg=20.0, shift_extent_angstrom=10.0, initial_lowpass_angstrom=8.0)
    shares = []
    for name, settings in (("free", free), ("kept", {})):
        run = run_of(tmp_path / name, e, half_map_noise=8.0, max_iterations=1, **settings)
        shares.append(validate.other_reference(null_tests.load_finished(run, CPU, 1)))
    assert shares[0].value > 0.3 and shares[0].passed is False and "overfitting" in shares[0].verdict
    assert shares[1].value < 0.025 and shares[1].passed is True


def test_the_other_reference_is_asked_of_a_selection_too(good, monkeypatch):
    """Eight of 40 particles go elsewhere, six of which count 0.1 in the map, the others 0.9; the selection keeps 32,
    two of these among them."""
    finished = null_tests.load_finished(good, CPU, 1)
    resolved = replace(finished.resolved, keep_probability=0.5)
    gone = np.isin(np.arange(20), (0, 1, 2, 3))
    turned = exp_map(np.where(gone, 1.0, 0.001)[:, None] * np.array([0.5, 0.2, -0.1]))
    shift, covariance = np.zeros((20, 2)), np.tile(np.diag([1e-4, 1e-4, 1e-4, 1e4, 1e4]), (20, 1, 1))
    own = replace(pose_table(np.tile(np.eye(3), (20, 1, 1)), shift, covariance),
                  probability_aligned=np.isin(np.arange(20), range(5)) * -0.8 + 0.9)
    own.probability_aligned[0] = 0.9
    monkeypatch.setattr(validate, "with_other_reference", lambda *_: (own, pose_table(turned, shift, covariance)))
    of_map = validate.other_reference(replace(finished, resolved=resolved))
    assert of_map.value == pytest.approx(2.4 / 29.6)
    assert "8.1 % of the particles go elsewhere, counted as in the map (" in of_map.verdict
    alike = validate.other_reference(replace(finished, resolved=replace(resolved, weight_by_probability=False)))
    assert "20.0 % of the particles go elsewhere (" in alike.verdict
    assert "keeps 6.2 %, of as many at random 20.0 ± 3.2 %" in validate.other_reference(
        replace(finished, resolved=resolved)).verdict
    assert "selection" not in validate.other_reference(finished).verdict
    of_none = replace(finished, resolved=replace(resolved, keep_probability=1.0))
    assert "selection" not in validate.other_reference(of_none).verdict


def test_an_unfinished_run_is_refused(good, tmp_path):
    run = RunFolder(shutil.copytree(good.path, tmp_path / "run"))
    shutil.rmtree(run.path / "final")
    with pytest.raises(InputError, match="not finished"):
        validate.validate(str(run.path), threads=1)


# ---------------------------------------------------------------- what they are made of

def test_random_phases_keep_amplitudes_low_shells_and_copies():
    images = np.random.default_rng(0).standard_normal((3, 32, 32)).astype(np.float32)
    images[2] = images[0]
    changed = null_tests.with_random_phases(images, 6, seed=4)
    before, after = (np.fft.fft2(x.astype(np.float64)) for x in (images, changed))
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(32, 1 / 32), np.fft.fftfreq(32, 1 / 32)))
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-3)
    np.testing.assert_allclose(after[:, np.rint(k) < 6], before[:, np.rint(k) < 6], atol=1e-3)
    beyond = np.rint(k) >= 6
    correlation = np.sum(before * after.conj(), axis=(1, 2), where=beyond).real / np.sum(
        np.abs(before) ** 2, axis=(1, 2), where=beyond)
    assert np.abs(correlation).max() < 0.15  # 1/√(500 independent values) = 0.045
    np.testing.assert_array_equal(changed[0], changed[2])
    assert np.abs(changed[0] - changed[1]).max() > 1
    np.testing.assert_array_equal(null_tests.with_random_phases(images[1:2], 6, seed=4)[0], changed[1])


def test_the_subset_takes_whole_micrographs():
    e = experiment(600, box=32)
    micrograph = np.repeat(np.arange(60), 10)
    given = {name: getattr(e.particles, name)[micrograph] for name in ("defocus_u", "defocus_v", "defocus_angle")}
    particles = replace(e.particles, **given)
    rows = null_tests.chosen_rows(particles, 100, seed=1)
    assert [len(rows[half]) for half in (1, 2)] == [100, 100]
    assert all(np.all(particles.half_set[rows[half]] == half) for half in (1, 2))
    chosen = np.bincount(micrograph[np.concatenate([rows[1], rows[2]])], minlength=60)
    assert np.sum((chosen > 0) & (chosen < 10)) <= 1
    np.testing.assert_array_equal(null_tests.chosen_rows(particles, 100, seed=1)[1], rows[1])


def pose_table(rotation, shift, covariance):
    n = len(rotation)
    zeros = np.zeros(n)
    return PoseTable(row=np.arange(n), rotation=rotation, shift_px=shift, rotation_change_deg=np.zeros((n, 3)),
                     shift_change_angstrom=np.zeros((n, 2)), covariance=covariance, pose_error_covariance=covariance,
                     log_likelihood=zeros, modes=zeros, insertions=zeros, at_rotation_limit=zeros, at_shift_limit=zeros)


@pytest.mark.parametrize("factor", (1.0, 0.5))
def test_disagreement_is_one_for_draws_from_the_posterior_whatever_the_frames(factor):
    """Poses drawn with ``factor`` times the predicted standard deviation, and the reference as a whole turned and
    moved: χ² per degree of freedom is factor²."""
    rng = np.random.default_rng(2)
    n, centre = 2000, np.array([4.0, -3.0, 2.0])
    spread = np.array([0.03, 0.05, 0.02, 0.4, 0.3])
    rotation, shift = random_rotations(n, rng), rng.normal(0, 1, (n, 2))
    x = factor * spread * rng.standard_normal((n, 5))
    common, moved = exp_map(np.array([[0.02, -0.03, 0.01]])), np.array([0.5, -0.2, 0.3])
    turned = rotation @ exp_map(x[:, :3]) @ common
    at_centre = shift + (rotation @ centre)[:, :2] + x[:, 3:] + (rotation @ moved)[:, :2]
    other = pose_table(turned, at_centre - (turned @ centre)[:, :2], np.tile(np.diag(spread ** 2), (n, 1, 1)))
    own = pose_table(rotation, shift, other.covariance)
    assert null_tests.disagreement(own, other, centre).mean() == pytest.approx(factor ** 2, rel=0.06)


def test_the_emptiest_place_is_the_one_a_search_over_all_finds():
    rng = np.random.default_rng(5)
    mask = np.zeros((12, 12, 12), np.float32)
    mask[2:5, 3:8, 4:6] = rng.uniform(0.2, 1, (3, 5, 2))
    dense = rng.random((12, 12, 12)) < 0.4
    moved, share = validate.emptiest_place(mask, dense)
    found = np.inf
    for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        turned = np.transpose(mask, axes)
        part = turned[np.ix_(*(np.flatnonzero(turned.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)))]
        for z, y, x in np.ndindex(*(13 - np.array(part.shape))):
            cut = dense[z:z + part.shape[0], y:y + part.shape[1], x:x + part.shape[2]]
            found = min(found, float((part * cut).sum() / part.sum()))
    assert share == pytest.approx(found, abs=1e-6)
    assert (moved * dense).sum() / moved.sum() == pytest.approx(found, abs=1e-6)
    assert np.sort(moved, axis=None) == pytest.approx(np.sort(mask, axis=None))


def test_without_an_empty_place_the_test_is_not_done(good, monkeypatch):
    monkeypatch.setattr(validate, "dense_region", lambda halves, _: np.ones(halves.maps[0].shape, bool))
    test = validate.empty_place(null_tests.load_finished(good, CPU, 1))
    assert test.passed is None and test.value is None and "no empty place" in test.verdict


def curves_with(corrected, error):
    zero = np.zeros(17)
    return FscCurves(32, 2.0, np.arange(17) / 64, zero, zero, zero, zero, zero, corrected, error, 1)


@pytest.mark.parametrize("beyond, reached", ((0.2, 64 / 8), (0.4, 64 / 16), (0.0, 64 / 8)))
def test_noise_beyond_the_low_pass_counts_once_it_is_certain(beyond, reached):
    """FSC 1 up to shell 6, then ``beyond`` ± 0.05 to the end of the box; the low-pass ends at shell 8. What the few
    coefficients of the first shells say does not matter."""
    shell = np.arange(17)
    curves = curves_with(np.where(shell <= 6, 1.0, beyond), np.where(shell <= 6, 0.0, 0.05))
    found = validate.noise_resolution(curves, 8)
    assert found == pytest.approx(reached) if beyond else found > reached
    scattered = curves_with(np.where(shell == 1, -0.2, curves.corrected), np.where(shell < 3, 0.5, 0.05))
    assert (validate.noise_resolution(scattered, 8) < 64 / 8) == (beyond > 0.3)


def test_the_error_of_a_band_is_that_of_noise():
    """The mean FSC of independent noise in a mask over a band of shells scatters as predicted, to a third."""
    mask, band = soft_ball(32, 7, 11), slice(6, 14)
    rng = np.random.default_rng(8)
    curves = [fsc(*(rng.standard_normal((32,) * 3).astype(np.float32) * mask for _ in range(2))) for _ in range(150)]
    means = np.array([curve[band].mean() for curve in curves])
    assert validate.band_error(np.zeros(17), mask, band) == pytest.approx(means.std(), rel=0.33)


# ---------------------------------------------------------------- what is shown of them

TESTS = (NullTest("pure_noise", "Noise instead of images", 8.0, 10.7, None, "Å", False, "the half-sets share images"),
         NullTest("random_phases", "Random phases", 0.01, -0.03, 0.04, "FSC", True, "nothing is made out of noise"),
         NullTest("empty_place", "The mask in an empty place", None, 0.0, 0.0, "FSC", None,
                  "the box has no empty place"))


def test_summary_and_report_show_what_was_found(tmp_path):
    run = fake_run(tmp_path / "run")
    assert not any("Null tests" in line for line in summary_lines(RunState(run.path)))
    save_record(run.final("validation.json"), Validation(3, 1, TESTS))
    state = RunState(run.path)
    lines = summary_lines(state)
    assert "Null tests: 1 of 2 as expected" in lines
    assert "*Warning*: Noise instead of images: the half-sets share images" in lines
    page = report_html(state, "run")
    table = page[page.index("<h2>Null tests</h2>"):page.index("<h2>Pictures</h2>")]
    assert [re.sub("<.*?>", "|", row).split("||")[2].strip("|") for row in table.split("<tr>")[2:]] == [
        "no", "yes", "not done"]
    (run.final("validation.json")).write_text('{"tests": [{"title": "half"}, 3]}')
    assert RunState(run.path).null_tests() == ()


@pytest.mark.parametrize("value, place", ((-0.03, 0.0), (0.04, 1.0), (0.11, 2.0), (0.005, 0.5)))
def test_where_a_dot_lies_in_its_range(value, place):
    assert place_in_range(replace(TESTS[1], value=value)) == pytest.approx(place)


def test_a_resolution_finer_than_expected_lies_outside():
    assert place_in_range(TESTS[0]) > 1 >= place_in_range(replace(TESTS[0], value=10.8))
    assert place_in_range(TESTS[2]) is None


def test_the_picture_says_what_was_found():
    words = [text.get_text() for text in validation_figure(TESTS).axes[0].texts]
    assert "8.0 Å  (not finer than 10.7)" in words and "not done" in words and "FSC 0.010  (at most 0.040)" in words
