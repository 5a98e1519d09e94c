"""Local refinement between RELION's protocols in a Scipion project: before it, after it, and after subtraction.

    python -m benchmarks.peers.chain_relion [FOLDER]     (FOLDER is chain_relion_output; what is there is replaced)

Needs the programs of RELION (3.1.3 of Debian was used for docs/reference/compatibility.md) in the PATH, mpirun, and
scipion-em-relion. The template 'subtract_and_refine' runs as it is, but for RELION's angular search, which
starts from the poses of the STAR file. Then every protocol of RELION that can follow is run on our output.
Prints one line per protocol: whether it ran, its seconds, and how far poses and half-maps are from the truth.

Data: 300 particles of examples/simulate.py, box 48.
"""
from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from examples import chain, evaluate, simulate, tutorial
from examples.headless import set_environment

OPTIONS = simulate.Options(particles=300, box_size=48, pixel_size=6.0)
# Healpix order 4 from the poses of the STAR file: RELION searches locally from the first iteration.
LOCAL_SEARCH = dict(copyAlignment=True, alignmentAsPriors=True, angularSamplingDeg=4, localSearchAutoSamplingDeg=4,
                    offsetSearchRangePix=2.0)
SETTINGS = dict(maxIterations=3, numberOfThreads=2, useGpu=False)
Output = Tuple[Any, str]


def main(folder: str = "chain_relion_output") -> int:
    output = Path(folder).resolve()
    shutil.rmtree(output, ignore_errors=True)
    simulate.simulate(output / "data", OPTIONS)
    chain.write_body_mask(output / "data")
    add_coordinates(output / "data" / "particles.star")
    relion_home(output / "relion")
    set_environment(output)
    from examples.demo import new_project
    run = Chain(new_project("chain_relion"), output / "data")
    run.template()
    run.consumers()
    return int(run.failed > 0)


def add_coordinates(star_file: Path) -> None:
    """Places in the micrographs: without them scipion-em-relion drops the micrographs, which CTF refinement needs."""
    from localrefine_plugin.engine.io.star import read_star, write_star
    tables = read_star(star_file)
    rows = next(i for i, table in enumerate(tables) if table.name == "particles")
    place = [100 + 10 * i for i in range(len(tables[rows].lines))]
    tables[rows] = tables[rows].with_columns({"rlnCoordinateX": place, "rlnCoordinateY": place})
    write_star(star_file, tables)


def relion_home(home: Path) -> None:
    """A folder as scipion-em-relion expects it, with links to the programs found in the PATH."""
    program = shutil.which("relion_refine_mpi")
    if program is None:
        raise SystemExit("RELION's programs are not in the PATH")
    (home / "bin").mkdir(parents=True)
    (home / "lib").mkdir()
    for path in Path(program).parent.glob("relion_*"):
        (home / "bin" / path.name).symlink_to(path)
    os.environ.update(RELION_HOME=str(home), OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                      OMPI_MCA_rmaps_base_oversubscribe="1")


class Chain:
    """The project; each step prints its line of the table."""

    def __init__(self, project: Any, data: Path):
        self.project, self.data = project, data
        self.evaluation = evaluate.Evaluation(data)
        self.made: Dict[str, Any] = {}
        self.failed = 0
        print(f"{'protocol':44s}{'':8s}{'s':>5s}{'rotation':>10s}{'position':>10s}{'FSC 0.143':>11s}", flush=True)

    def template(self) -> None:
        values = dict(tutorial.values_for(self.data, OPTIONS.pixel_size), diameter="200", symmetry="C1", gpu="false")
        wanted = ("star", "pixel", "voltage", "cs", "contrast", "map", "mappixel", "mask", "maskpixel", "diameter",
                  "symmetry", "gpu")
        path = tutorial.template_file({alias: values[alias] for alias in wanted}, "subtract_and_refine")
        self.made = self.project.loadProtocols(path)
        for name, value in LOCAL_SEARCH.items():
            self.made["4"].setAttributeValue(name, value)
        for name, value in SETTINGS.items():
            self.made["6"].setAttributeValue(name, value)
        for number in sorted(self.made):
            self.run(number, self.made[number])

    def consumers(self) -> None:
        from relion import protocols as relion
        refined, mask = self.made["4"], (self.made["3"], "outputMask")
        ours = self.refine("not subtracted", (refined, "outputParticles"), (refined, "outputVolume"), mask)
        particles, volume = (ours, "outputParticles"), (ours, "outputVolume")
        post = self.add("postprocess", relion.ProtRelionPostprocess, dict(relionInput=False),
                        inputVolume=volume, solventMask=(ours, "outputMask"))
        ctf = self.add("CTF refinement", relion.ProtRelionCtfRefinement,
                       dict(doCtfFitting=True, fitDefocus=2, doBeamtiltEstimation=True, doEstimateTrefoil=True,
                            doEstimate4thOrder=True), inputParticles=particles, inputPostprocess=(post, ""))
        self.add("3D classification without alignment", relion.ProtRelionClassify3D,
                 dict(doImageAlignment=False, copyAlignment=True, numberOfClasses=2, numberOfIterations=3,
                      maskDiameterA=200, doGpu=False, numberOfMpi=1),
                 inputParticles=particles, referenceVolume=volume)
        self.add("subtraction", relion.ProtRelionSubtract, dict(relionInput=False, numberOfMpi=1, saveFloat16=False),
                 inputParticlesAll=particles, inputVolume=volume, refMask=mask)
        self.add("reconstruction", relion.ProtRelionReconstruct, dict(doCTF=True), inputParticles=particles)
        expanded = self.add("symmetry expansion (C2)", relion.ProtRelionExpandSymmetry, dict(symmetryGroup="C2"),
                            inputParticles=particles)
        body = (chain.import_mask(self.project, self.data, OPTIONS.pixel_size), "outputMask")
        self.refine("body, after CTF refinement", (ctf, "outputParticles"), volume, body, score=False)
        self.refine("head, after symmetry expansion", (expanded, "outputParticles"), volume, mask, score=False)

    def refine(self, label: str, particles: Output, volume: Output, mask: Output, score: bool = True) -> Any:
        from localrefine_plugin.protocols import ProtLocalRefine
        return self.add("local refinement, " + label, ProtLocalRefine, SETTINGS, score=score, inputParticles=particles,
                        inputVolume=volume, inputMask=mask)

    def add(self, label: str, protocol_class: Any, values: Dict[str, Any], score: bool = True, **inputs: Output) -> Any:
        protocol = self.project.newProtocol(protocol_class, **values)
        protocol.setObjLabel(label)
        for name, (source, output) in inputs.items():
            getattr(protocol, name).set(source)
            if output:
                getattr(protocol, name).setExtended(output)
        self.run(label, protocol, score)
        return protocol

    def run(self, label: str, protocol: Any, score: bool = True) -> None:
        """Launch it and print its line; what follows a failure fails too, and says so."""
        self.project.saveProtocol(protocol)
        start, problem = time.time(), ""
        try:
            tutorial.run(self.project, protocol)
        except Exception as error:
            problem = str(error).splitlines()[0]
            self.failed += 1
        text = f"{protocol.getObjLabel():44.44s}{'failed' if problem else 'ran':8s}{time.time() - start:5.0f}"
        print(text + (problem or self.figures(protocol, score)), flush=True)

    def figures(self, protocol: Any, score: bool) -> str:
        """Errors of the head's poses and FSC of the half-maps in its mask, of what the protocol has of them."""
        text = ""
        poses = read_poses(getattr(protocol, "outputParticles", None)) if score else None
        if poses is not None:
            errors = self.evaluation.of_poses(poses)
            text += f"{errors['angle_deg']:9.2f}°{errors['centroid_angstrom']:8.2f} Å"
        volume = getattr(protocol, "outputVolume", None)
        if poses is not None and volume is not None and volume.hasHalfMaps():
            halves = [evaluate.read_map(Path(name.split(":")[0])) for name in volume.getHalfMaps(asList=True)]
            text += f"{self.evaluation.of_halves(*halves):9.2f} Å"
        return text


def read_poses(particles: Any) -> Optional[simulate.Poses]:
    """Poses of a set whose items are numbered as the simulated images; None for any other set."""
    import numpy as np
    if particles is None or particles.getSize() != OPTIONS.particles or not particles.hasAlignmentProj():
        return None
    inverse = np.linalg.inv([np.array(item.getTransform().getMatrix()) for item in particles.iterItems(orderBy="id")])
    return simulate.Poses(inverse[:, :3, :3], inverse[:, :2, 3] * particles.getSamplingRate())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
