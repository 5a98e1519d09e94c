"""The checks of the input say the same where half-maps are on a GPU: word by word on the stand-in for CuPy.

The stand-in refuses what CuPy refuses (tests/support/gpu/stand_in.py); each case is refused or said on the CPU as well.
"""
from __future__ import annotations

import re

import mrcfile
import numpy as np
import pytest
import test_belonging
import test_parts
import test_placed
from experiments import Experiment, experiment, inputs_of, write_inputs
from gpu.fixtures import STAND_IN, install
from oracles import soft_ball
from relion_files import write_map

from localrefine_plugin.engine.align.search_plan import resolve
from localrefine_plugin.engine.inputs.belonging import check_belonging
from localrefine_plugin.engine.inputs.checks import check_inputs
from localrefine_plugin.engine.kernels.device import CPU, array_module
from localrefine_plugin.engine.maps.fsc import five_curves
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

PIXEL_SIZE = test_belonging.PIXEL_SIZE


@pytest.fixture(scope="module")
def e() -> Experiment:
    return experiment(test_belonging.N, noise=1.0, seed=11, shift_px=3.0)


def all_that_is_said(folder, device):
    """Whether it is refused, and the warnings of all checks or the refusal; figures to one digit, for the last bits of
    a transform differ."""
    refused = False
    try:
        inputs = check_inputs(*inputs_of(folder), Settings(), 1, device)
        on_device = array_module(inputs.halves.maps[0]).asarray(inputs.mask)
        curves = five_curves(inputs.halves, on_device, inputs.pixel_size, 1, 1)
        resolved = resolve(Settings(), inputs.mask, curves.resolutions()["corrected"], inputs.pixel_size)
        texts = [*inputs.warnings, *check_belonging(inputs, resolved, 1).said]
    except InputError as error:
        refused, texts = True, [str(error)]
    return refused, [re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1g}", text) for text in texts]


def half_maps(change):
    def spoil(folder):
        for half in (1, 2):
            path = folder / f"input_{half}.mrc"
            write_map(path, np.ascontiguousarray(change(mrcfile.read(path), half)), PIXEL_SIZE)
    return spoil


def spongy_mask(folder):
    """Drawn round the bumps of half-map 1."""
    volume = mrcfile.read(folder / "input_1.mrc")
    noisy = volume + 0.3 * volume.std() * np.random.default_rng(1).standard_normal(volume.shape)
    write_map(folder / "input_1.mrc", noisy, PIXEL_SIZE)
    ball = soft_ball(len(volume), 8, 11) > 0.5
    write_map(folder / "mask.mrc", ((noisy > np.quantile(noisy[ball], 0.6)) & ball).astype(np.float32), PIXEL_SIZE)


OF_FILES = {
    "mirrored": lambda folder: test_belonging.maps_changed(folder, lambda v: np.flip(v, 0)),
    "displaced": lambda folder: test_belonging.maps_changed(folder, lambda v: np.roll(v, 3, 2)),
    "other axes": lambda folder: test_belonging.maps_changed(folder, lambda v: np.rot90(v, 1, (1, 2))),
    "other contrast": half_maps(lambda v, half: -v),
    "one map displaced": half_maps(lambda v, half: np.roll(v, 3, 2) if half == 2 else v),
    "one map of noise": half_maps(lambda v, half: np.random.default_rng(half).standard_normal(v.shape) if half == 2
                                  else v),
    "spongy mask": spongy_mask,
}


PLACED = {
    "poses of others": test_belonging.reordered(test_placed.permuted(test_parts.chosen(0.3))),
    "noise": lambda e: test_placed.noise_images(e, test_parts.chosen(0.3)),
    "turned away": lambda e: test_placed.turned_away(e, test_parts.chosen(0.3)),
}


@pytest.mark.parametrize("case", OF_FILES)
def test_maps_and_mask(e, tmp_path, monkeypatch, case):
    write_inputs(tmp_path, e)
    OF_FILES[case](tmp_path)
    compare(tmp_path, monkeypatch)


@pytest.mark.parametrize("case", [*test_belonging.READINGS, "good"])
def test_poses(e, tmp_path, monkeypatch, case):
    write_inputs(tmp_path, test_belonging.READINGS[case][0](e) if case != "good" else e)
    compare(tmp_path, monkeypatch, refused=case != "good")


@pytest.mark.parametrize("case", test_belonging.GROUPS)
def test_optics_groups(e, tmp_path, monkeypatch, case):
    both, second = test_belonging.two_groups(e)
    write_inputs(tmp_path, test_belonging.GROUPS[case][0](both, second))
    compare(tmp_path, monkeypatch, refused=True)


@pytest.mark.parametrize("case", test_parts.CASES)
def test_some_images(parts, tmp_path, monkeypatch, case):
    spoil, _, share = test_parts.CASES[case]
    write_inputs(tmp_path, spoil(parts, test_parts.chosen(share)))
    compare(tmp_path, monkeypatch, refused=True)


@pytest.mark.parametrize("case", PLACED)
def test_images_at_wrong_poses(parts, tmp_path, monkeypatch, case):
    write_inputs(tmp_path, PLACED[case](parts))
    compare(tmp_path, monkeypatch, refused=case == "poses of others")


@pytest.mark.parametrize("spoil", (test_belonging.with_exchanged_maps, test_belonging.of_another_split))
def test_half_maps_and_half_sets(reconstructed, tmp_path, monkeypatch, spoil):
    compare(spoil(reconstructed, tmp_path / "in"), monkeypatch, refused=spoil is test_belonging.with_exchanged_maps)


parts = pytest.fixture(scope="module", name="parts")(test_parts.good_set)
reconstructed = test_belonging.reconstructed


def compare(folder, monkeypatch, refused=None):
    on_cpu = all_that_is_said(folder, CPU)
    cupy = install(monkeypatch)
    assert all_that_is_said(folder, STAND_IN) == on_cpu
    assert cupy.ledger.counts.launches > 0
    assert refused in (None, on_cpu[0]), on_cpu
