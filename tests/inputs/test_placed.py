"""Images at poses of other rows, images of noise, and images with wrong poses: told apart, counted, no false alarm."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import require_program
from experiments import experiment, write_inputs
from relion_programs import relion
from scipy.spatial.transform import Rotation
from test_belonging import found, reordered, with_poses
from test_parts import N, chosen, good_set

from localrefine_plugin.engine.inputs.belonging import coarse_halves
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.inputs.placed import Steps, best_rows
from localrefine_plugin.engine.inputs.samples import sample_of, whole_map
from localrefine_plugin.engine.model.fourier import lowpass_weight
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

e = pytest.fixture(scope="module", name="e")(good_set)
MIXED_UP = "poses: are mixed up with images: .* fit those of other rows"


def permuted(who, seed=8):
    """Their poses, exchanged at random among these particles."""
    order = np.arange(N)
    order[who] = np.random.default_rng(seed).permutation(order[who])
    return order


def shifted_names(first, last, step):
    """The rows from first to last have the pose of the row so many below."""
    order = np.arange(N)
    order[first:last] = np.minimum(order[first:last] + step, N - 1)
    return order


def noise_images(e, who):
    images = e.images.copy()
    images[who] = e.noise * np.random.default_rng(9).standard_normal(images[who].shape)
    return replace(e, images=images)


def turned_away(e, who):
    """By 60° r.m.s. per axis: particles that were aligned wrongly."""
    rotation = e.particles.rotation.copy()
    turn = np.deg2rad(60) * np.random.default_rng(3).standard_normal((np.count_nonzero(who), 3))
    rotation[who] = rotation[who] @ Rotation.from_rotvec(turn).as_matrix()
    return with_poses(e, rotation)


def said_share(text):
    """The share and its error of a sentence that says "about 20 ± 3 % of the images", both in per cent."""
    share, error = text.split("about ")[1].split(" %")[0].split(" ± ")
    return float(share), float(error)


def the_one_said(folder):
    texts = [text for text in found(folder).said if "do not show the particle at their poses" in text]
    assert len(texts) == 1
    return texts[0]


@pytest.mark.parametrize("share, seed", ((0.2, 1), (0.3, 2), (0.5, 3)))
def test_poses_permuted_among_some_particles_are_refused_with_the_share(e, tmp_path, share, seed):
    who = chosen(share, seed)
    order = permuted(who)
    write_inputs(tmp_path, reordered(order)(e))
    with pytest.raises(InputError, match=MIXED_UP) as refusal:
        found(tmp_path)
    said, error = said_share(str(refusal.value))
    assert said == pytest.approx(100 * np.mean(order != np.arange(N)), abs=max(3 * error, 5))
    words = str(refusal.value).split("(image ")[1].split(", …")[0].split(", image ")
    pairs = [tuple(int(number) - 1 for number in pair.split(": row ")) for pair in words]
    assert all(order[row] == image for image, row in pairs)  # this row has the pose of that image


@pytest.mark.parametrize("step", (7, -30))
def test_image_names_shifted_for_some_rows_are_refused_with_the_distance(e, tmp_path, step):
    write_inputs(tmp_path, reordered(shifted_names(100, 190, step))(e))
    where = "above" if step > 0 else "below"  # the pose of an image went up by as many rows as it was taken from below
    with pytest.raises(InputError, match=f"{MIXED_UP}.*{abs(step)} rows {where}"):
        found(tmp_path)


@pytest.mark.parametrize("step, height, expected", ((9, 1.6, 9), (-40, 1.6, -40), (0, 3.0, 0), (5, 0.0, 0)))
def test_all_images_together_tell_the_distance_of_their_rows(step, height, expected):
    """60 images at the poses of 500 rows, each 1.6 s.d. higher at its own: the best of 500 by chance is 3 s.d."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image, steps = np.arange(150, 390, 4), Steps(500)
        z = 0.4 + rng.standard_normal((len(image), 500))
        z[np.arange(len(image)), image + step] += height
        for rows in np.split(np.arange(500), 5):
            steps.add(image, rows, z[:, rows])
        assert steps.surely() == expected


def test_copies_of_an_image_are_no_other_rows(e, tmp_path):
    """Symmetry expansion: an image fits the poses of its copies as it fits its own, and shows nothing by that. With
    30 % noise images in it, such a set was refused: the half-map holds their noise at all of these poses."""
    inputs = check_inputs(*write_inputs(tmp_path, e), Settings())
    particles, shell = inputs.particles.take(np.repeat(np.arange(N), 2)), 8
    first = np.flatnonzero(particles.half_set == 1)[:60]
    sample, steps = sample_of(particles, first, shell), Steps(2 * N)
    volume = coarse_halves(inputs.halves, lowpass_weight(shell), shell)[0]
    row, _ = best_rows(sample, whole_map(volume, shell, 1), particles, steps)
    assert not np.any(row // 2 == first // 2)
    assert steps.surely() == 0 and steps.count.sum() == len(first) * 2 * (N - 1)


def test_a_few_poses_of_other_rows_are_said(e, tmp_path):
    write_inputs(tmp_path, reordered(permuted(chosen(0.06)))(e))
    assert any("poses: they are mixed up with images" in text for text in found(tmp_path).said)


def test_all_poses_of_few_particles_permuted_are_refused(tmp_path):
    few = experiment(40, noise=0.7, seed=5, rotation_deg=1.0, displacement_px=0.3)
    write_inputs(tmp_path, reordered(np.random.default_rng(1).permutation(40))(few))
    with pytest.raises(InputError, match="the images fit the poses of other rows"):
        found(tmp_path)


@pytest.mark.parametrize("share", (0.2, 0.5))
def test_noise_images_are_counted_and_called_noise(e, tmp_path, share):
    who = chosen(share)
    write_inputs(tmp_path, noise_images(e, who))
    text = the_one_said(tmp_path)
    said, error = said_share(text)
    assert said == pytest.approx(100 * who.mean(), abs=max(3 * error, 5)) and "By their power they are noise" in text


def test_wrong_poses_are_counted_and_are_not_taken_for_those_of_other_rows(e, tmp_path):
    who = chosen(0.3)
    write_inputs(tmp_path, turned_away(e, who))
    text = the_one_said(tmp_path)
    said, error = said_share(text)
    assert said == pytest.approx(100 * who.mean(), abs=max(3 * error, 5))
    assert "By their power they hold particles" in text


def test_images_that_fit_their_poses_pass(e, tmp_path):
    write_inputs(tmp_path, e)
    assert not any("poses" in text for text in found(tmp_path).said)


def test_half_maps_made_from_permuted_poses_do_not_hide_them(e, tmp_path):
    """An image that was averaged in at the wrong pose fits its own half-map there by its noise."""
    require_program("relion_reconstruct")
    write_inputs(tmp_path, reordered(permuted(chosen(0.3)))(e))
    for half in (1, 2):
        relion("relion_reconstruct", tmp_path, "--i", "particles.star", "--o", f"input_{half}.mrc", "--ctf", "--subset",
               half)
    with pytest.raises(InputError, match=MIXED_UP):
        found(tmp_path)
