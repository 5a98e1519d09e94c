"""The benchmarks' own arithmetic: costs of processes, sections of a page, frames of cropped images, the C++ judge."""
from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from conftest import require_program

from benchmarks import measure, page, truth
from benchmarks.growth import growth_data, scaling
from benchmarks.operators import operators
from benchmarks.peers import relion
from examples import phantom, simulate
from examples.evaluate import read_poses
from examples.simulate import Poses
from localrefine_plugin.engine.model.pose import random_rotations


def test_cost_counts_children_and_grandchildren(tmp_path):
    """A shell whose child burns a second of CPU, with 100 MB held in the grandchild."""
    burn = ("import time; held = bytearray(b'x') * 100_000_000\n"
            "while time.process_time() < 1.0: pass")
    cost = measure.run_measured(["sh", "-c", f'{sys.executable} -c "{burn}"; true'], tmp_path / "log", "0")
    assert 0.95 < cost.cpu_seconds < 2.0
    assert cost.peak_memory_mb > 100
    assert cost.finished
    assert cost.cpu_at(cost.samples[0][0] - 1) <= cost.cpu_at(cost.samples[-1][0] + 1)


def test_a_command_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="failed"):
        measure.run_measured(["false"], tmp_path / "log", "0")


def test_a_command_is_ended_at_its_limit(tmp_path):
    cost = measure.run_measured(["sleep", "60"], tmp_path / "log", "0", limit_seconds=0.3)
    assert not cost.finished
    assert cost.wall_seconds < 30


def test_legs_of_a_job_add_up_to_what_was_kept():
    """The first leg is ended at 20 s, when the last result it can go on from is that of 15 s."""
    first = measure.Cost(20.0, 20.0, 50.0, False, 2.0, [(100.0, 0.0), (110.0, 10.0), (120.0, 20.0)])
    second = measure.Cost(30.0, 15.0, 60.0, True, 0.0, [(200.0, 0.0), (215.0, 30.0)])
    whole = measure.chained([first, second], [105.0, 115.0, 207.5])
    assert (whole.cpu_seconds, whole.wall_seconds, whole.leader_cpu_seconds) == pytest.approx((45.0, 30.0, 1.5))
    assert [whole.cpu_at(m) for m in (105.0, 115.0, 207.5)] == pytest.approx([5.0, 15.0, 30.0])
    assert whole.finished and whole.peak_memory_mb == 60


def test_process_line_with_a_difficult_name():
    text = Path(f"/proc/{os.getpid()}/stat").read_text()
    hard = text.replace(text[text.index("("):text.rindex(")") + 1], "(a b) c) S 1)")
    assert measure.parse_stat(hard) == measure.parse_stat(text)
    assert measure.parse_stat(text).session == os.getsid(0)


def test_section_is_replaced_and_the_rest_kept():
    text = page.replace_section("# Title\n", "one", "first")
    text = page.replace_section(text, "two", "second")
    text = page.replace_section(text, "one", "third")
    assert "first" not in text and text.index("third") < text.index("second") and text.startswith("# Title\n")
    assert page.replace_section(text, "one", "third") == text


def test_pose_of_a_crop_is_that_of_the_whole_image():
    """Crops at whole pixels about a projected point: the planted poses come back in the frame of the images."""
    rng, pixel, centre = np.random.default_rng(3), 2.5, np.array([31.0, -18.0, 9.0])
    start = Poses(random_rotations(20, rng), rng.uniform(-9, 9, (20, 2)))
    refined = Poses(random_rotations(20, rng), rng.uniform(-9, 9, (20, 2)))

    def seen(poses: Poses) -> np.ndarray:
        return poses.position + (poses.rotation @ centre)[:, :2]
    crop = pixel * np.rint(seen(start) / pixel)
    found, given = (Poses(poses.rotation, seen(poses) - crop) for poses in (refined, start))
    back = relion.in_whole_images(found, given, start, centre, pixel)
    np.testing.assert_allclose(back.position, refined.position, atol=1e-9)
    with pytest.raises(RuntimeError, match="whole pixels"):
        relion.in_whole_images(found, given, start, centre + 1.0, pixel)


def test_cropped_cube_holds_the_point_at_its_centre():
    volume = np.zeros((20, 20, 20), np.float32)
    volume[13, 8, 11] = 1
    cube = truth.cropped(volume, np.array([1.0, -2.0, 3.0]), 8)
    assert np.unravel_index(cube.argmax(), cube.shape) == (4, 4, 4)
    assert cube.max() == pytest.approx(1, abs=1e-5)


def grown(case: scaling.Case, **changed: object) -> scaling.Run:
    """A run whose costs are those of the laws that scaling.py predicts by."""
    n, visits = case.box, case.particles * case.iterations
    run = scaling.Run(case, 0.0, 0.0, 0.0, {"search": visits * (1e-3 + 2e-7 * n ** 2), "insert": visits * 3e-7 * n ** 2,
                                            "reconstruct": case.iterations * 4e-7 * n ** 3 * np.log2(n)},
                      100.0, 100.0, 2.0, 2.0, 4.0)
    align = sum(run.phases.values())
    return dataclasses.replace(run, align_seconds=align, cpu_seconds=align + 1.0, **changed)


def test_growth_is_predicted_from_the_smaller_runs():
    numbers = [grown(dataclasses.replace(scaling.ANY_NUMBER, particles=n)) for n in (1000, 3000, 10000, 100000)]
    for run in numbers:
        assert run.milliseconds(*scaling.OF_PARTICLES) == pytest.approx(1 + 5e-4 * 64 ** 2)
        assert run.iteration_seconds == pytest.approx(4e-7 * 64 ** 3 * 6)
        assert run.once_seconds == pytest.approx(1.0)
    found = scaling.predicted(numbers, numbers[:3], scaling.number, lambda run: run.cpu_seconds)
    assert found == pytest.approx([run.cpu_seconds for run in numbers])
    boxes = [grown(dataclasses.replace(scaling.ANY_BOX, box=n)) for n in (64, 96, 128, 384)]
    for x, y in ((scaling.area, lambda run: run.milliseconds(*scaling.OF_PARTICLES)),
                 (scaling.transform, lambda run: run.iteration_seconds)):
        assert scaling.predicted(boxes, boxes[:3], x, y) == pytest.approx([y(run) for run in boxes])
    assert scaling.line([1.0, 2.0, 3.0], [0.9, 2.0, 3.1])[0] == 0.0  # nothing costs less than nothing


def test_growth_is_judged_by_poses_and_memory():
    good = [grown(dataclasses.replace(scaling.ANY_BOX, box=n)) for n in (64, 96)]
    scaling.check(good, good)
    for bad in (dict(angle_deg=3.9), dict(peak_memory_mb=111.0), dict(peak_memory_mb=79.0)):
        with pytest.raises(AssertionError):
            scaling.check([dataclasses.replace(good[0], **bad)], good)
    with pytest.raises(AssertionError):
        scaling.check(good, [good[0], dataclasses.replace(good[1], angle_deg=3.0)])


def test_growth_is_not_measured_twice_by_one_commit(tmp_path, monkeypatch):
    case, calls = scaling.ANY_BOX, []
    monkeypatch.setattr(scaling.growth_data, "write", lambda data, options: data.mkdir(parents=True))

    def refined(case, folder, cores):
        calls.append(case)
        (folder / "run").mkdir()
        return grown(case)
    monkeypatch.setattr(scaling, "refined", refined)
    for version, count in (("a", 1), ("a", 1), ("b", 2)):
        monkeypatch.setattr(scaling, "commit", lambda version=version: version)
        assert scaling.measured_run(case, tmp_path, "0") == grown(case)
        assert len(calls) == count


def test_images_of_the_growth_benchmark_are_those_of_the_simulator(tmp_path):
    """The same particles by examples/simulate.py and in a larger box: power of images and half-maps by shell."""
    options = simulate.Options(particles=100, box_size=36, pixel_size=8.0)
    simulate.simulate(tmp_path / "a", options)
    growth_data.write(tmp_path / "b", options)
    np.testing.assert_array_equal(read_poses(tmp_path / "a" / "true_B.star").rotation,
                                  read_poses(tmp_path / "b" / "true_B.star").rotation)
    growth_data.write(tmp_path / "c", dataclasses.replace(options, box_size=72))
    images = {name: mrcfile.read(tmp_path / name / "particles.mrcs") for name in "abc"}
    power = {name: scaling_power(stack) for name, stack in images.items()}
    np.testing.assert_allclose(power["b"][1:17], power["a"][1:17], rtol=0.2)
    # twice the box: noise of each coefficient four times, that of the signal the same; on even shells
    assert power["c"][2:34:2].sum() / power["b"][1:17].sum() == pytest.approx(4.0, rel=0.25)
    angles = growth_data.angles(tmp_path / "b", [tmp_path / "b" / "particles.star", tmp_path / "b" / "true_B.star"])
    given, true = angles.values()
    assert 3 < given < 8 and true == pytest.approx(0.0, abs=0.01)
    for half in (1, 2):
        a, b = (phantom.lowpass(mrcfile.read(tmp_path / name / f"half{half}.mrc"), 8.0, 80.0) for name in "ab")
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.6  # the noise of 50 images is beyond


def scaling_power(images: np.ndarray) -> np.ndarray:
    """Mean |F|² by shell."""
    n = images.shape[1]
    shell = np.rint(np.hypot(np.fft.fftfreq(n, 1 / n)[:, None], np.arange(n // 2 + 1))).astype(int).ravel()
    power = (np.abs(np.fft.rfft2(images)) ** 2).mean(axis=0).ravel()
    return np.bincount(shell, power)[:n // 2] / np.bincount(shell)[:n // 2]


def test_operators_equal_plain_cpp():
    require_program("g++")
    problem = operators.Problem(operators.Shape(box=32, align_shell=13, grid_shell=7, images=8, rotations=10, shifts=6))
    with tempfile.TemporaryDirectory() as folder:
        judge = problem.judge(operators.compiled(("-O1",), Path(folder)))
        for name, ours in problem.ours().items():
            found = problem.value(ours)
            assert operators.difference(found, problem.value(judge[name])) < operators.TOLERANCE, name
            assert np.abs(found).max() > 0


def test_a_table_of_many_rows_is_read_and_written(tmp_path):
    """The figures of docs/reference/reliability.md come from tables that arrive whole."""
    from benchmarks.growth.rows import measure
    text = measure(tmp_path, 300)
    assert "300 particles and 25 columns" in text
