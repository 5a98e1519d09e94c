"""localrefine-cryosparc: a local refinement as an *External job* of cryoSPARC, through cryosparc-tools.

    localrefine-cryosparc --project P3 --workspace W1 --particles J42 --mask J50 --NAME VALUE …

takes the particles and the volume (with its half-maps) of the refinement J42 and a mask, makes an external job that is
connected to them, runs the engine, and saves particles with new alignments3D, the volume and the mask as its outputs.
The engine runs here, in a folder of its own; of the project's folder it only reads. The maps reach the job's folder
through the server.
"""
from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..engine.io.run_folder import RunFolder, read_json, write_atomic, write_json
from ..engine.records.errors import InputError
from . import cryosparc_api as api
from .cryosparc_api import Source
from .engine_job import check_packages, engine_command, leaving_on_sigterm, settings_of, started

PROGRAM = "localrefine-cryosparc"
POSES = "alignments3D"
PARTICLE_SLOTS = ("blob", "ctf", POSES)
HALVES = "map_half_A", "map_half_B"  # split 0 is half-map A, and our half-map 1
VOLUME = {"map": "map.mrc", "map_sharp": "map_sharpened.mrc", HALVES[0]: "half_map_1.mrc", HALVES[1]: "half_map_2.mrc"}
MASK_SLOTS = ("mask", "mask_refine", "map")  # of a mask; the first that there is
PARTICLES = {"particles": "particles.cs", "particles_kept": "particles_kept.cs"}
LOOK_SECONDS = 30.0  # between two looks whether the job was killed in cryoSPARC
BAR = re.compile(r"\[#*\.*\] \d+/\d+")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    options, rest = parser().parse_known_args(arguments)
    try:
        run(options, rest)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog=PROGRAM, allow_abbrev=False, description="Local refinement as an external job of cryoSPARC. Every setting "
        "of 'python -m localrefine_plugin.engine settings' can be given as --NAME VALUE. The account is taken from "
        f"{', '.join(api.SECRETS)}, or from a login of cryosparc-tools 5.")
    top.add_argument("--project", required=True, metavar="P3")
    top.add_argument("--workspace", required=True, metavar="W1", help="where the external job is made")
    top.add_argument("--particles", required=True, metavar="J42", help="a refinement, or one of its outputs: "
                     "J42.particles")
    top.add_argument("--volume", metavar="J42", help="its volume with both half-maps; of the same job if not given")
    top.add_argument("--mask", required=True, metavar="J50", help="a job with a mask, or its output: J50.mask")
    top.add_argument("--title", default="Local refinement (localrefine)")
    top.add_argument("--output", metavar="RUN", help="the run folder, here; a run that is in it goes on (default: "
                     "localrefine_PROJECT_JOB)")
    top.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or cuda:N,cuda:M")
    top.add_argument("--threads", type=int, default=0, metavar="N", help="0: all")
    top.add_argument("--url", help="of cryoSPARC 5 (default: CRYOSPARC_BASE_URL)")
    top.add_argument("--host", help="of cryoSPARC (default: CRYOSPARC_MASTER_HOSTNAME)")
    top.add_argument("--base-port", type=int, metavar="N", help="of cryoSPARC (default: CRYOSPARC_BASE_PORT)")
    return top


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Everything that can be wrong with the arguments is found before the job is made."""
    check_packages()
    settings = settings_of(rest, PROGRAM)
    server = api.connect(url=options.url, host=options.host, base_port=options.base_port)
    project = api.find(server.find_project, options.project, "project")
    root = api.folder_of(project)
    sources = sources_of(project, options)
    api.find(project.find_workspace, options.workspace, "workspace")
    job = project.create_external_job(options.workspace, title=options.title)
    print(f"{options.project} {job.uid}: {options.title}", flush=True)
    with leaving_on_sigterm(), api.running(job):
        connect_inputs(job, sources)
        job.start("running")
        folder = RunFolder(os.path.abspath(options.output or f"localrefine_{options.project}_{job.uid}"))
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        api.log(job, f"the run folder is {folder.path}")
        write_json(beside(folder, "_settings.json"), settings.as_dict())
        refine(job, engine_inputs(job, sources, root, folder), folder, root, options)
        save_outputs(job, sources, folder)
        log_pictures(job, folder)


# ---------------------------------------------------------------- inputs

def sources_of(project: Any, options: argparse.Namespace) -> Dict[str, Source]:
    """The outputs that are the inputs here: particles, volume, mask; InputError for what lacks a slot."""
    volume = options.volume or options.particles.partition(".")[0]
    found = {"particles": source(project, options.particles, "particle", PARTICLE_SLOTS),
             "volume": source(project, volume, "volume", HALVES),
             "mask": source(project, options.mask, "mask", ())}
    mask_slot(found["mask"])
    return found


def source(project: Any, text: str, kind: str, slots: Sequence[str]) -> Source:
    """The output that ``text`` names, J42.particles, or the only one of its kind with these slots of a job, J42."""
    uid, _, output = text.partition(".")
    of_job = api.outputs_of(api.find(project.find_job, uid, "job"))
    usable = [one for one in of_job if one.type == kind and (one.output == output if output else True)
              and all(name in one.slots for name in slots)]
    if len(usable) == 1:
        return usable[0]
    seen = ", ".join(f"{one.name} ({one.type}: {' '.join(one.slots)})" for one in of_job) or "none"
    wanted = f"with {', '.join(slots)} " if slots else ""
    raise InputError(f"has {len(usable)} outputs of type {kind} {wanted}by this name", f"--{kind_option(kind)} {text}",
                     f"name one as JOB.OUTPUT; the outputs of {uid} are: {seen}")


def kind_option(kind: str) -> str:
    return "particles" if kind == "particle" else kind


def mask_slot(mask: Source) -> str:
    """The slot of a mask's output that holds it."""
    for name in MASK_SLOTS:
        if name in mask.slots:
            return name
    raise InputError(f"has no slot {', '.join(MASK_SLOTS)}", f"--mask {mask.name}", "give the mask of an import, of "
                     "Volume Tools or of a refinement")


def connect_inputs(job: Any, sources: Dict[str, Source]) -> None:
    slots = {"particles": PARTICLE_SLOTS, "volume": HALVES, "mask": (mask_slot(sources["mask"]),)}
    for name, one in sources.items():
        job.connect(name, one.job, one.output, slots=[api.slot(job, s, one.slots[s]) for s in slots[name]],
                    title=name.capitalize())


def engine_inputs(job: Any, sources: Dict[str, Source], root: Path, folder: RunFolder) -> List[str]:
    """The arguments of the engine that name its inputs. The particles, with all that was passed through, are written
    beside the run folder; maps are read where they are."""
    particles = beside(folder, "_particles.cs")
    dataset = job.load_input("particles")
    write_atomic(particles, lambda name: dataset.save(name))
    volume, mask = job.load_input("volume"), job.load_input("mask")
    paths = [root / str(volume[f"{half}/path"][0]).lstrip(">") for half in HALVES]  # > marks an imported file
    paths.append(root / str(mask[f"{mask_slot(sources['mask'])}/path"][0]).lstrip(">"))
    return ["--particles", str(particles), "--half-map-1", str(paths[0]), "--half-map-2", str(paths[1]), "--mask",
            str(paths[2])]


def beside(folder: RunFolder, ending: str) -> Path:
    return folder.path.with_name(folder.path.name + ending)


# ---------------------------------------------------------------- the engine

def refine(job: Any, inputs: Sequence[str], folder: RunFolder, root: Path, options: argparse.Namespace) -> None:
    """Run the engine in the folder of the project, where the images are; InputError with its sentence if it fails."""
    command = engine_command("refine", *inputs, "--output", str(folder.path), "--settings",
                             str(beside(folder, "_settings.json")), "--device", options.device, "--threads",
                             str(options.threads), "--continue")
    last, looked = "", time.monotonic()
    with started(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
                 errors="replace") as engine:
        for line in engine.stdout:
            last = line.strip()
            if BAR.search(last):
                print(last, flush=True)
            elif last:
                api.log(job, last, "warning" if last.startswith("warning") else "text")
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                if api.was_ended(job):
                    raise InputError("was ended in cryoSPARC", f"job {job.uid}",
                                     f"give the same command with --output {folder.path} to go on")
        if engine.wait() != 0:
            raise failure_of(folder, last)


def failure_of(folder: RunFolder, last: str) -> InputError:
    """The engine's own sentence; ``last``: what it printed last."""
    if last.startswith("error: ") and folder.error.exists():
        said = read_json(folder.error)
        return InputError(said["problem"], said["input"], said["remedy"])
    return InputError(f"has stopped: {last or 'without a word'}", "the engine", "see the lines before")


def log_pictures(job: Any, folder: RunFolder) -> None:
    """All pictures of the run into the log of the job: FSC, changes of the poses, map, particles, directions."""
    try:
        from ..report.run_figures import PICTURES, NotThere, draw_if_there
    except ImportError as error:
        api.log(job, f"no pictures: {error}", "warning")
        return
    from ..report.run_state import RunState
    state = RunState(folder.path)
    for picture in PICTURES:
        try:
            figure = draw_if_there(picture, state)
        except NotThere:
            continue
        api.log_plot(job, figure, picture.label)


# ---------------------------------------------------------------- outputs

def save_outputs(job: Any, sources: Dict[str, Source], folder: RunFolder) -> None:
    """Particles that differ from the input's in their poses, and the maps."""
    for name, file in PARTICLES.items():
        if folder.final(file).exists():
            save_particles(job, sources["particles"], name, folder.final(file))
    dtype = sources["volume"].slots[HALVES[0]]
    save_maps(job, "volume", "volume", {s: folder.final(f) for s, f in VOLUME.items()}, dtype)
    mask = mask_slot(sources["mask"])
    save_maps(job, "mask", "mask", {mask: folder.final("mask.mrc")}, sources["mask"].slots[mask])


def save_particles(job: Any, given: Source, name: str, file: Path) -> None:
    from cryosparc.dataset import Dataset
    refined = Dataset.load(str(file))
    output = job.add_output("particle", name, slots=[api.slot(job, POSES, given.slots[POSES])],
                            passthrough="particles", title=name.replace("_", " ").capitalize())
    rows = job.alloc_output(output, refined)
    missing = {f"{POSES}/pose", f"{POSES}/shift"} - set(rows.fields())
    if missing:
        raise InputError(f"has no field {', '.join(sorted(missing))}", f"output {output} of {job.uid}",
                         f"take the particles from {file}, and report this with the version of cryoSPARC")
    for field in set(rows.fields()) & set(refined.fields()):
        rows[field] = refined[field]
    job.save_output(output, rows)


def save_maps(job: Any, kind: str, name: str, files: Dict[str, Path], dtype: str) -> None:
    """One row: a file for each slot, in the folder of the job."""
    output = job.add_output(kind, name, slots=[api.slot(job, slot, dtype) for slot in files], title=name.capitalize())
    row = job.alloc_output(output, 1)
    for slot, file in files.items():
        target = f"localrefine_{slot}.mrc"
        job.upload(target, str(file), overwrite=True)
        shape, pixel_size = shape_and_pixel_size(file)
        row[f"{slot}/path"] = [f"{job.uid}/{target}"]
        row[f"{slot}/shape"] = [shape]
        row[f"{slot}/psize_A"] = [pixel_size]
    job.save_output(output, row)


def shape_and_pixel_size(file: Path) -> Tuple[Tuple[int, ...], float]:
    import mrcfile
    with mrcfile.open(str(file), header_only=True) as mrc:
        return tuple(int(mrc.header[name]) for name in ("nz", "ny", "nx")), float(mrc.voxel_size.x)


if __name__ == "__main__":
    sys.exit(main())
