"""The protocol 'compose bodies' in a project: two finished local refinements in, one map out."""
from __future__ import annotations

import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from scipion_data import completed, launched, project_of_tests, stored_run
from two_bodies import PIXEL_SIZE, run_of

from localrefine_plugin.protocols import ProtLocalCompose, ProtLocalRefine


@pytest.fixture(scope="module")
def project():
    with project_of_tests("test_compose") as made:
        yield made


def refined(project, name):
    """A local refinement of the project whose run folder is that of a body."""
    return stored_run(project, f"body {name}", run_of(name).path, PIXEL_SIZE, (-11.0, -12.0, -13.0))


def composing(project, runs, **values):
    protocol = project.newProtocol(ProtLocalCompose, **values)
    protocol.inputRuns.set(list(runs))
    return protocol


@pytest.fixture(scope="module")
def runs(project):
    return [refined(project, name) for name in "AB"]


@pytest.fixture(scope="module")
def composed(project, runs):
    return completed(project, composing(project, runs, frame=2, numberOfThreads=1))


def test_outputs_are_the_composite_with_its_half_maps_mask_and_fsc(composed, runs):
    made = composed.outputVolume
    one, two = (mrcfile.read(name) for name in made.getHalfMaps(asList=True))
    np.testing.assert_allclose(mrcfile.read(made.getFileName()), 0.5 * (one + two), atol=1e-6)
    assert made.getSamplingRate() == composed.outputMask.getSamplingRate() == PIXEL_SIZE
    assert made.getOrigin(force=True).getShifts() == (-11.0, -12.0, -13.0)
    assert mrcfile.read(composed.outputMask.getFileName()).max() == pytest.approx(1, abs=1e-4)
    assert composed.outputFSC.getSize() == 5
    inside = mrcfile.read(runs[1].run_state().folder.final("mask.mrc")) == 1
    inside &= mrcfile.read(composed._folder("body_1_mask.mrc")) < 1e-6
    of_b = mrcfile.read(runs[1].run_state().folder.final("half_map_1.mrc"))
    np.testing.assert_allclose(one[inside], of_b[inside], atol=1e-3 * of_b.max())  # the frame: run 2 of the list


def test_summary_and_methods_say_what_it_means(composed):
    said = " ".join(composed._summary())
    assert "mean relative pose" in said and "the film shows how" in said and "Body 2" in said
    assert "2 local refinements" in composed._methods()[0] and composed._citations() == ["LocalRefine"]


def test_relations_lead_back_to_the_maps_of_the_bodies(composed, runs):
    from pyworkflow.object import RELATION_SOURCE
    parents = {relation["object_parent_id"] for relation in composed.mapper.getRelationsByName(RELATION_SOURCE)}
    assert {run.outputVolume.getObjId() for run in runs} <= parents


@pytest.mark.parametrize("indices, frame, words", [
    ((0, 1), 1, None), ((), 1, "give at least one"), ((0, 0), 1, "give each run once"), ((0, 1), 3, "choose 0 to 2")])
def test_the_form_is_checked(project, runs, indices, frame, words):
    errors = composing(project, [runs[i] for i in indices], frame=frame)._validate()
    assert errors == [] if words is None else any(words in text for text in errors)


def test_a_run_that_has_not_finished_is_named(project, runs):
    unfinished = project.newProtocol(ProtLocalRefine)
    unfinished.setObjLabel("still running")
    project.saveProtocol(unfinished)
    errors = composing(project, [runs[0], unfinished])._validate()
    assert len(errors) == 1 and "still running has not finished" in errors[0]


def test_what_the_engine_refuses_is_the_protocols_error(project, runs):
    other = refined(project, "B")
    path = other.run_state().folder.particles
    with np.load(path) as stored:
        columns = dict(stored)
    np.savez(path, **dict(columns, half_set=3 - columns["half_set"]))
    protocol = composing(project, [runs[0], other], numberOfThreads=1)
    assert launched(project, protocol).isFailed() and "has other half-sets" in protocol.getErrorMessage()


def test_analyze_results_shows_the_film_against_the_run_that_is_chosen(project, runs, monkeypatch):
    import webbrowser

    from localrefine_plugin.viewers import LocalRefineViewer
    opened, said = [], []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    viewer = LocalRefineViewer(project=project, protocol=runs[1])
    viewer.setProtocol(runs[1])
    for name in ("errorMessage", "infoMessage"):
        monkeypatch.setattr(viewer, name, lambda text, title: said.append(text))
    names = [name for name, _ in viewer._other_runs()]
    viewer.filmRest.set(1 + next(i for i, name in enumerate(names) if "body A" in name))
    assert viewer._show_film() == [] and said == []
    film = viewer.state().film
    assert os.path.realpath(film.rest) == os.path.realpath(runs[0].run_state().folder.path)
    assert opened[0].endswith("final/film/film.gif") and os.path.getsize(opened[0][len("file://"):]) > 10_000
    views = viewer._show_film_chimera()
    assert "film.cxc" in (said[0] if said else str(views[0]._inputFile))
    runs[1].run_state().folder.report.rename(runs[1]._getExtraPath("report.json"))
    said.clear()
    viewer._show_film()
    assert "when the protocol has finished" in said[0]
    Path(runs[1]._getExtraPath("report.json")).rename(runs[1].run_state().folder.report)
