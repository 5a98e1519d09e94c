"""The workflow templates, loaded as `scipion template` and "Import workflow" do it."""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from conftest import REQUIRE_OPTIONAL, _missing
from scipion_data import new_project

TEMPLATES = {"import_and_refine": 4, "subtract_and_refine": 6}  # name → number of protocols


@pytest.fixture(scope="module")
def domain():
    from pyworkflow import Config
    if importlib.util.find_spec("relion") is None:
        _missing("the Scipion plugin scipion-em-relion is not installed", REQUIRE_OPTIONAL)
    Config.getDomain().getPlugins()
    return Config.getDomain()


def filled(name, values=()):
    """The workflow a user gets who gives these values (alias → value) and leaves the others as they are."""
    import localrefine_plugin
    plugin = localrefine_plugin.Plugin()
    plugin._path = str(Path(localrefine_plugin.__file__).parent)
    folder = Path(plugin.getPluginTemplateDir())
    from pyworkflow.template import LocalTemplate
    template = LocalTemplate("localrefine_plugin", str(folder / f"{name}.json.template"))
    template.replaceEnvVariables()
    template.parseContent()
    for alias, value in dict(values).items():
        assert template.setParamValue(alias, value) == 1, alias
    for field in template.getParams().values():
        assert field.getAlias() and field.getTitle(), "every field can be set by name"
    return template, template.createTemplateFile()


def test_every_template_of_the_folder_is_known_here():
    folder = Path(__file__).resolve().parents[2] / "localrefine_plugin" / "templates"
    assert {path.name.split(".")[0] for path in folder.glob("*.json.template")} == set(TEMPLATES)


@pytest.mark.parametrize("name, number", sorted(TEMPLATES.items()))
def test_every_parameter_exists_and_every_input_is_an_output_of_another_step(domain, monkeypatch, tmp_path, name,
                                                                            number):
    monkeypatch.chdir(tmp_path)
    template, path = filled(name)
    assert "locally" in template.description
    workflow = json.loads(Path(path).read_text())
    assert len(workflow) == number
    classes = {entry["object.id"]: domain.getProtocols()[entry["object.className"]] for entry in workflow}
    for entry in workflow:
        protocol = classes[entry["object.id"]]()
        for key in entry:
            assert key.startswith("object.") or protocol.getParam(key) is not None, (entry["object.label"], key)
    project = new_project("template")
    made = project.loadProtocols(path)
    assert set(made) == set(classes)
    for entry in workflow:
        protocol = made[entry["object.id"]]
        for key, value in entry.items():
            pointer = getattr(protocol, key, None)
            if key.startswith("object.") or not hasattr(pointer, "pointsNone"):
                continue
            source, _, output = value.partition(".")
            assert pointer.getObjValue() is made[source], key
            assert pointer.getExtended() == output
            assert not output or output in names_of_outputs(made[source]), (key, value)


def names_of_outputs(protocol):
    outputs = protocol._possibleOutputs
    if outputs is None:  # the imports of pwem name them after the class
        return {"output" + protocol._outputClassName.replace("SetOf", "")}
    return set(outputs) if isinstance(outputs, dict) else {output.name for output in outputs}


def test_values_given_arrive_in_the_forms(domain, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask.mrc").write_bytes(b"")
    _, path = filled("import_and_refine", {"pixel": "3.6", "voltage": "200", "mask": str(tmp_path / "mask.mrc")})
    made = new_project("template_values").loadProtocols(path)
    assert made["1"].samplingRate.get() == 3.6 and made["1"].voltage.get() == 200
    assert made["3"].maskPath.get() == str(tmp_path / "mask.mrc")
    assert made["1"].getEnumText("importFrom") == "relion"
    assert made["4"]._validate() == []
