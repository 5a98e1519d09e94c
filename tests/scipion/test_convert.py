"""Scipion sets ↔ STAR and MRC, against first principles and against scipion-em-relion's converter."""
from __future__ import annotations

import mrcfile
import numpy as np
import pytest
from conftest import require_xmipp
from scipion_data import PIXEL_SIZE, fill_particles, make_acquisition, random_transforms, soft_ball, volume, write_map
from scipion_sets import new_set, relion_converter

from localrefine_plugin import convert
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.io.star import StarTable, read_star, write_star
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.iteration import FSC_CURVES
from localrefine_plugin.report.run_state import fsc_columns

OPTICS = """
data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
_rlnBeamTiltX #9
first 1 300.000000 2.700000 0.100000 1.500000 64 2 0.120000
second 2 200.000000 1.400000 0.070000 1.500000 64 2 -0.340000
"""


@pytest.fixture
def stack(tmp_path):
    return write_map(tmp_path / "images.mrcs", np.random.default_rng(0).normal(size=(12, 16, 16)), stack=True)


def tables(path):
    return {table.name: table for table in read_star(path)}


def test_columns_and_matrices_are_inverse_to_round_off():
    transforms = random_transforms(200, seed=4)
    back = convert.transforms_from_columns(convert.pose_columns(transforms, 1.7), 1.7)
    assert np.abs(back - transforms).max() < 1e-12


def test_a_shift_along_the_view_is_dropped():
    """s_z moves nothing in the image: T → columns → T has s_z = 0 and the same in-plane shift."""
    transforms = random_transforms(5, seed=1)
    m = np.linalg.inv(transforms)
    m[:, 2, 3] = 9.0
    back = np.linalg.inv(convert.transforms_from_columns(convert.pose_columns(np.linalg.inv(m), 1.0), 1.0))
    assert np.abs(back[:, 2, 3]).max() < 1e-12
    assert np.abs(back[:, :2, 3] - m[:, :2, 3]).max() < 1e-12


@pytest.mark.parametrize("tilt", [0.0, 180.0])
def test_views_down_the_axis_survive(tilt):
    columns = np.array([[0.0, tilt, psi, 2.0, -1.0] for psi in (-170.0, -30.0, 0.0, 90.0)])
    transforms = convert.transforms_from_columns(columns, 1.3)
    back = convert.transforms_from_columns(convert.pose_columns(transforms, 1.3), 1.3)
    assert np.abs(back - transforms).max() < 1e-9


def test_transforms_survive_the_way_through_a_star_file(tmp_path, stack):
    """A millionth of a degree and of an ångström are written: 1e-6 in the matrix (px) at 3 Å/px."""
    transforms = random_transforms(12, seed=5)
    particles = fill_particles(new_set(tmp_path), stack, transforms)
    star = str(tmp_path / "particles.star")
    assert convert.write_particles(particles, star, str(tmp_path / "stacks")) == 12
    refined = convert.RefinedParticles(star, star, PIXEL_SIZE)
    for item, expected in zip(particles, transforms):
        item.setTransform(None)
        refined.update(item)
        assert np.abs(item.getTransform().getMatrix() - expected).max() < 1e-6


def test_stacks_are_referenced_in_place_and_rows_carry_the_ids(tmp_path, stack):
    particles = fill_particles(new_set(tmp_path), stack, random_transforms(12, seed=5), disabled=(0, 7))
    star = str(tmp_path / "particles.star")
    assert convert.write_particles(particles, star, str(tmp_path / "stacks")) == 10
    columns = tables(star)["particles"].texts(["rlnImageId", "rlnImageName", "rlnRandomSubset", "rlnMicrographName",
                                               "rlnMaxValueProbDistribution", "rlnDefocusU"])
    assert columns["rlnImageId"] == ["2", "3", "4", "5", "6", "7", "9", "10", "11", "12"]
    assert columns["rlnImageName"][0] == f"000002@{stack}"
    assert columns["rlnRandomSubset"][:3] == ["2", "1", "2"]
    assert columns["rlnMicrographName"][0] == "mic_1.mrc"
    assert float(columns["rlnMaxValueProbDistribution"][0]) == pytest.approx(0.501)
    assert float(columns["rlnDefocusU"][0]) == pytest.approx(15010)
    assert not (tmp_path / "stacks").exists()


def test_items_are_paired_by_id_whatever_the_row_order(tmp_path, stack):
    transforms = random_transforms(12, seed=5)
    particles = fill_particles(new_set(tmp_path), stack, transforms, disabled=(3,))
    star = str(tmp_path / "particles.star")
    convert.write_particles(particles, star, str(tmp_path / "stacks"))
    shuffled = tables(star)
    order = np.random.default_rng(0).permutation(11)
    rows = shuffled["particles"]
    rows.lines = [rows.lines[i] for i in order]
    ids = [int(v) for v in rows.texts(["rlnImageId"])["rlnImageId"]]
    extended = rows.with_columns({"lrScale": np.array(ids) * 0.1})
    write_star(tmp_path / "refined.star", [shuffled["optics"], extended])
    output = new_set(tmp_path, "output.sqlite")
    output.copyInfo(particles)
    output.copyItems(particles, updateItemCallback=convert.RefinedParticles(
        str(tmp_path / "refined.star"), star, PIXEL_SIZE).update)
    assert output.getSize() == 11
    for item in output:
        i = item.getObjId() - 1
        assert np.abs(item.getTransform().getMatrix() - transforms[i]).max() < 1e-6
        assert item._lrScale.get() == pytest.approx(0.1 * (i + 1))
        assert item._rlnMaxValueProbDistribution.get() == pytest.approx(0.5 + 0.001 * i)
        assert item.getCoordinate().getMicName() == "mic_1.mrc"


def test_an_item_without_a_row_is_named(tmp_path, stack):
    particles = fill_particles(new_set(tmp_path), stack, random_transforms(12, seed=5), disabled=(3,))
    star = str(tmp_path / "particles.star")
    convert.write_particles(particles, star, str(tmp_path / "stacks"))
    item = particles.getFirstItem().clone()
    item.setObjId(4)
    with pytest.raises(InputError, match="item 4"):
        convert.RefinedParticles(star, star, PIXEL_SIZE).update(item)


def test_optics_groups_of_the_set_travel_with_current_geometry(tmp_path, stack):
    particles = fill_particles(new_set(tmp_path), stack, random_transforms(12, seed=5), optics=OPTICS)
    star = str(tmp_path / "particles.star")
    convert.write_particles(particles, star, str(tmp_path / "stacks"))
    optics = tables(star)["optics"]
    columns = optics.texts(optics.labels)
    assert columns["rlnOpticsGroupName"] == ["first", "second"]
    assert [float(v) for v in columns["rlnVoltage"]] == [300, 200]
    assert [float(v) for v in columns["rlnBeamTiltX"]] == [0.12, -0.34]
    assert [float(v) for v in columns["rlnImagePixelSize"]] == [PIXEL_SIZE, PIXEL_SIZE]
    assert columns["rlnImageSize"] == ["16", "16"]
    assert tables(star)["particles"].texts(["rlnOpticsGroup"])["rlnOpticsGroup"][:4] == ["1", "2", "1", "2"]


@pytest.mark.parametrize("in_text, sampling_rate, written", [
    ((2.0, 2.04), 2.0, (2.0, 2.04)),      # as imported: the set has the first group's
    ((2.0, 2.04), 2.04, (2.0, 2.04)),     # or the second's
    ((2.0, 2.04), 4.0, (4.0, 4.08)),      # images that were binned since
    ((1.0, 1.0), 2.0, (2.0, 2.0))])       # one size, said before binning
def test_pixel_sizes_of_merged_sessions_keep_their_ratio(tmp_path, stack, in_text, sampling_rate, written):
    text = OPTICS.replace("0.100000 1.500000", f"0.1 {in_text[0]}").replace("0.070000 1.500000", f"0.07 {in_text[1]}")
    particles = fill_particles(new_set(tmp_path), stack, random_transforms(12, seed=5), sampling_rate, optics=text)
    star = str(tmp_path / "particles.star")
    convert.write_particles(particles, star, str(tmp_path))
    found = tables(star)["optics"].texts(["rlnImagePixelSize"])["rlnImagePixelSize"]
    assert [float(size) for size in found] == pytest.approx(written, rel=1e-6)


def test_without_optics_groups_there_is_one_per_acquisition(tmp_path, stack):
    acquisitions = [make_acquisition(voltage=300 if i % 3 else 200) for i in range(12)]
    particles = fill_particles(new_set(tmp_path), stack, random_transforms(12, seed=5), acquisitions=acquisitions)
    star = str(tmp_path / "particles.star")
    convert.write_particles(particles, star, str(tmp_path / "stacks"))
    voltage = tables(star)["optics"].texts(["rlnVoltage"])["rlnVoltage"]
    groups = tables(star)["particles"].texts(["rlnOpticsGroup"])["rlnOpticsGroup"]
    assert [float(voltage[int(g) - 1]) for g in groups] == [300 if i % 3 else 200 for i in range(12)]


def test_particles_without_half_sets_are_refused_unless_they_are_split_anew(tmp_path, stack):
    particles = fill_particles(new_set(tmp_path), stack, random_transforms(12, seed=5), subset=False)
    star = str(tmp_path / "particles.star")
    convert.write_particles(particles, star, str(tmp_path / "stacks"))
    with pytest.raises(InputError, match="rlnRandomSubset"):
        read_particles(star)
    assert len(read_particles(star, need_half_sets=False)[0]) == 12


@pytest.mark.parametrize("spoil, words", [
    (lambda item: item.getCTF()._defocusU.set(None), "item 5 has no CTF"),
    (lambda item: item.setCTF(None), "item 5 has no CTF"),
    (lambda item: item.getTransform().setMatrix(np.zeros((4, 4))), "item 5")])
def test_an_item_without_ctf_or_pose_among_others_is_named(tmp_path, stack, monkeypatch, spoil, words):
    particles = fill_particles(new_set(tmp_path), stack, random_transforms(12, seed=7))
    items = [item.clone() for item in particles]
    spoil(items[4])
    monkeypatch.setattr(particles, "iterItems", lambda *_: iter(items))
    with pytest.raises(InputError, match=words):
        convert.write_particles(particles, str(tmp_path / "particles.star"), str(tmp_path / "stacks"))


def test_other_image_formats_are_converted(tmp_path):
    """A Spider stack (read by Xmipp's library) becomes an MRC stack with the same pixels."""
    require_xmipp()
    import pwem.emlib as emlib
    images = np.random.default_rng(1).normal(size=(12, 16, 16)).astype(np.float32)
    name = str(tmp_path / "images.stk")
    image = emlib.Image()
    for i, data in enumerate(images):
        image.setData(data)
        image.write((i + 1, name))
    particles = fill_particles(new_set(tmp_path), name, random_transforms(12, seed=5))
    star = str(tmp_path / "particles.star")
    convert.write_particles(particles, star, str(tmp_path / "stacks"))
    first = tables(star)["particles"].texts(["rlnImageName"])["rlnImageName"][2]
    index, path = first.split("@")
    with mrcfile.open(path) as handle:
        assert np.abs(handle.data[int(index) - 1] - images[2]).max() < 1e-6


def test_same_star_and_same_matrices_as_the_relion_plugin(tmp_path, stack):
    """Angles and origins of our STAR equal those of scipion-em-relion, which reads ours back to the same matrices."""
    convert31 = relion_converter()
    from pwem.constants import ALIGN_PROJ
    transforms = random_transforms(12, seed=6)
    particles = fill_particles(new_set(tmp_path), stack, transforms)
    ours, theirs = str(tmp_path / "ours.star"), str(tmp_path / "theirs.star")
    convert.write_particles(particles, ours, str(tmp_path / "stacks"))
    convert31.Writer().writeSetOfParticles(particles, theirs)
    labels = list(convert.POSE_LABELS)
    a = np.array([tables(ours)["particles"].texts(labels)[label] for label in labels], dtype=float)
    b = np.array([tables(theirs)["particles"].texts(labels)[label] for label in labels], dtype=float)
    difference = a - b
    difference[:3] = (difference[:3] + 180) % 360 - 180
    assert np.abs(difference).max() < 2e-6
    read = new_set(tmp_path, "read.sqlite")
    convert31.Reader().readSetOfParticles(ours, read, alignType=ALIGN_PROJ)
    matrices = {item.getObjId(): np.array(item.getTransform().getMatrix()) for item in read}
    assert max(np.abs(matrices[i + 1] - t).max() for i, t in enumerate(transforms)) < 1e-6
    refined = convert.RefinedParticles(theirs, theirs, PIXEL_SIZE)
    item = particles.getFirstItem().clone()
    refined.update(item)
    assert np.abs(item.getTransform().getMatrix() - transforms[0]).max() < 1e-6


def test_maps_are_used_in_place_when_their_header_agrees(tmp_path):
    data = soft_ball(16, 4, 3)
    good = write_map(tmp_path / "good.mrc", data, pixel_size=1.5)
    assert convert.mrc_map(good + ":mrc", 1.5, str(tmp_path / "copy.mrc")) == good
    assert not (tmp_path / "copy.mrc").exists()
    copy = convert.mrc_map(good, 2.0, str(tmp_path / "copy.mrc"))
    with mrcfile.open(copy) as handle:
        assert float(handle.voxel_size.x) == pytest.approx(2.0)
        assert np.array_equal(handle.data, data)


def test_maps_of_other_formats_are_converted(tmp_path):
    require_xmipp()
    import pwem.emlib as emlib
    data = np.random.default_rng(2).normal(size=(8, 8, 8)).astype(np.float32)
    image = emlib.Image()
    image.setData(data)
    image.write(str(tmp_path / "map.vol"))
    path = convert.mrc_map(str(tmp_path / "map.vol"), 1.1, str(tmp_path / "copy.mrc"))
    with mrcfile.open(path) as handle:
        assert np.abs(handle.data - data).max() < 1e-6
    assert volume(path).getDim() == (8, 8, 8)


@pytest.mark.parametrize("values", [np.ones(20), np.zeros(20), np.full(20, np.nan), np.linspace(1, -0.2, 20),
                                    np.r_[np.ones(10), np.zeros(10)], np.full(20, 0.143)])
def test_pwem_can_work_out_a_resolution_of_any_curve(values):
    fsc = convert.fsc_object("Tight", np.arange(1, 21) / 60.0, values)
    x, y = (np.array([float(v) for v in column]) for column in fsc.getData())
    assert (np.diff(x) > 0).all() and np.isfinite(y).all()
    if np.isfinite(values).all():
        float(fsc.calculateResolution())


def test_fsc_table_gives_five_labelled_curves(tmp_path):
    shells = np.arange(1, 17)
    columns = {"rlnSpectralIndex": shells, "rlnResolution": shells / 48.0}
    columns.update({label: np.exp(-shells / (4.0 + j)) for j, (_, label, _) in enumerate(FSC_CURVES)})
    general = StarTable.from_columns("general", {"rlnImageSize": [32]})
    write_star(tmp_path / "fsc.star", [general, StarTable.from_columns("fsc", columns)])
    curves = list(convert.fsc_objects(fsc_columns(str(tmp_path / "fsc.star"))))
    assert [c.getObjLabel() for c in curves] == ["No mask", "Spherical", "Loose", "Tight", "Corrected"]
    tight = columns["rlnFourierShellCorrelationMaskedMaps"]
    assert float(curves[3].getData()[1][4]) == pytest.approx(tight[3], abs=1e-6)  # one place on: the curve starts at 0
