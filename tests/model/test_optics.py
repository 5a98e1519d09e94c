"""Beam tilt, odd and even Zernike and magnification matrices: explicit polynomials, direct sums, and RELION 3.1.3."""

from __future__ import annotations

from dataclasses import replace

import mrcfile
import numpy as np
import pytest
from aberrations import EVEN, NONE, ODD, STRONG, Aberrations, aberrated, contrast, image_shifts, model, star_columns
from conftest import require_program
from experiments import experiment
from oracles import at_frequencies, centred_transform, full_frequencies, log_likelihood, shell_correlation
from relion_files import write_map, write_star
from relion_programs import inner, relion

from localrefine_plugin.engine.align.half_alignment import model_match
from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.images import HalfSetImages, displaced, pack
from localrefine_plugin.engine.align.prior import PosePrior
from localrefine_plugin.engine.align.reference import make_reference
from localrefine_plugin.engine.align.search import evaluate, modes_at
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.model import optics
from localrefine_plugin.engine.model.ctf import CtfOnPixels
from localrefine_plugin.engine.model.pixels import pixel_list

BOX, PIXEL_SIZE, RESOLUTION = 32, 4.0, 10.0
SIGMA = dict(box=BOX, pixel_size=PIXEL_SIZE, centre=(6.0, -4.0, 3.0))


@pytest.mark.parametrize("odd, polynomials", [(True, ODD), (False, EVEN)])
def test_zernike_polynomials_and_their_order(odd, polynomials):
    """Against the polynomials written out, inside and outside of the unit disc: nothing is normalised."""
    x, y = np.random.default_rng(1).uniform(-1.5, 1.5, (2, 50))
    for index, polynomial in enumerate(polynomials):
        coefficients = (0.0,) * index + (2.5,)
        np.testing.assert_allclose(optics.zernike_sum(coefficients, odd, x, y), 2.5 * polynomial(x, y), atol=1e-12)


def test_next_orders_follow():
    assert [optics.zernike_order(i, True) for i in (6, 8, 11)] == [(5, -5), (5, -1), (5, 5)]
    assert [optics.zernike_order(i, False) for i in (9, 12, 15)] == [(6, -6), (6, 0), (6, 6)]


@pytest.mark.parametrize("odd", [(), (0.0, 1.0, 2.0), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)])
def test_a_beam_tilt_is_the_phase_of_its_formula_beside_any_list(odd):
    """−2π·10⁴ Cs λ² s² (s·τ)."""
    x, y = np.random.default_rng(2).uniform(-0.4, 0.4, (2, 50))
    both = optics.zernike_sum(optics.with_beam_tilt(odd, (0.7, -1.1), 2.7, 0.02), True, x, y)
    expected = -2e4 * np.pi * 2.7 * 0.02**2 * (x**2 + y**2) * (0.7 * x - 1.1 * y)
    np.testing.assert_allclose(both - optics.zernike_sum(odd, True, x, y), expected, atol=1e-12)


def point_stack(path, n, box):
    images = np.zeros((n, box, box), np.float32)
    images[:, box // 2, box // 2] = 1
    with mrcfile.new(str(path), overwrite=True) as mrc:
        mrc.set_data(images)
        mrc.set_image_stack()


def test_ctf_with_even_zernike_and_magnification_is_that_of_relion_project(tmp_path):
    """A point projects to a constant, so that its image's transform is the CTF: C(M k) with −Σ c Z in χ."""
    require_program("relion_project")
    e = aberrated(8, **SIGMA)
    point = np.zeros((BOX,) * 3, np.float32)
    point[(BOX // 2,) * 3] = 1
    write_map(tmp_path / "point.mrc", point, PIXEL_SIZE)
    write_star(tmp_path / "poses.star", replace(e.particles, shift_px=np.zeros((8, 2))), "none.mrcs",
               optics_columns=star_columns(STRONG))  # fmt: skip
    relion("relion_project", tmp_path, "--i", "point.mrc", "--ang", "poses.star", "--o", "images", "--ctf")
    kx, ky = inner(BOX)
    theirs = at_frequencies(centred_transform(mrcfile.read(tmp_path / "images.mrcs").astype(float)), kx, ky)
    ours = CtfOnPixels(e.particles, kx, ky, np.asarray)(np.arange(8))
    plain = replace(e.particles, optics=tuple(a.group("g", PIXEL_SIZE, BOX) for a in (NONE, NONE)))
    np.testing.assert_allclose(theirs.real, ours, atol=2e-3)
    without = np.abs(theirs.real - CtfOnPixels(plain, kx, ky, np.asarray)(np.arange(8))).max(axis=1)
    assert (without > 0.3).all()  # all eight would differ: the test sees what it is about


@pytest.mark.parametrize("box", [32, 48])
def test_phase_of_tilt_and_odd_zernike_is_that_of_relion_reconstruct(tmp_path, box):
    """A point seen from above, at CTF 1: relion_reconstruct fills the plane kz = 0 with e^{−iφ}, so that the phase of
    the map's middle slice is what the engine multiplies images with. The group is read from the STAR file.

    RELION's round mask cuts the wings of the point's image: 0.003 rad in the median of φ up to 0.8 rad.
    """
    require_program("relion_reconstruct")
    weak = Aberrations((3.0, -2.0), (1.0, -2.0, 60.0, 0.0, 0.0, -80.0))
    e = experiment(1, **dict(SIGMA, box=box))
    group = replace(weak.group("g", PIXEL_SIZE, box), amplitude_contrast=1.0)
    zero = np.zeros(1)
    above = replace(e.particles, optics=(group,), rotation=np.eye(3)[None], shift_px=np.zeros((1, 2)), defocus_u=zero,
                    defocus_v=zero)  # fmt: skip
    point_stack(tmp_path / "point.mrcs", 1, box)
    write_star(tmp_path / "in.star", above, "point.mrcs", optics_columns=star_columns((weak,)))
    relion("relion_reconstruct", tmp_path, "--i", "in.star", "--o", "map.mrc", "--ctf")
    kx, ky = inner(box)
    middle = mrcfile.read(tmp_path / "map.mrc")[box // 2].astype(float)
    theirs = at_frequencies(centred_transform(middle[None]), kx, ky)[0]
    read, _ = read_particles(tmp_path / "in.star")
    phase = optics.aberration_phase(read.optics[0], True, kx, ky)
    np.testing.assert_allclose(phase, weak.odd_phase(kx, ky, box * PIXEL_SIZE), atol=1e-4)
    off = np.abs(np.angle(theirs * np.exp(1j * phase)))
    assert np.abs(phase).max() > 0.7
    assert np.median(off) < 0.01 and off.max() < 0.08


def reconstructed(folder, e, aberrations, shift=None):
    """relion_reconstruct's map of the images of ``e`` at their true poses, or at these image shifts."""
    with mrcfile.new(str(folder / "images.mrcs"), overwrite=True) as mrc:
        mrc.set_data(e.images.astype(np.float32))
        mrc.set_image_stack()
    shift = image_shifts(e.particles, e.shift, aberrations) if shift is None else shift
    write_star(folder / "images.star", e.particles, "images.mrcs", e.rotation, shift,
               optics_columns=star_columns(aberrations))  # fmt: skip
    relion("relion_reconstruct", folder, "--i", "images.star", "--o", "map.mrc", "--ctf")
    return mrcfile.read(folder / "map.mrc")


def test_relion_reconstruct_agrees_with_the_image_model(tmp_path):
    """Images of the direct sum come back as the phantom. They do less well with the transposed matrices, and with
    shifts in the specimen's plane: RELION's are the images'."""
    require_program("relion_reconstruct")
    e = aberrated(400, seed=4, sigma=1.0, wider_shifts=5.0, **SIGMA)
    truth, last = e.phantom.density(BOX), int(0.8 * BOX / 2)
    right = 1 - shell_correlation(reconstructed(tmp_path, e, STRONG), truth)[1 : last + 1]
    m = [a.magnification for a in STRONG]
    turned = tuple(replace(a, magnification=(v[0], v[2], v[1], v[3])) for a, v in zip(STRONG, m))
    moved = 1 - shell_correlation(reconstructed(tmp_path, e, STRONG, e.shift), truth)[1 : last + 1]
    wrong = 1 - shell_correlation(reconstructed(tmp_path, e, turned), truth)[1 : last + 1]
    assert right.max() < 0.01
    assert (wrong[-3:] > 5 * right[-3:]).all()
    assert (moved[-3:] > 3 * right[-3:]).all()


def test_log_likelihood_with_aberrations_is_the_direct_sum():
    """Σ (|X|² − |X − Y|²)/σ² at the poses found, as without them."""
    e = aberrated(60, noise=1.0, **SIGMA)
    poses = align(e, RESOLUTION).poses
    kx, ky = full_frequencies(BOX)
    used = (np.hypot(kx, ky) < e.plan(RESOLUTION).align_shell + 0.5) & ((kx > 0) | ((kx == 0) & (ky > 0)))
    kx, ky = kx[used], ky[used]
    data = at_frequencies(centred_transform(e.images), kx, ky)
    models = model(e.phantom, e.particles, poses.rotation, poses.shift_px, STRONG, kx, ky)
    expected = [log_likelihood(x, y, (e.noise * BOX) ** 2) for x, y in zip(data, models)]
    np.testing.assert_allclose(poses.log_likelihood, expected, rtol=0.04)


def align(e, resolution):
    noise = np.repeat(e.noise_power, len(e.particles.optics), 0)
    return align_half(e.half_set(noise_power=noise), e.plan(resolution))


def test_planted_poses_are_recovered_with_aberrations_and_not_without_them():
    e = aberrated(60, wider_shifts=4.0, **SIGMA)
    w, moved = e.errors(align(e, RESOLUTION).poses)
    assert np.sqrt(np.mean(w**2)) < 0.15 and np.sqrt(np.mean(moved**2)) < 0.01
    blind = replace(e, particles=replace(e.particles, optics=(NONE.group("g", PIXEL_SIZE, BOX),) * 2))
    w, moved = blind.errors(align(blind, RESOLUTION).poses)
    assert np.sqrt(np.mean(moved**2)) > 0.1


def test_gradient_with_aberrations_is_the_difference_quotient():
    e = aberrated(6, noise=1.0, **SIGMA)
    plan, p = e.plan(RESOLUTION), e.particles
    images = HalfSetImages(p, lambda rows: e.images[rows].astype(np.float32), np.repeat(e.noise_power, 2, 0), 15, 1)
    reference = make_reference(e.phantom.density(BOX), e.mask, plan.centre, 15)
    u0 = p.shift_px + p.rotation[:, :2] @ plan.centre
    packed = pack(images.batch(np.arange(6)), pixel_list(BOX, 12, 15), u0)
    step = np.linspace(-2.0, 3.0, 12).reshape(6, 2)
    elsewhere = pack(images.batch(np.arange(6)), packed.pixels, u0 + step).matched
    np.testing.assert_allclose(displaced(packed, step).matched, elsewhere, atol=1e-4 * np.abs(elsewhere).max())
    motion = PosePrior(p.rotation, np.zeros((6, 5, 5)), np.zeros((6, 5)), np.zeros(3), np.zeros(3), 1.0, 20.0)

    def at(x):
        modes = modes_at(motion, np.arange(6), np.tile(x[:3], (6, 1)), np.tile(x[3:], (6, 1)))
        found, gradient = evaluate(reference, packed, motion, modes, len(packed.pixels), True)
        return found, gradient

    start = np.array([0.0, 0.0, 0.0, 0.3, -0.2])
    found, gradient = at(start)
    steps = np.diag([2e-3] * 3 + [2e-2] * 2)
    for j, step in enumerate(steps):
        up, down = at(start + step), at(start - step)
        quotient = (up[0].log_likelihood - down[0].log_likelihood) / (2 * step[j])
        tolerance = 0.03 if j < 3 else 1e-3  # the trilinear slice has kinks in w, phases have none
        np.testing.assert_allclose(gradient[:, j], quotient, atol=tolerance * np.abs(quotient).max())
    assert np.linalg.eigvalsh(found.curvature).min() > 0
    cross, energy = model_match(reference, packed, found)  # what noise and scales are fitted from
    np.testing.assert_allclose(cross.sum(1) - 0.5 * energy.sum(1), found.log_likelihood, rtol=1e-3)


def test_ctf_of_a_group_with_aberrations_leaves_the_others_alone():
    e = aberrated(8, (NONE, STRONG[1]), **SIGMA)
    kx, ky = inner(BOX)
    ours = CtfOnPixels(e.particles, kx, ky, np.asarray)(np.arange(8))
    expected = [contrast(e.particles, i, (NONE, STRONG[1])[g], kx, ky) for i, g in enumerate(e.particles.optics_group)]
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_images_and_shifts_of_groups_without_aberrations_are_untouched():
    """Same bits, and no matrices anywhere."""
    e = experiment(6, **SIGMA)
    two = replace(e.particles, optics=e.particles.optics * 2, optics_group=(np.arange(6) % 2).astype(np.int32))
    assert optics.magnifications(two) is None and optics.stretch(two) == 1
    ones, twos = (HalfSetImages(p, lambda rows: e.images[rows].astype(np.float32),
                                np.repeat(e.noise_power, len(p.optics), 0), 15, 1).batch(np.arange(6))
                  for p in (e.particles, two))  # fmt: skip
    assert (ones.signal == twos.signal).all() and (ones.weight == twos.weight).all() and ones.magnification is None
