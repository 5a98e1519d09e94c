"""RELION 3.1.3 as a client of a run folder, without Scipion: its programs on final/particles.star and the maps."""
from __future__ import annotations

import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from relion_files import read_poses
from scipion_data import soft_ball

from examples import evaluate, simulate
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.io.star import read_star, write_star
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.refine import refine

OPTIONS = simulate.Options(particles=80, box_size=32, pixel_size=9.0, snr=2.0, threads=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of one iteration on simulated images, each inserted once, as RELION does. It lies in the folder
    that the image names start from: RELION's programs must be started there."""
    data = tmp_path_factory.mktemp("clients")
    simulate.simulate(data, OPTIONS)
    tables = read_star(data / "particles.star")
    rows = next(i for i, table in enumerate(tables) if table.name == "particles")
    place = list(range(0, 40 * OPTIONS.particles, 40))
    tables[rows] = tables[rows].with_columns({"rlnCoordinateX": place, "rlnCoordinateY": place})
    write_star(data / "particles.star", tables)
    refine(str(data / "particles.star"), str(data / "half1.mrc"), str(data / "half2.mrc"), str(data / "mask_B.mrc"),
           str(data / "run"), Settings(max_iterations=1, marginalize=False), device="cpu", threads=1)
    for name in ("post", "class3d", "subtracted", "ctf"):
        (data / name).mkdir()
    return data


def relion(folder: Path, program: str, *arguments: object) -> None:
    found = subprocess.run([require_program(program), *map(str, arguments)], cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-1000:] + found.stderr[-2000:]


def final(folder: Path, name: str) -> Path:
    return folder / "run" / "final" / name


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


@pytest.mark.parametrize("half", [1, 2])
def test_relion_reconstruct_makes_our_half_map_of_our_table(run, half):
    relion(run, "relion_reconstruct", "--i", final(run, "particles.star"), "--o", f"half{half}.mrc", "--ctf",
           "--subset", half)
    ours, theirs = (evaluate.read_map(path) for path in (final(run, f"half_map_{half}.mrc"), run / f"half{half}.mrc"))
    curve = evaluate.fsc(ours, theirs, soft_ball(OPTIONS.box_size, 10, 4))  # RELION masks the corners of the box
    assert curve[1:14].min() > 0.95, curve


def test_relion_postprocess_takes_half_maps_and_mask(run):
    relion(run, "relion_postprocess", "--i", final(run, "half_map_1.mrc"), "--i2", final(run, "half_map_2.mrc"),
           "--mask", final(run, "mask.mrc"), "--angpix", OPTIONS.pixel_size, "--o", "post/post")
    tables = {table.name: table for table in read_star(run / "post" / "post.star")}
    theirs = np.array(tables["fsc"].texts(["rlnFourierShellCorrelationMaskedMaps"])[
        "rlnFourierShellCorrelationMaskedMaps"], dtype=float)
    ours = next(table for table in read_star(final(run, "fsc.star")) if table.name == "fsc")
    masked = np.array(ours.texts(["rlnFourierShellCorrelationMaskedMaps"])["rlnFourierShellCorrelationMaskedMaps"],
                      dtype=float)
    np.testing.assert_allclose(masked[:12], theirs[1:13] if len(theirs) > len(masked) else theirs[:12], atol=0.02)


@pytest.fixture(scope="module")
def classified(run):
    """3D classification without alignment, two classes, on our table; its optimiser starts subtraction."""
    relion(run, "relion_refine", "--i", final(run, "particles.star"), "--o", "class3d/run", "--ref",
           final(run, "map.mrc"), "--K", 2, "--iter", 1, "--skip_align", "--ctf", "--particle_diameter", 200, "--norm",
           "--scale", "--ini_high", 30, "--firstiter_cc", "--flatten_solvent", "--zero_mask", "--tau2_fudge", 4,
           "--pad", 2, "--j", 1)
    return run / "class3d"


def test_relion_classifies_without_alignment_and_leaves_our_poses(run, classified):
    rotation, shift = read_poses(classified / "run_it001_data.star", OPTIONS.pixel_size)
    ours, ours_shift = read_poses(final(run, "particles.star"), OPTIONS.pixel_size)
    assert len(rotation) == OPTIONS.particles
    # RELION sorts its table by micrograph name, which is our order; angles are written with six digits
    assert np.abs(rotation - ours).max() < 1e-5 and np.abs(shift - ours_shift).max() < 1e-3


def test_relion_subtracts_and_the_next_local_refinement_takes_it(run, classified):
    """Poses, half-sets and CTF of the subtracted particles are accepted; their images are new."""
    relion(run, "relion_particle_subtract", "--i", "class3d/run_it001_optimiser.star", "--mask",
           final(run, "mask.mrc"), "--o", "subtracted/")
    star = run / "subtracted" / "particles_subtracted.star"
    checked = in_folder(run, lambda: check_inputs(star, final(run, "half_map_1.mrc"), final(run, "half_map_2.mrc"),
                                                  final(run, "mask.mrc"), Settings()))
    before, _ = read_particles(final(run, "particles.star"))
    assert np.abs(checked.particles.rotation - before.rotation).max() < 1e-5
    assert (checked.particles.half_set == before.half_set).all()
    with mrcfile.open(next((run / "subtracted").rglob("*.mrcs")), permissive=True) as handle:
        less = np.array(handle.data)
    with mrcfile.open(run / "particles.mrcs", permissive=True) as handle:
        whole = np.array(handle.data)
    assert less.shape == whole.shape and 0.3 < correlation(less, whole) < 0.999


def in_folder(folder, function):
    import os
    here = os.getcwd()
    os.chdir(folder)
    try:
        return function()
    finally:
        os.chdir(here)


def test_relion_ctf_refine_takes_our_table_and_its_optics_come_back(run):
    """Beam tilt, trefoil and 4th order in RELION's optics table; defocus and rows are as before."""
    relion(run, "relion_postprocess", "--i", final(run, "half_map_1.mrc"), "--i2", final(run, "half_map_2.mrc"),
           "--mask", final(run, "mask.mrc"), "--angpix", OPTIONS.pixel_size, "--o", "ctf/post")
    relion(run, "relion_ctf_refine", "--i", final(run, "particles.star"), "--o", "ctf/", "--f", "ctf/post.star",
           "--m1", final(run, "half_map_1.mrc"), "--m2", final(run, "half_map_2.mrc"), "--mask",
           final(run, "mask.mrc"), "--angpix_ref", OPTIONS.pixel_size, "--fit_beamtilt", "--kmin_tilt", 60,
           "--odd_aberr_max_n", 3, "--fit_aberr", "--j", 1)
    star = run / "ctf" / "particles_ctf_refine.star"
    text = star.read_text()
    assert "_rlnOddZernike" in text and "_rlnEvenZernike" in text
    after, before = in_folder(run, lambda: read_particles(star)[0]), read_particles(final(run, "particles.star"))[0]
    assert len(after) == len(before)
    assert np.abs(np.sort(after.defocus_u) - np.sort(before.defocus_u)).max() < 0.1


def test_half_maps_without_half_sets_need_the_explicit_resplit(run):
    tables = read_star(final(run, "particles.star"))
    for table in tables:
        if table.name == "particles":
            column = table.labels.index("rlnRandomSubset")
            table.lines[:] = [" ".join(word for i, word in enumerate(line.split()) if i != column)
                              for line in table.lines]
            table.labels.pop(column)
    star = run / "no_halves.star"
    write_star(star, tables)
    maps = [final(run, name) for name in ("half_map_1.mrc", "half_map_2.mrc", "mask.mrc")]
    with pytest.raises(InputError, match="rlnRandomSubset"):
        check_inputs(star, *maps, Settings())
    checked = check_inputs(star, *maps, Settings(resplit_half_sets=True))
    assert any("split anew" in text for text in checked.warnings)
    assert set(checked.particles.half_set) == {1, 2}
