"""The protocol 're-centre particles': images, poses, maps and mask about a point of the specimen, and back."""
from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import pyworkflow.protocol.params as params
from pwem.objects import SetOfParticles, Transform, Volume, VolumeMask
from pwem.protocols import ProtProcessParticles
from pyworkflow import BETA
from pyworkflow.object import Integer, String
from pyworkflow.utils import cleanPath, makePath

from ..engine.io.mrc import write_map
from ..engine.io.run_folder import RunFolder, write_json
from ..engine.model.optics import image_shift, specimen_shift
from ..engine.prepare import recentre
from ..report.run_state import read_json
from .engine_process import run_engine
from .form_local_refine import FULCRUM_AXES, FULCRUM_CHOICES, FULCRUM_COORDINATES
from .input_errors import geometry_errors, half_map_files
from .step_chain import fingerprint

THERE, BACK = range(2)
NUMBERS = (*recentre.POINT, *recentre.ROLL, recentre.BOX)
SMALLEST_BOX = 16


class ProtLocalRecentre(ProtProcessParticles):
    """Move particles, their maps and their mask so that a point of the specimen stands in the centre of the box.

    Local refinement itself does not need it. It helps other programs, which turn about the centre of the box, and it
    makes a small part of a large particle cheap: afterwards the box can be cropped.

    Each image is moved by whole pixels, the rest stays in its pose, and maps and mask are moved by whole voxels:
    nothing is interpolated. What leaves an image at one edge comes in at the opposite one; a smaller box cuts that
    strip off again.

    *Back to the first frame* takes particles that were re-centred, however they were refined since, and gives them
    the images and the frame from before, with the poses they have now. Maps and mask come back, too.

    The coordinates of the particles in the micrographs stay those of the first box, and so does the defocus.
    """

    _label = "re-centre particles"
    _devStatus = BETA
    _possibleOutputs = {"outputParticles": SetOfParticles, "outputVolume": Volume, "outputMask": VolumeMask}

    # ---------------------------------------------------------------- params

    def _defineParams(self, form: Any) -> None:
        form.addSection(label="Input")
        form.addParam("direction", params.EnumParam, choices=["re-centre on a point", "back to the first frame"],
                      default=THERE, label="What to do", help="Back: for particles that this protocol has re-centred, "
                      "also after refinements in the new frame.")
        form.addParam("inputParticles", params.PointerParam, pointerClass="SetOfParticles",
                      pointerCondition="hasAlignmentProj", important=True, label="Particles",
                      help="Aligned particles; the images must have the box of the maps.")
        form.addParam("inputVolume", params.PointerParam, pointerClass="Volume", allowsNull=True, label="Volume",
                      help="Moved along, with its half-maps if it has them. May be empty.")
        form.addParam("inputMask", params.PointerParam, pointerClass="VolumeMask", allowsNull=True, label="Mask",
                      help="Moved along. Its centre of mass is the point, unless you give one. May be empty.")
        form.addParam("fulcrum", params.EnumParam, default=0, condition=f"direction == {THERE}", label="Point",
                      choices=[FULCRUM_CHOICES["mask"], FULCRUM_COORDINATES],
                      help="What comes to the centre of the box, to the nearest voxel. The wizard shows the map.")
        line = form.addLine("Point (px)", condition=f"direction == {THERE} and fulcrum == 1",
                            help="x, y and z in pixels from the corner of the box (the first voxel is 0).")
        for axis, text in zip(FULCRUM_AXES, "xyz"):
            line.addParam(axis, params.FloatParam, allowsNull=True, default=None, label=text)
        form.addParam("newBox", params.IntParam, allowsNull=True, default=None, condition=f"direction == {THERE}",
                      label="New box (px, empty: as it is)",
                      help="Images and maps are cropped to this box about the point. Leave solvent around the mask, "
                           "about half as wide as the mask.")

    # ---------------------------------------------------------------- steps

    def _insertAllSteps(self) -> None:
        inputs = [[pointer.get().getObjId(), pointer.get().getFileName()] for pointer in self._pointers()]
        values = [self.getAttributeValue(name) for name in ("direction", "fulcrum", *FULCRUM_AXES, "newBox")]
        digest = fingerprint({"inputs": inputs, "values": values})  # Continue compares steps by their arguments
        there = self.direction.get() == THERE
        self._insertFunctionStep(self.recentreStep if there else self.restoreMapsStep, digest)
        self._insertFunctionStep(self.createOutputStep, digest)

    def recentreStep(self, digest: str) -> List[str]:
        """Particles → STAR, and the engine's verb on it and the maps."""
        from ..convert import mrc_map, write_particles
        source, folder = self._getExtraPath("input"), self._folder()
        for path in (source, folder):
            cleanPath(path)
        makePath(source)
        particles = self.inputParticles.get()
        write_particles(particles, os.path.join(source, "particles.star"), os.path.join(source, "stacks"))
        words = ["--particles", os.path.join(source, "particles.star"), "--output", folder]
        for name, file_name in self._maps().items():
            path = mrc_map(file_name, particles.getSamplingRate(), os.path.join(source, f"{name}.mrc"))
            words += ["--" + name.replace("_", "-"), path]
        if self.fulcrum.get() == 1:
            words += ["--point", ",".join(str(self.getAttributeValue(axis)) for axis in FULCRUM_AXES)]
        if self.newBox.get():
            words += ["--box", str(self.newBox.get())]
        run_engine(self, RunFolder(folder).error, "recentre", *words)
        return [self._folder("recentre.json")]

    def restoreMapsStep(self, digest: str) -> List[str]:
        """The maps moved back, by what the first particle says was done to it."""
        from ..convert import read_map
        cleanPath(self._folder())
        makePath(self._folder())
        done = done_to(self.inputParticles.get().getFirstItem())
        point, box = np.array([done[name] for name in recentre.POINT]), done[recentre.BOX]
        for name, file_name in self._maps().items():
            write_map(self._folder(f"{name}.mrc"), recentre.restored_map(read_map(file_name), point, box),
                      self.inputParticles.get().getSamplingRate())
        write_json(self._folder("recentre.json"), {
            "point_from_centre_px": point.tolist(), "box_size": box, "warnings": [],
            "box_size_before": int(self.inputParticles.get().getXDim())})
        return [self._folder("recentre.json")]

    def createOutputStep(self, digest: str) -> None:
        outputs: Dict[str, Any] = {"outputParticles": self._output_particles()}
        if self.inputVolume.get() is not None:
            outputs["outputVolume"] = self._output_map(self.inputVolume.get(), "map", Volume())
            halves = [self._folder(f"half_map_{h}.mrc") for h in (1, 2)]
            if os.path.exists(halves[0]):
                outputs["outputVolume"].setHalfMaps(halves)
        if self.inputMask.get() is not None:
            outputs["outputMask"] = self._output_map(self.inputMask.get(), "mask", VolumeMask())
        self._defineOutputs(**outputs)
        for pointer in self._pointers():
            for output in outputs.values():
                self._defineSourceRelation(pointer, output)

    # ---------------------------------------------------------------- outputs

    def _output_particles(self) -> SetOfParticles:
        source = self.inputParticles.get()
        update = RecentredItems(self._folder("particles.star"), source.getSamplingRate()).update \
            if self.direction.get() == THERE else RestoredItems(*self._distortions()).update
        particles = self._createSetOfParticles()
        particles.copyInfo(source)
        particles.setAlignmentProj()
        particles.copyItems(source, updateItemCallback=update, doClone=False)
        return particles

    def _distortions(self) -> Tuple[Dict[int, np.ndarray], Dict[int, float]]:
        """By object id: magnification matrix (2, 2), {} where no optics group has one, and how many px of its own image
        are one px of the set."""
        from ..convert import particles_table, write_particles
        from ..convert_optics import changes_geometry
        from ..engine.io.relion_particles import read_particles
        source = self.inputParticles.get()
        text = getattr(source.getAcquisition(), "opticsGroupInfo", None)
        if text is None or not text.get() or not changes_geometry(text.get()):
            return {}, {}
        star, pixel_size = self._folder("input.star"), float(source.getSamplingRate())
        write_particles(source, star, self._folder("stacks"))
        table = read_particles(star, need_half_sets=False, pixel_size=pixel_size)[1]
        if table.distortion is None:
            return {}, {}
        ids = [int(number) for number in particles_table(star).texts(["rlnImageId"])["rlnImageId"]]
        return dict(zip(ids, table.distortion)), dict(zip(ids, (pixel_size / table.pixel_size).tolist()))

    def _output_map(self, source: Volume, name: str, volume: Volume) -> Volume:
        """The moved map; its origin keeps the density where it was in space."""
        volume.setFileName(self._folder(f"{name}.mrc"))
        volume.setSamplingRate(source.getSamplingRate())
        report = read_json(self._folder("recentre.json"))
        there = np.array(report["point_from_centre_px"]) * (1 if self.direction.get() == THERE else -1)
        corner = there + report["box_size_before"] // 2 - report["box_size"] // 2
        x, y, z = np.array(source.getOrigin(force=True).getShifts()) + corner * source.getSamplingRate()
        origin = Transform()
        origin.setShifts(x, y, z)
        volume.setOrigin(origin)
        return volume

    # ---------------------------------------------------------------- files

    def _pointers(self) -> List[Any]:
        """The inputs that were given."""
        return [p for p in (self.inputParticles, self.inputVolume, self.inputMask) if p.get() is not None]

    def _folder(self, *names: str) -> str:
        return self._getExtraPath("recentred", *names)

    def _maps(self) -> Dict[str, str]:
        """File of every map given, by the engine's name."""
        volume, mask = self.inputVolume.get(), self.inputMask.get()
        found = {} if volume is None else {"map": volume.getFileName()}
        if volume is not None:
            found.update({f"half_map_{h}": name for h, name in enumerate(half_map_files(volume), start=1)})
        return found if mask is None else dict(found, mask=mask.getFileName())

    # ---------------------------------------------------------------- info

    def _validate(self) -> List[str]:
        particles = self.inputParticles.get()
        errors = []
        if particles is not None:
            for pointer, name in ((self.inputVolume, "volume"), (self.inputMask, "mask")):
                errors += [] if pointer.get() is None else geometry_errors(
                    particles, pointer.get(), name, resample=False)
        if self.direction.get() == BACK:
            return errors + ([] if particles is None else back_errors(particles.getFirstItem()))
        values = [self.getAttributeValue(axis) for axis in FULCRUM_AXES]
        if self.fulcrum.get() == 0 and self.inputMask.get() is None:
            errors.append("*Point*: give the mask whose centre it is, or coordinates.")
        if self.fulcrum.get() == 1 and None in values:
            errors.append("*Point*: give x, y and z; the wizard helps.")
        box, old = self.newBox.get(), None if particles is None else particles.getXDim()
        if box is not None and old and not SMALLEST_BOX <= box <= old:
            errors.append(f"*New box*: choose {SMALLEST_BOX} to {old} px.")
        return errors

    def _summary(self) -> List[str]:
        report = read_json(self._folder("recentre.json"))
        if not report or not hasattr(self, "outputParticles"):
            return ["Not finished yet."]
        if self.direction.get() == BACK:
            return [f"Back in the first frame, with a box of {report['box_size']} px."]
        point = ", ".join(str(v) for v in report["point_px"])
        return [f"The point {point} px of the old box ({report['box_size_before']} px) is the centre of the new one "
                f"({report['box_size']} px)."] + [f"*Warning*: {text}" for text in report["warnings"]]

    def _methods(self) -> List[str]:
        if not hasattr(self, "outputParticles") or self.direction.get() == BACK:
            return []
        return ["Particles and maps were re-centred on the sub-volume [Ilca2015] by whole pixels [LocalRefine]."]

    def _citations(self) -> List[str]:
        return ["LocalRefine", "Ilca2015"]


# ---------------------------------------------------------------- items

class RecentredItems:
    """The rows of a re-centred particles.star by Scipion's object id.

    Parameters
    ----------
    star_file : the table.   pixel_size : Å.
    """

    def __init__(self, star_file: str, pixel_size: float):
        from ..convert import POSE_LABELS, particles_table, transforms_from_columns
        texts = particles_table(star_file).texts(["rlnImageId", "rlnImageName", recentre.IMAGE, *POSE_LABELS, *NUMBERS])
        self._row = {int(value): row for row, value in enumerate(texts["rlnImageId"])}
        poses = np.array([texts[label] for label in POSE_LABELS], dtype=np.float64).T
        self._transforms, self._texts = transforms_from_columns(poses, pixel_size), texts

    def update(self, item: Any, _row: Any = None) -> None:
        """Give the item its new image and pose, and what is needed to bring it back (a callback of copyItems)."""
        row = self._row[item.getObjId()]
        item.setLocation(*location(self._texts["rlnImageName"][row]))
        item.setTransform(Transform(matrix=self._transforms[row].copy()))
        for label in NUMBERS:
            setattr(item, "_" + label, Integer(int(float(self._texts[label][row]))))
        index, path = location(self._texts[recentre.IMAGE][row])
        setattr(item, "_" + recentre.IMAGE, String(f"{index:06d}@{path}"))


def location(image_name: str) -> Any:
    """(index, path) of NNNNNN@path; a path inside the project is relative to it, so that the project can move."""
    number, _, path = image_name.partition("@")
    relative = os.path.relpath(path)
    return int(number), path if relative.startswith("..") else relative


def done_to(item: Any) -> Optional[Dict[str, int]]:
    """What was done to an item, by label; None for one that was not re-centred."""
    values = {label: item.getAttributeValue("_" + label, None) for label in NUMBERS}
    return None if None in values.values() else {label: int(value) for label, value in values.items()}


class RestoredItems:
    """The way back of items.

    Parameters
    ----------
    distortions : magnification matrix (2, 2) by object id, where there are any.
    scales : px of the item's own image in a px of the set, by object id, where they differ.
    """

    def __init__(self, distortions: Dict[int, np.ndarray], scales: Dict[int, float]):
        self._distortions, self._scales = distortions, scales

    def update(self, item: Any, _row: Any = None) -> None:
        """Give the item its first image back, with the pose it has now (a callback of copyItems).

        Scipion's matrix T = inv([R | t]): M = inv(T) has R in M[:3, :3] and t, in px of the set, in M[:2, 3].
        """
        done = done_to(item)
        if done is None:
            raise RuntimeError(f"particle {item.getObjId()} was not re-centred")
        distortion = self._distortions.get(item.getObjId())
        distortion = None if distortion is None else distortion[None]
        matrix = np.linalg.inv(np.asarray(item.getTransform().getMatrix(), dtype=float))
        point, roll = (np.array([[done[label] for label in labels]]) for labels in (recentre.POINT, recentre.ROLL))
        scale = self._scales.get(item.getObjId(), 1.0)
        now = specimen_shift(scale * matrix[None, :2, 3], distortion)
        shift = recentre.restored_shifts(matrix[None, :3, :3], now, point, roll, distortion)
        matrix[:2, 3] = image_shift(shift, distortion)[0] / scale
        item.setTransform(Transform(matrix=np.linalg.inv(matrix)))
        item.setLocation(*location(item.getAttributeValue("_" + recentre.IMAGE)))
        for label in (*NUMBERS, recentre.IMAGE):
            setattr(item, "_" + label, Integer() if label in NUMBERS else String())


def back_errors(item: Any) -> List[str]:
    if item is None:
        return ["*Particles*: the set is empty."]
    if done_to(item) is None:
        return ["*Particles*: they were not re-centred by this protocol."]
    path = location(item.getAttributeValue("_" + recentre.IMAGE))[1]
    return [] if os.path.exists(path) else [f"*Particles*: the images from before ({path}) are not there any more."]
