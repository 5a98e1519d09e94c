"""The imperfections of the simulator: each by what it does to images or tables, against closed forms."""
from __future__ import annotations

import dataclasses
import json

import mrcfile
import numpy as np
import pytest
from relion_files import read_columns

from examples import imperfections, membrane, simulate, two_hinges

PLAIN = simulate.Options(particles=60, box_size=40, pixel_size=7.0, seed=4, threads=1)


def microscope(**changes):
    options = dataclasses.replace(PLAIN, **changes)
    model = simulate.MODELS[options.model]()
    truth = simulate.draw(options, model.fulcrums, np.random.default_rng(options.seed))
    return simulate.Microscope(options, model.bodies(options.box_size, options.pixel_size), model.radius, truth)


def test_one_imperfection_leaves_all_other_random_numbers_as_they_are():
    """Poses, defoci and noise are those of the plain set; without junk so are the images."""
    rows = slice(0, 50)
    plain, changed = microscope(), microscope(junk=0.3, defocus_error_angstrom=300.0)
    np.testing.assert_array_equal(plain.truth.motions[0].hinge, changed.truth.motions[0].hinge)
    for name in ("half_set", "amplitude"):
        np.testing.assert_array_equal(getattr(plain.truth, name), getattr(changed.truth, name))
    kept = ~changed.junk[rows]
    np.testing.assert_array_equal(plain.images(rows)[kept], changed.images(rows)[kept])


def test_junk_is_noise_alone_and_listed(tmp_path):
    simulate.simulate(tmp_path, dataclasses.replace(PLAIN, junk=0.4, snr=5.0))
    junk = json.loads((tmp_path / "truth.json").read_text())["junk"]
    assert 12 < len(junk) < 36
    spread = mrcfile.read(tmp_path / "particles.mrcs").std(axis=(1, 2))
    others = np.setdiff1d(np.arange(60), junk)
    assert spread[junk].max() < spread[others].min()
    np.testing.assert_allclose(spread[junk], 1, atol=0.15)


def test_a_ramp_has_its_height_in_every_direction():
    """Least squares of a plane: the height from centre to edge is Gaussian of the given s.d., and the rest is 0."""
    n, box = 4000, 16
    images = imperfections.ramps(imperfections.Imperfections(ice_gradient=2.0), np.random.default_rng(1), n, box)
    axis = (np.arange(box) - box // 2) / (box / 2)
    design = np.stack([np.tile(axis, box), np.repeat(axis, box), np.ones(box * box)], axis=1)
    found, rest = np.linalg.lstsq(design, images.reshape(n, -1).T, rcond=None)[:2]
    assert rest.max() < 1e-18 and np.abs(found[2]).max() < 1e-12
    assert np.hypot(*found[:2]).mean() == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.03)
    assert found[0].std() == pytest.approx(found[1].std(), rel=0.05)


def test_noise_of_the_specimen_has_the_ctf_and_the_same_variance():
    """Power in each pixel ∝ C²; the variance of the images is that of the other noise."""
    camera = microscope(astigmatism=0.0)
    pixels, rows, repeats = camera.pixels, slice(0, 1), 3000
    c = np.repeat(camera.ctf(rows), repeats, axis=0)
    white = camera.white(np.random.default_rng(2), repeats)
    made = imperfections.specimen_noise(pixels, white, camera.noise_amplitude, c)
    other = pixels.images(white * camera.noise_amplitude)
    assert pixels.images(made).var() == pytest.approx(other.var(), rel=0.02)
    power = (np.abs(made) ** 2).mean(axis=0) / camera.noise_amplitude ** 2
    assert np.corrcoef(power, c[0] ** 2)[0, 1] > 0.995


def test_a_share_of_structured_noise_keeps_the_variance():
    rows = slice(0, 50)
    plain, mixed = (microscope(structured_noise=f).noise(rows, np.random.default_rng(3)).var() for f in (0.0, 0.5))
    assert mixed == pytest.approx(plain, rel=0.03)


def test_neighbours_lie_beside_the_particle():
    rotation, position = imperfections.neighbour_poses(np.random.default_rng(1), 500, 100.0)
    distance = np.linalg.norm(position, axis=1)
    assert distance.min() >= 80 and distance.max() <= 140
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (500, 1, 1)), atol=1e-12)
    camera = microscope(neighbours=1.0)
    rows = slice(0, 50)
    extra = camera.specimens(rows, np.random.default_rng(5)) - camera.signal(rows)
    axis = np.arange(PLAIN.box_size) - PLAIN.box_size // 2
    strength = (extra ** 2).mean(axis=0)
    radius = np.hypot(axis, axis[:, None])
    assert strength[radius > 14].mean() > 3 * strength[radius < 4].mean()


def test_the_table_has_defoci_with_an_error_and_the_microscope_has_not(tmp_path):
    camera = microscope(defocus_error_angstrom=400.0, particles=600)
    difference = camera.truth.given_defocus["u"] - camera.truth.defocus["u"]
    assert difference.std() == pytest.approx(400, rel=0.1)
    np.testing.assert_allclose(camera.truth.given_defocus["v"] - camera.truth.defocus["v"], difference, atol=1e-9)
    simulate.write_star(tmp_path / "p.star", camera.options, camera.truth, camera.truth.given)
    written = read_columns(tmp_path / "p.star", ("rlnDefocusU",)).ravel()
    np.testing.assert_allclose(written, camera.truth.given_defocus["u"], atol=0.01)


def test_a_wrong_pixel_size_moves_the_zeros_of_the_ctf():
    """The CTF at the true frequency s / 1.01, by its formula at one pixel."""
    camera = microscope(pixel_size_error=0.01, envelope_b_factor=0.0, astigmatism=0.0)
    c, given = camera.ctf(slice(0, 1))[0], camera.given_ctf(slice(0, 1))[0]
    j = int(np.flatnonzero((camera.pixels.kx == 12) & (camera.pixels.ky == 5))[0])
    wavelength, cs, z = 12.2643247 / np.sqrt(3e5 * (1 + 3e5 * 0.978466e-6)), 2.7e7, camera.truth.defocus["u"][0]
    for found, pixel in ((c, 7.07), (given, 7.0)):
        s2 = (12 ** 2 + 5 ** 2) / (40 * pixel) ** 2
        phase = np.pi * wavelength * z * s2 - np.pi / 2 * cs * wavelength ** 3 * s2 ** 2
        assert found[j] == pytest.approx(np.sin(phase + np.arcsin(0.1)), abs=1e-4)


def test_preferred_views_lie_about_one_axis():
    options = imperfections.Imperfections(preferred_view_deg=20.0)
    cosine = imperfections.preferred_views(options, 1, 4000)[:, 2, 2]
    assert np.rad2deg(np.sqrt(np.mean(np.arccos(cosine) ** 2))) == pytest.approx(20, rel=0.05)


def test_the_complex_with_two_hinges_has_three_bodies_of_their_masses_that_touch_where_they_turn():
    model = two_hinges.model()
    in_a = ~(model.in_body_b | model.in_body_c)
    masses = [0.11 / 2 * chosen.sum() for chosen in (in_a, model.in_body_b, model.in_body_c)]  # two beads a residue
    np.testing.assert_allclose(masses, (165, 82.5, 66))
    for inside, hinge in ((model.in_body_b, model.fulcrum), (model.in_body_c, model.fulcrum_c)):
        for part in (inside, in_a):
            assert np.linalg.norm(model.position[part] - hinge, axis=1).min() < 15


def test_the_membrane_protein_has_a_domain_of_50_kda_a_bundle_and_a_weaker_micelle_around_it():
    model = membrane.model()
    assert model.in_body_b.sum() == 2 * 450  # two beads a residue of 110 Da
    np.testing.assert_allclose(np.average(model.position, axis=0, weights=model.weight), 0, atol=1e-9)
    box, pixel = 64, 3.0
    body_a, body_b = model.bodies(box, pixel)
    assert np.average(np.indices(body_b.shape)[0], weights=np.maximum(body_b, 0)) > box // 2 + 5
    z, y, x = np.indices(body_a.shape) - box // 2
    across, height = np.hypot(x, y) * pixel, z * pixel - (model.fulcrum[2] - membrane.JOINT_HEIGHT)
    slab = np.abs(height) < 8
    bundle, ring, outside = (body_a[slab & (across > low) & (across < high)].mean()
                             for low, high in ((0, 15), (26, 36), (54, 80)))
    assert 0.2 < ring / bundle < 0.7 and abs(outside) < 0.05 * ring


def test_images_do_not_depend_on_the_order_in_which_batches_are_made():
    camera = microscope(ice_gradient=1.0, structured_noise=0.3, neighbours=0.5, junk=0.2)
    last = camera.images(slice(50, 60))
    camera.images(slice(0, 50))
    np.testing.assert_array_equal(camera.images(slice(50, 60)), last)
