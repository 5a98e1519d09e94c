"""A local refinement from nothing: simulate a hinged complex, refine its head in a Scipion project, show the gain.

    python -m examples.demo [FOLDER]        (what `make demo` runs; FOLDER is demo_output)

The protocol is launched through the framework, as from Scipion's window. Only what Scipion publishes is
evaluated: the poses of outputParticles and the files of outputVolume.
"""
from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np

from . import evaluate, simulate
from .headless import set_environment

OPTIONS = simulate.Options()
SETTINGS = dict(maxIterations=3, numberOfThreads=2)
PICTURES = ("fsc", "pose_change")


def main(folder: str = "demo_output") -> int:
    start = time.time()
    output = Path(folder).resolve()
    shutil.rmtree(output, ignore_errors=True)
    data = output / "data"
    print(f"Simulating {OPTIONS.particles} images of a ribosomal RNA whose head turns about its neck ...", flush=True)
    simulate.simulate(data, OPTIONS)
    set_environment(output)
    project = new_project("demo")
    print("Refining the head with the protocol 'local refinement' of a Scipion project ...", flush=True)
    protocol = launch(project, register_inputs(project, data))
    if not protocol.isFinished():
        print(f"The protocol failed: {protocol.getErrorMessage()}", file=sys.stderr)
        return 1
    print(table(evaluate.Evaluation(data), data, protocol))
    print_paths(project, protocol, save_pictures(protocol, output))
    print(f"Done in {time.time() - start:.0f} seconds.")
    return 0


# ---------------------------------------------------------------- the Scipion project

def new_project(name: str) -> Any:
    """An empty project; it becomes the working directory, as Scipion needs it."""
    from pyworkflow.project import Manager
    project = Manager().createProject(name)
    os.chdir(project.path)
    return project


def register_inputs(project: Any, data: Path) -> Any:
    """A finished protocol with the simulated data as outputParticles, outputVolume and outputMask."""
    from pwem.objects import Volume, VolumeMask
    from pwem.protocols import EMProtocol
    protocol = project.newProtocol(EMProtocol, objLabel="simulated consensus refinement")
    project.saveProtocol(protocol)
    protocol.makePathsAndClean()
    volume, mask = Volume(), VolumeMask()
    for item, name in ((volume, "consensus"), (mask, "mask_B")):
        item.setFileName(str(data / f"{name}.mrc"))
        item.setSamplingRate(OPTIONS.pixel_size)
    volume.setHalfMaps([str(data / f"half{half}.mrc") for half in (1, 2)])
    protocol._defineOutputs(outputParticles=scipion_particles(protocol, data), outputVolume=volume, outputMask=mask)
    protocol.setFinished()
    project._storeProtocol(protocol)
    return protocol


def scipion_particles(protocol: Any, data: Path) -> Any:
    """The rows of particles.star as a SetOfParticles with CTF, alignment and half-sets."""
    from emtable import Table
    from pwem.objects import Acquisition, CTFModel, Particle, Transform
    from pyworkflow.object import Integer
    particles = protocol._createSetOfParticles()
    particles.setSamplingRate(OPTIONS.pixel_size)
    particles.setAlignmentProj()
    particles.setHasCTF(True)
    particles.setAcquisition(Acquisition(
        voltage=OPTIONS.voltage_kv, sphericalAberration=OPTIONS.spherical_aberration_mm,
        amplitudeContrast=OPTIONS.amplitude_contrast, magnification=50000))
    poses = evaluate.read_poses(data / "particles.star")
    for number, row in enumerate(Table.iterRows(f"particles@{data / 'particles.star'}"), start=1):
        item = Particle()
        item.setLocation(number, str(data / "particles.mrcs"))
        item.setTransform(Transform(matrix=alignment_matrix(poses, number - 1)))
        item.setCTF(CTFModel(defocusU=row.rlnDefocusU, defocusV=row.rlnDefocusV, defocusAngle=row.rlnDefocusAngle))
        item._rlnRandomSubset = Integer(row.rlnRandomSubset)
        particles.append(item)
    particles.write()
    return particles


def alignment_matrix(poses: simulate.Poses, row: int) -> np.ndarray:
    """Scipion's matrix takes the image to the volume: T = inv([R | c]), the position c in px."""
    matrix = np.eye(4)
    matrix[:3, :3] = poses.rotation[row]
    matrix[:2, 3] = poses.position[row] / OPTIONS.pixel_size
    return np.linalg.inv(matrix)


def poses_of(particles: Any) -> simulate.Poses:
    """Poses of a SetOfParticles in the order of its images; the inverse of `alignment_matrix`."""
    found = {item.getIndex(): np.linalg.inv(item.getTransform().getMatrix()) for item in particles.iterItems()}
    matrices = np.array([found[index] for index in sorted(found)])
    return simulate.Poses(matrices[:, :3, :3], matrices[:, :2, 3] * particles.getSamplingRate())


def launch(project: Any, inputs: Any) -> Any:
    """Run the protocol to its end, repeating its progress here."""
    from localrefine_plugin.protocols import ProtLocalRefine
    protocol = project.newProtocol(ProtLocalRefine, useGpu=False, **SETTINGS)
    protocol.setObjLabel("local refinement of the head")  # newProtocol ignores objLabel
    for name in ("Particles", "Volume", "Mask"):
        pointer = getattr(protocol, f"input{name}")
        pointer.set(inputs)
        pointer.setExtended(f"output{name}")
    project.launchProtocol(protocol, wait=False)
    position = 0
    while True:
        active = protocol.isActive()
        position = repeat_log(protocol.getStdoutLog(), position)
        if not active:
            return protocol
        time.sleep(0.5)
        project._updateProtocol(protocol)


def repeat_log(path: str, position: int) -> int:
    """Print the engine's lines of a log from ``position`` on; returns where to go on."""
    if not os.path.exists(path):
        return position
    with open(path, encoding="utf-8", errors="replace", newline="") as log:
        log.seek(position)
        text = log.read()
    complete = text[:text.rfind("\n") + 1]
    for line in engine_lines(complete):
        print("  " + line, flush=True)
    return position + len(complete.encode("utf-8"))


def engine_lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        words = line.split("\r")[-1].strip()
        if words.startswith(("iteration ", "warning", "results ")) and ": on " not in words:
            yield words


# ---------------------------------------------------------------- what came out

def table(evaluation: evaluate.Evaluation, data: Path, protocol: Any) -> str:
    """Pose errors and FSC before and after, against the truth."""
    consensus = evaluate.read_map(data / "consensus.mrc")
    before = column(evaluation, evaluate.read_poses(data / "particles.star"), consensus,
                    [data / f"half{half}.mrc" for half in (1, 2)])
    volume = protocol.outputVolume
    after = column(evaluation, poses_of(protocol.outputParticles), evaluate.read_map(volume.getFileName()),
                   [Path(name) for name in volume.getHalfMaps(asList=True)])
    lines = [f"{'the head, truth known':44s}{'before':>10s}{'after':>10s}"]
    lines += [f"{name:44s}{before[name]:>10s}{after[name]:>10s}" for name in before]
    return "\n".join(["", *lines, ""])


def column(evaluation: evaluate.Evaluation, poses: simulate.Poses, volume: np.ndarray,
           half_files: List[Path]) -> Dict[str, str]:
    errors, agreement = evaluation.of_poses(poses), evaluation.of_map(volume, poses)
    halves = evaluation.of_halves(*(evaluate.read_map(name) for name in half_files))
    return {"pose error, rotation (median)": f"{errors['angle_deg']:.2f}°",
            "pose error, position in the image (median)": f"{errors['centroid_angstrom']:.2f} Å",
            "FSC 0.5 to the true map": f"{agreement['fsc_half_angstrom']:.2f} Å",
            "mean FSC to the true map": f"{agreement['mean_fsc']:.3f}",
            "FSC 0.143 between half-maps": f"{halves:.2f} Å"}


def save_pictures(protocol: Any, output: Path) -> List[Tuple[str, Path]]:
    """The pictures of "Analyze Results" as PNG files: (label, path)."""
    from localrefine_plugin.report.run_figures import PICTURES as all_pictures
    from localrefine_plugin.report.run_figures import draw
    saved = []
    for picture in all_pictures:
        if picture.name in PICTURES:
            path = output / f"{picture.name}.png"
            draw(picture, protocol.run_state()).savefig(path, dpi=120)
            saved.append((picture.label, path))
    return saved


def print_paths(project: Any, protocol: Any, pictures: List[Tuple[str, Path]]) -> None:
    paths = [("refined map", Path(protocol.outputVolume.getFileName()).resolve()), *pictures,
             ("report", Path(protocol.html_report_path()).resolve()), ("Scipion project", Path(project.path))]
    for label, path in paths:
        print(f"{label + ':':28s}{path}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
