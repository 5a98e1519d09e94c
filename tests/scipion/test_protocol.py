"""The protocol in a Scipion project: form, validation, a run through the framework, Continue, and failure."""
from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from scipion_data import launched, new_project, simulated_inputs, soft_ball, store_inputs, volume, write_map

from localrefine_plugin.engine.io.run_folder import RunFolder, read_json
from localrefine_plugin.engine.records.settings import SettingInfo, Settings
from localrefine_plugin.protocols import ProtLocalRefine
from localrefine_plugin.protocols import form_local_refine as form
from localrefine_plugin.protocols.step_chain import StepChain, fingerprint

NAMES_OF_THE_FIELD = {
    "prior": "usePrior", "prior_rotation_deg": "priorRotation", "prior_shift_angstrom": "priorShift",
    "rotation_extent_deg": "rotationExtent", "shift_extent_angstrom": "shiftExtent", "fulcrum": "fulcrum",
    "recenter_rotations": "recenterRotations", "recenter_shifts": "recenterShifts", "marginalize": "marginalize",
    "subtract": "subtract",
    "initial_lowpass_angstrom": "initialLowpass", "non_uniform": "nonUniform", "symmetry": "symmetryGroup",
    "per_particle_scale": "minimizeScale", "max_iterations": "maxIterations"}


# ---------------------------------------------------------------- form

@pytest.mark.parametrize("key, name", sorted(NAMES_OF_THE_FIELD.items()))
def test_parameters_have_the_names_of_the_field(key, name):
    assert form.param_name(key) == name


def test_every_setting_is_in_the_form_with_its_words():
    protocol = ProtLocalRefine()
    names = [form.param_name(entry.name) for entry in Settings.describe()]
    assert len(set(names)) == len(names)
    for entry, name in zip(Settings.describe(), names):
        param = protocol.getParam(name)
        assert param is not None, entry.name
        assert entry.help in param.help.get()
        assert entry.unit in param.label.get() or entry.kind == "fulcrum"
        assert param.isExpert() == entry.expert


def test_the_form_as_it_opens_gives_the_default_settings():
    assert form.settings_values(ProtLocalRefine()) == Settings().as_dict()


def test_a_setting_added_to_the_engine_appears_in_the_form(monkeypatch):
    extra = [SettingInfo("solvent_level", 0.5, "h", "float", "Solvent level", "Mask", low=0, high=1),
             SettingInfo("mask_mode", "static", "h", "choice", "Mask", "Mask", choices=("static", "dynamic")),
             SettingInfo("mask_near_angstrom", 6.0, "h", "float", "Near", "Mask", "Å", 0, 50, expert=True,
                         shown_when=("mask_mode", ("dynamic",)))]
    monkeypatch.setattr(form, "DESCRIBED", dict(form.DESCRIBED, **{entry.name: entry for entry in extra}))
    protocol = ProtLocalRefine()
    assert protocol.solventLevel.get() == 0.5
    assert not protocol.evalParamCondition("maskNear")
    protocol.maskMode.set(1)
    assert protocol.evalParamCondition("maskNear")
    assert form.settings_values(protocol)["mask_mode"] == "dynamic"


def test_prior_widths_are_hidden_without_a_prior():
    protocol = ProtLocalRefine()
    assert protocol.evalParamCondition("priorRotation")
    protocol.usePrior.set(False)
    assert not protocol.evalParamCondition("priorRotation")
    assert form.settings_values(protocol)["prior"] == "off"


@pytest.mark.parametrize("value", [None, -1, -1.0])
def test_empty_and_minus_one_mean_automatic(value):
    protocol = ProtLocalRefine()
    protocol.initialLowpass.set(value)
    assert form.settings_values(protocol)["initial_lowpass_angstrom"] is None


def test_fulcrum_coordinates_reach_the_engine():
    protocol = ProtLocalRefine()
    protocol.fulcrum.set(2)
    assert protocol._validate(), "coordinates that are not given are refused"
    for axis, value in zip(form.FULCRUM_AXES, (10, 11.5, 12)):
        getattr(protocol, axis).set(value)
    assert form.settings_values(protocol)["fulcrum"] == [10, 11.5, 12]
    assert protocol._validate() == []


def test_a_value_out_of_range_is_named_by_its_label():
    protocol = ProtLocalRefine()
    protocol.priorRotation.set(500)
    assert any("Prior: rotation s.d." in error and "500" in error for error in protocol._validate())


def test_an_empty_form_neither_validates_nor_raises():
    protocol = ProtLocalRefine()
    assert protocol._validate() == [] and protocol._warnings() == [] and protocol._methods() == []
    assert protocol._summary() == ["Not started yet."]


def test_warnings_before_the_run():
    protocol = ProtLocalRefine()
    protocol.usePrior.set(False)
    protocol.recenterShifts.set(True)
    assert any("drift" in text for text in protocol._warnings())
    protocol.usePrior.set(True)
    protocol.rotationExtent.set(10)
    assert any("two standard deviations" in text for text in protocol._warnings())
    assert protocol._validate() == []
    protocol.usePrior.set(2)
    assert any("learned prior" in text for text in protocol._validate())


# ---------------------------------------------------------------- chain of steps

def stored(name, arguments, finished=True, files=True):
    return SimpleNamespace(funcName=SimpleNamespace(get=lambda: name), isFinished=lambda: finished,
                           argsStr=SimpleNamespace(get=lambda: json.dumps(arguments)), _postconditions=lambda: files)


def run_chain(previous, digest="d"):
    chain = StepChain(previous)
    return [chain.arguments("a", digest), chain.arguments("b", 1), chain.arguments("c")]


def test_an_unbroken_chain_keeps_its_tokens():
    first = run_chain([])
    again = run_chain([stored("a", first[0]), stored("b", first[1]), stored("c", first[2])])
    assert again == first


@pytest.mark.parametrize("damage", ["file", "failed", "digest"])
def test_from_a_break_on_every_step_runs_again(damage):
    first = run_chain([])
    middle = stored("b", first[1], finished=damage != "failed", files=damage != "file")
    again = run_chain([stored("a", first[0]), middle, stored("c", first[2])], "e" if damage == "digest" else "d")
    assert (again[0] == first[0]) == (damage != "digest")
    assert again[1] != first[1] and again[2] != first[2]


def test_the_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2, None]}) == fingerprint({"b": [2, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


# ---------------------------------------------------------------- in a project

COUNT, BAD = 120, 17  # particles, and the one whose image is NaN

@pytest.fixture(scope="module")
def project(tmp_path_factory):
    from pyworkflow import Config
    Config.getDomain().registerPlugin("localrefine_plugin")
    before = os.getcwd()
    project = new_project("test_local_refine")
    inputs = simulated_inputs(project, tmp_path_factory.mktemp("data"), n=COUNT, bad=[BAD])
    yield SimpleNamespace(project=project, inputs=inputs)
    os.chdir(before)


def new_protocol(project, **params):
    protocol = project.project.newProtocol(ProtLocalRefine, maxIterations=1, numberOfThreads=1, useGpu=False, **params)
    for name, output in (("inputParticles", "outputParticles"), ("inputVolume", "outputVolume"),
                         ("inputMask", "outputMask")):
        pointer = getattr(protocol, name)
        pointer.set(project.inputs)
        pointer.setExtended(output)
    return protocol


def launch(project, protocol):
    """Run to the end; returns the protocol, brought up to date with what the child process stored."""
    return launched(project.project, protocol)


@pytest.fixture(scope="module")
def finished(project):
    protocol = launch(project, new_protocol(project))
    assert protocol.isFinished(), protocol.getErrorMessage()
    return protocol


def test_a_run_publishes_its_outputs(project, finished):
    volume_out, particles = finished.outputVolume, finished.outputParticles
    assert volume_out.getSamplingRate() == 3.0
    assert len(volume_out.getHalfMaps(asList=True)) == 2
    assert volume_out.getOrigin(force=True).getShifts() == finished.inputVolume.get().getOrigin(force=True).getShifts()
    assert particles.getSize() == COUNT - 1 and particles.hasAlignmentProj()
    labels = [curve.getObjLabel() for curve in finished.outputFSC]
    assert labels == ["No mask", "Spherical", "Loose", "Tight", "Corrected"]
    assert finished.outputMask.getDim() == (32, 32, 32)


def test_particles_keep_everything_but_their_pose(project, finished):
    before = {item.getObjId(): item.clone() for item in finished.inputParticles.get()}
    moved = 0
    for item in finished.outputParticles:
        old = before[item.getObjId()]
        assert item.getLocation() == old.getLocation()
        assert item._rlnRandomSubset.get() == old._rlnRandomSubset.get()
        assert item._rlnMaxValueProbDistribution.get() == pytest.approx(old._rlnMaxValueProbDistribution.get())
        assert item.getCTF().getDefocusU() == pytest.approx(old.getCTF().getDefocusU())
        assert item.getCoordinate().getMicName() == old.getCoordinate().getMicName()
        moved += not np.allclose(item.getTransform().getMatrix(), old.getTransform().getMatrix(), atol=1e-6)
    assert moved > 40


def test_a_particle_whose_image_is_nan_is_left_out_and_said(finished):
    before = [item.getObjId() for item in finished.inputParticles.get()]
    after = [item.getObjId() for item in finished.outputParticles]
    assert after == before[:BAD] + before[BAD + 1:]
    lines = [line for line in finished.summary() if "left out" in line]
    assert len(lines) == 1 and f"1 of {COUNT} particles" in lines[0] and "000018@" in lines[0] and "NaN" in lines[0]


def test_relations_lead_to_the_inputs(project, finished):
    graph = project.project.getSourceGraph(refresh=True)
    node = graph.getNode(finished.outputParticles.strId())
    parents = {parent.pointer.getUniqueId() for parent in node.getParents() if getattr(parent, "pointer", None)}
    assert any("outputParticles" in name and str(project.inputs.getObjId()) in name for name in parents)


def test_the_summary_tells_what_happened(finished):
    text = "\n".join(finished.summary())
    for words in ("Resolution", "Change from the input poses", "At the search limit", "Chosen automatically",
                  "report.html"):
        assert words in text, text
    assert "prior" in finished.methods()[0]
    assert any("Rosenthal" in line for line in finished.citations())


def test_the_report_is_one_file_with_pictures(finished):
    text = open(finished.html_report_path(), encoding="utf-8").read()
    assert text.count("data:image/png;base64,") >= 8
    words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)  # a picture may spell anything
    assert "http" not in words.replace("https://jfly", "")


def continued(project, protocol, **changes):
    """Continue with these parameters changed; which of the engine's steps wrote their last file anew."""
    from pyworkflow.protocol import MODE_RESUME
    folder = RunFolder(protocol._getExtraPath("run"))

    def moments():
        found = {f"{path.parent.name}/{path.name}": path for path in folder.path.glob("iter_*/*.json")}
        return {name: path.stat().st_mtime_ns for name, path in dict(found, report=folder.report).items()}
    before = moments()
    protocol.runMode.set(MODE_RESUME)
    for name, value in changes.items():
        getattr(protocol, name).set(value)
    protocol = launch(project, protocol)
    assert protocol.isFinished(), protocol.getErrorMessage()
    return [name for name, moment in sorted(moments().items()) if before.get(name) != moment]


def test_continue_does_again_what_depends_on_a_change_and_no_more(project, finished):
    """Scipion alone would do nothing for a changed setting, and everything for another number of iterations."""
    folder = RunFolder(finished._getExtraPath("run"))
    first, second = ([f"iter_{k:03d}/{name}.json" for name in ("half_1", "half_2", "iteration")] for k in (1, 2))
    assert continued(project, finished, maxIterations=2) == second + ["report"]
    os.remove(folder.reference(1, 2))
    assert continued(project, finished) == first[2:] + second + ["report"]
    done = continued(project, finished, priorRotation=3.0, maxIterations=1)
    assert done == ["iter_000/fingerprints.json", "iter_000/iteration.json"] + first + ["report"]
    assert not folder.iteration(2).exists()
    assert read_json(folder.settings)["prior_rotation_deg"] == 3.0
    os.remove(finished.getStepsFile())  # as after a kill while Scipion writes it
    assert continued(project, finished) == []
    assert not any("Null tests" in line for line in finished.summary())
    assert continued(project, finished, validateResults=True) == ["report"]
    assert any(line.startswith("Null tests: ") for line in finished.summary())
    assert "<h2>Null tests</h2>" in open(finished.html_report_path(), encoding="utf-8").read()
    assert continued(project, finished) == []


def test_a_set_that_is_edited_or_deleted_while_the_protocol_runs(project, tmp_path):
    """The outputs belong to the particles that were refined; what happened is in the summary."""
    inputs = simulated_inputs(project.project, tmp_path / "data", n=COUNT)
    here = SimpleNamespace(project=project.project, inputs=inputs)
    source = inputs.outputParticles.getFileName()
    before = {item.getObjId(): item.getLocation() for item in inputs.outputParticles}
    shutil.copy(source, tmp_path / "kept.sqlite")
    results = {}
    for name, change in (("undisturbed", lambda: None), ("edited", lambda: exchange_two_particles(source)),
                         ("deleted", lambda: os.remove(source))):
        shutil.copy(tmp_path / "kept.sqlite", source)
        protocol = new_protocol(here)
        here.project.launchProtocol(protocol)
        wait_for(RunFolder(protocol._getExtraPath("run")).half_done(1, 1))
        change()
        wait_for_end(here.project, protocol)
        assert protocol.isFinished(), protocol.getErrorMessage()
        particles = protocol.outputParticles
        assert {item.getObjId(): item.getLocation() for item in particles} == before
        results[name] = np.array([item.getTransform().getMatrix() for item in particles])
        said = [line for line in protocol.summary() if "while the protocol ran" in line]
        words = dict(undisturbed=[], edited=["was changed"], deleted=["was deleted"])[name]
        assert len(said) == len(words) and all(word in line for word, line in zip(words, said))
    np.testing.assert_array_equal(results["undisturbed"], results["edited"])
    np.testing.assert_array_equal(results["undisturbed"], results["deleted"])
    shutil.copy(tmp_path / "kept.sqlite", source)


def test_a_set_that_was_edited_is_refined_anew_on_continue(project, tmp_path):
    inputs = simulated_inputs(project.project, tmp_path / "data", n=COUNT)
    here = SimpleNamespace(project=project.project, inputs=inputs)
    protocol = launch(project, new_protocol(here))
    os.utime(inputs.outputParticles.getFileName())
    assert continued(project, protocol) == [], "the content is the same"
    os.rename(inputs.outputParticles.getFileName(), tmp_path / "elsewhere.sqlite")
    protocol = launch(project, protocol)
    assert "the set is empty" in protocol.getErrorMessage()
    assert RunFolder(protocol._getExtraPath("run")).results_complete(), "nothing of the run is touched"
    shutil.copy(tmp_path / "elsewhere.sqlite", inputs.outputParticles.getFileName())
    exchange_two_particles(inputs.outputParticles.getFileName())
    assert "iter_000/iteration.json" in continued(project, protocol)
    assert [item.getLocation()[0] for item in protocol.outputParticles][:3] == [2, 1, 3]


def exchange_two_particles(path):
    """Ids 1 and 2 of a set change places, as if somebody had sorted it and written it under the same name."""
    with closing(sqlite3.connect(path)) as database, database:
        for old, new in ((1, -1), (2, 1), (-1, 2)):
            database.execute("UPDATE Objects SET id=? WHERE id=?", (new, old))


def wait_for(path, seconds=120):
    end = time.time() + seconds
    while not path.exists():
        assert time.time() < end, f"{path} has not come"
        time.sleep(0.02)


def wait_for_end(project, protocol, seconds=120):
    end = time.time() + seconds
    while protocol.isActive() or not (protocol.isFinished() or protocol.isFailed()):
        assert time.time() < end
        time.sleep(0.2)
        project._updateProtocol(protocol)


def test_a_selection_gives_two_more_sets(project, tmp_path):
    noise_images = range(0, 260, 4)
    here = SimpleNamespace(project=project.project, inputs=simulated_inputs(project.project, tmp_path / "noise", n=260,
                                                                            noise_images=noise_images))
    protocol = launch(here, new_protocol(here, keepProbability=0.5))
    assert protocol.isFinished(), protocol.getErrorMessage()
    kept, left_out = ({item.getObjId() for item in found} for found in (protocol.outputParticlesKept,
                                                                        protocol.outputParticlesLeftOut))
    everything = {item.getObjId(): item._lrProbabilityAligned.get() for item in protocol.outputParticles}
    assert kept | left_out == set(everything) and not kept & left_out
    assert kept == {identifier for identifier, p in everything.items() if p >= 0.5}
    is_noise = {identifier for i, identifier in enumerate(sorted(everything)) if i in noise_images}
    assert len(left_out & is_noise) > 0.9 * len(is_noise) and len(left_out - is_noise) < 0.05 * len(everything)
    assert protocol.outputParticlesKept.hasAlignmentProj()
    assert continued(here, protocol, keepProbability=0.0) == ["report"]  # nothing of the first selection is left behind
    assert (protocol.outputParticlesKept.getSize(), protocol.outputParticlesLeftOut.getSize()) == (len(everything), 0)
    protocol.keepProbability.set(None)
    assert any("there are outputs of a selection; use Restart" in error for error in protocol.validate())


def test_a_failure_of_the_engine_is_one_sentence(project, tmp_path):
    bad = write_map(tmp_path / "mask.mrc", 3.0 * soft_ball(32, 9, 4))
    inputs = store_inputs(project.project, {"outputMask": lambda p: volume(bad, mask=True)})
    protocol = new_protocol(project)
    protocol.inputMask.set(inputs)
    protocol.inputMask.setExtended("outputMask")
    protocol = launch(project, protocol)
    assert protocol.isFailed()
    message = protocol.getErrorMessage()
    assert "outside 0" in message and "exit status" not in message, message
    assert any("Stopped" in line for line in protocol._summary())


def test_wrong_inputs_are_refused_before_the_run(project, tmp_path):
    small = write_map(tmp_path / "small.mrc", soft_ball(24, 6, 4))
    plain = write_map(tmp_path / "map.mrc", soft_ball(32, 9, 4))
    inputs = store_inputs(project.project, {
        "outputMask": lambda p: volume(small, mask=True), "outputVolume": lambda p: volume(plain, pixel_size=3.3)})
    protocol = new_protocol(project)
    protocol.inputMask.set(inputs)
    protocol.inputMask.setExtended("outputMask")
    protocol.inputVolume.set(inputs)
    protocol.inputVolume.setExtended("outputVolume")
    errors = "\n".join(protocol.validate())
    assert "no half-maps" in errors and "3.3" in errors and "24 × 24 × 24" in errors
    protocol.inputVolume.setExtended("outputMask")
    assert "this is a mask" in "\n".join(protocol.validate())
