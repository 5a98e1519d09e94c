"""Other bodies taken out of the images where they are, on phantoms of two bodies in closed form."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from experiments import contrast_of, experiment
from oracles import imaged, random_phantom
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.align.half_alignment import HalfAlignment
from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.other_bodies import NO_LIMIT, OtherBody, columns_to, followed, part_of_each
from localrefine_plugin.engine.align.reference import slice_rows
from localrefine_plugin.engine.kernels import without
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.model.fourier import apply_shell_filter

CENTRE, OTHER_CENTRE = (6.0, -4.0, 3.0), (-7.0, 5.0, -4.0)


def two_bodies(noise):
    """Images of a body, the same with another one that moves by 8° and 1.5 px against the input poses, and that one."""
    e = experiment(60, box=44, noise=0.0, seed=3, centre=CENTRE)
    other, rng = random_phantom(60, 6.0, 1.2, seed=200, centre=OTHER_CENTRE), np.random.default_rng(4)
    turn = Rotation.from_rotvec(np.deg2rad(8) * rng.standard_normal((60, 3)) / np.sqrt(3)).as_matrix()
    rotation = e.particles.rotation @ turn
    shift = e.particles.shift_px + 1.5 * rng.standard_normal((60, 2))
    more = imaged(other.projections(rotation, shift, e.box), contrast_of(e.particles))
    sigma = max(noise * (e.images + more).std(), 1e-3)
    own = e.images + sigma * rng.standard_normal(e.images.shape)
    volume = other.density(e.box)
    found = OtherBody(volume, np.ones_like(volume), rotation, shift)
    return replace(e, images=own, noise=sigma), replace(e, images=own + more, noise=sigma), found


def test_images_are_left_as_if_the_other_body_were_not_there():
    """All of the half-plane, the column kx = 0 too, and their power."""
    alone, both, other = two_bodies(0.0)
    index = np.arange(0, 60, 7)
    works = [HalfAlignment(e.half_set(others=others), e.plan(9.0), CPU, 1) for e, others in (
        (alone, ()), (both, ()), (both, [other]))]
    wanted, before, batch = (work.batch(index) for work in works)
    last = works[0].images.last_column
    inside = np.arange(wanted.signal.shape[2]) <= np.maximum(last, 0)[:, None]
    inside[len(inside) // 2, 0] = False  # the mean of an image
    for name in ("signal", "power"):
        off, off_before = (np.linalg.norm((getattr(of, name) - getattr(wanted, name))[:, inside])
                           for of in (batch, before))
        assert off < 0.05 * off_before, name
    column = (batch.signal - wanted.signal)[:, :, 0] / np.abs(before.signal - wanted.signal)[:, :, 0].max()
    assert np.abs(column[:, inside[:, 0]]).max() < 0.05


def test_whole_arrays_do_what_the_kernel_does():
    """As on a GPU; with grey scales, and to a shell before the last."""
    _, both, other = two_bodies(0.4)
    index = np.arange(0, 60, 9)
    work = HalfAlignment(both.half_set(others=[other]), both.plan(9.0), CPU, 1)
    reference, scale = work.others.references[0], np.linspace(0.5, 2, len(index))
    rows = slice_rows(other.rotation[index], reference.scale)
    pixels = without.Pixels.to(columns_to(15, work.half.max_shell))
    found = []
    for how in (without.take_out, without._take_out_arrays):
        batch = work.images.batch(index)
        images = without.Images(batch.signal, batch.weight, batch.power, work.images.inverse_noise_of(index))
        how(reference.ft, rows, work.others.factors(other.shift_px[index], scale), pixels, images)
        found.append(batch)
    before = work.images.batch(index)
    for name in ("signal", "power"):
        one, two, of = (getattr(batch, name) for batch in (*found, before))
        assert np.abs(one - of).max() > 0.1 * np.abs(of).max()
        np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(of).max())
        beyond = np.hypot(*np.indices(of.shape[1:]) - [[[len(of[0]) // 2]], [[0]]]) > 15.6
        np.testing.assert_array_equal(one[:, beyond], of[:, beyond])


def test_beyond_what_is_known_of_a_body_nothing_is_taken_out():
    """A volume without detail beyond a shell: to this shell it is the same as to the last one."""
    _, both, other = two_bodies(0.4)
    smooth = apply_shell_filter(other.volume, (np.arange(23) <= 12).astype(float), 1)
    index, found = np.arange(9), []
    for known in (13, NO_LIMIT):
        taken = replace(other, volume=smooth, last_shell=known)
        found.append(HalfAlignment(both.half_set(others=[taken]), both.plan(9.0), CPU, 1).batch(index))
    before = HalfAlignment(both.half_set(), both.plan(9.0), CPU, 1).batch(index)
    for name in ("signal", "power"):
        one, two, of = (getattr(batch, name) for batch in (*found, before))
        assert np.linalg.norm(one - two) < 1e-2 * np.linalg.norm(one - of)


def test_poses_are_those_without_the_other_body():
    alone, both, other = two_bodies(0.4)

    def error(e, others=()):
        plan = e.plan(9.0, prior="gaussian", prior_rotation_deg=3, prior_shift_angstrom=3.2)
        return np.sqrt(np.mean(e.errors(align_half(e.half_set(others=others), plan).poses)[0] ** 2))
    bound, with_other, without = error(alone), error(both), error(both, [other])
    assert without < 1.1 * bound and without < 0.85 * with_other, (bound, with_other, without)


def own_densities(masks, seen_through, sweeps):
    """U of two bodies of densities 1 and 2, each of which is left at ``seen_through`` in the map of the other."""
    truth, part = (1.0, 2.0), part_of_each(masks)
    maps = [[np.full_like(part, sum(truth))] for _ in masks]
    for _ in range(sweeps):
        own = [mask * followed(of, part) for mask, of in zip(masks, maps)]
        for k, of in enumerate(maps):
            of.append(truth[k] + seen_through * (truth[1 - k] - own[1 - k]))
    return [mask * followed(of, part) for mask, of in zip(masks, maps)]


@pytest.mark.parametrize("seen_through", (0.0, 0.3, 0.6))
def test_what_moves_with_a_body_is_told_from_what_moves_with_another_one(seen_through):
    """In the masks of both, in the maps of each all of its own density and of the other one what the motion leaves."""
    full = [np.ones((2, 2, 2), np.float32)] * 2
    first, second = own_densities(full, seen_through, 12)
    np.testing.assert_allclose(first, 1.0, atol=0.15)
    np.testing.assert_allclose(second, 2.0, atol=0.15)


def test_density_in_several_masks_that_does_not_move_is_shared_out():
    """Nothing tells whose it is; it is subtracted once, and no sweep changes that."""
    rng = np.random.default_rng(1)
    masks = [np.ones((6, 6, 6), np.float32), (rng.random((6, 6, 6)) < 0.5).astype(np.float32)]
    for sweeps in (0, 1, 7):
        own = own_densities(masks, 1.0, sweeps)
        np.testing.assert_allclose(own[0] + own[1], 3.0, rtol=1e-4)
        np.testing.assert_allclose(own[1], 1.5 * masks[1], rtol=1e-4)
    # in soft edges it is divided as the masks are, and no more than once
    edge = [np.full((2, 2, 2), value, np.float32) for value in (0.7, 0.3)]
    own = own_densities(edge, 1.0, 0)
    np.testing.assert_allclose(own, [3.0 * mask for mask in edge], rtol=1e-4)
    assert (sum(own_densities(edge, 1.0, 9)) <= 3.0).all()
