"""Particles that share noise: copies of an image, images of one place, images cut from one image."""
from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
from experiments import experiment, inputs_of, write_inputs
from relion_files import LABELS, OPTICS_LABELS, table

from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.inputs.copies import pixel_keys
from localrefine_plugin.engine.io.relion_particles import read_particles, read_star
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

N, PIXEL_SIZE = 200, 4.0
SPACING = 50.0  # px between picks


@pytest.fixture(scope="module")
def e():
    return experiment(N, box=24, pixel_size=PIXEL_SIZE, noise=0.5, seed=8)


def with_columns(folder, columns):
    """The particle file with these columns (label → n texts) more, or in place of those it has."""
    tables = {t.name: t for t in read_star(folder / "particles.star")}
    optics, particles = tables["optics"], tables["particles"]
    texts = dict(particles.texts(list(LABELS)), **columns)
    (folder / "particles.star").write_text(
        table("optics", OPTICS_LABELS, zip(*optics.texts(list(OPTICS_LABELS)).values()))
        + table("particles", tuple(texts), zip(*texts.values())))


def picks(moved):
    """Coordinates on a grid, ten to a micrograph; row i of ``moved`` (row → row, dx) lies dx px beside another."""
    place = {i: ((i % 10) * SPACING, 0.0) for i in range(N)}
    micrograph = {i: f"mic{i // 10}.mrc" for i in range(N)}
    for row, (other, dx) in moved.items():
        place[row], micrograph[row] = (place[other][0] + dx, 0.0), micrograph[other]
    return {"rlnMicrographName": [micrograph[i] for i in range(N)],
            "rlnCoordinateX": [str(place[i][0] + 100) for i in range(N)],
            "rlnCoordinateY": [str(place[i][1] + 50) for i in range(N)]}


def checked(e, folder, columns, **settings):
    """With origins 0, so that a particle lies where it was picked."""
    e.particles.shift_px[:] = 0
    write_inputs(folder, e)
    with_columns(folder, columns)
    return check_inputs(*inputs_of(folder), Settings(**settings))


def said(checked, words):
    return [text for text in checked.warnings if words in text]


@pytest.mark.parametrize("count, distance", ((1, 1.0), (1, 4.9)))
def test_few_particles_picked_twice_are_said(e, tmp_path, count, distance):
    """Rows 0 and 1 are in different halves; 5 px are 20 Å."""
    found = checked(e, tmp_path, picks({1: (0, distance)}))
    text, = said(found, "on one micrograph and are in different half-sets")
    assert "2 of 200 particles lie within 20 Å" in text and "(rows 1 and 2)" in text


def test_particles_that_are_not_too_close_pass_without_a_word(e, tmp_path):
    assert not said(checked(e, tmp_path, picks({1: (0, 5.1)})), "on one micrograph")


def test_a_place_is_that_of_the_centre_not_of_the_pick(e, tmp_path):
    """Picks 40 Å apart whose origins bring them to one place."""
    e.particles.shift_px[:] = 0
    write_inputs(tmp_path, e)
    origins = ["0.0"] * N
    origins[1] = "40.0"
    with_columns(tmp_path, dict(picks({1: (0, 10.0)}), rlnOriginXAngst=origins))
    assert said(check_inputs(*inputs_of(tmp_path), Settings()), "on one micrograph and are in different half-sets")


def test_micrographs_do_not_meet(e, tmp_path):
    columns = picks({})
    columns["rlnCoordinateX"] = ["100.0" if i % 10 == 0 else text for i, text in enumerate(columns["rlnCoordinateX"])]
    assert not said(checked(e, tmp_path, columns), "on one micrograph")


MANY = {row: (row - 1, 2.0) for row in range(1, 21, 2)}  # ten pairs, in both halves


def test_many_particles_picked_twice_are_refused_and_a_new_split_keeps_them_together(e, tmp_path):
    with pytest.raises(InputError, match="20 of 200 particles lie within 20 Å .* set resplit_half_sets, which keeps"):
        checked(e, tmp_path, picks(MANY))
    half_set = checked(e, tmp_path, picks(MANY), resplit_half_sets=True).particles.half_set
    assert all(half_set[row] == half_set[other] for row, (other, _) in MANY.items())
    assert abs(int((half_set == 1).sum()) - N // 2) <= 1


def test_images_cut_from_one_image_belong_to_one_half(e, tmp_path):
    originals = [f"{i // 2:06d}@whole.mrcs" for i in range(N)]  # two of each, one in each half
    with pytest.raises(InputError, match="200 of 200 particles come from one image .rlnImageOriginalName"):
        checked(e, tmp_path, {"rlnImageOriginalName": originals})
    half_set = checked(e, tmp_path, {"rlnImageOriginalName": originals}, resplit_half_sets=True).particles.half_set
    np.testing.assert_array_equal(half_set[::2], half_set[1::2])
    pairs_of_one_half = [f"{i // 4 * 2 + i % 2:06d}@whole.mrcs" for i in range(N)]
    assert not said(checked(e, tmp_path, {"rlnImageOriginalName": pairs_of_one_half}), "different half-sets")


@pytest.mark.parametrize("halves", ((1, 2), (1, 1)))
def test_images_with_the_same_pixels(e, tmp_path, halves):
    """Across half-sets refused; in one half-set said."""
    write_inputs(tmp_path, e)
    stacks = [str(tmp_path / f"half_{half}.mrcs") for half in halves]
    image = mrcfile.read(stacks[0])[3].copy()
    with mrcfile.open(stacks[1], "r+") as stack:
        stack.data[7] = image
    if halves == (1, 2):
        with pytest.raises(InputError, match="000004@.*half_1.mrcs and 000008@.*half_2.mrcs hold the same pixels"):
            check_inputs(*inputs_of(tmp_path), Settings())
    else:
        text, = said(check_inputs(*inputs_of(tmp_path), Settings()), "hold the same pixels")
        assert "and so do 1 pairs in all. They count twice" in text


def test_pixel_keys_differ_by_one_pixel_and_by_the_order_of_pixels():
    image = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
    other = image.copy()
    other[5, 6] += 1e-6
    keys = pixel_keys(np.stack([image, other, image[::-1], image]))
    assert keys[0] == keys[3] and len(set(keys.tolist())) == 3


def test_without_coordinates_nothing_is_said(e, tmp_path):
    write_inputs(tmp_path, e)
    particles, _ = read_particles(Path(tmp_path) / "particles.star")
    assert not said(check_inputs(*inputs_of(tmp_path), Settings()), "micrograph and are")
    zeros = {"rlnCoordinateX": ["0"] * N, "rlnCoordinateY": ["0"] * N}
    assert not said(checked(e, tmp_path, zeros), "micrograph and are") and len(particles) == N
