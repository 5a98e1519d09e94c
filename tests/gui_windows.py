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

from examples import screen  # noqa: E402
from examples.headless import set_environment  # noqa: E402

OUTPUT = Path(sys.argv[1]).resolve()
set_environment(OUTPUT)
FACTS: Dict[str, Any] = {}


def photograph(window: Any, name: str) -> None:
    screen.photograph(window, OUTPUT / f"{name}.png")
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
    form = open_form(protocol)
    tabs = screen.notebooks(form.root)[0]
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
            screen.settle(self)
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


def photograph_viewer(project: Any, protocol: Any, prefix: str, pictures: Any, then: Any = None) -> None:
    from localrefine_plugin.viewers import LocalRefineViewer
    viewer = LocalRefineViewer(project=project, protocol=protocol)
    with screen.forms_without_loop() as opened:
        viewer.visualize(protocol)
    window = opened[0]
    window.adjustSize()
    photograph(window.root, f"{prefix}_viewer")
    for name in pictures:
        views = viewer._getVisualizeDict()[name](name)
        picture = views[0].show()
        photograph(picture, f"{prefix}_{name}")
        picture.destroy()
    if then is not None:
        then(viewer)
    window.root.destroy()


def slide(viewer: Any, folder: Any) -> None:
    """Move the slider of a picture, and let the run get on under an open window."""
    from localrefine_plugin.viewers import figure_window
    figure_window.LOOK_AGAIN_MS = 200
    view = viewer._getVisualizeDict()["fsc"]("fsc")[0]
    window = view.show()
    shown = [view._shown]
    view._slider.set(1)
    screen.settle(window)
    shown.append(view._shown)
    title = view.figure.get_suptitle()
    view.choose(None)
    shown.append(view._shown)
    before = view.figure
    (folder.path / "report.json").rename(folder.path / "hidden.json")  # a run that is not finished any more
    screen.settle(window, 1.0)
    FACTS["slider"] = {"shown": shown, "title_of_1": title, "followed": view.figure is not before}
    (folder.path / "hidden.json").rename(folder.path / "report.json")
    window.destroy()


def open_maps(viewer: Any, project: Any) -> None:
    """Maps in Scipion's viewer: its program on a screen of its own, and what is said when there is none."""
    import pwem.viewers.mdviewer.viewer as mdviewer
    started = []
    popen = subprocess.Popen

    def start(command: Any, *args: Any, **kwargs: Any) -> Any:
        started.append(popen(command, env=dict(os.environ, QT_QPA_PLATFORM="offscreen"), stderr=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, text=True))
        return started[-1]
    project.port = 1  # the project window's, when there is one
    mdviewer.subprocess.Popen = start
    maps = viewer.write_map_set()
    labels = [item.getObjLabel() for item in maps]
    viewer._show_volume()
    time.sleep(4)
    alive = bool(started) and started[0].poll() is None
    for process in started:
        process.terminate()
    FACTS["data_viewer"] = {"command": [str(word) for word in started[0].args] if started else [], "maps": labels,
                            "still_running": alive, "errors": "" if alive else started[0].stderr.read()[-500:]}

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise FileNotFoundError("no program")
    mdviewer.subprocess.Popen = refuse
    said = []
    viewer.errorMessage = lambda message, title: said.append(message)
    viewer._show_volume()
    mdviewer.subprocess.Popen = popen
    FACTS["no_data_viewer"] = said[0]


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
    folder = fake_run(Path(finished._getExtraPath("run")).resolve())

    def of_the_finished(viewer: Any) -> None:
        slide(viewer, folder)
        open_maps(viewer, project)
    photograph_viewer(project, finished, "finished", [picture.name for picture in PICTURES], of_the_finished)
    running = make("running")
    folder = fake_run(Path(running._getExtraPath("run")), iterations=1, finished=False)
    folder.iteration(2).mkdir()
    folder.half_done(2, 1).write_text('{"iteration": 2, "ha')
    photograph_viewer(project, running, "running", ["fsc", "pose_change"])
    failed = make("failed")
    write_json(Path(failed._getExtraPath()) / "nothing.json", {})

    def of_the_failed(viewer: Any) -> None:
        viewer.infoMessage = lambda message, title: FACTS.update(no_maps_yet=message)
        viewer._show_volume()
    photograph_viewer(project, failed, "failed", ["fsc"], of_the_failed)
    (OUTPUT / "facts.json").write_text(json.dumps(FACTS, indent=1))


if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
        os.chdir("/")
