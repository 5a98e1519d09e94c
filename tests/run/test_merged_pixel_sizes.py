"""Optics groups of several pixel sizes: a phantom imaged at other samplings in closed form, whole runs, RELION."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from experiments import OPTICS, contrast_of, experiment, write_inputs
from oracles import Phantom, ctf_formula, full_frequencies, imaged, shell_correlation
from particle_files import BOX as SMALL_BOX
from particle_files import Inputs, write_mrc
from relion_files import read_columns, read_poses
from relion_programs import relion
from run_results import poses_of
from spoil import check

from localrefine_plugin.engine.io.mrc import ImageReader
from localrefine_plugin.engine.io.relion_particles import read_particles, write_particles
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.io.run_store import load_particles
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.model.ctf import CtfOnPixels
from localrefine_plugin.engine.prepare.recentre import recentre, restore
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

BOX, PIXEL_SIZE, PARTICLES, NOISE = 36, 3.0, 300, 0.3
MADE = dict(box=BOX, pixel_size=PIXEL_SIZE, centre=(6.0, -4.0, 3.0), sigma=1.0, seed=6)
ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")


def resampled(phantom, factor):
    """The phantom in pixels ``factor`` times as large, its line integrals still those in voxels of before."""
    return Phantom(phantom.points / factor, phantom.amplitudes * factor, phantom.sigma / factor)


def merged(factor):
    """`experiment` whose every second pair of particles is imaged in pixels ``factor`` times as large, group 2."""
    e = experiment(PARTICLES, **MADE)
    group = (np.arange(PARTICLES) // 2 % 2).astype(np.int32)
    one = e.particles.optics[0]
    other = replace(one, name="two", pixel_size=factor * PIXEL_SIZE)
    clean = imaged(e.phantom.projections(e.rotation, e.shift, BOX), contrast_of(e.particles))
    at_other = replace(e.particles, optics=(other,))
    small = imaged(resampled(e.phantom, factor).projections(e.rotation, e.shift / factor, BOX), contrast_of(at_other))
    images = np.where(group[:, None, None] == 1, small, clean)
    images = images + NOISE * np.random.default_rng(3).standard_normal(images.shape)
    particles = replace(e.particles, optics=(one, other), optics_group=group)
    return replace(e, particles=particles, images=images, noise=NOISE)


def files(folder, e, same_pixel_size=False):
    """The files of ``e``; origins are in Å, whatever the pixel size; or all groups are said to have the first's."""
    if same_pixel_size:
        first = e.particles.optics[0].pixel_size
        e = replace(e, particles=replace(e.particles, optics=tuple(
            replace(group, pixel_size=first) for group in e.particles.optics)))
    return write_inputs(folder, e, half_map_noise=0.3)


# ---------------------------------------------------------------- reading and writing

def test_poses_are_in_the_frame_asked_and_pixel_sizes_are_magnifications(tmp_path):
    e = merged(1.02)
    star = files(tmp_path, e)[0]
    for frame in (PIXEL_SIZE, 1.02 * PIXEL_SIZE, 2.95):
        p, table = read_particles(star, pixel_size=frame)
        assert p.pixel_size == frame and {group.pixel_size for group in p.optics} == {frame}
        np.testing.assert_allclose(p.shift_px * frame, e.particles.shift_px * PIXEL_SIZE, atol=1e-6)
        for group, own in zip(p.optics, (PIXEL_SIZE, 1.02 * PIXEL_SIZE)):
            np.testing.assert_allclose(group.magnification, [frame / own, 0, 0, frame / own], rtol=1e-6)
        write_particles(tmp_path / "again.star", table, p.rotation, p.shift_px)
        again = read_columns(tmp_path / "again.star", ORIGINS)
        np.testing.assert_allclose(again, read_columns(star, ORIGINS), atol=2e-6)


def test_without_a_frame_it_is_that_of_most_particles(tmp_path):
    e = merged(1.02)
    p = replace(e.particles, optics_group=np.where(np.arange(PARTICLES) < 40, 0, 1).astype(np.int32))
    star = files(tmp_path, replace(e, particles=p))[0]
    assert read_particles(star)[0].pixel_size == pytest.approx(1.02 * PIXEL_SIZE)


def test_pixel_sizes_that_differ_by_rounding_are_one(tmp_path):
    e = merged(1.0005)
    p, table = read_particles(files(tmp_path, e)[0], pixel_size=2.0)
    assert p.pixel_size == PIXEL_SIZE and table.distortion is None


@pytest.mark.parametrize("factor", [0.96, 1.05])
def test_the_ctf_is_that_of_each_groups_own_pixel_size(tmp_path, factor):
    e = merged(factor)
    p, _ = read_particles(files(tmp_path, e)[0], pixel_size=PIXEL_SIZE)
    kx, ky = full_frequencies(BOX)
    ours = CtfOnPixels(p, kx.ravel(), ky.ravel(), CPU.to_device)(np.arange(8)).reshape(8, *kx.shape)
    for i in range(8):
        defocus = {name: getattr(p, name)[i] for name in ("defocus_u", "defocus_v", "defocus_angle")}
        own = PIXEL_SIZE * (factor if p.optics_group[i] else 1)
        theirs = ctf_formula(kx, ky, BOX, own, phase_shift=0.0, **defocus, **OPTICS)
        np.testing.assert_allclose(ours[i], theirs, atol=1e-3)  # phases of 100 rad in 32-bit floats


# ---------------------------------------------------------------- whole runs

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """name → (run, median errors of rotation in degrees and of the projected centre in px, FSC to the truth)."""
    folder, found = tmp_path_factory.mktemp("merged"), {}
    settings = Settings(marginalize=False, max_iterations=2, non_uniform=False)
    for name, (factor, same) in {"equal": (1.0, False), "two": (1.02, False), "five": (0.95, False),
                                 "ignored": (0.95, True)}.items():
        e = merged(factor)
        run = refine(*files(folder / name, e, same), str(folder / name / "run"), settings, threads=1)
        w, moved = e.errors(SimpleNamespace(**dict(zip(("rotation", "shift_px"), poses_of(run, 2)))))
        fsc = shell_correlation(mrcfile.read(run.final("map.mrc")) * e.mask, e.phantom.density(BOX) * e.mask)
        found[name] = run, np.median(np.linalg.norm(w, axis=1)), np.median(np.linalg.norm(moved, axis=1)), fsc
    return found


@pytest.mark.parametrize("name", ["two", "five"])
def test_a_merged_set_reaches_the_map_of_an_equal_one(runs, name):
    (_, turn, move, fsc), (run, turn_m, move_m, fsc_m) = runs["equal"], runs[name]
    last = int(0.8 * BOX / 2)
    assert turn_m < 1.1 * turn and move_m < 1.1 * move
    assert fsc_m[1:last + 1].min() > fsc[1:last + 1].min() - 0.01
    maps = [mrcfile.read(r.final("map.mrc")) * experiment(2, **MADE).mask for r in (run, runs["equal"][0])]
    assert shell_correlation(*maps)[1:last + 1].min() > 0.95  # of other noise
    with mrcfile.open(run.final("map.mrc")) as mrc:
        assert float(mrc.voxel_size.x) == pytest.approx(PIXEL_SIZE)


def test_a_pixel_size_that_is_ignored_costs_what_it_must(runs):
    """The test above would see it: 5 % off, the poses of half of the particles are wrong."""
    (_, turn_m, move_m, fsc_m), (_, turn_i, move_i, fsc_i) = runs["five"], runs["ignored"]
    assert move_i > 1.3 * move_m and turn_i > 1.1 * turn_m
    assert fsc_i[int(0.8 * BOX / 2)] < fsc_m[int(0.8 * BOX / 2)] - 0.02


def test_it_is_said_and_nothing_else_is(runs):
    warnings = read_json(runs["two"][0].input)["warnings"]
    text, = [text for text in warnings if "pixel sizes of 3 and 3.06 Å" in text]
    assert "scaled about its centre to the 3 Å of the half-maps" in text
    others = [read_json(runs["equal"][0].input)["warnings"], [w for w in warnings if w != text]]
    one, two = (sorted(re.sub(r"-?\d+\.\d standard deviations, \d+", "…", w.replace("equal", "two")) for w in texts)
                for texts in others)
    assert one == two


def test_the_final_particles_keep_each_rows_columns(runs):
    run = runs["five"][0]
    best = read_json(run.iteration_done(2))["best_iteration"]
    rotation, shift = read_poses(run.final("particles.star"), PIXEL_SIZE)  # Å / pixel size of the frame
    expected = poses_of(run, best)
    np.testing.assert_allclose(shift, expected[1], atol=1e-5)
    np.testing.assert_allclose(rotation, expected[0], atol=1e-6)
    p, table = read_particles(run.final("particles.star"), pixel_size=PIXEL_SIZE)
    np.testing.assert_allclose(np.unique(table.pixel_size), [0.95 * PIXEL_SIZE, PIXEL_SIZE])
    np.testing.assert_array_equal(p.optics_group, load_particles(run).optics_group)


@pytest.mark.parametrize("name", ["two", "five"])
def test_relion_reconstruct_of_the_final_particles_is_our_half_map(runs, tmp_path, name):
    """RELION 3.1.3 scales each group to the pixel size of the first, which is that of the half-maps."""
    run, e = runs[name][0], experiment(2, **MADE)
    star = run.final("particles.star").read_text()
    for half in (1, 2):
        star = star.replace(f"@half_{half}.mrcs", f"@{run.path.parent}/half_{half}.mrcs")
    (tmp_path / "particles.star").write_text(star)
    relion("relion_reconstruct", tmp_path, "--i", "particles.star", "--o", "r.mrc", "--subset", 1, "--ctf")
    ours, theirs = mrcfile.read(run.final("half_map_1.mrc")) * e.mask, mrcfile.read(tmp_path / "r.mrc") * e.mask
    assert shell_correlation(ours, theirs)[1:int(0.75 * BOX / 2) + 1].min() >= 0.98
    assert np.vdot(ours, theirs) / np.vdot(theirs, theirs) == pytest.approx(1, abs=0.05)


# ---------------------------------------------------------------- re-centring

def test_re_centring_and_the_way_back(tmp_path):
    """The centre of the sub-volume comes to the centre of every image, by each group's own pixels; and back exactly."""
    e = merged(0.95)
    at_truth = replace(e, particles=replace(e.particles, rotation=e.rotation, shift_px=e.shift))
    star, half_1, _, mask = files(tmp_path, at_truth)
    point = [int(c) + BOX // 2 for c in e.centre]
    recentre(star, tmp_path / "there", {"half_map_1": half_1, "mask": mask}, point_px=point)
    p, table = read_particles(tmp_path / "there" / "particles.star", pixel_size=PIXEL_SIZE)
    assert np.abs(p.shift_px).max() <= 0.5 / 0.95 + 1e-3  # half a pixel of the image, in pixels of the frame
    with ImageReader(p) as reader:
        images = reader.read(np.arange(PARTICLES))
    about = e.phantom.points - e.centre
    factor = np.where(p.optics_group == 1, 0.95, 1.0)
    clean = np.array([resampled(replace(e.phantom, points=about), f).projections(r[None], s[None] / f, BOX)[0]
                      for r, s, f in zip(p.rotation, p.shift_px, factor)])
    made = replace(p, optics=tuple(replace(g, pixel_size=s, magnification=(1.0, 0.0, 0.0, 1.0))
                                   for g, s in zip(p.optics, (PIXEL_SIZE, 0.95 * PIXEL_SIZE))))
    for g in (0, 1):
        rows = np.flatnonzero(p.optics_group == g)
        contrast = contrast_of(replace(made.take(rows), optics=(made.optics[g],)))
        expected = imaged(clean[rows], contrast)
        inner = slice(9, BOX - 9)
        difference = (images[rows] - expected)[:, inner, inner]
        assert difference.std() == pytest.approx(NOISE, rel=0.05)
    there = tmp_path / "there" / "particles.star"
    for action in (recentre, restore):
        with pytest.raises(InputError, match="several pixel sizes, .* give a map or a mask"):
            action(there, tmp_path / "nowhere", {})
    restore(there, tmp_path / "back", {"half_map_1": tmp_path / "there" / "half_map_1.mrc"})
    np.testing.assert_allclose(read_columns(tmp_path / "back" / "particles.star", ORIGINS),
                               read_columns(star, ORIGINS), atol=3e-6)


# ---------------------------------------------------------------- groups of several boxes

def test_several_boxes_are_refused_with_the_command_that_mends_them(tmp_path, monkeypatch):
    program = require_program("relion_image_handler")
    inputs = Inputs(tmp_path)
    larger = np.random.default_rng(1).standard_normal((6, SMALL_BOX + 2, SMALL_BOX + 2)).astype(np.float32)
    write_mrc(inputs.stacks[1], larger)
    inputs.optics = inputs.optics.replace("200 2.0 16", "200 2.0 18")
    inputs.write_star()
    monkeypatch.chdir(tmp_path)
    inputs.star = inputs.star.relative_to(tmp_path)
    with pytest.raises(InputError, match="several box sizes, 16 and 18 px") as caught:
        check(inputs)
    command = caught.value.remedy.split(": ")[1].split()
    assert command[0] == "relion_image_handler"
    subprocess.run([program, *command[1:]], check=True, stdout=subprocess.DEVNULL)
    inputs.star = inputs.star.with_name("particles_cropped.star")
    p = check(inputs).particles
    with ImageReader(p) as reader:
        np.testing.assert_allclose(reader.read(np.arange(6, 12)), larger[:, 1:-1, 1:-1], atol=1e-6)
