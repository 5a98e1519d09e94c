"""Particles that were extracted twice are found by their noise, without coordinates; different particles never are."""
from __future__ import annotations

import mrcfile
import numpy as np
import pytest
from experiments import experiment, inputs_of, write_inputs

from localrefine_plugin.engine.inputs import copies
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.inputs.copies import FARTHEST, Marker, has_peak, pairs_of_marks
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

N, BOX = 120, 64
MARGIN = 8


def fields(count, box=BOX, seed=0):
    """Places of micrographs (count, box + 2 MARGIN, …): white noise."""
    return np.random.default_rng(seed).standard_normal((count,) + (box + 2 * MARGIN,) * 2).astype(np.float32)


def cut(field, dx, dy, box=BOX):
    return field[:, MARGIN + dy:MARGIN + dy + box, MARGIN + dx:MARGIN + dx + box]


def normalised(images, gain=1.0, offset=0.0):
    return gain * (images - images.mean((1, 2), keepdims=True)) / images.std((1, 2), keepdims=True) + offset


def half_a_pixel(images):
    """Moved by half a pixel along x, as from a micrograph on a finer grid."""
    ft = np.fft.rfft2(images) * np.exp(-1j * np.pi * np.fft.rfftfreq(images.shape[2]))
    return np.fft.irfft2(ft, s=images.shape[1:]).astype(np.float32)


def agreement(a, b):
    """Per image, in standard deviations of the agreement by chance."""
    bits = 16 * a.shape[1]
    same = np.unpackbits(~(a ^ b).view(np.uint8), axis=1).sum(axis=1)
    return (2.0 * same - bits) / np.sqrt(bits)


def marks_of(images):
    return Marker(images.shape[1])(images)[0]


def test_marks_of_different_noise_agree_as_coins_do():
    marks = marks_of(fields(400)[:, :BOX, :BOX])
    z = agreement(marks[:200], marks[200:])
    assert abs(z.mean()) < 4 / np.sqrt(200) and z.std() == pytest.approx(1, abs=4 / np.sqrt(400))


@pytest.mark.parametrize("dx, dy", ((1, 0), (0, -1), (1, 1), (3, -2), (5, 3)))
def test_a_moved_copy_is_found_whatever_its_grey_scale(dx, dy):
    places = fields(N)
    first, second = cut(places, 0, 0), normalised(cut(places, dx, dy), 0.3, 7.0)
    found = pairs_of_marks(np.concatenate([marks_of(first), marks_of(second)]))
    assert set(map(tuple, (np.sort(found, axis=1) - (0, N)).tolist())) <= {(i, i) for i in range(N)}
    assert len(found) > 0.9 * N
    assert has_peak(np.stack([first[0], second[0]])) and not has_peak(np.stack([first[0], second[1]]))


def test_a_copy_of_half_a_pixel_and_a_copy_of_the_other_contrast_are_found():
    images = fields(N)[:, :BOX, :BOX]
    for other in (half_a_pixel(images), -images):
        assert len(pairs_of_marks(np.concatenate([marks_of(images), marks_of(other)]))) == N
        assert has_peak(np.stack([images[0], other[0]]))


@pytest.mark.parametrize("box, window", ((24, 24), (64, 64), (160, 64), (192, 128), (400, 128)))
def test_the_window_follows_the_box(box, window):
    assert Marker(box).window == window


def test_short_marks_of_many_images_find_the_same_copies(monkeypatch):
    """With groups as long as a million images have them; by fewer bits, each in several groups."""
    places, found = fields(N, 192), {}
    first, second = (cut(places, *by, box=192) for by in ((0, 0), (3, -4)))
    monkeypatch.setattr(copies, "LEAST_GROUP", 17)
    for count in (1, copies.MANY_IMAGES):
        marker = Marker(192, count)
        found[marker.words] = pairs_of_marks(np.concatenate([marker(first)[0], marker(second)[0]]), marker.rounds)
    assert list(found) == [2432 // 16, 592 // 16]
    for pairs in found.values():
        assert set(map(tuple, (np.sort(pairs, axis=1) - (0, N)).tolist())) <= {(i, i) for i in range(N)}
        assert len(pairs) > 0.95 * N


def test_images_that_are_all_alike_take_no_square_of_their_number():
    marks = np.tile(marks_of(fields(1)[:, :BOX, :BOX]), (500, 1))
    assert len(pairs_of_marks(marks)) <= 500 * (FARTHEST - 1)


# ---------------------------------------------------------------- in the check of the input

def with_copies(folder, share, halves, moved=(1, 0)):
    """An experiment whose first images of one half-set lie again in the other (or the same), moved and re-normalised;
    the rows (m, 2) of the pairs."""
    e = experiment(N, box=48, pixel_size=4.0, noise=2.0, seed=3)
    mine, theirs = (np.flatnonzero(e.particles.half_set == half) for half in halves)
    count = int(share * N)
    source, target = mine[:count], theirs[-count:]
    again = np.roll(e.images[source], moved, (1, 2))
    again[:, :moved[0]] = e.images[theirs[0], :moved[0]]  # what comes in at the edge is other noise
    e.images[target] = normalised(again, 1.1, 0.2)
    write_inputs(folder, e)
    return np.stack([source, target], axis=1)


def test_particles_extracted_twice_in_both_halves_are_refused_without_coordinates(tmp_path):
    pairs = with_copies(tmp_path, 0.05, (1, 2))
    with pytest.raises(InputError) as refusal:
        check_inputs(*inputs_of(tmp_path), Settings())
    text = str(refusal.value)
    assert "12 of 120 particles show the same noise as another image" in text
    assert "are in different half-sets" in text and "set resplit_half_sets" in text
    a, b = sorted(pairs[0] + 1)
    assert f"rows {a} and {b}" in text
    half_set = check_inputs(*inputs_of(tmp_path), Settings(resplit_half_sets=True)).particles.half_set
    np.testing.assert_array_equal(half_set[pairs[:, 0]], half_set[pairs[:, 1]])
    assert (half_set > 0).all()


def test_particles_extracted_twice_in_one_half_are_said(tmp_path):
    with_copies(tmp_path, 0.05, (1, 1))
    text, = [text for text in check_inputs(*inputs_of(tmp_path), Settings()).warnings if "same noise" in text]
    assert "12 of 120 particles" in text and "are in one half-set" in text and "They count twice" in text


def test_one_pixel_copies_are_kept_together_by_a_new_split(tmp_path):
    """Copies with the same pixels are refused in two halves; a new split mends it."""
    e = experiment(N, box=48, pixel_size=4.0, noise=2.0, seed=3)
    write_inputs(tmp_path, e)
    with mrcfile.open(str(tmp_path / "half_2.mrcs"), "r+") as stack:
        stack.data[5] = mrcfile.read(str(tmp_path / "half_1.mrcs"))[4]
    with pytest.raises(InputError, match="hold the same pixels.* set resplit_half_sets"):
        check_inputs(*inputs_of(tmp_path), Settings())
    particles = check_inputs(*inputs_of(tmp_path), Settings(resplit_half_sets=True)).particles
    of_stack = [particles.stack == particles.stacks.index(str(tmp_path / f"half_{half}.mrcs")) for half in (1, 2)]
    one, other = (particles.half_set[of & (particles.slice == number)] for of, number in zip(of_stack, (4, 5)))
    assert len(one) == len(other) == 1 and one == other


@pytest.mark.parametrize("noise", (0.3, 1.0, 5.0))
def test_images_of_one_view_are_no_copies(noise):
    """Of one particle from one side, also at a signal that no real image has."""
    e = experiment(1, box=48, pixel_size=4.0, seed=3)
    images = np.repeat(e.phantom.projections(e.rotation, e.shift, 48), N, axis=0)
    images = images + noise * np.random.default_rng(1).standard_normal(images.shape)
    assert len(pairs_of_marks(marks_of(images.astype(np.float32)))) == 0
