"""The example of two local refinements in a row, on few and small images."""
from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from conftest import REQUIRE_OPTIONAL, _missing
from scipion_data import new_project

from examples import chain, simulate


def test_the_head_starts_from_the_poses_of_the_body(tmp_path, monkeypatch):
    if importlib.util.find_spec("relion") is None:
        _missing("the Scipion plugin scipion-em-relion is not installed", REQUIRE_OPTIONAL)
    monkeypatch.chdir(tmp_path)
    options = simulate.Options(particles=80, box_size=32, pixel_size=9.0, snr=2.0)
    simulate.simulate(tmp_path / "data", options)
    chain.write_body_mask(tmp_path / "data")
    found = chain.chain(new_project("test_chain"), tmp_path / "data", options.pixel_size, compare=False,
                        maxIterations=1, numberOfThreads=1, useGpu=False)
    body, both = found["body"], found["head after body"]
    given = {item.getObjId(): item.getTransform().getMatrix().copy() for item in both.inputParticles.get()}
    for item in body.outputParticles:
        assert np.allclose(given[item.getObjId()], item.getTransform().getMatrix())
    assert both.inputVolume.get().getHalfMaps() == body.outputVolume.getHalfMaps()
    assert both.outputMask.getFileName() != body.outputMask.getFileName()
    lines = chain.table(tmp_path / "data", found).strip().split("\n")
    assert [line.split("  ")[0] for line in lines[1:]] == ["input", "head after body"]
    assert [float(line.split("°")[0].split()[-1]) for line in lines[1:]] == pytest.approx([5, 5], abs=5)
