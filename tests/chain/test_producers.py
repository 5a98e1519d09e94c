"""Particles as other plugins hand them over: the plugin's own converter builds the set."""
from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

import numpy as np
import pytest
from chain_data import (
    HIGHER,
    MAGNIFICATION,
    TESTED,
    Arrived,
    N,
    angles_and_origins,
    images,
    known,
    new_set,
    plugin,
    write_star,
)
from conftest import require_program
from scipion_data import PIXEL_SIZE, fill_particles, new_project, store_inputs

from localrefine_plugin import convert
from localrefine_plugin.engine.inputs import half_sets
from localrefine_plugin.engine.io.star import read_star
from localrefine_plugin.engine.io.star import write_star as write_tables
from localrefine_plugin.engine.records.errors import InputError


@pytest.mark.parametrize("name, version", sorted(TESTED.items()))
def test_the_tables_of_the_docs_name_the_versions_that_run_here(name, version):
    plugin(name)
    package = {"xmipp3": "scipion-em-xmipp"}.get(name, f"scipion-em-{name}")
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "compatibility.md"
    assert importlib.metadata.version(package) == version, f"run the tests in {page.name}, correct its versions"
    assert f"{package} {version}" in page.read_text(encoding="utf-8")


# ---------------------------------------------------------------- relion

def relion_set(folder, star, **kwargs):
    from pwem.constants import ALIGN_PROJ
    particles = new_set(folder)
    plugin("relion", "convert").createReader().readSetOfParticles(star, particles, alignType=ALIGN_PROJ, **kwargs)
    return particles


def test_relion_import_brings_poses_half_sets_ctf_and_higher_optics(tmp_path):
    transforms, half = known()
    particles = relion_set(tmp_path, write_star(tmp_path / "run_data.star", images(tmp_path), transforms, half,
                                                optics=(dict(HIGHER, **MAGNIFICATION),)))
    arrived = Arrived(particles, tmp_path)
    angles, origin = angles_and_origins(transforms)
    for label, values in zip(convert.POSE_LABELS, np.hstack([angles, origin * PIXEL_SIZE]).T):
        assert np.abs((arrived.numbers(label) - values + 180) % 360 - 180).max() < 1e-5, label
    assert arrived.particles.half_set.tolist() == half.tolist()
    np.testing.assert_allclose(arrived.particles.defocus_u, 15000 + 10 * np.arange(N), atol=1e-3)
    np.testing.assert_allclose(arrived.numbers("rlnPhaseShift"), 2.0 * np.arange(N), atol=1e-4)
    np.testing.assert_allclose(arrived.numbers("rlnCoordinateY"), 200 + 40 * np.arange(N))
    assert arrived.column("rlnMicrographName")[12] == "mic_1.mrc"
    for label, value in dict(HIGHER, **MAGNIFICATION).items():
        given = arrived.column(label, "optics")[0]
        assert given == value if isinstance(value, str) else float(given) == pytest.approx(value)


def test_relion_import_loses_the_optics_group_and_different_groups_are_refused(tmp_path):
    """scipion-em-relion 5.0.2 reads the table of groups, but not to which of them a particle belongs."""
    transforms, half = known()
    group = [1 + i % 2 for i in range(N)]
    second = dict(rlnOpticsGroupName="second", rlnOpticsGroup=2)
    star = write_star(tmp_path / "run_data.star", images(tmp_path), transforms, half, group=group,
                      optics=(HIGHER, dict(HIGHER, rlnBeamTiltX=-0.5, **second)))
    with pytest.raises(InputError, match="assign optics groups"):
        Arrived(relion_set(tmp_path, star), tmp_path)
    (tmp_path / "with").mkdir()
    arrived = Arrived(relion_set(tmp_path / "with", star, extraLabels=["rlnOpticsGroup"]), tmp_path)
    assert (arrived.particles.optics_group + 1).tolist() == group
    same = write_star(tmp_path / "same.star", images(tmp_path), transforms, half, group=group, optics=({}, second))
    (tmp_path / "same").mkdir()
    assert len(Arrived(relion_set(tmp_path / "same", same), tmp_path).particles) == N


def test_relion_import_writes_one_acquisition_into_every_group(tmp_path):
    """As the import protocol reads it: readAcquisition=False, the values of the form for all."""
    from scipion_data import make_acquisition
    transforms, half = known()
    star = write_star(tmp_path / "in.star", images(tmp_path), transforms, half, optics=(
        {}, dict(rlnOpticsGroup=2, rlnOpticsGroupName="second", rlnVoltage=200.0)))
    from pwem.constants import ALIGN_PROJ
    particles = new_set(tmp_path)
    particles.setAcquisition(make_acquisition(voltage=300.0))
    plugin("relion", "convert").createReader().readSetOfParticles(star, particles, alignType=ALIGN_PROJ,
                                                                  readAcquisition=False, pixelSize=PIXEL_SIZE)
    assert Arrived(particles, tmp_path).numbers("rlnVoltage", "optics").tolist() == [300.0, 300.0]


def test_relion_import_drops_micrographs_without_coordinates(tmp_path):
    transforms, half = known()
    name = write_star(tmp_path / "in.star", images(tmp_path), transforms, half)
    assert relion_set(tmp_path, name).getFirstItem().getCoordinate().getMicName() == "mic_0.mrc"
    optics, particles = read_star(name)
    write_tables(name, [optics, particles.without(["rlnCoordinateX", "rlnCoordinateY"])])
    (tmp_path / "without").mkdir()
    assert relion_set(tmp_path / "without", name).getFirstItem().getCoordinate() is None


def test_relion_refine3d_updates_poses_and_half_sets(tmp_path):
    """ProtRelionRefine3D reads its run_data.star into the set it was given."""
    protocols = plugin("relion", "protocols")
    given, _ = known(1)
    found, half = known(2)
    stack = images(tmp_path)
    project = new_project("producers_refine3d")
    source = store_inputs(project, {"outputParticles": lambda p: fill_particles(
        p._createSetOfParticles(), stack, given, subset=False)})
    refine = project.newProtocol(protocols.ProtRelionRefine3D)
    refine.inputParticles.set(source)
    refine.inputParticles.setExtended("outputParticles")
    project.saveProtocol(refine)
    refine.makePathsAndClean()
    refine._createFilenameTemplates()
    write_star(Path(refine._getFileName("data", iter=3)), stack, found, half, rlnImageId=list(range(1, N + 1)))
    output = new_set(tmp_path)
    output.copyInfo(source.outputParticles)
    refine._fillDataFromIter(output, 3)
    arrived = Arrived(output, tmp_path)
    arrived.check_poses(found)
    assert arrived.particles.half_set.tolist() == half.tolist()
    np.testing.assert_allclose(arrived.particles.defocus_u, 15000 + 10 * np.arange(N), atol=1e-3)


def test_relion_symmetry_expansion_keeps_copies_of_an_image_in_one_half(tmp_path):
    """RELION's program expands, the protocol's reader makes the set, our table has the C2 mates as copies."""
    plugin("relion")
    transforms, half = known()
    stack = images(tmp_path)
    star = write_star(tmp_path / "in.star", stack, transforms, half)
    expanded = tmp_path / "expanded.star"
    subprocess.run([require_program("relion_particle_symmetry_expand"), "--i", star, "--o", str(expanded), "--sym",
                    "C2"], check=True, capture_output=True)
    arrived = Arrived(relion_set(tmp_path, str(expanded)), tmp_path)
    assert arrived.n == 2 * N and len(set(arrived.column("rlnImageId"))) == 2 * N
    assert "symmetry expansion" in half_sets.check_duplicates(arrived.particles, arrived.star)[0]
    order = np.lexsort((np.arange(2 * N), arrived.particles.slice)).reshape(N, 2)
    assert (arrived.particles.half_set[order] == half[:, None]).all()
    turn = np.diag([-1.0, -1.0, 1.0])  # mates: A and A·Rz(180°)
    rotation = np.linalg.inv(transforms)[:, :3, :3]
    both = np.stack([rotation, rotation @ turn], axis=1)
    for row in range(N):
        found = arrived.particles.rotation[order[row]]
        error = np.abs(found[:, None] - both[row][None]).max(axis=(2, 3))
        assert (error.min(axis=0) < 1e-5).all(), "both mates are there"


def test_relion_ctf_refinement_brings_new_defocus_and_aberrations(tmp_path):
    """ProtRelionCtfRefinement: _updateItem for each row, and the optics table of the STAR file for the set."""
    protocols, convert31 = plugin("relion", "protocols"), plugin("relion", "convert.convert31")
    transforms, half = known()
    stack = images(tmp_path)
    particles = relion_set(tmp_path, write_star(tmp_path / "in.star", stack, transforms, half))
    star = write_star(tmp_path / "particles_ctf_refine.star", stack, transforms, half, optics=(HIGHER,),
                      rlnImageId=list(range(1, N + 1)), rlnDefocusU=[18000.0 + i for i in range(N)])
    output = new_set(tmp_path, "refined.sqlite")
    output.copyInfo(particles)
    rows = plugin("relion", "convert").Table.iterRows("particles@" + star, key="rlnImageId",
                                                       types=plugin("relion", "convert").LABELS_DICT)
    update = protocols.ProtRelionCtfRefinement._updateItem
    output.copyItems(particles, updateItemCallback=lambda item, row: update(None, item, row), itemDataIterator=rows,
                     doClone=False)
    convert31.OpticsGroups.fromStar(star).toImages(output)
    arrived = Arrived(output, tmp_path)
    arrived.check_poses(transforms)
    np.testing.assert_allclose(arrived.particles.defocus_u, 18000.0 + np.arange(N), atol=1e-2)
    assert arrived.column("rlnOddZernike", "optics") == [HIGHER["rlnOddZernike"]]


def test_relion_polishing_and_subtraction_replace_images_and_nothing_else(tmp_path):
    protocols, reader = plugin("relion", "protocols"), plugin("relion", "convert")
    import pwem.emlib.metadata as md
    transforms, half = known()
    particles = relion_set(tmp_path, write_star(tmp_path / "in.star", images(tmp_path), transforms, half))
    new = images(tmp_path, "shiny.mrcs")
    names = [f"{N - i:06d}@{new}" for i in range(N)]  # in another order than the set
    shiny = write_star(tmp_path / "shiny.star", new, transforms, half, rlnImageName=names,
                       rlnImageId=list(range(1, N + 1)))
    rows = md.SetMdIterator(md.MetaData("particles@" + shiny), sortByLabel=md.RLN_IMAGE_ID, keyLabel=md.RLN_IMAGE_ID,
                            updateItemCallback=lambda item, row: protocols.ProtRelionBayesianPolishing._updatePtcl(
                                None, item, row))
    polished = new_set(tmp_path, "polished.sqlite")
    polished.copyInfo(particles)
    polished.copyItems(particles, updateItemCallback=rows.updateItem)
    arrived = Arrived(polished, tmp_path)
    arrived.check_poses(transforms)
    assert (arrived.particles.slice == N - 1 - np.arange(N)).all()

    turned, _ = known(5)
    star = write_star(tmp_path / "subtracted.star", new, turned, half, rlnImageId=list(range(1, N + 1)),
                      rlnImageOriginalName=names)
    subtract = protocols.ProtRelionSubtract()
    subtract.isRelionInput = True
    from pwem.constants import ALIGN_PROJ
    subtract.reader = reader.createReader(alignType=ALIGN_PROJ, pixelSize=PIXEL_SIZE)
    output = new_set(tmp_path, "subtracted.sqlite")
    output.copyInfo(particles)
    output.copyItems(particles, doClone=False, updateItemCallback=subtract._updateItem,
                     itemDataIterator=reader.Table.iterRows("particles@" + star, types=reader.LABELS_DICT))
    arrived = Arrived(output, tmp_path)
    arrived.check_poses(turned)
    assert arrived.particles.half_set.tolist() == half.tolist()
    assert arrived.column("rlnImageOriginalName") == names


def test_relion_rescaled_particles_keep_their_shifts_in_angstrom(tmp_path):
    protocols = plugin("relion", "protocols")
    transforms, half = known()
    particles = relion_set(tmp_path, write_star(tmp_path / "in.star", images(tmp_path), transforms, half))
    before = Arrived(particles, tmp_path)
    project = new_project("producers_scaled")
    scale = project.newProtocol(protocols.ProtRelionPreprocessParticles, doScale=True, scaleSize=8)
    scale._getScaleFactor = lambda _: 2.0  # 16 px → 8 px
    scale._getOutStack = lambda name: images_of_half_the_size(tmp_path)
    output = new_set(tmp_path, "scaled.sqlite")
    output.copyInfo(particles)
    output.setSamplingRate(2 * PIXEL_SIZE)
    output.copyItems(particles, updateItemCallback=scale._setFileName)
    arrived = Arrived(output, tmp_path)
    assert arrived.particles.pixel_size == 2 * PIXEL_SIZE and arrived.particles.box_size == 8
    for label in convert.POSE_LABELS:
        difference = arrived.numbers(label) - before.numbers(label)
        assert np.abs((difference + 180) % 360 - 180).max() < 1e-5, label


def images_of_half_the_size(folder):
    from scipion_data import write_map
    return write_map(folder / "half_size.mrcs", np.random.default_rng(0).normal(size=(N, 8, 8)), 2 * PIXEL_SIZE,
                     stack=True)
