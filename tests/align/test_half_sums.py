"""What several workers find of parts of a half-set is, put together, what one finds of all: to the last bit."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gpu.fixtures import STAND_IN, install
from small_experiments import RESOLUTION, small_experiment

from localrefine_plugin.engine.align.half_alignment import HalfAlignment
from localrefine_plugin.engine.align.half_set import HalfTask, attempt_together
from localrefine_plugin.engine.align.half_sums import NoiseSums, integers_by_shell
from localrefine_plugin.engine.align.memory import need_of
from localrefine_plugin.engine.kernels.device import CPU, to_host
from localrefine_plugin.engine.progress import silent
from localrefine_plugin.engine.team import ALONE, Team

N = 12
SETTINGS = dict(prior="learned")


def worked(e, device, index):
    """A worker that was given this part of the images, and knows nothing of the others."""
    work = HalfAlignment(e.half_set(), e.plan(RESOLUTION, **SETTINGS), device, 1)
    work.add(index)
    work.add_nulls(index[:2] // 2)
    return work


def together(workers):
    found, sums = workers[0].findings, to_host(workers[0].accumulator.sums)
    for work in workers[1:]:
        found.include_sums(work.findings)
        for batch in work.findings.take_batches():
            found.include(batch)
        sums = sums + to_host(work.accumulator.sums)
    return found, sums


def bits(found, sums):
    matches = found.all_matches(N)
    columns = dict(found.take_columns(N), weight=to_host(found.weight_sum), noise=found.noise.power(), sums=sums,
                   matches=matches, pull=found.all_evidence().pull)
    return {name: np.asarray(column).tobytes() for name, column in columns.items()}


@pytest.mark.parametrize("parts", ([5, 7], [7, 5], [1, 2, 9], [4, 4, 4]))
def test_parts_put_together_in_any_order_are_the_whole(parts):
    e = small_experiment(N)
    whole = bits(*together([worked(e, CPU, np.arange(N))]))
    edges = np.concatenate([[0], np.cumsum(parts)])
    pieces = [np.arange(a, b) for a, b in zip(edges, edges[1:])][::-1]
    assert bits(*together([worked(e, CPU, index) for index in pieces])) == whole


def test_images_out_of_range_are_summed_again_less_finely(capsys):
    """Of an image 10⁸ times as bright as its noise: the map of sums in float32, but for 2⁻¹³ of the largest 1/σ in
    each term."""
    e = small_experiment(N)
    e.images[3] *= 1e8
    task = HalfTask(e.half_set(), e.plan(RESOLUTION), CPU, 1)
    found = task.align(silent)
    assert "made again, less fine" in capsys.readouterr().out
    need = need_of(task.plan, e.particles, task.half.max_shell, e.mask, CPU)
    in_floats = attempt_together([task], silent, need, None)[0]
    np.testing.assert_allclose(found.half_map, in_floats.half_map, atol=1e-3 * np.abs(in_floats.half_map).max())
    np.testing.assert_array_equal(found.poses.rotation, in_floats.poses.rotation)


def test_of_a_team_whose_sums_are_out_of_range_the_first_goes_on_alone():
    """Whoever met the bright image: here another member, whose message the first one sees."""
    class Two(Team):
        size = 2

        def collect(self, part):
            return [part, True if part is True else other]

        def total(self, sums):
            raise AssertionError("sums out of range are not added")
    e = small_experiment(N)
    task = HalfTask(e.half_set(), e.plan(RESOLUTION), CPU, 1)
    alone = task.align(silent)
    work = HalfAlignment(task.half, task.plan, CPU, 1)
    work.findings.out_of_range = True
    other = work.findings, work.accumulator.reached
    np.testing.assert_allclose(replace(task, team=Two()).align(silent).half_map, alone.half_map, atol=1e-5)
    other[0].out_of_range, other = False, (work.findings, np.full(2, np.inf))  # each is in its range, their sum is not
    np.testing.assert_allclose(replace(task, team=Two()).align(silent).half_map, alone.half_map, atol=1e-5)


def test_a_team_sums_in_floats_if_one_of_its_gpus_does_not_hold_integers(capsys):
    class Two(Team):
        size = 2

        def collect(self, part):
            return [part, False] if part is True else [part]
    e = small_experiment(N)
    task = HalfTask(e.half_set(), e.plan(RESOLUTION), CPU, 1, Two())
    result = task.align(silent)
    assert "does not hold sums in 64-bit integers" in capsys.readouterr().out
    need = need_of(task.plan, e.particles, task.half.max_shell, e.mask, CPU)
    in_floats = attempt_together([replace(task, team=ALONE)], silent, need, None)[0]
    np.testing.assert_array_equal(result.half_map, in_floats.half_map)


def test_on_a_gpu_the_sums_are_those_of_its_own_parts_to_the_last_bit_and_those_of_the_cpu_to_rounding(monkeypatch):
    install(monkeypatch)
    e = small_experiment(N)
    here, sums_here = together([worked(e, CPU, np.arange(N))])
    whole = bits(*together([worked(e, STAND_IN, np.arange(N))]))
    there, sums_there = together([worked(e, STAND_IN, index) for index in (np.arange(4, N), np.arange(4))])
    np.testing.assert_allclose(sums_there, sums_here, atol=1e-3 * np.abs(sums_here).max())
    np.testing.assert_allclose(to_host(there.weight_sum), here.weight_sum, rtol=1e-5)
    np.testing.assert_allclose(there.noise.power(), here.noise.power(), rtol=1e-4)
    assert bits(there, sums_there) == whole


def test_noise_is_the_mean_residual_power_of_each_group_and_shell():
    """Against a direct sum in float64; images as bright as 10¹² times the noise's unit are no exception."""
    e, rng = small_experiment(N), np.random.default_rng(5)
    shells = (e.half_set().max_shell + 1,)
    for unit in (1.0, 1e-12, 1e9):
        noise = NoiseSums(e.particles, np.full((len(e.particles.optics),) + shells, unit))
        power = (unit * rng.exponential(1.0, (N,) + noise.counted.shape)).astype(np.float32)
        change, shell = rng.standard_normal((N, 40)).astype(np.float32), np.repeat(np.arange(1, 11), 4)
        noise.add(e.particles.optics_group, power, change, shell)
        pixels = power.astype(float).sum(axis=0)[noise.counted]
        expected = np.bincount(noise.shell, pixels, shells[0])
        expected += 0.5 * unit * np.bincount(shell, change.astype(float).sum(axis=0), shells[0])
        pixels = np.maximum(np.bincount(noise.shell, minlength=shells[0]), 1)
        np.testing.assert_allclose(noise.power()[0, 1:], (expected / N / pixels)[1:], rtol=1e-6)


def test_integers_are_summed_by_shell_without_rounding():
    values = np.array([1, 2 ** 60, 5, -7, 2 ** 55 + 1])
    found = integers_by_shell(values, np.array([3, 0, 3, 0, 1]), 4)
    assert found.tolist() == [2 ** 60 - 7, 2 ** 55 + 1, 0, 6, 0]
