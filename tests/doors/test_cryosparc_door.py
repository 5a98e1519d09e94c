"""A local refinement as an external job of cryoSPARC, against a stand-in of its server at the level of files."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from cryosparc_files import cs_of_experiment, some_fields
from experiments import experiment, write_inputs
from oracles import angle_between_deg
from scipy.spatial.transform import Rotation

pytest.importorskip("cryosparc.dataset", reason="cryosparc-tools is not installed")
from cryosparc.dataset import Dataset  # noqa: E402
from cryosparc_stand_in import ALIGNMENTS, FIELDS, Server, add_job, dataset_of, read  # noqa: E402

from localrefine_plugin.doors import cryosparc as door  # noqa: E402

SETTINGS = ["--max-iterations", "2", "--prior", "gaussian", "--prior_rotation_deg", "4", "--marginalize", "no",
            "--keep_probability", "0.0"]
PARTICLES = {"blob": "blob", "ctf": "ctf", "alignments3D": "alignments3D"}
VOLUME = {"map": "blob", "map_half_A": "blob", "map_half_B": "blob"}


@pytest.fixture(scope="module")
def e():
    return experiment(120, box=40, noise=0.5, seed=3)


def write_project(root, e):
    """P1: J1 with images, J2 a refinement of them, J3 an imported mask."""
    folder = root / "P1"
    for name in ("J1", "J2", "J3"):
        (folder / name).mkdir(parents=True)
    write_inputs(folder / "J2", e)
    records = cs_of_experiment(folder / "J1/particles.cs", e)
    records["blob/path"] = b">J1/all.mrc"
    own = [name for name in records.dtype.names if name == "uid" or name.startswith("alignments3D")]
    rest = ["uid"] + [name for name in records.dtype.names if name not in own]
    dataset_of(folder / "J2/particles.cs", some_fields(records, own))
    dataset_of(folder / "J2/passthrough.cs", some_fields(records, rest)[::-1])
    volume = {"uid": [7]}
    for slot, name in (("map", "input_1"), ("map_half_A", "input_1"), ("map_half_B", "input_2")):
        volume.update(a_map(slot, f"J2/{name}.mrc", e))
    Dataset(volume).save(str(folder / "J2/volume.cs"))
    (folder / "J2/mask.mrc").rename(folder / "J3/mask.mrc")
    Dataset({"uid": [8], **a_map("mask", ">J3/mask.mrc", e)}).save(str(folder / "J3/mask.cs"))
    add_job(folder / "J2", "homo_refine_new", {"particles": ("particle", PARTICLES, ["particles.cs", "passthrough.cs"]),
                                               "volume": ("volume", VOLUME, ["volume.cs"])})
    add_job(folder / "J3", "import_volumes", {"imported_mask": ("mask", {"mask": "blob"}, ["mask.cs"])})
    return folder


def a_map(slot, path, e):
    return {f"{slot}/path": np.array([path], dtype=object), f"{slot}/shape": np.full((1, 3), e.box, np.uint32),
            f"{slot}/psize_A": np.array([e.particles.pixel_size], np.float32)}


def arguments(*more, **changed):
    given = {"project": "P1", "workspace": "W1", "particles": "J2", "mask": "J3", "device": "cpu", "threads": "1"}
    given.update(changed)
    return [*SETTINGS, *(word for name, value in given.items() for word in (f"--{name}", value)), *more]


def play(monkeypatch, root, version):
    server = Server(root, version)
    monkeypatch.setattr("cryosparc.tools.CryoSPARC", server.client)
    return server


@pytest.fixture(scope="module", params=[4, 5])
def done(request, e, tmp_path_factory):
    """The job has run; the folder of the project and the known state of the job."""
    root = tmp_path_factory.mktemp("cryosparc")
    folder = write_project(root, e)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        server = play(patch, root, request.param)
        assert door.main(arguments("--host", "here", "--base-port", "39000")) == 0
    assert server.logins == [dict(host="here", base_port=39000)]
    return folder, read(folder / "J4")


def test_the_job_is_connected_completed_and_has_its_outputs(done):
    folder, job = done
    assert job["status"] == "completed" and job["workspace"] == "W1"
    assert job["inputs"] == {"particles": ["J2", "particles"], "volume": ["J2", "volume"],
                             "mask": ["J3", "imported_mask"]}
    assert {name: (o["type"], sorted(o["slots"]), o["passthrough"]) for name, o in job["outputs"].items()} == {
        "particles": ("particle", ["alignments3D"], "particles"),
        "particles_kept": ("particle", ["alignments3D"], "particles"),
        "volume": ("volume", ["map", "map_half_A", "map_half_B", "map_sharp"], None),
        "mask": ("mask", ["mask"], None)}


def test_poses_are_better_and_only_they_have_changed(done, e):
    folder, _ = done
    before, after = (Dataset.load(str(folder / name)) for name in ("J2/particles.cs", "J4/particles.cs"))
    assert list(after["uid"]) == list(before["uid"])
    assert set(after.fields()) == {"uid", *(f"alignments3D/{field[0]}" for field in ALIGNMENTS)}
    for name in ("split", "psize_A", "alpha"):
        np.testing.assert_array_equal(after[f"alignments3D/{name}"], before[f"alignments3D/{name}"])
    errors = [np.median(angle_between_deg(Rotation.from_rotvec(np.array(d["alignments3D/pose"])).inv().as_matrix(),
                                          e.rotation)) for d in (before, after)]
    assert errors[1] < 0.7 * errors[0]


def test_maps_and_mask_are_files_of_the_job_that_are_those_of_the_run(done, e):
    folder, _ = done
    run = folder.parent / "localrefine_P1_J4/final"
    volume, mask = (Dataset.load(str(folder / f"J4/{name}.cs")) for name in ("volume", "mask"))
    for row, slot, name in ((volume, "map_half_A", "half_map_1"), (volume, "map_half_B", "half_map_2"),
                            (volume, "map", "map"), (volume, "map_sharp", "map_sharpened"), (mask, "mask", "mask")):
        assert (folder / row[f"{slot}/path"][0]).read_bytes() == (run / f"{name}.mrc").read_bytes(), slot
        assert list(row[f"{slot}/shape"][0]) == [e.box] * 3
        assert row[f"{slot}/psize_A"][0] == np.float32(e.particles.pixel_size)
        assert row[f"{slot}/path"][0].startswith("J4/")


def test_half_map_a_is_of_split_0(done, e):
    """Half-map 1 of the run is that of rlnRandomSubset 1, which is split 0: it follows the input's half-map A."""
    folder, _ = done
    data = {name: mrcfile.read(folder / name) for name in ("J2/input_1.mrc", "J2/input_2.mrc",
                                                           "J4/localrefine_map_half_A.mrc")}
    given = Dataset.load(str(folder / "J2/particles.cs"))
    first = json.loads((folder.parent / "localrefine_P1_J4/input.json").read_text())
    assert first["half_map_1"].endswith("J2/input_1.mrc")
    assert int((np.array(given["alignments3D/split"]) == 0).sum()) == int((e.particles.half_set == 1).sum())
    assert len({name: array.tobytes() for name, array in data.items()}) == 3


def test_progress_pictures_and_advice_are_in_the_log(done):
    folder, job = done
    lines = [entry[1] for entry in job["log"] if entry[0] != "plot"]
    assert any(line.startswith("iteration 2") for line in lines)
    assert not any("particles/s" in line for line in lines)
    plots = {entry[1]: folder / "J4" / entry[2] for entry in job["log"] if entry[0] == "plot"}
    assert len(plots) > 3 and all(path.read_bytes()[:4] == b"\x89PNG" for path in plots.values())
    assert any("FSC" in name for name in plots) and any("ose" in name for name in plots)


def test_the_stand_in_refuses_calls_that_the_installed_client_would_refuse(done, e):
    from cryosparc import __version__
    folder, _ = done
    version = int(__version__.split(".")[0])
    job = Server(folder.parent, version).job("P1", "J4")
    with pytest.raises(TypeError, match="overwritten"):
        job.upload("a.mrc", "b.mrc", overwritten=True)
    with pytest.raises(AttributeError):
        job.no_such_method()


# ------------------------------------------------------------- what goes wrong

@pytest.fixture
def here(e, tmp_path, monkeypatch):
    folder = write_project(tmp_path, e)
    monkeypatch.chdir(tmp_path)
    play(monkeypatch, tmp_path, 5)
    return folder


@pytest.mark.parametrize("version", [4, 5])
def test_bad_input_ends_the_job_as_failed_with_the_sentence(here, version, monkeypatch, capsys):
    play(monkeypatch, here.parent, version)
    with mrcfile.open(here / "J3/mask.mrc", "r+") as mrc:
        mrc.data[...] *= 7
    assert door.main(arguments()) == 1
    job, said = read(here / "J4"), capsys.readouterr().err
    assert job["status"] == "failed" and not job["outputs"]
    errors = [text for level, text in job["log"] if level == "error"]
    assert len(errors) == 1 and errors[0].startswith("mask ") and errors[0] in said and "Traceback" not in said


def test_an_engine_that_dies_is_said(tmp_path):
    folder = door.RunFolder(tmp_path)
    assert "the engine: has stopped: memory: about 3 GiB" in str(door.failure_of(folder, "memory: about 3 GiB"))


@pytest.mark.parametrize("changed, words", [
    (dict(project="P9"), "project P9: cannot be found"),
    (dict(workspace="W9"), "workspace W9: cannot be found"),
    (dict(particles="J9"), "job J9: cannot be found"),
    (dict(particles="J3"), "--particles J3: has 0 outputs of type particle with blob, ctf, alignments3D"),
    (dict(particles="J2.volume"), "--particles J2.volume"),
    (dict(mask="J2"), "the outputs of J2 are: J2.particles (particle: blob ctf alignments3D), J2.volume"),
    (dict(prior="strong"), "setting prior: 'strong' is not offered"),
])
def test_arguments_are_checked_before_there_is_a_job(here, capsys, changed, words):
    assert door.main(arguments(**changed)) == 1
    assert words in capsys.readouterr().err
    assert not (here / "J4").exists()


def test_a_folder_that_is_not_on_this_machine_is_said(here, capsys, monkeypatch):
    monkeypatch.setattr("cryosparc_stand_in.Project5.dir", Path("/nowhere/P1"))
    assert door.main(arguments()) == 1
    assert "folder /nowhere/P1 of project P1: is not on this machine" in capsys.readouterr().err


def test_without_an_account_it_is_said_what_to_set(here, capsys, monkeypatch):
    def refuse(**_):
        raise AssertionError("Invalid or unspecified CryoSPARC license ID ")
    monkeypatch.setattr("cryosparc.tools.CryoSPARC", refuse)
    assert door.main(arguments()) == 1
    said = capsys.readouterr().err
    assert "cryoSPARC: cannot be reached (Invalid or unspecified CryoSPARC license ID)" in said
    assert "CRYOSPARC_LICENSE_ID" in said


def test_without_cryosparc_tools_it_is_said_what_to_install(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryosparc.tools", None)
    assert door.main(arguments()) == 1
    assert "pip install 'cryosparc-tools" in capsys.readouterr().err


def test_a_job_that_is_killed_in_cryosparc_ends_the_engine_and_goes_on_in_a_new_one(here, capsys, monkeypatch):
    monkeypatch.setattr(door, "LOOK_SECONDS", 0.0)
    seen = []

    def killed(job):
        seen.append(job.uid)
        return Path("run/iter_001/half_1.json").exists()
    monkeypatch.setattr(door.api, "was_ended", killed)
    assert door.main(arguments("--output", "run")) == 1
    assert "job J4: was ended in cryoSPARC" in capsys.readouterr().err and seen
    assert read(here / "J4")["status"] == "failed" and not Path("run/report.json").exists()
    first = Path("run/iter_001/half_1.json").stat().st_mtime_ns
    monkeypatch.setattr(door.api, "was_ended", lambda job: False)
    assert door.main(arguments("--output", "run")) == 0
    assert read(here / "J5")["status"] == "completed"
    assert Path("run/iter_001/half_1.json").stat().st_mtime_ns == first


def test_the_state_of_the_job_is_asked_of_the_server(here):
    folder = here / "J2"
    job = Server(here.parent, 5).job("P1", "J2")
    assert door.api.was_ended(job)
    (folder / "job.json").write_text((folder / "job.json").read_text().replace("completed", "running"))
    assert not door.api.was_ended(job)


def test_a_log_that_cannot_be_reached_does_not_end_the_refinement(here, capsys):
    class Away:
        uid = "J4"

        def log(self, text, level):
            raise OSError("timed out")
        def log_plot(self, figure, text):
            raise OSError("timed out")

        def refresh(self):
            raise OSError("timed out")
    door.api.log(Away(), "iteration 1")
    assert capsys.readouterr() == ("iteration 1\n", "not in the log of J4: timed out\n")
    door.api.log_plot(Away(), None, "FSC")
    assert not door.api.was_ended(Away())
    assert capsys.readouterr().err == ("the picture 'FSC' is not in the log of J4: timed out\n"
                                       "the state of J4 is not known: timed out\n")


def test_an_output_without_poses_is_said(here, monkeypatch, capsys):
    monkeypatch.setitem(FIELDS, "alignments3D", [("split", "<u4")])
    assert door.main(arguments()) == 1
    assert "output particles of J4: has no field alignments3D/pose, alignments3D/shift" in capsys.readouterr().err
    assert read(here / "J4")["status"] == "failed"


def test_nothing_else_of_the_package_needs_cryosparc_tools():
    """Only cryosparc-tools imports it: a console script of another door works without."""
    code = "import sys; sys.modules['cryosparc'] = None; import localrefine_plugin.doors.relion, " \
           "localrefine_plugin.doors.cryosparc as d; d.parser()"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0


def test_a_signal_ends_the_job_as_failed(here):
    job = Server(here.parent, 4).find_project("P1").create_external_job("W1")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), door.api.running(job):
        with door.started([sys.executable, "-c", "import time; time.sleep(60)"]) as engine:
            signal.raise_signal(signal.SIGTERM)
    assert engine.returncode == -signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
    assert read(here / job.uid)["status"] == "failed"
    assert read(here / job.uid)["log"] == [["error", "it was stopped"]]
