"""docs/reference/parameters.md, the verb `settings` and the form have one source."""
from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

from localrefine_plugin.engine.__main__ import main
from localrefine_plugin.engine.records.codec import as_json
from localrefine_plugin.engine.records.settings import Settings
from localrefine_plugin.protocols import ProtLocalRefine
from localrefine_plugin.protocols.form_local_refine import param_name, settings_values

DOCS = Path(__file__).resolve().parents[2] / "docs"


def writer():
    spec = importlib.util.spec_from_file_location("write_parameters", DOCS / "tools" / "write_parameters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    page = (DOCS / "reference" / "parameters.md").read_text(encoding="utf-8")
    assert page == writer().page(), "run: python docs/tools/write_parameters.py"


def test_verb_page_and_form_say_the_same_of_every_setting(capsys):
    """Name, label, unit, help, default, choices and expert level."""
    assert main(["settings"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(as_json(Settings.describe())))
    assert [entry["name"] for entry in told] == list(Settings().as_dict())
    sections = (DOCS / "reference" / "parameters.md").read_text(encoding="utf-8").split("\n### ")[1:]
    assert sorted(section.split("\n")[0] for section in sections) == sorted(entry["label"] for entry in told)
    values = settings_values(ProtLocalRefine())
    for entry in told:
        name, param = param_name(entry["name"]), ProtLocalRefine().getParam(param_name(entry["name"]))
        section = next(section for section in sections if section.startswith(entry["label"] + "\n"))
        assert f"`{entry['name']}` in settings.json, `{name}` in the protocol" in section and entry["help"] in section
        assert param.label.get().startswith(entry["label"]) and entry["help"] in param.help.get()
        assert param.isExpert() == entry["expert"] == section.rstrip().split("\n## ")[0].rstrip().endswith("- expert")
        assert values[entry["name"]] == entry["default"]
        if entry["kind"] == "choice":
            assert param.choices == entry["choices"]


def test_a_changed_default_changes_the_page(monkeypatch):
    described = [replace(entry, default=77) if entry.name == "max_iterations" else entry
                 for entry in Settings.describe()]
    monkeypatch.setattr(Settings, "describe", classmethod(lambda cls: described))
    assert "- default: 77\n" in writer().page()
