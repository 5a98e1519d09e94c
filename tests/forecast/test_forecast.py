"""The forecast: its parts against closed forms and drawn poses, the whole against the refinement it is of."""

import json
import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from run_results import temporary_folder
from scipy.spatial.transform import Rotation

from examples import simulate
from localrefine_plugin.engine import __main__ as cli
from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.align.half_alignment import HalfSet
from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.search_plan import resolve, search_plan
from localrefine_plugin.engine.finish.results import pose_uncertainty
from localrefine_plugin.engine.forecast import (
    blur,
    first_iterations,
    forecast,
    iterate,
    of_run,
    peaks,
    sample,
    spectrum,
    static,
)
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.io.mrc import read_map, write_map
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.run_store import load_input, load_iteration, load_poses, load_tables
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.kernels.prefetch import from_array
from localrefine_plugin.engine.maps.fsc import five_curves
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.model.fourier import forward, radial_mean_power, shell_means
from localrefine_plugin.engine.model.pixels import pixel_list
from localrefine_plugin.engine.prepare.arguments import check_forecast_file
from localrefine_plugin.engine.records.codec import from_json
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.forecast import Forecast
from localrefine_plugin.engine.records.results import PartOfMask, RestControl
from localrefine_plugin.engine.records.settings import Settings

BOX, PIXEL = 64, 3.0


@pytest.mark.parametrize("rotation_sd_deg, shift_sd", [(3.0, 0.0), (0.0, 0.7), (2.0, 0.5)])
def test_the_blur_is_that_of_drawn_poses(rotation_sd_deg, shift_sd):
    """Mean of exp(iφ) over 20,000 poses: a point of a specimen at the drawn pose against where it is at the true one.
    For small rotations φ is linear, which is what the closed form takes: 1 % off for 3°."""
    rng, draws = np.random.default_rng(1), 20_000
    views = Rotation.random(3, random_state=2).as_matrix()
    points, shells = np.array([[9.0, -4.0, 2.0], [0.0, 0.0, 0.0]]), np.array([0, 4, 10, 16])
    covariance = np.diag([np.deg2rad(rotation_sd_deg) ** 2] * 3 + [shift_sd ** 2] * 2)
    found = blur.attenuation(np.repeat(covariance[None], 3, axis=0), views, points, shells, BOX)
    expected = np.zeros((2, 4))
    for view in views:
        w = np.deg2rad(rotation_sd_deg) * rng.standard_normal((draws, 3))
        turned = view @ Rotation.from_rotvec(w).as_matrix()
        for p, point in enumerate(points):
            moved = (turned @ point - view @ point)[:, :2] + shift_sd * rng.standard_normal((draws, 2))
            phases = 2 * np.pi * shells / BOX * moved[:, :, None]  # along x and along y
            expected[p] += np.cos(phases).mean(axis=0).mean(axis=0) / 3
    np.testing.assert_allclose(found, expected, atol=0.015)
    assert (found[:, 0] == 1).all()


@pytest.mark.parametrize("b_factor", [100.0, 180.0])
def test_the_guinier_line_goes_on_where_the_spectrum_is_lost_in_noise(b_factor):
    rng = np.random.default_rng(3)
    frequency = np.arange(65) / (64 * 2 * 1.5)
    truth = 50 * np.exp(-0.5 * b_factor * frequency ** 2)
    blurred = np.exp(-40 * frequency ** 2)
    error = 0.4 / blurred
    found = spectrum.along_guinier(truth + error * rng.standard_normal(65), error, blurred, frequency)
    assert (error > truth)[-20:].all()  # nothing is measured there
    np.testing.assert_allclose(found[16:] / truth[16:], 1, atol=0.5)
    assert found.min() > 0


def test_known_poses_give_the_fsc_of_so_many_particles():
    """Without any blur F = N s / (1 + N s), s = P₀ / ν₀."""
    _, _, refinement = parts()
    shells = len(refinement.spectrum.signal)
    one = np.ones((80, shells))
    curve = refinement.half_map_fsc(700.0, one, one, np.full(shells, 0.4))
    ratio = 700 * refinement.spectrum.signal[1:-2] / refinement.spectrum.noise[1:-2]
    np.testing.assert_allclose(curve[1:-2], ratio / (1 + ratio))


def test_a_map_that_is_its_own_reference_keeps_more_than_the_blur_leaves():
    """The amplitude a of  a ← s + (1 − s) f a,  repeated until it stays."""
    s, f, a = 0.6, np.array([0.0, 0.5, 1.0]), 0.0
    for _ in range(200):
        a = s + (1 - s) * f * a
    np.testing.assert_allclose(iterate.given_back(np.full((4, 3), s), f), np.broadcast_to(a, (4, 3)), rtol=1e-6)


def test_the_noise_of_a_map_is_known_from_what_was_inserted():
    """Images of white noise, with |CTF| = 1, at their input poses: the power of the masked half-maps, against ν₀ / n
    from D. Shell 8 holds about 40 independent coefficients of each map, which tell it to 11 %; 22 shells to 2 %."""
    mask, box = read_map(inputs()[3])[0], 64
    particles, _ = read_particles(inputs()[0])
    flat, zero = dict(amplitude_contrast=1.0, spherical_aberration_mm=0.0), np.zeros(PARTICLES)
    particles = replace(particles, defocus_u=zero, defocus_v=zero,
                        optics=tuple(replace(group, **flat) for group in particles.optics))
    settings = Settings(marginalize=False, per_particle_scale=False)
    resolved = resolve(settings, mask, 12.0, particles.pixel_size)
    noise = np.random.default_rng(5).standard_normal((PARTICLES, box, box)).astype(np.float32)
    sigma2, nothing = np.full((len(particles.optics), box // 2), float(box ** 2)), np.zeros((box,) * 3, np.float32)
    sets = [np.flatnonzero(particles.half_set == half) for half in (1, 2)]
    plan = search_plan(resolved, particles, 40.0)
    halves = []
    for rows in sets:
        mine = particles.take(rows)
        result = align_half(HalfSet(mine, rows, from_array(noise[rows]), nothing, mask, sigma2), plan, verdicts=False)
        some = np.arange(sample.SEEN)
        halves.append(sample.SampleHalf(
            mine.take(some), result.poses.covariance[some], result.poses.pose_error_covariance[some].astype(float),
            result.half_map, nothing, result.noise_power, result.accumulator_mean, len(rows),
            [result.phase_seconds] * sample.ITERATIONS))
    curves = five_curves(HalfMaps(halves[0].half_map, halves[1].half_map), mask, particles.pixel_size)
    run = sample.SampleRun(halves, plan, mask, curves, [plan.align_shell] * sample.ITERATIONS)
    found = np.mean([radial_mean_power(forward(half.half_map * mask)) for half in halves], axis=0)
    expected = spectrum.noise_of(run) / run.per_half
    np.testing.assert_allclose((found / expected)[8:-3], 1, atol=0.25)
    assert np.mean((found / expected)[8:-3]) == pytest.approx(1, abs=0.04)
    nothing_reached = forecast.of_sample(run, resolved, forecast.Whole("mask.mrc", PARTICLES, 0.0), 1)
    assert 20 < nothing_reached.to_report_angstrom < np.inf


@pytest.mark.parametrize("size, strength", [(0.0, 2.0), (1.0, 2.5), (3.0, 2.5), (5.0, 4.0), (7.0, 5.0)])
def test_peaks_have_the_masses_of_drawn_posteriors(size, strength):
    """Of e^L cells with scores |Y| n_j, the first one's higher by g |Y|², 4000 times."""
    rng, cells, share = np.random.default_rng(1), max(int(round(np.exp(size))), 1), 0.7
    score = strength * rng.standard_normal((4000, cells))
    score[:, 0] += share * strength ** 2
    mass = np.exp(score - score.max(axis=1)[:, None])
    mass /= mass.sum(axis=1)[:, None]
    energy = np.array([strength ** 2])
    found = peaks.peaks_of(energy, share * energy, np.array([size]))
    expected = mass[:, 0].mean(), mass.max(axis=1).mean(), (mass ** 2).sum(axis=1).mean()
    np.testing.assert_allclose([part.mean() for part in found], expected, atol=0.05)


def test_the_energy_of_a_band_follows_from_its_curvature():
    """Σ W from Σ W (2π/N)² kx² and ky² over the pixels of a half-plane, W falling off with |k|."""
    _, _, refinement = parts()
    box, last = 64, 31
    pixels = pixel_list(box, last, last)
    weight = 1 / (1 + (pixels.shell / 10.0) ** 2)
    ends = sample.band_ends(last)
    band = np.searchsorted(ends, pixels.shell)
    by_band, energy = np.zeros((len(ends), 1, 5, 5)), np.bincount(band, weight, len(ends))
    for axis, k in ((3, pixels.kx), (4, pixels.ky)):
        by_band[:, 0, axis, axis] = np.bincount(band, weight * (2 * np.pi / box * k) ** 2, len(ends))
    found = refinement.views._replace(by_band=by_band).energy(box)[:, 0]
    np.testing.assert_allclose(found, energy, rtol=0.1)
    assert found.sum() == pytest.approx(energy.sum(), rel=0.02)


def test_what_a_reference_holds_is_told_by_the_other_half():
    """Maps b T + n and references c T + f n of both halves: γ = c / b, whatever noise a reference shares with its own
    map; 0 where the maps agree on nothing."""
    rng, box, b, c, f = np.random.default_rng(2), 48, 0.7, 0.4, 0.9
    signal = rng.standard_normal((box,) * 3)
    noise = [3 * rng.standard_normal((box,) * 3) for _ in range(2)]
    maps, references = ([forward((share * signal + times * one).astype(np.float32)) for one in noise]
                        for share, times in ((b, 1.0), (c, f)))
    cross = shell_means(*maps)[2]
    found = spectrum.known_share(maps, references, cross, np.full_like(cross, 0.2 * cross[8:].mean()))
    assert np.mean(found[8:]) == pytest.approx(c / b, abs=0.03)
    assert (spectrum.known_share(maps, references, cross, np.full_like(cross, 1e9)) == 0).all()


def test_where_the_rotation_is_anywhere_the_shape_still_holds_the_shift():
    """As much as a known rotation does if it may hardly turn, and less the further it may turn; never the rotation."""
    _, _, refinement = parts()
    power = refinement.spectrum.signal
    plain = np.einsum("b,bmij->mij", iterate.by_band(power, 31), refinement.views.by_band)[:, 3:, 3:]
    limits = [np.tile(np.diag([np.deg2rad(sd) ** -2] * 3 + [1.0] * 2), (len(plain), 1, 1)) for sd in (0.01, 5.0, 20.0)]
    held = [refinement.held_by_shape(one, power) for one in limits]
    np.testing.assert_allclose(held[0][:, 3:, 3:], plain, rtol=1e-3)
    traces = [np.trace(one[:, 3:, 3:], axis1=1, axis2=2).mean() for one in held]
    assert traces[0] > 1.2 * traces[1] > 1.2 * traces[2] > 0
    assert not held[1][:, :3].any() and not held[1][:, :, :3].any()


def test_without_a_prior_the_signal_is_measured_with_the_learned_one(monkeypatch):
    given, seen = forecast.Inputs(*inputs()[:3], Settings(prior="off"), 100), []
    original = forecast.spectrum_of

    def noted(run, views, *others):
        seen.append((run.plan.prior.name, views.has_prior))
        return original(run, views, *others)
    monkeypatch.setattr(forecast, "spectrum_of", noted)
    without, = forecast.forecast(given, inputs()[3:], "cpu", 1)
    assert seen == [("learned", True)]
    assert without.rotation_error_deg > parts()[0].rotation_error_deg


def test_a_mean_over_bands_keeps_a_constant():
    np.testing.assert_allclose(iterate.by_band(np.full(33, 2.5), 31), 2.5)


def test_particles_needed_are_found_by_the_same_road_back():
    def end(count):
        return iterate.End(0.0, 30.0 / np.log(count), 0.0, 0.0)
    assert iterate.count_for(end, 4.0, 500.0) == pytest.approx(np.exp(7.5), rel=0.01)
    assert iterate.count_for(end, 1.0, 500.0) == np.inf


PARTICLES = 800


@lru_cache(maxsize=None)
def inputs():
    """The hinged ribosomal RNA of the examples: its detail falls off as that of molecules does."""
    folder = temporary_folder() / "data"
    simulate.simulate(folder, simulate.Options(particles=PARTICLES, box_size=64, pixel_size=4.0, snr=0.08, seed=7))
    return [folder / name for name in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")]


@lru_cache(maxsize=None)
def parts():
    """A forecast from 250 of 400 particles of each half-set, the run it is of, and its refinement."""
    given = forecast.Inputs(*inputs()[:3], Settings(), 250)
    kept = []
    original = forecast.Refinement

    def noted(*args):
        kept.append(original(*args))
        return kept[-1]
    forecast.Refinement = noted
    try:
        found, = forecast.forecast(given, inputs()[3:], "cpu", 1)
    finally:
        forecast.Refinement = original
    run = engine.refine(*inputs(), str(temporary_folder() / "run"), Settings(), threads=1)
    return found, run, kept[0]


def test_the_run_reaches_what_was_forecast():
    """Within 10 % of the resolution and 25 % of the errors of the poses (docs/explanation/forecast.md)."""
    found, run, _ = parts()
    report = read_json(run.report)
    best = load_iteration(run, run.iterations_done()).best_iteration
    stated = np.median(np.concatenate([pose_uncertainty(t.pose_error_covariance, read_json(run.input)["pixel_size"])
                                       for t in load_tables(run, best)]), axis=0)
    print(found, report["resolution_to_report_angstrom"], stated)
    assert found.particles == PARTICLES and found.sample == 500
    assert found.to_report_angstrom == pytest.approx(report["resolution_to_report_angstrom"], rel=0.1)
    np.testing.assert_allclose([found.rotation_error_deg, found.shift_error_angstrom], stated, rtol=0.25)


def test_a_run_of_few_particles_says_it_after_its_third_iteration():
    """The line is made of what the run has, and of all its particles; within what the sample's is held to."""
    _, run, _ = parts()
    assert not run.forecast(0).exists() and not run.forecast(2).exists()
    said = from_json(Forecast, read_json(run.forecast(sample.ITERATIONS)))
    assert said.sample == said.particles == PARTICLES
    assert said.to_report_angstrom == pytest.approx(read_json(run.report)["resolution_to_report_angstrom"], rel=0.1)
    assert said.memory_mb == read_json(run.input)["predicted_memory_mb"]


def test_a_run_of_many_particles_says_it_before_and_keeps_its_bits(tmp_path, monkeypatch, capsys):
    """As the verb forecasts from as many; the first alignment finds the poses of a run without it."""
    found, run, _ = parts()
    monkeypatch.setattr(of_run, "MANY", PARTICLES)
    monkeypatch.setattr(of_run, "SAMPLE", 250)
    other = engine.prepare(*inputs(), str(tmp_path / "run"), Settings(), threads=1)
    assert "forecast for this run: about" in capsys.readouterr().out
    assert not list(other.path.glob(".*"))  # what it was made in is gone
    said = from_json(Forecast, read_json(other.forecast(0)))
    assert (said.particles, said.sample) == (PARTICLES, 500)
    assert said.to_report_angstrom == pytest.approx(found.to_report_angstrom, rel=0.02)
    assert not found.doubt  # the head moves against the body
    assert said.rotation_error_deg == pytest.approx(found.rotation_error_deg, rel=0.05)
    for k in range(1, sample.ITERATIONS + 1):
        engine.align(str(other.path), k, (1, 2), threads=1)
        engine.merge(str(other.path), k, threads=1)
    for name, column in load_poses(run, sample.ITERATIONS, 1).columns().items():
        np.testing.assert_array_equal(np.asarray(getattr(load_poses(other, sample.ITERATIONS, 1), name)),
                                      np.asarray(column))
    engine.prepare(*inputs(), str(tmp_path / "run"), Settings(), threads=1, mode="continue")
    said = capsys.readouterr().out
    assert "Å to report" not in said and static.DOUBT not in said and "the rest of the particle" in said


def test_iterations_of_all_particles_are_those_of_a_run(tmp_path):
    _, run, _ = parts()
    found = first_iterations.iterated(first_iterations.start_of_run(run, PARTICLES), tmp_path, CPU, 1)
    for half, one in enumerate(found.halves, 1):
        np.testing.assert_array_equal(one.half_map, read_map(run.half_map(sample.ITERATIONS, half))[0])
        np.testing.assert_array_equal(one.reference, read_map(run.reference(sample.ITERATIONS - 1, half))[0])


def test_the_verb_begins_as_prepare_does_with_exchanged_half_maps_and_a_static_part(tmp_path):
    star, first, second, mask = inputs()
    settings = Settings(subtract=True, exchange_half_maps=True)
    run = engine.prepare(star, second, first, mask, str(tmp_path / "run"), settings, threads=1)
    given = check_inputs(star, second, first, mask, settings)
    curves = five_curves(given.halves, given.mask, given.pixel_size, settings.seed, settings.fsc_randomise_below)
    resolved = resolve(settings, given.mask, curves.resolutions()["corrected"], given.pixel_size)
    verb = first_iterations.start_of(given, settings, resolved, curves, 1)
    prepared = first_iterations.start_of_run(run, PARTICLES)
    for name in ("references", "static", "noise"):
        assert len(getattr(verb, name)) == 2
        for one, other in zip(getattr(verb, name), getattr(prepared, name)):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
    as_run = first_iterations.as_run(verb, tmp_path / "empty")
    np.testing.assert_array_equal(read_map(load_input(as_run).half_maps[0])[0], read_map(first)[0])


def test_more_particles_are_forecast_to_be_better():
    found, _, refinement = parts()
    resolutions = list(found.to_report_of_numbers)
    assert found.numbers == (200, 800, 3200, 12800) and resolutions == sorted(resolutions, reverse=True)
    few, many = refinement.end(100.0), refinement.end(10_000.0)
    assert many.rotation_error < few.rotation_error and many.to_report < few.to_report


def test_the_verb_says_a_line_for_each_mask_and_writes_them(tmp_path, capsys):
    star, first, second, mask = (str(path) for path in inputs())
    target = tmp_path / "forecast.json"
    assert cli.main(["forecast", "--particles", star, "--half-map-1", first, "--half-map-2", second, "--mask", mask,
                     "--mask", mask, "--sample", "100", "--resolution", "20", "--json", str(target), "--device", "cpu",
                     "--threads", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("forecast for")]
    assert len(lines) == 2 and lines[0].split(";")[0] == lines[1].split(";")[0]
    written = json.loads(target.read_text())["forecasts"]
    assert len(written) == 2 and written[0]["wanted_angstrom"] == 20.0
    assert "20 Å would take about" in lines[0]


def test_a_file_that_is_no_forecast_is_not_written_over_and_said_before_computing(tmp_path):
    mine = tmp_path / "settings.json"
    mine.write_text('{"prior": "off"}')
    for target, words in ((mine, "is there already and holds no forecasts"), (tmp_path, "holds no forecasts"),
                          (tmp_path / "none" / "forecast.json", "no folder that can be written to")):
        with pytest.raises(InputError, match=words):
            check_forecast_file(target)
    assert mine.read_text() == '{"prior": "off"}'
    (tmp_path / "before.json").write_text('{"forecasts": []}')
    for target in ("before.json", "new.json"):
        check_forecast_file(tmp_path / target)


def test_a_part_that_does_not_move_is_doubted(tmp_path, monkeypatch):
    """The control of the finished run is asked, with the sample as its first iteration; it fails for nothing."""
    simulate.simulate(tmp_path, simulate.Options(particles=260, box_size=64, pixel_size=4.0, snr=0.2, seed=8,
                                                 hinge_rotation_deg=0.0, hinge_shift_angstrom=0.0))
    verdicts, original = [], static.before_a_run

    def noted(*arguments):
        control = original(*arguments)
        verdicts.append((control[0].verdict, control[0].sentence))
        return control
    monkeypatch.setattr(static, "before_a_run", noted)
    files = [tmp_path / name for name in ("particles.star", "half1.mrc", "half2.mrc", "mask_B.mrc")]
    found, = forecast.forecast(forecast.Inputs(*files[:3], Settings(), 130), files[3:], "cpu", 1)
    assert verdicts[0][0] != "not done", verdicts
    assert found.doubt.startswith(static.DOUBT), verdicts


@pytest.mark.parametrize("moved, seen, moving, doubted", [
    (2.6, 1.7, 0.0, True), (1.2, 1.7, 0.0, False), (2.6, 1.7, 0.8, False), (2.6, 1.7, 0.3, True)])
def test_a_motion_that_the_parts_would_show_and_do_not_is_doubted(moved, seen, moving, doubted):
    """``moving``: the share of a part that moves; without one, ``moved`` is compared with what would be ``seen``."""
    control, error = RestControl("apart", displacement_angstrom=moved), seen ** 2 / 2
    parts = [PartOfMask((), moving, 9 * error * (moving > 0), error), PartOfMask((), 1 - moving, 0.0, error)]
    assert static.contradicted(control, parts) == doubted


def test_a_mask_that_holds_much_of_the_rest_is_doubted_and_its_parts_are_asked(tmp_path):
    """The head with two fifths of the body, cut off where the body is thickest."""
    body, head = (read_map(inputs()[0].with_name(f"mask_{name}.mrc"))[0] for name in "AB")
    place = np.stack(np.meshgrid(*[np.arange(64) - 32.0] * 3, indexing="ij"), axis=-1)
    centres = [(place * mask[..., None]).sum(axis=(0, 1, 2)) / mask.sum() for mask in (body, head)]
    towards = (centres[1] - centres[0]) / np.linalg.norm(centres[1] - centres[0])
    near = 1 / (1 + np.exp(-((place - centres[0]) @ towards - 2) / 2))
    wide = tmp_path / "wide.mrc"
    write_map(wide, np.maximum(head, body * near).astype(np.float32), 4.0)
    found, = forecast.forecast(forecast.Inputs(*inputs()[:3], Settings(), 250), [wide], "cpu", 1)
    moves, rests = (int(share) for share in re.findall(r"(\d+) % ", found.doubt))
    assert found.doubt.startswith(static.DOUBT) and "By its parts" in found.doubt
    assert found.doubt in forecast.sentence(found)
    assert moves < 60 and 30 < rests < 80


def test_too_few_particles_are_refused():
    particles, _ = read_particles(inputs()[0])
    with pytest.raises(InputError, match="too small"):
        forecast.sample_rows(particles, 10, "particles.star")
    with pytest.raises(InputError, match="fewer than 100 particles in a half-set"):
        forecast.sample_rows(particles.take(np.arange(150)), 500, "particles.star")


def test_the_sample_is_spread_over_each_half_set():
    particles, _ = read_particles(inputs()[0])
    rows = forecast.sample_rows(particles, 120, "")
    assert len(rows) == 240 and (np.diff(rows) > 0).all()
    for half in (1, 2):
        of_half = rows[particles.half_set[rows] == half]
        assert len(of_half) == 120 and of_half[0] < 20 and of_half[-1] > PARTICLES - 20
