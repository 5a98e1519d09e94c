"""Settings files: each is read for what it says, or refused in one sentence."""
from __future__ import annotations

import json
import os

import pytest
from particle_files import Inputs
from spoil import check, files_below, prepare

from localrefine_plugin.engine.prepare.arguments import read_settings
from localrefine_plugin.engine.records.errors import InputError
from localrefine_plugin.engine.records.settings import Settings


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


BAD_SETTINGS = {
    "fulcrum": ([1, 2, 16], "outside the box of 16"),
    "shift_extent_angstrom": (17.0, "more than half the box"),
    "initial_lowpass_angstrom": (20.0, "leaves nothing"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_do_not_fit_the_box(inputs, name):
    value, problem = BAD_SETTINGS[name]
    with pytest.raises(InputError, match=f"setting {name}: .*{problem}"):
        check(inputs, **{name: value})


BAD_FILES = {
    "unknown key": ('{"bogus": 1}', "no setting 'bogus'"),
    "out of range": ('{"prior_rotation_deg": 400}', "setting prior_rotation_deg: 400 is outside"),
    "wrong kind": ('{"max_iterations": 2.5}', "setting max_iterations: 2.5 is not"),
    "a word": ('{"marginalize": "yes"}', "setting marginalize"),
    "null": ('{"seed": null}', "setting seed: is null"),
    "not a number": ('{"prior_shift_angstrom": NaN}', "setting prior_shift_angstrom: nan"),
    "too large": ('{"seed": 1' + "0" * 400 + "}", "seed|too large"),
    "choice": ('{"prior": "flat"}', "setting prior: 'flat' is not offered"),
    "point": ('{"fulcrum": [1, 2]}', "setting fulcrum"),
    "list": ("[1]", "settings.json: holds no JSON object"),
    "not JSON": ("prior = off", "settings.json: is not a JSON file"),
    "not text": (b"\xff\xfe\x00", "settings.json: is not a JSON file"),
    "deep": ("[" * 100000, "settings.json: is not a JSON file"),
    "empty": ("", "settings.json: is not a JSON file"),
    "misspelt": ('{"Prior": "off"}', "no setting 'Prior'"),
    "code for a value": ('{"prior": "__import__(\'os\').abort()"}', "setting prior: .* is not offered"),
    "list for a number": ('{"seed": [1]}', "setting seed: \\[1\\] is not"),
    "object for a number": ('{"seed": {"value": 1}}', "setting seed: .* is not"),
    "text for a number": ('{"prior_rotation_deg": "7"}', "setting prior_rotation_deg: '7' is not"),
    "true for a number": ('{"max_iterations": true}', "setting max_iterations: True is not"),
    "number for true": ('{"marginalize": 1}', "setting marginalize: 1 is not true or false"),
    "negative": ('{"max_iterations": -3}', "setting max_iterations: -3 is outside"),
    "infinite": ('{"prior_shift_angstrom": Infinity}', "setting prior_shift_angstrom: inf"),
    "point of words": ('{"fulcrum": ["a", "b", "c"]}', "setting fulcrum"),
    "point with NaN": ('{"fulcrum": [1, NaN, 2]}', "setting fulcrum"),
    "point with a huge number": ('{"fulcrum": [1, 1%s, 2]}' % ("0" * 400), "setting fulcrum|number too large"),
    "no point group": ('{"symmetry": "C0"}', "setting symmetry: 'C0' is not a point group"),
    "symmetry of a number": ('{"symmetry": 4}', "setting symmetry: 4 is not a point group"),
    "a trailing comma": ('{"prior": "off",}', "settings.json: is not a JSON file"),
    "comments": ('{"prior": "off"} // no prior', "settings.json: is not a JSON file"),
    "UTF-16": ('{"prior": "off"}'.encode("utf-16"), "settings.json: is not a JSON file"),
    "twice": ('{"prior": "off", "prior": "flat"}', "prior"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_settings_file(tmp_path, name):
    text, problem = BAD_FILES[name]
    path = tmp_path / "settings.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=problem):
        read_settings(path)


def test_settings_file_missing(tmp_path):
    with pytest.raises(InputError, match="nowhere.json: cannot be read"):
        read_settings(tmp_path / "nowhere.json")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to(path),
                                  lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    path = tmp_path / "settings.json"
    make(path)
    with pytest.raises(InputError, match="settings.json: cannot be read"):
        read_settings(path)


@pytest.mark.parametrize("text", ['\ufeff{"seed": 5}', '{"seed":\r\n5}', ' {"seed": 5, "prior": "learned"} \n'])
def test_read_for_what_they_say(tmp_path, text):
    path = tmp_path / "settings.json"
    path.write_bytes(text.encode())
    assert read_settings(path) == Settings(seed=5)


def test_every_setting_survives_its_file(tmp_path):
    path = tmp_path / "settings.json"
    given = Settings(prior="off", fulcrum=[1.5, 2, 3], symmetry="D2", rotation_extent_deg=12.5)
    path.write_text(json.dumps(given.as_dict()))
    assert read_settings(path) == given


def test_the_program_says_one_sentence_and_computes_nothing(inputs, capsys):
    (inputs.folder / "settings.json").write_text('{"symmetry": "C0"}')
    before = files_below(inputs.folder)
    assert prepare(inputs, "--settings", str(inputs.folder / "settings.json")) == 1
    heard = capsys.readouterr().err
    assert heard.count("\n") == 1 and heard.startswith("error: setting symmetry: 'C0'")
    assert set(files_below(inputs.folder)) - set(before) == {str(inputs.output), str(inputs.output / "error.json")}


def test_a_link_in_the_run_folder_is_not_followed(inputs, capsys):
    """Writing through it would change files elsewhere."""
    elsewhere = inputs.folder / "elsewhere"
    elsewhere.mkdir()
    inputs.output.mkdir()
    (inputs.output / "settings.json").write_text("{}")
    (inputs.output / "iter_000").symlink_to(elsewhere)
    assert prepare(inputs, "--overwrite") == 1
    assert "holds a link (iter_000)" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())
