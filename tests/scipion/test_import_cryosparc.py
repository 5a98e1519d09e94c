"""Particles of cryoSPARC in Scipion: imported as the converters of others do, refined, and written back as .cs."""
from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from cryosparc_files import cs_of_experiment
from experiments import experiment, write_inputs
from relion_files import read_columns
from scipion_data import completed, launched, project_of_tests, store_inputs, volume
from scipion_sets import new_set, relion_converter
from scipy.spatial.transform import Rotation

from localrefine_plugin.convert import RefinedParticles, write_particles
from localrefine_plugin.engine.io.star import read_star

DATA = Path(__file__).resolve().parents[1] / "chain" / "data" / "cryosparc"
N, BOX, PIXEL = 30, 16, 3.0


@pytest.fixture(scope="module")
def project():
    with project_of_tests("cryosparc") as made:
        yield made


def imported(project, cs_file, **values):
    from localrefine_plugin.protocols import ProtLocalImportCryosparc
    return completed(project, project.newProtocol(ProtLocalImportCryosparc, csFile=str(cs_file), **values))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A project of cryoSPARC with the file that pyem has converted, and its images."""
    folder = tmp_path_factory.mktemp("cryosparc")
    for name in ("J1/images", "J2"):
        (folder / name).mkdir(parents=True)
    with mrcfile.new(str(folder / "J1/images/particles.mrc")) as mrc:
        mrc.set_data(np.random.default_rng(0).standard_normal((N, BOX, BOX)).astype(np.float32))
        mrc.set_image_stack()
        mrc.voxel_size = PIXEL
    shutil.copy(DATA / "J2_particles.cs", folder / "J2/J2_particles.cs")
    return folder


@pytest.fixture(scope="module")
def of_file(project, theirs):
    return imported(project, theirs / "J2/J2_particles.cs")


def test_the_set_is_what_the_converters_of_others_make_of_the_file(of_file, theirs, tmp_path, monkeypatch):
    """pyem (.cs → STAR) and scipion-em-relion (STAR → Scipion): poses, CTF, half-sets, optics groups, coordinates."""
    particles = of_file.outputParticles
    expected = new_set(tmp_path)
    expected.setSamplingRate(PIXEL)
    mine = [item.clone() for item in particles.iterItems()]
    monkeypatch.chdir(theirs)  # the names of the images begin there
    relion_converter().Reader(alignType="3D").readSetOfParticles(
        str(DATA / "J2_particles.star"), expected, format="", alignType=particles.getAlignment())
    assert len(mine) == expected.getSize() == N and particles.getSamplingRate() == PIXEL
    for ours, other in zip(mine, expected.iterItems()):
        np.testing.assert_allclose(ours.getTransform().getMatrix(), other.getTransform().getMatrix(), atol=2e-5)
        for name in ("getDefocusU", "getDefocusV", "getDefocusAngle"):
            assert getattr(ours.getCTF(), name)() == pytest.approx(getattr(other.getCTF(), name)(), abs=0.01)
        assert ours._rlnRandomSubset.get() == other._rlnRandomSubset.get()
        assert ours.getIndex() == other.getIndex()
        assert os.path.basename(ours.getCoordinate().getMicName()) == other.getCoordinate().getMicName()
        assert abs(ours.getCoordinate().getX() - other.getCoordinate().getX()) <= 1


def test_every_particle_keeps_its_optics_group(of_file):
    """scipion-em-relion's reader loses them; it reads the groups that are kept with the set."""
    particles = of_file.outputParticles
    groups = [item._rlnOpticsGroup.get() for item in particles.iterItems()]
    of_pyem = read_columns(DATA / "J2_particles.star", ("rlnOpticsGroup",)).ravel().tolist()
    assert len(set(zip(groups, of_pyem))) == len(set(groups)) == 2  # each names them in its own order
    known = relion_converter().OpticsGroups.fromString(particles.getAcquisition().opticsGroupInfo.get())
    assert len(known) == 2 and known.first().rlnVoltage == 300 and known.first().rlnImageSize == BOX
    assert not particles.getFirstItem().getAcquisition().opticsGroupInfo.get()


def test_images_are_links_that_other_programs_read_as_stacks(of_file, theirs):
    item = of_file.outputParticles.getFirstItem()
    link = Path(item.getFileName())
    assert link.suffix == ".mrcs" and link.is_symlink() and not link.is_absolute()
    assert link.resolve() == (theirs / "J1/images/particles.mrc").resolve()
    assert of_file.outputParticles.getDim()[0] == BOX


def test_the_log_and_the_summary_say_what_was_read_and_what_not(of_file):
    summary = "\n".join(of_file._summary())
    assert "30 particles, poses of alignments3D" in summary and "ctf/tilt_A are not used" in summary


def test_what_is_no_cs_file_is_refused_by_the_form(theirs):
    from localrefine_plugin.protocols import ProtLocalImportCryosparc
    wrong = ProtLocalImportCryosparc(csFile=str(DATA / "J2_particles.star"))
    assert "is not a .cs file" in wrong._validate()[0]
    assert ProtLocalImportCryosparc(csFile=str(theirs / "J2/J2_particles.cs"))._validate() == []


def test_missing_fields_end_the_protocol_with_one_sentence(project, theirs):
    from localrefine_plugin.protocols import ProtLocalImportCryosparc
    records = np.load(DATA / "J2_particles.cs")
    with open(theirs / "bare.cs", "wb") as handle:
        np.save(handle, records[[name for name in records.dtype.names if not name.startswith("ctf")]])
    protocol = project.newProtocol(ProtLocalImportCryosparc, csFile=str(theirs / "bare.cs"))
    assert launched(project, protocol).isFailed() and "has no field ctf/df1_A" in protocol.getErrorMessage()


# ------------------------------------------------------------- and back

@pytest.fixture(scope="module")
def refined(project, tmp_path_factory):
    """The .cs file of an experiment, imported and refined; (import, refinement, records)."""
    from localrefine_plugin.protocols import ProtLocalRefine
    folder = tmp_path_factory.mktemp("experiment")
    e = experiment(80, noise=0.5, seed=3)
    _, half_1, half_2, mask = write_inputs(folder, e)
    records = cs_of_experiment(folder / "particles.cs", e)
    source = imported(project, folder / "particles.cs")
    maps = store_inputs(project, {
        "outputVolume": lambda p: volume(half_1, [half_1, half_2], e.particles.pixel_size),
        "outputMask": lambda p: volume(mask, pixel_size=e.particles.pixel_size, mask=True)})
    protocol = project.newProtocol(ProtLocalRefine, maxIterations=1, numberOfThreads=1, useGpu=False)
    for pointer, origin, name in ((protocol.inputParticles, source, "outputParticles"),
                                  (protocol.inputVolume, maps, "outputVolume"),
                                  (protocol.inputMask, maps, "outputMask")):
        pointer.set(origin)
        pointer.setExtended(name)
    return source, completed(project, protocol), records


def test_a_local_refinement_writes_the_poses_of_its_output_into_a_cs_file(refined):
    _, protocol, records = refined
    path = protocol._run_folder().final("particles.cs")
    result = np.load(path)
    np.testing.assert_array_equal(result["uid"], records["uid"])
    inverse = [np.linalg.inv(item.getTransform().getMatrix()) for item in protocol.outputParticles.iterItems()]
    theirs = Rotation.from_rotvec(result["alignments3D/pose"]).inv().as_matrix()
    np.testing.assert_allclose(theirs, [m[:3, :3] for m in inverse], atol=1e-5)
    np.testing.assert_allclose(result["alignments3D/shift"], [-m[:2, 3] for m in inverse], atol=1e-4)
    assert not np.allclose(result["alignments3D/pose"], records["alignments3D/pose"], atol=1e-3)
    for name in records.dtype.names:
        if name not in ("alignments3D/pose", "alignments3D/shift"):
            np.testing.assert_array_equal(result[name], records[name])
    assert any(str(path) in line for line in protocol._summary())
    assert protocol.outputParticles.getFirstItem()._lrUid.get() == str(records["uid"][0])


def star_tables(particles, folder):
    write_particles(particles, str(folder / "particles.star"), str(folder / "stacks"))
    return {table.name: table for table in read_star(folder / "particles.star")}


@pytest.mark.parametrize("change, words", [
    (lambda item: setattr(item, "_lrCsFile", type(item._lrCsFile)("gone.cs")), "gone.cs is not there any more"),
    (lambda item: item.setFileName("other.mrcs"), "their images are not those that were imported"),
    (lambda item: item._lrUid.set("7"), "some particles are there more than once"),
    (lambda item: item.getObjId() % 2 and item._lrCsFile.set("second.cs"), "they came from 2 files"),
])
def test_where_poses_cannot_go_back_no_cs_file_is_written_and_it_is_said(refined, tmp_path, caplog, change, words):
    source, _, _ = refined
    changed = new_set(tmp_path)
    changed.copyInfo(source.outputParticles)
    changed.copyItems(source.outputParticles, updateItemCallback=lambda item, _: change(item), doClone=False)
    shutil.copy(source.outputParticles.getFirstItem().getFileName(), "other.mrcs")
    with caplog.at_level(logging.WARNING):
        tables = star_tables(changed, tmp_path)
    assert "cryosparc" not in tables and words in caplog.text
    assert not {"lrUid", "lrCsFile"} & set(tables["particles"].labels)


def test_the_uid_is_no_new_attribute_of_the_refined_particles(refined, tmp_path):
    source, _, _ = refined
    tables = star_tables(source.outputParticles, tmp_path)
    assert "cryosparc" in tables and "lrUid" in tables["particles"].labels
    star = str(tmp_path / "particles.star")
    assert len(RefinedParticles(star, star, 4.0)) == source.outputParticles.getSize()
