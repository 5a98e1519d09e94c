"""A sample of the campaigns behind docs/reference/reliability.md: killed runs, full and forbidden disks."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sample():
    """Lines of `benchmarks.faults.reliability sample`, in a process of its own: it forks, numba's threads do not."""
    command = [sys.executable, "-m", "benchmarks.faults.reliability", "sample"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("path", ["refine", "verb by verb"])
def test_killed_runs_continue_to_the_same_bits_and_repeat_nothing(sample, path):
    kills, at_random, inside, *bad = next([int(n) for n in line[1:]] for line in sample if line[0] == path)
    assert at_random == 1 and inside >= 3 and kills == at_random + inside
    assert bad == [0, 0, 0]


def test_a_broken_disk_is_one_sentence_and_the_run_goes_on(sample):
    cases = {line[1]: line for line in sample if line[0] in ("ok", "LOST")}
    assert len(cases) >= 10
    assert [line for line in cases.values() if line[0] != "ok"] == []
    assert "/images.mrcs: was cut short" in cases["images cut short while they are read"][2]
    assert "Permission denied" in cases["mask.mrc not readable (0000)"][2]


def test_a_full_disk_names_the_file(sample):
    full = [line for line in sample if len(line) > 1 and line[1].startswith("disk full")]
    if not full:
        pytest.skip("mounting a small file system is not permitted here; a limit on the size of files was tried")
    assert len(full) == 4 and all("No space left on device" in line[2] and "/run/" in line[2] for line in full)
