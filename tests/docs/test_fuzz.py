"""Damaged input files are read or refused in one sentence: a sample of `python -m benchmarks.faults.fuzz`."""
from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.faults import fuzz
from localrefine_plugin.engine.io.relion_particles import read_particles
from localrefine_plugin.engine.records.errors import InputError

CASES = 300


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return fuzz.fuzz(tmp_path_factory.mktemp("fuzz"), CASES, seed=1)


def test_nothing_fails_and_the_sample_is_of_every_kind(sample):
    assert not sample.failures
    for kind, share in fuzz.SHARES.items():
        passed, refused = sample.outcomes[kind, "passed"], sample.outcomes[kind, "refused"]
        assert passed + refused == round(share * CASES)
        assert passed and refused and sample.outcomes[kind, "refined"]


def test_the_fuzzer_notices(sample, monkeypatch, tmp_path):
    """A traceback, a sentence of two lines, and a file written elsewhere are failures."""
    def broken(*_):
        raise KeyError("rlnVoltage")

    def two_lines(*_):
        raise InputError("is\nbad", "file", "mend it")

    def writes(*_):
        (tmp_path / "stray").write_text("x")
        raise InputError("is bad", "file", "mend it")
    for function, words in ((broken, "KeyError"), (two_lines, "not one sentence"), (writes, "stray")):
        monkeypatch.setattr(fuzz, "check_inputs", function)
        count = len(sample.failures)
        sample.case("STAR 3.1", 0)
        assert words in sample.failures[count] and len(sample.failures) == count + 1


def test_the_table_of_the_page_adds_up(sample):
    rows = [line.split("|") for line in fuzz.section(sample, CASES, 1, 1.0).splitlines() if line.startswith("| ")]
    numbers = [[int(cell) for cell in row[2:-1]] for row in rows[2:]]
    assert numbers[-1] == [sum(column) for column in zip(*numbers[:-1])]


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(
    lambda t: ("data_\n" + t).encode("utf-8", "surrogatepass"))))
def test_anything_at_all_as_star(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "anything.star"
    path.write_bytes(content)
    try:
        read_particles(path)
    except InputError as error:
        assert "\n" not in str(error)
