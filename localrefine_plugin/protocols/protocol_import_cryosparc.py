"""The protocol 'import particles of cryoSPARC': a .cs file with its passthrough file becomes a set of particles."""
from __future__ import annotations

import os
import shutil
from typing import Any, Dict, List

import numpy as np
import pyworkflow.protocol.params as params
from pwem.objects import Acquisition, Coordinate, CTFModel, Particle, SetOfParticles, Transform
from pwem.protocols import ProtImport
from pyworkflow import BETA
from pyworkflow.object import Integer, String
from pyworkflow.utils import cleanPath, createAbsLink, makePath

from ..convert_cryosparc import FILE_ATTRIBUTE, IMAGES, UID_ATTRIBUTE

# A .cs file has none, and scipion-em-relion takes this one then. Without any, pwem replaces the acquisition of a set by
# that of its items, and the optics groups are lost.
MAGNIFICATION = 10000


class ProtLocalImportCryosparc(ProtImport):
    """Import the particles of a refinement of cryoSPARC, with poses, half-sets, CTF and optics groups.

    cryoSPARC keeps them in two .cs files: what a job has made (J42_particles.cs), and what it has passed through
    (J42_passthrough_particles.cs). Both lie in the folder of the job. Images are linked, not copied; they are found
    from the folder of the .cs file upwards, so leave it in the project of cryoSPARC.

    A local refinement of these particles also writes a .cs file with the new poses, for *Import Result Group* or
    cryosparc-tools. Import the map with its two half-maps by *import volumes*: split 0 belongs to half-map A.
    """

    _label = "import particles of cryoSPARC"
    _devStatus = BETA
    _possibleOutputs = {"outputParticles": SetOfParticles}

    def _defineParams(self, form: Any) -> None:
        form.addSection(label="Import")
        form.addParam("csFile", params.FileParam, important=True, label="Particles (.cs)",
                      help="Of a homogeneous, non-uniform or local refinement: the file with the poses.")
        form.addParam("passthroughFile", params.FileParam, allowsNull=True, label="Passthrough (.cs)",
                      help="The file of the fields that the job has passed through. If it is empty, it is sought "
                           "beside the first file.")

    # ---------------------------------------------------------------- steps

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.importStep, self.csFile.get(), self.passthroughFile.get())

    def importStep(self, cs_file: str, passthrough: str) -> None:
        """The .cs file → a STAR file → the set; a copy of the .cs file, for the poses that come back."""
        from ..engine.io.cryosparc import star_of_cs
        from ..engine.io.star import read_star
        star, copy = self._getExtraPath("particles.star"), self._getExtraPath("particles.cs")
        said = star_of_cs(cs_file, passthrough or None, star)
        shutil.copyfile(cs_file, copy)
        for text in said:
            self.info(text)
        self.summaryVar.set("\n".join(said))
        tables = {table.name: table for table in read_star(star)}
        rows, optics = (tables[name].texts(tables[name].labels) for name in ("particles", "optics"))
        self._defineOutputs(outputParticles=self._particles(rows, optics, self._linked(rows["rlnImageName"]), copy))

    def _linked(self, names: List[str]) -> List[str]:
        """number@link of each image name: a link to its stack in the folder of the protocol. Its name ends with .mrcs,
        for other programs read a .mrc file as a volume."""
        folder, links = self._getExtraPath(IMAGES), {}
        cleanPath(folder)
        makePath(folder)
        for stack in dict.fromkeys(name.partition("@")[2] for name in names):
            stem = os.path.splitext(os.path.basename(stack))[0]
            links[stack] = os.path.join(folder, f"{stem}.mrcs")
            if os.path.lexists(links[stack]):
                links[stack] = os.path.join(folder, f"{stem}_{len(links)}.mrcs")
            createAbsLink(stack, links[stack])
        return [f"{number}@{links[stack]}" for number, _, stack in (name.partition("@") for name in names)]

    def _particles(self, rows: Dict[str, List[str]], optics: Dict[str, List[str]], images: List[str],
                   cs_file: str) -> SetOfParticles:
        from ..convert import POSE_LABELS, SUBSET_ATTRIBUTE, transforms_from_columns
        pixel_size = float(optics["rlnImagePixelSize"][0])
        poses = np.array([rows[label] for label in POSE_LABELS], dtype=np.float64).T
        transforms = transforms_from_columns(poses, pixel_size)
        acquisitions = [acquisition(optics, group) for group in range(len(optics["rlnOpticsGroup"]))]
        micrographs = {name: i for i, name in enumerate(dict.fromkeys(rows.get("rlnMicrographName", ())), start=1)}
        particles = self._createSetOfParticles()
        particles.setSamplingRate(pixel_size)
        particles.setAcquisition(acquisition(optics, 0))  # of its own: the text is kept with the set alone
        particles.getAcquisition().opticsGroupInfo.set(star_text(optics))
        particles.setHasCTF(True)
        particles.setAlignmentProj()
        for i, image in enumerate(images):
            number, _, stack = image.partition("@")
            group = int(rows["rlnOpticsGroup"][i])
            item = Particle()
            item.setLocation(int(number), stack)
            item.setTransform(Transform(matrix=transforms[i]))
            item.setCTF(ctf(rows, i))
            item.setAcquisition(acquisitions[group - 1])
            if micrographs:
                item.setCoordinate(coordinate(rows, i, micrographs))
            if "rlnRandomSubset" in rows:
                setattr(item, SUBSET_ATTRIBUTE, Integer(int(rows["rlnRandomSubset"][i])))
            item._rlnOpticsGroup = Integer(group)
            setattr(item, UID_ATTRIBUTE, String(rows[UID_ATTRIBUTE[1:]][i]))
            setattr(item, FILE_ATTRIBUTE, String(cs_file))
            particles.append(item)
        return particles

    # ---------------------------------------------------------------- info

    def _validate(self) -> List[str]:
        errors = []
        for pointer, label in ((self.csFile, "Particles"), (self.passthroughFile, "Passthrough")):
            name = pointer.get()
            if name and not (os.path.isfile(name) and name.lower().endswith(".cs")):
                errors.append(f"*{label}*: {name} is not a .cs file; choose one in the folder of a job of cryoSPARC.")
        return errors

    def _summary(self) -> List[str]:
        return [self.summaryVar.get() or "Not started yet."]


def acquisition(optics: Dict[str, List[str]], group: int) -> Acquisition:
    return Acquisition(magnification=MAGNIFICATION, voltage=float(optics["rlnVoltage"][group]),
                       sphericalAberration=float(optics["rlnSphericalAberration"][group]),
                       amplitudeContrast=float(optics["rlnAmplitudeContrast"][group]))


def star_text(optics: Dict[str, List[str]]) -> str:
    """The table of the optics groups as scipion-em-relion keeps it with a set; its reader skips the first line."""
    header = "".join(f"_{label} #{j}\n" for j, label in enumerate(optics, 1))
    return f"\ndata_optics\n\nloop_\n{header}" + "".join(" ".join(row) + "\n" for row in zip(*optics.values()))


def ctf(rows: Dict[str, List[str]], i: int) -> CTFModel:
    found = CTFModel(defocusU=float(rows["rlnDefocusU"][i]), defocusV=float(rows["rlnDefocusV"][i]),
                     defocusAngle=float(rows["rlnDefocusAngle"][i]))
    if "rlnPhaseShift" in rows:
        found.setPhaseShift(float(rows["rlnPhaseShift"][i]))
    return found


def coordinate(rows: Dict[str, List[str]], i: int, micrographs: Dict[str, int]) -> Coordinate:
    found = Coordinate()
    found.setPosition(round(float(rows["rlnCoordinateX"][i])), round(float(rows["rlnCoordinateY"][i])))
    found.setMicName(rows["rlnMicrographName"][i])
    found.setMicId(micrographs[rows["rlnMicrographName"][i]])
    return found
