"""The protocol 'local refinement': Scipion's objects in, the engine's verbs as tracked steps, objects out."""
from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

from pwem.objects import VolumeMask
from pwem.protocols import ProtRefine3D
from pyworkflow import BETA
from pyworkflow.utils import cleanPath, makePath

from ..engine.io.run_folder import BodiesFolder, RunFolder, remove_temporary, write_json
from ..engine.io.run_store import save_record
from ..engine.records.run_input import InputChanges
from ..report import bodies_summary, run_state, run_summary
from . import body_settings, form_local_refine, input_copy
from .engine_process import run_engine
from .input_errors import (
    frame_errors,
    geometry_errors,
    half_map_files,
    mask_name,
    more_mask_errors,
    parity_warnings,
    particle_errors,
    volume_errors,
)
from .outputs import body_suffix, outdated_errors, outputs_of, possible_outputs
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
    items is kept), five FSC curves, and the mask. With more than one mask: these of each body, and one map of all.

    *What to look at*: Analyze Results shows, already during the run, the FSC and the histograms of the
    change of pose. Most particles should move by less than the prior widths, and few should sit at the
    search limit.
    """

    _label = "local refinement"
    _devStatus = BETA
    _possibleOutputs = property(lambda self: possible_outputs(len(self.mask_pointers())))

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
        own = body_settings.own_of_bodies(self)
        digest = fingerprint(dict(settings=settings, inputs=inputs, **({"bodies": own} if own else {})))
        if len(self.moreMasks):
            insert(self.refineBodiesStep, digest, gpu=True)
        else:
            insert(self.prepareStep, digest, gpu=True)
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
        maps = [written.get(name, "") for name in MAPS] + written.get("more_masks", [])
        if written.get("digest") == digest and all(os.path.exists(name) for name in maps + names):
            self.info("the inputs were written before")
            return names
        if written:
            self.warning("the inputs are not those that the run began with: everything is done again")
        cleanPath(self._input_path(), str(self._run_folder().path))
        makePath(self._input_path())
        particles, volume, masks = self.inputParticles.get(), self.inputVolume.get(), self._masks()
        files = input_copy.digests(self._input_files(), written.get("files", {}))
        input_copy.copy_set(particles, names[1])
        n = write_particles(input_copy.copied_set(particles, names[1]), names[0], self._input_path("stacks"))
        pixel_size = particles.getSamplingRate()
        sources = [(name, volume) for name in half_map_files(volume)] + [(mask.getFileName(), mask) for mask in masks]
        targets = [*MAPS, *(f"mask_{number}" for number in range(2, len(masks) + 1))]
        maps = [mrc_map(source, item.getSamplingRate() or pixel_size, self._input_path(name + ".mrc"))
                for name, (source, item) in zip(targets, sources)]
        write_json(names[2], dict(zip(MAPS, maps), more_masks=maps[len(MAPS):], digest=digest, files=files))
        self.info(f"{n} particles written")
        return names

    def prepareStep(self, digest: str, token: str) -> List[str]:
        """The engine checks every input and writes iteration 0; of a run that is there it removes what depends on
        changed settings."""
        folder = self._run_folder()
        self._engine("prepare", *self._engine_inputs(), made=folder.iteration_done(0))
        return [str(folder.settings), str(folder.input)] + self._written(folder.iteration_done(0))

    def refineBodiesStep(self, digest: str, token: str) -> List[str]:
        """Everything from the checks to the composite, for several masks.

        One step: the engine reads and transforms the images once for all bodies, and they do not stop in the same
        iteration. Of a run that was killed, or whose settings are others now, `--continue` keeps what is
        good; a queue gets one job.
        """
        folder = BodiesFolder(self._run_folder().path)
        cleanPath(str(folder.record))  # else it may be that of an earlier attempt
        self._engine("refine", *self._engine_inputs(), made=folder.record, ranks=self._ranks())
        composite = run_state.read_json(folder.composite / "composite.json")["files"]
        return [str(folder.record), *(str(folder.composite / name) for name in composite),
                *(name for run in self.run_folders() for name in self._written(run.report, run))]

    def alignStep(self, iteration: int, half: int, token: str) -> List[str]:
        """Align one half-set to its own reference and reconstruct its half-map; opens this half only.

        With several processes the first of the two steps does both halves, one after the other in each process, so that
        none waits between them, and the second step finds its work done.
        """
        folder = self._run_folder()
        if not (folder.half_complete(iteration, half) or folder.stopped_before(iteration)):
            resources, ranks = self._resources(), self._ranks()
            halves = "both" if "," in resources[1] or ranks > 1 else str(half)
            self._engine("align", str(folder.path), "--iteration", str(iteration), "--half", halves, *resources,
                         made=folder.half_done(iteration, half), ranks=ranks)
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
        written = []
        for folder in self.run_folders():
            found = folder.final("validation.json")
            if not found.exists():
                _, devices, *threads = self._resources()
                try:
                    run_engine(self, folder.error, "validate", str(folder.path), "--device", devices.split(",")[0],
                               *threads, made=found)
                except RuntimeError as error:
                    logger.warning("the results could not be validated: %s", error)
                    cleanPath(str(folder.error))
            written += self._written(found, folder)
        return written

    def createOutputStep(self, token: str) -> None:
        """Publish all outputs at once: a scheduled protocol takes a volume as ready as soon as it exists."""
        remove_temporary(Path(self._getExtraPath()))
        self._say_changed_inputs()
        self._write_html_reports()
        made = outputs_of(self)
        self._defineOutputs(**{name: output for _, outputs in made for name, output in outputs.items()})
        for masks, outputs in made:
            for pointer in (self.inputParticles, self.inputVolume, *masks):
                for output in outputs.values():
                    self._defineSourceRelation(pointer, output)
            for name, output in outputs.items():
                if name.startswith("outputParticles"):
                    self._defineTransformRelation(self.inputParticles, output)
        self._tell_progress()

    # ---------------------------------------------------------------- outputs

    def _say_changed_inputs(self) -> None:
        """Inputs that were edited or deleted meanwhile: into the log, the summary and the report."""
        said = input_copy.changes(run_state.read_json(self._input_path("paths.json")).get("files", {}))
        if not said:
            return
        for text in said:
            self.warning(text)
        for number, folder in enumerate(self.run_folders(), 1):
            known = self.run_state(number).input_changes
            save_record(folder.final("input_changes.json"), InputChanges(tuple(dict.fromkeys([*known, *said]))))

    def _write_html_reports(self) -> None:
        """The pictures of the viewer in one file; a run is not lost because a picture could not be drawn."""
        from ..report.html_report import write_report
        for number, folder in enumerate(self.run_folders(), 1):
            try:
                write_report(str(folder.path), self.html_report_path(number), title=self.body_title(number))
            except Exception as error:
                logger.warning("the HTML report could not be written: %s", error, exc_info=True)

    # ---------------------------------------------------------------- engine

    def _engine(self, verb: str, *arguments: str, made: Path, ranks: int = 1) -> None:
        run_engine(self, self._run_folder().error, verb, *arguments, made=made, ranks=ranks)

    def _engine_inputs(self) -> List[str]:
        """What prepare and refine are given; writes the settings."""
        paths, words = run_state.read_json(self._input_path("paths.json")), []
        for number, values in enumerate(body_settings.settings_of_bodies(self), 1):
            words += ["--settings", self._input_path(f"settings{body_suffix(number)}.json")]
            write_json(words[-1], values)
        for mask in (paths["mask"], *paths.get("more_masks", [])):
            words += ["--mask", mask]
        return ["--particles", self._input_path("particles.star"), "--half-map-1", paths["half_map_1"],
                "--half-map-2", paths["half_map_2"], *words, "--output", str(self._run_folder().path), "--continue",
                *self._resources()]

    def _ranks(self) -> int:
        return max(1, self.numberOfMpi.get() or 1)

    def _resources(self) -> List[str]:
        return ["--device", self._device(), "--threads", str(max(1, self.numberOfThreads.get() or 1))]

    def _device(self) -> str:
        return form_local_refine.device_of(self)

    # ---------------------------------------------------------------- files

    def _run_folder(self) -> RunFolder:
        return RunFolder(self._getExtraPath("run"))

    def run_folders(self) -> List[RunFolder]:
        """One for each mask."""
        folder = self._run_folder()
        if not len(self.moreMasks):
            return [folder]
        return [BodiesFolder(folder.path).body(number) for number in range(1, len(self.moreMasks) + 2)]

    def _input_path(self, *names: str) -> str:
        return self._getExtraPath("input", *names)

    def html_report_path(self, body: int = 1) -> str:
        return self._getExtraPath(f"report{body_suffix(body)}.html")

    def body_title(self, body: int) -> str:
        return str(self.getRunName()) + (f", body {body}" if len(self.moreMasks) else "")

    def run_state(self, body: int = 1) -> run_state.RunState:
        """What the run folder of a body, counted from 1, holds at this moment; never raises."""
        return run_state.RunState(self.run_folders()[body - 1].path)

    def _written(self, done: Path, folder: Optional[RunFolder] = None) -> List[str]:
        """The files of a step by the one it wrote last; the steps after convergence have none."""
        names, run = run_state.read_json(done).get("files", {}), (folder or self._run_folder()).path
        return [str(path) for path in [done] + [run / name for name in names] if path.exists()]

    def mask_pointers(self) -> List[Any]:
        return [self.inputMask, *self.moreMasks]

    def _masks(self) -> List[VolumeMask]:
        return [pointer.get() for pointer in self.mask_pointers()]

    def _input_ids(self) -> Dict[str, Any]:
        """What identifies the inputs: a re-run upstream makes new objects with new ids, the engine knows full paths,
        and files may have been edited. A file that was deleted counts as it was: the run has its own copy."""
        volume = self.inputVolume.get()
        content: Dict[str, Any] = {"folder": os.path.abspath(self._getPath())}
        names = ["mask", *(f"mask {number}" for number in range(2, len(self.moreMasks) + 2))]
        for name, pointer in (("particles", self.inputParticles), ("volume", self.inputVolume),
                              *zip(names, self.mask_pointers())):
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
                *(mask.getFileName() for mask in self._masks())]

    # ---------------------------------------------------------------- info

    def _tell_progress(self) -> None:
        """Summary and log say where the run stands, while it runs."""
        lines = self._lines()
        self.summaryVar.set("\n".join(lines))
        self._store(self.summaryVar)
        if lines:
            self.info(lines[0])

    def _lines(self) -> List[str]:
        """What is told of the run as it stands."""
        if len(self.moreMasks):
            return bodies_summary.bodies_lines(BodiesFolder(self._run_folder().path), 1 + len(self.moreMasks))
        return run_summary.summary_lines(self.run_state())

    def _validate(self) -> List[str]:
        particles, volume, masks = self.inputParticles.get(), self.inputVolume.get(), self._masks()
        errors = form_local_refine.settings_errors(self) or body_settings.errors(self)
        if particles is not None:
            errors += particle_errors(particles, self._resplits())
        if volume is not None:
            errors += volume_errors(volume)
        errors += outdated_errors(self) + more_mask_errors(masks)
        for item, name in ((volume, "volume"), *((mask, mask_name(k)) for k, mask in enumerate(masks))):
            if particles is not None and item is not None:
                errors += geometry_errors(particles, item, name, self._resamples())
        if not errors and None not in (particles, volume, *masks):
            errors += [text for k, mask in enumerate(masks)
                       for text in frame_errors(particles, volume, mask, mask_name(k))]
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
        lines = self._lines()
        if self.isActive():
            lines = run_summary.live_line(self.getStdoutLog()) + lines
        if not lines:
            return [self.summaryVar.get() or "Not started yet."]
        for number, folder in enumerate(self.run_folders(), 1):
            report, of = self.html_report_path(number), f" of body {number}" if len(self.moreMasks) else ""
            if os.path.exists(report):
                lines.append(f"[[{report}][Report with pictures{of}]]")
            if folder.final("particles.cs").exists():
                lines.append(f"New poses{of} for cryoSPARC: {folder.final('particles.cs')}")
        return lines

    def _methods(self) -> List[str]:
        states = [self.run_state(number) for number in range(1, len(self.moreMasks) + 2)]
        if not all(state.finished for state in states):
            return []
        number = self.inputParticles.get().getSize() if self.inputParticles.get() is not None else "the"
        return [run_summary.methods_text(states, number)]

    def _citations(self) -> List[str]:
        keys = ["LocalRefine", "Scheres2012", "ScheresChen2012", "Chen2013", "RosenthalHenderson2003"]
        if self.getAttributeValue("nonUniform", False):
            keys.append("Punjani2020")
        return keys
