"""What is checked, said and settled before a run, each with the data that provoke it."""
from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import mrcfile
import numpy as np
import pytest
from experiments import contrast_of, experiment, write_inputs
from oracles import imaged, soft_ball
from particle_files import PIXEL_SIZE, Inputs, radius, soft_mask, write_mrc
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.align.search_plan import resolve
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.inputs.half_sets import check_duplicates, resplit
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.resample import on_grid
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.run_store import load_particles
from localrefine_plugin.engine.maps.fsc import five_curves
from localrefine_plugin.engine.maps.half_maps import HalfMaps
from localrefine_plugin.engine.model.symmetry import operators
from localrefine_plugin.engine.prepare.prepare import prepare
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


def check(inputs, **values):
    return check_inputs(inputs.star, inputs.half_1, inputs.half_2, inputs.mask, Settings(**values))


def prepared(tmp_path, e, **values):
    run = prepare(*write_inputs(tmp_path / "data", e), str(tmp_path / "run"), Settings(**values), threads=1)
    return run, read_json(run.input)


def said(described, words):
    return [text for text in described["warnings"] if words in text]


# ------------------------------------------------------------- settings against each other

@pytest.mark.parametrize("extents, words", (
    (dict(rotation_extent_deg=13.9), "rotation search extent, 13.9°, is less than two"),
    (dict(shift_extent_angstrom=7.9), "shift search extent, 7.9 Å, is less than two")))
def test_extents_narrower_than_two_prior_widths(inputs, extents, words):
    assert any(words in text for text in check(inputs, **extents).warnings)
    assert not any("less than two" in text for text in check(inputs, prior="off", **extents).warnings)
    enough = {name: value + 0.2 for name, value in extents.items()}
    assert not any("less than two" in text for text in check(inputs, **enough).warnings)


@pytest.mark.parametrize("switch", ("recenter_rotations", "recenter_shifts"))
def test_recentring_without_a_prior_recommends_one(inputs, switch):
    assert any("Switch the prior on" in text for text in check(inputs, prior="off", **{switch: True}).warnings)
    assert not any("Switch the prior on" in text for text in check(inputs, prior="gaussian", **{switch: True}).warnings)


@pytest.mark.parametrize("prior", ("learned", "learned-isotropic"))
@pytest.mark.parametrize("switch", ("recenter_rotations", "recenter_shifts"))
def test_a_learned_prior_is_not_recentred(inputs, switch, prior):
    with pytest.raises(InputError, match="shrink in every iteration .* Switch re-centring off"):
        check(inputs, prior=prior, **{switch: True})
    check(inputs, prior=prior)


def test_phase_flipped_by_the_star_file(inputs):
    label = "_rlnImageDimensionality #8\n"
    inputs.optics = inputs.optics.replace(label, label + "_rlnCtfDataArePhaseFlipped #9\n")
    inputs.optics = inputs.optics.replace("16 2\n", "16 2 1\n")
    inputs.write_star()
    with pytest.raises(InputError, match="phase-flipped"):
        check(inputs)
    inputs.optics = inputs.optics.replace("16 2 1\n", "16 2 0\n")
    inputs.write_star()
    check(inputs)


# ------------------------------------------------------------- symmetry

def test_a_mask_that_breaks_the_symmetry_is_refused_unless_allowed(inputs):
    z, y, x = np.indices((16,) * 3) - 8
    for half in (inputs.half_1, inputs.half_2):
        data = np.array(mrcfile.read(str(half)))
        write_mrc(half, (data + np.exp(-((x - 3) ** 2 + y ** 2 + z ** 2) / 8)).astype(np.float32))
    aside = np.clip((6 - np.sqrt((x - 4) ** 2 + y ** 2 + z ** 2)) / 4, 0, 1).astype(np.float32)
    write_mrc(inputs.mask, aside)
    check(inputs, symmetry="C1")
    with pytest.raises(InputError, match="breaks the symmetry C2 .*symmetry-expanded particles"):
        check(inputs, symmetry="C2")
    assert any("breaks the symmetry C2" in t for t in check(inputs, symmetry="C2", allow_asymmetric_mask=True).warnings)
    write_mrc(inputs.mask, soft_mask())
    assert not any("symmetry" in t for t in check(inputs, symmetry="D2").warnings)


@pytest.mark.parametrize("group", ("C0", "D100", "Q", "", "C2v", 4))
def test_only_point_groups_are_settings(group):
    with pytest.raises(InputError, match="setting symmetry: .* not a point group"):
        Settings(symmetry=group)
    Settings(symmetry="i3")


# ------------------------------------------------------------- half-sets

def test_new_half_sets_keep_copies_together_and_follow_the_seed():
    e = experiment(60)
    copies = e.particles.take(np.repeat(np.arange(60), 3))
    new = resplit(copies, seed=1)
    halves = new.half_set.reshape(60, 3)
    assert np.all(halves == halves[:, :1]) and np.sum(halves[:, 0] == 1) == 30
    assert 0.3 < np.mean(halves[:, 0] == e.particles.half_set) < 0.7
    np.testing.assert_array_equal(resplit(copies, seed=1).half_set, new.half_set)
    assert np.any(resplit(copies, seed=2).half_set != new.half_set)


def test_resplitting_is_warned_of_and_mends_copies_in_both_halves(inputs):
    inputs.rows[1].update({k: v for k, v in inputs.rows[0].items() if k not in ("rlnRandomSubset", "rlnAngleRot")})
    inputs.write_star()
    with pytest.raises(InputError, match="the same image in both half-sets"):
        check(inputs)
    checked = check(inputs, resplit_half_sets=True)
    assert any("not independent" in text for text in checked.warnings)
    assert checked.particles.half_set[0] == checked.particles.half_set[1]


def test_particles_without_half_sets_can_be_split_anew(inputs):
    for row in inputs.rows:
        del row["rlnRandomSubset"]
    inputs.write_star()
    with pytest.raises(InputError, match="no column rlnRandomSubset"):
        check(inputs)
    halves = check(inputs, resplit_half_sets=True).particles.half_set
    assert set(halves) == {1, 2} and abs(int((halves == 1).sum()) - int((halves == 2).sum())) <= 1


# ------------------------------------------------------------- expanded by the symmetry that is set; filaments

def expanded(n, name, off_deg=0.0, seed=2):
    """n images once for each operator S of a group, at poses R S, each turned by about ``off_deg`` as after a
    refinement."""
    group = operators(name)
    e = experiment(n)
    copies = e.particles.take(np.repeat(np.arange(n), len(group)))
    turned = Rotation.from_rotvec(np.random.default_rng(seed).normal(0, off_deg, (len(copies), 3)), degrees=True)
    return replace(copies, rotation=copies.rotation @ np.tile(group, (n, 1, 1)) @ turned.as_matrix())


@pytest.mark.parametrize("name, off_deg", [("C2", 0.0), ("C2", 4.0), ("C7", 3.0), ("D2", 3.0), ("O", 3.0)])
def test_expanded_particles_with_the_same_symmetry_are_warned_of(name, off_deg):
    particles = expanded(20, name, off_deg)
    text, = [text for text in check_duplicates(particles, "p.star", name) if "Set the symmetry to C1" in text]
    assert f"symmetry-expanded by {name}, and the symmetry is set to {name} too" in text
    assert not any("Set the symmetry" in text for text in check_duplicates(particles, "p.star", "C1"))


def test_copies_that_are_no_symmetry_mates_are_not():
    """By an axis along x, where the symmetry that is set has its own along z."""
    particles = expanded(20, "C2")
    about_x = np.diag([1.0, -1.0, -1.0])
    rotation = particles.rotation.copy()
    rotation[1::2] = rotation[::2] @ about_x
    assert len(check_duplicates(replace(particles, rotation=rotation), "p.star", "C2")) == 1


def of_filaments(inputs, tubes, halves=None, micrograph="m.mrc"):
    for i, (row, tube) in enumerate(zip(inputs.rows, tubes)):
        row.update(rlnHelicalTubeID=str(tube), rlnMicrographName=micrograph)
        if halves is not None:
            row["rlnRandomSubset"] = str(halves[i])
    inputs.write_star()
    return [text for text in check(inputs).warnings if "filaments (" in text]


TUBES = [1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5]


def test_filaments_in_both_half_sets_are_counted(inputs):
    text, = of_filaments(inputs, TUBES)  # half-sets alternate: all but the last, of one segment
    assert "4 of 5 filaments (rlnHelicalTubeID) have segments in both half-sets" in text and "resplit_half_sets" in text


@pytest.mark.parametrize("tubes, halves", [
    (TUBES, [1 + tube % 2 for tube in TUBES]),  # kept together
    ([0] * 12, None)])                          # the column filled with 0: no filaments
def test_filaments_kept_together_and_no_filaments_are_not_said(inputs, tubes, halves):
    assert of_filaments(inputs, tubes, halves) == []


def test_filaments_of_one_number_in_two_micrographs_are_two(inputs):
    for row in inputs.rows:
        row.update(rlnHelicalTubeID="1", rlnMicrographName=f"m{row['rlnRandomSubset']}.mrc")
    inputs.write_star()
    assert not [text for text in check(inputs).warnings if "filaments (" in text]


def test_a_new_split_keeps_filaments_together_and_the_half_sets_equal(inputs):
    of_filaments(inputs, TUBES)
    splits = set()
    for seed in range(8):
        checked = check(inputs, resplit_half_sets=True, seed=seed)
        half = checked.particles.half_set
        assert not [text for text in checked.warnings if "filaments (" in text]
        assert all(len(set(half[np.array(TUBES) == tube])) == 1 for tube in TUBES)
        assert abs(int((half == 1).sum()) - int((half == 2).sum())) <= 1  # 4, 3, 2, 2 and 1 segments
        splits.add(tuple(half))
    assert len(splits) > 1


def test_one_filament_cannot_be_split(inputs):
    of_filaments(inputs, [1] * 12)
    with pytest.raises(InputError, match="all segments are of one filament"):
        check(inputs, resplit_half_sets=True)


# ------------------------------------------------------------- other grids

@pytest.mark.parametrize("box, pixel_size", ((24, PIXEL_SIZE * 16 / 24), (20, 1.7), (12, 2.6)))
def test_maps_of_another_grid_are_resampled_on_request_and_it_is_said(inputs, box, pixel_size):
    def blob(n, a, width):
        return np.exp(-((radius(n) * a) ** 2) / (2 * width ** 2)).astype(np.float32)
    rng = np.random.default_rng(1)
    for path in (inputs.half_1, inputs.half_2):
        noise = 1e-3 * rng.standard_normal((box,) * 3).astype(np.float32)
        write_mrc(path, blob(box, pixel_size, 5.0) + noise, pixel_size)
    write_mrc(inputs.mask, blob(box, pixel_size, 5.5), pixel_size)
    with pytest.raises(InputError, match="set resample_maps"):
        check(inputs)
    checked = check(inputs, resample_maps=True)
    assert sum(f"was resampled from {box} voxels" in text for text in checked.warnings) == 3
    inside = radius(16) < 5
    np.testing.assert_allclose(checked.maps[0][inside], blob(16, PIXEL_SIZE, 5.0)[inside], atol=0.03)
    np.testing.assert_allclose(checked.mask[inside], blob(16, PIXEL_SIZE, 5.5)[inside], atol=0.03)


@pytest.mark.parametrize("box, pixel_size", [(20, PIXEL_SIZE), (40, PIXEL_SIZE), (12, PIXEL_SIZE), (20, 1.0),
                                             (20, 3.0)])
def test_half_maps_of_another_box_are_no_matter_of_sampling(inputs, box, pixel_size):
    """Cut or padded to the box of the particles they would be of another object, and resolve what they do not show."""
    for path in (inputs.half_1, inputs.half_2):
        data = np.random.default_rng(3).standard_normal((box,) * 3) + np.exp(-(radius(box) / 5) ** 2)
        write_mrc(path, data.astype(np.float32), pixel_size)
    for resample in (False, True):
        with pytest.raises(InputError, match="another box, not another sampling") as caught:
            check(inputs, resample_maps=resample)
        assert "resample_maps" not in str(caught.value)


def test_a_mask_that_does_not_fit_into_the_box_is_refused(inputs):
    wide = np.clip(15 - radius(40), 0, 4) / 4
    write_mrc(inputs.mask, wide.astype(np.float32), PIXEL_SIZE)
    with pytest.raises(InputError, match=r"does not fit into the box of the particles \(16 px of 2 Å\): \d\d % of it"):
        check(inputs, resample_maps=True)


def test_same_grid_is_left_alone():
    volume = np.random.default_rng(0).standard_normal((18,) * 3).astype(np.float32)
    np.testing.assert_array_equal(on_grid(volume, 1.5, 18, 1.5), volume)


# ------------------------------------------------------------- a first look at the images

@lru_cache(maxsize=None)
def good():
    return experiment(80, noise=1.0, seed=9)


def test_good_images_are_not_complained_of(tmp_path):
    _, described = prepared(tmp_path, good())
    for words in ("phase-flipped", "doubtful", "grey scale"):
        assert not said(described, words)


@pytest.mark.parametrize("what", ("flipped", "corrected"))
def test_images_without_the_signs_of_the_ctf(tmp_path, what):
    e = good()
    contrast = np.abs(contrast_of(e.particles)) if what == "flipped" else np.ones_like(contrast_of(e.particles))
    clean = imaged(e.phantom.projections(e.rotation, e.shift, e.box), contrast)
    images = clean + np.random.default_rng(3).standard_normal(clean.shape)
    with pytest.raises(InputError, match="particles: do not fit the half-maps: the images fit with flipped phases"):
        prepared(tmp_path, replace(e, images=images))


def test_inverted_contrast_is_refused(tmp_path):
    with pytest.raises(InputError, match="half-maps: have the opposite contrast .* invert the contrast"):
        prepared(tmp_path, replace(good(), images=-good().images))


@pytest.mark.parametrize("factor", (0.1, 10.0))
def test_wrong_grey_scale_is_said_and_mended(tmp_path, factor):
    """Images in other units than the maps: the first references are scaled to them."""
    run, described = prepared(tmp_path / "wrong", replace(good(), images=factor * good().images))
    usual, reference = prepared(tmp_path / "usual", good())
    assert len(said(described, "times the grey scale of the half-maps")) == 1
    np.testing.assert_allclose(described["grey_scale"], factor * np.array(reference["grey_scale"]), rtol=1e-3)
    first, other = (read_map(r.reference(0, 1))[0] for r in (run, usual))
    np.testing.assert_allclose(first, factor * other, atol=1e-3 * np.abs(first).max())


@pytest.mark.parametrize("prior, noise, words", (
    ("learned", 6.0, "Use a larger mask"), ("gaussian", 3.0, "Use the learned prior"), ("off", 3.0, "Use a prior")))
def test_too_little_signal_in_the_mask_is_said_with_its_mass(tmp_path, prior, noise, words):
    """At noise 3 one image tells its rotation to 6° per axis: too little for a free search of 20° or a Gaussian of 7°,
    enough for a motion that is learned; at noise 6, to 11°, for none."""
    _, described = prepared(tmp_path, experiment(80, noise=noise, seed=9), prior=prior)
    warning, = said(described, "alignment is doubtful")
    assert words in warning and f"{described['resolved']['mask_mass_kda']:.0f} kDa" in warning


@pytest.mark.parametrize("prior, noise", (("learned", 3.0), ("gaussian", 0.8), ("off", 0.8)))
def test_enough_signal_is_not_complained_of(tmp_path, prior, noise):
    assert not said(prepared(tmp_path, experiment(80, noise=noise, seed=9), prior=prior)[1], "doubtful")


@pytest.mark.parametrize("prior", ("off", "gaussian"))
def test_expected_accuracy_is_what_the_first_iteration_reaches(tmp_path, prior):
    """At low signal, where it matters: the prediction takes the images' whole power for noise. All per axis; the
    alignment has the noise-free reference, the prior the widths of the input's errors."""
    e = experiment(300, noise=5.0, seed=4)
    values = dict(prior=prior, prior_rotation_deg=3.0, prior_shift_angstrom=3.2)
    _, described = prepared(tmp_path, e, initial_lowpass_angstrom=12.0, **values)
    turned, moved = e.errors(e.align(12.0, rotation_extent_deg=30.0, **values).poses)
    expected = described["resolved"]
    assert np.sqrt(np.mean(turned ** 2)) == pytest.approx(expected["expected_rotation_sd_deg"], rel=0.2)
    assert np.sqrt(np.mean(moved ** 2)) * 4.0 == pytest.approx(expected["expected_shift_sd_angstrom"], rel=0.3)


# ------------------------------------------------------------- what auto stands for

def test_automatic_values_are_settled_and_written(tmp_path):
    e = good()
    run, described = prepared(tmp_path, e)
    resolved = described["resolved"]
    maps = [read_map(described[f"half_map_{h}"])[0] for h in (1, 2)]
    curves = five_curves(HalfMaps(*maps), e.mask, e.particles.pixel_size, 1)
    expected = max(curves.resolutions()["corrected"] + 1.5, 2 * e.particles.pixel_size)
    assert resolved["initial_lowpass_angstrom"] == pytest.approx(expected, rel=1e-6)
    assert resolved["rotation_extent_deg"] == 21.0 and resolved["shift_extent_angstrom"] == 12.0
    np.testing.assert_allclose(np.array(resolved["fulcrum_px"]) - e.box // 2, e.centre, atol=0.05)
    np.testing.assert_array_equal(load_particles(run).half_set, e.particles.half_set)


@pytest.mark.parametrize("given, expected", (
    (dict(), (21.0, 12.0)), (dict(prior="off"), (20.0, 10.0)), (dict(prior_rotation_deg=2.0), (6.0, 12.0)),
    (dict(prior_shift_angstrom=1.5, rotation_extent_deg=5.0), (5.0, 4.5)),
    (dict(prior_rotation_deg=50.0), (90.0, 12.0))))
def test_automatic_extents(given, expected):
    resolved = resolve(Settings(**given), soft_ball(32, 8, 11), 8.0, 2.0)
    assert (resolved.rotation_extent_deg, resolved.shift_extent_angstrom) == expected


@pytest.mark.parametrize("resolution, expected", ((8.0, 9.5), (4.0, 5.5), (2.0, 4.0)))
def test_automatic_low_pass_is_the_resolution_plus_a_margin_but_not_beyond_nyquist(resolution, expected):
    mask = soft_ball(32, 8, 11)
    assert resolve(Settings(), mask, resolution, 2.0).initial_lowpass_angstrom == expected
    assert resolve(Settings(initial_lowpass_angstrom=12.0), mask, resolution, 2.0).initial_lowpass_angstrom == 12.0


@pytest.mark.parametrize("fulcrum, expected", (
    ("mask", (19, 13, 18)), ("box", (16, 16, 16)), ([1, 2.5, 30], (1, 2.5, 30))))
def test_fulcrum_is_settled_in_px_from_the_corner(fulcrum, expected):
    mask = soft_ball(32, 6, 9, (3, -3, 2))
    np.testing.assert_allclose(resolve(Settings(fulcrum=fulcrum), mask, 8.0, 2.0).fulcrum_px, expected, atol=0.02)
