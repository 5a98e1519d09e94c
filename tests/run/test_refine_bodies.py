"""Several masks in one run: each body has the bits of a run of its own, and what the command line refuses and finds."""
from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from run_results import assert_same_bits, results, temporary_folder
from scipy import ndimage
from two_bodies import BOX, PIXEL_SIZE, mask_of, run_of, write_two_bodies

from localrefine_plugin.engine import __main__ as cli
from localrefine_plugin.engine import refine as engine
from localrefine_plugin.engine import refine_bodies as several
from localrefine_plugin.engine.align.images import HalfSetImages
from localrefine_plugin.engine.align.of_run import other_bodies
from localrefine_plugin.engine.io.run_folder import BodiesFolder, RunFolder, read_json
from localrefine_plugin.engine.io.run_store import load_input, load_poses, stored_half_set
from localrefine_plugin.engine.maps.fsc import fsc, read_fsc
from localrefine_plugin.engine.records.settings import Settings

SETTINGS, SHORT = Settings(max_iterations=3, subtract_bodies=False), Settings(max_iterations=1)


@lru_cache(maxsize=None)
def inputs():
    """Particles, half-maps, and the masks of A and B."""
    folder = temporary_folder() / "several"
    given = write_two_bodies(folder, "A")
    masks = []
    for name in "AB":
        masks.append(str(folder / f"mask_{name}.mrc"))
        with mrcfile.new(masks[-1], overwrite=True) as mrc:
            mrc.set_data(mask_of(name).astype(np.float32))
            mrc.voxel_size = PIXEL_SIZE
    return given[:3], masks


def refined(output, mode="new", masks=None, settings=SETTINGS, **named):
    given, known = inputs()
    masks = known if masks is None else masks
    return several.refine_bodies(*given, masks, str(output), [settings] * len(masks), "cpu", 1, mode, **named)


@lru_cache(maxsize=None)
def together():
    """A run of both bodies."""
    return refined(temporary_folder() / "both")


@lru_cache(maxsize=None)
def short():
    """One of one iteration."""
    return refined(temporary_folder() / "short", settings=SHORT)


def test_each_body_has_the_bits_of_a_run_of_its_own():
    folder = together()
    for number, name in enumerate("AB", 1):
        assert_same_bits(run_of(name), folder.body(number))


def test_the_other_body_is_subtracted_where_its_last_iteration_found_it():
    """From its own half-set; in the first iteration at the input poses."""
    folder, (_, masks) = short(), inputs()
    assert load_input(folder.body(2)).other_bodies == ("body_1",)
    first, second = (mrcfile.read(mask) for mask in masks)
    for half in (1, 2):
        row, particles = stored_half_set(folder.body(2), half)
        for iteration, poses in ((0, particles), (1, load_poses(folder.body(1), 1, half))):
            other, = other_bodies(folder.body(2), iteration, half, particles, row)
            np.testing.assert_array_equal(other.rotation, poses.rotation)
            maps = [mrcfile.read(folder.body(1).reference(k, half)) for k in range(iteration + 1)]
            part, expected = 1 / np.maximum(first + second, 1), 0
            for volume in maps:
                expected = expected + part * (volume - expected)
            np.testing.assert_allclose(other.volume, expected, atol=1e-5 * np.abs(expected).max())
            np.testing.assert_array_equal(other.mask, first)
        few, = other_bodies(folder.body(2), 1, half, particles, row[5:9])
        np.testing.assert_array_equal(few.shift_px, other.shift_px[5:9])
    assert other_bodies(together().body(2), 1, 1, particles, row) == []
    with pytest.raises(AssertionError):
        assert_same_bits(folder.body(2), together().body(2))


def test_what_was_taken_out_of_a_body_is_in_its_results_again():
    """From the half-map of the same half-set, at the mean of the poses; oracle: splines of scipy and plain means."""
    folder = short()
    body, other = folder.body(2), folder.body(1)
    mask = mrcfile.read(other.mask)
    centre = load_input(other).resolved.mask_centre_offset(BOX)
    for half in (1, 2):
        poses, others = (load_poses(run, 1, half) for run in (body, other))
        turn = np.mean(np.swapaxes(poses.rotation, 1, 2) @ others.rotation, axis=0)
        u, _, v = np.linalg.svd(turn)
        turn = u @ v
        places = [of.shift_px + of.rotation[:, :2] @ centre for of in (poses, others)]
        moved = np.linalg.lstsq(poses.rotation[:, :2].reshape(-1, 3), (places[1] - places[0]).ravel(), rcond=None)[0]
        back = turn.T[::-1, ::-1]
        middle = centre[::-1] + BOX // 2
        part = ndimage.affine_transform(mrcfile.read(other.half_map(1, half)) * mask, back,
                                        middle - back @ (middle + moved[::-1]), order=5)
        before, after = mrcfile.read(body.half_map(1, half)), mrcfile.read(body.final(f"half_map_{half}.mrc"))
        assert np.linalg.norm(after - before - part) < 0.15 * np.linalg.norm(part)
        assert np.linalg.norm(after - before) > 0.5 * np.linalg.norm(mask * before)
    one, two = (mrcfile.read(body.final(f"half_map_{half}.mrc")) * mask_of("B") for half in (1, 2))
    np.testing.assert_allclose(read_fsc(body.final("fsc.star")).tight[1:], fsc(one, two)[1:], atol=1e-4)


def test_images_are_transformed_once_for_all_bodies(tmp_path, monkeypatch):
    """In the first iteration, with the null images, of which there are as many for any body."""
    given, masks = inputs()
    counts, transforms = {}, HalfSetImages.transforms
    for name, of in (("A", masks[:1]), ("both", masks)):
        counts[name] = 0

        def counted(self, images, index, name=name):
            counts[name] += len(index)
            return transforms(self, images, index)
        runs = [engine.prepare(*given, mask, str(tmp_path / f"{name}_{k}"), SETTINGS, "cpu", 1)
                for k, mask in enumerate(of)]
        monkeypatch.setattr(HalfSetImages, "transforms", counted)
        engine.align_bodies([str(run.path) for run in runs], 1, (1, 2), "cpu", 1)
        monkeypatch.setattr(HalfSetImages, "transforms", transforms)
    assert counts["both"] == counts["A"] >= 400


def test_images_are_looked_at_once_before_the_run(tmp_path, monkeypatch):
    """… and a mask that cannot be one is refused before."""
    looked, look = [], several.exclude_unusable

    def counted(particles, star):
        looked.append(star)
        return look(particles, star)

    class Stop(BaseException):
        pass

    def stopping(*_):
        raise Stop
    monkeypatch.setattr(several, "exclude_unusable", counted)
    monkeypatch.setattr(several, "iterate", stopping)
    with pytest.raises(Stop):
        refined(tmp_path / "run")
    assert len(looked) == 1


def test_results_are_found_below_final():
    folder = together()
    for number in (1, 2):
        link, final = folder.link(number), folder.body(number).path / "final"
        assert not os.path.isabs(os.readlink(link))
        assert link.resolve() == final.resolve()
    composite = read_json(folder.composite / "composite.json")
    assert [body["is_frame"] for body in composite["bodies"]] == [True, False]
    record = read_json(folder.record)
    assert record["rest_share"] < 0.2
    assert record["motion"]["bodies"] == 2


def test_a_finished_run_continues_to_itself(capsys):
    folder = together()
    before = [results(folder.body(number)) for number in (1, 2)], folder.record.read_bytes()
    refined(folder.path, "continue")
    assert ([results(folder.body(number)) for number in (1, 2)], folder.record.read_bytes()) == before
    assert "written before" in capsys.readouterr().out


@pytest.mark.parametrize("name, call", [("merge", 2), ("compose", 1)])
def test_a_stopped_run_continues_to_the_same_bits(tmp_path, monkeypatch, name, call):
    """Between the bodies, and before the composite."""
    class Stop(BaseException):
        pass
    original, calls = getattr(several, name), []

    def stopping(*arguments, **named):
        calls.append(name)
        if len(calls) == call:
            raise Stop
        return original(*arguments, **named)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(several, name, stopping)
        refined(tmp_path / "run", settings=SHORT)
    assert not BodiesFolder(tmp_path / "run").record.exists()
    folder = refined(tmp_path / "run", "continue", settings=SHORT)
    for number in (1, 2):
        assert_same_bits(short().body(number), folder.body(number))
    assert (folder.composite / "map.mrc").read_bytes() == (short().composite / "map.mrc").read_bytes()


def test_with_other_settings_of_one_body_all_are_done_again(tmp_path, monkeypatch):
    """The others were aligned to images without it, where it was."""
    class Stop(BaseException):
        pass

    def stopping(*_):
        raise Stop
    given, masks = inputs()
    shutil.copytree(short().path, tmp_path / "run", symlinks=True)
    folder = BodiesFolder(tmp_path / "run")
    monkeypatch.setattr(several, "iterate", stopping)
    for settings, left in (((SHORT, SHORT), True), ((SHORT, replace(SHORT, marginalize=False)), False)):
        with pytest.raises(Stop):
            several.refine_bodies(*given, masks, str(folder.path), settings, "cpu", 1, "continue")
        assert [run.half_done(1, 2).exists() for run in folder.bodies()] == [left, left]


def test_without_memory_for_all_bodies_they_are_aligned_one_by_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(several, "free_host_memory", lambda: 1e6)
    folder = refined(tmp_path / "run", settings=SHORT)
    assert "the memory holds one body at a time" in capsys.readouterr().out
    for number in (1, 2):
        assert_same_bits(short().body(number), folder.body(number))


def test_two_processes_give_the_same_bits(tmp_path):
    (tmp_path / "settings.json").write_text('{"max_iterations": 1}')
    assert cli.main(command(tmp_path / "run", inputs()[1], "--processes", "2", "--settings",
                            str(tmp_path / "settings.json"))) == 0
    for number in (1, 2):
        assert_same_bits(short().body(number), RunFolder(tmp_path / "run" / f"body_{number}"))


# ---------------------------------------------------------------- the command line

def command(output, masks, *more):
    star, half_1, half_2 = inputs()[0]
    return ["refine", "--particles", star, "--half-map-1", half_1, "--half-map-2", half_2, "--output", str(output),
            "--device", "cpu", "--threads", "1", *(word for mask in masks for word in ("--mask", mask)), *more]


def refused(words, capsys):
    assert cli.main(words) == 1
    return capsys.readouterr().err


def test_what_is_refused(tmp_path, capsys):
    _, masks = inputs()
    assert "is given twice" in refused(command(tmp_path / "a", masks[:1] * 2), capsys)
    settings = tmp_path / "settings.json"
    settings.write_text("{}")
    other = tmp_path / "other.json"
    other.write_text('{"seed": 7}')
    assert "given 3 times for 2 masks" in refused(
        command(tmp_path / "a", masks, *["--settings", str(settings)] * 3), capsys)
    assert "setting seed differs between the bodies" in refused(
        command(tmp_path / "a", masks, "--settings", str(settings), "--settings", str(other)), capsys)
    small = tmp_path / "small.mrc"
    with mrcfile.new(small) as mrc:
        mrc.set_data(np.ones((BOX // 2,) * 3, np.float32))
        mrc.voxel_size = PIXEL_SIZE
    assert str(small) in refused(command(tmp_path / "a", [*masks, str(small)]), capsys)
    assert not (tmp_path / "a" / "body_1").exists()


def test_a_run_of_one_mask_and_one_of_several_do_not_continue_each_other(tmp_path, capsys):
    _, masks = inputs()
    folder = together()
    assert "holds a run of 2 masks" in refused(command(folder.path, masks[:1], "--continue"), capsys)
    assert "holds a run of one mask" in refused(command(run_of("A").path, masks, "--continue"), capsys)
    assert cli.main(["film", str(folder.path)]) == 1
    assert "body_1" in capsys.readouterr().err
    assert folder.body(2).results_complete()
    assert not RunFolder(folder.path).error.exists()


def test_overwriting_by_a_run_of_one_mask_leaves_nothing_of_the_bodies(tmp_path):
    _, masks = inputs()
    run, (given, _) = tmp_path / "run", inputs()
    shutil.copytree(short().path, run, symlinks=True)
    (run / "body_3").mkdir()
    for name in ("body_2", "body_3"):
        (run / name / "notes.txt").write_text("mine")
    engine.prepare(*given, masks[0], str(run), SETTINGS, "cpu", 1, "overwrite")
    assert short().body(1).results_complete()
    assert sorted(str(path.relative_to(run)) for path in run.glob("body_*/*")) == [
        "body_2/notes.txt", "body_3/notes.txt"]
    assert not (run / "bodies.json").exists()


def test_settings_of_each_body(tmp_path, monkeypatch):
    """Given once for each mask, in the order of the masks."""
    _, masks = inputs()
    given = []
    monkeypatch.setattr(several, "refine_bodies", lambda **arguments: given.append(arguments))
    files = []
    for k, text in enumerate(('{"fulcrum": [10, 11, 12]}', '{"prior": "off", "rotation_extent_deg": 9, '
                              '"shift_extent_angstrom": 5}')):
        files += ["--settings", str(tmp_path / f"{k}.json")]
        Path(files[-1]).write_text(text)
    assert cli.main(command(tmp_path / "run", masks, *files)) == 0
    assert [one.prior for one in given[0]["settings"]] == ["learned", "off"]
    assert list(given[0]["settings"][0].fulcrum) == [10, 11, 12]
