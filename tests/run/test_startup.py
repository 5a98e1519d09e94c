"""Standard streams of every kind, Ctrl-C, and a place for compiled code where nothing can be written to."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from cli_runs import command, prepared, with_iterations
from particle_files import Inputs

from localrefine_plugin import engine as engine_package
from localrefine_plugin.engine import __main__ as cli
from localrefine_plugin.engine import startup
from localrefine_plugin.engine.io.run_folder import RunFolder

START = "import os, signal, sys; from localrefine_plugin.engine import __main__ as cli, verbs; {}; sys.exit(cli.main())"


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


# streams, and what ends a program from outside

def engine(*arguments, code="pass", **more):
    """The command line in a process of its own; ``code`` runs first, with the module as `cli`."""
    environment = dict(os.environ, **more.pop("environment", {}))
    return subprocess.run([sys.executable, "-c", START.format(code), *map(str, arguments)], stderr=subprocess.PIPE,
                          stdout=more.pop("stdout", subprocess.PIPE), check=False, env=environment, **more)


C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, C_LOCALE], ids=["ascii", "C"])
def test_help_is_plain_text_where_only_ascii_can_be_shown(environment):
    done = engine("refine", "--help", environment=environment)
    assert done.returncode == 0 and done.stderr == b""
    assert b"soft mask of the part to refine, values 0 ... 1" in done.stdout
    text = ascii("5 × 3 ≥ 4 \u2603")
    done = engine("settings", code=f"verbs.run_settings = lambda options: print({text})", environment=environment)
    assert (done.returncode, done.stdout) == (0, b"5 x 3 >= 4 ?\n")


@pytest.mark.parametrize("environment, name, shown", [
    ({"PYTHONIOENCODING": "utf-8"}, b"run_\xff", rb"run_\xff"), (C_LOCALE, "run_Å".encode(), rb"run_\xc3\x85"),
    ({"PYTHONIOENCODING": "utf-8"}, "run_Å".encode(), "run_Å".encode())], ids=["not UTF-8", "C", "UTF-8"])
def test_the_bytes_of_file_names_can_be_told_from_each_other(environment, name, shown):
    done = subprocess.run([sys.executable, "-m", "localrefine_plugin.engine", "finish", name], check=False,
                          env=dict(os.environ, **environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1 and b"run folder " + shown + b": holds no" in done.stderr


def test_utf_8_stays_what_it_is():
    done = engine("refine", "--help", environment={"PYTHONIOENCODING": "utf-8"})
    assert "values 0 … 1" in done.stdout.decode()


@pytest.mark.parametrize("arguments", [["settings"], ["refine", "--help"], ["report", "RUN"]])
def test_a_reader_that_goes_away_is_no_error(inputs, arguments):
    run = with_iterations(inputs, 30)
    end, start = os.pipe()
    os.close(end)  # as `head` does
    done = engine(*[str(run.path) if word == "RUN" else word for word in arguments], stdout=start)
    os.close(start)
    assert done.stderr == b""


def test_a_run_whose_reader_goes_away_says_how_to_go_on(inputs):
    end, start = os.pipe()
    os.close(end)
    done = engine(*command("refine", inputs), code="verbs.run_refine = lambda options: print('line 1')", stdout=start)
    os.close(start)
    assert done.returncode == 1 and not RunFolder(inputs.output).error.exists()
    assert done.stderr.decode() == ("error: the reader of standard output has gone; to go on, give the same command "
                                    "with --continue\n")


@pytest.mark.parametrize("closed", [[1], [1, 2], [0, 1, 2]])
def test_closed_streams_are_no_error_and_no_file_takes_their_place(inputs, closed):
    probe = inputs.folder / "probe"
    lowest_free = f"open({str(probe)!r}, 'w').write(str(os.open('/dev/null', 0)))"
    start = START.format(f"verbs.run_settings = lambda options: {lowest_free}")
    shell = " ".join(f"{i}>&-" for i in closed)
    done = subprocess.run(["/bin/bash", "-c", f'"$0" -c "$1" settings {shell}', sys.executable, start], check=False,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.returncode == 0 and done.stderr == b""
    assert int(probe.read_text()) > 2


INTERRUPT = "lambda options: signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize("more, words", [([], "--continue"), (["--overwrite"], "--continue instead of --overwrite")])
def test_ctrl_c_ends_a_run_with_one_line_that_says_how_to_go_on(inputs, more, words):
    done = engine(*command("refine", inputs, *more), code=f"verbs.run_refine = {INTERRUPT}")
    assert done.returncode == 130
    assert done.stderr.decode() == f"stopped; to go on, give the same command with {words}\n"
    assert not RunFolder(inputs.output).error.exists()


def test_ctrl_c_in_a_step_and_in_a_verb_that_only_reads(inputs):
    run = prepared(inputs).path
    done = engine("merge", run, "--iteration", "1", code=f"verbs.run_merge = {INTERRUPT}")
    assert (done.returncode, done.stderr) == (130, b"stopped; to go on, give the same command again\n")
    done = engine("report", run, code=f"verbs.run_report = {INTERRUPT}")
    assert (done.returncode, done.stderr) == (130, b"stopped\n")


def test_a_box_that_is_none_is_named(capsys):
    with pytest.raises(SystemExit):
        cli.main(["recentre", "--particles", "p.star", "--output", "o", "--box", "abc"])
    said = capsys.readouterr().err
    assert "--box: 'abc' is not the size of a box in px" in said and "threads" not in said


# the cache of compiled code

def package_without_cache(folder):
    """A copy of the package whose kernels' cache folder cannot be made, even by root: a file has its name."""
    source = os.path.dirname(os.path.dirname(os.path.abspath(engine_package.__file__)))
    copy = folder / "copy"
    shutil.copytree(source, str(copy / "localrefine_plugin"), ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "localrefine_plugin" / "engine" / "kernels" / "__pycache__").write_text("")
    return copy


KERNEL = ("from localrefine_plugin.engine.kernels import slices; from numba import config; "
          "print('compiled', config.CACHE_DIR)")


@pytest.mark.parametrize("given", [None, "unwritable"])
def test_without_a_place_for_compiled_code_a_temporary_one_is_used_and_said(inputs, tmp_path, given):
    copy, temporary = package_without_cache(tmp_path), tmp_path / "temporary"
    temporary.mkdir()
    environment = dict(os.environ, HOME="/proc/nowhere", TMPDIR=str(temporary), PYTHONPATH=str(copy))
    for name in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        environment.pop(name, None)
    if given:
        environment["NUMBA_CACHE_DIR"] = "/proc/nowhere"
    code = START.format(f"verbs.run_finish = lambda options: exec({KERNEL!r})")
    bare = subprocess.run([sys.executable, "-c", KERNEL], cwd=str(tmp_path), env=environment, stderr=subprocess.PIPE,
                          check=False)
    assert b"no locator available" in bare.stderr  # what a user met before
    done = subprocess.run([sys.executable, "-c", code, "finish", "RUN"], cwd=str(tmp_path), env=environment,
                          check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stderr
    place = temporary / f"localrefine_compiled_{os.getuid()}"
    assert done.stdout == f"compiled {place}\n" and place.stat().st_mode & 0o077 == 0
    assert done.stderr.count("\n") == 1 and str(place) in done.stderr and "can be written to" in done.stderr


def test_the_usual_places_for_compiled_code_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert startup.find_compiler_cache() == "" and "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "mine"))
    assert startup.find_compiler_cache() == "" and os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "mine")


def test_a_temporary_folder_that_others_may_write_to_is_not_trusted(tmp_path, monkeypatch):
    """Compiled code is run: nobody else may put any there."""
    monkeypatch.setattr(startup.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/nowhere")
    shared = tmp_path / f"localrefine_compiled_{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    assert str(shared) + " " not in startup.find_compiler_cache()
    chosen = os.environ["NUMBA_CACHE_DIR"]
    assert chosen != str(shared) and os.stat(chosen).st_mode & 0o077 == 0
