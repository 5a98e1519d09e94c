"""The protocol 'compose bodies': one map of several local refinements of the same particles, and of the consensus."""
from __future__ import annotations

from pathlib import Path
from typing import Any, List

import pyworkflow.protocol.params as params
from pwem.objects import SetOfFSCs, Volume, VolumeMask
from pwem.protocols import ProtAnalysis3D
from pyworkflow import BETA
from pyworkflow.utils import cleanPath

from ..engine.io.run_folder import RunFolder
from ..report.run_state import read_json
from .engine_process import run_engine
from .outputs import body_suffix, composite_outputs
from .step_chain import fingerprint


class ProtLocalCompose(ProtAnalysis3D):
    """Put the maps of several local refinements into one map, with half-maps.

    Refine each body of the particle by itself, from the same particles and half-sets. This protocol places each map at
    the mean of its particles' poses in the frame of one of the runs, and joins them with soft seams. Where no mask is,
    the map is that of the consensus, i.e. the input of the runs.

    The half-maps of the composite stay independent: half-map 1 is made of half-maps 1 only.

    *What it means*: the composite shows one arrangement of the bodies, the mean one. The particles are spread about it;
    *Film of the motion*, in Analyze Results of a local refinement, shows how.
    """

    _label = "compose bodies"
    _devStatus = BETA
    _possibleOutputs = {"outputVolume": Volume, "outputFSC": SetOfFSCs, "outputMask": VolumeMask}

    # ---------------------------------------------------------------- params

    def _defineParams(self, form: Any) -> None:
        form.addSection(label="Input")
        form.addParam("inputRuns", params.MultiPointerParam, pointerClass="ProtLocalRefine", important=True,
                      label="Local refinements", help="Finished local refinements of the same particles with the same "
                      "half-sets. A run of several masks brings all its bodies. Other runs are refused.")
        form.addParam("frame", params.IntParam, default=1, label="Frame of run number",
                      help="The composite is in the frame of this run, counted as in the list above: its map stays as "
                           "it is, the others are moved. Each body of a run of several masks counts. 0: the frame of "
                           "the input poses, in which the consensus map stays as it is.")
        form.addParallelSection(threads=4, mpi=0)

    # ---------------------------------------------------------------- steps

    def _insertAllSteps(self) -> None:
        digest = fingerprint({"runs": self._run_paths(), "frame": self.frame.get(), "ids": [
            pointer.get().getObjId() for pointer in self.inputRuns]})
        self._insertFunctionStep(self.composeStep, digest)
        self._insertFunctionStep(self.createOutputStep, digest)

    def composeStep(self, digest: str) -> List[str]:
        """The engine's verb, into a new folder."""
        cleanPath(self._folder())
        run_engine(self, RunFolder(self._folder()).error, "compose", *self._run_paths(), "--output", self._folder(),
                   "--frame", str(self.frame.get()), "--threads", str(max(1, self.numberOfThreads.get() or 1)))
        return [self._folder("composite.json")]

    def createOutputStep(self, digest: str) -> None:
        frame = self._volumes()[max(self.frame.get() - 1, 0)]
        volume, curves, mask = composite_outputs(Path(self._folder()), frame, self._getPath())
        outputs = dict(outputVolume=volume, outputFSC=curves, outputMask=mask)
        self._defineOutputs(**outputs)
        for volume_in in self._volumes():
            for output in outputs.values():
                self._defineSourceRelation(volume_in, output)

    # ---------------------------------------------------------------- files

    def _folder(self, *names: str) -> str:
        return self._getExtraPath("composite", *names)

    def _run_paths(self) -> List[str]:
        return [str(folder.path) for pointer in self.inputRuns for folder in pointer.get().run_folders()]

    def _volumes(self) -> List[Volume]:
        """Of each body of each run, as in `_run_paths`."""
        return [getattr(pointer.get(), "outputVolume" + body_suffix(number)) for pointer in self.inputRuns
                for number, _ in enumerate(pointer.get().run_folders(), 1)]

    # ---------------------------------------------------------------- info

    def _validate(self) -> List[str]:
        runs = [pointer.get() for pointer in self.inputRuns]
        errors = [f"*Local refinements*: {run.getRunName()} has not finished." for run in runs
                  if not hasattr(run, "outputVolume")]
        if not runs:
            errors.append("*Local refinements*: give at least one.")
        if len({run.getObjId() for run in runs}) < len(runs):
            errors.append("*Local refinements*: give each run once.")
        bodies = sum(len(run.run_folders()) for run in runs)
        if not 0 <= (self.frame.get() or 0) <= bodies:
            errors.append(f"*Frame of run number*: choose 0 to {bodies}.")
        return errors

    def _summary(self) -> List[str]:
        found = read_json(self._folder("composite.json"))
        if not found or not hasattr(self, "outputVolume"):
            return ["Not finished yet."]
        lines = list(found.get("words", []))
        return lines + [f"*Warning*: {text}" for text in found.get("warnings", [])]

    def _methods(self) -> List[str]:
        if not hasattr(self, "outputVolume"):
            return []
        return [f"The maps of {len(self._run_paths())} local refinements were placed at the mean of their relative "
                "poses and joined to one map with independent half-maps [LocalRefine]. The map shows the mean "
                "arrangement of the bodies."]

    def _citations(self) -> List[str]:
        return ["LocalRefine"]
