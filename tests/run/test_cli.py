"""The command line: verbs, start-up, output folders, exit states, and the report of a run."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from cli_runs import command, prepared, with_iterations
from particle_files import Inputs

from localrefine_plugin import engine
from localrefine_plugin.engine import __main__ as cli
from localrefine_plugin.engine.finish.report import build_report
from localrefine_plugin.engine.io.run_folder import RunFolder, write_json
from localrefine_plugin.engine.kernels.host import available_cores
from localrefine_plugin.engine.records.codec import as_json
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.engine.team import ALONE


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for engine.refine that notes its calls, or raises what is put into `calls.failure`."""
    class Calls(list):
        failure = None

    noted = Calls()
    stand_in = types.ModuleType("localrefine_plugin.engine.refine")

    def verb(name):
        def function(*args, **kwargs):
            noted.append((name, args, kwargs))
            if noted.failure is not None:
                raise noted.failure
        return function
    for name in ("prepare", "align", "merge", "finish", "refine"):
        setattr(stand_in, name, verb(name))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(engine, "refine", stand_in, raising=False)
    for name in cli.THREAD_VARIABLES + cli.BLAS_VARIABLES:  # whatever main() sets is undone
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    return noted


def test_settings_verb_prints_every_setting_without_heavy_imports():
    code = ("import sys; from localrefine_plugin.engine.__main__ import main; status = main(['settings']); "
            "heavy = {'numba', 'scipy', 'mrcfile', 'pwem', 'pyworkflow', 'cupy', 'matplotlib'} & set(sys.modules); "
            "sys.exit(status or ' '.join(heavy) or 0)")
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                          universal_newlines=True)
    assert done.returncode == 0, done.stderr
    described = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert set(described) == set(Settings().as_dict())
    for entry in described.values():
        assert {"default", "kind", "unit", "low", "high", "choices", "help"} <= set(entry)
    assert described["prior_rotation_deg"]["unit"] == "deg"


@pytest.mark.parametrize("verb", ["prepare", "refine"])
def test_arguments_arrive(inputs, calls, verb):
    settings_file = inputs.folder / "settings.json"
    settings_file.write_text('{"seed": 7, "fulcrum": [1, 2, 3]}')
    assert cli.main(command(verb, inputs, "--settings", str(settings_file), "--device", "cuda:1", "--threads", "3",
                            "--overwrite")) == 0
    (name, args, kwargs), = calls
    assert name == verb and args == ()
    if verb == "refine":
        assert kwargs.pop("team") is ALONE
    assert kwargs == dict(
        particles=str(inputs.star), half_map_1=str(inputs.half_1), half_map_2=str(inputs.half_2),
        mask=str(inputs.mask), output=str(inputs.output), settings=Settings(seed=7, fulcrum=[1, 2, 3]),
        device="cuda:1", threads=3, mode="overwrite")


def test_step_verbs_arrive(inputs, calls):
    run = str(prepared(inputs).path)
    assert cli.main(["align", run, "--iteration", "2", "--half", "1", "--device", "cpu", "--threads", "2"]) == 0
    assert cli.main(["merge", run, "--iteration", "2", "--threads", "2"]) == 0
    assert cli.main(["finish", run, "--threads", "2", "--device", "cuda"]) == 0
    assert calls == [("align", (run, 2, (1,), "cpu", 2, ALONE), {}),
                     ("merge", (run, 2), {"threads": 2, "device": "auto"}),
                     ("finish", (run,), {"threads": 2, "device": "cuda"})]


@pytest.mark.parametrize("wrong", [
    [], ["polish"], ["align", "RUN", "--iteration", "0", "--half", "1"], ["align", "RUN", "--iteration", "1"],
    ["align", "RUN", "--iteration", "1", "--half", "3"], ["finish", "RUN", "--threads", "-1"],
    ["align", "RUN", "--iteration", "1", "--half", "1", "--device", "gpu"], ["prepare", "--particles", "a.star"]])
def test_usage_errors_exit_2(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(wrong)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


def test_overwrite_and_continue_exclude_each_other(inputs):
    with pytest.raises(SystemExit):
        cli.main(command("prepare", inputs, "--overwrite", "--continue"))


def test_threads_are_in_the_environment_before_numpy_is_imported():
    code = ("import os, sys; from localrefine_plugin.engine import __main__ as cli; "
            "from localrefine_plugin.engine.kernels.host import available_cores; assert 'numpy' not in sys.modules; "
            "cli.main(['settings']); cli.main(['finish', 'nowhere', '--threads', '%s']); "
            "print(*(os.environ[n] for n in cli.BLAS_VARIABLES + cli.THREAD_VARIABLES), available_cores())")
    for asked in ("5", "0"):
        clean = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        done = subprocess.run([sys.executable, "-c", code % asked], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              env=clean, check=True, universal_newlines=True)
        words = done.stdout.strip().splitlines()[-1].split()
        assert words[:-1] == ["1", "1"] + [asked if asked != "0" else words[-1]] * len(cli.THREAD_VARIABLES)
    assert 1 <= available_cores() <= os.cpu_count()


# the output folder

def refusal(arguments, capsys):
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_existing_output_is_never_touched_without_being_told(inputs, calls, capsys):
    run = prepared(inputs)
    before = sorted((p, p.stat().st_mtime_ns) for p in run.path.rglob("*"))
    for verb in ("prepare", "refine"):
        assert "--overwrite" in refusal(command(verb, inputs), capsys)
    assert sorted((p, p.stat().st_mtime_ns) for p in run.path.rglob("*")) == before and calls == []
    assert cli.main(command("refine", inputs, "--overwrite")) == 0
    assert cli.main(command("refine", inputs, "--continue")) == 0
    assert [call[2]["mode"] for call in calls] == ["overwrite", "continue"]


@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--continue"]])
def test_a_folder_of_other_files_is_never_touched(inputs, calls, capsys, option):
    inputs.output.mkdir()
    (inputs.output / "thesis.tex").write_text("x")
    said = refusal(command("refine", inputs, *option), capsys)
    assert ("not of a run" if option else "not empty") in said and calls == []
    assert [p.name for p in inputs.output.iterdir()] == ["thesis.tex"]


def test_output_is_a_file_or_holds_an_input(inputs, calls, capsys):
    inputs.output.write_text("x")
    assert "is not a folder" in refusal(command("refine", inputs), capsys)
    inputs.output.unlink()
    run = prepared(inputs)
    inputs.mask = inputs.mask.rename(run.mask)
    assert "holds the input mask" in refusal(command("refine", inputs, "--overwrite"), capsys)
    assert run.mask.exists() and calls == []


@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--continue"]])
def test_empty_folder_or_failed_attempt_may_be_used(inputs, calls, option):
    inputs.output.mkdir()
    (inputs.output / "error.json").write_text('{"message": "earlier"}')
    assert cli.main(command("refine", inputs, *option)) == 0
    assert not (inputs.output / "error.json").exists() and len(calls) == 1


def test_continue_refuses_other_inputs_by_name(inputs, calls, capsys):
    prepared(inputs, seed=3)
    settings_file = inputs.folder / "s.json"
    settings_file.write_text('{"seed": 3, "max_iterations": 20}')
    more = ["--continue", "--settings", str(settings_file)]
    assert cli.main(command("refine", inputs, *more)) == 0
    other = inputs.folder / "other_mask.mrc"
    other.write_bytes(inputs.mask.read_bytes())
    inputs.mask = other
    said = refusal(command("refine", inputs, *more), capsys)
    assert "mask (was " in said and "other_mask.mrc" in said and "half_map" not in said
    assert len(calls) == 1 and not (inputs.output / "error.json").exists()


def test_continue_without_settings_keeps_those_of_the_run(inputs, calls):
    prepared(inputs, seed=3, fulcrum=[1.0, 2.0, 3.0])
    assert cli.main(command("refine", inputs, "--continue")) == 0
    assert calls[0][2]["settings"] == Settings(seed=3, fulcrum=[1.0, 2.0, 3.0])


@pytest.mark.parametrize("option", ["--overwrite", "--continue"])
def test_a_run_killed_while_it_was_prepared_may_be_taken_up(inputs, calls, option):
    (inputs.output / "iter_000").mkdir(parents=True)
    for name in ("mask.mrc", ".particles.npz.123.tmp.npz"):
        (inputs.output / name).write_bytes(b"")
    assert cli.main(command("refine", inputs, option)) == 0 and len(calls) == 1


def test_continue_knows_a_path_by_another_name(inputs, calls, monkeypatch):
    prepared(inputs)
    monkeypatch.chdir(inputs.folder)
    inputs.star = "particles.star"
    assert cli.main(command("refine", inputs, "--continue")) == 0


@pytest.mark.parametrize("verb", [["align", "--iteration", "1", "--half", "1"], ["merge", "--iteration", "1"],
                                  ["finish"], ["report"], ["bundle"]])
def test_step_verbs_refuse_a_folder_without_a_run(tmp_path, calls, capsys, verb):
    assert "no" in refusal([verb[0], str(tmp_path / "nowhere")] + verb[1:], capsys)
    assert not (tmp_path / "nowhere").exists() and calls == []


# failures

@pytest.mark.parametrize("failure, words", [
    (InputError("is wrong", "mask m.mrc", "mend it"), "mask m.mrc: is wrong; mend it"),
    (MemoryError(), "not enough memory"),
    (OSError(28, "No space left on device", "/scratch/x"), "/scratch/x: No space left on device; check free space"),
    (ZeroDivisionError("division\nby zero"), "unexpected ZeroDivisionError (division by zero); please report"),
])
def test_a_failing_verb_leaves_one_sentence_and_error_json(inputs, calls, capsys, failure, words):
    run = prepared(inputs)
    calls.failure = failure
    align = ["align", str(run.path), "--iteration", "1", "--half", "2", "--threads", "1"]
    assert words in refusal(align, capsys)
    written = json.loads(run.error.read_text())
    assert {"message", "problem", "input", "remedy"} <= set(written)
    assert words in " ".join(written["message"].split())
    assert ("traceback" in written) == (not isinstance(failure, (InputError, MemoryError)))
    # the other half, running beside it, leaves the message; a second, successful attempt removes it
    calls.failure = None
    assert cli.main(align[:-3] + ["1", "--threads", "1"]) == 0
    assert run.error.exists()
    assert cli.main(align) == 0
    assert not run.error.exists()


def test_settings_error_names_the_setting(inputs, calls, capsys):
    bad = inputs.folder / "bad.json"
    bad.write_text('{"rotation_extent_deg": 1000}')
    said = refusal(command("refine", inputs, "--settings", str(bad)), capsys)
    assert "setting rotation_extent_deg: 1000 is outside" in said and calls == []
    assert "rotation_extent_deg" in json.loads((inputs.output / "error.json").read_text())["message"]


def test_messages_survive_an_ascii_terminal(tmp_path):
    done = subprocess.run([sys.executable, "-m", "localrefine_plugin.engine", "report", "nowhere_Å"], cwd=os.getcwd(),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                          env=dict(os.environ, PYTHONIOENCODING="ascii", PYTHONUTF8="0"))
    assert done.returncode == 1 and b"holds no run" in done.stderr and b"Traceback" not in done.stderr


# the report

def test_report_sums_and_chooses(inputs, capsys):
    run = with_iterations(inputs, 3)
    report = build_report(run)
    assert [i.iteration for i in report.iterations] == [0, 1, 2, 3]
    assert [(h.iteration, h.half) for h in report.halves] == [(k, h) for k in (1, 2, 3) for h in (1, 2)]
    assert report.wall_seconds == 12 and report.cpu_seconds == 21 and report.peak_memory_mb == 302
    assert report.warnings == ("edge is hard",)  # what the best iteration suffers from is advice
    assert [i.warnings[-1] for i in report.iterations[1:]] == ["note 1", "note 2", "note 3"]
    assert report.final_resolution_angstrom == {"tight": 7.0}
    assert report.settings == Settings() and report.input.mask == str(inputs.mask)
    assert cli.main(["report", str(run.path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(as_json(report)))


def test_report_of_a_killed_run(inputs):
    run = with_iterations(inputs, 2)
    run.iteration_done(2).unlink()
    run.half_done(2, 2).write_text('{"iteration": 2, "ha')
    (run.path / "iter_draft").mkdir()
    report = build_report(run)
    assert [i.iteration for i in report.iterations] == [0, 1]
    assert len(report.halves) == 3
    assert any("half_2.json: cannot be read" in text for text in report.warnings)
    assert report.final_resolution_angstrom == {"tight": 8.0}


def test_report_before_the_first_iteration_and_of_no_run(inputs):
    run = RunFolder(inputs.output)
    with pytest.raises(InputError, match="run: holds no run"):
        build_report(run)
    run.path.mkdir()
    write_json(run.settings, Settings().as_dict())
    report = build_report(run)
    assert report.iterations == () and report.final_resolution_angstrom == {} and report.wall_seconds == 0
    assert np.isfinite(report.peak_memory_mb)
