"""Half-maps whose axes are reversed, exchanged or turned, of a particle that looks much the same then."""
from __future__ import annotations

import numpy as np
import pytest
from experiments import experiment, write_inputs
from oracles import Phantom, random_phantom
from test_belonging import found, maps_changed, reordered, two_groups, with_poses

from localrefine_plugin.engine.inputs.axes import frames
from localrefine_plugin.engine.records.errors import InputError

N = 300


def look_alike() -> Phantom:
    """A disc that is the same after a mirror along any axis and a turn by 90° about z, with a fifth that is not."""
    rng = np.random.default_rng(3)
    x, y, z = rng.uniform(0.5, 6.5, 12), rng.uniform(0.5, 6.5, 12), rng.uniform(0, 2, 12)
    eighth = np.stack([x, y, z], axis=1)
    turned = np.concatenate([eighth, eighth[:, [1, 0, 2]]])
    disc = np.concatenate([turned * signs for signs in np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T])
    other = random_phantom(20, 6.0, 1.2, seed=8)
    amplitudes = np.concatenate([np.full(len(disc), 0.5), other.amplitudes])
    return Phantom(np.concatenate([disc, other.points]), amplitudes, 1.2)


@pytest.fixture(scope="module")
def e():
    return experiment(N, noise=1.0, seed=4, centre=(0.0, 0.0, 0.0), rotation_deg=1.0, displacement_px=0.3, shift_px=3.0,
                      phantom=look_alike())


def test_the_frames_are_the_48_of_the_cube():
    every = frames()
    np.testing.assert_allclose(every @ np.swapaxes(every, 1, 2), np.broadcast_to(np.eye(3), (48, 3, 3)), atol=1e-12)
    assert len({tuple(frame.ravel()) for frame in every.astype(int)}) == 48
    np.testing.assert_array_equal(every[0], np.eye(3))
    np.testing.assert_allclose(np.linalg.det(every), np.repeat([1.0, -1.0], 24))


CHANGES = {
    "mirrored along x": (lambda v: np.roll(np.flip(v, 2), 1, 2), "the images fit the mirrored half-maps"),
    "reversed along y": (lambda v: np.flip(v, 1), "the images fit the mirrored half-maps"),
    "mirrored along z": (lambda v: np.roll(np.flip(v, 0), 1, 0), "the images fit the mirrored half-maps"),
    "turned about z": (lambda v: np.rot90(v, 1, (1, 2)), "the axes of the half-maps are exchanged, or turned"),
    "turned over": (lambda v: np.rot90(v, 2, (0, 1)), "the axes of the half-maps are exchanged, or turned"),
    "x and y exchanged": (lambda v: v.transpose(0, 2, 1), "the axes of the half-maps are exchanged, or turned"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_particle_that_looks_like_its_mirror_image(e, tmp_path, case):
    """Many images fit 180° − tilt as well; the whole map is asked first."""
    change, words = CHANGES[case]
    write_inputs(tmp_path, e)
    maps_changed(tmp_path, change)
    with pytest.raises(InputError, match=f"half-maps and particles: do not fit each other: .*{words}"):
        found(tmp_path)


def test_good_input_of_such_a_particle_passes(e, tmp_path):
    write_inputs(tmp_path, e)
    assert not any("fit" in text or "belong" in text for text in found(tmp_path).said)


WHOLE = {
    "origins in px": (lambda e: with_poses(e, shift=e.particles.shift_px / 4.0), "multiplied by the pixel size"),
    "signs of origins": (lambda e: with_poses(e, shift=-e.particles.shift_px), "opposite sign of the origins"),
    "rows": (reordered(np.roll(np.arange(N), 1)), "each image fits the pose of the next row"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_mistake_that_all_optics_groups_have_is_not_called_that_of_one(e, tmp_path, case):
    spoil, words = WHOLE[case]
    write_inputs(tmp_path, spoil(two_groups(e)[0]))
    with pytest.raises(InputError, match=f"half-maps and particles: do not fit each other: .*{words}"):
        found(tmp_path)
