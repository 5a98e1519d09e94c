"""The protocol 're-centre particles' through Scipion: there, and back with other poses."""
from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
from scipion_data import (
    PIXEL_SIZE,
    completed,
    fill_particles,
    project_of_tests,
    random_transforms,
    simulated_inputs,
    store_inputs,
    write_map,
)
from scipy.spatial.transform import Rotation

BOX, SMALL = 32, 26
POINT = np.array([2, -1, 1])  # from the box centre


@pytest.fixture(scope="module")
def project():
    with project_of_tests("recentre") as made:
        yield made


def protocol_of(project, label, particles, volume, mask, **values):
    from localrefine_plugin.protocols import ProtLocalRecentre
    protocol = project.newProtocol(ProtLocalRecentre, **values)
    protocol.setObjLabel(label)
    for pointer, source, name in ((protocol.inputParticles, particles, "outputParticles"),
                                  (protocol.inputVolume, volume, "outputVolume"),
                                  (protocol.inputMask, mask, "outputMask")):
        if source is not None:
            pointer.set(source)
            pointer.setExtended(name)
    return protocol


@pytest.fixture(scope="module")
def inputs(project, tmp_path_factory):
    return simulated_inputs(project, tmp_path_factory.mktemp("data"), box=BOX, n=24)


@pytest.fixture(scope="module")
def there(project, inputs):
    x, y, z = (POINT + BOX // 2).tolist()
    return completed(project, protocol_of(project, "there", inputs, inputs, inputs, fulcrum=1, fulcrumX=x, fulcrumY=y,
                                    fulcrumZ=z, newBox=SMALL))


@pytest.fixture(scope="module")
def back(project, there):
    return completed(project, protocol_of(project, "back", there, there, there, direction=1))


def items(particles):
    """Clones by id: iterating yields one and the same object."""
    return {item.getObjId(): item.clone() for item in particles.iterItems()}


def matrices(particles):
    return np.array([item.getTransform().getMatrix() for _, item in sorted(items(particles).items())])


def test_image_pose_and_map_move_together(inputs, there):
    """T = inv([R | t]): a point at the box centre of the new frame projects where POINT did, less whole pixels."""
    assert there.outputParticles.getXDim() == SMALL and there.outputParticles.getSize() == 24
    assert there.outputVolume.getDim() == there.outputMask.getDim() == (SMALL,) * 3
    assert len(there.outputVolume.getHalfMaps(asList=True)) == 2
    before, after = (np.linalg.inv(matrices(p.outputParticles)) for p in (inputs, there))
    np.testing.assert_allclose(before[:, :3, :3], after[:, :3, :3], atol=1e-6)
    moved = before[:, :2, 3] + before[:, :2, :3] @ POINT - after[:, :2, 3]
    np.testing.assert_allclose(moved, np.rint(moved), atol=1e-5)
    assert np.abs(after[:, :2, 3]).max() < 0.5 + 1e-5
    stack = items(inputs.outputParticles)
    for (number, item), roll in zip(sorted(items(there.outputParticles).items()), np.rint(moved).astype(int)):
        image = mrcfile.read(stack[number].getFileName())[stack[number].getIndex() - 1]
        new = mrcfile.read(item.getFileName())[item.getIndex() - 1]
        assert new[SMALL // 2, SMALL // 2] == image[tuple(BOX // 2 + roll[::-1])]


def test_everything_else_of_the_items_survives(inputs, there):
    first, now = items(inputs.outputParticles)[3], items(there.outputParticles)[3]
    assert now._rlnRandomSubset.get() == first._rlnRandomSubset.get()
    assert now.getCTF().getDefocusU() == first.getCTF().getDefocusU()
    assert now.getCoordinate().getPosition() == first.getCoordinate().getPosition()


def test_the_map_stays_where_it_was_in_space(inputs, there, back):
    """Position of the voxel POINT: origin + index × pixel size, before, in the new frame, and back."""
    def place(volume, index):
        return np.array(volume.getOrigin(force=True).getShifts()) + np.array(index) * PIXEL_SIZE
    expected = place(inputs.outputVolume, BOX // 2 + POINT)
    np.testing.assert_allclose(place(there.outputVolume, [SMALL // 2] * 3), expected)
    np.testing.assert_allclose(place(back.outputVolume, BOX // 2 + POINT), expected)


def test_the_way_back_gives_the_first_images_and_poses(inputs, there, back):
    np.testing.assert_allclose(matrices(back.outputParticles), matrices(inputs.outputParticles), atol=1e-5)
    first, now = items(inputs.outputParticles), items(back.outputParticles)
    for number in first:
        assert now[number].getIndex() == first[number].getIndex()
        assert Path(now[number].getFileName()).resolve() == Path(first[number].getFileName()).resolve()
        assert now[number].getAttributeValue("_lrRecentreImageName") is None
    assert back.outputParticles.getXDim() == BOX
    inside = mrcfile.read(inputs.outputMask.getFileName()) > 0.5
    np.testing.assert_array_equal(mrcfile.read(back.outputVolume.getFileName())[inside],
                                  mrcfile.read(inputs.outputVolume.getFileName())[inside])


def test_poses_refined_in_between_come_back(project, there):
    """A refinement copies the items and turns them: here by 5° about the new centre, POINT of the old frame."""
    from pwem.objects import Transform
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([1, 3, -4], degrees=True).as_matrix()

    def turned(item, _row=None):
        matrix = np.linalg.inv(item.getTransform().getMatrix()) @ turn
        item.setTransform(Transform(matrix=np.linalg.inv(matrix)))

    def refined_set(protocol):
        particles = protocol._createSetOfParticles()
        particles.copyInfo(there.outputParticles)
        particles.copyItems(there.outputParticles, updateItemCallback=turned, doClone=False)
        particles.write()
        return particles
    refined = store_inputs(project, {"outputParticles": refined_set})
    back = completed(project, protocol_of(project, "back after refinement", refined, None, None, direction=1))
    first, now, new = (np.linalg.inv(matrices(p.outputParticles)) for p in (there, refined, back))
    np.testing.assert_allclose(new[:, :3, :3], now[:, :3, :3], atol=1e-6)
    rolls = np.array([[item.getAttributeValue(f"_lrRecentreShift{axis}") for axis in "XY"]
                      for _, item in sorted(items(there.outputParticles).items())])
    seen = new[:, :2, 3] + new[:, :2, :3] @ POINT
    np.testing.assert_allclose(seen, first[:, :2, 3] + rolls, atol=1e-5)


@pytest.mark.parametrize("other", [1.0, 1.03])
def test_the_way_back_follows_magnification_matrix_and_pixel_size(project, tmp_path, other):
    """Group 1 of two has a matrix, group 2 pixels ``other`` times as large: in closed form v lies at Mᵀ(P R v) / f + t
    in px of its image, and comes back to where it was."""
    from pwem.objects import Transform
    from pyworkflow.object import Integer, String

    from localrefine_plugin.engine.prepare import recentre
    from localrefine_plugin.protocols.protocol_recentre import RestoredItems
    sheared, factor = np.array([[1.02, 0.01], [-0.01, 0.97]]), {1: 1.0, 0: other}
    optics = "\ndata_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n" + "".join(
        f"_rlnMagMat{i}{j} #{3 + 2 * i + j}\n" for i in (0, 1) for j in (0, 1)) + (
        f"_rlnImagePixelSize #7\none 1 1.02 0.01 -0.01 0.97 3.0\ntwo 2 1 0 0 1 {3.0 * other}\n\n")
    first, roll = random_transforms(6, 8), np.array([3, -4])
    stack = write_map(tmp_path / "images.mrcs", np.random.default_rng(0).standard_normal((6, 16, 16)), stack=True)
    made = store_inputs(project, {"outputParticles": lambda p: fill_particles(
        p._createSetOfParticles(), stack, first, optics=optics)})
    protocol = protocol_of(project, "matrices", made, None, None, direction=1)
    project.saveProtocol(protocol)
    protocol.makePathsAndClean()
    (tmp_path.cwd() / protocol._folder()).mkdir()
    distortions, scales = protocol._distortions()
    np.testing.assert_allclose([distortions[number] for number in (1, 2)], [sheared, np.eye(2) / other])
    for number, item in items(made.outputParticles).items():
        f, m = factor[number % 2], sheared if number % 2 else np.eye(2)
        before = np.linalg.inv(item.getTransform().getMatrix())
        after = before.copy()
        in_image = before[:2, 3] / f + m.T @ before[:2, :3] @ POINT / f - roll  # px of the image
        after[:2, 3] = in_image * f  # px of the set
        item.setTransform(Transform(matrix=np.linalg.inv(after)))
        for label, value in zip((*recentre.POINT, *recentre.ROLL, recentre.BOX), (*POINT, *roll, BOX)):
            setattr(item, "_" + label, Integer(int(value)))
        setattr(item, "_" + recentre.IMAGE, String(f"000001@{stack}"))
        RestoredItems(distortions, scales).update(item)
        np.testing.assert_allclose(np.linalg.inv(item.getTransform().getMatrix()), before, atol=1e-9)


@pytest.mark.parametrize("values, words", [
    (dict(), []), (dict(mask=None), ["give the mask"]), (dict(fulcrum=1), ["give x, y and z"]),
    (dict(newBox=99), ["choose 16 to 32 px"]), (dict(direction=1), ["not re-centred by this protocol"])])
def test_the_form_is_checked(project, inputs, values, words):
    mask = values.pop("mask", inputs)
    errors = protocol_of(project, "checked", inputs, inputs, mask, **values)._validate()
    assert len(errors) == len(words) and all(word in text for word, text in zip(words, errors))


def test_summary_methods_and_citations(there, back):
    assert "18, 15, 17 px of the old box (32 px)" in there._summary()[0]
    assert "first frame" in back._summary()[0]
    assert "[Ilca2015]" in there._methods()[0] and "Ilca2015" in there._citations()
    from localrefine_plugin import bibtex
    assert "@article{Ilca2015," in bibtex.__doc__
