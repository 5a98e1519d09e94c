"""Any number of processes, GPUs or MPI ranks: the bits of one, and one sentence where a member is lost."""
from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from conftest import require_program
from experiments import write_inputs
from run_results import accept_changed_files
from small_experiments import small_experiment
from teams import assert_same_results, engine, ranks, start

from benchmarks.faults.disk import small_disk
from benchmarks.growth.memory import write_data
from localrefine_plugin.engine.__main__ import main
from localrefine_plugin.engine.align.nulls import null_images
from localrefine_plugin.engine.io.run_folder import RunFolder, read_json, write_json
from localrefine_plugin.engine.io.run_store import load_particles
from localrefine_plugin.engine.kernels.host import rank_of_launcher
from localrefine_plugin.engine.team import ALONE, claimed, spans
from localrefine_plugin.engine.workers import assemble

ROOT = Path(__file__).resolve().parents[2]
PARTICLES = 640  # spans for five members of either half-set


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The words of a refinement of a small experiment, but for --output."""
    path = tmp_path_factory.mktemp("teams")
    files = write_inputs(path / "in", small_experiment(PARTICLES))
    write_json(path / "settings.json", dict(max_iterations=2, rotation_extent_deg=12.0, shift_extent_angstrom=8.0))
    words = [word for pair in zip(("--particles", "--half-map-1", "--half-map-2", "--mask"), files) for word in pair]
    return [*words, "--settings", path / "settings.json", "--threads", "2"]


def refined(path, inputs, *more, **options):
    done = engine(["refine", *inputs, "--output", path, *more], **options)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    return refined(tmp_path_factory.mktemp("alone") / "run", inputs, "--device", "cpu")


# ---------------------------------------------------------------- the same bits

@pytest.mark.parametrize("count", (2, 3, 5))
def test_processes_have_the_bits_of_one(alone, inputs, tmp_path, count):
    run = refined(tmp_path / "run", inputs, "--device", "cpu", "--processes", str(count))
    assert read_json(RunFolder(run).half_done(1, 1))["processes"] == count
    assert_same_results(alone, run)


@pytest.mark.parametrize("count", (1, 2, 3, 5))
def test_mpi_ranks_have_the_bits_of_one(alone, inputs, tmp_path, count):
    run = refined(tmp_path / "run", inputs, "--device", "cpu", launcher=ranks(count))
    assert read_json(RunFolder(run).half_done(1, 1))["processes"] == count
    assert_same_results(alone, run)


def test_threads_do_not_change_a_bit(alone, inputs, tmp_path):
    one_thread = [word if i != len(inputs) - 1 else "1" for i, word in enumerate(inputs)]
    assert_same_results(alone, refined(tmp_path / "run", one_thread, "--device", "cpu"))


@pytest.fixture(scope="module")
def on_gpus(inputs, tmp_path_factory):
    """``on_gpus(count)``: the run on so many stand-ins for a GPU, and what was said."""
    require_program("g++")
    path, found = tmp_path_factory.mktemp("GPUs"), {}

    def on(count, **variables):
        if count not in found:
            devices, run = ",".join(f"cuda:{number}" for number in range(count)), path / f"on {count}"
            done = engine(["refine", *inputs, "--output", run, "--device", devices], gpus=True,
                          XDG_CACHE_HOME=str(path), PRETENDED_GPUS=str(count), **variables)
            assert done.returncode == 0, done.stderr
            assert read_json(RunFolder(run).half_done(1, 1))["processes"] == count
            found[count] = run, done
        return found[count]
    return on


@pytest.mark.parametrize("count", (2, 5))
def test_gpus_have_the_bits_of_one(on_gpus, count):
    assert_same_results(on_gpus(1)[0], on_gpus(count)[0])


def test_a_gpu_whose_memory_is_full_takes_smaller_batches_and_the_bits_are_the_same(on_gpus):
    run, done = on_gpus(3, FULL_GPU="cuda:1 20")
    assert "cuda:1 is full with" in done.stderr
    assert_same_results(on_gpus(1)[0], run)


def test_the_log_names_both_gpus_once_with_their_memory(on_gpus):
    said = on_gpus(2)[1].stdout
    assert said.count("alignment will run on GPU 0: GPU 0") == 1 == said.count("and GPU 1: GPU 1")
    assert said.count("memory of the GPU") == 2 and "half 2: on" not in said


def test_ranks_of_a_machine_take_turns_among_its_gpus(monkeypatch):
    monkeypatch.setattr(assemble, "gpu_count", lambda: 4)
    assert [assemble.gpu_of("auto", rank) for rank in range(6)] == [f"cuda:{n}" for n in (0, 1, 2, 3, 0, 1)]
    assert [assemble.gpu_of("cuda:5,cuda:7", rank) for rank in range(3)] == ["cuda:5", "cuda:7", "cuda:5"]
    assert assemble.gpu_of("cpu", 3) == "cpu"
    monkeypatch.setattr(assemble, "gpu_count", lambda: 1)  # as with --gpus-per-task=1
    assert [assemble.gpu_of("cuda:0,cuda:1", rank) for rank in range(2)] == ["cuda:0"] * 2
    monkeypatch.setattr(assemble, "gpu_count", lambda: 0)
    assert assemble.gpu_of("auto", 3) == "auto"


# ---------------------------------------------------------------- each step under mpirun

def test_every_verb_can_be_started_by_mpirun(alone, inputs, tmp_path):
    """As Scipion does with each tracked step; what is done once is done by the first rank."""
    launcher, run = ranks(2), tmp_path / "run"
    steps = [["prepare", *inputs, "--output", run, "--device", "cpu"]]
    for k in ("1", "2"):
        steps.append(["align", run, "--iteration", k, "--half", "both", "--device", "cpu"])
        steps.append(["merge", run, "--iteration", k])
    for words in [*steps, ["finish", run]]:
        done = engine(words, launcher)
        assert done.returncode == 0, done.stderr
    assert_same_results(alone, run)
    said = engine(["report", run], launcher).stdout
    assert json.loads(said)["iterations"]  # printed once


def test_without_mpirun_nothing_imports_mpi4py(alone):
    code = ("import sys; from localrefine_plugin.engine.__main__ import main; "
            f"main(['align', {str(alone)!r}, '--iteration', '1', '--half', 'both', '--device', 'cpu']); "
            "sys.exit('mpi4py' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=str(ROOT))).returncode == 0


@pytest.mark.parametrize("variables, rank", [
    ({}, None), (dict(OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="3"), 3), (dict(PMI_SIZE="2", PMI_RANK="0"), 0),
    (dict(OMPI_COMM_WORLD_SIZE="1", OMPI_COMM_WORLD_RANK="0"), None),
    (dict(PMIX_RANK="2", SLURM_STEP_NUM_TASKS="3"), 2),
    (dict(SLURM_NTASKS="4", SLURM_PROCID="0"), None),  # a batch script of SLURM is no rank
    (dict(PMIX_RANK="0"), None)])  # nor is what a process that uses MPI alone has started
def test_what_launchers_tell(monkeypatch, variables, rank):
    for name in [name for name in os.environ if name.startswith(("OMPI_", "PMI", "SLURM_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank_of_launcher() == rank


def test_ranks_without_mpi4py_are_told_what_to_install(inputs, tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('not here')")
    done = engine(["refine", *inputs, "--output", tmp_path / "run"], ["env", f"PYTHONPATH={tmp_path}:{ROOT}"],
                  OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
    assert done.returncode == 1 and "scipion-em-localrefine[mpi]" in done.stderr


# ---------------------------------------------------------------- who takes what

def test_claims_are_given_to_one_each(tmp_path):
    taken, threads = [], []
    for _ in range(5):
        threads.append(threading.Thread(target=lambda: taken.extend(claimed(60, tmp_path / "claims"))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(60))


def test_a_slow_member_takes_less(tmp_path):
    """Another one takes what it has not begun."""
    def work(name, seconds):
        for _ in claimed(40, tmp_path / "claims"):
            done[name] += 1
            time.sleep(seconds)
    done = dict(slow=0, fast=0)
    threads = [threading.Thread(target=work, args=item) for item in (("slow", 0.2), ("fast", 0.005))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done.values()) == 40 and done["slow"] < 10


@pytest.mark.parametrize("count, members", [(0, 1), (0, 3), (10, 1), (10, 4), (1000, 2), (123_457, 32)])
def test_spans_cover_all_images_once_and_become_shorter(count, members):
    found = spans(count, members)
    assert np.array_equal(np.concatenate([np.arange(*span) for span in found] or [np.zeros(0, int)]), np.arange(count))
    lengths = [end - first for first, end in found]
    assert lengths == sorted(lengths, reverse=True)
    if members > 1 and count > 1000:
        assert lengths[0] <= count / members and lengths[-1] <= 64
    assert list(ALONE.claims(3, Path())) == [0, 1, 2]


# ---------------------------------------------------------------- who is lost

def broken_stack(alone, tmp_path):
    """A copy of a run whose second iteration is to be aligned, one image of half-set 1 having become NaN."""
    path = tmp_path / "run"
    shutil.copytree(str(alone), str(path))
    copy = RunFolder(path)
    for name in (copy.half_done(2, 1), copy.half_done(2, 2), copy.iteration_done(2)):
        name.unlink()
    given = load_particles(copy)
    last = np.flatnonzero(given.half_set == 1)[-1]
    return copy, given.stacks[given.stack[last]], int(given.slice[last])


@pytest.mark.parametrize("launched", (False, True))
def test_a_member_that_fails_says_why_and_all_end(alone, tmp_path, launched):
    copy, stack, bad = broken_stack(alone, tmp_path)
    launcher = ranks(3) if launched else []
    with mrcfile.open(stack, "r+") as file:
        before = file.data[bad].copy()
        file.data[bad] = np.nan
    try:
        accept_changed_files(copy)
        done = engine(["align", copy.path, "--iteration", "2", "--half", "both", "--device", "cpu", "--threads", "2"]
                      + ([] if launched else ["--processes", "3"]), launcher)
    finally:
        with mrcfile.open(stack, "r+") as file:
            file.data[bad] = before
    assert done.returncode != 0
    assert re.search(f"image {bad + 1} .* holds NaN", done.stderr)
    assert f"image {bad + 1}" in read_json(copy.error)["message"]
    assert not copy.half_complete(2, 1)


def test_a_stack_that_changed_is_found_by_the_member_whose_share_it_is(tmp_path):
    """Each looks at some of them; the first one writes no results before all have looked."""
    data = write_data(tmp_path / "data", 40, 16, per_stack=10)
    words = [word for pair in data.items() for word in pair]
    run = RunFolder(tmp_path / "run")
    assert main(["prepare", *words, "--output", str(run.path), "--device", "cpu", "--threads", "1"]) == 0
    for number in (1, 2):  # of the second member, and of the first
        stack = tmp_path / "data" / f"images_{number:06d}.mrcs"
        before, times = stack.read_bytes(), stack.stat()
        stack.write_bytes(before[::-1])
        done = engine(["align", run.path, "--iteration", "1", "--half", "1", "--device", "cpu", "--processes", "2"])
        assert done.returncode == 1
        named = rf"error: image stack \S*images_{number:06d}.mrcs.*: has changed since the run began"
        assert re.search(named, done.stderr) and ("(rank 1 on" in done.stderr) == (number == 1), done.stderr
        assert not run.half_complete(1, 1) and not run.half_map(1, 1).exists()
        stack.write_bytes(before)
        os.utime(stack, ns=(times.st_atime_ns, times.st_mtime_ns))


def members_of(process):
    """Process ids of the processes that a process started, and those that they did."""
    found = subprocess.run(["pgrep", "-P", str(process)], stdout=subprocess.PIPE, universal_newlines=True).stdout
    return [pid for child in map(int, found.split()) for pid in (child, *members_of(child))]


def killed_in_the_first_iteration(inputs, path, launcher, more, choose):
    """A refinement of which one process, chosen from the ids of all, is killed while the first half is aligned."""
    slow = [word if word != "2" else "1" for word in inputs]
    process = start(["refine", *slow, "--output", path, "--device", "cpu", *more], launcher)
    while not list(Path(path).glob("iter_001/.half_1_claims*/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    others = members_of(process.pid)
    os.kill(choose(process.pid, others), signal.SIGKILL)
    began = time.monotonic()
    said, failed = process.communicate()
    assert time.monotonic() - began < 30
    for _ in range(50):
        if not any(Path(f"/proc/{pid}").exists() for pid in others):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("processes were left over")
    return process.returncode, failed


@pytest.mark.parametrize("case", ("a process", "the first process", "a rank"))
def test_a_member_that_is_killed_ends_the_run_and_continue_has_the_same_bits(alone, inputs, tmp_path, case):
    path = tmp_path / "run"
    launcher, more = (ranks(3), []) if case == "a rank" else ([], ["--processes", "3"])
    status, failed = killed_in_the_first_iteration(
        inputs, path, launcher, more, lambda first, others: first if case == "the first process" else others[-1])
    assert status != 0
    if case == "a process":
        assert "was stopped by signal 9" in failed and "--continue" in failed and failed.count("error:") == 1
    if case == "a rank":
        assert re.search(rf"process rank \d .*on node {re.escape(platform.node())} exited on signal 9", failed)
    refined(path, inputs, "--device", "cpu", "--continue", *more, launcher=launcher)
    assert_same_results(alone, path)


def test_ctrl_c_ends_all_and_one_speaks(inputs, tmp_path):
    """The terminal sends it to all processes of the group."""
    path = tmp_path / "run"
    process = start(["refine", *inputs, "--output", path, "--device", "cpu", "--processes", "3"], ["setsid"])
    while not list(path.glob("iter_001/.half_1_claims*/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    others = members_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, failed = process.communicate()
    assert process.returncode == 130
    assert failed.strip() == "stopped; to go on, give the same command with --continue"
    assert len(others) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in others)


def test_others_take_the_images_of_a_member_that_stands_still(alone, inputs, tmp_path):
    """It is stopped until all images have been taken, and finishes those it had."""
    path = tmp_path / "run"
    process = start(["refine", *inputs, "--output", path, "--device", "cpu", "--processes", "3"])
    while not list(path.glob("iter_001/.half_1_claims*/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    stopped, half = members_of(process.pid)[-1], PARTICLES // 2
    os.kill(stopped, signal.SIGSTOP)
    try:
        expected = len(spans(half, 3)) + len(spans(len(null_images(half, None)), 3))
        while len(list(path.glob("iter_001/.half_1_claims*/*"))) < expected:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
    finally:
        os.kill(stopped, signal.SIGCONT)
    _, failed = process.communicate()
    assert process.returncode == 0, failed
    assert_same_results(alone, path)


@pytest.fixture
def disk(tmp_path):
    """(folder, function that mounts it with other options) of a file system in memory; skips where none may be
    mounted."""
    try:
        with small_disk(tmp_path / "disk", 100_000) as mount:
            yield tmp_path / "disk", mount
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"a file system cannot be mounted: {error}")


def said_once(done, place):
    """That a run of MPI ranks ended with one sentence, which names a file of the folder, the rank and its machine."""
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(rf"error: {place}\S* \(rank \d on {re.escape(platform.node())}\): No space left", done.stderr)


@pytest.mark.parametrize("room", ("size=1000k", "nr_inodes=36"))  # less than two iterations take
def test_a_full_disk_ends_all_ranks_with_one_sentence_and_continue_has_the_same_bits(alone, inputs, disk, room):
    folder, mount = disk
    mount(room)
    done = engine(["refine", *inputs, "--output", folder / "run", "--device", "cpu"], ranks(3))
    said_once(done, folder / "run" / "iter_002")
    mount("size=100000k,nr_inodes=1000")
    assert_same_results(alone, refined(folder / "run", inputs, "--device", "cpu", "--continue", launcher=ranks(3)))


def test_a_rank_whose_own_disk_is_full_says_which_folder_it_needs(alone, inputs, disk, tmp_path):
    """Another machine's disk, where it keeps compiled code."""
    folder, mount = disk
    mount("size=200k")
    (folder / "full").write_bytes(bytes(200 << 10))
    of_one = f'[ "$OMPI_COMM_WORLD_RANK" = 0 ] || export NUMBA_CACHE_DIR={folder}; exec "$@"'
    done = engine(["refine", *inputs, "--output", tmp_path / "run", "--device", "cpu"],
                  [*ranks(2), "sh", "-c", of_one, "sh"])
    said_once(done, f"compiled code in {folder}/")
    assert "(rank 1 on" in done.stderr
    again = refined(tmp_path / "run", inputs, "--device", "cpu", "--continue", launcher=ranks(2))
    assert_same_results(alone, again)


# ---------------------------------------------------------------- words

@pytest.mark.parametrize("devices", ["cuda:0,cuda:0", "cpu,cuda:0", "cuda,cuda:1", "cuda:0,"])
def test_devices_that_are_no_different_gpus_are_a_usage_error(devices):
    with pytest.raises(SystemExit):
        main(["align", "RUN", "--iteration", "1", "--half", "both", "--device", devices])
