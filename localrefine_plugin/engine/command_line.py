"""The arguments of every verb of the command line. Standard library only, like all that is imported before the verb is
known."""
from __future__ import annotations

import argparse
import re
from typing import Any, List

from . import verbs
from .records.cells import CELLS, PARTICLES
from .records.film import AXES, FRAMES
from .records.forecast import SAMPLE
from .startup import PROGRAM

MASK = "soft mask of the part to refine, values 0 … 1"
SETTINGS = "settings that differ from their defaults"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog=PROGRAM, description="Local refinement of a sub-volume in cryo-EM.")
    known = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name: str, run_verb: Any, text: str) -> argparse.ArgumentParser:
        verb = known.add_parser(name, help=text, description=text)
        verb.set_defaults(run_verb=run_verb)
        return verb

    add("settings", verbs.run_settings, "print every setting as JSON")
    _add_inputs(add("refine", verbs.run_refine, "the whole refinement: prepare, iterate, finish"), several=True)
    _add_inputs(add("prepare", verbs.run_prepare, "check every input and make the run folder"))
    _add_forecasting(add("forecast", verbs.run_forecast, "what a refinement will reach, from some of the particles: "
                         "resolution, errors of the poses, time, memory, particles needed"))
    align = add("align", verbs.run_align, "align and reconstruct a half-set, or both, in one iteration")
    merge = add("merge", verbs.run_merge, "FSC, convergence and new references of one iteration")
    finish = add("finish", verbs.run_finish, "write the final maps, particles and report")
    validate = add("validate", verbs.run_validate,
                   "null tests of a finished run: noise for images, random phases, and so on")
    film = add("film", verbs.run_film, "the learned motion of a finished run as series of maps, for ChimeraX")
    _add_outline(add("outline", verbs.run_outline, "a soft mask of the whole particle, from its half-maps"))
    found = add("rigidity", verbs.run_rigidity, "which parts of the particle move, and which together, from a finished "
                "run")
    compose = add("compose", verbs.run_compose, "one map of several bodies and the consensus, with half-maps, from "
                  "finished runs of the same particles")
    _add_composing(compose)
    report = add("report", verbs.run_report, "print the report as JSON")
    bundle = add("bundle", verbs.run_bundle,
                 "print what a run measured, without names, images or maps, to be sent to others")
    _add_recentring(add("recentre", verbs.run_recentre,
                        "particles, maps and mask about a point, in a smaller box if wanted; and back"))
    selftest = add("selftest", verbs.run_selftest,
                   "compare a GPU with the CPU: kernels, transforms, one tiny iteration")
    _add_device(selftest)
    _add_threads(selftest)
    member = known.add_parser("member")  # no help: processes.py starts it
    member.set_defaults(run_verb=verbs.run_member)
    for name in ("descriptor", "rank", "size"):
        member.add_argument(name, type=int)
    for verb in (align, merge, finish, validate, film, found, report, bundle):
        verb.add_argument("run", metavar="RUN", help="the run folder")
    for verb in (align, merge):
        verb.add_argument("--iteration", type=_positive, required=True, metavar="K")
    align.add_argument("--half", choices=("1", "2", "both"), required=True)
    for verb in (align, merge, finish):
        _add_devices(verb)
    _add_processes(align)
    for verb in (validate, member):
        _add_device(verb)
    _add_film(film)
    _add_rigidity(found)
    for verb in (align, merge, finish, validate, member, film, found, compose):
        _add_threads(verb)
    return top


def _add_forecasting(verb: argparse.ArgumentParser) -> None:
    _add_data(verb)
    verb.add_argument("--mask", required=True, action="append", metavar="MRC", help=MASK + "; given several times: "
                      "each is forecast")
    verb.add_argument("--settings", metavar="JSON", help=SETTINGS)
    verb.add_argument("--sample", type=_number, default=SAMPLE, metavar="N",
                      help=f"particles of each half-set that are looked at (default: {SAMPLE})")
    verb.add_argument("--resolution", type=_resolution, metavar="ANGSTROM",
                      help="say how many particles this resolution takes")
    verb.add_argument("--json", metavar="FILE", help="write the forecasts to this file as well")
    _add_device(verb)
    _add_threads(verb)


def _add_inputs(verb: argparse.ArgumentParser, several: bool = False) -> None:
    """``several``: masks, each of a body, and settings are lists."""
    _add_data(verb)
    if several:
        verb.add_argument("--mask", required=True, metavar="MRC", action="append", help=MASK + "; given several times: "
                          "of several bodies, which are refined side by side")
        verb.add_argument("--settings", metavar="JSON", action="append", default=[], help=SETTINGS + "; given several "
                          "times: of each body, in the order of the masks")
    else:
        verb.add_argument("--mask", required=True, metavar="MRC", help=MASK)
        verb.add_argument("--settings", metavar="JSON", help=SETTINGS)
    verb.add_argument("--output", required=True, metavar="RUN", help="the run folder to make")
    _add_devices(verb)
    _add_processes(verb)
    _add_threads(verb)
    mode = verb.add_mutually_exclusive_group()
    mode.add_argument("--overwrite", dest="mode", action="store_const", const="overwrite", default="new",
                      help="replace the run in the folder")
    mode.add_argument("--continue", dest="mode", action="store_const", const="continue",
                      help="go on with the run in the folder, from the first step that is not complete or "
                           "depends on a setting that was changed")


def _add_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--particles", required=True, metavar="STAR", help="aligned particles with half-sets; a .cs file "
                      "of cryoSPARC as well")
    verb.add_argument("--passthrough", metavar="CS", help="of a .cs file: the file of the fields that its job passed "
                      "through; sought beside it if not given")
    verb.add_argument("--half-map-1", required=True, metavar="MRC", help="unmasked half-map of rlnRandomSubset 1")
    verb.add_argument("--half-map-2", required=True, metavar="MRC", help="unmasked half-map of rlnRandomSubset 2")


def _add_film(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--rest", metavar="RUN", help="a finished run of the rest of the particle, with the same "
                      "particles: the motion against its poses, beside its map (default: input poses and half-maps)")
    verb.add_argument("--frames", type=_count, default=FRAMES, metavar="N",
                      help=f"maps of each series (default: {FRAMES})")
    verb.add_argument("--axes", type=_count, default=AXES, metavar="N",
                      help=f"principal axes, at most 6 (default: {AXES})")


def _add_outline(verb: argparse.ArgumentParser) -> None:
    for half in ("1", "2"):
        verb.add_argument(f"--half-map-{half}", required=True, metavar="MRC", help=f"half-map {half}")
    verb.add_argument("--mask", required=True, metavar="MRC", help="the mask to write")


def _add_rigidity(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--cells", type=_count, default=CELLS, metavar="N",
                      help=f"parts that the particle is divided into (default: {CELLS})")
    verb.add_argument("--particles", type=_number, default=PARTICLES, metavar="N",
                      help=f"particles to look at, half of each half-set (default: {PARTICLES})")


def _add_composing(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("runs", metavar="RUN", nargs="+", help="finished runs, one for each body")
    verb.add_argument("--output", required=True, metavar="FOLDER", help="the folder to make")
    verb.add_argument("--frame", type=_count, default=1, metavar="K", help="number of the run in whose frame the "
                      "composite is; 0 for that of the input poses (default: 1)")


def _add_recentring(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--particles", required=True, metavar="STAR", help="aligned particles")
    verb.add_argument("--output", required=True, metavar="FOLDER", help="the folder to make")
    for name, text in (("mask", "mask; without --point its centre of mass is the point"), ("map", "map"),
                       ("half-map-1", "half-map"), ("half-map-2", "half-map")):
        verb.add_argument("--" + name, metavar="MRC", help=text + " to be moved along")
    verb.add_argument("--point", type=_point, metavar="X,Y,Z", help="px from the corner of the box")
    verb.add_argument("--box", type=_box, metavar="N", help="crop images and maps to this many px")
    verb.add_argument("--undo", action="store_true", help="bring re-centred particles and maps back, with the poses "
                      "they have now and the images from before")


def _add_device(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def _add_devices(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", type=_devices, default="auto", help="auto, cpu, cuda or cuda:N (default: auto); "
                      "cuda:N,cuda:M,... shares the particles out among any number of GPUs, and does the rest on the "
                      "first. Under mpirun the ranks of a machine take turns among them")


def _add_processes(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--processes", type=_threads, default=0, metavar="N",
                      help="share particles and threads out among N processes, for a CPU of many cores (default: one)")


def _add_threads(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--threads", type=_threads, default=0, metavar="N",
                      help="0 (the default) means every core available to the process")


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"'{text}' is none of auto, cpu, cuda and cuda:N")
    return text


def _devices(text: str) -> str:
    if "," not in text:
        return _device(text)
    if not re.fullmatch(r"cuda:\d{1,3}(,cuda:\d{1,3})+", text) or len(set(text.split(","))) < len(text.split(",")):
        raise argparse.ArgumentTypeError(f"'{text}' does not name different GPUs, like cuda:0,cuda:1")
    return text


def _threads(text: str) -> int:
    if not re.fullmatch(r"\d{1,4}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of threads")
    return int(text)


def _box(text: str) -> int:
    if not re.fullmatch(r"\d{1,4}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not the size of a box in px")
    return int(text)


def _point(text: str) -> List[float]:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not X,Y,Z") from None
    return [x, y, z]


def _resolution(text: str) -> float:
    if not re.fullmatch(r"\d{1,3}(\.\d{1,4})?", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a resolution in Å")
    return float(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,7}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of particles")
    return int(text)


def _positive(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not an iteration, which count from 1")
    return int(text)
