"""Scipion sets whose poses, images and maps do not belong together: set → our converter → the checks of the engine.

In a set a wrong pairing is more likely than in a file: items are joined by id, matrices are inverse in some programs.
"""
from __future__ import annotations

from dataclasses import replace

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from experiments import write_inputs
from relion_programs import relion
from scipion_data import make_acquisition
from scipion_sets import new_set
from test_belonging import PIXEL_SIZE, found, other_tilt, reordered, with_poses
from test_parts import N, chosen, good_set, some_inverted
from test_placed import noise_images, permuted, shifted_names

from localrefine_plugin import convert
from localrefine_plugin.engine.records.errors import InputError

e = pytest.fixture(scope="module", name="e")(good_set)
SPOILS = {
    "every item has the matrix of the next": (reordered(np.roll(np.arange(N), 1)), "fits the pose of the next row"),
    "matrices of other items": (reordered(np.random.default_rng(3).permutation(N)), "fit the poses of other rows"),
    "matrices exchanged among 30 %": (reordered(permuted(chosen(0.3))), "poses: are mixed up with images: about"),
    "matrices 7 items away for 30 %": (reordered(shifted_names(60, 150, 7)), "7 rows above"),
    "inverse matrices": (lambda e: with_poses(e, np.swapaxes(e.particles.rotation, 1, 2)), "the inverse rotations"),
    "another frame": (other_tilt, "fit with 180° − tilt"),
    "shifts of the other sign": (lambda e: with_poses(e, shift=-e.particles.shift_px), "opposite sign of the origins"),
    "30 % of the other contrast": (lambda e: some_inverted(e, chosen(0.3)), "they have the opposite contrast"),
}


def as_set(folder, e, places=None):
    """Files of the experiment, with a Scipion set of its particles converted in the place of the particle file.

    ``places`` (n, 2): of the particles on one micrograph, px.
    """
    from pwem.objects import Coordinate, CTFModel, Particle, Transform
    from pyworkflow.object import Integer
    write_inputs(folder, e)
    stack = str(folder / "images.mrcs")
    with mrcfile.new(stack, e.images) as mrc:
        mrc.voxel_size = PIXEL_SIZE
    particles = new_set(folder)
    particles.setSamplingRate(PIXEL_SIZE)
    particles.setAcquisition(make_acquisition())
    particles.setHasCTF(True)
    particles.setAlignmentProj()
    p = e.particles
    for i in range(len(p)):
        pose = np.eye(4)  # image ← volume; a set holds the inverse
        pose[:3, :3], pose[:2, 3] = p.rotation[i], p.shift_px[i]
        item = Particle()
        item.setLocation(i + 1, stack)
        item.setSamplingRate(PIXEL_SIZE)
        item.setTransform(Transform(matrix=np.linalg.inv(pose)))
        item.setCTF(CTFModel(defocusU=float(p.defocus_u[i]), defocusV=float(p.defocus_v[i]),
                             defocusAngle=float(p.defocus_angle[i])))
        item.setAcquisition(make_acquisition())
        item._rlnRandomSubset = Integer(int(p.half_set[i]))
        if places is not None:
            item.setCoordinate(Coordinate(x=int(places[i][0]), y=int(places[i][1])))
            item.getCoordinate().setMicName("micrograph.mrc")
            item.getCoordinate().setMicId(1)
        particles.append(item)
    particles.write()
    (folder / "particles.star").unlink()
    convert.write_particles(particles, str(folder / "particles.star"), str(folder / "stacks"))


def said_of(folder, *of_set):
    as_set(folder, *of_set)
    return found(folder).said


def without_half_maps(monkeypatch):
    """The phantom's half-maps are not made of the images."""
    monkeypatch.setattr("localrefine_plugin.engine.inputs.belonging.check_half_maps", lambda *_: [])


@pytest.mark.parametrize("case", SPOILS)
def test_a_set_that_does_not_belong_is_refused_with_the_mistake(e, tmp_path, monkeypatch, case):
    without_half_maps(monkeypatch)
    spoil, words = SPOILS[case]
    with pytest.raises(InputError, match=words):
        said_of(tmp_path, spoil(e))


def test_a_good_set_passes_without_a_word(e, tmp_path, monkeypatch):
    without_half_maps(monkeypatch)
    assert said_of(tmp_path, e) == ()


def with_copies(e, images=lambda copies: copies):
    """The first 20 particles again at the end, in the other half-set; ``images`` of the copies from theirs."""
    row = np.r_[np.arange(N), np.arange(20)]
    particles = e.particles.take(row)
    half_set = np.where(np.arange(len(row)) < N, particles.half_set, 3 - particles.half_set)
    return replace(e, particles=replace(particles, half_set=half_set),
                   images=np.concatenate([e.images, images(e.images[:20])]))


def test_the_same_images_in_both_half_sets_of_a_set_are_refused(e, tmp_path, monkeypatch):
    without_half_maps(monkeypatch)
    with pytest.raises(InputError, match="hold the same pixels"):
        said_of(tmp_path, with_copies(e))


def test_items_of_one_place_of_a_micrograph_in_both_half_sets_are_refused(e, tmp_path, monkeypatch):
    """Extracted anew: other pixels, coordinates a pixel away."""
    without_half_maps(monkeypatch)
    noise = 0.3 * e.noise * np.random.default_rng(1).standard_normal(e.images[:20].shape)
    again = with_copies(e, lambda images: (images + noise).astype(np.float32))
    apart = 200 * np.stack([np.arange(N) % 15, np.arange(N) // 15], axis=1)
    with pytest.raises(InputError, match="40 of 320 particles lie within 20 Å of each other"):
        said_of(tmp_path, again, np.concatenate([apart, apart[:20] + 1]))


def test_noise_in_a_set_is_said(e, tmp_path, monkeypatch):
    without_half_maps(monkeypatch)
    said = said_of(tmp_path, noise_images(e, chosen(0.3)))
    assert len(said) == 1 and "By their power they are noise" in said[0]


def test_exchanged_half_maps_of_a_set_are_refused_and_exchanged_as_set(e, tmp_path):
    """The half-maps are those of the converted set."""
    require_program("relion_reconstruct")
    as_set(tmp_path, e)
    for half in (1, 2):
        relion("relion_reconstruct", tmp_path, "--i", "particles.star", "--o", f"input_{3 - half}.mrc", "--ctf",
               "--subset", half)
    with pytest.raises(InputError, match="seem to be exchanged"):
        found(tmp_path)
    assert found(tmp_path, exchange_half_maps=True).said == ()
