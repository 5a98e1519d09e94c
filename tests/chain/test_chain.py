"""The example of two local refinements in a row, on few and small images."""
from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from conftest import REQUIRE_OPTIONAL, _missing
from scipion_data import new_project

from examples import chain, simulate, tutorial


def test_the_head_starts_from_the_poses_of_the_body(tmp_path, monkeypatch):
    if importlib.util.find_spec("relion") is None:
        _missing("the Scipion plugin scipion-em-relion is not installed", REQUIRE_OPTIONAL)
    monkeypatch.chdir(tmp_path)
    options = simulate.Options(particles=80, box_size=32, pixel_size=9.0, snr=2.0)
    simulate.simulate(tmp_path / "data", options)
    chain.write_body_mask(tmp_path / "data")
    project = new_project("test_chain")
    found = chain.chain(project, tmp_path / "data", options.pixel_size, compare=False,
                        maxIterations=1, numberOfThreads=1, useGpu=False)
    project.exportProtocols(project.getRuns(), str(tmp_path / "chain.json"))
    body, both = found["body"], found["head after body"]
    given = {item.getObjId(): item.getTransform().getMatrix().copy() for item in both.inputParticles.get()}
    for item in body.outputParticles:
        assert np.allclose(given[item.getObjId()], item.getTransform().getMatrix())
    assert both.inputVolume.get().getHalfMaps() == body.outputVolume.getHalfMaps()
    assert both.outputMask.getFileName() != body.outputMask.getFileName()
    lines = chain.table(tmp_path / "data", found).strip().split("\n")
    assert [line.split("  ")[0] for line in lines[1:]] == ["input", "head after body"]
    assert [float(line.split("°")[0].split()[-1]) for line in lines[1:]] == pytest.approx([5, 5], abs=5)
    the_workflow_runs_in_another_project(tmp_path / "chain.json", found)


def the_workflow_runs_in_another_project(path, found):
    """chain.json up to the refinement of the body: same settings, same data, so the same poses to the bit."""
    project = new_project("test_chain_again")
    made = project.loadProtocols(str(path))
    first, second = (made[found[name].strId()] for name in ("body", "head after body"))
    assert second.inputParticles.getObjValue() is first and second.inputVolume.getObjValue() is first
    for protocol in made.values():
        if "Import" in protocol.getClassName():
            tutorial.run(project, protocol)
    body = tutorial.run(project, first)
    again = {item.getObjId(): item.getTransform().getMatrix().copy() for item in body.outputParticles}
    for item in found["body"].outputParticles:
        assert np.array_equal(again[item.getObjId()], item.getTransform().getMatrix())
