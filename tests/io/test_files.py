"""Particles, maps and images from and to files, read back by programs and libraries not written here."""
from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace

import emtable
import mrcfile
import numpy as np
import pytest
from conftest import require_program
from particle_files import (
    BOX,
    OPTICS,
    PARTICLES,
    PIXEL_SIZE,
    Inputs,
    particle_rows,
    rows_of_relion_30,
    star_text,
    table_text,
    write_mrc,
)

from localrefine_plugin.engine.io import mrc, star
from localrefine_plugin.engine.io import rows as rows_of_text
from localrefine_plugin.engine.io.image_problems import image_problems
from localrefine_plugin.engine.io.mrc import ImageReader, read_map, write_map
from localrefine_plugin.engine.io.relion_particles import read_particles, write_particles
from localrefine_plugin.engine.records.errors import InputError, OtherPixels


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


def rotation_of(rot, tilt, psi):
    """Three elementary passive rotations multiplied out, RELION's Rz(psi)·Ry(tilt)·Rz(rot)."""
    def about_z(degrees):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    return about_z(psi) @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) @ about_z(rot)


def assert_same_particles(a, b, tolerance=2e-6):
    for name in a.column_names():
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=tolerance, rtol=0, err_msg=name)
    assert a.stacks == b.stacks
    assert [replace(o, name="") for o in a.optics] == [replace(o, name="") for o in b.optics]


def test_every_value_arrives_where_it_belongs(inputs):
    particles, _ = read_particles(inputs.star)
    for i, row in enumerate(inputs.rows):
        angles = [float(row[c]) for c in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")]
        np.testing.assert_allclose(particles.rotation[i], rotation_of(*angles), atol=1e-12)
        origin = [float(row[c]) for c in ("rlnOriginXAngst", "rlnOriginYAngst")]
        np.testing.assert_allclose(particles.shift_px[i], -np.array(origin) / PIXEL_SIZE)
        assert particles.defocus_u[i] == 15000 + 100 * i and particles.defocus_v[i] == 14500 + 100 * i
        assert particles.defocus_angle[i] == 30 and particles.phase_shift[i] == 7.5 * i
        assert particles.half_set[i] == 1 + i % 2 and particles.slice[i] == i % 6
        assert particles.stacks[particles.stack[i]] == os.path.realpath(inputs.stacks[i // 6])
    first, second = particles.optics
    assert (first.voltage_kv, first.spherical_aberration_mm, first.amplitude_contrast) == (300, 2.7, 0.1)
    assert (second.voltage_kv, second.spherical_aberration_mm, second.amplitude_contrast) == (200, 2.6, 0.07)
    assert (particles.box_size, particles.pixel_size) == (BOX, PIXEL_SIZE)
    assert particles.optics_group.tolist() == [0] * 6 + [1] * 6


def test_relion_30_file_gives_the_same_particles(inputs):
    modern, _ = read_particles(inputs.star)
    for name in ("", "images", "particles"):
        inputs.star.write_text(table_text(rows_of_relion_30(inputs.rows), name))
        old, table = read_particles(inputs.star)
        assert table.optics is None
        order = [o.voltage_kv for o in old.optics]
        assert sorted(order) == [200, 300]
        assert [order[g] for g in old.optics_group] == [300] * 6 + [200] * 6
        aligned = replace(old, optics=modern.optics, optics_group=modern.optics_group)
        assert_same_particles(modern, aligned)


@pytest.mark.parametrize("label", ["rlnPixelSize", "rlnImagePixelSize"])
def test_relion_30_pixel_size_per_row(inputs, label):
    rows = rows_of_relion_30(inputs.rows)
    for row in rows:
        del row["rlnMagnification"], row["rlnDetectorPixelSize"]
        row[label] = "2.0"
    inputs.star.write_text(table_text(rows, ""))
    assert read_particles(inputs.star)[0].pixel_size == 2.0


def test_relion_converts_our_30_file_to_the_same_particles(inputs):
    program = require_program("relion_convert_star")
    old = inputs.folder / "old.star"
    old.write_text(table_text(rows_of_relion_30(inputs.rows), ""))
    particles, table = read_particles(old)
    write_particles(inputs.folder / "ours.star", table, particles.rotation, particles.shift_px)
    subprocess.run([program, "--i", "ours.star", "--o", "converted.star"], cwd=inputs.folder, check=True,
                   stdout=subprocess.DEVNULL)
    converted, table = read_particles(inputs.folder / "converted.star")
    assert table.optics is not None
    assert converted.pixel_size == PIXEL_SIZE
    by_voltage = [o.voltage_kv for o in converted.optics]
    assert [by_voltage[g] for g in converted.optics_group] == [300] * 6 + [200] * 6
    assert_same_particles(particles, replace(converted, optics=particles.optics, optics_group=particles.optics_group),
                          tolerance=1e-5)


def test_dialects_of_the_text_do_not_matter(inputs):
    plain, _ = read_particles(inputs.star)
    text = star_text(particle_rows())
    variants = {
        "crlf": text.replace("\n", "\r\n"),
        "mac": text.replace("\n", "\r"),
        "bom": "\ufeff" + text.lstrip(),
        "tabs": "".join(line.replace(" ", "\t") if "@" in line else line for line in text.splitlines(True)),
        "quoted": text.replace("stacks/a.mrcs", "X").replace("000001@X", '"000001@stacks/a.mrcs"').replace(
            "000002@X", "'000002@stacks/a.mrcs'").replace("@X", "@stacks/a.mrcs"),
        "comments": text.replace("000002@", "# a comment between rows\n\n000002@").replace(
            "loop_\n", "loop_ # rows follow\n\n").replace("mics/b.mrc 2", "mics/b.mrc 2"),
        "trailing comment": "".join(line.rstrip("\n") + "  # said of this row\n" if "@" in line else line
                                    for line in text.splitlines(True)),
        "blank below labels": text.replace("_rlnClassNumber #14\n", "_rlnClassNumber #14\n\n \n"),
        "upper case": text.replace("loop_", "LOOP_").replace("data_particles", "DATA_particles"),
        "labels beside loop_": text.replace("loop_\n_rlnImageName #1", "loop_ _rlnImageName"),
        "no label numbers": "".join(line.split(" #")[0] + "\n" if line.startswith("_") else line
                                    for line in text.splitlines(True)),
        "another table": "data_general\n\n_rlnVersion 'four point zero'\n_rlnIs 1\n\n" + text,
        "trailing blanks": text.replace("\n", "  \n"),
        "no newline at the end": text.rstrip(),
    }
    for name, variant in variants.items():
        assert variant != text, name
        inputs.star.write_bytes(variant.encode())
        particles, table = read_particles(inputs.star)
        assert_same_particles(plain, particles, 0)
        write_particles(inputs.folder / "again.star", table, particles.rotation, particles.shift_px)
        assert_same_particles(plain, read_particles(inputs.folder / "again.star")[0])


def test_one_particle_table_and_one_optics_row_may_be_pairs(inputs):
    inputs.optics = "data_optics\n\n" + "\n".join(
        "_rln" + pair for pair in ("OpticsGroup 1", "AmplitudeContrast 0.1", "SphericalAberration 2.7", "Voltage 300",
                                   "ImagePixelSize 2.0")) + "\n"
    inputs.drop("rlnOpticsGroup")
    particles, _ = read_particles(inputs.star)
    assert len(particles.optics) == 1 and particles.box_size == BOX  # the box size comes from the stack


def test_columns_in_any_order_and_optional_columns(inputs):
    plain, _ = read_particles(inputs.star)
    shuffled = [dict(sorted(row.items())) for row in inputs.rows]
    inputs.star.write_text(star_text(shuffled))
    assert_same_particles(plain, read_particles(inputs.star)[0], 0)
    for label in ("rlnPhaseShift", "rlnOriginXAngst", "rlnOriginYAngst"):
        inputs.drop(label)
    bare, table = read_particles(inputs.star)
    assert not bare.phase_shift.any() and not bare.shift_px.any()
    assert not np.signbit(bare.shift_px).any()
    write_particles(inputs.star, table, plain.rotation, plain.shift_px)
    assert table.particles.labels[-1] == "rlnClassNumber"
    np.testing.assert_allclose(read_particles(inputs.star)[0].shift_px, plain.shift_px, atol=1e-6)


def test_the_images_of_results_are_where_those_of_the_input_of_the_run_are(inputs, tmp_path_factory):
    """Paths relative to the STAR file are kept in the results of a run, and of a run from these."""
    expected, given = read_particles(inputs.star)[0].stacks, inputs.star
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("first", "second"):
        (elsewhere / name / "final").mkdir(parents=True)
        (elsewhere / name / "input.json").write_text(json.dumps({"particles": str(given)}))
        given = elsewhere / name / "final" / "particles.star"
        given.write_text(inputs.star.read_text())
        assert read_particles(given)[0].stacks == expected
    for other in ("{}", "[]", "not a run's"):
        (elsewhere / "first" / "input.json").write_text(other)
        with pytest.raises(InputError, match="stacks/a.mrcs.*does not exist"):
            read_particles(given)


def test_image_paths_from_star_folder_working_directory_and_project(inputs, monkeypatch):
    text = inputs.star.read_text()
    deep = inputs.folder / "Refine3D" / "job007"
    deep.mkdir(parents=True)
    (deep / "run_data.star").write_text(text)
    expected = read_particles(inputs.star)[0].stacks
    assert read_particles(deep / "run_data.star")[0].stacks == expected            # the project folder
    elsewhere = inputs.folder.parent / (inputs.folder.name + "_elsewhere")
    elsewhere.mkdir()
    (elsewhere / "run_data.star").write_text(text)
    with pytest.raises(InputError, match="stacks/a.mrcs.*does not exist"):
        read_particles(elsewhere / "run_data.star")
    monkeypatch.chdir(inputs.folder)
    assert read_particles(elsewhere / "run_data.star")[0].stacks == expected       # the working directory
    assert read_particles("particles.star")[0].stacks == expected
    (elsewhere / "run_data.star").write_text(text.replace("@stacks", f"@{inputs.folder}/stacks"))
    assert read_particles(elsewhere / "run_data.star")[0].stacks == expected       # absolute


def test_one_stack_under_two_names_is_one_stack(inputs):
    for row in inputs.rows[:3]:
        row["rlnImageName"] = row["rlnImageName"].replace("stacks/", "stacks/../stacks/")
    inputs.write_star()
    particles, _ = read_particles(inputs.star)
    assert len(particles.stacks) == 2 and particles.stack.tolist() == [0] * 6 + [1] * 6


def test_written_file_keeps_rows_columns_and_text(inputs):
    for row in inputs.rows:
        row["rlnMicrographName"] = "'mics/with a blank.mrc'"
        row["rlnCoordinateX"] = "1.5e3"
    inputs.optics += "\n\ndata_general\n\n_rlnTomoThing 3\n"
    inputs.write_star()
    particles, table = read_particles(inputs.star)
    rng = np.random.default_rng(0)
    angles = rng.uniform([-180, 1, -180], [180, 179, 180], (PARTICLES, 3))
    rotation = np.array([rotation_of(*a) for a in angles])
    shift = rng.normal(size=(PARTICLES, 2))
    output = inputs.folder / "out.star"
    write_particles(output, table, rotation, shift, {"rlnRandomSubset": np.full(PARTICLES, 2), "lrNote": ["a b"] * 12,
                                                     "lrScore": np.linspace(0, 1e-5, 12)})
    before, after = emtable.Table(), emtable.Table()
    before.read(str(inputs.star), "particles", guessType=False)
    after.read(str(output), "particles", guessType=False)
    assert after.getColumnNames() == before.getColumnNames() + ["lrNote", "lrScore"]
    changed = {"rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset"}
    for label in set(before.getColumnNames()) - changed - {"rlnMicrographName"}:
        assert after.getColumnValues(label) == before.getColumnValues(label), label
    assert after.getColumnValues("rlnMicrographName")[1] == "mics/with a blank.mrc"
    assert after.getColumnValues("rlnRandomSubset") == ["2"] * 12
    assert after.getColumnValues("lrNote") == ["a b"] * 12
    np.testing.assert_allclose([float(v) for v in after.getColumnValues("lrScore")], np.linspace(0, 1e-5, 12),
                               rtol=1e-6)
    written = np.array([[float(getattr(row, c)) for c in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")]
                        for row in after])
    np.testing.assert_allclose((written - angles + 180) % 360 - 180, 0, atol=1e-6)
    origin = np.array([[float(row.rlnOriginXAngst), float(row.rlnOriginYAngst)] for row in after])
    np.testing.assert_allclose(origin, -shift * PIXEL_SIZE, atol=1e-6)
    text = output.read_text()
    assert text.count("# version 30001") == 2 and "_rlnTomoThing 3" in text and "\n1 opticsGroup1 0.1 2.7" in text
    assert sorted(p.name for p in inputs.folder.iterdir() if p.name.startswith(".")) == []


def test_written_30_file_has_origins_in_px(inputs):
    inputs.star.write_text(table_text(rows_of_relion_30(inputs.rows), "images"))
    particles, table = read_particles(inputs.star)
    write_particles(inputs.star, table, particles.rotation, particles.shift_px + 1)
    written = emtable.Table(fileName=str(inputs.star), tableName="images")
    assert not written.hasColumn("rlnOriginXAngst")
    np.testing.assert_allclose(written.getColumnValues("rlnOriginX"), -particles.shift_px[:, 0] - 1, atol=1e-6)


def test_more_rows_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_of_text, "CHUNK", 5)
    monkeypatch.setattr(star, "KEPT_ROWS", 5)
    inputs = Inputs(tmp_path)
    particles, table = read_particles(inputs.star)
    write_particles(inputs.star, table, particles.rotation, particles.shift_px, {"lrRow": np.arange(PARTICLES)})
    again, table = read_particles(inputs.star)
    assert_same_particles(particles, again)
    assert table.particles.texts(["lrRow"])["lrRow"] == [str(i) for i in range(PARTICLES)]


def test_two_tables_under_one_data_block_and_odd_file_names(tmp_path):
    path = tmp_path / "t.star"
    path.write_bytes(b"data_x\nloop_\n_a\n_b\n1 2\nloop_\n_c\n'it''s' # said\n\"a 'b'\"\n\xff\xfe\n")
    first, second = star.read_star(path)
    assert first.texts(["a", "b"]) == {"a": ["1"], "b": ["2"]}
    assert second.texts(["c"])["c"] == ["it''s", "a 'b'", os.fsdecode(b"\xff\xfe")]
    table = star.StarTable.from_columns("fsc", {"shell": [1, 2], "fsc": np.array([1.0, 0.25]), "name": ["", 'a"b c']})
    star.write_star(path, [second, table])
    again = star.read_star(path)
    assert again[0].lines == second.lines
    assert again[1].texts(["fsc", "name"]) == {"fsc": ["1.000000", "0.250000"], "name": ["", 'a"b c']}


# maps

def test_map_round_trip_and_same_bytes(tmp_path):
    volume = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    write_map(tmp_path / "a.mrc", volume, 1.337, origin=(1, 2, 3))
    back, pixel_size = read_map(tmp_path / "a.mrc")
    assert back.dtype == np.float32 and pixel_size == pytest.approx(1.337, abs=1e-6)
    np.testing.assert_array_equal(back, volume)
    assert mrcfile.validate(str(tmp_path / "a.mrc"))
    with mrcfile.open(str(tmp_path / "a.mrc")) as mrc:
        assert mrc.is_volume() and mrc.header.origin.tolist() == (1, 2, 3)
        header = [float(getattr(mrc.header, name)) for name in ("dmin", "dmax", "dmean", "rms")]
    assert header == pytest.approx([volume.min(), volume.max(), volume.mean(), volume.std()], rel=1e-5)
    first = (tmp_path / "a.mrc").read_bytes()
    write_map(tmp_path / "a.mrc", volume, 1.337, origin=(1, 2, 3))
    assert (tmp_path / "a.mrc").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["a.mrc"]


def test_axes_of_the_file_are_undone(tmp_path):
    volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)          # z, y, x
    path = tmp_path / "a.mrc"
    write_mrc(path, np.ascontiguousarray(volume.transpose(1, 2, 0)))   # file order: y, x, z
    with mrcfile.open(str(path), mode="r+") as mrc:
        mrc.header.maps, mrc.header.mapr, mrc.header.mapc = 2, 1, 3
    np.testing.assert_array_equal(read_map(path)[0], volume)


# images

@pytest.mark.parametrize("dtype, order", [(np.int8, "<"), (np.int16, "<"), (np.int16, ">"), (np.float32, "<"),
                                          (np.float32, ">"), (np.uint16, "<"), (np.float16, "<"), (np.float16, ">")])
def test_modes_and_byte_orders(inputs, dtype, order):
    data = np.random.default_rng(1).integers(0, 100, (6, BOX, BOX)).astype(np.dtype(dtype).newbyteorder(order))
    write_mrc(inputs.stacks[0], data)
    particles, _ = read_particles(inputs.star)
    with ImageReader(particles) as reader:
        images = reader.read(np.array([4, 0, 2]))
    assert images.dtype == np.float32 and images.dtype.isnative
    np.testing.assert_array_equal(images, data[[4, 0, 2]].astype(np.float32))


@pytest.mark.parametrize("threads", [1, 3])
def test_images_of_many_stacks_in_the_order_asked(inputs, monkeypatch, threads):
    """Pieces of two images; with several threads; into an array that is given; few files open at a time."""
    monkeypatch.setattr(mrc, "_OPEN_STACKS", 1)
    monkeypatch.setattr(mrc, "_CHECKED_BYTES", 2 * 4 * BOX ** 2)
    particles, _ = read_particles(inputs.star)
    rows, given = np.array([11, 0, 6, 5, 0, 1, 2, 3]), np.zeros((8, BOX, BOX), np.float32)
    with ImageReader(particles, threads) as reader:
        images = reader.read(rows)
        assert reader.read(rows, given) is given
        assert len(reader._open) == 1
        assert reader.read([]).shape == (0, BOX, BOX)
    assert not reader._open
    data = np.concatenate([mrcfile.read(str(path)) for path in inputs.stacks])
    np.testing.assert_array_equal(images, data[rows])
    np.testing.assert_array_equal(given, data[rows])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_stack_is_opened_once_for_neighbours(inputs, monkeypatch, threads):
    """Whatever the number of threads, and of batches."""
    opened, begin = [], mrc.Stack.__init__
    monkeypatch.setattr(mrc.Stack, "__init__", lambda self, path: opened.append(path) or begin(self, path))
    with ImageReader(read_particles(inputs.star)[0], threads) as reader:
        for rows in np.split(np.arange(PARTICLES), 4):
            reader.read(rows)
    assert sorted(opened) == sorted(map(str, inputs.stacks))


def test_float16_is_read_into_float16_and_nothing_else_is(inputs):
    data = np.random.default_rng(1).standard_normal((6, BOX, BOX)).astype(np.float16)
    write_mrc(inputs.stacks[0], data)
    with ImageReader(read_particles(inputs.star)[0]) as reader:
        assert [reader.pixels_of(row) for row in (5, 6)] == [np.float16, np.float32]
        np.testing.assert_array_equal(reader.read([3, 1], np.zeros((2, BOX, BOX), np.float16)), data[[3, 1]])
        with pytest.raises(OtherPixels):
            reader.read([5, 6], np.zeros((2, BOX, BOX), np.float16))


def test_float16_images_that_cannot_be_used_are_those_of_float32():
    good = np.random.default_rng(1).standard_normal((BOX, BOX))
    images = np.stack([good, 0 * good + 3, 0 * good, np.where(good > 0, 0.0, -0.0), good, good, 1000 * good, good])
    images[4, 2, 3], images[5, 1, 1], images[7, 0, 0] = np.nan, -np.inf, np.inf
    images = images.astype(np.float16)
    found = image_problems(images)
    assert found == image_problems(images.astype(np.float32)) and sorted(found) == [1, 2, 3, 4, 5, 7]


def test_an_image_of_several_particles_is_read_once_and_neighbours_at_once(inputs, monkeypatch):
    inputs.rows[7]["rlnImageName"] = inputs.rows[2]["rlnImageName"]
    inputs.write_star()
    read, images_into = [], mrc.Stack.images_into
    monkeypatch.setattr(mrc.Stack, "images_into", lambda self, number, out: read.append((number, len(out)))
                        or images_into(self, number, out))
    data = np.concatenate([mrcfile.read(str(path)) for path in inputs.stacks])
    asked = [7, 3, 2, 0, 1, 2, 3, 4]
    with ImageReader(read_particles(inputs.star)[0]) as reader:
        images = reader.read(asked)
    np.testing.assert_array_equal(images, data[[2, 3, 2, 0, 1, 2, 3, 4]])
    assert sum(count for _, count in read) == 5 and (0, 2) in read


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_bad_image_of_the_table_is_named(inputs, threads):
    data = mrcfile.read(str(inputs.stacks[0])).copy()
    data[[1, 4]] = 0
    write_mrc(inputs.stacks[0], data)
    with ImageReader(read_particles(inputs.star)[0], threads) as reader:
        with pytest.raises(InputError, match=r"image 5 \(row 5 of the particles\) is constant"):
            reader.read([4, 0, 1])
        with pytest.raises(InputError, match="image 2"):
            reader.read([1, 4, 0])


def test_a_stack_of_one_image_and_an_extended_header(inputs):
    image = np.random.default_rng(1).normal(size=(BOX, BOX)).astype(np.float32)
    write_mrc(inputs.stacks[0], image)
    with mrcfile.open(str(inputs.stacks[0]), mode="r+") as mrc:
        mrc.set_extended_header(np.zeros(7, dtype="V128"))
    for row in inputs.rows[:6]:
        row["rlnImageName"] = "000001@stacks/a.mrcs"
    inputs.rows[1]["rlnImageName"] = "stacks/a.mrcs"       # RELION takes a name without @ for the first image
    inputs.write_star()
    with ImageReader(read_particles(inputs.star)[0]) as reader:
        np.testing.assert_array_equal(reader.read([1, 0]), [image, image])


def test_optics_without_image_size(inputs):
    inputs.optics = OPTICS.replace("_rlnImageSize #7\n", "").replace(" 16 2\n", " 2\n")
    inputs.write_star()
    assert read_particles(inputs.star)[0].box_size == BOX
