"""Do half-maps, poses and images belong together? What people mix up, and good input that must pass without a word."""
from __future__ import annotations

import shutil
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from experiments import Experiment, contrast_of, experiment, inputs_of, write_inputs
from oracles import full_frequencies
from relion_files import reword, write_map
from relion_programs import relion

from localrefine_plugin.engine.align.search_plan import resolve
from localrefine_plugin.engine.inputs.belonging import check_belonging
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.io.run_store import load_input, load_particles
from localrefine_plugin.engine.maps.fsc import five_curves
from localrefine_plugin.engine.model.pose import euler_deg_from_rotation, rotation_from_euler_deg
from localrefine_plugin.engine.prepare.prepare import prepare
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

N, PIXEL_SIZE = 300, 4.0


@pytest.fixture(scope="module")
def e() -> Experiment:
    """Input poses are off by 3° and 0.8 px per axis; one image shows little."""
    return experiment(N, noise=1.0, seed=11, shift_px=3.0)


@pytest.fixture(scope="module")
def reconstructed(e, tmp_path_factory):
    """A folder with the input of which relion_reconstruct made the half-maps: images, poses and half-sets as given."""
    require_program("relion_reconstruct")
    folder = tmp_path_factory.mktemp("belonging")
    write_inputs(folder, e)
    for half in (1, 2):
        relion("relion_reconstruct", folder, "--i", "particles.star", "--o", f"input_{half}.mrc", "--ctf", "--subset",
               half)
    return folder


def found(folder, **settings):
    """What `check_belonging` says of the files in a folder."""
    inputs = check_inputs(*inputs_of(folder), Settings(**settings))
    curves = five_curves(inputs.halves, inputs.mask, inputs.pixel_size, 1, 1)
    resolved = resolve(Settings(**settings), inputs.mask, curves.resolutions()["corrected"], inputs.pixel_size)
    return check_belonging(inputs, resolved, 1)


def with_poses(e, rotation=None, shift=None):
    """The experiment with other poses written into its particle file."""
    p = e.particles
    return replace(e, particles=replace(p, rotation=p.rotation if rotation is None else rotation,
                                        shift_px=p.shift_px if shift is None else shift))


def other_tilt(e):
    angles = euler_deg_from_rotation(e.particles.rotation)
    angles[:, 1] = 180 - angles[:, 1]
    return with_poses(e, rotation_from_euler_deg(angles))


def reordered(order):
    return lambda e: with_poses(e, e.particles.rotation[order], e.particles.shift_px[order])


READINGS = {
    "rows shifted by one": (reordered(np.roll(np.arange(N), 1)), "each image fits the pose of the next row"),
    "rows shifted back": (reordered(np.roll(np.arange(N), -1)), "each image fits the pose of the row before"),
    "signs of origins": (lambda e: with_poses(e, shift=-e.particles.shift_px), "opposite sign of the origins"),
    "sign of y": (lambda e: with_poses(e, shift=e.particles.shift_px * (1, -1)), "sign of the origins in y"),
    "x and y": (lambda e: with_poses(e, shift=e.particles.shift_px[:, ::-1]), "the origins in x and y exchanged"),
    "origins in px": (lambda e: with_poses(e, shift=e.particles.shift_px / PIXEL_SIZE), "multiplied by the pixel size"),
    "origins in Å": (lambda e: with_poses(e, shift=np.clip(e.particles.shift_px * PIXEL_SIZE, -15, 15)), "divided by"),
    "inverse": (lambda e: with_poses(e, np.swapaxes(e.particles.rotation, 1, 2)), "fit the inverse rotations"),
    "tilt": (other_tilt, "fit with 180° − tilt"),
    "permuted": (reordered(np.random.default_rng(3).permutation(N)), "the images fit the poses of other rows"),
}


def test_good_input_passes_without_a_word(e, tmp_path):
    write_inputs(tmp_path, e)
    with pytest.MonkeyPatch.context() as patch:  # the phantom's half-maps are not made of the images: other tests
        patch.setattr("localrefine_plugin.engine.inputs.belonging.check_half_maps", lambda *_: [])
        assert found(tmp_path).said == ()


@pytest.mark.parametrize("factor", (1000.0, 1e-3))
def test_the_grey_scale_does_not_matter(e, tmp_path, factor):
    write_inputs(tmp_path, replace(e, images=factor * e.images))
    assert not any("fit" in text for text in found(tmp_path).said)
    write_inputs(tmp_path, replace(READINGS["permuted"][0](e), images=factor * e.images))
    with pytest.raises(InputError, match="the images fit the poses of other rows"):
        found(tmp_path)


@pytest.mark.parametrize("case", READINGS)
def test_another_reading_of_the_poses_is_named(e, tmp_path, case):
    spoil, words = READINGS[case]
    write_inputs(tmp_path, spoil(e))
    with pytest.raises(InputError, match=words):
        found(tmp_path)


def test_what_may_be_the_cause_is_said_before_a_refusal(e, tmp_path, capsys):
    """All images with the contrast of a pure amplitude object: at first a CTF of half the defocus is much like it."""
    write_inputs(tmp_path, e)
    reword(tmp_path / "particles.star", r"(?m)^(1 \S+(?: \S+){0,5}?) 0\.1 ", r"\1 1 ")
    words = r"the images fit with about 0\.\d+ times their defocus; check .*amplitude contrast"
    with pytest.raises(InputError, match=f"^half-maps and particles: do not fit each other: {words}"):
        prepare(*inputs_of(tmp_path), str(tmp_path / "run"), Settings(), "cpu", 1)
    assert "has rlnAmplitudeContrast 1; usual is 0.01 to 0.4" in capsys.readouterr().out


@pytest.mark.parametrize("few", (12, 40))
def test_few_particles_are_not_refused_and_mixed_up_ones_are(few, tmp_path):
    e = experiment(few, noise=1.0, seed=5)
    write_inputs(tmp_path / "good", e)
    assert not any("do not belong" in text for text in found(tmp_path / "good").said)
    write_inputs(tmp_path / "bad", reordered(np.random.default_rng(1).permutation(few))(e))
    with pytest.raises(InputError, match="the images fit the poses of other rows"):
        found(tmp_path / "bad")


def test_few_particles_of_another_map_are_said(tmp_path):
    """Noise fits no pose of any row: nothing else is known than that the poses explain nothing."""
    e = experiment(40, noise=1.0, seed=5)
    noise = np.random.default_rng(2).standard_normal(e.images.shape)
    write_inputs(tmp_path, replace(e, images=noise.astype(np.float32)))
    assert any("particles perhaps do not belong together" in text for text in found(tmp_path).said)


def maps_changed(folder, change):
    for name in ("input_1.mrc", "input_2.mrc", "mask.mrc"):
        write_map(folder / name, np.ascontiguousarray(change(mrcfile.read(folder / name))), PIXEL_SIZE)


@pytest.mark.parametrize("axes", ((0,), (1,), (2,), (0, 1, 2)))
def test_mirrored_half_maps(e, tmp_path, axes):
    write_inputs(tmp_path, e)
    maps_changed(tmp_path, lambda v: np.flip(v, axes))
    with pytest.raises(InputError, match="the images fit the mirrored half-maps; mirror half-maps and mask"):
        found(tmp_path)


@pytest.mark.parametrize("shift, words", (((0, 0, 3), "moved by -3.0, 0.0, 0.0 px"), ((3, -3, 0), "0.0, 3.0, -3.0 px")))
def test_displaced_half_maps_are_refused_with_the_displacement(e, tmp_path, shift, words):
    write_inputs(tmp_path, e)
    maps_changed(tmp_path, lambda v: np.roll(v, shift, (0, 1, 2)))
    with pytest.raises(InputError, match="the images fit once the half-maps are moved by") as refusal:
        found(tmp_path)
    moved = [float(v) for v in str(refusal.value).split("moved by ")[1].split(" px")[0].split(", ")]
    np.testing.assert_allclose(moved, -np.array(shift[::-1]), atol=0.3)


def test_half_maps_that_are_one_voxel_off_are_said(e, tmp_path):
    write_inputs(tmp_path, e)
    maps_changed(tmp_path, lambda v: np.roll(v, 1, 0))
    assert any("fit better once the half-maps are moved by" in text for text in found(tmp_path).said)


def test_maps_of_another_particle(e, tmp_path):
    write_inputs(tmp_path, e)
    maps_changed(tmp_path, lambda v: np.rot90(v, 1, (1, 2)))
    with pytest.raises(InputError, match="do not (belong together|fit each other)"):
        found(tmp_path)


def test_opposite_contrast(e, tmp_path):
    write_inputs(tmp_path, replace(e, images=-e.images))
    with pytest.raises(InputError, match="half-maps: have the opposite contrast of the particles"):
        found(tmp_path)


def test_a_sphere_tells_nothing_of_poses_and_is_not_refused(e, tmp_path):
    """Its projections are the same from everywhere."""
    write_inputs(tmp_path, e)
    offset = np.arange(e.box) - e.box // 2
    ball = (np.sqrt((offset ** 2)[:, None, None] + (offset ** 2)[:, None] + offset ** 2) < 8).astype(np.float32)
    rng = np.random.default_rng(0)
    for half in (1, 2):
        write_map(tmp_path / f"input_{half}.mrc", ball + 0.02 * rng.standard_normal(ball.shape), PIXEL_SIZE)
        with mrcfile.mmap(str(tmp_path / f"half_{half}.mrcs"), "r+") as stack:
            stack.data[:] = ball.sum(axis=0) + rng.standard_normal(stack.data.shape)
    centred = with_poses(e, shift=np.zeros_like(e.particles.shift_px))
    from relion_files import write_star
    write_star(tmp_path / "particles.star", centred.particles, {1: "half_1.mrcs", 2: "half_2.mrcs"})
    assert not any("belong" in text for text in found(tmp_path).said)


# ---------------------------------------------------------------- half-maps and half-sets

def test_half_maps_of_these_half_sets_pass_without_a_word(reconstructed):
    assert found(reconstructed).said == ()


def with_exchanged_maps(source, folder):
    shutil.copytree(source, folder)
    for half in (1, 2):
        shutil.copy(source / f"input_{half}.mrc", folder / f"input_{3 - half}.mrc")
    return folder


def test_exchanged_half_maps_are_refused(reconstructed, tmp_path):
    words = "half-maps 1 and 2: seem to be exchanged.* give them in the other order, or set exchange_half_maps"
    with pytest.raises(InputError, match=words):
        found(with_exchanged_maps(reconstructed, tmp_path / "in"))


def test_half_maps_are_exchanged_as_set(reconstructed, tmp_path):
    """The run is that of half-maps in the right order, bit by bit; of these the setting is refused."""
    exchanged = with_exchanged_maps(reconstructed, tmp_path / "in")
    assert found(exchanged, exchange_half_maps=True).said == ()
    with pytest.raises(InputError, match="seem to be exchanged.* switch exchange_half_maps off"):
        found(reconstructed, exchange_half_maps=True)
    runs = [prepare(*inputs_of(folder), str(tmp_path / name), Settings(exchange_half_maps=setting), "cpu", 1)
            for folder, name, setting in ((exchanged, "exchanged", True), (reconstructed, "plain", False))]
    for half in (1, 2):
        one, other = (run.reference(0, half).read_bytes()[1024:] for run in runs)  # a header tells the time
        assert one == other
    given = load_input(runs[0])
    assert given.half_maps == (given.half_map_2, given.half_map_1)
    assert "half-maps 1 and 2 were exchanged, as exchange_half_maps says: half-map 1 is" in " ".join(given.warnings)


def of_another_split(source, folder):
    """The rows of every second pair change their half-set."""
    shutil.copytree(source, folder)
    lines = [line.split() for line in (folder / "particles.star").read_text().splitlines()]
    for i, words in enumerate(words for words in lines if len(words) == 15):
        if i // 2 % 2:
            words[3] = str(3 - int(words[3]))
    (folder / "particles.star").write_text("\n".join(" ".join(words) for words in lines) + "\n")
    return folder


def test_half_maps_of_another_split_are_said(reconstructed, tmp_path):
    """A new split by us is not warned of twice."""
    of_another_split(reconstructed, tmp_path / "in")
    said = found(tmp_path / "in").said
    assert len(said) == 1 and "the half-maps were not made from these half-sets" in said[0], said
    assert found(tmp_path / "in", resplit_half_sets=True).said == ()


# ---------------------------------------------------------------- optics groups

def two_groups(e, seed=2, share=1 / 3):
    """The experiment with a third of its particles in a second optics group, and who is in it."""
    second = np.random.default_rng(seed).random(len(e.particles)) < share
    first = e.particles.optics[0]
    particles = replace(e.particles, optics_group=second.astype(np.int32), optics=(first, replace(first, name="two")))
    return replace(e, particles=particles), second


def of_second(second, change):
    """Images of the second group changed."""
    def spoil(e):
        images = e.images.copy()
        images[second] = change(e, images[second], second)
        return replace(e, images=images)
    return spoil


def flip_phases(e, images, second):
    sign = np.sign(contrast_of(e.particles)[second])
    kx, ky = full_frequencies(e.box)
    box = e.box
    ft = np.fft.fft2(images)
    return np.fft.ifft2(ft * sign[:, np.rint(ky[:, 0]).astype(int) % box][:, :, np.rint(kx[0]).astype(int) % box]
                        if kx[0, 0] != 0 else ft * sign).real


def tilted(e, second):
    rotation = e.particles.rotation.copy()
    rotation[second] = other_tilt(e).particles.rotation[second]
    return with_poses(e, rotation)


def defocused(e, second):
    p = e.particles
    factor = np.where(second, 1.35, 1.0)
    return replace(e, particles=replace(p, defocus_u=p.defocus_u * factor, defocus_v=p.defocus_v * factor))


GROUPS = {
    "inverted": (lambda e, s: of_second(s, lambda e, images, _: -images)(e), "two: has the opposite contrast"),
    "tilt": (tilted, "optics group two: does not fit the half-maps as the others do: .* 180° − tilt"),
    "defocus": (defocused, "optics group two: fits the half-maps better with 0.7.* times its defocus"),
}


@pytest.mark.parametrize("case", GROUPS)
def test_one_optics_group_that_is_different_is_named(e, tmp_path, case):
    both, second = two_groups(e)
    spoil, words = GROUPS[case]
    write_inputs(tmp_path, spoil(both, second))
    with pytest.raises(InputError, match=words):
        found(tmp_path)


@pytest.mark.parametrize("factor", (10.0, 0.1))
def test_the_grey_scale_of_an_optics_group_is_corrected(e, tmp_path, factor):
    both, second = two_groups(e)
    write_inputs(tmp_path / "in", of_second(second, lambda e, images, _: factor * images)(both))
    run = prepare(*inputs_of(tmp_path / "in"), str(tmp_path / "run"), Settings(), "cpu", 1)
    scales = [group.grey_scale for group in load_particles(run).optics]
    assert scales[0] == 1 and scales[1] == pytest.approx(factor, rel=0.1)


def test_groups_that_are_alike_keep_their_grey_scale(e, tmp_path):
    both, _ = two_groups(e)
    write_inputs(tmp_path, both)
    assert found(tmp_path).grey_scale == (1.0, 1.0)


# ---------------------------------------------------------------- some images, in no group of their own

def share_and_rows(refusal):
    """Of a refusal that says "about 20 % of the images (rows 3, 8, …)": the per cent, and the rows, from 0."""
    text = str(refusal.value)
    rows = text.split("(rows ")[1].split(", …")[0].split(", ")
    return float(text.split("about ")[1].split(" %")[0]), [int(row) - 1 for row in rows]


@pytest.mark.parametrize("case, share_of_all, words", (
    ("inverted", 0.25, "they have the opposite contrast"), ("tilt", 1 / 3, "the images fit with 180° − tilt")))
def test_some_images_that_are_different_are_found_without_optics_groups(e, tmp_path, case, share_of_all, words):
    both, second = two_groups(e, share=share_of_all)
    spoilt = GROUPS[case][0](both, second)
    one = replace(spoilt.particles, optics=e.particles.optics, optics_group=e.particles.optics_group)
    write_inputs(tmp_path, replace(spoilt, particles=one))
    with pytest.raises(InputError, match=f"do not all fit the half-maps in the same way.*{words}") as refusal:
        found(tmp_path)
    share, rows = share_and_rows(refusal)
    assert share == pytest.approx(100 * second.mean(), abs=7)
    assert second[rows].all()


def test_noise_images_are_not_taken_for_another_reading(e, tmp_path):
    images = e.images.copy()
    noise = np.random.default_rng(6).random(N) < 0.4
    images[noise] = images.std() * np.random.default_rng(7).standard_normal(images[noise].shape)
    write_inputs(tmp_path, replace(e, images=images))
    assert not any("do not" in text.replace("do not show the particle", "") for text in found(tmp_path).said)
