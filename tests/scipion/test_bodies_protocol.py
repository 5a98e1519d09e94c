"""Several masks in one protocol: outputs of each body and of the composite, Continue, and what the form refuses."""
from __future__ import annotations

import os
import re
import time
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
from conftest import require_mpi
from pyworkflow.object import RELATION_SOURCE, Pointer
from pyworkflow.protocol.constants import MODE_RESTART, MODE_RESUME
from pyworkflow.utils import makePath
from run_results import assert_same_bits
from scipion_data import (
    completed,
    launched,
    project_of_tests,
    simulated_inputs,
    soft_ball,
    store_inputs,
    volume,
    write_map,
)

from localrefine_plugin import wizard_computations
from localrefine_plugin.engine.command_line import parser
from localrefine_plugin.engine.io.run_folder import BodiesFolder, RunFolder, read_json, write_json
from localrefine_plugin.engine.prepare.arguments import read_settings
from localrefine_plugin.protocols import ProtLocalCompose, ProtLocalRefine
from localrefine_plugin.report.map_plots import mask_layout_figure

BOX, COUNT = 32, 100
OF_BODY = ["outputVolume", "outputParticles", "outputFSC", "outputMask"]
OF_COMPOSITE = ["outputComposite", "outputCompositeFSC", "outputCompositeMask"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Particles and volume, and masks A and B of two halves of the particle; Bad has values of 3."""
    folder = tmp_path_factory.mktemp("data")
    with project_of_tests("test_bodies") as made:
        inputs = simulated_inputs(made, folder, box=BOX, n=COUNT)
        masks = {name: write_map(folder / f"mask_{name}.mrc", factor * soft_ball(BOX, 6, 4, (x, 0, 0)))
                 for name, factor, x in (("A", 1, -5), ("B", 1, 5), ("Bad", 3, 5))}
        masks["Small"] = write_map(folder / "mask_small.mrc", soft_ball(24, 6, 4))
        stored = store_inputs(made, {f"output{name}": lambda p, path=path: volume(path, mask=True)
                                     for name, path in masks.items()})
        yield SimpleNamespace(project=made, inputs=inputs, masks=stored)


def pointer(source, output):
    return Pointer(source, extended=output)


def protocol_of(project, first, *more, **params):
    protocol = project.project.newProtocol(ProtLocalRefine, maxIterations=1, numberOfThreads=1, useGpu=False,
                                           subtractBodies=False, **params)
    for name, source, output in (("inputParticles", project.inputs, "outputParticles"),
                                 ("inputVolume", project.inputs, "outputVolume"),
                                 ("inputMask", project.masks, f"output{first}")):
        getattr(protocol, name).set(source)
        getattr(protocol, name).setExtended(output)
    protocol.moreMasks.set([pointer(project.masks, f"output{name}") for name in more])
    return protocol


@pytest.fixture(scope="module")
def finished(project):
    return completed(project.project, protocol_of(project, "A", "B"))


@pytest.fixture(scope="module")
def alone(project):
    return completed(project.project, protocol_of(project, "B"))


def poses(particles):
    return np.array([item.getTransform().getMatrix() for item in particles])


def moments(protocol):
    """When each of the engine's steps wrote its last file."""
    return {str(path): path.stat().st_mtime_ns for run in protocol.run_folders()
            for path in [*run.path.glob("iter_*/*.json"), run.report] if path.exists()}


# ---------------------------------------------------------------- outputs

def test_each_body_and_the_composite_have_outputs(finished):
    names = [name for name, _ in finished.iterOutputAttributes()]
    assert sorted(names) == sorted(OF_BODY + [f"{name}_body2" for name in OF_BODY] + OF_COMPOSITE)
    assert set(names) <= set(finished.getPossibleOutputs())
    for suffix in ("", "_body2"):
        assert getattr(finished, f"outputParticles{suffix}").getSize() == COUNT
        assert getattr(finished, f"outputFSC{suffix}").getSize() == 5
        assert len(getattr(finished, f"outputVolume{suffix}").getHalfMaps(asList=True)) == 2
    one, two = (mrcfile.read(name) for name in finished.outputComposite.getHalfMaps(asList=True))
    composite = mrcfile.read(finished.outputComposite.getFileName())
    np.testing.assert_allclose(composite, 0.5 * (one + two), atol=1e-6)
    for item in (finished.outputComposite, finished.outputVolume_body2, finished.outputCompositeMask):
        assert item.getSamplingRate() == 3.0 and item.getDim() == (BOX, BOX, BOX)
    assert finished.outputCompositeFSC.getSize() == 5
    files = [getattr(finished, name).getFileName() for name in names]
    assert len(set(files)) == len(files) and all(os.path.exists(name) for name in files)


def test_a_body_has_the_bits_of_a_protocol_of_its_own(finished, alone):
    assert [name for name, _ in alone.iterOutputAttributes()] == OF_BODY
    assert_same_bits(alone.run_folders()[0], finished.run_folders()[1])
    np.testing.assert_array_equal(poses(alone.outputParticles), poses(finished.outputParticles_body2))
    assert not np.array_equal(poses(alone.outputParticles), poses(finished.outputParticles))
    np.testing.assert_array_equal(mrcfile.read(alone.outputVolume.getFileName()),
                                  mrcfile.read(finished.outputVolume_body2.getFileName()))


def test_relations_lead_from_each_output_to_its_own_mask(project, finished):
    stored = finished.mapper.getRelationsByName(RELATION_SOURCE)
    names = {item.getObjId(): name for name, item in finished.iterOutputAttributes()}
    masks = {names[row["object_child_id"]]: set() for row in stored if row["object_child_id"] in names}
    for row in stored:
        if row["object_child_id"] in names and row["object_parent_id"] == project.masks.getObjId():
            masks[names[row["object_child_id"]]].add(row["object_parent_extended"])
    assert masks["outputVolume"] == {"outputA"} and masks["outputParticles_body2"] == {"outputB"}
    assert masks["outputComposite"] == {"outputA", "outputB"} and set(masks) == set(names.values())


def test_the_particles_and_the_map_of_a_body_go_on_into_another_refinement(project, finished):
    protocol = protocol_of(project, "B")
    for name, output in (("inputParticles", "outputParticles_body2"), ("inputVolume", "outputVolume_body2"),
                         ("inputMask", "outputMask_body2")):
        getattr(protocol, name).set(finished)
        getattr(protocol, name).setExtended(output)
    assert protocol.validate() == []
    protocol.inputVolume.setExtended("outputComposite")
    assert protocol.validate() == []
    assert poses(protocol.inputParticles.get()).shape == (COUNT, 4, 4)


def test_summary_and_methods_tell_of_each_body_and_of_all(finished, alone):
    lines = finished.summary()
    for start in ("*Body 1*: Resolution", "*Body 2*: Resolution", "*Composite*: ", "Body 1 holds"):
        assert sum(line.startswith(start) for line in lines) == 1, lines
    assert "to report" in lines[1]
    assert any("odies 1 and 2" in line or "When body 1" in line for line in lines)
    assert sum("Report with pictures of body" in line for line in lines) == 2
    assert os.path.getsize(finished.html_report_path(2)) > 100_000
    methods = finished.methods()[0]
    assert "2 parts of the map" in methods and "resolution of body 2 is" in methods
    assert "the part of the map inside a soft mask" in alone.methods()[0] and "body" not in alone.methods()[0]


def test_analyze_results_shows_the_body_that_is_chosen(project, finished, alone):
    from localrefine_plugin.viewers import LocalRefineViewer
    viewer = LocalRefineViewer(project=project.project, protocol=finished)
    viewer.setProtocol(finished)
    assert viewer.state().folder.path.name == "body_1"
    viewer.body.set(1)
    assert viewer.state().folder.path.name == "body_2"
    volumes = [item.getFileName() for item in viewer.write_map_set()]
    assert volumes and all("body_2" in name for name in volumes)
    names = [name for name, _ in viewer._other_runs()]
    for number in (1, 2):
        viewer.filmRest.set(1 + names.index(f"{finished.getRunName()}, body {number} (id {finished.getObjId()})"))
        assert viewer._chosen_run("filmRest")[1].folder.path == finished.run_folders()[number - 1].path
    assert "does not move against itself" in viewer._film_error()
    other = LocalRefineViewer(project=project.project, protocol=alone)
    other.setProtocol(alone)
    assert other.state().folder.path.name == "run" and not hasattr(other, "body")
    assert not any(name.startswith(f"{alone.getRunName()} (id {alone.getObjId()})") for name, _ in other._other_runs())


def test_compose_bodies_takes_all_bodies_of_a_run(project, finished, alone):
    protocol = project.project.newProtocol(ProtLocalCompose, frame=2, numberOfThreads=1)
    protocol.inputRuns.set([finished])
    composed = completed(project.project, protocol)
    frame = read_json(composed._folder("composite.json"))["frame"]
    assert os.path.realpath(frame) == os.path.realpath(finished.run_folders()[1].path)
    parents = {relation["object_parent_id"] for relation in composed.mapper.getRelationsByName(RELATION_SOURCE)}
    assert {finished.outputVolume.getObjId(), finished.outputVolume_body2.getObjId()} <= parents
    assert "2 local refinements" in composed.methods()[0]
    protocol.inputRuns.set([finished, alone])
    protocol.frame.set(4)
    assert "choose 0 to 3" in protocol._validate()[0]


def test_the_wizard_of_the_masks_says_what_the_run_says(finished):
    density, masks, lines = wizard_computations.mask_layout(finished)
    record = read_json(BodiesFolder(finished._getExtraPath("run")).record)
    said = [*record["words"], *(f"Warning: {text}" for text in record["warnings"])]
    numbers = [[int(word) for word in re.findall(r"\d+", " ".join(texts))] for texts in (lines, said)]
    assert len(lines) == len(said) and lines[0].startswith("Body 1 holds")
    np.testing.assert_allclose(*numbers, atol=1)
    figure = mask_layout_figure(density, masks)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["body 1", "body 2", "in two masks", "density in no mask"]
    layers = [image.get_array() for image in figure.axes[0].images]
    assert [layer.shape for layer in layers] == [(BOX, BOX)] + 3 * [(BOX, BOX, 4)]
    assert [layer[..., 3].any() for layer in layers[1:]] == [True, True, True]


@pytest.mark.parametrize("more, words", [("", "Choose more masks"), (["Small"], "body 2 has another box")])
def test_the_wizard_of_the_masks_says_what_it_lacks(project, more, words):
    with pytest.raises(wizard_computations.Missing, match=words):
        wizard_computations.mask_layout(protocol_of(project, "A", *more))


# ---------------------------------------------------------------- Continue

def wait_for(path, seconds=240):
    end = time.time() + seconds
    while not path.exists():
        assert time.time() < end, f"{path} has not come"
        time.sleep(0.02)


def continued(project, protocol):
    protocol.runMode.set(MODE_RESUME)
    return completed(project.project, protocol)


def test_continue_after_a_kill_keeps_what_was_done(project, finished):
    protocol = protocol_of(project, "A", "B")
    project.project.launchProtocol(protocol)
    wait_for(RunFolder(protocol._getExtraPath("run", "body_2")).half_done(1, 1))
    project.project.stopProtocol(protocol)
    done = {name: when for name, when in moments(protocol).items() if "iter_001/half_1" in name}
    assert len(done) == 2 and not any(run.report.exists() for run in protocol.run_folders())
    protocol = continued(project, protocol)
    now = moments(protocol)
    assert {name: now[name] for name in done} == done
    for mine, other in zip(protocol.run_folders(), finished.run_folders()):
        assert_same_bits(mine, other)
    again = continued(project, protocol)
    assert moments(again) == now
    again.moreMasks.set([])
    errors = again.validate()
    assert len(errors) == 1 and "more bodies than this; use Restart" in errors[0]
    again.runMode.set(MODE_RESTART)
    assert again.validate() == []


def test_two_mpi_processes_give_the_same_bits(project, finished, monkeypatch):
    require_mpi()
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    protocol = completed(project.project, protocol_of(project, "A", "B", numberOfMpi=2))
    records = [read_json(run.half_done(1, 1)) for run in protocol.run_folders()]
    assert [record["processes"] for record in records] == [2, 2]
    for mine, other in zip(protocol.run_folders(), finished.run_folders()):
        assert_same_bits(mine, other)


def test_a_job_that_the_queue_ends_early_is_no_success(finished, monkeypatch):
    """Even if an earlier attempt had come to its end."""
    record = BodiesFolder(finished._getExtraPath("run")).record
    content = record.read_bytes()
    monkeypatch.setattr(finished, "runJob", lambda *words, numberOfMpi: None)
    with pytest.raises(RuntimeError, match="ended before its work was done"):
        finished.refineBodiesStep("digest", "token")
    record.write_bytes(content)


# ---------------------------------------------------------------- what is refused

def test_what_is_wrong_with_one_of_the_bodies_is_one_sentence(project):
    protocol = launched(project.project, protocol_of(project, "A", "Bad"))
    assert protocol.isFailed()
    message = protocol.getErrorMessage()
    assert "outside 0" in message and "mask_Bad.mrc" in message and "exit status" not in message
    assert any(line.startswith("*Stopped*") for line in protocol.summary())


@pytest.mark.parametrize("masks, params, words", [
    ("AB", {}, None), ("AA", {}, "given twice"), (("A", "Small"), {}, "the mask 2 has 24 × 24 × 24"),
    ("AB", dict(fulcrum=2, fulcrumX=16, fulcrumY=16, fulcrumZ=16), "hold for one mask only"),
    ("A", dict(fulcrum=2, fulcrumX=16, fulcrumY=16, fulcrumZ=16), None)])
def test_the_form_is_checked(project, masks, params, words):
    errors = protocol_of(project, *masks, **params).validate()
    assert errors == [] if words is None else len(errors) == 1 and words in errors[0], errors


@pytest.mark.parametrize("text, words", [
    ("", None), ("2: rotationExtent = automatic; fulcrum=[16, 17.5, 18]\nbody 1: prior = off, marginalize = no", None),
    ("rotation_extent_deg = 10", "does not begin with the number of a body"), ("3: prior = off", "there is no body 3"),
    ("2: rotation = 10", "there is no setting 'rotation'"), ("2: prior", "is not a setting and its value"),
    ("2: rotation_extent_deg = 200", "outside 0.1"), ("2: prior = none", "not offered"),
    ("2: seed = 3", "the same for all bodies"), ("2: prior = off; usePrior = off", "given twice"),
    ("2: recenter_rotations = yes", "*Re-centre*")])
def test_settings_per_body_are_checked(project, text, words):
    errors = protocol_of(project, "A", "B", settingsPerBody=text).validate()
    assert errors == [] if words is None else len(errors) == 1 and words in errors[0], errors


def test_the_engine_gets_the_settings_of_each_body(project):
    """… and coordinates of the form hold for the first, if the others have their own."""
    protocol = protocol_of(project, "A", "B", fulcrum=2, fulcrumX=9, fulcrumY=16, fulcrumZ=16)
    assert "hold for one mask only" in protocol.validate()[0]
    protocol.settingsPerBody.set("2: fulcrum = box; priorRotation = 3; marginalize = no")
    assert protocol.validate() == []
    project.project._setupProtocol(protocol)
    makePath(protocol._input_path())
    write_json(protocol._input_path("paths.json"), dict(half_map_1="1", half_map_2="2", mask="A", more_masks=["B"]))
    given = parser().parse_args(["refine", *protocol._engine_inputs()])
    assert given.mask == ["A", "B"]
    first, second = (read_settings(name) for name in given.settings)
    assert first.fulcrum == [9, 16, 16] and second.fulcrum == "box"
    assert (first.prior_rotation_deg, second.prior_rotation_deg) == (7, 3)
    assert first.marginalize and not second.marginalize and first.max_iterations == second.max_iterations == 1


def test_an_entry_without_a_mask_is_refused(project):
    protocol = protocol_of(project, "A")
    protocol.moreMasks.append(Pointer())
    errors = protocol.validate()
    assert len(errors) == 1 and "entry 1 is empty" in errors[0]
