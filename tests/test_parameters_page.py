"""docs/parameters.md, the verb `settings` and the form have one source."""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from localrefine_plugin.engine.__main__ import main
from localrefine_plugin.engine.records import Settings
from localrefine_plugin.protocols import ProtLocalRefine
from localrefine_plugin.protocols.form_local_refine import param_name

DOCS = Path(__file__).resolve().parents[1] / "docs"


def writer():
    spec = importlib.util.spec_from_file_location("write_parameters", DOCS / "write_parameters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    page = (DOCS / "parameters.md").read_text(encoding="utf-8")
    assert page == writer().page(), "run: python docs/write_parameters.py"


def test_verb_page_and_form_name_the_same_settings(capsys):
    assert main(["settings"]) == 0
    names = [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert names == list(Settings().as_dict())
    page, protocol = (DOCS / "parameters.md").read_text(encoding="utf-8"), ProtLocalRefine()
    for name in names:
        assert f"`{name}` in settings.json, `{param_name(name)}` in the protocol" in page
        assert protocol.getParam(param_name(name)) is not None


def test_a_changed_default_changes_the_page(monkeypatch):
    described = Settings.describe()
    next(entry for entry in described if entry["name"] == "max_iterations")["default"] = 77
    monkeypatch.setattr(Settings, "describe", classmethod(lambda cls: described))
    assert "- default: 77\n" in writer().page()
