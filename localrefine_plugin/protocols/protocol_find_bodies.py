"""The protocol 'find moving bodies': which parts of a particle move, and a mask of each that moves by itself."""
from __future__ import annotations

import os
from typing import Any, Dict, List

import pyworkflow.protocol.params as params
from pwem.objects import Volume, VolumeMask
from pwem.protocols import ProtAnalysis3D
from pyworkflow import BETA
from pyworkflow.utils import cleanPath, makePath

from ..engine.io.run_folder import RunFolder
from ..engine.records.cells import CELLS, FEWEST_CELLS, MOST_CELLS, PARTICLES
from ..report.run_state import RunState
from . import input_copy
from .engine_process import run_engine
from .form_local_refine import define_gpu, device_of
from .input_errors import geometry_errors, half_map_files, parity_warnings, particle_errors, volume_errors
from .step_chain import StepChain, fingerprint

STARTS = ("particles and volume", "local refinement")
PARTS_LEFT_OUT = ("apart", "mixed", "unclear")  # verdicts of the control where the mask leaves out what may move


class ProtLocalFindBodies(ProtAnalysis3D):
    """Find which parts of a particle move, how far, and which of them together. No mask is needed.

    The particle is divided into cells. For each cell the images say how much its place differs from the pose of the
    whole. Cells that move together are a body.

    *Inputs*: particles and volume with half-maps of a consensus refinement, which are first aligned in a mask of the
    whole particle; or a local refinement in such a mask that has finished.

    *Outputs*: a soft mask of each body, the largest first, for local refinements of each; and a map of the motion, in
    Å per axis.

    *What to look at*: the summary says how the bodies move, and which motion would have been seen. Analyze Results
    shows the cells.
    """

    _label = "find moving bodies"
    _devStatus = BETA
    _possibleOutputs = {"outputMask_body1": VolumeMask, "outputMask_body2": VolumeMask, "outputMotion": Volume}

    # ---------------------------------------------------------------- params

    def _defineParams(self, form: Any) -> None:
        define_gpu(form)
        form.addSection(label="Input")
        form.addParam("start", params.EnumParam, choices=list(STARTS), default=0, label="Start from",
                      help="*Particles and volume*: of a 3D refinement. They are first aligned in a mask of the whole "
                           "particle, by a local refinement with its default settings.\n"
                           "*Local refinement*: one that has finished, in a mask of the whole particle.")
        form.addParam("inputParticles", params.PointerParam, pointerClass="SetOfParticles", condition="start == 0",
                      important=True, label="Particles", help="Aligned particles with half-sets.")
        form.addParam("inputVolume", params.PointerParam, pointerClass="Volume", condition="start == 0",
                      important=True, label="Volume with half-maps", help="The map of the same refinement.")
        form.addParam("inputRun", params.PointerParam, pointerClass="ProtLocalRefine", condition="start == 1",
                      important=True, label="Local refinement", help="It must have finished. Its mask holds the whole "
                      "particle.")
        form.addParam("cells", params.IntParam, default=CELLS, label="Cells",
                      validators=[params.Range(FEWEST_CELLS, MOST_CELLS,
                                               f"*Cells*: choose {FEWEST_CELLS} to {MOST_CELLS}.")],
                      help="Parts that the particle is divided into. A body that is smaller than a cell is not found; "
                           "in a smaller cell less motion is seen.")
        form.addParam("sample", params.IntParam, default=PARTICLES, label="Particles to look at",
                      validators=[params.Positive],
                      help="Evenly spaced, half of them of each half-set. With more of them less motion is seen. Many "
                           "cells need memory: fewer particles are used if they do not fit into 1 GiB.")
        form.addParallelSection(threads=4, mpi=0)

    # ---------------------------------------------------------------- steps

    def _insertAllSteps(self) -> None:
        chain = StepChain(self.loadSteps())

        def insert(function: Any, *arguments: Any, gpu: bool = False) -> None:
            self._insertFunctionStep(function, *chain.arguments(function.__name__, *arguments), needsGPU=gpu)

        if self._is_of_run():
            insert(self.linkRunStep, fingerprint(self._run_ids()))
        else:
            insert(self.convertInputStep, fingerprint(self._input_ids()))
            insert(self.refineStep, gpu=True)
        insert(self.rigidityStep, self.cells.get(), self.sample.get())
        insert(self.createOutputStep)

    def linkRunStep(self, digest: str, token: str) -> List[str]:
        """A run folder whose files are those of the input's: what is found does not go into another protocol's run."""
        source, target = self.inputRun.get().run_state().folder, self._run_folder()
        cleanPath(str(target.path), self._input_path())
        for folder in (source.path, source.path / "final"):
            made = target.path / folder.relative_to(source.path)
            made.mkdir(parents=True)
            for path in folder.iterdir():
                if path != source.error and (path.is_file() or path.name.startswith("iter_")):
                    (made / path.name).symlink_to(os.path.relpath(path, made))
        return [str(target.settings), str(target.report)]

    def convertInputStep(self, digest: str, token: str) -> List[str]:
        """Particles → STAR, half-maps → MRC, and the mask of the whole particle."""
        from ..convert import mrc_map, write_particles
        from ..engine.rigidity.outline import outline
        cleanPath(self._input_path(), str(self._run_folder().path))
        makePath(self._input_path())
        particles, volume = self.inputParticles.get(), self.inputVolume.get()
        write_particles(particles, self._input_path("particles.star"), self._input_path("stacks"))
        halves = [mrc_map(source, particles.getSamplingRate(), self._half_map(half))
                  for half, source in enumerate(half_map_files(volume), 1)]
        for half, name in enumerate(halves, 1):
            if not os.path.exists(self._half_map(half)):
                os.symlink(name, self._half_map(half))
        outline(*halves, self._input_path("mask.mrc"))
        return [self._input_path(name) for name in ("particles.star", "mask.mrc")]

    def refineStep(self, token: str) -> List[str]:
        """The particles aligned to all of the particle; a run that was interrupted goes on."""
        folder = self._run_folder()
        run_engine(self, folder.error, "refine", "--particles", self._input_path("particles.star"),
                   "--half-map-1", self._half_map(1), "--half-map-2", self._half_map(2),
                   "--mask", self._input_path("mask.mrc"), "--output", str(folder.path), "--continue",
                   "--device", device_of(self), *self._threads(), made=folder.report)
        return [str(folder.report)]

    def rigidityStep(self, cells: int, particles: int, token: str) -> List[str]:
        """The engine's verb: cells, bodies, masks."""
        folder = self._run_folder()
        run_engine(self, folder.error, "rigidity", str(folder.path), "--cells", str(cells),
                   "--particles", str(particles), *self._threads(), made=folder.rigidity)
        found = self.run_state().rigidity
        return [str(folder.rigidity)] + [str(folder.path / name) for name in (found.files if found else ())]

    def createOutputStep(self, token: str) -> None:
        found, folder = self.run_state().rigidity, self._run_folder().rigidity.parent
        if found is None:
            raise RuntimeError(f"{folder} holds no record of the bodies any more: restart the protocol")
        frame = self.inputRun.get().outputVolume if self._is_of_run() else self.inputVolume.get()
        pixel_size = (frame if self._is_of_run() else self.inputParticles.get()).getSamplingRate()
        outputs: Dict[str, Any] = {f"outputMask_body{body.number}": VolumeMask() for body in found.bodies}
        outputs["outputMotion"] = Volume()
        for item, name in zip(outputs.values(), [body.mask for body in found.bodies] + ["motion.mrc"]):
            item.setFileName(str(folder / name))
            item.setSamplingRate(pixel_size)
            item.setOrigin(frame.getOrigin(force=True).clone())
        for name, old in list(self.iterOutputAttributes()):  # of an earlier run that found more bodies
            if name not in outputs:
                self.deleteOutput(old)
        self._defineOutputs(**outputs)
        sources = [self.inputRun.get().outputVolume] if self._is_of_run() else [self.inputParticles, self.inputVolume]
        for source in sources:
            for output in outputs.values():
                self._defineSourceRelation(source, output)

    # ---------------------------------------------------------------- files

    def _is_of_run(self) -> bool:
        return self.start.get() == 1

    def _threads(self) -> List[str]:
        return ["--threads", str(max(1, self.numberOfThreads.get() or 1))]

    def _run_folder(self) -> RunFolder:
        return RunFolder(self._getExtraPath("run"))

    def run_state(self) -> RunState:
        """What the run folder holds at this moment; never raises."""
        return RunState(self._run_folder().path)

    def _input_path(self, *names: str) -> str:
        return self._getExtraPath("input", *names)

    def _half_map(self, half: int) -> str:
        return self._input_path(f"half_map_{half}.mrc")

    def _run_ids(self) -> Dict[str, Any]:
        """What identifies the run; one that was done again has another report."""
        folder = self.inputRun.get().run_state().folder
        return {"run": str(folder.path), "id": self.inputRun.get().getObjId(),
                "report": digests_of([str(folder.report)])}

    def _input_ids(self) -> Dict[str, Any]:
        files = [self.inputParticles.get().getFileName(), *half_map_files(self.inputVolume.get())]
        return {"folder": os.path.abspath(self._getPath()), "files": files, "digests": digests_of(files)}

    # ---------------------------------------------------------------- info

    def _validate(self) -> List[str]:
        if self._is_of_run():
            run = self.inputRun.get()
            if run is not None and not hasattr(run, "outputVolume"):
                return [f"*Local refinement*: {run.getRunName()} has not finished."]
            return []
        particles, volume = self.inputParticles.get(), self.inputVolume.get()
        errors = [] if particles is None else particle_errors(particles, resplit=False)
        errors += [] if volume is None else volume_errors(volume)
        if not errors and None not in (particles, volume):
            errors += geometry_errors(particles, volume, "volume", resample=False, can_resample=False)
        return errors

    def _warnings(self) -> List[str]:
        particles, run = self.inputParticles.get(), self.inputRun.get()
        if not self._is_of_run():
            return [] if particles is None else parity_warnings(particles)
        control = None if run is None else run.run_state().rest_control
        if control is None or control.verdict not in PARTS_LEFT_OUT:
            return []
        return ["*Local refinement*: its mask leaves out a part of the particle that may move by itself. A part that "
                "turns far from the poses of the mask may be found in pieces. Use a run in a mask of the whole "
                "particle, or start from particles and volume."]

    def _summary(self) -> List[str]:
        found = self.run_state().rigidity
        if found is None or not hasattr(self, "outputMotion"):
            return ["Not finished yet."]
        shares = ", ".join(f"{100 * body.share:.0f} %" for body in found.bodies)
        script = self._run_folder().rigidity.with_name("rigidity.cxc")
        there = {f"outputMask_body{body.number}" for body in found.bodies}
        gone = [name for name, _ in self.iterOutputAttributes(VolumeMask) if name not in there]
        return [*(f"{text}." for text in found.words), f"Density of the bodies: {shares}.",
                f"For ChimeraX: {script}",
                # Scipion's project keeps outputs that a run which was continued has deleted
                *(f"*Warning*: {name} is of an earlier attempt that found more bodies, and its file is gone. Do not "
                  "use it; Restart takes it away." for name in gone)]

    def _methods(self) -> List[str]:
        found = self.run_state().rigidity
        if found is None or not hasattr(self, "outputMotion"):
            return []
        return [f"The motion of {len(found.cells)} cells of the particle was learned from {found.particles} images by "
                "expectation maximisation, and the cells were grouped into rigid bodies by the Bayesian information "
                f"criterion [LocalRefine]. Number of bodies: {len(found.bodies)}."]

    def _citations(self) -> List[str]:
        return ["LocalRefine"]


def digests_of(paths: List[str]) -> List[str]:
    """Of the contents of files; a file that is not there has none."""
    return [digest for _, _, digest in input_copy.digests(paths, {}).values()]
