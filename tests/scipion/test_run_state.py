"""Run folders that are damaged, half-written or of failed runs must not raise; the summary and the HTML report."""
from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
from fake_run import fake_run
from figures import NOT_IN_THE_FAKE_RUN, pixels

from localrefine_plugin.engine.__main__ import parser
from localrefine_plugin.engine.io.run_folder import BodiesFolder, read_json, write_json
from localrefine_plugin.engine.records.codec import as_json
from localrefine_plugin.report.bodies_summary import bodies_lines
from localrefine_plugin.report.html_report import report_html, reproduce_commands, write_report
from localrefine_plugin.report.run_figures import PICTURES, chosen_iteration, draw
from localrefine_plugin.report.run_state import RunState
from localrefine_plugin.report.run_summary import summary_lines


def damage(folder, how):
    iteration = folder.iteration(3)
    if how == "half-written json":
        for name in ("iteration.json", "half_1.json"):
            (iteration / name).write_text('{"iteration": 3, "resol')
    elif how == "truncated arrays":
        for path in list(iteration.glob("*.npz")) + list(iteration.glob("*.mrc")):
            path.write_bytes(path.read_bytes()[:200])
    elif how == "empty files":
        for path in iteration.iterdir():
            path.write_bytes(b"")
    elif how == "garbage star":
        (iteration / "fsc.star").write_text("data_fsc\nloop_\n_rlnResolution\n_rlnSpectralIndex\nx\n")
    elif how == "other types":
        for path in [folder.input, folder.settings, *folder.path.glob("iter_*/iteration.json")]:
            path.write_text('["a list"]')
    elif how == "strange values":
        strange = {"resolution_angstrom": None, "pose_change": None, "best_iteration": "x", "warnings": 3}
        write_json(iteration / "iteration.json", strange)
    elif how == "nothing":
        import shutil
        shutil.rmtree(folder.path)


DAMAGES = ["half-written json", "truncated arrays", "empty files", "garbage star", "other types", "strange values",
           "nothing"]


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_runs_never_raise(tmp_path, how):
    folder = fake_run(tmp_path / "run")
    damage(folder, how)
    state = RunState(folder.path)
    assert isinstance(summary_lines(state), list)
    for picture in PICTURES:
        for k in (None, 0, 99) if how == "nothing" else (None, 3):
            figure = draw(picture, state, k)
        if how == "strange values":  # what can be drawn can also be rendered
            assert pixels(figure).size


def test_the_report_of_a_failed_run_says_so(tmp_path):
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "error.json", {"message": "mask.mrc: is empty; give a mask"})
    text = report_html(RunState(tmp_path / "run"), "failed")
    assert "mask.mrc: is empty; give a mask" in text and text.endswith("</html>")


def test_random_damage_never_raises(tmp_path):
    """Bytes of every file flipped or cut at random places."""
    rng = np.random.default_rng(0)
    for round_number in range(6):
        folder = fake_run(tmp_path / f"run{round_number}", iterations=1, particles=20)
        for path in [p for p in folder.path.rglob("*") if p.is_file()]:
            data = bytearray(path.read_bytes())
            where = rng.integers(0, max(1, len(data)), 20)
            for i in where[where < len(data)]:
                data[i] = rng.integers(0, 256)
            path.write_bytes(bytes(data[: int(len(data) * rng.choice([1.0, 1.0, 0.7]))]))
        state = RunState(folder.path)
        summary_lines(state)
        for picture in PICTURES:
            draw(picture, state)


def test_the_best_iteration_is_the_result(tmp_path):
    folder = fake_run(tmp_path / "run")
    text = folder.iteration_done(3).read_text().replace('"best_iteration": 3', '"best_iteration": 2')
    folder.iteration_done(3).write_text(text)
    state = RunState(folder.path)
    assert chosen_iteration(state) == 2
    assert state.best.resolution() == pytest.approx(8.6)
    assert any("iteration 2: 8.60 Å" in line for line in summary_lines(state))


def test_the_summary_says_what_was_automatic_and_what_was_given(state):
    line = next(line for line in summary_lines(state) if line.startswith("Chosen automatically"))
    assert "initial low-pass 10.5 Å" in line and "fulcrum 18.0, 15.5, 17.0 px" in line
    assert "prior" not in line  # given, not chosen


def test_the_summary_says_what_it_runs_on(tmp_path):
    folder = fake_run(tmp_path / "run")
    assert not any("Runs on" in line for line in summary_lines(RunState(folder.path)))  # of an older release
    write_json(folder.input, dict(read_json(folder.input), device="CPU (2 threads), because there is no driver"))
    assert "Runs on CPU (2 threads), because there is no driver" in summary_lines(RunState(folder.path))


def test_the_summary_says_what_a_selection_did(tmp_path):
    folder = fake_run(tmp_path / "run" / "body_2")
    assert not any(line.startswith("Selection") for line in summary_lines(RunState(folder.path)))
    effects = {choice: {"resolution_angstrom": of, "mean_fsc": 0.5} for choice, of in (
        ("all", 5.62), ("weighted", 5.6), ("kept", 5.55), ("random", 5.75))}
    write_json(folder.final("selection.json"), {"kept": 70, "left_out": 30, "expected_wrong": 0.002, "effect": effects})
    line = next(line for line in summary_lines(RunState(folder.path)) if line.startswith("Selection"))
    for words in ("30 particles (30 %) are left out", "kept agree to 5.55 Å", "of all to 5.62 Å", "random to 5.75 Å"):
        assert words in line, words
    of_bodies = bodies_lines(BodiesFolder(tmp_path / "run"), 2)
    assert f"Body 2: {line}" in of_bodies and not any(text.startswith("Body 1") for text in of_bodies)


# ---------------------------------------------------------------- report

def test_the_summary_gives_the_advice_on_the_result_and_not_what_is_outdated(tmp_path):
    """Iteration 1 was at the limit; iteration 3, the best, is not, but has two peaks. The end adds its own."""
    folder = fake_run(tmp_path / "run")
    for k, said in ((1, {"rotation limit": "at the limit of old"}), (3, {"rotation peaks": "two peaks of now"})):
        write_json(folder.iteration_done(k), dict(read_json(folder.iteration_done(k)), advice=said,
                                                  warnings=list(said.values())))
    everything = ["the mask of the input", "at the limit of old", "two peaks of now"]
    write_json(folder.report, dict(read_json(folder.report), warnings=everything, advice=["blurred by the poses"]))
    text = "\n".join(summary_lines(RunState(folder.path)))
    assert "at the limit of old" not in text
    for words in ("less than five times", "the mask of the input", "two peaks of now", "blurred by the poses"):
        assert text.count(words) == 1, words


def test_the_report_is_self_contained_and_tells_everything(run, tmp_path):
    path = tmp_path / "report.html"
    write_report(run.path, str(path), "A <run>")
    text = path.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == len(PICTURES) - len(NOT_IN_THE_FAKE_RUN)
    assert not re.search(r"(src|href)=['\"](?!data:)", text) and "<script" not in text
    assert "A &lt;run&gt;" in text and "automatic: no selection" not in text
    for words in ("7.40 Å", "10.5 (automatic)", "<td>mask in use</td><td>500</td><td>7.40</td>", "version of numpy",
                  "version of scipion-em", "mask: 18, 15.5, 17", "--half-map-1", "less than five times",
                  "FSC 0.143 / 0.5: unmasked 9.62 Å / 12.51 Å",
                  "One standard error of the corrected FSC: 7.30 to 7.60 Å", "adds no correlation of its own: 7.25 Å",
                  "inserted, on average: 1.4",
                  "B-factor of the sharpened map: -85 Å²", "share their density coarser than 20 Å"):
        assert words in text, words


def test_the_commands_of_the_report_are_those_of_the_run(state):
    """A shell would make settings.json and call the engine with the paths of the input, whatever is in their names."""
    state.input = replace(state.input, particles="/data/my particles; rm.star")
    text = reproduce_commands(state)
    settings, command = text.split("\nEND\n")
    assert json.loads(settings.split("\n", 1)[1]) == as_json(state.settings)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "localrefine_plugin.engine"]
    options = parser().parse_args(words[3:])
    assert options.particles == "/data/my particles; rm.star" and options.half_map_1 == state.input.half_map_1
    assert options.settings == ["settings.json"] and options.verb == "refine"
