"""The protocol 'local refinement': Scipion's objects in, the engine's verbs as tracked steps, objects out."""
from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Dict, List

from pwem.objects import SetOfFSCs, SetOfParticles, Volume, VolumeMask
from pwem.protocols import ProtRefine3D
from pyworkflow import BETA
from pyworkflow.utils import cleanPath, makePath

from ..engine.io.run_folder import RunFolder, remove_temporary, write_json
from ..engine.io.run_store import save_record
from ..engine.records.iteration import FSC_THRESHOLD
from ..engine.records.run_input import InputChanges
from ..report import run_state, run_summary
from . import form_local_refine, input_copy
from .engine_process import run_engine
from .input_errors import frame_errors, geometry_errors, half_map_files, parity_warnings, particle_errors, volume_errors
from .step_chain import StepChain, fingerprint

logger = logging.getLogger(__name__)

MAPS = ("half_map_1", "half_map_2", "mask")


class ProtLocalRefine(ProtRefine3D):
    """Refine the poses of a sub-volume that moves as a rigid body against the rest of the particle.

    A consensus refinement averages over the motion between domains, and the smaller one blurs. Local
    refinement starts from the poses and the half-maps of that refinement, looks at the part inside a
    mask only, and searches rotations about a point (the fulcrum) and shifts near the poses it was given.
    A Gaussian prior keeps each particle near its input pose unless its image says otherwise.

    The two half-sets stay apart from the first to the last step: half-set 1 is aligned to half-map 1,
    half-set 2 to half-map 2, and the FSC between them is an honest one.

    *Inputs*: particles of a 3D refinement with half-sets (any program that keeps _rlnRandomSubset), its
    volume with both half-maps, and a soft mask around the part of interest. Subtract the signal outside
    the mask first if that part is small (below about 150 kDa).

    *Outputs*: the volume with its half-maps, the particles with their new poses (everything else of the
    items is kept), five FSC curves, and the mask.

    *What to look at*: Analyze Results shows, already during the run, the FSC and the histograms of the
    change of pose. Most particles should move by less than the prior widths, and few should sit at the
    search limit.
    """

    _label = "local refinement"
    _devStatus = BETA
    _possibleOutputs = {"outputVolume": Volume, "outputParticles": SetOfParticles, "outputFSC": SetOfFSCs,
                        "outputMask": VolumeMask, "outputParticlesKept": SetOfParticles,
                        "outputParticlesLeftOut": SetOfParticles}

    # ---------------------------------------------------------------- params

    def _defineParams(self, form: Any) -> None:
        form_local_refine.define_params(form)

    # ---------------------------------------------------------------- steps

    def _insertAllSteps(self) -> None:
        settings, inputs = form_local_refine.settings_values(self), self._input_ids()
        chain = StepChain(self.loadSteps())

        def insert(function: Any, *arguments: Any, gpu: bool = False) -> None:
            self._insertFunctionStep(function, *chain.arguments(function.__name__, *arguments), needsGPU=gpu)

        insert(self.convertInputStep, fingerprint(inputs))
        insert(self.prepareStep, fingerprint(dict(settings=settings, inputs=inputs)), gpu=True)
        for k in range(1, settings["max_iterations"] + settings.get("extra_final_passes", 0) + 1):
            insert(self.alignStep, k, 1, gpu=True)
            insert(self.alignStep, k, 2, gpu=True)
            insert(self.mergeStep, k)
        insert(self.finishStep)
        if self.getAttributeValue(form_local_refine.VALIDATE, False):
            insert(self.validateStep, gpu=True)
        insert(self.createOutputStep)

    def convertInputStep(self, digest: str, token: str) -> List[str]:
        """Particles → STAR, maps → MRC: everything the engine reads. Other inputs than before end the run before."""
        from ..convert import mrc_map, write_particles
        names = [self._input_path(name) for name in ("particles.star", "particles.sqlite", "paths.json")]
        written = run_state.read_json(names[2])
        if written.get("digest") == digest and all(os.path.exists(written[name]) for name in MAPS) \
                and all(os.path.exists(name) for name in names):
            self.info("the inputs were written before")
            return names
        if written:
            self.warning("the inputs are not those that the run began with: everything is done again")
        cleanPath(self._input_path(), str(self._run_folder().path))
        makePath(self._input_path())
        particles, volume, mask = self.inputParticles.get(), self.inputVolume.get(), self.inputMask.get()
        files = input_copy.digests(self._input_files(), written.get("files", {}))
        input_copy.copy_set(particles, names[1])
        n = write_particles(input_copy.copied_set(particles, names[1]), names[0], self._input_path("stacks"))
        pixel_size = particles.getSamplingRate()
        sources = [(name, volume) for name in half_map_files(volume)] + [(mask.getFileName(), mask)]
        maps = {name: mrc_map(source, item.getSamplingRate() or pixel_size, self._input_path(name + ".mrc"))
                for name, (source, item) in zip(MAPS, sources)}
        write_json(names[2], dict(maps, digest=digest, files=files))
        self.info(f"{n} particles written")
        return names

    def prepareStep(self, digest: str, token: str) -> List[str]:
        """The engine checks every input and writes iteration 0; of a run that is there it removes what depends on
        changed settings."""
        paths, folder = run_state.read_json(self._input_path("paths.json")), self._run_folder()
        write_json(self._input_path("settings.json"), form_local_refine.settings_values(self))
        self._engine("prepare", "--particles", self._input_path("particles.star"),
                     "--half-map-1", paths["half_map_1"], "--half-map-2", paths["half_map_2"],
                     "--mask", paths["mask"], "--output", str(folder.path),
                     "--settings", self._input_path("settings.json"), "--continue", *self._resources(),
                     made=folder.iteration_done(0))
        return [str(folder.settings), str(folder.input)] + self._written(folder.iteration_done(0))

    def alignStep(self, iteration: int, half: int, token: str) -> List[str]:
        """Align one half-set to its own reference and reconstruct its half-map; opens this half only.

        With several processes the first of the two steps does both halves, one after the other in each process, so that
        none waits between them, and the second step finds its work done.
        """
        folder = self._run_folder()
        if not (folder.half_complete(iteration, half) or folder.stopped_before(iteration)):
            resources, ranks = self._resources(), max(1, self.numberOfMpi.get() or 1)
            halves = "both" if "," in resources[1] or ranks > 1 else str(half)
            run_engine(self, folder.error, "align", str(folder.path), "--iteration", str(iteration), "--half", halves,
                       *resources, made=folder.half_done(iteration, half), ranks=ranks)
        return self._written(folder.half_done(iteration, half))

    def mergeStep(self, iteration: int, token: str) -> List[str]:
        """FSC between the half-maps, references for the next iteration, and whether to stop."""
        folder = self._run_folder()
        if not (folder.iterations_done() >= iteration or folder.stopped_before(iteration)):
            self._engine("merge", str(folder.path), "--iteration", str(iteration), *self._resources(),
                         made=folder.iteration_done(iteration))
            self._tell_progress()
        return self._written(folder.iteration_done(iteration))

    def finishStep(self, token: str) -> List[str]:
        """Final maps, table and report of the engine."""
        folder = self._run_folder()
        if not folder.results_complete():
            self._engine("finish", str(folder.path), *self._resources(), made=folder.report)
        return self._written(folder.report)

    def validateStep(self, token: str) -> List[str]:
        """Null tests; results are not lost because they could not be tested."""
        folder = self._run_folder()
        found = folder.final("validation.json")
        if not found.exists():
            _, devices, *threads = self._resources()
            try:
                self._engine("validate", str(folder.path), "--device", devices.split(",")[0], *threads, made=found)
            except RuntimeError as error:
                logger.warning("the results could not be validated: %s", error)
                cleanPath(str(folder.error))
        return self._written(found)

    def createOutputStep(self, token: str) -> None:
        """Publish all outputs at once: a scheduled protocol takes a volume as ready as soon as it exists."""
        remove_temporary(Path(self._getExtraPath()))
        self._say_changed_inputs()
        self._write_html_report()
        volume, particles = self._output_volume(), self._output_particles()
        curves, mask = self._output_fsc(), self._output_mask()
        outputs = dict(outputVolume=volume, outputParticles=particles, outputFSC=curves, outputMask=mask)
        outputs.update(self._selected_particles())
        self._defineOutputs(**outputs)
        for pointer in (self.inputParticles, self.inputVolume, self.inputMask):
            for output in outputs.values():
                self._defineSourceRelation(pointer, output)
        for name, output in outputs.items():
            if name.startswith("outputParticles"):
                self._defineTransformRelation(self.inputParticles, output)
        self._tell_progress()

    # ---------------------------------------------------------------- outputs

    def _output_volume(self) -> Volume:
        folder, source = self._run_folder(), self.inputVolume.get()
        volume = Volume()
        volume.setFileName(str(folder.final("map.mrc")))
        volume.setHalfMaps([str(folder.final(f"half_map_{h}.mrc")) for h in (1, 2)])
        volume.setSamplingRate(self.inputParticles.get().getSamplingRate())
        volume.setOrigin(source.getOrigin(force=True).clone())
        return volume

    def _selected_particles(self) -> Dict[str, SetOfParticles]:
        """The particles that a selection keeps, and the others: sets of their own, where there is one and any."""
        found = {}
        for name, file_name in (("Kept", "particles_kept.star"), ("LeftOut", "particles_left_out.star")):
            if self._run_folder().final(file_name).exists():
                particles = self._output_particles(file_name, name)
                if particles.getSize():
                    found["outputParticles" + name] = particles
        return found

    def _output_particles(self, file_name: str = "particles.star", suffix: str = "") -> SetOfParticles:
        from ..convert import RefinedParticles
        source = self._particles_as_refined()
        refined = RefinedParticles(str(self._run_folder().final(file_name)),
                                   self._input_path("particles.star"), source.getSamplingRate())
        particles = self._createSetOfParticles(suffix)
        particles.copyInfo(source)
        particles.setAlignmentProj()
        particles.copyItems(source, updateItemCallback=refined.update, doClone=False)
        return particles

    def _particles_as_refined(self) -> SetOfParticles:
        """The input particles as they were when the run began; protocols of older versions kept no copy."""
        source, copy = self.inputParticles.get(), self._input_path("particles.sqlite")
        return input_copy.copied_set(source, copy) if os.path.exists(copy) else source

    def _say_changed_inputs(self) -> None:
        """Inputs that were edited or deleted meanwhile: into the log, the summary and the report."""
        said = input_copy.changes(run_state.read_json(self._input_path("paths.json")).get("files", {}))
        if not said:
            return
        for text in said:
            self.warning(text)
        state, path = self.run_state(), self._run_folder().final("input_changes.json")
        save_record(path, InputChanges(tuple(dict.fromkeys([*state.input_changes, *said]))))

    def _output_fsc(self) -> SetOfFSCs:
        from ..convert import fsc_objects
        curves = SetOfFSCs.create(self._getPath())
        for curve in fsc_objects(run_state.fsc_columns(str(self._run_folder().final("fsc.star")))):
            curves.append(curve)
        return curves

    def _output_mask(self) -> VolumeMask:
        mask = VolumeMask()
        mask.setFileName(str(self._run_folder().final("mask.mrc")))
        mask.setSamplingRate(self.inputParticles.get().getSamplingRate())
        mask.setOrigin(self.inputMask.get().getOrigin(force=True).clone())
        return mask

    def _write_html_report(self) -> None:
        """The pictures of the viewer in one file; a run is not lost because a picture could not be drawn."""
        from ..report.html_report import write_report
        try:
            write_report(str(self._run_folder().path), self.html_report_path(), title=self.getRunName())
        except Exception as error:
            logger.warning("the HTML report could not be written: %s", error, exc_info=True)

    # ---------------------------------------------------------------- engine

    def _engine(self, verb: str, *arguments: str, made: Path) -> None:
        run_engine(self, self._run_folder().error, verb, *arguments, made=made)

    def _resources(self) -> List[str]:
        return ["--device", self._device(), "--threads", str(max(1, self.numberOfThreads.get() or 1))]

    def _device(self) -> str:
        return form_local_refine.device_of(self)

    # ---------------------------------------------------------------- files

    def _run_folder(self) -> RunFolder:
        return RunFolder(self._getExtraPath("run"))

    def _input_path(self, *names: str) -> str:
        return self._getExtraPath("input", *names)

    def html_report_path(self) -> str:
        return self._getExtraPath("report.html")

    def run_state(self) -> run_state.RunState:
        """What the run folder holds at this moment; never raises."""
        return run_state.RunState(self._run_folder().path)

    def _written(self, done: Path) -> List[str]:
        """The files of a step by the one it wrote last; the steps after convergence have none."""
        names = run_state.read_json(done).get("files", {})
        return [str(path) for path in [done] + [self._run_folder().path / name for name in names] if path.exists()]

    def _input_ids(self) -> Dict[str, Any]:
        """What identifies the inputs: a re-run upstream makes new objects with new ids, the engine knows full paths,
        and files may have been edited. A file that was deleted counts as it was: the run has its own copy."""
        volume = self.inputVolume.get()
        content: Dict[str, Any] = {"folder": os.path.abspath(self._getPath())}
        for name, pointer in (("particles", self.inputParticles), ("volume", self.inputVolume),
                              ("mask", self.inputMask)):
            item = pointer.get()
            content[name] = [item.getObjId(), item.getFileName()]
        content["half_maps"] = half_map_files(volume)
        known = run_state.read_json(self._input_path("paths.json")).get("files", {})
        found = input_copy.digests(self._input_files(), known)
        content["digests"] = [digest or known.get(path, [0, 0, ""])[2] for path, (_, _, digest) in found.items()]
        return content

    def _input_files(self) -> List[str]:
        """Files of the project whose content the run depends on; the engine itself looks at the stacks."""
        return [self.inputParticles.get().getFileName(), *half_map_files(self.inputVolume.get()),
                self.inputMask.get().getFileName()]

    # ---------------------------------------------------------------- info

    def _tell_progress(self) -> None:
        """Summary and log say where the run stands, while it runs."""
        lines = run_summary.summary_lines(self.run_state())
        self.summaryVar.set("\n".join(lines))
        self._store(self.summaryVar)
        if lines:
            self.info(lines[0])

    def _validate(self) -> List[str]:
        particles, volume, mask = self.inputParticles.get(), self.inputVolume.get(), self.inputMask.get()
        errors = form_local_refine.settings_errors(self) or form_local_refine.prior_errors(self)
        if particles is not None:
            errors += particle_errors(particles, self._resplits())
        if volume is not None:
            errors += volume_errors(volume)
        for item, name in ((volume, "volume"), (mask, "mask")):
            if particles is not None and item is not None:
                errors += geometry_errors(particles, item, name, self._resamples())
        if not errors and None not in (particles, volume, mask):
            errors += frame_errors(particles, volume, mask)
        return errors

    def _resplits(self) -> bool:
        return bool(self.getAttributeValue("resplitHalfSets", False))

    def _resamples(self) -> bool:
        return bool(self.getAttributeValue("resampleMaps", False))

    def _warnings(self) -> List[str]:
        warnings = form_local_refine.prior_warnings(self)
        particles = self.inputParticles.get()
        if particles is not None and particles.isPhaseFlipped():
            warnings.append("The particles are marked as phase-flipped: the CTF would be applied twice. "
                            "Use particles that are not.")
        if particles is not None and not particles.hasCTF():
            warnings.append("The particles have no CTF: only low resolution can be aligned correctly.")
        if particles is not None and not self._resplits():
            warnings += parity_warnings(particles)
        if self._resplits():
            warnings.append("Half-sets are split anew: the half-maps have seen both halves, so the FSC is too good "
                            "until the low-pass has removed what they share.")
        return warnings

    def _summary(self) -> List[str]:
        state = self.run_state()
        lines = run_summary.summary_lines(state)
        if self.isActive():
            lines = run_summary.live_line(self.getStdoutLog()) + lines
        if not lines:
            return [self.summaryVar.get() or "Not started yet."]
        if os.path.exists(self.html_report_path()):
            lines.append(f"[[{self.html_report_path()}][Report with pictures]]")
        lines += [f"New poses for cryoSPARC: {path}" for path in [self._run_folder().final("particles.cs")]
                  if path.exists()]
        return lines

    def _methods(self) -> List[str]:
        state = self.run_state()
        if not state.finished:
            return []
        number = self.inputParticles.get().getSize() if self.inputParticles.get() is not None else "the"
        text = (f"The poses of {number} particles were refined locally against the part of the map inside a soft "
                f"mask [LocalRefine], keeping independent half-sets throughout [ScheresChen2012]. ")
        text += run_summary.prior_sentence(state)
        value = None if state.best is None else state.best.resolution()
        if value is not None:
            text += (f" The resolution is {value:.2f} Å at FSC {FSC_THRESHOLD} between masked half-maps, corrected "
                     f"for the effect of the mask by phase randomisation [Chen2013] [RosenthalHenderson2003].")
        honest = None if state.pose_blur is None else state.pose_blur.resolution_to_report_angstrom
        if honest is not None and value is not None and honest > 1.01 * value:
            text += (f" The uncertainty of the poses blurs both half-maps alike. With this blur the resolution is "
                     f"{honest:.2f} Å.")
        return [text]

    def _citations(self) -> List[str]:
        keys = ["LocalRefine", "Scheres2012", "ScheresChen2012", "Chen2013", "RosenthalHenderson2003"]
        if self.getAttributeValue("nonUniform", False):
            keys.append("Punjani2020")
        return keys
