"""Whole refinements of particles in two optics groups with different aberrations, from and to RELION's files."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
from aberrations import NONE, STRONG, aberrated, image_shifts, star_columns
from conftest import require_program
from experiments import write_inputs
from oracles import shell_correlation
from relion_files import read_poses
from relion_programs import relion
from run_results import poses_of

from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine.inputs.belonging import Belonging
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.star import read_star
from localrefine_plugin.engine.prepare.prepare import prepare
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

BOX, PIXEL_SIZE, PARTICLES = 36, 3.0, 300
MADE = dict(box=BOX, pixel_size=PIXEL_SIZE, centre=(6.0, -4.0, 3.0), sigma=1.0, noise=0.3, seed=6, wider_shifts=4.0)


def inputs_of(folder, e, aberrations):
    """The files of ``e``; the STAR file says ``aberrations``, its origins are the images' own."""
    said = replace(e.particles, shift_px=image_shifts(e.particles, e.particles.shift_px, aberrations))
    return write_inputs(folder, replace(e, particles=said), half_map_noise=0.3,
                        optics_columns=star_columns(aberrations))  # fmt: skip


def refined(folder, e, aberrations):
    settings = Settings(marginalize=False, max_iterations=2, non_uniform=False)
    return refine(*inputs_of(folder, e, aberrations), str(folder / "run"), settings, threads=1)


def quality(e, run):
    """Median errors of rotation (degrees) and projected centre (px) in the last iteration, and FSC of the map to the
    truth per shell."""
    w, moved = e.errors(SimpleNamespace(**dict(zip(("rotation", "shift_px"), poses_of(run, 2)))))
    fsc = shell_correlation(mrcfile.read(run.final("map.mrc")) * e.mask, e.phantom.density(BOX) * e.mask)
    return np.median(np.linalg.norm(w, axis=1)), np.median(np.linalg.norm(moved, axis=1)), fsc


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """name → (run, quality): images without aberrations, with them and modelled, with them and ignored."""
    folder, found = tmp_path_factory.mktemp("optics"), {}
    for name, made, said in (("plain", NONE, NONE), ("modelled", STRONG, STRONG), ("ignored", STRONG, NONE)):
        made, said = ((a, a) if a is NONE else a for a in (made, said))
        e = aberrated(PARTICLES, made, **MADE)
        with pytest.MonkeyPatch.context() as patch:
            if name == "ignored":  # a group whose aberrations are not modelled is refused, and not refined
                with pytest.raises(InputError, match="optics group g1: does not fit the half-maps at its poses"):
                    refined(folder / "refused", e, said)
                patch.setattr(engine, "prepare", partial(engine.prepare, belong=lambda inputs, *_: Belonging(
                    (), (1.0,) * len(inputs.particles.optics))))
            run = refined(folder / name, e, said)
        found[name] = run, quality(e, run), e
    return found


def test_modelled_aberrations_cost_nothing_and_ignored_ones_do(runs):
    (turn, move, fsc), (turn_m, move_m, fsc_m), (turn_i, move_i, fsc_i) = (runs[n][1] for n in runs)
    last = int(0.8 * BOX / 2)
    assert turn_m < 1.1 * turn and move_m < 1.1 * move
    assert fsc_m[1 : last + 1].min() > fsc[1 : last + 1].min() - 0.01
    assert turn_i > 1.5 * turn_m and move_i > 2 * move_m
    assert fsc_i[last] < fsc_m[last] - 0.05


def test_the_first_look_finds_the_grey_scale_through_aberrations(tmp_path):
    """At the true poses it is 1; without the matrices in the slices it would be 0.97."""
    e = aberrated(PARTICLES, **MADE)
    at_truth = replace(e, particles=replace(e.particles, rotation=e.rotation, shift_px=e.shift))
    run = prepare(*inputs_of(tmp_path, at_truth, STRONG), str(tmp_path / "run"), Settings(), threads=1)
    assert read_json(run.input)["grey_scale"] == pytest.approx([1, 1], abs=0.01)


def test_nothing_warns_of_what_is_modelled(runs):
    warnings = " ".join(read_json(runs["modelled"][0].input)["warnings"])
    assert "not modelled" not in warnings


def test_origins_of_the_final_particles_are_shifts_of_the_images(runs):
    run, _, e = runs["modelled"]
    rotation, shift = read_poses(run.final("particles.star"), PIXEL_SIZE)
    expected = poses_of(run, read_json(run.iteration_done(2))["best_iteration"])
    np.testing.assert_allclose(shift, image_shifts(e.particles, expected[1], STRONG), atol=1e-5)
    np.testing.assert_allclose(rotation, expected[0], atol=1e-6)


def test_aberrations_survive_into_the_final_particles(runs):
    run = runs["modelled"][0]
    before, after = (
        {t.name: t for t in read_star(path)}["optics"].texts(list(star_columns(STRONG)))
        for path in (read_json(run.input)["particles"], run.final("particles.star"))
    )
    assert before == after == star_columns(STRONG)


def test_relion_reconstruct_of_the_final_particles_is_our_half_map(runs, tmp_path):
    """With M, tilt, trefoil and even Zernike in data_optics: FSC inside the mask, and the grey scale.

    Without aberrations the FSC of these few images is 0.991 at the last shell looked at, with them 0.987.
    """
    require_program("relion_reconstruct")
    run, _, e = runs["modelled"]
    star = run.final("particles.star").read_text()
    for half in (1, 2):
        star = star.replace(f"@half_{half}.mrcs", f"@{run.path.parent}/half_{half}.mrcs")
    (tmp_path / "particles.star").write_text(star)
    relion("relion_reconstruct", tmp_path, "--i", "particles.star", "--o", "r.mrc", "--subset", 1, "--ctf")
    ours, theirs = mrcfile.read(run.final("half_map_1.mrc")) * e.mask, mrcfile.read(tmp_path / "r.mrc") * e.mask
    assert shell_correlation(ours, theirs)[1 : int(0.75 * BOX / 2) + 1].min() >= 0.98
    assert np.vdot(ours, theirs) / np.vdot(theirs, theirs) == pytest.approx(1, abs=0.05)
