"""On a machine with an NVIDIA GPU: the GPU against the CPU. `make gpu-check` runs these and fails without a GPU."""
from __future__ import annotations

import numpy as np
import pytest
from experiments import experiment, write_inputs

from localrefine_plugin.engine import refine as refine_module
from localrefine_plugin.engine.io.mrc import read_map
from localrefine_plugin.engine.io.run_folder import read_json
from localrefine_plugin.engine.kernels import prefetch
from localrefine_plugin.engine.kernels.device import choose_device
from localrefine_plugin.engine.kernels.prefetch import Prefetch, from_array
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.workers.selftest import selftest

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu():
    chosen = choose_device("cuda")
    print(chosen.description)
    return chosen


def test_the_self_test_passes(gpu):
    checks = selftest(gpu)
    assert all(check.passed for check in checks), checks


def test_a_whole_refinement_is_that_of_the_cpu(gpu, tmp_path):
    inputs = write_inputs(tmp_path / "in", experiment(60, noise=0.5))
    settings = Settings(max_iterations=2, rotation_extent_deg=12.0, shift_extent_angstrom=8.0)
    runs = [refine_module.refine(*inputs, str(tmp_path / word), settings, device=word) for word in ("cuda", "cpu")]
    on_gpu, on_cpu = (read_map(run.path / "final" / "map.mrc")[0] for run in runs)
    assert np.linalg.norm(on_gpu - on_cpu) < 0.02 * np.linalg.norm(on_cpu)
    assert read_json(runs[0].half_done(1, 1))["device"].startswith("GPU")


def test_images_reach_the_gpu_as_they_were_read(gpu, monkeypatch):
    """Through many turns of small pinned buffers, with work between that takes longer than the copies."""
    monkeypatch.setattr(prefetch, "PINNED_BYTES", 1 << 16)
    images = np.random.default_rng(0).standard_normal((2000, 64, 64)).astype(np.float32)
    xp, found = gpu.xp, []
    with Prefetch(from_array(images), len(images), 64, gpu) as ahead:
        for start in range(0, len(images), 250):
            batch = ahead(np.arange(start, start + 250))
            for _ in range(20):
                xp.fft.rfft2(batch)
            found.append(batch + 0)
    np.testing.assert_array_equal(xp.concatenate(found).get(), images)


def test_two_gpus_do_a_half_set_each(gpu, tmp_path):
    try:
        choose_device("cuda:1")
    except InputError as missing:
        pytest.skip(f"no second GPU: {missing.problem}")
    inputs = write_inputs(tmp_path / "in", experiment(60, noise=0.5))
    settings = Settings(max_iterations=1, rotation_extent_deg=12.0, shift_extent_angstrom=8.0)
    run = refine_module.refine(*inputs, str(tmp_path / "two"), settings, device="cuda:0,cuda:1")
    one = refine_module.refine(*inputs, str(tmp_path / "one"), settings, device="cuda:0")
    assert [read_json(run.half_done(1, half))["device"][:5] for half in (1, 2)] == ["GPU 0", "GPU 1"]
    for half in (1, 2):
        np.testing.assert_allclose(np.load(run.poses(1, half))["rotation"], np.load(one.poses(1, half))["rotation"],
                                   atol=1e-6)


def test_two_runs_have_the_same_bits(gpu, tmp_path):
    """The second iteration aligns to a map that the first one's sums made."""
    inputs = write_inputs(tmp_path / "in", experiment(40, noise=0.5))
    settings = Settings(max_iterations=2, rotation_extent_deg=12.0, shift_extent_angstrom=8.0)
    runs = [refine_module.refine(*inputs, str(tmp_path / str(i)), settings, device="cuda") for i in range(2)]
    for name in ("map.mrc", "map_sharpened.mrc", "half_map_1.mrc", "fsc.star", "particles.star"):
        assert runs[0].final(name).read_bytes() == runs[1].final(name).read_bytes(), name
