"""The verb compose: bodies and rest in one frame, beside densities in closed form; and noise, which must not agree."""
from __future__ import annotations

import json

import mrcfile
import numpy as np
import pytest
from oracles import Phantom, shell_correlation, soft_ball
from relion_files import read_poses
from scipy.spatial.transform import Rotation
from two_bodies import (
    BOX,
    CENTRES,
    FULCRUM,
    PIXEL_SIZE,
    at_angle,
    bodies,
    copy_of,
    hinge,
    mask_of,
    run_of,
    turned,
    turned_run,
    two_bodies,
)

from examples.evaluate import pose_errors
from examples.simulate import Poses
from localrefine_plugin.engine import __main__ as cli
from localrefine_plugin.engine.bodies import blend
from localrefine_plugin.engine.bodies.compose import compose
from localrefine_plugin.engine.bodies.finished import open_body
from localrefine_plugin.engine.io.run_folder import read_json, write_json
from localrefine_plugin.engine.maps.fsc import fsc, read_fsc
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.records.codec import from_json
from localrefine_plugin.engine.records.composite import Composite
from localrefine_plugin.engine.records.errors import InputError

SHELLS = slice(1, int(BOX * PIXEL_SIZE / 9.5) + 1)
GAUGE = Rotation.from_rotvec(np.deg2rad([6.0, -8.0, 9.0])).as_matrix()


def whole(rotation=None, about=(0.0, 0.0, 0.0)):
    """The particle at the mean hinge, which is 0, turned as a whole."""
    both = bodies()
    phantom = [both[name] if rotation is None else turned(both[name], rotation, np.array(about)) for name in "AB"]
    return phantom[0].density(BOX) + phantom[1].density(BOX)


def agreement(volume, truth, mask):
    return shell_correlation(volume * mask, truth * mask)[SHELLS]


def maps_of(folder):
    return {path.stem: mrcfile.read(path) for path in folder.glob("*.mrc")}


def moved_ball(name, rotation, about, inner=6.5, outer=8.5):
    return soft_ball(BOX, inner, outer, rotation @ (CENTRES[name] - about) + about)


# ---------------------------------------------------------------- runs

@pytest.fixture(scope="module")
def in_frame_of_a(tmp_path_factory):
    folder = tmp_path_factory.mktemp("composite") / "a"
    return folder, compose([run_of("A").path, run_of("B").path], folder, threads=1)


@pytest.fixture(scope="module")
def turned_b():
    return turned_run("B", GAUGE, "gauge")


def true_poses(name):
    """Of body A or B, in px."""
    e = two_bodies()
    if name == "A":
        return Poses(e.rotation, e.shift)
    turns = np.array([hinge(angle) for angle in e.angle])
    moved = FULCRUM - turns @ FULCRUM
    return Poses(e.rotation @ turns, e.shift + np.einsum("nij,nj->ni", e.rotation[:, :2], moved))


def in_frame_of(name, truth):
    """A true map where the poses of a run have it: a run may turn and move its sub-volume as a whole."""
    poses = Poses(*read_poses(run_of(name).final("particles.star"), PIXEL_SIZE))
    return pose_errors(poses, true_poses(name), CENTRES[name])[2].moved(truth, 1.0)


def test_a_composite_is_no_worse_than_each_map_in_its_mask(in_frame_of_a):
    """FSC to the truth, mean of all shells to the resolution; and over both bodies at once. The truth of the composite
    is the particle at the mean angle, where the frame of A has it."""
    maps, truth = maps_of(in_frame_of_a[0]), in_frame_of("A", at_angle(two_bodies().angle.mean()))
    for name in "AB":
        single = mrcfile.read(run_of(name).final("map.mrc"))
        alone = agreement(single, in_frame_of(name, whole()), mask_of(name))
        composite = agreement(maps["map"], truth, mask_of(name))
        assert composite.mean() > alone.mean() - 0.003, name
        assert composite.min() > 0.8
    both = np.maximum(mask_of("A"), mask_of("B"))
    assert agreement(maps["map"], truth, both).min() > 0.8


def test_a_body_that_turned_its_frame_comes_back_to_its_place(turned_b, tmp_path):
    """Body B's run turned by 13°: in the frame of A its map is back where it was. Sign and centre of the placement."""
    made = compose([run_of("A").path, turned_b.path], tmp_path / "out", threads=1)
    assert np.linalg.norm(made.bodies[1].placement[:3]) == pytest.approx(13.4, abs=0.8)
    mask = moved_ball("B", np.eye(3), np.zeros(3))
    composite = agreement(maps_of(tmp_path / "out")["map"], whole(), mask)
    assert composite.min() > 0.8
    assert agreement(mrcfile.read(turned_b.final("map.mrc")), whole(), mask)[6:].mean() < composite[6:].mean() - 0.2


def test_in_the_frame_of_a_turned_body_everything_else_turns_with_it(turned_b, tmp_path):
    """v → Gᵀ (v − c) + c, for body A and, where there is no other body, for the rest."""
    centre = open_body(turned_b.path).centre
    truth = whole(GAUGE.T, centre)
    for runs, frame in (([run_of("A").path, turned_b.path], 2), ([turned_b.path], 1)):
        folder = tmp_path / f"of_{len(runs)}"
        made = compose(runs, folder, frame=frame, threads=1)
        assert made.frame == str(turned_b.path) and made.bodies[-1].is_frame
        maps = maps_of(folder)
        for name in "AB":
            assert agreement(maps["map"], truth, moved_ball(name, GAUGE.T, centre)).min() > 0.8, (frame, name)
        one = mrcfile.read(turned_b.final("half_map_1.mrc"))
        others = maps["body_1_mask"] if len(runs) == 2 else 0
        inside = (mrcfile.read(turned_b.final("mask.mrc")) == 1) & (np.zeros(one.shape) + others < 1e-6)
        np.testing.assert_allclose(maps["half_map_1"][inside], one[inside], atol=1e-3 * one.max())
    assert made.rest_share > 0.3 and any("outside of all masks" in text for text in made.words)


def test_in_the_frame_of_the_input_the_rest_is_the_input_as_it_is(tmp_path):
    made = compose([run_of("B").path], tmp_path / "out", frame=0, threads=1)
    assert made.frame == "" and not any(made.rest_placement)
    given, maps = read_json(run_of("B").input), maps_of(tmp_path / "out")
    outside = maps["body_1_mask"] < 1e-6
    for half in (1, 2):
        expected = given["grey_scale"][half - 1] * mrcfile.read(given[f"half_map_{half}"])
        # splines of a mask with an edge of 2.5 px ring a little beyond it
        np.testing.assert_allclose(maps[f"half_map_{half}"][outside], expected[outside], atol=1e-3 * expected.max())


def test_half_maps_fsc_mask_and_record_belong_together(in_frame_of_a):
    folder, made = in_frame_of_a
    maps = maps_of(folder)
    assert from_json(Composite, read_json(folder / "composite.json")) == made
    assert {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "composite.json"} == made.files
    np.testing.assert_allclose(maps["map"], 0.5 * (maps["half_map_1"] + maps["half_map_2"]), atol=1e-6)
    curves = read_fsc(folder / "fsc.star")
    np.testing.assert_allclose(curves.tight[1:], fsc(maps["half_map_1"] * maps["mask"],
                                                     maps["half_map_2"] * maps["mask"])[1:], atol=1e-4)
    for name in ("body_1_mask", "body_2_mask"):
        assert np.all(maps["mask"] >= maps[name] - 1e-5)
    assert made.bodies[0].is_frame and not any(made.bodies[0].placement)
    assert 0.01 < made.bodies[1].overlap < 0.5
    assert any("lie in other masks" in text for text in made.words) and "mean relative pose" in made.words[0]
    assert made.bodies[1].resolution_angstrom == pytest.approx(made.bodies[1].own_resolution_angstrom, rel=0.06)
    assert 0 < made.bodies[1].placement_error_angstrom < 1 and not made.warnings


def test_nothing_of_one_half_comes_into_the_other(in_frame_of_a, tmp_path):
    """Half-map 2 of both runs replaced: half-map 1 changes at most where masks overlap, by other weights there."""
    runs = [copy_of(name, "other_half") for name in "AB"]
    rng = np.random.default_rng(1)
    for run in runs:
        with mrcfile.open(run.final("half_map_2.mrc"), mode="r+") as mrc:
            mrc.set_data(rng.standard_normal(mrc.data.shape).astype(np.float32))
    compose([run.path for run in runs], tmp_path / "out", threads=1)
    before, after = maps_of(in_frame_of_a[0]), maps_of(tmp_path / "out")
    alone = before["body_1_mask"] * before["body_2_mask"] < 1e-6
    np.testing.assert_allclose(after["half_map_1"][alone], before["half_map_1"][alone],
                               atol=1e-3 * before["half_map_1"].max())
    assert not np.allclose(after["half_map_2"][alone], before["half_map_2"][alone], atol=0.1)


def test_a_composite_of_noise_does_not_agree(tmp_path):
    """Runs and input whose half-maps are noise: FSC 0 within its error in the mask of each body and in the overlap."""
    rng = np.random.default_rng(7)
    runs = [copy_of(name, "noise") for name in "AB"]
    for run in runs:
        given = read_json(run.input)
        for half in (1, 2):
            noise = rng.standard_normal((2, BOX, BOX, BOX)).astype(np.float32)
            with mrcfile.open(run.final(f"half_map_{half}.mrc"), mode="r+") as mrc:
                mrc.set_data(noise[0])
            given[f"half_map_{half}"] = str(run.path / f"noise_{half}.mrc")
            with mrcfile.new(given[f"half_map_{half}"], overwrite=True) as mrc:
                mrc.set_data(noise[1])
                mrc.voxel_size = PIXEL_SIZE
        write_json(run.input, given)
    compose([run.path for run in runs], tmp_path / "out", threads=1)
    maps = maps_of(tmp_path / "out")
    for name in ("body_1_mask", "body_2_mask", "mask"):
        curve = shell_correlation(maps["half_map_1"] * maps[name], maps["half_map_2"] * maps[name])[2:]
        assert abs(curve.mean()) < 0.05, name


# ---------------------------------------------------------------- weights

def noise_bias(draws, rng):
    """Mean FSC, all shells and draws, of composites of white noise where two masks overlap; and its standard error."""
    box = 24
    masks = [soft_ball(box, 5, 8, (x, 0, 0)) for x in (-2.5, 2.5)]
    found = []
    for _ in range(draws):
        noise = rng.standard_normal((2, 3, box, box, box)).astype(np.float32)
        parts = [HalfMaps(noise[0, k] * masks[k], noise[1, k] * masks[k]) for k in range(2)]
        weights = blend.weights_of(masks, parts)
        assert weights.overlaps
        both = [blend.blended([part.maps[half] for part in parts], noise[half, 2], weights) for half in (0, 1)]
        found.append(shell_correlation(both[0] * weights.overlap, both[1] * weights.overlap)[1:].mean())
    return np.mean(found), np.std(found) / np.sqrt(draws)


def test_weights_make_no_correlation_out_of_noise(monkeypatch):
    """They are made of both halves. Weights by any FSC above 0 would: that the test can tell."""
    bias, error = noise_bias(60, np.random.default_rng(1))
    assert abs(bias) < 3 * error
    monkeypatch.setattr(blend, "FSC_THRESHOLD", 1e-3)
    monkeypatch.setattr(blend, "SIGNIFICANT", 0.0)
    bias, error = noise_bias(60, np.random.default_rng(1))
    assert bias > 4 * error


def test_one_is_one_whatever_the_weights():
    """A constant comes through: masks, overlap and rest add up to 1."""
    box = 24
    masks = [soft_ball(box, 5, 8, (x, 0, 0)) for x in (-3.0, 3.0)]
    one = np.ones((box,) * 3, np.float32)
    parts = [HalfMaps(mask, mask) for mask in masks]
    weights = blend.weights_of(masks, parts)
    for reliability in (np.ones((2, blend.BANDS)), np.array([[9.0], [2.0]]) * np.ones(blend.BANDS)):
        weights = blend.Weights(masks, weights.covered, weights.overlap, reliability)
        np.testing.assert_allclose(blend.blended(masks, one, weights), one, atol=1e-5)
    np.testing.assert_allclose(blend.bank(box).sum(axis=0), 1)
    alone = blend.weights_of(masks[:1], parts[:1])
    assert not alone.overlaps
    np.testing.assert_allclose(alone.covered, masks[0], atol=1e-6)


def test_in_an_overlap_the_better_map_counts_more():
    """Two maps of one density, the second with ten times the noise variance."""
    box, rng = 32, np.random.default_rng(3)
    density = Phantom(rng.uniform(-6, 6, (40, 3)), np.ones(40), 1.2).density(box)
    masks = [soft_ball(box, 8, 12)] * 2
    noise = 0.05 * rng.standard_normal((2, 2, box, box, box)).astype(np.float32)
    noise[1] *= np.sqrt(10)
    parts = [HalfMaps((density + noise[k, 0]) * masks[k], (density + noise[k, 1]) * masks[k]) for k in range(2)]
    weights = blend.weights_of(masks, parts)
    ratio = weights.reliability[0] / weights.reliability[1]
    assert 4 < ratio[3:6].mean() < 14
    composite = blend.blended([part.maps[0] for part in parts], density, weights)
    errors = [np.abs(np.fft.rfftn((volume - density) * masks[0]))[:6, :6, 1:6].std() for volume in (
        composite, density + noise[0, 0], density + noise[1, 0])]
    assert errors[0] < 1.02 * errors[1] < 0.5 * errors[2]


# ---------------------------------------------------------------- refusals

def refused(*arguments, **named):
    with pytest.raises(InputError) as caught:
        compose(*arguments, **named)
    return str(caught.value)


def test_what_does_not_belong_together_is_refused_in_one_sentence(tmp_path):
    a, b, out = run_of("A").path, run_of("B").path, tmp_path / "out"
    assert "is given twice" in refused([a, a], out)
    assert "--frame" in refused([a, b], out, frame=3)
    assert "is not finished" in refused([a, tmp_path], out)
    other = copy_of("B", "refused")
    with np.load(other.particles) as stored:
        columns = dict(stored)
    for changes, words in ((dict(half_set=3 - columns["half_set"]), "has other half-sets"),
                           (dict(slice=columns["slice"] + 1), "has other particles")):
        np.savez(other.particles, **dict(columns, **changes))
        assert words in refused([a, other.path], out)
    np.savez(other.particles, **dict(columns, shift_px=columns["shift_px"] + 1))
    assert "has other input poses" in refused([a, other.path], out, frame=0)
    given = read_json(other.input)
    write_json(other.input, dict(given, pixel_size=4.2))
    assert "has a box of" in refused([a, other.path], out)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    assert "not empty" in refused([a, b], out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_the_verb(tmp_path, capsys):
    out = tmp_path / "out"
    runs = [str(run_of(name).path) for name in "AB"]
    assert cli.main(["compose", *runs, "--output", str(out), "--frame", "2"]) == 0
    assert json.loads((out / "composite.json").read_text())["frame"] == str(run_of("B").path)
    assert "mean relative pose" in capsys.readouterr().out
    assert cli.main(["compose", str(run_of("A").path), "nowhere", "--output", str(tmp_path / "other")]) == 1
    assert "nowhere: is not finished" in capsys.readouterr().err
