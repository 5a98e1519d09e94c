"""Particles of Xmipp and EMAN2 by the plugins' own converters, and sets that were cut, joined or mirrored."""
from __future__ import annotations

import json

import numpy as np
import pytest
from chain_data import BOX, Arrived, N, angles_and_origins, images, known, new_set, plugin
from scipion_data import PIXEL_SIZE, fill_particles, make_acquisition, new_project, soft_ball, store_inputs, write_map

from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.protocols import input_errors

# ---------------------------------------------------------------- Xmipp

def xmipp_file(path, stack, transforms, flip=False, **extra):
    """A metadata file as HighRes, projection subtraction or the deep alignments leave it: one row per image."""
    from pwem import emlib
    angles, origin = angles_and_origins(transforms)
    table = emlib.MetaData()
    for i in range(N):
        row = table.addObject()
        values = {emlib.MDL_ITEM_ID: i + 1, emlib.MDL_IMAGE: f"{i + 1:06d}@{stack}", emlib.MDL_ENABLED: 1,
                  emlib.MDL_ANGLE_ROT: angles[i, 0], emlib.MDL_ANGLE_TILT: angles[i, 1],
                  emlib.MDL_ANGLE_PSI: angles[i, 2], emlib.MDL_SHIFT_X: origin[i, 0], emlib.MDL_SHIFT_Y: origin[i, 1],
                  emlib.MDL_FLIP: flip, emlib.MDL_CTF_DEFOCUSU: 15000.0 + i, emlib.MDL_CTF_DEFOCUSV: 14500.0 + i,
                  emlib.MDL_CTF_DEFOCUS_ANGLE: 5.0 * i}
        for label, value in values.items():
            table.setValue(label, value, row)
        for label, values in extra.items():
            table.setValue(getattr(emlib, label), values[i], row)
    table.write(f"Particles@{path}")
    return f"Particles@{path}"


def xmipp_set(folder, name):
    particles = new_set(folder)
    particles.setSamplingRate(PIXEL_SIZE)
    particles.setAcquisition(make_acquisition())
    plugin("xmipp3", "convert").readSetOfParticles(name, particles)
    return particles


def test_xmipp_metadata_brings_poses_and_ctf_but_no_half_sets(tmp_path):
    """Its readers know no half-set: the form refuses the set unless it is split anew."""
    transforms, _ = known()
    particles = xmipp_set(tmp_path, xmipp_file(tmp_path / "images.xmd", images(tmp_path), transforms))
    assert "no half-set" in input_errors.particle_errors(particles, resplit=False)[0]
    assert input_errors.particle_errors(particles, resplit=True) == []
    with pytest.raises(InputError, match="rlnRandomSubset"):
        Arrived(particles, tmp_path)
    arrived = Arrived(particles, tmp_path, need_half_sets=False)
    arrived.check_poses(transforms)
    np.testing.assert_allclose(arrived.particles.defocus_u, 15000.0 + np.arange(N), atol=1e-3)


def test_xmipp_flip_arrives_as_a_rotation_that_shows_the_mirrored_image(tmp_path):
    """flip: (rot, tilt, psi, x) → (rot, tilt + 180°, −psi, −x): the same view as diag(−1, 1) times the unflipped."""
    transforms, _ = known()
    stack = images(tmp_path)
    arrived = Arrived(xmipp_set(tmp_path, xmipp_file(tmp_path / "f.xmd", stack, transforms, flip=True)), tmp_path,
                      need_half_sets=False)
    rotation = np.linalg.inv(transforms)[:, :3, :3]
    assert (np.linalg.det(arrived.particles.rotation) > 0.999).all()
    mirror = np.array([-1.0, 1.0])
    np.testing.assert_allclose(arrived.particles.rotation[:, :2], mirror[:, None] * rotation[:, :2], atol=1e-5)
    np.testing.assert_allclose(arrived.particles.shift_px, mirror * np.linalg.inv(transforms)[:, :2, 3], atol=1e-4)


def test_xmipp_highres_updates_the_set_it_was_given(tmp_path):
    """createItemMatrix and setXmippAttributes, as HighRes calls them: the half-sets stay those of the INPUT."""
    from pwem import emlib
    convert = plugin("xmipp3", "convert")
    given, half = known(1)
    found, _ = known(2)
    stack = images(tmp_path)
    particles = fill_particles(new_set(tmp_path), stack, given)
    name = xmipp_file(tmp_path / "angles.xmd", stack, found, MDL_MAXCC=np.linspace(0.1, 0.9, N),
                      MDL_WEIGHT=np.linspace(0.5, 1, N))
    import pwem.emlib.metadata as md
    from pwem.constants import ALIGN_PROJ
    output = new_set(tmp_path, "highres.sqlite")
    output.copyInfo(particles)

    def update(item, row):
        convert.setXmippAttributes(item, row, emlib.MDL_MAXCC, emlib.MDL_WEIGHT)
        convert.createItemMatrix(item, row, align=ALIGN_PROJ)
    output.copyItems(particles, updateItemCallback=update, itemDataIterator=md.iterRows(name, md.MDL_ITEM_ID))
    arrived = Arrived(output, tmp_path)
    arrived.check_poses(found)
    assert arrived.particles.half_set.tolist() == [1 + i % 2 for i in range(N)]
    assert output.getFirstItem().getAttributeValue("_xmipp_maxCC") == pytest.approx(0.1)


def test_a_set_goes_to_xmipp_and_back_with_its_poses(tmp_path):
    """Its own writer and reader (projection subtraction uses both)."""
    convert = plugin("xmipp3", "convert")
    transforms, _ = known()
    particles = fill_particles(new_set(tmp_path), images(tmp_path), transforms)
    name = str(tmp_path / "input_particles.xmd")
    convert.writeSetOfParticles(particles, name)
    (tmp_path / "back").mkdir()
    back = xmipp_set(tmp_path / "back", name)
    Arrived(back, tmp_path / "back", need_half_sets=False).check_poses(transforms)
    assert back.getFirstItem().getAttributeValue("_rlnRandomSubset", None) is None


# ---------------------------------------------------------------- EMAN2

def test_eman_refinement_brings_poses_but_no_half_sets(tmp_path):
    """ProtEmanRefine updates the set with rowToAlignment: half-maps even and odd, no subset on the particles."""
    convert = plugin("eman2", "convert")
    protocols = plugin("eman2", "protocols")
    given, _ = known(1)
    found, _ = known(2)
    angles, origin = angles_and_origins(found)
    rows = [[i, 1 if i % 5 else 0, *angles[i], *origin[i]] for i in range(N)]
    particles = fill_particles(new_set(tmp_path), images(tmp_path), given, subset=False)
    output = new_set(tmp_path, "eman.sqlite")
    output.copyInfo(particles)
    output.copyItems(particles, itemDataIterator=iter(rows),
                     updateItemCallback=lambda item, row: protocols.EmanProtRefine._createItemMatrix(None, item, row))
    assert convert.rowToAlignment is not None
    assert "no half-set" in input_errors.particle_errors(output, resplit=False)[0]
    arrived = Arrived(output, tmp_path, need_half_sets=False)
    kept = [i for i in range(N) if i % 5]  # EMAN2 leaves out what it did not use
    assert arrived.n == len(kept)
    arrived.check_poses(found[kept])


def test_eman_list_has_no_poses_and_is_refused(tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "all.lst").write_text("#LST\n" + "".join(f"{i} particles/mic.hdf\n" for i in range(5)))
    particles = new_set(tmp_path)
    plugin("eman2", "convert").readSetOfParticles(str(tmp_path / "sets" / "all.lst"), particles,
                                                  lambda *_: None, str(tmp_path))
    assert "not aligned to a volume" in input_errors.particle_errors(particles, resplit=False)[0]


def test_eman_ctf_json_is_read_by_its_reader(tmp_path):
    from pwem.objects import CTFModel
    info = dict(ctf=[dict(defocus=1.5, dfang=30.0, dfdiff=0.05, ampcont=10.0)])
    (tmp_path / "mic_info.json").write_text(json.dumps(info))
    ctf = CTFModel()
    plugin("eman2", "convert").readCTFModel(ctf, str(tmp_path / "mic_info.json"))
    assert (ctf.getDefocusU(), ctf.getDefocusV()) == (15250.0, 14750.0)
    # It adds the phase of the amplitude contrast to the phase shift: 10 % are counted twice.
    assert ctf.getPhaseShift() == pytest.approx(np.rad2deg(np.arcsin(0.1)))


# ---------------------------------------------------------------- cut, joined, mirrored

def run(project, protocol):
    """The set that a protocol of pwem puts out."""
    project.saveProtocol(protocol)
    protocol.makePathsAndClean()
    protocol.createOutputStep()
    return next(output for _, output in protocol.iterOutputAttributes())


def test_subsets_and_joined_sets(tmp_path):
    """pwem's own protocols: a subset keeps ids, half-sets and poses; joined sets get new ids and one optics table."""
    from pwem.protocols import ProtSubSet, ProtUnionSet
    project = new_project("producers_sets")
    stack, other = images(tmp_path), images(tmp_path, "other.mrcs")
    (first, _), (second, _) = known(1), known(2)
    low = [make_acquisition(voltage=200.0) for _ in range(N)]

    def source(name, transforms, **more):
        return store_inputs(project, {"outputParticles": lambda p: fill_particles(
            p._createSetOfParticles(), name, transforms, **more)})
    a, b, c = source(stack, first), source(other, second), source(other, second, acquisitions=low)
    subset = project.newProtocol(ProtSubSet, chooseAtRandom=True, nElements=20)
    subset.inputFullSet.set(a.outputParticles)
    part = run(project, subset)
    ids = [item.getObjId() for item in part]
    arrived = Arrived(part, tmp_path)
    arrived.check_poses(first[np.array(ids) - 1])
    assert arrived.particles.half_set.tolist() == [1 + (i - 1) % 2 for i in ids]

    def union(*sources):
        protocol = project.newProtocol(ProtUnionSet, inputType=0)
        for one in sources:
            protocol.inputSets.append(one.outputParticles)
        return run(project, protocol)
    joined = Arrived(union(a, b), tmp_path)
    joined.check_poses(np.concatenate([first, second]))
    assert len(set(joined.column("rlnImageId"))) == 2 * N
    mixed = Arrived(union(a, c), tmp_path)
    assert [mixed.particles.optics[g].voltage_kv for g in mixed.particles.optics_group] == [300.0] * N + [200.0] * N


def test_joined_sets_whose_groups_contradict_their_acquisition_are_refused(tmp_path):
    from chain_data import OPTICS
    from relion_files import table
    text = table("optics", list(OPTICS), [list(OPTICS.values())])
    transforms, _ = known()
    particles = fill_particles(new_set(tmp_path), images(tmp_path), transforms, optics=text,
                               acquisitions=[make_acquisition(voltage=300.0 if i < 20 else 200.0) for i in range(N)])
    for item in list(map(lambda item: item.clone(), particles)):
        item._rlnOpticsGroup.set(1)
        particles.update(item)
    with pytest.raises(InputError, match="item 21 has 200 kV.*assign optics groups"):
        Arrived(particles, tmp_path)
    for item in list(map(lambda item: item.clone(), particles)):
        item._rlnOpticsGroup.set(3)
        particles.update(item)
    with pytest.raises(InputError, match="in optics group 3, the set has group 1"):
        Arrived(particles, tmp_path)


@pytest.mark.parametrize("spoil, words", [(np.diag([1.0, 1.0, -1.0]), "mirrors"), (1.1 * np.eye(3), "is no rotation")])
def test_matrices_that_mirror_or_scale_are_refused_by_name(tmp_path, spoil, words):
    transforms, _ = known()
    transforms[3, :3, :3] = transforms[3, :3, :3] @ spoil
    particles = fill_particles(new_set(tmp_path), images(tmp_path), transforms)
    with pytest.raises(InputError, match=f"item 4 {words}"):
        Arrived(particles, tmp_path)


# ---------------------------------------------------------------- other grids and frames

def grids(tmp_path, box=20, mask_origin=None):
    from scipion_data import volume
    halves = [write_map(tmp_path / f"half_{h}.mrc", soft_ball(BOX, 5, 3) + 0.01 * h) for h in (1, 2)]
    transforms, _ = known()
    particles = fill_particles(new_set(tmp_path), images(tmp_path), transforms)
    mask = volume(write_map(tmp_path / "mask.mrc", soft_ball(box, 4, 4)), mask=True)
    whole = volume(halves[0], halves)
    whole.setOrigin(centred_origin(BOX))
    mask.setOrigin(centred_origin(box) if mask_origin is None else mask_origin)
    return particles, whole, mask


def centred_origin(box, off=0.0):
    from pwem.objects import Transform
    origin = Transform()
    origin.setShifts(-(box // 2) * PIXEL_SIZE + off, -(box // 2) * PIXEL_SIZE, -(box // 2) * PIXEL_SIZE)
    return origin


def test_another_box_is_refused_with_the_switch_to_use_and_taken_with_it(tmp_path):
    particles, whole, mask = grids(tmp_path)
    assert "Resample half-maps and mask" in input_errors.geometry_errors(particles, mask, "mask", False)[0]
    assert input_errors.geometry_errors(particles, mask, "mask", True) == []
    assert input_errors.frame_errors(particles, whole, mask) == []


def test_another_frame_is_refused_with_what_to_run(tmp_path):
    particles, whole, mask = grids(tmp_path, mask_origin=centred_origin(20, 12.0))
    assert "12.0 Å from the volume's" in input_errors.frame_errors(particles, whole, mask)[0]
    assert "volume resample" in input_errors.frame_errors(particles, whole, mask)[0]
    (tmp_path / "same").mkdir()
    same = grids(tmp_path / "same", box=BOX, mask_origin=centred_origin(BOX, 12.0))
    assert input_errors.frame_errors(*same) == [], "on one grid the origin is a label"
