"""Other bodies taken out of the images where they are, on phantoms of two bodies in closed form."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
from experiments import contrast_of, experiment
from oracles import imaged, random_phantom
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.align.half_alignment import HalfAlignment
from localrefine_plugin.engine.align.half_set import align_half
from localrefine_plugin.engine.align.other_bodies import OtherBody, share_of
from localrefine_plugin.engine.kernels.device import CPU

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


def test_poses_are_those_without_the_other_body():
    alone, both, other = two_bodies(0.4)

    def error(e, others=()):
        plan = e.plan(9.0, prior="gaussian", prior_rotation_deg=3, prior_shift_angstrom=3.2)
        return np.sqrt(np.mean(e.errors(align_half(e.half_set(others=others), plan).poses)[0] ** 2))
    bound, with_other, without = error(alone), error(both), error(both, [other])
    assert without < 1.1 * bound and without < 0.85 * with_other, (bound, with_other, without)


def test_density_in_several_masks_is_shared_out():
    rng = np.random.default_rng(1)
    masks = [np.clip(2 * rng.random((6, 6, 6)) - 0.5, 0, 1).astype(np.float32) for _ in range(3)]
    shares = [share_of(masks, k) for k in range(3)]
    total = np.sum(masks, axis=0)
    np.testing.assert_allclose(np.sum(shares, axis=0), np.minimum(total, 1), atol=3e-3)
    alone = (masks[1] == 0) & (masks[2] == 0)
    np.testing.assert_allclose(shares[0][alone], masks[0][alone], atol=1e-3)
