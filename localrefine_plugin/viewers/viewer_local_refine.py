"""Analyze Results of the protocol: before, while and after it runs, and when it failed."""
from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Optional, Tuple

import pyworkflow.protocol.params as params
from pyworkflow.viewer import DESKTOP_TKINTER, ProtocolViewer, View

from ..protocols import ProtLocalRefine
from ..protocols.run_state import RunState, summary_lines
from .figure_window import FigureView
from .html_report import write_report
from .run_figures import PICTURES, draw

NO_RUN = "no other run"
SECTIONS = (("Resolution", ("fsc", "fsc_history", "progress")),
            ("Poses", ("pose_change", "axis_change", "orientations")),
            ("Maps and images", ("map_slices", "noise", "scale")))


class LocalRefineViewer(ProtocolViewer):
    """Pictures of a local refinement; each is drawn from the files as they are when it is asked for."""

    _label = "viewer local refinement"
    _targets = [ProtLocalRefine]
    _environments = [DESKTOP_TKINTER]

    def _defineParams(self, form: Any) -> None:
        pictures = {picture.name: picture for picture in PICTURES}
        form.addSection(label="Results")
        form.addParam("iteration", params.IntParam, default=None, allowsNull=True, label="Iteration",
                      help="Leave empty for the best one so far (the result). 0 is the input.")
        form.addParam("compareWith", params.EnumParam, choices=[NO_RUN] + [name for name, _ in self._other_runs()],
                      default=0, label="Compare with",
                      help="Another local refinement of this project, laid over the histograms of pose change.")
        for section, names in SECTIONS:
            group = form.addGroup(section)
            for name in names:
                group.addParam(name, params.LabelParam, label=pictures[name].label, help=pictures[name].help)
        group = form.addGroup("Files")
        group.addParam("showVolume", params.LabelParam, label="Volume in Scipion's viewer",
                       help="The refined volume, as a double click on the output shows it.")
        group.addParam("showChimera", params.LabelParam, label="Maps in ChimeraX",
                       help="The map, the sharpened map, both half-maps and the mask.")
        group.addParam("showReport", params.LabelParam, label="Report (HTML)",
                       help="All pictures, settings, versions and warnings in one file, made anew from what is there.")

    def _getVisualizeDict(self) -> Dict[str, Callable[..., List[View]]]:
        handlers: Dict[str, Callable[..., List[View]]] = {picture.name: self._show_picture for picture in PICTURES}
        handlers.update(showVolume=self._show_volume, showChimera=self._show_chimera, showReport=self._show_report)
        return handlers

    # ---------------------------------------------------------------- pictures

    def state(self) -> RunState:
        return self.protocol.run_state()

    def figure(self, name: str) -> Any:
        """The Figure of an entry with the choices of the form; never raises on what the run folder holds."""
        picture = next(picture for picture in PICTURES if picture.name == name)
        return draw(picture, self.state(), self.getAttributeValue("iteration"), self._compared_run())

    def _show_picture(self, param_name: Optional[str] = None) -> List[View]:
        label = next(picture.label for picture in PICTURES if picture.name == param_name)
        return [FigureView(self.figure(str(param_name)), f"{label}: {self.protocol.getRunName()}", self.getTkRoot())]

    def _other_runs(self) -> List[Tuple[str, Any]]:
        """(label, protocol) of the other local refinements of the project that have begun."""
        runs = self.getProject().getRuns() if self.getProject() is not None else []
        return [(f"{run.getRunName()} (id {run.getObjId()})", run) for run in runs
                if isinstance(run, ProtLocalRefine) and run.getObjId() != self.protocol.getObjId()
                and run.run_state().started]

    def _compared_run(self) -> Optional[Tuple[str, RunState]]:
        chosen = self.getAttributeValue("compareWith", 0)
        others = self._other_runs()
        if not chosen or chosen > len(others):
            return None
        name, run = others[chosen - 1]
        return name, run.run_state()

    # ---------------------------------------------------------------- files

    def _show_volume(self, _param_name: Optional[str] = None) -> List[View]:
        volume = getattr(self.protocol, "outputVolume", None)
        if volume is None:
            return [self.infoMessage("The volume is there when the protocol has finished.", "No volume yet")]
        from pyworkflow import Config
        viewers = Config.getDomain().findViewers(volume, DESKTOP_TKINTER)
        if not viewers:
            return [self.errorMessage("No viewer for volumes is installed.", "No viewer")]
        viewers[0](project=self.getProject(), protocol=self.protocol, parent=self.formWindow).visualize(volume)
        return []

    def _show_chimera(self, _param_name: Optional[str] = None) -> List[View]:
        from pwem.viewers import Chimera, ChimeraView
        script = self.write_chimera_script()
        if script is None:
            return [self.infoMessage("The maps are there when the protocol has finished.", "No maps yet")]
        if not os.path.exists(str(Chimera.getProgram()).strip('"')):
            return [self.errorMessage(f"ChimeraX was not found. The commands are in {script}; open that file with it.",
                                      "No ChimeraX")]
        return [ChimeraView(script)]

    def write_chimera_script(self) -> Optional[str]:
        """A ChimeraX command file that opens the maps of the finished run; None before there are any."""
        folder = self.state().folder
        names = [name for name in ("map_sharpened.mrc", "map.mrc", "half_map_1.mrc", "half_map_2.mrc", "mask.mrc")
                 if folder.final(name).exists()]
        if not names:
            return None
        lines = [f'open "{os.path.abspath(folder.final(name))}"' for name in names]
        lines += [f"volume #{number} hide" for number in range(2, len(names) + 1)]
        path = self.protocol._getExtraPath("maps.cxc")
        with open(path, "w", encoding="utf-8") as handle:
            handle.write("\n".join(lines + ["view"]) + "\n")
        return path

    def _show_report(self, _param_name: Optional[str] = None) -> List[View]:
        import webbrowser
        path = os.path.abspath(self.protocol.html_report_path())
        write_report(self.state().folder.path, path, title=self.protocol.getRunName())
        if not webbrowser.open("file://" + path):
            return [self.infoMessage(f"The report is in {path}", "Report")]
        return []

    def _summary(self) -> List[str]:
        return summary_lines(self.state())
