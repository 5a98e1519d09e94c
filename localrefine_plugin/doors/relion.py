"""localrefine-relion: a local refinement as a job of RELION's type *External*.

RELION runs, in the folder of its project and with the output in run.out and run.err of the job,

    localrefine-relion --o External/job012/ --in_parts STAR --in_3dref MRC --in_mask MRC --NAME VALUE … --j N

and takes the job as ended when RELION_JOB_EXIT_SUCCESS, _FAILURE or _ABORTED lies in its folder. The files that
RELION_OUTPUT_NODES.star names become inputs of other jobs. The names are those of Refine3D: PostProcess finds the
second half-map by replacing "half1" with "half2". Sources: src/pipeliner.cpp and src/pipeline_jobs.cpp of RELION
3.1.3 and 5.0.1.
"""
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple

from ..engine.io.run_folder import RunFolder, write_atomic, write_json
from ..engine.io.star import StarTable, write_star
from ..engine.records.errors import InputError
from .engine_job import check_packages, engine_command, settings_of, started

PROGRAM = "localrefine-relion"
EXIT = "RELION_JOB_EXIT_"
ABORT_NOW = "RELION_JOB_ABORT_NOW"
NODES = "RELION_OUTPUT_NODES.star"
LOOK_SECONDS = 0.5  # between two looks for ABORT_NOW
NOT_USED = ("in_movies", "in_mics", "in_coords")
HALVES = "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"  # of Refine3D, and of this job


class Node(NamedTuple):
    """A file of the job, the file of the run that it is, and its type: a number for RELION 3.1, a label from 4 on."""

    name: str
    source: str
    number: int
    label: str


OUTPUTS = (Node("run_data.star", "particles.star", 3, "ParticleGroupMetadata.star.relion"),
           Node("run_data_kept.star", "particles_kept.star", 3, "ParticleGroupMetadata.star.relion"),
           Node(HALVES[0], "half_map_1.mrc", 10, "DensityMap.mrc.halfmap"),
           Node(HALVES[1], "half_map_2.mrc", 10, "DensityMap.mrc.halfmap"),
           Node("run_class001.mrc", "map.mrc", 6, "DensityMap.mrc"),
           Node("mask.mrc", "mask.mrc", 7, "Mask3D.mrc"))
LOGFILE = Node("logfile.pdf", "", 13, "LogFile.pdf.relion")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the job; the exit status, which RELION does not look at."""
    options, rest = parser().parse_known_args(arguments)
    job = Path(options.o)
    job.mkdir(parents=True, exist_ok=True)
    for outcome in ("SUCCESS", "FAILURE", "ABORTED"):
        (job / f"{EXIT}{outcome}").unlink(missing_ok=True)
    try:
        outcome = run(job, options, rest)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        outcome = "FAILURE"
    except BaseException:  # also a signal: RELION would wait for ever
        (job / f"{EXIT}FAILURE").touch()
        raise
    (job / f"{EXIT}{outcome}").touch()
    return 0 if outcome == "SUCCESS" else 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog=PROGRAM, allow_abbrev=False, description="Local refinement as a job of RELION's type External. Every "
        "setting of 'python -m localrefine_plugin.engine settings' can be given as --NAME VALUE: a label and its value "
        "in RELION's form.")
    top.add_argument("--o", required=True, metavar="FOLDER", help="the folder of the job")
    top.add_argument("--in_parts", metavar="STAR", help="particles of Refine3D (run_data.star)")
    top.add_argument("--in_3dref", metavar="MRC", help="a half-map of the same job, or its map; the other half-map is "
                     "found by its name")
    top.add_argument("--in_mask", metavar="MRC", help="soft mask of the part to refine")
    top.add_argument("--half_map_2", metavar="MRC", help="where the names do not say it")
    top.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or cuda:N,cuda:M,...")
    top.add_argument("--j", type=int, default=0, metavar="N", help="threads; 0: all")
    top.add_argument("--pipeline_control", metavar="FOLDER", help="where RELION asks to abort; the job's folder if not "
                     "given")
    for name in NOT_USED:
        top.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return top


def run(job: Path, options: argparse.Namespace, rest: Sequence[str]) -> str:
    """What the job ended with."""
    check_packages()
    folder, settings = RunFolder(job / "refine"), settings_of(rest, PROGRAM)
    first, second = checked_inputs(options)
    write_json(job / "settings.json", settings.as_dict())
    command = engine_command("refine", "--particles", options.in_parts, "--half-map-1", first, "--half-map-2", second,
                             "--mask", options.in_mask, "--output", str(folder.path), "--settings",
                             str(job / "settings.json"), "--device", options.device, "--threads", str(options.j),
                             "--continue")
    control = Path(options.pipeline_control or options.o)
    (control / ABORT_NOW).unlink(missing_ok=True)
    outcome = watched(command, control / ABORT_NOW)
    if outcome == "SUCCESS":
        nodes = publish(folder, job)
        write_nodes(job, nodes)
    return outcome


def watched(command: Sequence[str], abort: Path) -> str:
    """Run the engine until it ends, or until RELION asks to abort."""
    with started(command) as engine:
        while True:
            try:
                return "SUCCESS" if engine.wait(LOOK_SECONDS) == 0 else "FAILURE"
            except subprocess.TimeoutExpired:
                if abort.exists():
                    print("aborted, as RELION asked; continue the job to go on", flush=True)
                    return "ABORTED"


# ---------------------------------------------------------------- inputs

def checked_inputs(options: argparse.Namespace) -> Tuple[str, str]:
    """Both half-maps; InputError for inputs that are missing or of no use here."""
    for name in NOT_USED:
        if getattr(options, name):
            raise InputError("are of no use for a local refinement", f"input --{name}", "leave it empty")
    for name, text in (("in_parts", "the particles of a Refine3D job (run_data.star)"),
                       ("in_mask", "a soft mask of the part to refine")):
        if not getattr(options, name):
            raise InputError("is not given", f"input --{name}", f"give {text}")
    if options.half_map_2:
        if not options.in_3dref:
            raise InputError("is not given", "input --in_3dref", "give half-map 1")
        return options.in_3dref, options.half_map_2
    return half_maps(options.in_3dref, options.in_parts)


def half_maps(reference: Optional[str], particles: str) -> Tuple[str, str]:
    """Both half-maps by the name of one, or those that lie beside the reference or, without one, the particles."""
    name = Path(reference).name if reference else ""
    for own, other in (("half1", "half2"), ("half2", "half1")):
        if own in name and reference:
            found = str(Path(reference).with_name(name.replace(own, other)))
            return existing((reference, found) if own == "half1" else (found, reference))
    beside = Path(reference or particles).parent
    return existing((str(beside / HALVES[0]), str(beside / HALVES[1])))


def existing(halves: Tuple[str, str]) -> Tuple[str, str]:
    for path in halves:
        if not Path(path).is_file():
            raise InputError(f"there is no {path}", "input --in_3dref", "give an unfiltered half-map of Refine3D "
                             f"({HALVES[0]}); if the other one has another name, give it as --half_map_2")
    return halves


# ---------------------------------------------------------------- outputs

def publish(folder: RunFolder, job: Path) -> List[Node]:
    """Bring the results into the job's folder, under the names of Refine3D."""
    nodes = [node for node in OUTPUTS if folder.final(node.source).exists()]
    for node in nodes:
        write_atomic(job / node.name, lambda name, node=node: link_or_copy(folder.final(node.source), name))
    return nodes + ([LOGFILE] if write_logfile(folder, job / LOGFILE.name) else [])


def link_or_copy(source: Path, target: str) -> None:
    """A second name of the file, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_logfile(folder: RunFolder, path: Path) -> bool:
    """All pictures of the run, a page each; False where they cannot be drawn, which is said."""
    try:
        from matplotlib.backends.backend_pdf import PdfPages
    except ImportError:
        print(f"no {path.name}: matplotlib is not installed", flush=True)
        return False
    from ..report.run_figures import PICTURES, NotThere, draw_if_there
    from ..report.run_state import RunState
    state = RunState(folder.path)

    def write(name: str) -> None:
        with PdfPages(name) as pages:
            for picture in PICTURES:
                try:
                    pages.savefig(draw_if_there(picture, state))
                except NotThere:
                    continue
    write_atomic(path, write)
    return True


def write_nodes(job: Path, nodes: Sequence[Node]) -> None:
    """What other jobs of the project may take, for RELION 3.1 (numbers) and from 4 on (labels)."""
    table = StarTable.from_columns("output_nodes", {
        "rlnPipeLineNodeName": [f"{job}/{node.name}" for node in nodes],
        "rlnPipeLineNodeType": [node.number for node in nodes],
        "rlnPipeLineNodeTypeLabel": [node.label for node in nodes],
        "rlnPipeLineNodeTypeLabelDepth": [1 for _ in nodes]})
    write_star(job / NODES, [table])


if __name__ == "__main__":
    sys.exit(main())
