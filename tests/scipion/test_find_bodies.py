"""The protocol 'find moving bodies' in a project: of a finished local refinement, and of particles and volume."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path

import mrcfile
import pytest
from pyworkflow.protocol.constants import MODE_RESUME
from scipion_data import completed, launched, project_of_tests, simulated_inputs, stored_run, volume
from two_bodies import ANGLE_DEG, PIXEL_SIZE, whole_run

from localrefine_plugin.engine.io.run_folder import read_json, write_json
from localrefine_plugin.protocols import ProtLocalFindBodies, ProtLocalRefine

ORIGIN = (-11.0, -12.0, -13.0)


@pytest.fixture(scope="module")
def project():
    with project_of_tests("test_find_bodies") as made:
        yield made


@pytest.fixture(scope="module")
def refined(project):
    """A local refinement of the project in a mask of the whole particle, of which body B turns."""
    return stored_run(project, "whole particle", whole_run(ANGLE_DEG).path, PIXEL_SIZE, ORIGIN)


def finding(project, run, **values):
    protocol = project.newProtocol(ProtLocalFindBodies, **dict(dict(start=1, cells=8, numberOfThreads=1), **values))
    protocol.inputRun.set(run)
    return protocol


@pytest.fixture(scope="module")
def found(project, refined):
    return completed(project, finding(project, refined))


def contents(folder):
    """Digests of all files below a folder, through links to folders too, by their relative names."""
    names = [Path(where, name) for where, _, found in os.walk(folder, followlinks=True) for name in found]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest() for path in names}


def test_every_body_is_a_mask_and_the_motion_a_map_in_the_frame_of_the_run(found):
    record = found.run_state().rigidity
    assert len(record.bodies) == 2
    outputs = dict(found.iterOutputAttributes())
    assert sorted(outputs) == ["outputMask_body1", "outputMask_body2", "outputMotion"]
    for item in outputs.values():
        assert item.getSamplingRate() == PIXEL_SIZE and item.getOrigin(force=True).getShifts() == ORIGIN
    folder = found.run_state().folder.rigidity.parent
    for body in record.bodies:
        assert os.path.samefile(outputs[f"outputMask_body{body.number}"].getFileName(), folder / body.mask)
    assert record.bodies[0].share > record.bodies[1].share
    assert mrcfile.read(found.outputMask_body2.getFileName()).max() == pytest.approx(1, abs=1e-3)
    largest = max(cell.displacement_angstrom for cell in record.cells)
    assert mrcfile.read(found.outputMotion.getFileName()).max() == pytest.approx(largest, rel=0.2)


def test_the_run_that_was_given_is_as_it_was(found, refined):
    assert not refined.run_state().folder.rigidity.exists() and not refined.run_state().folder.error.exists()
    original, given, ours = (contents(folder) for folder in (
        whole_run(ANGLE_DEG).path, refined._getExtraPath("run"), found._getExtraPath("run")))
    assert len(given) > 20 and given.items() <= original.items() and given.items() <= ours.items()
    assert {path.parts[:2] for path in ours.keys() - given.keys()} == {("final", "rigidity")}


def test_summary_and_methods_say_what_was_found(found):
    said = " ".join(found._summary())
    assert "2 bodies that move against each other" in said and "two standard errors" in said
    assert "Body 2" in said and "Density of the bodies" in said
    script = Path(found._summary()[-1].split(": ")[1])
    opened = [line.split()[1] for line in script.read_text().splitlines() if line.startswith("open ")]
    assert len(opened) == 4 and all((script.parent / name).exists() for name in opened)
    assert "8 cells" in found._methods()[0] and "Number of bodies: 2" in found._methods()[0]
    assert found._citations() == ["LocalRefine"]


def test_relations_lead_back_to_the_map_of_the_run(found, refined):
    from pyworkflow.object import RELATION_SOURCE
    relations = found.mapper.getRelationsByName(RELATION_SOURCE)
    children = {relation["object_child_id"] for relation in relations
                if relation["object_parent_id"] == refined.outputVolume.getObjId()}
    assert {item.getObjId() for _, item in found.iterOutputAttributes()} <= children


def test_analyze_results_shows_the_cells_and_names_the_script(project, found, monkeypatch):
    from pyworkflow import Config
    from pyworkflow.viewer import DESKTOP_TKINTER

    from localrefine_plugin.viewers import FindBodiesViewer
    assert FindBodiesViewer in Config.getDomain().findViewers("ProtLocalFindBodies", DESKTOP_TKINTER)
    viewer = FindBodiesViewer(project=project, protocol=found)
    viewer.setProtocol(found)
    handlers = viewer._getVisualizeDict()
    assert all(viewer.getParam(name) is not None for name in handlers)
    figure = handlers["rigidity"]("rigidity")[0]._draw(None)
    named = [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert {"body 1", "body 2"} <= {text.split(",")[0] for text in named}
    said = []
    monkeypatch.setattr(viewer, "errorMessage", lambda text, title: said.append(text))
    views = handlers["showBodies"]()
    assert "rigidity.cxc" in (said[0] if said else str(views[0]._inputFile))
    assert viewer._summary() == found.summary()


def test_continue_with_fewer_bodies_takes_the_others_away(project, refined):
    protocol = completed(project, finding(project, refined))
    record = protocol.run_state().folder.rigidity
    written = read_json(record)
    write_json(record, dict(written, bodies=written["bodies"][:1]))  # as if no body had been seen to move
    protocol.runMode.set(MODE_RESUME)
    step = next(step for step in protocol.loadSteps() if step.funcName.get() == "createOutputStep")
    protocol.createOutputStep(step.argsStr.get())
    assert sorted(dict(protocol.iterOutputAttributes())) == ["outputMask_body1", "outputMotion"]
    assert not any("Warning" in line for line in protocol.summary())
    protocol._defineOutputs(outputMask_body2=protocol.outputMask_body1.clone())  # as Scipion's project keeps it
    assert any(line.startswith("*Warning*: outputMask_body2 is of an earlier attempt") for line in protocol.summary())


def test_what_cannot_be_used_is_said_in_the_form(project, refined):
    unfinished = project.newProtocol(ProtLocalRefine)
    unfinished.setObjLabel("still running")
    project.saveProtocol(unfinished)
    assert "still running has not finished" in finding(project, unfinished).validate()[0]
    assert finding(project, refined).validate() == []
    assert "choose 4 to 60" in finding(project, refined, cells=3).validate()[0]
    assert any("Local refinement" in text for text in finding(project, None).validate())
    nothing = " ".join(project.newProtocol(ProtLocalFindBodies).validate())
    assert "Particles" in nothing and "Volume with half-maps" in nothing and "Local refinement" not in nothing


@pytest.mark.parametrize("verdict, warned", [
    ("apart", True), ("mixed", True), ("consensus", False), ("not done", False)])
def test_a_mask_that_leaves_out_what_moves_is_warned_of(project, refined, verdict, warned):
    path = refined.run_state().folder.final("rest_control.json")
    before = path.read_bytes()
    write_json(path, dict(read_json(path), verdict=verdict))
    said = finding(project, refined)._warnings()
    path.write_bytes(before)
    assert [("leaves out a part" in text) for text in said] == ([True] if warned else [])


def test_what_the_engine_refuses_is_the_protocols_error(project, refined):
    protocol = launched(project, finding(project, refined, sample=60))
    assert protocol.isFailed()
    assert "only 30 particles of half-set 1 can be looked at" in protocol.getErrorMessage()
    assert not refined.run_state().folder.error.exists()


def test_particles_and_volume_are_aligned_in_a_mask_of_the_whole_first(project, tmp_path_factory):
    inputs = simulated_inputs(project, tmp_path_factory.mktemp("inputs"), n=240)
    protocol = project.newProtocol(ProtLocalFindBodies, cells=4, numberOfThreads=1)
    protocol.inputParticles.set(inputs.outputParticles)
    protocol.inputVolume.set(inputs.outputVolume)
    completed(project, protocol)
    state = protocol.run_state()
    assert state.finished and len(state.rigidity.cells) == 4
    names = inputs.outputVolume.getFileName(), protocol._input_path("mask.mrc")
    density, mask = (mrcfile.read(name) for name in names)
    assert (density * mask).sum() > 0.95 * density.sum() and mask.mean() < 0.6
    assert protocol.outputMotion.getSamplingRate() == inputs.outputParticles.getSamplingRate()
    of_refinement = state.folder.report.stat().st_mtime_ns
    protocol.runMode.set(MODE_RESUME)
    protocol.cells.set(5)
    completed(project, protocol)
    assert len(protocol.run_state().rigidity.cells) == 5
    assert state.folder.report.stat().st_mtime_ns == of_refinement  # Continue repeats what depends on the cells
    again = project.newProtocol(ProtLocalFindBodies)
    again.inputParticles.set(inputs.outputParticles)
    again.inputVolume.set(protocol.outputMask_body1)
    assert "this is a mask" in again.validate()[0]
    other = volume(inputs.outputVolume.getFileName(), inputs.outputVolume.getHalfMaps(asList=True), pixel_size=4.0)
    again.inputVolume.set(other)
    errors = again.validate()
    assert len(errors) == 1 and "4 Å/px, the particles have 3 Å/px; resample the volume." in errors[0]
    from pyworkflow.object import RELATION_SOURCE
    parents = {relation["object_parent_id"] for relation in protocol.mapper.getRelationsByName(RELATION_SOURCE)}
    assert {inputs.outputParticles.getObjId(), inputs.outputVolume.getObjId()} <= parents
