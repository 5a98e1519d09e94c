"""Scipion's objects of what lies in a run folder: of one body, and of a composite."""
from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from pwem.objects import SetOfFSCs, SetOfParticles, Volume, VolumeMask
from pyworkflow.protocol.constants import MODE_RESUME

from ..engine.io.run_folder import BodiesFolder, RunFolder
from ..report.run_state import fsc_columns
from . import form_local_refine, input_copy

OF_BODY = {"outputVolume": Volume, "outputParticles": SetOfParticles, "outputFSC": SetOfFSCs,
           "outputMask": VolumeMask, "outputParticlesKept": SetOfParticles, "outputParticlesLeftOut": SetOfParticles}
OF_SELECTION = ("outputParticlesKept", "outputParticlesLeftOut")
OF_COMPOSITE = {"outputComposite": Volume, "outputCompositeFSC": SetOfFSCs, "outputCompositeMask": VolumeMask}
OF_SEVERAL = re.compile(r"^outputComposite|_body\d+$")


def body_suffix(number: int) -> str:
    """Of the names of outputs and files of a body; the first has the names of a run with one mask."""
    return "" if number == 1 else f"_body{number}"


def possible_outputs(bodies: int) -> Dict[str, type]:
    """Name → class of the outputs of so many bodies."""
    names = {name + body_suffix(number): made for number in range(1, bodies + 1) for name, made in OF_BODY.items()}
    return dict(names, **OF_COMPOSITE) if bodies > 1 else names


def outputs_of(protocol: Any) -> List[Tuple[Sequence[Any], Dict[str, Any]]]:
    """(pointers to the masks, name → output) of each body of a finished local refinement, and of their composite."""
    pointers, folders = protocol.mask_pointers(), protocol.run_folders()
    made: List[Tuple[Sequence[Any], Dict[str, Any]]] = []
    for number, (pointer, folder) in enumerate(zip(pointers, folders), 1):
        made.append(([pointer], BodyOutputs(protocol, folder, pointer.get(), body_suffix(number)).all()))
    if len(folders) > 1:
        composite = composite_outputs(BodiesFolder(folders[0].path.parent).composite, made[0][1]["outputVolume"],
                                      protocol._getPath(), "composite")
        made.append((pointers, dict(zip(OF_COMPOSITE, composite))))
    return made


def outdated_errors(protocol: Any) -> List[str]:
    """Continue with fewer masks, or without the selection: Scipion keeps the outputs of the other bodies, whose files
    are gone, or of the selection."""
    if protocol.runMode.get() != MODE_RESUME:
        return []
    possible, there = possible_outputs(len(protocol.mask_pointers())), [
        name for name, _ in protocol.iterOutputAttributes()]
    errors = []
    if any(name not in possible and OF_SEVERAL.search(name) for name in there):
        errors.append("*More masks*: there are outputs of more bodies than this; use Restart, or give the same number "
                      "of masks.")
    settings = form_local_refine.settings_values(protocol)
    selects = any(settings.get(name) is not None for name in ("keep_probability", "false_discovery_rate"))
    if not selects and any(name.startswith(OF_SELECTION) for name in there):
        errors.append("*Keep particles ...*: there are outputs of a selection; use Restart to have none, or give a "
                      "selection.")
    return errors


class BodyOutputs:
    """The outputs of a local refinement for one body.

    Parameters
    ----------
    protocol : a local refinement.  folder : the finished run.  mask : the input mask.
    suffix : of the names of the outputs and of their files; "" of the first body.
    """

    def __init__(self, protocol: Any, folder: RunFolder, mask: VolumeMask, suffix: str = ""):
        self._protocol, self._folder, self._given_mask, self._suffix = protocol, folder, mask, suffix

    def all(self) -> Dict[str, Any]:
        """Name → object, in the order they are shown."""
        made = dict(outputVolume=self._volume(), outputParticles=self._particles(),
                    outputFSC=fsc_set(self._folder.final("fsc.star"), self._protocol._getPath(), self._suffix),
                    outputMask=self._mask())
        made.update(self._selected_particles())
        return {name + self._suffix: item for name, item in made.items()}

    def _volume(self) -> Volume:
        folder, protocol = self._folder, self._protocol
        volume = Volume()
        volume.setFileName(str(folder.final("map.mrc")))
        volume.setHalfMaps([str(folder.final(f"half_map_{h}.mrc")) for h in (1, 2)])
        volume.setSamplingRate(protocol.inputParticles.get().getSamplingRate())
        volume.setOrigin(protocol.inputVolume.get().getOrigin(force=True).clone())
        return volume

    def _mask(self) -> VolumeMask:
        mask = VolumeMask()
        mask.setFileName(str(self._folder.final("mask.mrc")))
        mask.setSamplingRate(self._protocol.inputParticles.get().getSamplingRate())
        mask.setOrigin(self._given_mask.getOrigin(force=True).clone())
        return mask

    def _selected_particles(self) -> Dict[str, SetOfParticles]:
        """The particles that a selection keeps, and the others: sets of their own, where there is one and any. A set
        that an earlier selection made becomes empty."""
        found = {}
        for name, file_name in (("Kept", "particles_kept.star"), ("LeftOut", "particles_left_out.star")):
            if self._folder.final(file_name).exists():
                particles = self._particles(file_name, name)
                if particles.getSize() or hasattr(self._protocol, f"outputParticles{name}{self._suffix}"):
                    found["outputParticles" + name] = particles
        return found

    def _particles(self, file_name: str = "particles.star", name: str = "") -> SetOfParticles:
        from ..convert import RefinedParticles
        source, protocol = self._particles_as_refined(), self._protocol
        refined = RefinedParticles(str(self._folder.final(file_name)), protocol._input_path("particles.star"),
                                   source.getSamplingRate())
        particles = protocol._createSetOfParticles(name + self._suffix)
        particles.copyInfo(source)
        particles.setAlignmentProj()
        particles.copyItems(source, updateItemCallback=refined.update, doClone=False)
        return particles

    def _particles_as_refined(self) -> SetOfParticles:
        """The input particles as they were when the run began; protocols of older versions kept no copy."""
        source, copy = self._protocol.inputParticles.get(), self._protocol._input_path("particles.sqlite")
        return input_copy.copied_set(source, copy) if os.path.exists(copy) else source


def composite_outputs(folder: Path, like: Volume, path: str, suffix: str = "") -> Tuple[Volume, SetOfFSCs, VolumeMask]:
    """Map with half-maps, FSC curves and mask of a composite.

    Parameters
    ----------
    folder : of the verb compose.  like : has the pixel size and the origin.  path : of the file of the curves.
    """
    volume, mask = Volume(), VolumeMask()
    volume.setHalfMaps([str(folder / f"half_map_{half}.mrc") for half in (1, 2)])
    for item, name in ((volume, "map.mrc"), (mask, "mask.mrc")):
        item.setFileName(str(folder / name))
        item.setSamplingRate(like.getSamplingRate())
        item.setOrigin(like.getOrigin(force=True).clone())
    return volume, fsc_set(folder / "fsc.star", path, suffix), mask


def fsc_set(star: Path, path: str, suffix: str = "") -> SetOfFSCs:
    """The curves of a file, in a new set in the folder ``path``."""
    from ..convert import fsc_objects
    curves = SetOfFSCs.create(path, suffix=suffix.lstrip("_") or None)
    for curve in fsc_objects(fsc_columns(str(star))):
        curves.append(curve)
    return curves
