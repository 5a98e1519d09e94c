"""A local refinement as a job of RELION: its arguments, and a project in which RELION runs job after job."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import require_program
from relion_files import read_columns, read_poses
from relion_project import COUNT, PIXEL, small_experiment, write_project

from localrefine_plugin.doors import relion as door
from localrefine_plugin.doors.engine_job import settings_of
from localrefine_plugin.engine.io.star import read_star
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings

SETTINGS = dict(max_iterations=2, prior="gaussian", prior_rotation_deg=4, marginalize="no", fulcrum="box")
# labels of RELION 3.1.3's form, which end with a space
INPUTS = {"Input particles: ": "Refine3D/job001/run_data.star", "Input 3D mask: ": "MaskCreate/job002/mask.mrc",
          "Input 3D reference: ": "Refine3D/job001/run_half1_class001_unfil.mrc"}


@pytest.fixture(scope="module")
def e():
    return small_experiment()


@pytest.fixture(scope="module")
def executable(tmp_path_factory):
    """What the distribution installs as localrefine-relion."""
    path = tmp_path_factory.mktemp("bin") / "localrefine-relion"
    root = Path(__file__).resolve().parents[2]
    path.write_text(f"#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m localrefine_plugin.doors.relion \"$@\"\n")
    path.chmod(0o755)
    return path


def pipeliner(project, *arguments):
    done = subprocess.run([require_program("relion_pipeliner"), *arguments], cwd=project, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def run_job(project, kind, **options):
    """Add a job of RELION with these options of its form and run it; its folder."""
    text = ";".join(f"{label} == {value}" for label, value in options.items())
    before = processes(project)
    pipeliner(project, "--addJob", kind, "--addJobOptions", text)
    name, = set(processes(project)) - set(before)
    pipeliner(project, "--RunJobs", name, "--schedule", kind, "--sec_wait_after", "0")
    return name


def table_of(project, name):
    found = {table.name: table for table in read_star(project / "default_pipeline.star")}
    return found[name].texts(found[name].labels) if name in found else {}


def processes(project):
    """{job: status}; 2: finished, 3: failed, 4: aborted."""
    found = table_of(project, "pipeline_processes")
    return dict(zip(found.get("rlnPipeLineProcessName", ()), found.get("rlnPipeLineProcessStatus", ())))


def external(executable, **parameters):
    lines = {}
    for i, (name, value) in enumerate(parameters.items(), 1):
        lines.update({f"Param{i} - label:": name, f"Param{i} - value:": value})
    return {"External executable:": executable, **INPUTS, **lines}


# ------------------------------------------------------------- a project of RELION

@pytest.fixture(scope="module")
def project(e, executable, tmp_path_factory):
    """RELION has run the job, and PostProcess on what it left."""
    require_program("relion_pipeliner")
    folder = write_project(tmp_path_factory.mktemp("project"), e)
    job = run_job(folder, "External", **external(executable, **SETTINGS))
    post = run_job(folder, "PostProcess", **{
        "One of the 2 unfiltered half-maps:": f"{job}run_half1_class001_unfil.mrc", "Solvent mask:": f"{job}mask.mrc",
        "Calibrated pixel size (A)": PIXEL})
    return folder, job, post


def test_relion_sees_the_job_finish_and_its_files_as_nodes(project):
    folder, job, _ = project
    assert processes(folder)[job] == "2", (folder / job / "run.err").read_text()
    nodes = table_of(folder, "pipeline_nodes")
    types = dict(zip(nodes["rlnPipeLineNodeName"], nodes["rlnPipeLineNodeType"]))
    expected = {"run_data.star": "3", "run_half1_class001_unfil.mrc": "10", "run_half2_class001_unfil.mrc": "10",
                "run_class001.mrc": "6", "mask.mrc": "7", "logfile.pdf": "13"}
    assert {name: types[job + name] for name in expected} == expected
    assert all((folder / job / name).stat().st_size > 0 for name in expected)
    labels = read_star(folder / job / door.NODES)[0].texts(["rlnPipeLineNodeTypeLabel"])["rlnPipeLineNodeTypeLabel"]
    assert "ParticleGroupMetadata.star.relion" in labels and "DensityMap.mrc.halfmap" in labels


def test_the_settings_of_the_form_and_the_threads_reached_the_engine(project):
    folder, job, _ = project
    settings = Settings.from_dict(__import__("json").loads((folder / job / "refine/settings.json").read_text()))
    assert settings == Settings(max_iterations=2, prior="gaussian", prior_rotation_deg=4, marginalize=False,
                                fulcrum="box")


def test_poses_are_better_and_every_row_is_there(project, e):
    folder, job, _ = project
    rotation, _ = read_poses(folder / job / "run_data.star", PIXEL)
    from oracles import angle_between_deg
    before, after = (np.median(angle_between_deg(r, e.rotation)) for r in (e.particles.rotation, rotation))
    assert len(rotation) == COUNT and after < 0.7 * before
    assert f"iteration {SETTINGS['max_iterations']}" in (folder / job / "run.out").read_text()


def test_postprocess_takes_half_maps_and_mask(project):
    folder, job, post = project
    assert processes(folder)[post] == "2", (folder / post / "run.err").read_text()
    edges = table_of(folder, "pipeline_input_edges")
    assert (f"{job}run_half1_class001_unfil.mrc", post) in set(zip(edges["rlnPipeLineEdgeFromNode"],
                                                                  edges["rlnPipeLineEdgeProcess"]))
    assert (folder / post / "postprocess.mrc").exists()


def test_relion_refines_on_from_our_particles(project):
    """One iteration of relion_refine in the project, by the paths of our table; rows and half-sets stay."""
    folder, job, _ = project
    (folder / "Refine3D/job009").mkdir()
    done = subprocess.run(
        [require_program("relion_refine"), "--i", f"{job}run_data.star", "--ref", f"{job}run_class001.mrc", "--o",
         "Refine3D/job009/run", "--iter", "1", "--K", "1", "--skip_align", "--ctf", "--particle_diameter", "120",
         "--norm", "--scale", "--ini_high", "20", "--firstiter_cc", "--pad", "1", "--j", "1"], cwd=folder,
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = folder / "Refine3D/job009/run_it001_data.star"
    names = ("rlnRandomSubset", "rlnAngleTilt")
    np.testing.assert_allclose(np.sort(read_columns(theirs, names), axis=0),
                               np.sort(read_columns(folder / job / "run_data.star", names), axis=0), atol=1e-5)


def test_bad_input_is_one_sentence_in_run_err_and_a_failed_job(project, executable):
    folder, _, _ = project
    job = run_job(folder, "External", **dict(external(executable), **{"Input 3D mask: ": ""}))
    assert processes(folder)[job] == "3"
    assert "input --in_mask" in (folder / job / "run.err").read_text()
    assert "Traceback" not in (folder / job / "run.err").read_text()


# ------------------------------------------------------------- the job without RELION

def command(*arguments):
    return ["--o", "External/job003/", "--in_parts", "Refine3D/job001/run_data.star", "--in_3dref",
            "Refine3D/job001/run_half1_class001_unfil.mrc", "--in_mask", "MaskCreate/job002/mask.mrc", "--j", "1",
            *arguments]


@pytest.fixture
def here(e, tmp_path, monkeypatch):
    write_project(tmp_path / "project", e)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_relion_aborts_and_continuing_ends_the_job(here, executable):
    """The file by which RELION asks to abort ends the engine; the same command goes on from there."""
    job = here / "External/job003"
    arguments = [str(executable), *command("--max_iterations", "3", "--device", "cpu")]
    with open(here / "out.txt", "w") as out:
        child = subprocess.Popen(arguments, cwd=here, stdout=out, stderr=subprocess.STDOUT)
        until(lambda: (job / "refine/iter_001/half_1.json").exists())
        (job / door.ABORT_NOW).touch()
        assert child.wait(60) == 1
    assert (job / "RELION_JOB_EXIT_ABORTED").exists() and not (job / "refine/report.json").exists()
    first = (job / "refine/iter_001/half_1.json").stat().st_mtime_ns
    assert subprocess.run(arguments, cwd=here, capture_output=True, timeout=300).returncode == 0
    assert (job / "RELION_JOB_EXIT_SUCCESS").exists() and not (job / "RELION_JOB_EXIT_ABORTED").exists()
    assert (job / "refine/iter_001/half_1.json").stat().st_mtime_ns == first
    assert (job / door.NODES).exists()


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def test_a_terminated_job_fails_and_leaves_no_engine_behind(here, executable):
    job = here / "External/job003"
    child = subprocess.Popen([str(executable), *command("--device", "cpu")], cwd=here, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    until(lambda: (job / "refine/iter_000/iteration.json").exists())
    child.terminate()
    assert child.wait(60) == 1
    assert (job / "RELION_JOB_EXIT_FAILURE").exists()
    time.sleep(1)
    running = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(job / "refine").encode() in content(p)
               or b"External/job003/refine" in content(p) and str(here).encode() in cwd(p)]
    assert not running


def content(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def cwd(path):
    try:
        return os.readlink(path.parent / "cwd").encode()
    except OSError:
        return b""


def refused(capsys, *arguments):
    assert door.main(command(*arguments)) == 1
    assert Path("External/job003/RELION_JOB_EXIT_FAILURE").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("arguments, words", [
    (["--in_movies", "movies.star"], "input --in_movies: are of no use"),
    (["--in_parts", ""], "input --in_parts: is not given"),
    (["--priors", "gaussian"], "there is no setting 'priors'"),
    (["--prior", "strong"], "setting prior: 'strong' is not offered"),
    (["--prior"], "'--prior' is not a label with its value"),
    (["--max_iterations", "many"], "setting max_iterations"),
    (["--in_3dref", "Refine3D/job001/run_half3_class001_unfil.mrc"], "there is no"),
    (["--in_3dref", "", "--half_map_2", "x.mrc"], "input --in_3dref: is not given"),
])
def test_what_cannot_be_right_is_refused_before_the_engine_starts(here, capsys, monkeypatch, arguments, words):
    if words == "there is no":
        for path in Path("Refine3D/job001").glob("run_half?_class001_unfil.mrc"):
            path.unlink()
    monkeypatch.setattr(door, "watched", lambda *_: pytest.fail("the engine was started"))
    assert words in refused(capsys, *arguments)


def test_half_maps_are_found_from_either_of_them_their_map_or_the_particles(here):
    expected = tuple(f"Refine3D/job001/run_half{half}_class001_unfil.mrc" for half in (1, 2))
    shutil.copy(expected[0], "Refine3D/job001/run_class001.mrc")
    for given in (*expected, "Refine3D/job001/run_class001.mrc", None, ""):
        assert door.half_maps(given, "Refine3D/job001/run_data.star") == expected
    with pytest.raises(InputError, match="half2"):
        shutil.copy(expected[0], "mine_half1.mrc")
        door.half_maps("mine_half1.mrc", "Refine3D/job001/run_data.star")


@pytest.mark.parametrize("name, text, value", [
    ("marginalize", "No", False), ("marginalize", "true", True), ("fulcrum", "10,20.5,30", [10, 20.5, 30]),
    ("fulcrum", "box", "box"), ("rotation_extent_deg", "auto", None), ("rotation_extent_deg", "12.5", 12.5),
    ("max_iterations", "4", 4), ("symmetry", "C2", "C2"), ("prior", "off", "off")])
def test_values_of_the_form_are_of_the_settings_kind(name, text, value):
    assert getattr(settings_of([f"--{name.replace('_', '-')}", text], "p"), name) == value


def test_without_matplotlib_there_is_no_logfile_and_it_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_pdf", None)
    assert door.write_logfile(door.RunFolder(tmp_path), tmp_path / "logfile.pdf") is False
    assert "matplotlib is not installed" in capsys.readouterr().out


def test_an_environment_without_the_engines_packages_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("localrefine_plugin.doors.engine_job.PACKAGES", ("numpy", "a_package_that_is_missing"))
    assert door.main(["--o", str(tmp_path / "job")]) == 1
    assert "lacks a_package_that_is_missing, which the refinement needs; pip install a_pack" in capsys.readouterr().err
    assert (tmp_path / "job/RELION_JOB_EXIT_FAILURE").exists()
