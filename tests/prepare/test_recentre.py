"""Particles and maps about a point, and back: the geometry, RELION's reconstruction, and the same refinement."""
from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from experiments import contrast_of, experiment, write_inputs
from oracles import angle_between_deg, imaged, shell_correlation, soft_ball
from relion_files import read_columns, read_poses, write_map

from localrefine_plugin.engine import refine
from localrefine_plugin.engine.__main__ import main
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.prepare import recentre as engine
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

BOX, PIXEL = 32, 4.0
POINT = np.array([3, -2, 2])  # of the phantom's sub-volume, from the box centre
POINT_PX = (POINT + BOX // 2).tolist()


@pytest.fixture(scope="module")
def e():
    return experiment(300, box=BOX, noise=1.0, seed=3)


@pytest.fixture(scope="module")
def inputs(e, tmp_path_factory):
    """(star, half-map 1, half-map 2, mask) of the experiment."""
    return write_inputs(tmp_path_factory.mktemp("data"), e)


def maps_of(inputs):
    return dict(zip(("half_map_1", "half_map_2", "mask"), inputs[1:]))


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recentred") / "out"
    engine.recentre(inputs[0], folder, maps_of(inputs), POINT_PX)
    return folder


def images_of(star):
    names = [line.split()[0] for line in Path(star).read_text().splitlines() if "@" in line]
    labels = [line.split()[0] for line in Path(star).read_text().splitlines() if line.startswith("_rln")]
    assert "_rlnImageName" in labels
    stacks = {}
    for name in names:
        path = name.partition("@")[2]
        path = path if Path(path).is_absolute() else str(Path(star).parent / path)
        stacks.setdefault(path, mrcfile.read(path))
    return np.array([stacks[str(Path(star).parent / n.partition("@")[2])][int(n.partition("@")[0]) - 1] for n in names])


def read(path):
    return mrcfile.read(str(path))


@pytest.mark.parametrize("box, new", [(32, 32), (32, 24), (32, 25), (33, 33), (33, 24), (33, 25)])
def test_the_projection_of_the_point_comes_to_the_centre(box, new):
    """Images drawn at the recentred poses from the phantom moved by the point are the rolled images: closed form."""
    e = experiment(8, box=box, seed=5)
    shift, roll = engine.recentred_shifts(e.rotation, e.shift, POINT)
    assert np.abs(shift).max() <= 0.5
    moved = replace(e.phantom, points=e.phantom.points - POINT)
    drawn = moved.projections(e.rotation, shift, new)
    original = e.phantom.projections(e.rotation, e.shift, box)
    rolled = np.array([engine.roll_image(image, q, new) for image, q in zip(original, roll)])
    inside = np.hypot(*np.meshgrid(*[np.arange(new) - new // 2] * 2)) < 9  # away from what was wrapped round
    np.testing.assert_allclose(rolled[:, inside], drawn[:, inside], atol=2e-4 * drawn.max())


@pytest.mark.parametrize("box", [32, 33])
def test_images_maps_and_shifts_come_back_to_the_last_bit(box):
    rng = np.random.default_rng(0)
    image, volume = rng.standard_normal((box, box)), rng.standard_normal((box,) * 3).astype(np.float32)
    roll = np.array([7, -12])
    np.testing.assert_array_equal(engine.roll_image(engine.roll_image(image, roll, box), -roll, box), image)
    there = engine.recentred_map(volume, POINT, box)
    assert there[box // 2, box // 2, box // 2] == volume[tuple(box // 2 + POINT[::-1])]
    np.testing.assert_array_equal(engine.restored_map(there, POINT, box), volume)
    smaller = engine.restored_map(engine.recentred_map(volume, POINT, box - 8), POINT, box)
    kept = np.abs(np.arange(box) - box // 2) < (box - 8) // 2 - 1
    shown = np.ix_(*(np.roll(kept, v) for v in POINT[::-1]))
    np.testing.assert_array_equal(smaller[shown], volume[shown])


def test_the_files_hold_the_same_particles_and_the_way_back_is_exact(e, inputs, done, tmp_path):
    rotation, shift = read_poses(done / "particles.star", PIXEL)
    np.testing.assert_allclose(rotation, e.particles.rotation, atol=1e-7)
    assert np.abs(shift).max() <= 0.5 + 1e-6
    roll = read_columns(done / "particles.star", ("lrRecentreShiftX", "lrRecentreShiftY"))
    expected = e.particles.shift_px + (e.particles.rotation @ POINT)[:, :2]
    np.testing.assert_allclose(shift + roll, expected, atol=1e-6)
    np.testing.assert_array_equal(images_of(done / "particles.star")[7],
                                  np.roll(images_of(inputs[0])[7], -roll[7, ::-1].astype(int), (0, 1)))
    back = tmp_path / "back"
    engine.restore(done / "particles.star", back, {name: done / f"{name}.mrc" for name in maps_of(inputs)})
    names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset")
    np.testing.assert_allclose(read_columns(back / "particles.star", names), read_columns(inputs[0], names), atol=3e-6)
    np.testing.assert_array_equal(images_of(back / "particles.star"), images_of(inputs[0]))
    for name, path in maps_of(inputs).items():
        np.testing.assert_array_equal(read(back / f"{name}.mrc"), read(path))
    assert "lrRecentre" not in (back / "particles.star").read_text()


def test_twice_is_once_with_the_sum(inputs, done, tmp_path):
    engine.recentre(done / "particles.star", tmp_path / "two", {}, (np.array([1, 1, -3]) + BOX // 2).tolist(), 24)
    engine.restore(tmp_path / "two" / "particles.star", tmp_path / "back", {})
    names = ("rlnOriginXAngst", "rlnOriginYAngst")
    np.testing.assert_allclose(read_columns(tmp_path / "back" / "particles.star", names),
                               read_columns(inputs[0], names), atol=3e-6)
    np.testing.assert_array_equal(images_of(tmp_path / "back" / "particles.star"), images_of(inputs[0]))


def test_relion_reconstructs_the_shifted_map(tmp_path):
    """Noise-free images at their true poses: RELION's map of the recentred ones is its own map, shifted. What differs
    is its interpolation, which depends on how far from the centre the density lies."""
    require_program("relion_reconstruct")
    e = experiment(300, box=BOX, seed=4)
    clean = imaged(e.phantom.projections(e.rotation, e.shift, BOX), contrast_of(e.particles))
    e = replace(e, images=clean, particles=replace(e.particles, rotation=e.rotation, shift_px=e.shift))
    star = write_inputs(tmp_path, e)[0]
    engine.recentre(star, tmp_path / "out", {}, POINT_PX)
    found = []
    for folder in (tmp_path, tmp_path / "out"):
        subprocess.run(["relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf"], cwd=folder,
                       check=True, capture_output=True)
        found.append(read(folder / "map.mrc"))
    shifted = engine.shift_map(found[0], POINT)
    about = soft_ball(BOX, 8, 11)
    curve = shell_correlation(found[1] * about, shifted * about)[1:12]
    wrong = shell_correlation(found[1] * about, found[0] * about)[1:12]
    assert curve.min() > 0.999 and wrong.mean() < 0.5


def test_the_same_poses_are_found_in_both_frames(e, inputs, done, tmp_path):
    """One iteration from the same half-maps. Measured: 99 % within 2e-4°, which is round-off (single precision, six
    decimals in the STAR file). One particle in 0.06°: rounding decides whether its search takes one step more. The
    poses are known to degrees."""
    settings = Settings(max_iterations=1, prior="gaussian", initial_lowpass_angstrom=12.0)
    one = refine.refine(*inputs, str(tmp_path / "one"), settings, threads=1)
    moved = [str(done / name) for name in ("particles.star", "half_map_1.mrc", "half_map_2.mrc", "mask.mrc")]
    two = refine.refine(*moved, str(tmp_path / "two"), settings, threads=1)
    engine.restore(two.final("particles.star"), tmp_path / "back", {})
    (r1, t1), (r2, t2) = (read_poses(path, PIXEL) for path in (one.final("particles.star"),
                                                                tmp_path / "back" / "particles.star"))
    at_point = t2 - t1 + ((r2 - r1) @ POINT)[:, :2]
    assert np.median(angle_between_deg(r1, e.particles.rotation)) > 2, "the poses have moved"
    assert np.percentile(angle_between_deg(r1, r2), 99) < 1e-3 and angle_between_deg(r1, r2).max() < 0.2
    assert np.percentile(np.abs(at_point), 99) < 1e-4 and np.abs(at_point).max() < 1e-3


def test_the_verb_takes_the_mask_centre_and_crops(inputs, tmp_path, capsys):
    arguments = ["recentre", "--particles", inputs[0], "--output", str(tmp_path / "out"), "--mask", inputs[3],
                 "--half-map-1", inputs[1], "--half-map-2", inputs[2], "--box", "28"]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "recentre.json").read_text())
    assert report["point_from_centre_px"] == POINT.tolist() and report["box_size"] == 28
    assert read(tmp_path / "out" / "mask.mrc").shape == (28,) * 3
    assert read(tmp_path / "out" / "particles.mrcs").shape == (300, 28, 28)
    optics = read_particles(tmp_path / "out" / "particles.star")[0].optics
    assert [group.box_size for group in optics] == [28]
    assert main(["recentre", "--undo", "--particles", str(tmp_path / "out" / "particles.star"),
                 "--output", str(tmp_path / "back"), "--mask", str(tmp_path / "out" / "mask.mrc")]) == 0
    np.testing.assert_allclose(read(tmp_path / "back" / "mask.mrc"), read(inputs[3]), atol=1e-6)
    assert main(arguments) == 1 and "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("change, words", [
    (dict(point_px=[99, 0, 0]), "outside of the box"), (dict(box=40), "is not between"),
    (dict(box=16), "of the mask"), (dict(maps="small"), "voxels of"), (dict(maps={}), "neither is a mask")])
def test_what_cannot_be_recentred_is_refused(inputs, tmp_path, change, words):
    maps, star = maps_of(inputs), inputs[0]
    if change.get("maps") == "small":
        write_map(tmp_path / "small.mrc", np.ones((16,) * 3), PIXEL)
        change, maps = {}, dict(maps, map=tmp_path / "small.mrc")
    elif "maps" in change:
        change, maps = {}, {}
    with pytest.raises(InputError, match=words):
        engine.recentre(star, tmp_path / "out", maps, **change)
    assert not (tmp_path / "out").exists()


def test_the_way_back_of_particles_that_never_left_is_refused(inputs, tmp_path):
    with pytest.raises(InputError, match="lrRecentreImageName"):
        engine.restore(inputs[0], tmp_path / "out", {})


def test_copies_of_one_image_are_warned_about(inputs, tmp_path):
    text = Path(inputs[0]).read_text().replace("000002@", "000001@")
    star = Path(inputs[0]).with_name("copies.star")
    star.write_text(text)
    warnings = engine.recentre(star, tmp_path / "out", {}, POINT_PX)["warnings"]
    assert any("300 particles share 298 images" in text for text in warnings)
