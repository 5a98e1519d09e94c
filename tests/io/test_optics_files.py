"""Higher-order optics in files: RELION 3.1 and 3.0, and through Scipion sets by scipion-em-relion's own converter."""

from __future__ import annotations

from dataclasses import replace

import mrcfile
import numpy as np
import pytest
from aberrations import NONE, STRONG, Aberrations, aberrated, image_shifts, model, star_columns
from conftest import require_program
from oracles import at_frequencies, centred_transform
from particle_files import Inputs, rows_of_relion_30, table_text
from relion_files import table, write_map, write_star
from relion_programs import inner, relion
from scipion_sets import new_set, relion_converter

from localrefine_plugin import convert
from localrefine_plugin.engine.io.relion_particles import read_particles, write_particles
from localrefine_plugin.engine.io.star import read_star
from localrefine_plugin.engine.model.optics import aberration_phase
from localrefine_plugin.engine.model.pixels import half_plane_frequencies
from localrefine_plugin.engine.prepare.recentre import recentre, restore
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.particles import NO_DISTORTION

BOX, PIXEL_SIZE = 16, 4.0
ORIGINS = ["rlnOriginXAngst", "rlnOriginYAngst"]


def write_stack(path, images):
    with mrcfile.new(str(path), overwrite=True) as mrc:
        mrc.set_data(images.astype(np.float32))
        mrc.set_image_stack()


def write_relion_files(folder, e):
    """particles.star as RELION writes it, with origins of the images, and its stack."""
    write_stack(folder / "images.mrcs", e.images)
    columns = {label: [text if text[0] == "[" else f"{float(text):f}" for text in texts]
               for label, texts in star_columns(STRONG).items()}  # fmt: skip
    shift = image_shifts(e.particles, e.particles.shift_px, STRONG)
    write_star(folder / "particles.star", e.particles, "images.mrcs", shift_px=shift, optics_columns=columns)
    return folder / "particles.star"


@pytest.fixture
def e():
    return aberrated(8, box=BOX, pixel_size=PIXEL_SIZE, seed=2)


def assert_same_optics(found, expected):
    for a, b in zip(found, expected):
        assert a.magnification == b.magnification
        np.testing.assert_allclose(a.odd_zernike, b.odd_zernike if any(b.odd_zernike) else (), rtol=1e-6)
        np.testing.assert_allclose(a.even_zernike, b.even_zernike if any(b.even_zernike) else (), rtol=1e-6)


def test_optics_table_of_relion_31(tmp_path, e):
    """Groups as they are; shifts come from the images into the specimen's plane and go back."""
    particles, star = read_particles(write_relion_files(tmp_path, e))
    assert_same_optics(particles.optics, e.particles.optics)
    np.testing.assert_allclose(particles.shift_px, e.particles.shift_px, atol=1e-6)
    write_particles(tmp_path / "again.star", star, particles.rotation, particles.shift_px)
    before, after = (read_star(tmp_path / name)[1].texts(ORIGINS) for name in ("particles.star", "again.star"))
    for label in ORIGINS:
        np.testing.assert_allclose(*([float(v) for v in texts[label]] for texts in (before, after)), atol=2e-6)


def test_what_relion_ctf_refine_fits_is_read_as_what_the_images_were_made_with(tmp_path):
    """RELION's own file: images of the formula, fitted by RELION 3.1.3 from columns without aberrations.

    Measured: φ differs by 0.010 rad of 0.39, root mean square to 4.4 Å; the even part, whose low orders it fits
    together with the defocus, correlates by 0.994.
    """
    require_program("relion_ctf_refine")
    box, pixel_size = 48, 2.0
    made = Aberrations((1.5, -1.0), (0, 0, 25.0, 0, 0, -30.0), (0, 4.0, 0, 4.0, 150.0, 0, 0, 0, -200.0))
    e = aberrated(200, (made,), box=box, pixel_size=pixel_size, seed=4, sigma=1.0, centre=(0, 0, 0), noise=0.3)
    write_stack(tmp_path / "images.mrcs", e.images)
    write_star(tmp_path / "in.star", e.particles, "images.mrcs", e.rotation, e.shift)
    write_map(tmp_path / "map.mrc", e.phantom.density(box), pixel_size)
    fsc = table("fsc", ("rlnSpectralIndex", "rlnFourierShellCorrelationCorrected"), [(i, 0.99) for i in range(25)])
    (tmp_path / "fsc.star").write_text(fsc)
    relion("relion_ctf_refine", tmp_path, "--i", "in.star", "--o", "out/", "--f", "fsc.star", "--m1", "map.mrc", "--m2",
           "map.mrc", "--angpix_ref", pixel_size, "--fit_beamtilt", "--odd_aberr_max_n", 3, "--fit_aberr")  # fmt: skip
    group = read_particles(tmp_path / "out" / "particles_ctf_refine.star")[0].optics[0]
    kx, ky = inner(box, 4)
    fitted, truth = aberration_phase(group, True, kx, ky), made.odd_phase(kx, ky, box * pixel_size)
    assert np.sqrt(np.mean((fitted - truth) ** 2)) < 0.06 * np.sqrt(np.mean(truth**2))
    fitted, truth = aberration_phase(group, False, kx, ky), made.even_phase(kx, ky, box * pixel_size)
    assert np.corrcoef(fitted, truth)[0, 1] > 0.95


def test_optics_survive_a_scipion_set_of_the_relion_plugin(tmp_path, e, monkeypatch):
    """STAR → set (scipion-em-relion) → STAR (ours) and → set (ours) keep the aberrations of every group."""
    from pwem.constants import ALIGN_PROJ
    monkeypatch.chdir(tmp_path)  # the converter takes image names as they are
    star = write_relion_files(tmp_path, e)
    particles = new_set(tmp_path)
    reader = relion_converter().Reader()  # by itself it leaves out the group, which items have from their extraction
    reader.readSetOfParticles(str(star), particles, alignType=ALIGN_PROJ, extraLabels=["rlnOpticsGroup"])
    particles.write()
    ours = str(tmp_path / "ours.star")
    convert.write_particles(particles, ours, str(tmp_path / "stacks"))
    found, _ = read_particles(ours)
    expected, _ = read_particles(star)
    assert_same_optics(found.optics, e.particles.optics)
    assert (found.optics_group == expected.optics_group).all()
    np.testing.assert_allclose(found.shift_px, expected.shift_px, atol=1e-5)
    output = new_set(tmp_path, "output.sqlite")
    output.copyInfo(particles)
    output.copyItems(particles, updateItemCallback=convert.RefinedParticles(ours, ours, PIXEL_SIZE).update)
    output.write()
    assert output.getAcquisition().opticsGroupInfo.get() == particles.getAcquisition().opticsGroupInfo.get()
    for before, after in zip([item.clone() for item in particles], [item.clone() for item in output]):
        assert before._rlnOpticsGroup.get() == after._rlnOpticsGroup.get()
        difference = before.getTransform().getMatrix() - after.getTransform().getMatrix()
        assert np.abs(difference).max() < 1e-5


def test_beam_tilts_of_relion_30_are_groups_of_rows(tmp_path):
    """RELION 3.1 makes optics groups of them when it converts such a file."""
    inputs = Inputs(tmp_path)
    rows = rows_of_relion_30(inputs.rows)
    for i, row in enumerate(rows):
        row.update(rlnBeamTiltX=("0.0", "0.4")[i % 2], rlnBeamTiltY="0.0")
    inputs.star.write_text(table_text(rows, ""))
    particles, _ = read_particles(inputs.star)
    assert len(particles.optics) == 4
    for i, g in enumerate(particles.optics_group):
        group = particles.optics[g]
        expected = ()
        if i % 2:
            expected = Aberrations(tilt=(0.4, 0.0)).group("", 2.0, 16).odd_zernike
            cs, voltage = group.spherical_aberration_mm, group.voltage_kv
            scale = cs / 2.7 * (1 if voltage == 300 else (0.0250793 / 0.0196875) ** 2)  # ∝ Cs λ²
            expected = scale * np.array(expected)
        np.testing.assert_allclose(group.odd_zernike, expected, rtol=1e-4, atol=1e-9)


def with_column(inputs, label, text):
    inputs.optics = inputs.optics.replace("_rlnImageDimensionality #8\n", f"_rlnImageDimensionality #8\n_{label} #9\n")
    inputs.optics = inputs.optics.replace("16 2\n", f"16 2 {text}\n")
    inputs.write_star()
    return read_particles(inputs.star)[0].optics[0]


@pytest.mark.parametrize("label, text", [("rlnBeamTiltX", "0.000000"), ("rlnOddZernike", "[0,0,0,0,0,0]"),
                                         ("rlnEvenZernike", "[]"), ("rlnMagMat11", "1.000000")])  # fmt: skip
def test_columns_that_say_nothing_cost_nothing(tmp_path, label, text):
    group = with_column(Inputs(tmp_path), label, text)
    assert (group.odd_zernike, group.even_zernike, group.magnification) == ((), (), NO_DISTORTION)


@pytest.mark.parametrize("label, text, problem", [
    ("rlnOddZernike", "[0,x]", "rlnOddZernike '.0,x.', not a list of finite numbers"),
    ("rlnEvenZernike", "[nan]", "not a list of finite numbers"),
    ("rlnBeamTiltX", "None", "rlnBeamTiltX 'None', not a finite number"),
    ("rlnMagMat00", "0.5", "magnification matrix 0.5, 0, 0, 1"),
    ("rlnMagMat11", "-1", "magnification matrix 1, 0, 0, -1"),
])  # fmt: skip
def test_columns_that_cannot_be_are_named(tmp_path, label, text, problem):
    with pytest.raises(InputError, match=problem):
        with_column(Inputs(tmp_path), label, text)


def test_rows_that_are_taken_keep_their_own_matrix(tmp_path, e):
    """Some rows in another order, written and read again: the origins of each are those it had."""
    particles, star = read_particles(write_relion_files(tmp_path, e))
    rows = np.array([5, 0, 3])
    rotation, shift = particles.rotation[rows], particles.shift_px[rows]
    write_particles(tmp_path / "some.star", star.take(rows), rotation, shift)
    before, after = (read_star(tmp_path / name)[1].texts(ORIGINS) for name in ("particles.star", "some.star"))
    for label in ORIGINS:
        np.testing.assert_allclose([float(v) for v in after[label]], [float(before[label][row]) for row in rows],
                                   atol=2e-6)  # fmt: skip


def test_recentred_images_are_those_of_the_moved_specimen(tmp_path):
    """Rolled images against the formula with the phantom moved by −p, at the poses of the new file; and back."""
    e = aberrated(8, box=32, pixel_size=PIXEL_SIZE, seed=2, centre=(6.0, -4.0, 3.0))
    e = replace(e, particles=replace(e.particles, rotation=e.rotation, shift_px=e.shift))
    star, p = write_relion_files(tmp_path, e), np.array([6, -4, 3])
    recentre(star, tmp_path / "out", {}, point_px=(p + 16).tolist())
    moved, _ = read_particles(tmp_path / "out" / "particles.star")
    kx, ky = (k.ravel() for k in half_plane_frequencies(14))
    rolled = at_frequencies(centred_transform(mrcfile.read(tmp_path / "out" / "particles.mrcs").astype(float)), kx, ky)
    phantom = replace(e.phantom, points=e.phantom.points - p)
    expected = model(phantom, moved, moved.rotation, moved.shift_px, STRONG, kx, ky)
    assert np.abs(rolled - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(mrcfile.read(tmp_path / "out" / "particles.mrcs") - e.images).max() > 0.1 * np.abs(e.images).max()
    restore(tmp_path / "out" / "particles.star", tmp_path / "back", {})
    back, _ = read_particles(tmp_path / "back" / "particles.star")
    np.testing.assert_allclose(back.shift_px, e.shift, atol=2e-6)


def test_records_come_back_from_json_as_they_were():
    group = replace(NONE.group("g", 1.0, 16), odd_zernike=[0.0, 1.0], magnification=[1.1, 0, 0, 1])
    assert group.odd_zernike == (0.0, 1.0) and hash(group) == hash(replace(group))
