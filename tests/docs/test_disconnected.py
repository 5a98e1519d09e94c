"""Every setting has a test of its effect, which fails without the setting (benchmarks/faults/disconnected.py)."""
from __future__ import annotations

import re

import pytest

from benchmarks.faults.disconnected import TESTS, TESTS_FAILED, TESTS_PAGE, page, status_without
from benchmarks.page import DOCS, path_of_test
from localrefine_plugin.engine.records.settings import Settings


def test_every_setting_has_its_test():
    assert set(TESTS) == set(Settings().as_dict()), "name the test of the setting in benchmarks/faults/disconnected.py"
    for name, test in TESTS.items():
        file, function = test.split("::")
        assert f"\ndef {function}(" in path_of_test(file).read_text(encoding="utf-8"), f"{name}: {test} does not exist"


def test_every_test_the_docs_name_exists():
    named = {name for page in DOCS.rglob("*.md")
             for name in re.findall(r"\b(test_\w+\.py)::(\w+)", page.read_text(encoding="utf-8"))}
    assert len(named) > 60
    files = {file: path_of_test(file).read_text(encoding="utf-8") for file, _ in named}
    assert [f"{file}::{name}" for file, name in sorted(named) if f"\ndef {name}(" not in files[file]] == []


def test_the_table_for_developers_is_up_to_date():
    assert page() in TESTS_PAGE.read_text(encoding="utf-8"), "run: benchmarks.faults.disconnected seed --write"


@pytest.mark.parametrize("name", ("join_halves_resolution_angstrom", "resplit_half_sets"))
def test_a_disconnected_setting_is_noticed(name):
    """Two quick ones; `python -m benchmarks.faults.disconnected` does all."""
    assert status_without(name) == TESTS_FAILED
