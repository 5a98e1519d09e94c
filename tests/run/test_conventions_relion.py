"""Conventions against RELION 3.1: its projections are aligned back to their poses, its reconstruction is our map."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from experiments import OPTICS, experiment, write_inputs
from oracles import angle_between_deg, shell_correlation
from relion_files import read_poses, write_map, write_star

from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.records.particles import OpticsGroup
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

BOX, PIXEL_SIZE, PARTICLES = 40, 3.0, 800


def relion(program, folder, *arguments):
    subprocess.run([require_program(program), *map(str, arguments)], cwd=folder, check=True, capture_output=True)


def relion_images(folder, e):
    """The experiment with RELION's images of its phantom at its true poses, and the same noise."""
    folder.mkdir(exist_ok=True)
    write_map(folder / "phantom.mrc", e.phantom.density(e.box), e.particles.pixel_size)
    write_star(folder / "truth.star", e.particles, "none.mrcs", e.rotation, e.shift)
    relion("relion_project", folder, "--i", "phantom.mrc", "--ang", "truth.star", "--o", "projected", "--ctf")
    images = mrcfile.read(folder / "projected.mrcs").astype(float)
    noise = e.noise * np.random.default_rng(8).standard_normal(images.shape)
    return replace(e, images=images + noise)


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """(experiment, run): RELION's images with little noise, two optics groups, poses off by 4.6° and 1 px."""
    require_program("relion_project")
    folder = tmp_path_factory.mktemp("relion")
    e = experiment(PARTICLES, box=BOX, pixel_size=PIXEL_SIZE, noise=0.3, seed=9, sigma=1.0)
    groups = tuple(
        OpticsGroup(name, pixel_size=PIXEL_SIZE, box_size=BOX, **dict(OPTICS, voltage_kv=kv))
        for name, kv in (("a", 300.0), ("b", 200.0))
    )
    particles = replace(
        e.particles,
        optics=groups,
        optics_group=(np.arange(PARTICLES) // 5 % 2).astype(np.int32),
        phase_shift=np.where(np.arange(PARTICLES) % 3, 0.0, 40.0),
    )
    e = relion_images(folder, replace(e, particles=particles))
    run = refine(
        *write_inputs(folder, e, half_map_noise=0.3),
        str(folder / "run"),
        Settings(marginalize=False, max_iterations=3),
        threads=1,
    )
    return e, run


def test_images_of_relion_project_are_aligned_back_to_their_poses(refined):
    """Euler angles, sign and unit of origins, CTF with phase plate, two microscopes: one wrong, nothing aligns."""
    e, run = refined
    rotation, shift = read_poses(run.final("particles.star"), PIXEL_SIZE)
    angle = angle_between_deg(e.rotation, rotation)
    moved = np.linalg.norm((rotation - e.rotation)[:, :2] @ e.centre + shift - e.shift, axis=1)
    assert np.median(angle_between_deg(e.rotation, e.particles.rotation)) > 4
    assert np.median(angle) < 1.0
    assert np.median(moved) * PIXEL_SIZE < 0.2


def test_relion_reconstruct_of_our_poses_is_our_half_map(refined, tmp_path):
    """FSC ≥ 0.99 inside the mask to the reported resolution, and the same grey scale, for both half-sets.

    The last fifth before Nyquist is left out: there the phantom is weak and the interpolation kernels differ.
    """
    e, run = refined
    resolution = read_json(run.iteration_done(run.iterations_done()))["resolution_angstrom"]["corrected"]
    last = min(int(BOX * PIXEL_SIZE / resolution), int(0.8 * BOX / 2))
    assert last == int(0.8 * BOX / 2)
    star = run.final("particles.star").read_text()
    for half in (1, 2):
        stack = run.path.parent / f"half_{half}.mrcs"
        star = star.replace(f"@half_{half}.mrcs", f"@{stack}")
    (tmp_path / "particles.star").write_text(star)
    for half in (1, 2):
        relion(
            "relion_reconstruct",
            tmp_path,
            "--i",
            "particles.star",
            "--o",
            f"relion_{half}.mrc",
            "--subset",
            half,
            "--ctf",
            "--pad",
            2,
        )
        ours, theirs = (
            mrcfile.read(run.final(f"half_map_{half}.mrc")) * e.mask,
            mrcfile.read(tmp_path / f"relion_{half}.mrc") * e.mask,
        )
        assert shell_correlation(ours, theirs)[1 : last + 1].min() >= 0.99
        assert np.vdot(ours, theirs) / np.vdot(theirs, theirs) == pytest.approx(1, abs=0.03)
