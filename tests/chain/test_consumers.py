"""What a finished local refinement hands on: everything the particles carried, and other plugins' converters on it.

RELION's own programs on the outputs are in test_relion_clients.py; RELION's protocols in a project in
`python -m benchmarks.peers.chain_relion`.
"""
from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
from chain_data import OPTICS, angles_and_origins, plugin
from relion_files import table
from scipion_data import completed, new_project, simulated_inputs, store_inputs

from localrefine_plugin.protocols import ProtLocalRefine

ORIGIN = (-40.0, -44.0, -52.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A local refinement of one iteration; its input carries all that a set can carry."""
    project = new_project("consumers")
    source = simulated_inputs(project, tmp_path_factory.mktemp("consumers"))
    particles = store_inputs(project, {"outputParticles": lambda p: enriched(
        p._createSetOfParticles(), source.outputParticles)})
    origin = source.outputVolume.getOrigin(force=True)
    origin.setShifts(*ORIGIN)
    source.outputVolume.setOrigin(origin)
    project._storeProtocol(source)
    protocol = project.newProtocol(ProtLocalRefine, maxIterations=1, numberOfThreads=1, useGpu=False)
    for name, giver in (("Particles", particles), ("Volume", source), ("Mask", source)):
        getattr(protocol, "input" + name).set(giver)
        getattr(protocol, "input" + name).setExtended("output" + name)
    project.saveProtocol(protocol)
    return completed(project, protocol)


def enriched(particles, source):
    """The items with what other plugins hang on them; one is disabled."""
    from pyworkflow.object import Float, Integer, String
    box = source.getXDim()
    optics = [dict(OPTICS, rlnImageSize=box), dict(OPTICS, rlnImageSize=box, rlnOpticsGroup=2,
                                                   rlnOpticsGroupName="second")]
    particles.copyInfo(source)
    particles.getAcquisition().opticsGroupInfo = String(
        table("optics", list(optics[0]), [list(group.values()) for group in optics]))
    for i, item in enumerate(source):
        item = item.clone()
        item.setClassId(1 + i % 3)
        item._rlnOpticsGroup = Integer(1 + i % 2)
        item._xmipp_zScore = Float(0.25 * i)
        item._rlnGroupName = String(f"group_{i % 4}")
        item.getCTF().setPhaseShift(0.02 * i)
        item.getCTF().setPsdFile(f"psd_{i}.mrc")
        item.getCoordinate()._score = Float(0.5)
        item.setEnabled(i != 7)
        particles.append(item)
    particles.write()
    return particles


def by_id(particles):
    return {item.getObjId(): item.clone() for item in particles}


def transforms_of(particles):
    return np.array([item.getTransform().getMatrix() for item in particles], dtype=float)


def test_everything_the_particles_carried_survives(finished):
    before, after = by_id(finished.inputParticles.get()), by_id(finished.outputParticles)
    assert set(after) == set(before) - {8}, "disabled items are left out, as Scipion does when it copies a set"
    for number, item in after.items():
        given, found = before[number].getObjDict(), item.getObjDict()
        changed = {name for name, value in given.items() if found.get(name, "missing") != value}
        assert changed <= {"_transform._matrix"}, changed
        added = set(found) - set(given)
        assert added and all(name.startswith("_lr") for name in added), added
        assert item.getLocation() == before[number].getLocation()
    moved = [not np.allclose(after[number].getTransform().getMatrix(), before[number].getTransform().getMatrix())
             for number in after]
    assert np.mean(moved) > 0.9
    info = finished.outputParticles.getAcquisition().opticsGroupInfo.get()
    assert info == finished.inputParticles.get().getAcquisition().opticsGroupInfo.get()
    assert finished.outputParticles.hasAlignmentProj() and finished.outputParticles.hasCTF()


def test_volume_mask_and_curves_are_complete(finished):
    volume, mask, curves = finished.outputVolume, finished.outputMask, list(finished.outputFSC)
    halves = volume.getHalfMaps(asList=True)
    assert len(halves) == 2 and all(Path(name).exists() for name in halves)
    assert volume.getSamplingRate() == mask.getSamplingRate() == finished.inputParticles.get().getSamplingRate()
    assert volume.getOrigin().getShifts() == pytest.approx(ORIGIN)
    assert len(curves) == 5 and mask.getDim() == volume.getDim()
    with mrcfile.open(halves[0]) as handle:
        assert float(handle.voxel_size.x) == pytest.approx(volume.getSamplingRate())


# ---------------------------------------------------------------- RELION

def test_relion_writes_our_particles_with_poses_halves_optics_and_micrographs(finished, tmp_path):
    """The writer of scipion-em-relion, which every protocol of the plugin uses for its input."""
    star = str(tmp_path / "relion.star")
    plugin("relion", "convert").writeSetOfParticles(finished.outputParticles, star, outputDir=str(tmp_path))
    from emtable import Table
    rows = {row.rlnImageId: row for row in Table(fileName=star, tableName="particles")}
    items = by_id(finished.outputParticles)
    assert set(rows) == set(items)
    angles, origin = angles_and_origins(transforms_of(items.values()))
    for i, (number, item) in enumerate(items.items()):
        row = rows[number]
        found = [row.rlnAngleRot, row.rlnAngleTilt, row.rlnAnglePsi]
        assert np.abs((found - angles[i] + 180) % 360 - 180).max() < 1e-4
        shift = np.array([row.rlnOriginXAngst, row.rlnOriginYAngst]) / finished.outputParticles.getSamplingRate()
        assert np.abs(shift - origin[i]).max() < 1e-4
        assert row.rlnRandomSubset == item._rlnRandomSubset.get()
        assert row.rlnOpticsGroup == item._rlnOpticsGroup.get()
        assert row.rlnMicrographName == item.getCoordinate().getMicName()
        assert row.rlnPhaseShift == pytest.approx(item.getCTF().getPhaseShift(), abs=1e-4)
    assert len(Table(fileName=star, tableName="optics")) == 2


# ---------------------------------------------------------------- Xmipp

def test_xmipp_writes_our_particles(finished, tmp_path):
    """writeSetOfParticles: what projection subtraction, alignment validation and HighRes take."""
    from pwem import emlib
    name = str(tmp_path / "input_particles.xmd")
    plugin("xmipp3", "convert").writeSetOfParticles(finished.outputParticles, name)
    items = by_id(finished.outputParticles)
    angles, origin = angles_and_origins(transforms_of(items.values()))
    written = emlib.MetaData("Particles@" + name)
    labels = (emlib.MDL_ANGLE_ROT, emlib.MDL_ANGLE_TILT, emlib.MDL_ANGLE_PSI)
    for i, row in enumerate(written):
        assert written.getValue(emlib.MDL_ITEM_ID, row) == list(items)[i]
        found = np.array([written.getValue(label, row) for label in labels])
        assert np.abs((found - angles[i] + 180) % 360 - 180).max() < 1e-3
        assert written.getValue(emlib.MDL_SHIFT_X, row) == pytest.approx(origin[i, 0], abs=1e-3)
        assert not written.getValue(emlib.MDL_FLIP, row)


def test_xmipp_reads_our_maps_by_the_names_monores_and_local_sharpening_use(finished):
    """Both take half-maps as getHalfMaps().split(',') with ':mrc' behind, and the mask likewise."""
    plugin("xmipp3")
    from pwem import emlib
    halves = finished.outputVolume.getHalfMaps().split(",")
    for name in [*halves, finished.outputVolume.getFileName(), finished.outputMask.getFileName()]:
        assert Path(name).suffix == ".mrc"
        image = emlib.Image()
        image.read(name + ":mrc")
        with mrcfile.open(name) as handle:
            np.testing.assert_allclose(image.getData(), handle.data, rtol=1e-6)


# ---------------------------------------------------------------- cryoSPARC, EMAN2, pwem

def test_cryosparc_writes_our_poses_and_overwrites_our_split(finished, tmp_path, monkeypatch):
    """Poses and CTF go out right; the half-sets do not (a bug of 5.0.1, docs/how-to/chain-programs.md)."""
    convert = plugin("cryosparc2", "convert")
    star = str(tmp_path / "input_particles.star")
    convert.writeSetOfParticles(finished.outputParticles, star, str(tmp_path))
    from emtable import Table
    rows = list(Table.iterRows("particles@" + star))
    items = by_id(finished.outputParticles)
    angles, origin = angles_and_origins(transforms_of(items.values()))
    for i, (row, item) in enumerate(zip(rows, items.values())):
        found = [row.rlnAngleRot, row.rlnAngleTilt, row.rlnAnglePsi]
        assert np.abs((found - angles[i] + 180) % 360 - 180).max() < 1e-3
        assert abs(row.rlnOriginX - origin[i, 0]) < 1e-3 and abs(row.rlnOriginY - origin[i, 1]) < 1e-3
        assert row.rlnDefocusU == pytest.approx(item.getCTF().getDefocusU(), abs=0.1)
        assert row.rlnRandomSubset == 1 + item.getObjId() % 2, "the bug is gone: change docs/how-to/chain-programs.md"
    # the way around: the attribute on the set makes it write the items' own values
    class Split:
        def __init__(self, particles):
            self._particles = particles

        def __getattr__(self, name):
            return getattr(self._particles, name)

        def __iter__(self):
            return iter(self._particles)

        def getAttributeValue(self, name, *default):
            return 1 if name == "_rlnRandomSubset" else self._particles.getAttributeValue(name, *default)
    convert.writeSetOfParticles(Split(finished.outputParticles), star, str(tmp_path))
    rows = list(Table.iterRows("particles@" + star))
    assert [row.rlnRandomSubset for row in rows] == [item._rlnRandomSubset.get() for item in items.values()]


def test_cryosparc_takes_our_maps_as_they_are(finished, tmp_path):
    assert plugin("cryosparc2", "convert").convertBinaryVol(finished.outputVolume, str(tmp_path)) == \
        finished.outputVolume.getFileName()
    for name in finished.outputVolume.getHalfMaps().split(","):
        assert Path(name.split(":mrc")[0]).exists()


def test_eman_converts_our_poses(finished):
    convert = plugin("eman2", "convert")
    from pwem.constants import ALIGN_PROJ
    transforms = transforms_of(finished.outputParticles)
    angles, origin = angles_and_origins(transforms)
    for i, item in enumerate(finished.outputParticles):
        shift, found = convert.alignmentToRow(item.getTransform(), ALIGN_PROJ)
        assert np.abs((found - angles[i] + 180) % 360 - 180).max() < 1e-6
        assert np.abs(shift[:2] - origin[i]).max() < 1e-9


def test_pwem_exports_volume_half_maps_mask_and_fsc(finished, tmp_path):
    """ProtExportDataBases, the deposition to EMDB, takes one curve: the corrected one."""
    from pwem.protocols import ProtExportDataBases
    project = finished.getProject()
    export = project.newProtocol(ProtExportDataBases, filesPath=str(tmp_path / "emdb"), masksToExport=True)
    export.exportVolume.set(finished)
    export.exportVolume.setExtended("outputVolume")
    export.exportFSC.set(finished)
    export.exportFSC.setExtended("outputFSC")
    export.exportMasks.append(finished.outputMask)
    project.saveProtocol(export)
    assert export._validate() == []
    completed(project, export)
    files = {path.name for path in (tmp_path / "emdb").rglob("*") if path.is_file()}
    assert len([name for name in files if name.endswith(".mrc")]) >= 4, files
    assert any("fsc" in name.lower() for name in files), files


# ---------------------------------------------------------------- the next local refinement

def test_the_output_is_valid_input_of_the_next_one(finished):
    """Run in test_chain.py; here that nothing is refused or warned about."""
    after = ProtLocalRefine()
    for name, output in (("Particles", "outputParticles"), ("Volume", "outputVolume"), ("Mask", "outputMask")):
        getattr(after, "input" + name).set(finished)
        getattr(after, "input" + name).setExtended(output)
    assert after._validate() == []
