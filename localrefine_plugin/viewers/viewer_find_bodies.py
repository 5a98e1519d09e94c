"""Analyze Results of 'find moving bodies': the motion of every cell, and the map in ChimeraX."""
from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

import pyworkflow.protocol.params as params
from pyworkflow.viewer import View

from ..protocols import ProtLocalFindBodies
from ..report.run_figures import draw, picture_of
from ..report.run_state import RunState
from .figure_window import FigureView
from .viewer_local_refine import LocalRefineViewer

NOT_YET = "The bodies are there when the protocol has finished."


class FindBodiesViewer(LocalRefineViewer):
    """The picture of the verb rigidity, drawn as that of a local refinement is."""

    _label = "viewer moving bodies"
    _targets = [ProtLocalFindBodies]

    def _defineParams(self, form: Any) -> None:
        picture = picture_of("rigidity")
        form.addSection(label="Results")
        form.addParam(picture.name, params.LabelParam, label=picture.label,
                      help="How far every part moves against the largest body, and which parts move together. Cells "
                           "below the dotted line say nothing.")
        form.addParam("showBodies", params.LabelParam, label="Motion in ChimeraX",
                      help="The map coloured by its motion, and the mask of each body.")

    def _getVisualizeDict(self) -> Dict[str, Callable[..., List[View]]]:
        return {"rigidity": self._show_motion, "showBodies": self._show_bodies}

    def state(self) -> RunState:
        return self.protocol.run_state()

    def _show_motion(self, _param_name: Optional[str] = None) -> List[View]:
        picture = picture_of("rigidity")
        return [FigureView(lambda k: draw(picture, self.state(), k), f"{picture.label}: {self.protocol.getRunName()}",
                           self.getTkRoot(), stamp=lambda: self.state().rigidity is not None, news=self._news)]

    def _show_bodies(self, _param_name: Optional[str] = None) -> List[View]:
        script = self.state().folder.rigidity.with_name("rigidity.cxc")
        if not script.exists():
            return [self.infoMessage(NOT_YET, "No bodies yet")]
        return self._in_chimera(str(script))

    def _summary(self) -> List[str]:
        return self.protocol.summary()
