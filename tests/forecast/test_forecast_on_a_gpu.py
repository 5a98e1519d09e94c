"""A forecast whose sample is aligned on the stand-in for CuPy is that of the CPU."""
from __future__ import annotations

import pytest
from experiments import write_inputs
from gpu.fixtures import STAND_IN, install
from small_experiments import small_experiment

from localrefine_plugin.engine.forecast import forecast as forecast_module
from localrefine_plugin.engine.forecast.forecast import Inputs, forecast
from localrefine_plugin.engine.kernels.device import CPU
from localrefine_plugin.engine.records.settings import Settings


def test_a_forecast_is_that_of_the_cpu(monkeypatch, tmp_path):
    cupy = install(monkeypatch)
    monkeypatch.setattr(forecast_module, "choose_device", lambda word: STAND_IN if word == "cuda" else CPU)
    monkeypatch.setattr(forecast_module, "LEAST_SAMPLE", 12)
    *inputs, mask = write_inputs(tmp_path, small_experiment(48))
    given = Inputs(*inputs, Settings(rotation_extent_deg=12.0, shift_extent_angstrom=8.0), sample=24)
    on_gpu, on_cpu = (forecast(given, [mask], word, 1)[0] for word in ("cuda", "cpu"))
    assert cupy.ledger.counts.launches > 0
    for name in ("resolution_angstrom", "to_report_angstrom", "rotation_error_deg", "shift_error_angstrom"):
        assert getattr(on_gpu, name) == pytest.approx(getattr(on_cpu, name), rel=0.02), name
