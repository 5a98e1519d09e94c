"""Two local refinements in a row by script: first the body, then, from its poses and maps, the head.

    python -m examples.chain [FOLDER]      (FOLDER is chain_output; what is there is replaced)

Builds a Scipion project, imports simulated data through the plugin's template, refines the head directly and
after the body, and compares both with the truth. No window is opened. The workflow is left in FOLDER/chain.json, for
*Import workflow* of Scipion's window or Project.loadProtocols.
"""
from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, Dict, Tuple

import mrcfile
import numpy as np

from . import evaluate, phantom, simulate, tutorial
from .headless import set_environment

OPTIONS = simulate.Options(particles=600, box_size=64, pixel_size=4.5)
SETTINGS = dict(maxIterations=3, numberOfThreads=2, useGpu=False)


def main(folder: str = "chain_output") -> int:
    output = Path(folder).resolve()
    shutil.rmtree(output, ignore_errors=True)
    print("Simulating ...", flush=True)
    simulate.simulate(output / "data", OPTIONS)
    write_body_mask(output / "data")
    set_environment(output)
    from .demo import new_project
    project = new_project("chain")
    found = chain(project, output / "data", OPTIONS.pixel_size, **SETTINGS)
    project.exportProtocols(project.getRuns(), str(output / "chain.json"))
    print(table(output / "data", found))
    return 0


def write_body_mask(data: Path) -> None:
    """mask_A.mrc: a soft mask of the body, made from its true map."""
    with mrcfile.open(str(data / "gt_A.mrc")) as handle:
        pixel_size, body = float(handle.voxel_size.x), np.array(handle.data)
    with mrcfile.new(str(data / "mask_A.mrc"), overwrite=True) as handle:
        handle.set_data(phantom.soft_mask(body, pixel_size))
        handle.voxel_size = pixel_size


def chain(project: Any, data: Path, pixel_size: float, compare: bool = True, **settings: Any) -> Dict[str, Any]:
    """The finished protocols by name: "body", "head after body", and, to compare with, "head"."""
    made = tutorial.import_data(project, data, pixel_size)
    particles, maps, head_mask = (made["1"], "outputParticles"), (made["2"], "outputVolume"), (made["3"], "outputMask")
    body_mask = (import_mask(project, data, pixel_size), "outputMask")
    body = refine(project, "body", particles, maps, body_mask, settings)
    found = {"body": body, "head after body": refine(
        project, "head after body", (body, "outputParticles"), (body, "outputVolume"), head_mask, settings)}
    if compare:
        found["head"] = refine(project, "head", particles, maps, head_mask, settings)
    return found


def import_mask(project: Any, data: Path, pixel_size: float) -> Any:
    from pwem.protocols import ProtImportMask
    protocol = project.newProtocol(ProtImportMask, maskPath=str(data / "mask_A.mrc"), samplingRate=pixel_size)
    protocol.setObjLabel("import mask of the body")
    return tutorial.run(project, protocol)


def refine(project: Any, label: str, particles: Tuple[Any, str], maps: Tuple[Any, str], mask: Tuple[Any, str],
           settings: Dict[str, Any]) -> Any:
    """A finished local refinement of these outputs (protocol, name of the output)."""
    from localrefine_plugin.protocols import ProtLocalRefine
    protocol = project.newProtocol(ProtLocalRefine, **settings)
    protocol.setObjLabel(label)
    for pointer, (source, output) in ((protocol.inputParticles, particles), (protocol.inputVolume, maps),
                                      (protocol.inputMask, mask)):
        pointer.set(source)
        pointer.setExtended(output)
    print(f"Refining: {label} ...", flush=True)
    return tutorial.run(project, protocol)


def table(data: Path, found: Dict[str, Any]) -> str:
    """Errors of the head's poses, and the resolution inside the head's mask, of the input and of each result."""
    evaluation = evaluate.Evaluation(data)
    rows = [("input", data / "particles.star", [data / f"half{half}.mrc" for half in (1, 2)])]
    for name in [name for name in ("head", "head after body") if name in found]:
        final = Path(found[name]._getExtraPath("run", "final"))
        rows.append((name, final / "particles.star", [final / f"half_map_{half}.mrc" for half in (1, 2)]))
    lines = [f"{'poses and map of the head':28s}{'rotation':>10s}{'position':>10s}{'FSC 0.143':>11s}"]
    for name, star, halves in rows:
        errors = evaluation.of_poses(evaluate.read_poses(star))
        resolution = evaluation.of_halves(*(evaluate.read_map(half) for half in halves))
        lines.append(f"{name:28s}{errors['angle_deg']:9.2f}°{errors['centroid_angstrom']:8.2f} Å{resolution:9.2f} Å")
    return "\n".join(["", *lines])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
