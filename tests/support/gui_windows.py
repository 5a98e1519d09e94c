"""Opens the plugin's windows on the screen of $DISPLAY, photographs them, and says what is in them.

Run as a program by test_gui.py:  python gui_windows.py OUTPUT_FOLDER
Writes NAME.png per window and facts.json. It is a process of its own because a Tk window, once opened,
changes matplotlib's backend for the rest of the process.
"""
from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]

from examples import screen  # noqa: E402
from examples.headless import set_environment  # noqa: E402

OUTPUT = Path(sys.argv[1]).resolve()
set_environment(OUTPUT)
FACTS: Dict[str, Any] = {}


def photograph(window: Any, name: str, seconds: float = 0.6, **more: Any) -> None:
    screen.photograph(window, OUTPUT / f"{name}.png", seconds=seconds)
    FACTS[name] = {"title": window.title(), "width": window.winfo_width(), "height": window.winfo_height(), **more}


def heading(figure: Any) -> str:
    """Figure.get_suptitle, which Matplotlib before 3.8 lacks."""
    return "" if figure._suptitle is None else figure._suptitle.get_text()


def artists(figure: Any) -> Dict[str, Any]:
    """What is written in a figure: its title, the labels of its axes, and its legends."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend() is not None)]
    labels = [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) if text]
    return {"heading": heading(figure), "labels": labels,
            "legend": [text.get_text() for legend in legends for text in legend.get_texts()]}


def texts_in(widget: Any) -> list:
    """Every text of labels, buttons and text fields below a widget."""
    found = []
    for child in widget.winfo_children():
        try:
            found.append(child.get("1.0", "end") if child.winfo_class() == "Text" else str(child.cget("text")))
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
    from localrefine_plugin import wizard_computations, wizards

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
    for wizard in (wizards.FulcrumWizard, wizards.MaskWizard, wizards.InitialLowpassWizard, wizards.PriorWizard,
                   wizards.ExtentWizard):
        with dialogs_photographed(wizard.__name__, messages):
            wizard().show(form)
    protocol = form.protocol
    protocol.moreMasks.append(protocol.inputMask)
    with dialogs_photographed("MoreMasksWizard", messages):
        wizards.MoreMasksWizard().show(form)
    protocol.moreMasks.clear()
    FACTS["wizards"] = {
        "fulcrum": [form.widgetDict[name].get() for name in ("fulcrum", "fulcrumX", "fulcrumY", "fulcrumZ")],
        "mask_centre": list(wizard_computations.places(*wizard_computations.map_and_mask(protocol))["Mask centre"]),
        "lowpass": form.widgetDict["initialLowpass"].get(), "messages": messages,
        "prior": [form.widgetDict[name].get() for name in ("priorRotation", "priorShift")],
        "extents": [form.widgetDict[name].get() for name in ("rotationExtent", "shiftExtent")]}
    photograph(form.root, "form_after_wizards")


@contextlib.contextmanager
def dialogs_photographed(name: str, messages: list) -> Any:
    """Messages of Scipion's are photographed, read and closed instead of waited for."""
    from pyworkflow.gui import dialog
    original = dialog.Dialog.wait_window

    def wait_window(self: Any, *_args: Any) -> None:
        photograph(self, f"dialog_{name}", 0.3)
        messages.append("\n".join(texts_in(self)))
        self.destroy()
    dialog.Dialog.wait_window = wait_window
    try:
        yield
    finally:
        dialog.Dialog.wait_window = original


def click(canvas: Any, x: float, y: float) -> Any:
    from matplotlib.backend_bases import MouseEvent
    return MouseEvent("button_press_event", canvas, x, y, button=1)


def found_bodies(project: Any) -> None:
    """A run of *find moving bodies* whose second body is a mask of this grid."""
    from fake_run import BOX, PIXEL
    from pwem.objects import VolumeMask
    from scipion_data import soft_ball, write_map

    from localrefine_plugin.engine.io.run_store import save_record
    from localrefine_plugin.engine.records.motion import PrincipalMotion
    from localrefine_plugin.engine.records.rigidity import RigidBody, Rigidity
    from localrefine_plugin.protocols import ProtLocalFindBodies
    run = project.newProtocol(ProtLocalFindBodies)
    run.setObjLabel("bodies of the complex")
    project.saveProtocol(run)
    run.makePathsAndClean()
    record = run._run_folder().rigidity
    record.parent.mkdir(parents=True)
    widths, mean = ((2.0, 2.0, 1.0), (0.1,) * 3, ((1.0, 0.0, 0.0),) * 3), (0.0,) * 3
    moved = PrincipalMotion(*widths, *widths, None, mean, mean, 1.0, {}, {}, 0.0)
    save_record(record, Rigidity(1, 200, 8.0, (), (RigidBody(1, 0.8, "body_1.mrc"), RigidBody(
        2, 0.2, "body_2.mrc", moved, 300.0)), (), 0.1, {}))
    mask = VolumeMask()
    mask.setFileName(write_map(record.parent / "body_2.mrc", soft_ball(BOX, 6, 4), PIXEL))
    mask.setSamplingRate(PIXEL)
    run._defineOutputs(outputMask_body2=mask)
    run.setFinished()
    project._storeProtocol(run)
    project.getRuns(refresh=True)


def choose_a_body(form: Any) -> None:
    """The mask wizard: the body that was found is chosen, and arrives in the form."""
    from localrefine_plugin import wizards

    class Driven(wizards.MaskDialog):
        def wait_window(self, *_args: Any) -> None:
            FACTS["masks_offered"] = [name for name, _ in self._choices]
            self.variable.set(len(self._choices) - 1)
            self._draw()
            photograph(self, "wizard_mask_of_a_body", 0.3)
            self._handleResult(wizards.RESULT_YES)
    original, wizards.MaskDialog = wizards.MaskDialog, Driven
    wizards.MaskWizard().show(form)
    wizards.MaskDialog = original
    pointer = form.widgetDict["inputMask"].get()
    FACTS["mask_chosen"] = [pointer.getObjValue().getRunName(), pointer.getExtended()]


def photograph_recentring(protocol: Any) -> None:
    """The form of the other protocol, and its point by the same wizard."""
    from localrefine_plugin import wizards

    class Driven(wizards.FulcrumDialog):
        def wait_window(self, *_args: Any) -> None:
            self.move_to((12.0, 14.0, 19.0))
            self._handleResult(wizards.RESULT_YES)
    original, wizards.FulcrumDialog = wizards.FulcrumDialog, Driven
    form = open_form(protocol)
    wizards.FulcrumWizard().show(form)
    wizards.FulcrumDialog = original
    photograph(form.root, "recentre_form")
    FACTS["recentre"] = {"point": [form.widgetDict[name].get() for name in ("fulcrum", "fulcrumX", "fulcrumY",
                                                                           "fulcrumZ")],
                         "texts": texts_in(form.root), "wizards": sorted(form.wizards)}
    form.root.destroy()


def photograph_viewer(project: Any, protocol: Any, prefix: str, pictures: Any, then: Any = None) -> None:
    from localrefine_plugin.viewers import LocalRefineViewer
    viewer = LocalRefineViewer(project=project, protocol=protocol)
    with screen.forms_without_loop() as opened:
        viewer.visualize(protocol)
    window = opened[0]
    window.adjustSize()
    photograph(window.root, f"{prefix}_viewer")
    for name in pictures:
        view = viewer._getVisualizeDict()[name](name)[0]
        picture = view.show()
        photograph(picture, f"{prefix}_{name}", 0.3, news=view.news.cget("text"), **artists(view.figure))
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
    title = heading(view.figure)
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


def open_files(viewer: Any) -> None:
    """The report in the browser, and ChimeraX where there is none."""
    import webbrowser
    opened, said = [], []
    original, webbrowser.open = webbrowser.open, lambda address: bool(opened.append(address)) or True
    viewer._show_report()
    webbrowser.open = original
    viewer.errorMessage = lambda message, title: said.append(message)
    viewer._show_chimera()
    text = Path(opened[0][len("file://"):]).read_text(encoding="utf-8")
    FACTS["report"] = {"pictures": text.count("data:image/png"), "end": text[-7:]}
    FACTS["no_chimera"] = said[0] if said else ""


def main() -> None:
    import pyworkflow.gui.project  # noqa: F401  (first: pyworkflow.gui.form alone cannot be imported)
    from fake_run import fake_run
    from pyworkflow import Config
    from pyworkflow.protocol.constants import STATUS_RUNNING
    from scipion_data import new_project, simulated_inputs

    from localrefine_plugin.engine.io.run_folder import write_json
    from localrefine_plugin.protocols import ProtLocalRecentre, ProtLocalRefine
    from localrefine_plugin.report.run_figures import PICTURES
    Config.getDomain().getViewers()
    project = new_project("gui")
    inputs = simulated_inputs(project, OUTPUT / "data", n=20)

    def make(label: str, protocol_class: Any = ProtLocalRefine) -> Any:
        protocol = project.newProtocol(protocol_class)
        protocol.setObjLabel(label)  # newProtocol ignores objLabel
        for name, output in (("inputParticles", "outputParticles"), ("inputVolume", "outputVolume"),
                             ("inputMask", "outputMask")):
            getattr(protocol, name).set(inputs)
            getattr(protocol, name).setExtended(output)
        project.saveProtocol(protocol)
        protocol.makePathsAndClean()
        return protocol
    form = photograph_form(make("to be run"))
    photograph_wizards(form)
    found_bodies(project)
    choose_a_body(form)
    form.root.destroy()
    photograph_recentring(make("to be re-centred", ProtLocalRecentre))
    finished = make("finished")
    folder = fake_run(Path(finished._getExtraPath("run")).resolve())

    def of_the_finished(viewer: Any) -> None:
        slide(viewer, folder)
        open_files(viewer)
        open_maps(viewer, project)
    every = [picture.name for picture in PICTURES]
    photograph_viewer(project, finished, "finished", every, of_the_finished)
    running = make("running")
    folder = fake_run(Path(running._getExtraPath("run")), iterations=1, finished=False)
    folder.iteration(2).mkdir()
    folder.half_done(2, 1).write_text('{"iteration": 2, "ha')
    folder.poses(2, 1).write_bytes(b"PK half of an archive")
    running.setStatus(STATUS_RUNNING)
    Path(running.getStdoutLog()).parent.mkdir(exist_ok=True)
    Path(running.getStdoutLog()).write_text("iteration 2 half 2: align and insert [#..] 30/200, 40 particles/s\n")
    photograph_viewer(project, running, "running", every)
    failed = make("failed")
    folder = fake_run(Path(failed._getExtraPath("run")), iterations=0, finished=False)
    write_json(folder.error, {"message": "half_2.mrc: is truncated; copy the file again"})
    failed.setFailed("half_2.mrc: is truncated; copy the file again")

    def of_the_failed(viewer: Any) -> None:
        viewer.infoMessage = lambda message, title: FACTS.update(no_maps_yet=message)
        viewer._show_volume()
    photograph_viewer(project, failed, "failed", every, of_the_failed)
    (OUTPUT / "facts.json").write_text(json.dumps(FACTS, indent=1))


if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
        os.chdir("/")
