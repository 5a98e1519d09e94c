"""Opens the plugin's windows on the screen of $DISPLAY, photographs them, and says what is in them.

Run as a program by test_gui.py:  python gui_windows.py OUTPUT_FOLDER
Writes NAME.png per window and facts.json. It is a process of its own because a Tk window, once opened,
changes matplotlib's backend for the rest of the process.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from examples.headless import set_environment  # noqa: E402

OUTPUT = Path(sys.argv[1]).resolve()
set_environment(OUTPUT)
FACTS: Dict[str, Any] = {}


def settle(widget: Any, seconds: float = 0.6) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        widget.update()
        time.sleep(0.02)


def photograph(window: Any, name: str) -> None:
    """The window alone, as the screen shows it."""
    window.deiconify()
    window.lift()
    settle(window)
    subprocess.run(["import", "-window", str(int(window.winfo_id())), str(OUTPUT / f"{name}.png")], check=True)
    FACTS[name] = {"title": window.title(), "width": window.winfo_width(), "height": window.winfo_height()}


def texts_in(widget: Any) -> list:
    """Every text of labels and buttons below a widget."""
    found = []
    for child in widget.winfo_children():
        try:
            found.append(str(child.cget("text")))
        except Exception:  # widgets without a text
            pass
        found += texts_in(child)
    return [text for text in found if text]


def open_form(protocol: Any) -> Any:
    from pyworkflow.gui.form import FormWindow
    form = FormWindow("Local refinement", protocol, lambda *args: None, None)
    form.adjustSize()
    return form


def photograph_form(protocol: Any) -> Any:
    import tkinter.ttk as ttk
    form = open_form(protocol)

    def notebooks(widget: Any) -> list:
        own = [widget] if isinstance(widget, ttk.Notebook) else []
        return own + [n for child in widget.winfo_children() for n in notebooks(child)]
    tabs = notebooks(form.root)[0]
    for number, tab in enumerate(tabs.tabs()):
        tabs.select(tab)
        photograph(form.root, f"form_{number}_{tabs.tab(tab, 'text').lower()}")
    FACTS["form"] = {"texts": texts_in(form.root), "wizards": sorted(form.wizards)}
    return form


def photograph_wizards(form: Any) -> None:
    """Fulcrum picker: click, OK, and see the values arrive in the form; then the others."""
    from localrefine_plugin import wizard_values, wizards

    class Driven(wizards.FulcrumDialog):
        def wait_window(self, *_args: Any) -> None:
            photograph(self, "wizard_fulcrum")
            axes = self._axes[0]
            x, y = axes.transData.transform((20.0, 9.0))
            self._canvas.callbacks.process("button_press_event", click(self._canvas, x, y))
            settle(self)
            photograph(self, "wizard_fulcrum_clicked")
            self._handleResult(wizards.RESULT_YES)

    messages = []
    wizards.FulcrumDialog = Driven
    wizards.showInfo = lambda title, text, parent: messages.append(text)
    wizards.showError = lambda title, text, parent: messages.append("ERROR " + text)
    for wizard in (wizards.FulcrumWizard, wizards.MaskWizard, wizards.InitialLowpassWizard, wizards.ExtentWizard):
        wizard().show(form)
    protocol = form.protocol
    FACTS["wizards"] = {
        "fulcrum": [form.widgetDict[name].get() for name in ("fulcrum", "fulcrumX", "fulcrumY", "fulcrumZ")],
        "mask_centre": list(wizard_values.places(*wizard_values.map_and_mask(protocol))["Mask centre"]),
        "lowpass": form.widgetDict["initialLowpass"].get(), "messages": messages,
        "extents": [form.widgetDict[name].get() for name in ("rotationExtent", "shiftExtent")]}
    photograph(form.root, "form_after_wizards")


def click(canvas: Any, x: float, y: float) -> Any:
    from matplotlib.backend_bases import MouseEvent
    return MouseEvent("button_press_event", canvas, x, y, button=1)


def photograph_viewer(project: Any, protocol: Any, prefix: str, pictures: Any) -> None:
    from localrefine_plugin.viewers import LocalRefineViewer
    viewer = LocalRefineViewer(project=project, protocol=protocol)
    opened = {}

    def instead_of_loop(window: Any, *_args: Any, **_kwargs: Any) -> None:
        opened["window"] = window
    from pyworkflow.gui.form import FormWindow
    original, FormWindow.show = FormWindow.show, instead_of_loop
    viewer.visualize(protocol)
    FormWindow.show = original
    window = opened["window"]
    window.adjustSize()
    photograph(window.root, f"{prefix}_viewer")
    for name in pictures:
        views = viewer._getVisualizeDict()[name](name)
        picture = views[0].show()
        photograph(picture, f"{prefix}_{name}")
        picture.destroy()
    window.root.destroy()


def main() -> None:
    import pyworkflow.gui.project  # noqa: F401  (first: pyworkflow.gui.form alone cannot be imported)
    from fake_run import fake_run
    from pyworkflow import Config
    from scipion_data import new_project, simulated_inputs

    from localrefine_plugin.engine.run_folder import write_json
    from localrefine_plugin.protocols import ProtLocalRefine
    from localrefine_plugin.viewers.run_figures import PICTURES
    Config.getDomain().getViewers()
    project = new_project("gui")
    inputs = simulated_inputs(project, OUTPUT / "data", n=20)

    def make(label: str) -> Any:
        protocol = project.newProtocol(ProtLocalRefine, objLabel=label)
        for name, output in (("inputParticles", "outputParticles"), ("inputVolume", "outputVolume"),
                             ("inputMask", "outputMask")):
            getattr(protocol, name).set(inputs)
            getattr(protocol, name).setExtended(output)
        project.saveProtocol(protocol)
        protocol.makePathsAndClean()
        return protocol
    form = photograph_form(make("to be run"))
    photograph_wizards(form)
    form.root.destroy()
    finished = make("finished")
    fake_run(Path(finished._getExtraPath("run")))
    photograph_viewer(project, finished, "finished", [picture.name for picture in PICTURES])
    running = make("running")
    folder = fake_run(Path(running._getExtraPath("run")), iterations=1, finished=False)
    folder.iteration(2).mkdir()
    folder.half_done(2, 1).write_text('{"iteration": 2, "ha')
    photograph_viewer(project, running, "running", ["fsc", "pose_change"])
    failed = make("failed")
    write_json(Path(failed._getExtraPath()) / "nothing.json", {})
    photograph_viewer(project, failed, "failed", ["fsc"])
    (OUTPUT / "facts.json").write_text(json.dumps(FACTS, indent=1))


if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
        os.chdir("/")
