"""Analyze Results of the protocol: before, while and after it runs, and when it failed."""
from __future__ import annotations

import os
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import pyworkflow.protocol.params as params
from pyworkflow.viewer import DESKTOP_TKINTER, ProtocolViewer, View

from ..protocols import ProtLocalRefine
from ..report.html_report import write_report
from ..report.run_figures import PICTURES, chosen_iteration, draw, picture_of
from ..report.run_state import RunState
from ..report.run_summary import live_line, summary_lines
from . import film_entry
from .figure_window import FigureView

NO_RUN = "no other run"
INPUT_POSES = "the input poses"
SECTIONS = (("Resolution", ("fsc", "fsc_history", "progress", "directions", "validation")),
            ("Poses", ("pose_change", "pose_uncertainty", "learned_motion", "axis_change", "film", "rigidity")),
            ("Particles", ("particles", "orientations")),
            ("Maps and images", ("map_slices", "filter_resolution", "noise", "scale")))
MAPS = (("map_sharpened.mrc", "sharpened map"), ("map.mrc", "map"), ("half_map_1.mrc", "half-map 1"),
        ("half_map_2.mrc", "half-map 2"), ("mask.mrc", "mask"))


class LocalRefineViewer(ProtocolViewer):
    """Pictures of a local refinement; each is drawn from the files as they are when it is asked for."""

    _label = "viewer local refinement"
    _targets = [ProtLocalRefine]
    _environments = [DESKTOP_TKINTER]

    def _defineParams(self, form: Any) -> None:
        pictures = {picture.name: picture for picture in PICTURES}
        form.addSection(label="Results")
        bodies = len(self.protocol.run_folders())
        if bodies > 1:
            form.addParam("body", params.EnumParam, choices=[f"body {number}" for number in range(1, bodies + 1)],
                          default=0, label="Body", help="The body that is shown: 1 is that of the first mask.")
        form.addParam("iteration", params.IntParam, default=None, allowsNull=True, label="Iteration (empty: the best)",
                      help="Leave empty for the best one so far (the result). 0 is the input.")
        form.addParam("compareWith", params.EnumParam, choices=[NO_RUN] + [name for name, _ in self._other_runs()],
                      default=0, label="Compare with",
                      help="Another local refinement of this project, or another body: its result is laid over the "
                           "FSC and the histograms of pose change.")
        form.addParam("filmRest", params.EnumParam, choices=[INPUT_POSES] + [name for name, _ in self._other_runs()],
                      default=0, label="Film: motion against",
                      help="The input poses, or a local refinement of the rest of the particle with the same "
                           "particles. Against such a run the motion is without the errors of the input poses, and "
                           "the film shows that run's map as the rest.")
        for section, names in SECTIONS:
            group = form.addGroup(section)
            for name in names:
                group.addParam(name, params.LabelParam, label=pictures[name].label, help=pictures[name].help)
        group = form.addGroup("Files")
        group.addParam("showVolume", params.LabelParam, label="Maps in Scipion's viewer",
                       help="The map, the sharpened map, both half-maps and the mask, in the viewer that Scipion has "
                            "for volumes.")
        group.addParam("showChimera", params.LabelParam, label="Maps in ChimeraX",
                       help="The map, the sharpened map, both half-maps and the mask.")
        group.addParam("showFilm", params.LabelParam, label="Film of the motion",
                       help="Makes the film, if it was not made before, and shows it in the browser: the refined part "
                            "along the axes of its motion, and how many particles are where.")
        group.addParam("showFilmChimera", params.LabelParam, label="Film in ChimeraX",
                       help="The same as series of maps that ChimeraX plays.")
        group.addParam("showReport", params.LabelParam, label="Report (HTML)",
                       help="All pictures, settings, versions and warnings in one file, made anew from what is there.")

    def _getVisualizeDict(self) -> Dict[str, Callable[..., List[View]]]:
        handlers: Dict[str, Callable[..., List[View]]] = {picture.name: self._show_picture for picture in PICTURES}
        handlers.update(showVolume=self._show_volume, showChimera=self._show_chimera, showReport=self._show_report,
                        showFilm=self._show_film, showFilmChimera=self._show_film_chimera)
        return handlers

    # ---------------------------------------------------------------- pictures

    def state(self) -> RunState:
        return self.protocol.run_state(self.body_number())

    def body_number(self) -> int:
        """That of the body that is shown, from 1."""
        return 1 + int(self.getAttributeValue("body", 0))

    def figure(self, name: str, iteration: Optional[int] = None) -> Any:
        """The Figure of an entry (iteration None: the result); never raises on what the run folder holds."""
        return draw(picture_of(name), self.state(), iteration, self._chosen_run("compareWith"))

    def _show_picture(self, param_name: Optional[str] = None) -> List[View]:
        picture = picture_of(str(param_name))
        return [FigureView(lambda k: self.figure(picture.name, k), f"{picture.label}: {self._title()}",
                           self.getTkRoot(), self._iterations if picture.of_one_iteration else None,
                           self.getAttributeValue("iteration"), self._stamp, self._news)]

    def _title(self) -> str:
        return str(self.protocol.body_title(self.body_number()))

    def _iterations(self) -> Tuple[int, int]:
        state = self.state()
        return 0 if state.last is None else state.last.iteration, chosen_iteration(state)

    def _stamp(self) -> Any:
        return len(self.state().iterations), self.state().finished

    def _news(self) -> str:
        """What a running run is doing, and how long ago it said so."""
        state, log = self.state(), self.protocol.getStdoutLog()
        if state.finished or state.error or not self.protocol.isActive() or not os.path.exists(log):
            return ""
        lines = live_line(log)
        return f"{lines[0]}  ({max(0.0, time.time() - os.path.getmtime(log)):.0f} s ago)" if lines else ""

    def _other_runs(self) -> List[Tuple[str, RunState]]:
        """(label, state) of the other local refinements of the project that have begun, and of all bodies of this one
        if it has several: which of them is shown may change while the window is open."""
        runs = self.getProject().getRuns() if self.getProject() is not None else []
        bodies = [(run, number) for run in runs if isinstance(run, ProtLocalRefine)
                  for number, _ in enumerate(run.run_folders(), 1)
                  if run.getObjId() != self.protocol.getObjId() or len(run.run_folders()) > 1]
        found = [(f"{run.body_title(number)} (id {run.getObjId()})", run.run_state(number)) for run, number in bodies]
        return [(label, state) for label, state in found if state.started]

    def _chosen_run(self, param_name: str) -> Optional[Tuple[str, RunState]]:
        """(label, state) of the run that an entry names; None for its first choice."""
        chosen, others = self.getAttributeValue(param_name, 0), self._other_runs()
        return others[chosen - 1] if 0 < chosen <= len(others) else None

    # ---------------------------------------------------------------- files

    def _show_volume(self, _param_name: Optional[str] = None) -> List[View]:
        from pyworkflow import Config
        from pyworkflow.viewer import DESKTOP_TKINTER as HERE
        maps = self.write_map_set()
        if maps is None:
            return [self.infoMessage("The maps are there when the protocol has finished.", "No maps yet")]
        reasons = []
        for viewer in Config.getDomain().findViewers(maps, HERE):
            if viewer.__name__ == "ChimeraViewer":  # has an entry of its own
                continue
            try:
                viewer(project=self.getProject(), protocol=self.protocol, parent=self.formWindow).visualize(maps)
                return []
            except Exception as error:  # a viewer whose program or plugin is missing raises anything
                reasons.append(f"{viewer._name or viewer.__name__}: {error}")
        return [self.errorMessage("No viewer of volumes could be opened:\n" + "\n".join(reasons) +
                                  "\n'Slices of the map' works without one.", "No viewer")]

    def write_map_set(self) -> Any:
        """The maps of the finished run as a SetOfVolumes; None before there are any."""
        from pwem.objects import SetOfVolumes, Volume
        from pyworkflow.utils import cleanPath
        names = self._maps()
        if not names:
            return None
        path = self.protocol._getExtraPath("maps.sqlite")
        cleanPath(path)
        maps = SetOfVolumes(filename=path)
        pixel_size = self.state().pixel_size
        maps.setSamplingRate(pixel_size)
        for name, label in names:
            volume = Volume()
            volume.setFileName(str(self.state().folder.final(name)))
            volume.setSamplingRate(pixel_size)
            volume.setObjLabel(label)
            maps.append(volume)
        maps.write()
        return maps

    def _maps(self) -> List[Tuple[str, str]]:
        """(file, name) of the maps of the finished run."""
        return [(name, label) for name, label in MAPS if self.state().folder.final(name).exists()]

    def _show_chimera(self, _param_name: Optional[str] = None) -> List[View]:
        script = self.write_chimera_script()
        if script is None:
            return [self.infoMessage("The maps are there when the protocol has finished.", "No maps yet")]
        return self._in_chimera(script)

    def _in_chimera(self, script: str) -> List[View]:
        from pwem.viewers import Chimera, ChimeraView
        if not os.path.exists(str(Chimera.getProgram()).strip('"')):
            return [self.errorMessage(f"ChimeraX was not found. The commands are in {script}; open that file with it.",
                                      "No ChimeraX")]
        return [ChimeraView(script)]

    def write_chimera_script(self) -> Optional[str]:
        """A ChimeraX command file that opens the maps of the finished run; None before there are any."""
        folder = self.state().folder
        names = [name for name, _ in self._maps()]
        if not names:
            return None
        lines = [f'open "{os.path.abspath(folder.final(name))}"' for name in names]
        lines += [f"volume #{number} hide" for number in range(2, len(names) + 1)]
        path = self.protocol._getExtraPath("maps.cxc")
        with open(path, "w", encoding="utf-8") as handle:
            handle.write("\n".join(lines + ["view"]) + "\n")
        return path

    def _film_error(self) -> str:
        """Make the film that is asked for unless it is there; what went wrong, or ""."""
        chosen = self._chosen_run("filmRest")
        rest = None if chosen is None else chosen[1].folder.path
        if rest == self.state().folder.path:
            return "A body does not move against itself: choose another one for *Film: motion against*."
        return film_entry.made(self.state().folder, rest)

    def _show_film(self, _param_name: Optional[str] = None) -> List[View]:
        import webbrowser

        from ..report.film_picture import NO_FILM, write_gif
        error = self._film_error()
        path = None if error else write_gif(self.state().folder.path)
        if path is None:
            return [self.errorMessage(error or NO_FILM, "No film")]
        if not webbrowser.open("file://" + os.path.abspath(path)):
            return [self.infoMessage(f"The film is in {path}", "Film")]
        return []

    def _show_film_chimera(self, _param_name: Optional[str] = None) -> List[View]:
        error = self._film_error()
        if error:
            return [self.errorMessage(error, "No film")]
        return self._in_chimera(str(self.state().folder.film.with_name("film.cxc")))

    def _show_report(self, _param_name: Optional[str] = None) -> List[View]:
        import webbrowser
        path = os.path.abspath(self.protocol.html_report_path(self.body_number()))
        write_report(self.state().folder.path, path, title=self._title())
        if not webbrowser.open("file://" + path):
            return [self.infoMessage(f"The report is in {path}", "Report")]
        return []

    def _summary(self) -> List[str]:
        return summary_lines(self.state())
