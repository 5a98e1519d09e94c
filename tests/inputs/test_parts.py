"""Parts of the images that differ, found without a column that tells them apart; and halves that differ."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import require_program
from experiments import contrast_of, experiment, inputs_of, write_inputs
from oracles import imaged
from relion_programs import relion
from test_belonging import found, maps_changed, other_tilt, reordered, share_and_rows, with_poses

from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.inputs.grey_scales import clusters_of
from localrefine_plugin.engine.inputs.samples import sample_of
from localrefine_plugin.engine.io.run_store import load_particles
from localrefine_plugin.engine.prepare.prepare import prepare
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

N = 300


def good_set():
    """Of poses that are known to 1°, defoci that differ by two, and maps to 9 Å: what a refinement gives."""
    rng = np.random.default_rng(7)
    one = experiment(N, noise=1.0, seed=12, rotation_deg=1.0, displacement_px=0.3,
                     shift_px=3.0)
    defocus = rng.uniform(9000, 22000, N)
    particles = replace(one.particles, defocus_u=defocus + 150, defocus_v=defocus - 150)
    return imaged_anew(replace(one, particles=particles), particles)


e = pytest.fixture(scope="module", name="e")(good_set)


def imaged_anew(e, particles, change=lambda contrast: contrast):
    """With the images of the CTF of ``particles``, changed."""
    clean = imaged(e.phantom.projections(e.rotation, e.shift, e.box), change(contrast_of(particles)))
    noise = e.noise * np.random.default_rng(5).standard_normal(clean.shape)
    return replace(e, images=(clean + noise).astype(np.float32))


def chosen(share, seed=4):
    return np.isin(np.arange(N), np.random.default_rng(seed).permutation(N)[:int(share * N)])


def some_flipped(e, who):
    return imaged_anew(e, e.particles, lambda c: np.where(who[:, None, None], np.abs(c), c))


def some_defocused(factor):
    def spoil(e, who):
        p = e.particles
        scale = np.where(who, factor, 1.0)
        return replace(e, particles=replace(p, defocus_u=p.defocus_u * scale, defocus_v=p.defocus_v * scale))
    return spoil


def some_inverted(e, who):
    return replace(e, images=np.where(who[:, None, None], -e.images, e.images))


def some_of(change):
    """The poses of some changed."""
    def spoil(e, who):
        other = change(e).particles
        return with_poses(e, np.where(who[:, None, None], other.rotation, e.particles.rotation),
                          np.where(who[:, None], other.shift_px, e.particles.shift_px))
    return spoil


CASES = {
    "flipped": (some_flipped, "the images fit with flipped phases", 0.1),
    "defocus too large": (some_defocused(1.35), r"they fit with about 0\.[78]\d* times their defocus", 0.2),
    "defocus too small": (some_defocused(0.74), r"they fit with about 1\.[23]\d* times their defocus", 0.2),
    "inverted": (some_inverted, "they have the opposite contrast", 0.1),
    "tilt": (some_of(other_tilt), "180° − tilt", 0.25),
    "signs of origins": (some_of(lambda e: with_poses(e, shift=-e.particles.shift_px)), "opposite sign", 0.3),
}


@pytest.mark.parametrize("case", CASES)
def test_some_images_are_different(e, tmp_path, case):
    """Refused with their share and rows that are of them."""
    spoil, words, share = CASES[case]
    who = chosen(share)
    write_inputs(tmp_path, spoil(e, who))
    with pytest.raises(InputError, match=f"do not all fit the half-maps in the same way.*{words}") as refusal:
        found(tmp_path)
    said, rows = share_and_rows(refusal)
    assert said == pytest.approx(100 * who.mean(), abs=7)
    assert who[rows].all()


def test_few_images_that_are_different_are_said(e, tmp_path):
    who = np.zeros(N, bool)
    who[10:26] = True  # 5 %
    write_inputs(tmp_path, some_inverted(e, who))
    text, = [text for text in found(tmp_path).said if "do not all fit" in text]
    assert "opposite contrast. Invert the contrast of their images" in text and "(rows 11, 1" in text


@pytest.mark.parametrize("spoil", (lambda e: e, lambda e: replace(e, images=e.images + 2 * np.random.default_rng(
    9).standard_normal(e.images.shape))), ids=("good", "noisy"))
def test_images_of_one_kind_pass(e, tmp_path, spoil):
    write_inputs(tmp_path, spoil(e))
    assert not any("fit" in text for text in found(tmp_path).said)


def test_another_ctf_on_the_pixels_of_a_sample_is_that_of_images_read_with_it(e, tmp_path):
    write_inputs(tmp_path, e)
    particles = check_inputs(*inputs_of(tmp_path), Settings()).particles
    other = replace(particles, defocus_u=1.2 * particles.defocus_u, defocus_v=1.2 * particles.defocus_v)
    here = sample_of(particles, np.arange(20), 8)
    there = sample_of(other, np.arange(20), 8, noise_power=here.noise_power)
    changed = here.with_defocus(1.2)
    for name in ("matched", "weight"):
        expected = getattr(there.packed, name)
        np.testing.assert_allclose(getattr(changed.packed, name), expected, atol=1e-3 * np.abs(expected).max())


# ---------------------------------------------------------------- half-sets

def of_half(change):
    def spoil(e):
        return some_of(change)(e, e.particles.half_set == 2)
    return spoil


@pytest.mark.parametrize("spoil, words", (
    (of_half(other_tilt), "half-set 2: does not fit the half-maps as the others do: .* 180° − tilt"),
    (of_half(reordered(np.random.default_rng(3).permutation(N))), "half-set 2: does not fit the half-maps at its po"),
    (of_half(lambda e: with_poses(e, shift=-e.particles.shift_px)), "half-set 2: does not fit .*opposite sign")))
def test_a_half_set_that_does_not_belong_is_named(e, tmp_path, spoil, words):
    write_inputs(tmp_path, spoil(e))
    with pytest.raises(InputError, match=words):
        found(tmp_path)


def test_half_maps_in_two_frames_are_refused_with_the_motion(e, tmp_path):
    write_inputs(tmp_path, e)
    whole = {name: (tmp_path / name).read_bytes() for name in ("input_1.mrc", "mask.mrc")}
    maps_changed(tmp_path, lambda v: np.roll(v, 3, 2))
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="half-maps 1 and 2: are in two frames: .* half-map 2") as refusal:
        found(tmp_path)
    moved = [float(v) for v in str(refusal.value).split("moved by ")[1].split(" px")[0].split(", ")]
    np.testing.assert_allclose(moved, (-3, 0, 0), atol=0.4)


# ---------------------------------------------------------------- grey scales

@pytest.mark.parametrize("factor", (10.0, 0.1, 1.6))
def test_some_images_on_another_grey_scale_are_a_group_of_their_own(e, tmp_path, factor):
    who = chosen(0.2)
    write_inputs(tmp_path / "in", replace(e, images=np.where(who[:, None, None], factor * e.images, e.images)))
    run = prepare(*inputs_of(tmp_path / "in"), str(tmp_path / "run"), Settings(), "cpu", 1)
    particles = load_particles(run)
    np.testing.assert_array_equal(particles.optics_group, who.astype(int))
    assert [group.grey_scale for group in particles.optics] == [1.0, pytest.approx(factor, rel=0.1)]
    text, = [text for text in check_inputs(*inputs_of(tmp_path / "in"), Settings()).warnings if "grey values" in text]
    assert f"{who.sum()} of {N} images (rows {np.flatnonzero(who)[0] + 1}, " in text


@pytest.mark.parametrize("spread", (0.0, 0.02, 0.3, 1.0))
def test_grey_values_of_one_spread_are_not_split(spread):
    rng = np.random.default_rng(2)
    for n in (10, 100, 1000):
        for _ in range(20):
            assert len(clusters_of(np.exp(spread * rng.standard_normal(n)))) == 1


def test_three_grey_scales():
    level = np.exp(0.03 * np.random.default_rng(1).standard_normal(90)) * np.repeat([1.0, 7.0, 0.5], 30)
    found_ = clusters_of(level)
    assert sorted(tuple(sorted(c)) for c in found_) == [tuple(range(30)), tuple(range(30, 60)), tuple(range(60, 90))]


@pytest.mark.parametrize("spoil, words", ((some_inverted, "they have the opposite contrast"),
                                          (some_of(other_tilt), "180° − tilt")))
def test_some_images_are_different_where_the_half_maps_were_made_from_them(tmp_path, spoil, words):
    """Each image agrees with its own half-map by its noise, as it was averaged in: the other half-map tells."""
    require_program("relion_reconstruct")
    bad = imaged_anew(replace(good_set(), noise=2.0), good_set().particles)
    write_inputs(tmp_path, spoil(bad, chosen(0.25)))
    for half in (1, 2):
        relion("relion_reconstruct", tmp_path, "--i", "particles.star", "--o", f"input_{half}.mrc", "--ctf", "--subset",
               half)
    with pytest.raises(InputError, match=f"do not all fit the half-maps in the same way.*{words}"):
        found(tmp_path)
