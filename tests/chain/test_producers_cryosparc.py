"""Particles of cryoSPARC by scipion-em-cryosparc2's own converter (docs/reference/compatibility.md)."""
from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from chain_data import Arrived, N, images, known, new_set, plugin
from scipion_data import PIXEL_SIZE, fill_particles, make_acquisition
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine.inputs import checks
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.protocols import input_errors

CRYOSPARC = Path(__file__).parent / "data" / "cryosparc"


def cryosparc_particles():
    """The file of cryosparc-tools: the truth. Rows in the order of the images."""
    return np.load(CRYOSPARC / "J2_particles.cs", allow_pickle=False)


def cryosparc_transforms():
    """Its poses: R = the inverse of the rotation about the axis-angle vector; t = −shift in px."""
    cs = cryosparc_particles()
    matrices = np.tile(np.eye(4), (N, 1, 1))
    matrices[:, :3, :3] = Rotation.from_rotvec(cs["alignments3D/pose"]).inv().as_matrix()
    matrices[:, :2, 3] = -cs["alignments3D/shift"]
    return np.linalg.inv(matrices)


@pytest.fixture
def cryosparc_star(tmp_path):
    """The STAR file of pyem, beside the images it names."""
    (tmp_path / "J1" / "images").mkdir(parents=True)
    images(tmp_path / "J1" / "images", "particles.mrc")
    return shutil.copy(CRYOSPARC / "J2_particles.star", tmp_path / "particles.star")


def cryosparc_set(folder, star, monkeypatch):
    from pwem.constants import ALIGN_PROJ
    monkeypatch.chdir(folder)
    particles = new_set(folder)
    particles.setSamplingRate(PIXEL_SIZE)
    plugin("cryosparc2", "convert").readSetOfParticles(
        "particles@" + str(star), particles, alignType=ALIGN_PROJ, samplingRate=PIXEL_SIZE,
        postprocessImageRow=lambda item, row: item.setSamplingRate(PIXEL_SIZE))
    particles.setAcquisition(make_acquisition())
    return particles


def test_cryosparc_import_and_symmetry_expansion_bring_poses_and_ctf(tmp_path, cryosparc_star, monkeypatch):
    cs = cryosparc_particles()
    arrived = Arrived(cryosparc_set(tmp_path, cryosparc_star, monkeypatch), tmp_path, need_half_sets=False)
    arrived.check_poses(cryosparc_transforms(), 2e-5)  # single precision in the .cs file
    np.testing.assert_allclose(arrived.particles.defocus_u, cs["ctf/df1_A"], rtol=1e-6)
    assert (arrived.particles.slice == cs["blob/idx"]).all()
    assert "rlnRandomSubset" not in arrived.tables["particles"].labels, "the reader brings the split: change the docs"
    assert set(arrived.column("rlnOpticsGroup")) == {"1"}


@pytest.mark.parametrize("name", ["ProtCryoSparcLocalRefine", "ProtCryoSparc3DHomogeneousRefine",
                                  "ProtCryoSparcNewNonUniformRefine3D"])
def test_cryosparc_refinements_bring_poses_and_their_split(tmp_path, cryosparc_star, monkeypatch, name):
    import emtable
    protocols = plugin("cryosparc2", "protocols")
    monkeypatch.chdir(tmp_path)
    given, _ = known()
    particles = fill_particles(new_set(tmp_path, "in.sqlite"), "J1/images/particles.mrc", given, subset=False)
    protocol = getattr(protocols, name)()
    if "Local" not in name:  # the unit cell of C1 is everywhere
        module = plugin("cryosparc2", "protocols.protocol_cryosparc_homogeneous_refine")
        monkeypatch.setattr(module, "moveParticleInsideUnitCell", lambda *_: None)
        protocol.matrixSet = protocol.unitCellPlanes = None
    output = new_set(tmp_path, "refined.sqlite")
    output.copyInfo(particles)
    output.copyItems(particles, updateItemCallback=protocol._createItemMatrix,
                     itemDataIterator=emtable.Table.iterRows("particles@" + str(cryosparc_star)))
    arrived = Arrived(output, tmp_path)
    arrived.check_poses(cryosparc_transforms(), 2e-5)
    assert (arrived.particles.half_set == cryosparc_particles()["alignments3D/split"] + 1).all()


def test_cryosparc_overwrites_a_split_with_the_parity_of_the_ids_and_it_is_seen(tmp_path, monkeypatch):
    """Its writer looks for _rlnRandomSubset on the set instead of the items."""
    monkeypatch.chdir(tmp_path)
    transforms, half = known()
    stack = images(tmp_path, "images.mrc")
    particles = split_as(fill_particles(new_set(tmp_path), stack, transforms), half, tmp_path / "mine.sqlite")
    assert input_errors.parity_warnings(particles) == []
    star = str(tmp_path / "to_cryosparc.star")
    plugin("cryosparc2", "convert").writeSetOfParticles(particles, star, str(tmp_path))
    from emtable import Table
    written = [row.rlnRandomSubset for row in Table.iterRows("particles@" + star)]
    assert written == [1 + i % 2 for i in range(1, N + 1)] and written != half.tolist()
    returned = split_as(particles, written, tmp_path / "returned.sqlite")
    assert "cryosparc2 5.0.1" in input_errors.parity_warnings(returned)[0]
    arrived = Arrived(returned, tmp_path)
    table = read_particles(arrived.star)[1]
    assert "cryosparc2 5.0.1" in checks._check_parity(arrived.particles, table, arrived.star)[0]


def split_as(particles, half, path):
    """A copy of the set with these half-sets."""
    from pwem.objects import SetOfParticles
    copy = SetOfParticles(filename=str(path))
    copy.copyInfo(particles)
    for item, value in zip(particles, half):
        item = item.clone()
        item._rlnRandomSubset.set(int(value))
        copy.append(item)
    copy.write()
    return copy
