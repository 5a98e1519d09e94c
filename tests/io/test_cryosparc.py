"""Particles of cryoSPARC: against what pyem makes of the same file, and back into what cryosparc-tools reads."""
from __future__ import annotations

import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from cryosparc_files import cs_of_experiment, save, some_fields
from experiments import experiment, write_inputs
from relion_files import read_columns, read_poses
from scipy.spatial.transform import Rotation

from localrefine_plugin.engine import __main__ as cli
from localrefine_plugin.engine.io.cryosparc import UID, all_fields, go_back, star_of_cs, write_cs
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.io.star import read_star
from localrefine_plugin.engine.records.errors import InputError

DATA = Path(__file__).resolve().parents[1] / "chain" / "data" / "cryosparc"
N, BOX, PIXEL = 30, 16, 3.0


@pytest.fixture
def folder(tmp_path):
    """A project of cryoSPARC with the images that the file names."""
    (tmp_path / "J1/images").mkdir(parents=True)
    with mrcfile.new(str(tmp_path / "J1/images/particles.mrc")) as mrc:
        mrc.set_data(np.random.default_rng(0).standard_normal((N, BOX, BOX)).astype(np.float32))
        mrc.set_image_stack()
        mrc.voxel_size = PIXEL
    (tmp_path / "J2").mkdir()
    shutil.copy(DATA / "J2_particles.cs", tmp_path / "J2/J2_particles.cs")
    return tmp_path


def cs_of(folder):
    return folder / "J2/J2_particles.cs"


def star_of(folder, passthrough=None):
    said = star_of_cs(cs_of(folder), passthrough, folder / "out.star")
    return folder / "out.star", said


# ------------------------------------------------------------- to STAR

def test_every_column_is_that_of_pyem(folder):
    star, said = star_of(folder)
    ours, _ = read_poses(star, 1.0)
    theirs, _ = read_poses(DATA / "J2_particles.star", 1.0)
    assert np.abs(ours - theirs).max() < 1e-6
    labels = ("rlnOriginXAngst", "rlnOriginYAngst", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift",
              "rlnRandomSubset")
    np.testing.assert_allclose(read_columns(star, labels), read_columns(DATA / "J2_particles.star", labels), atol=2e-5)
    places = ("rlnCoordinateX", "rlnCoordinateY")  # pyem rounds down
    np.testing.assert_allclose(read_columns(star, places), read_columns(DATA / "J2_particles.star", places), atol=1.0)
    assert said[0].endswith("30 particles, poses of alignments3D")


def test_optics_groups_and_images_are_those_of_pyem(folder):
    star, _ = star_of(folder)
    (folder / "theirs.star").write_text((DATA / "J2_particles.star").read_text())
    ours, theirs = (read_particles(path)[0] for path in (star, folder / "theirs.star"))
    for name in ("voltage_kv", "spherical_aberration_mm", "amplitude_contrast", "pixel_size", "box_size"):
        assert [getattr(g, name) for g in ours.optics] == [getattr(g, name) for g in theirs.optics], name
    np.testing.assert_array_equal(ours.optics_group, theirs.optics_group)
    np.testing.assert_array_equal(ours.slice, theirs.slice)
    assert ours.stacks == theirs.stacks


def test_beam_tilt_is_said_not_to_be_used(folder):
    _, said = star_of(folder)
    assert "ctf/tilt_A are not used" in said[1]


def test_fields_of_the_passthrough_file_are_joined_by_uid(folder):
    whole, _ = star_of(folder)
    expected = whole.read_text().split("data_optics")[1]
    records = np.load(cs_of(folder))
    own = [name for name in records.dtype.names if name == "uid" or name.startswith("alignments3D")]
    rest = ["uid"] + [name for name in records.dtype.names if name not in own]
    mixed = np.random.default_rng(1).permutation(N)
    save(cs_of(folder), some_fields(records, own))
    save(folder / "J2/J2_passthrough_particles.cs", some_fields(records, rest)[mixed])
    for given in (None, folder / "J2/J2_passthrough_particles.cs"):
        star, said = star_of(folder, given)
        assert star.read_text().split("data_optics")[1] == expected and "passthrough" in said[0]


def test_other_pose_groups_are_said_not_to_be_used(folder):
    records = np.load(cs_of(folder))
    more = np.zeros(N, records.dtype.descr + [("alignments3D_local/pose", "<f4", (3,))])
    for name in records.dtype.names:
        more[name] = records[name]
    save(cs_of(folder), more)
    _, said = star_of(folder)
    assert any("alignments3D_local are not used" in text for text in said)


def test_single_precision_is_what_a_person_wrote(folder):
    records = np.load(cs_of(folder))
    records["blob/psize_A"] = np.float32(1.06)
    save(cs_of(folder), records)
    assert {g.pixel_size for g in read_particles(star_of(folder)[0])[0].optics} == {1.06}


def without(*names):
    def change(records):
        return some_fields(records, [name for name in records.dtype.names if name not in names])
    return change


@pytest.mark.parametrize("change, words", [
    (without("alignments3D/pose"), "has no field alignments3D/pose"),
    (without("ctf/df1_A", "blob/idx"), "has no field blob/idx"),
    (without("uid"), "is no .cs file"),
    (lambda records: np.zeros(3), "is no .cs file"),
])
def test_what_is_missing_is_named(folder, change, words):
    save(cs_of(folder), change(np.load(cs_of(folder))))
    with pytest.raises(InputError, match=words):
        star_of(folder)


def test_text_and_a_missing_file_are_no_cs_file(folder):
    cs_of(folder).write_text("data_particles")
    with pytest.raises(InputError, match="is no .cs file"):
        star_of(folder)
    cs_of(folder).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        star_of(folder)


def test_two_passthrough_files_must_be_told_apart(folder):
    records = np.load(cs_of(folder))
    save(cs_of(folder), without("ctf/df1_A")(records))
    for name in ("J2_passthrough_particles.cs", "J2_passthrough_particles_1.cs"):
        save(folder / "J2" / name, records)
    with pytest.raises(InputError, match="beside 2 passthrough files"):
        star_of(folder)
    with pytest.raises(InputError, match="lacks 10 of the 30 particles"):
        save(folder / "J2/J2_passthrough_particles.cs", records[:20])
        star_of(folder, folder / "J2/J2_passthrough_particles.cs")


def test_without_a_split_the_half_sets_are_missing_as_in_any_star_file(folder):
    save(cs_of(folder), without("alignments3D/split")(np.load(cs_of(folder))))
    star, _ = star_of(folder)
    with pytest.raises(InputError, match="rlnRandomSubset"):
        read_particles(star)


# ------------------------------------------------------------- and back

def test_new_poses_go_into_their_fields_and_nothing_else_changes(folder):
    """Rows of the table in another order, some left out; shifts in px of the alignment, which may be binned."""
    records = np.load(cs_of(folder))
    records["alignments3D/psize_A"] = 2 * PIXEL
    save(cs_of(folder), records)
    star, _ = star_of(folder)
    tables = read_star(star)
    rng = np.random.default_rng(3)
    rows = rng.permutation(N)[:25]
    rotation, origin = Rotation.random(N, random_state=4), rng.normal(0, 5, (N, 2))
    uid = np.array(next(t for t in tables if t.name == "particles").texts([UID])[UID])
    write_cs(folder / "new.cs", tables, uid[rows].tolist(), rotation.as_matrix()[rows], origin[rows])
    result, kept = np.load(folder / "new.cs"), np.sort(rows)
    np.testing.assert_array_equal(result["uid"], records["uid"][kept])
    found = Rotation.from_rotvec(result["alignments3D/pose"]).inv()
    assert (found * rotation[kept].inv()).magnitude().max() < 1e-6
    np.testing.assert_allclose(result["alignments3D/shift"], origin[kept] / (2 * PIXEL), rtol=1e-6)
    assert result.dtype == records.dtype
    for name in records.dtype.names:
        if name not in ("alignments3D/pose", "alignments3D/shift"):
            assert result[name].tobytes() == records[kept][name].tobytes(), name


def test_a_pose_may_be_half_a_turn(folder):
    star, _ = star_of(folder)
    tables = read_star(star)
    uid = next(t for t in tables if t.name == "particles").texts([UID])[UID]
    axes = np.concatenate([np.eye(3), np.random.default_rng(0).standard_normal((N - 3, 3))])
    vectors = np.pi * axes / np.linalg.norm(axes, axis=1)[:, None]
    vectors[10:] *= 1 - 1e-8
    rotation = Rotation.from_rotvec(vectors)
    write_cs(folder / "new.cs", tables, uid, rotation.as_matrix(), np.zeros((N, 2)))
    found = Rotation.from_rotvec(np.load(folder / "new.cs")["alignments3D/pose"]).inv()
    assert (found * rotation.inv()).magnitude().max() < 1e-6


def test_poses_that_did_not_change_come_back_to_the_last_digit(folder):
    records = np.load(cs_of(folder))
    star, _ = star_of(folder)
    particles, table = read_particles(star)
    fields, _ = all_fields(cs_of(folder), None)
    exact = Rotation.from_rotvec(fields.of["alignments3D/pose"].astype(float)).inv().as_matrix()
    write_cs(folder / "new.cs", table.tables, table.particles.texts([UID])[UID], exact, -particles.shift_px * PIXEL)
    result = np.load(folder / "new.cs")
    np.testing.assert_allclose(result["alignments3D/pose"], records["alignments3D/pose"], rtol=3e-7, atol=3e-7)
    np.testing.assert_allclose(result["alignments3D/shift"], records["alignments3D/shift"], atol=1e-6)


def test_particles_that_the_file_has_lost_are_counted(folder):
    star, _ = star_of(folder)
    save(cs_of(folder), np.load(cs_of(folder))[:28])
    tables = read_star(star)
    uid = next(t for t in tables if t.name == "particles").texts([UID])[UID]
    with pytest.raises(InputError, match="has lost 2 of the particles"):
        write_cs(folder / "new.cs", tables, uid, np.tile(np.eye(3), (N, 1, 1)), np.zeros((N, 2)))


def test_cryosparc_tools_reads_what_we_write(folder):
    dataset = pytest.importorskip("cryosparc.dataset", reason="cryosparc-tools is not installed")
    star, _ = star_of(folder)
    tables = read_star(star)
    uid = next(t for t in tables if t.name == "particles").texts([UID])[UID]
    rotation = Rotation.random(N, random_state=4)
    write_cs(folder / "new.cs", tables, uid, rotation.as_matrix(), np.zeros((N, 2)))
    theirs = dataset.Dataset.load(folder / "new.cs")
    np.testing.assert_allclose(theirs["alignments3D/pose"], rotation.inv().as_rotvec(), atol=1e-5)
    assert set(theirs.fields()) == set(np.load(folder / "new.cs").dtype.names)
    assert theirs["blob/path"][0] == "J1/images/particles.mrc"


# ------------------------------------------------------------- a whole run

def test_a_run_from_a_cs_file_is_that_from_the_star_file_and_writes_both(tmp_path, monkeypatch):
    e = experiment(80, noise=0.5, seed=3)
    star, half_1, half_2, mask = write_inputs(tmp_path, e)
    records = cs_of_experiment(tmp_path / "particles.cs", e)
    (tmp_path / "settings.json").write_text('{"max_iterations": 1, "prior": "gaussian", "keep_probability": 0.0}')
    for name, particles in (("from_cs", str(tmp_path / "particles.cs")), ("from_star", star)):
        assert cli.main(["refine", "--particles", particles, "--half-map-1", half_1, "--half-map-2", half_2, "--mask",
                         mask, "--output", str(tmp_path / name), "--settings", str(tmp_path / "settings.json"),
                         "--device", "cpu", "--threads", "1"]) == 0
    result = np.load(tmp_path / "from_cs/final/particles.cs")
    np.testing.assert_array_equal(result["uid"], records["uid"])
    assert (result["alignments3D/alpha"] == np.float32(1.25)).all()
    ours = Rotation.from_rotvec(result["alignments3D/pose"]).inv()
    for path in ("from_cs/final/particles.star", "from_star/final/particles.star"):
        theirs, shift = read_poses(tmp_path / path, e.particles.pixel_size)
        assert np.percentile((ours * Rotation.from_matrix(theirs).inv()).magnitude(), 95) < np.deg2rad(1e-3), path
        assert np.percentile(np.abs(result["alignments3D/shift"] + shift), 95) < 1e-4, path
    assert not np.allclose(result["alignments3D/pose"], records["alignments3D/pose"], atol=1e-3)
    assert (tmp_path / "from_cs/final/particles_kept.cs").exists()
    assert not (tmp_path / "from_star/final/particles.cs").exists()
    assert (tmp_path / "from_cs_particles.star").exists()


def test_a_killed_run_from_a_cs_file_continues_with_the_same_command(tmp_path):
    e = experiment(40, noise=0.5, seed=3)
    _, half_1, half_2, mask = write_inputs(tmp_path, e)
    cs_of_experiment(tmp_path / "particles.cs", e)
    (tmp_path / "settings.json").write_text('{"max_iterations": 1, "prior": "gaussian"}')
    command = ["refine", "--particles", str(tmp_path / "particles.cs"), "--half-map-1", half_1, "--half-map-2", half_2,
               "--mask", mask, "--output", str(tmp_path / "run"), "--settings", str(tmp_path / "settings.json"),
               "--device", "cpu", "--threads", "1"]
    assert cli.main(command) == 0
    before = (tmp_path / "run/final/particles.cs").read_bytes()
    (tmp_path / "run/report.json").unlink()
    (tmp_path / "run/final/particles.cs").unlink()
    aligned = (tmp_path / "run/iter_001/half_1.json").stat().st_mtime_ns
    assert cli.main([*command, "--continue"]) == 0
    assert (tmp_path / "run/final/particles.cs").read_bytes() == before
    assert (tmp_path / "run/iter_001/half_1.json").stat().st_mtime_ns == aligned


def test_recentred_particles_go_into_no_cs_file_and_restored_ones_do(tmp_path):
    """Their poses are in the frame of other images; `recentre --undo` brings the images back."""
    e = experiment(30, noise=0.5, seed=3)
    write_inputs(tmp_path, e)
    cs_of_experiment(tmp_path / "particles.cs", e)
    star_of_cs(tmp_path / "particles.cs", None, tmp_path / "from_cs.star")
    assert cli.main(["recentre", "--particles", str(tmp_path / "from_cs.star"), "--mask", str(tmp_path / "mask.mrc"),
                     "--output", str(tmp_path / "there")]) == 0
    assert cli.main(["recentre", "--undo", "--particles", str(tmp_path / "there/particles.star"), "--output",
                     str(tmp_path / "back")]) == 0
    for folder, expected in (("there", False), ("back", True)):
        tables = read_star(tmp_path / folder / "particles.star")
        assert go_back(tables, next(table for table in tables if table.name == "particles")) is expected
