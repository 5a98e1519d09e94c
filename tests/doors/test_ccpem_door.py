"""A local refinement as a job of the CCP-EM Pipeliner, which runs in an environment of its own: its numpy is another.

The environment is made once for this module, with ccpem-pipeliner from PyPI and this distribution without its
dependencies. The engine runs in the environment of the tests.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import REQUIRE_OPTIONAL, _missing
from relion_project import PIXEL, small_experiment, write_project

from localrefine_plugin.engine.records.settings import DESCRIBED, Settings

ROOT = Path(__file__).resolve().parents[2]
VERSION = "1.6.1"
START = """
import json, os
from pipeliner.api.manage_project import PipelinerProject
from pipeliner.job_factory import get_job_types, new_job_of_type
KIND = "localrefine.refine3d.local"
def show(content):
    print("RESULT " + json.dumps(content))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment with the Pipeliner and this distribution."""
    if sys.version_info < (3, 9):
        pytest.skip("ccpem-pipeliner needs Python 3.9")
    folder = tmp_path_factory.mktemp("pipeliner")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "localrefine_plugin", source / "localrefine_plugin")
    made = folder / "env/bin/python"
    for command in ([sys.executable, "-m", "venv", str(folder / "env")],
                    [str(made), "-m", "pip", "install", "--quiet", f"ccpem-pipeliner=={VERSION}"],
                    [str(made), "-m", "pip", "install", "--quiet", "--no-deps", str(source)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            _missing(f"no environment with ccpem-pipeliner could be made: {done.stderr.strip()[-300:]}",
                     REQUIRE_OPTIONAL)
    return made


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """localrefine-relion of the environment of the tests."""
    path = tmp_path_factory.mktemp("bin") / "localrefine-relion"
    path.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m localrefine_plugin.doors.relion \"$@\"\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def ask(python, program, tmp_path_factory):
    """Run lines of code in the environment, in a project; what they `show`."""
    folder = write_project(tmp_path_factory.mktemp("project"), small_experiment())
    (folder / "default_pipeline.star").unlink()

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(code):
        done = subprocess.run([str(python), "-c", START + textwrap.dedent(code)], cwd=folder, capture_output=True,
                              text=True, timeout=600, env={**environment, "LOCALREFINE_PROGRAM": str(program)})
        shown = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        assert done.returncode == 0 and shown, done.stdout[-2000:] + done.stderr[-3000:]
        return json.loads(shown[-1][len("RESULT "):])
    run.folder = folder
    return run


VALUES = [({"prior_rotation_deg": "100"}, "cannot be greater than 60"), ({"symmetry": "Q7"}, "is not of the form"),
          ({"fulcrum": "1,2"}, "is not of the form"), ({"device": "gpu"}, "auto, cpu, cuda:N"),
          ({"in_mask": ""}, "This option is required"), ({"fulcrum": "1,2.5,3", "symmetry": "D2"}, None)]


@pytest.fixture(scope="module")
def form(ask):
    """What the Pipeliner says of the job and its options, in one process, for its start takes seconds."""
    return ask(f"""
        import numpy
        found = [[j.PROCESS_NAME, type(j).__name__, j.jobinfo.is_available] for j in get_job_types("localrefine")]
        job = new_job_of_type(KIND)
        options = {{n: [type(o).__name__, o.value, getattr(o, "hard_min", None), getattr(o, "hard_max", None),
                        getattr(o, "choices", None), o.jobop_group, o.help_text] for n, o in job.joboptions.items()}}
        errors = []
        for values in {[values for values, _ in VALUES]!r}:
            job = new_job_of_type(KIND)
            for name, value in {{"in_parts": "a.star", "in_3dref": "b.mrc", "in_mask": "c.mrc", **values}}.items():
                job.joboptions[name].value = value
            errors.append([r.message for r in job.validate_joboptions() if r.type == "error"])
        def off(**values):
            for name, value in values.items():
                job.joboptions[name].value = value
            return [job.check_joboption_is_now_deactivated(n) for n in ("prior_rotation_deg", "mask_near_angstrom")]
        switched = [off(), off(prior="off"), off(prior="gaussian", mask_mode="dynamic")]
        os.environ["LOCALREFINE_PROGRAM"] = "/nowhere/localrefine"
        without = new_job_of_type(KIND).jobinfo.unavailable_message
        import sys
        del os.environ["LOCALREFINE_PROGRAM"]
        os.environ["PATH"] = os.path.dirname(sys.executable)  # its localrefine-relion lacks the engine's packages
        without += new_job_of_type(KIND).jobinfo.unavailable_message or "available"
        show(dict(found=found, numpy=numpy.__version__, options=options, errors=errors, switched=switched,
                  without=without))""")


def test_the_pipeliner_finds_the_job_and_runs_in_another_numpy(form):
    assert form["found"] == [["localrefine.refine3d.local", "LocalRefine", True]]
    assert int(form["numpy"].split(".")[0]) >= 2


def test_without_the_program_the_job_is_not_offered(form):
    assert "/nowhere/localrefine" in form["without"]
    assert "localrefine-relion of an environment with the engine (LOCALREFINE_PROGRAM)" in form["without"]


def test_the_form_has_every_setting_with_its_default_range_and_group(form):
    options = form["options"]
    assert set(DESCRIBED) < set(options) and {"in_parts", "in_3dref", "in_mask", "nr_threads"} < set(options)
    kinds = dict(bool="BooleanJobOption", choice="MultipleChoiceJobOption", int="IntJobOption", float="FloatJobOption")
    for name, info in DESCRIBED.items():
        kind, value, low, high, choices, group, text = options[name]
        assert kind == kinds.get(info.kind, "StringJobOption") and value == info.default, name
        assert (low, high) == ((info.low, info.high) if info.kind in ("int", "float") else (None, None)), name
        assert (choices or []) == (list(info.choices) if info.kind == "choice" else []), name
        assert group.startswith(info.group) and info.help in text, name


def test_values_out_of_range_are_refused_before_the_job_runs(form):
    for (values, words), errors in zip(VALUES, form["errors"]):
        assert errors == [] if words is None else len(errors) == 1 and words in errors[0], values


def test_an_option_without_effect_is_switched_off(form):
    assert form["switched"] == [[False, True], [True, True], [False, False]]


# ------------------------------------------------------------- a project

@pytest.fixture(scope="module")
def job(ask):
    """The job has run; (state, nodes by name, what is shown, its folder)."""
    options = {"_rlnJobTypeLabel": "localrefine.refine3d.local", "in_parts": "Refine3D/job001/run_data.star",
               "in_3dref": "Refine3D/job001/run_half1_class001_unfil.mrc", "in_mask": "MaskCreate/job002/mask.mrc",
               "nr_threads": "1", "max_iterations": "2", "prior": "gaussian", "prior_rotation_deg": "4",
               "marginalize": "No", "fulcrum": "box", "device": "cpu", "keep_probability": "0.0"}
    name, state, nodes, shown, metadata = ask(f"""
        project = PipelinerProject(make_new_project=True)
        job = project.run_job({options!r}, run_in_foreground=True)
        state = project.wait_for_job_to_finish(job)
        from pipeliner.project_graph import ProjectGraph
        with ProjectGraph() as graph:
            nodes = {{n.name: n.type for n in graph.find_process(job.output_dir).output_nodes}}
        shown = [(type(s).__name__, s.title, getattr(s, "flag", "")) for s in job.create_results_display()]
        show([job.output_dir, state, nodes, shown, job.gather_metadata()])""")
    return name, state, nodes, shown, metadata


def test_the_job_succeeds_with_its_files_as_nodes(job, ask):
    name, state, nodes, _, _ = job
    assert state == "Succeeded", (ask.folder / name / "run.err").read_text()
    assert nodes == {
        f"{name}run_data.star": "ParticleGroupMetadata.star.relion.localrefine",
        f"{name}run_data_kept.star": "ParticleGroupMetadata.star.relion.localrefine",
        f"{name}run_half1_class001_unfil.mrc": "DensityMap.mrc.relion.localrefine.halfmap",
        f"{name}run_half2_class001_unfil.mrc": "DensityMap.mrc.relion.localrefine.halfmap",
        f"{name}run_class001.mrc": "DensityMap.mrc.relion.localrefine", f"{name}mask.mrc":
        "Mask3D.mrc.relion.localrefine", f"{name}logfile.pdf": "LogFile.pdf.relion.localrefine"}
    assert all((ask.folder / node).stat().st_size > 0 for node in nodes)


def test_the_values_of_the_form_reached_the_engine(job, ask):
    written = json.loads((ask.folder / job[0] / "refine/settings.json").read_text())
    assert Settings.from_dict(written) == Settings(max_iterations=2, prior="gaussian", prior_rotation_deg=4,
                                                   marginalize=False, fulcrum="box", keep_probability=0.0)


def test_results_and_metadata_can_be_shown(job):
    _, _, _, shown, metadata = job
    kinds = [kind for kind, _, _ in shown]
    assert "ResultsDisplayPending" not in kinds and {"ResultsDisplayTable", "ResultsDisplayGraph"} < set(kinds), shown
    assert metadata["final_resolution_angstrom"]["corrected"] > 2 * PIXEL and "input" not in metadata


def test_relion_postprocess_of_the_pipeliner_takes_half_maps_and_mask(job, ask, require_program):
    require_program("relion_postprocess")
    name = job[0]
    options = {"_rlnJobTypeLabel": "relion.postprocess", "fn_in": f"{name}run_half1_class001_unfil.mrc",
               "fn_mask": f"{name}mask.mrc", "angpix": str(PIXEL)}
    state, folder = ask(f"""
        project = PipelinerProject()
        job = project.run_job({options!r}, run_in_foreground=True)
        show([project.wait_for_job_to_finish(job), job.output_dir])""")
    assert state == "Succeeded", (ask.folder / folder / "run.err").read_text()
    assert (ask.folder / folder / "postprocess.mrc").exists()


def test_bad_input_is_one_sentence_in_run_err_and_a_failed_job(ask):
    options = {"_rlnJobTypeLabel": "localrefine.refine3d.local", "in_parts": "Refine3D/job001/run_data.star",
               "in_3dref": "Refine3D/job001/run_half1_class001_unfil.mrc", "device": "cpu",
               "in_mask": "Refine3D/job001/run_half2_class001_unfil.mrc"}
    state, folder = ask(f"""
        project = PipelinerProject(make_new_project=True)
        job = project.run_job({options!r}, run_in_foreground=True)
        show([project.wait_for_job_to_finish(job), job.output_dir])""")
    said = (ask.folder / folder / "run.err").read_text()
    assert state == "Failed" and said.count("error: ") == 1 and "mask" in said and "Traceback" not in said
