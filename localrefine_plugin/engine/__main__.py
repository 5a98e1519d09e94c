"""The command line of the engine: ``python -m localrefine_plugin.engine VERB``.

Nothing but the standard library is imported before the verb is known and the number of threads is in
the environment, where numpy's and numba's thread pools look for it when they are imported.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, Dict, List, Optional

from .kernels.host import worker_count
from .startup import discard_output, find_compiler_cache, open_streams

PROGRAM = "python -m localrefine_plugin.engine"
THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
# The matrices given to BLAS and LAPACK are small, and with more threads their last bits may differ (OpenBLAS 0.3.21)
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
COMPILED = ("refine", "prepare", "align", "merge", "finish", "validate", "recentre", "selftest")
STOPPED = 130  # as a shell calls a program that Ctrl-C ended


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one verb; the exit status: 0, or 1 after one sentence on standard error, or 130 after Ctrl-C."""
    open_streams()
    options = argparse.Namespace(verb="")
    try:
        try:
            options = parser().parse_args(arguments)
            status = _run(options)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        return _unheard(options)
    except KeyboardInterrupt:
        print("stopped" + _how_to_go_on(options), file=sys.stderr)
        return STOPPED
    return status


def _run(options: argparse.Namespace) -> int:
    if hasattr(options, "threads"):
        options.threads = worker_count(options.threads)
        if "numba" not in sys.modules:  # numba refuses another number once it runs
            os.environ.update({name: str(options.threads) for name in THREAD_VARIABLES})
            os.environ.update({name: "1" for name in BLAS_VARIABLES})
    note = find_compiler_cache() if options.verb in COMPILED and "numba" not in sys.modules else ""
    if note:
        print(note, file=sys.stderr)
    from .prepare.arguments import OutputError
    from .records.errors import InputError
    try:
        options.run_verb(options)
    except OutputError as error:
        return _fail(str(error))
    except InputError as error:
        return _fail(str(error), options, error.as_dict())
    except MemoryError:
        memory = InputError("there is not enough memory", "computation", "use another machine or a smaller box")
        return _fail(str(memory), options, memory.as_dict())
    except BrokenPipeError:
        raise
    except OSError as failure:
        system = InputError(failure.strerror or str(failure), str(failure.filename or "a file"),
                            "check free space and permissions, then continue the run")
        return _fail(str(system), options, dict(system.as_dict(), traceback=traceback.format_exc()))
    except Exception as failure:
        return _fail_unexpected(options, failure)
    return 0


def _unheard(options: argparse.Namespace) -> int:
    """The reader of standard output has gone: `report RUN | head`. Only a computation says that it ended there."""
    discard_output(1)
    return _fail("the reader of standard output has gone" + _how_to_go_on(options)) if _how_to_go_on(options) else 1


def _how_to_go_on(options: argparse.Namespace) -> str:
    if options.verb in ("refine", "prepare"):
        instead = " instead of --overwrite" if options.mode == "overwrite" else ""
        return f"; to go on, give the same command with --continue{instead}"
    if options.verb in ("align", "merge", "finish", "validate"):
        return "; to go on, give the same command again"
    return ""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog=PROGRAM, description="Local refinement of a sub-volume in cryo-EM.")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name: str, run_verb: Any, text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.set_defaults(run_verb=run_verb)
        return verb

    add("settings", run_settings, "print every setting as JSON")
    _add_inputs(add("refine", run_refine, "the whole refinement: prepare, iterate, finish"))
    _add_inputs(add("prepare", run_prepare, "check every input and make the run folder"))
    align = add("align", run_align, "align and reconstruct a half-set, or both, in one iteration")
    merge = add("merge", run_merge, "FSC, convergence and new references of one iteration")
    finish = add("finish", run_finish, "write the final maps, particles and report")
    validate = add("validate", run_validate, "null tests of a finished run: noise for images, random phases, and so on")
    report = add("report", run_report, "print the report as JSON")
    bundle = add("bundle", run_bundle, "print what a run measured, without names, images or maps, to be sent to others")
    _add_recentring(add("recentre", run_recentre, "particles, maps and mask about a point, in a smaller box if wanted; "
                        "and back"))
    selftest = add("selftest", run_selftest, "compare a GPU with the CPU: kernels, transforms, one tiny iteration")
    _add_device(selftest)
    _add_threads(selftest)
    for verb in (align, merge, finish, validate, report, bundle):
        verb.add_argument("run", metavar="RUN", help="the run folder")
    for verb in (align, merge):
        verb.add_argument("--iteration", type=_positive, required=True, metavar="K")
    align.add_argument("--half", choices=("1", "2", "both"), required=True)
    for verb in (align, merge, finish):
        _add_devices(verb)
    _add_device(validate)
    for verb in (align, merge, finish, validate):
        _add_threads(verb)
    return top


def _add_inputs(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--particles", required=True, metavar="STAR", help="aligned particles with half-sets; a .cs file "
                      "of cryoSPARC as well")
    verb.add_argument("--passthrough", metavar="CS", help="of a .cs file: the file of the fields that its job passed "
                      "through; sought beside it if not given")
    verb.add_argument("--half-map-1", required=True, metavar="MRC", help="unmasked half-map of rlnRandomSubset 1")
    verb.add_argument("--half-map-2", required=True, metavar="MRC", help="unmasked half-map of rlnRandomSubset 2")
    verb.add_argument("--mask", required=True, metavar="MRC", help="soft mask of the part to refine, values 0 … 1")
    verb.add_argument("--output", required=True, metavar="RUN", help="the run folder to make")
    verb.add_argument("--settings", metavar="JSON", help="settings that differ from their defaults")
    _add_devices(verb)
    _add_threads(verb)
    mode = verb.add_mutually_exclusive_group()
    mode.add_argument("--overwrite", dest="mode", action="store_const", const="overwrite", default="new",
                      help="replace the run in the folder")
    mode.add_argument("--continue", dest="mode", action="store_const", const="continue",
                      help="go on with the run in the folder, from the first step that is not complete or "
                           "depends on a setting that was changed")


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
                      "cuda:N,cuda:M aligns the half-sets at the same time, each on its own GPU, and does the rest "
                      "on the first")


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
    if not re.fullmatch(r"cuda:\d{1,3},cuda:\d{1,3}", text) or len(set(text.split(","))) == 1:
        raise argparse.ArgumentTypeError(f"'{text}' does not name two different GPUs, like cuda:0,cuda:1")
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


def _positive(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not an iteration, which count from 1")
    return int(text)


def run_settings(options: argparse.Namespace) -> None:
    from .records.codec import as_json
    from .records.settings import Settings
    _print_json(as_json(Settings.describe()))


def run_refine(options: argparse.Namespace) -> None:
    arguments = _checked_arguments(options)
    from . import refine
    refine.refine(**arguments)


def run_prepare(options: argparse.Namespace) -> None:
    arguments = _checked_arguments(options)
    from . import refine
    refine.prepare(**arguments)


def _checked_arguments(options: argparse.Namespace) -> Dict[str, Any]:
    """The arguments of `refine.prepare` and `refine.refine`, once the output folder may be written to."""
    from .io.cryosparc import is_cs
    from .io.run_folder import RunFolder
    if is_cs(options.particles):
        options.particles = _star_of_cs(options)
    from .prepare.arguments import check_output, check_same_run, read_settings
    from .records.run_input import INPUT_NAMES
    inputs = {name: getattr(options, name) for name in INPUT_NAMES}
    check_output(options.output, options.mode, inputs)
    _forget_error(options)
    source, run = options.settings, RunFolder(options.output)
    if source is None and options.mode == "continue" and run.settings.exists():
        source = run.settings
    settings = read_settings(source)
    if options.mode == "continue":
        check_same_run(run, inputs)
    return dict(inputs, output=options.output, settings=settings, device=options.device, threads=options.threads,
                mode=options.mode)


def _star_of_cs(options: argparse.Namespace) -> str:
    """The STAR file of a .cs file, beside the run folder."""
    from .io.cryosparc import star_of_cs
    from .progress import say
    star = f"{os.path.normpath(options.output)}_particles.star"
    for text in star_of_cs(options.particles, options.passthrough, star):
        say(text)
    return star


def run_align(options: argparse.Namespace) -> None:
    _check_run(options)
    from . import refine
    if options.half == "both":
        refine.align_both(options.run, options.iteration, device=options.device, threads=options.threads)
    elif "," in options.device:
        from .prepare.arguments import OutputError
        raise OutputError("names two GPUs for one half-set", f"--device {options.device}", "use --half both")
    else:
        refine.align(options.run, options.iteration, int(options.half), device=options.device, threads=options.threads)


def run_merge(options: argparse.Namespace) -> None:
    _check_run(options)
    from . import refine
    refine.merge(options.run, options.iteration, threads=options.threads, device=options.device)


def run_finish(options: argparse.Namespace) -> None:
    _check_run(options)
    from . import refine
    refine.finish(options.run, threads=options.threads, device=options.device)


def run_validate(options: argparse.Namespace) -> None:
    _check_run(options)
    from .validate.validate import validate
    validate(options.run, device=options.device, threads=options.threads)


def run_report(options: argparse.Namespace) -> None:
    from .finish.report import build_report
    from .io.run_folder import RunFolder
    from .records.codec import as_json
    _print_json(as_json(build_report(RunFolder(options.run))))


def run_bundle(options: argparse.Namespace) -> None:
    _check_run(options)
    from .finish.bundle import bundle
    from .io.run_folder import RunFolder
    _print_json(bundle(RunFolder(options.run)))


def run_recentre(options: argparse.Namespace) -> None:
    from .prepare import recentre
    maps = {name: getattr(options, name) for name in recentre.MAP_NAMES if getattr(options, name) is not None}
    if options.undo:
        recentre.restore(options.particles, options.output, maps)
    else:
        recentre.recentre(options.particles, options.output, maps, options.point, options.box)


def run_selftest(options: argparse.Namespace) -> None:
    from .kernels.device import choose_device
    from .workers.selftest import report_lines
    for line in report_lines(choose_device(options.device)):
        print(line)


def _check_run(options: argparse.Namespace) -> None:
    """Refuse a folder that `prepare` has not completed; nothing is written there."""
    from .io.run_folder import RunFolder
    from .prepare.arguments import OutputError
    run = RunFolder(options.run)
    if run.iterations_done() < 0:
        raise OutputError("holds no prepared run", f"run folder {options.run}", "run the verb prepare first")
    _forget_error(options)


def _print_json(content: Any) -> None:
    # ASCII, so that it can be parsed whatever encoding the shell has
    print(json.dumps(content, indent=1))


def _folder(options: argparse.Namespace) -> Optional[str]:
    """Where error.json goes; None for verbs that only read."""
    if options.verb in ("report", "bundle"):
        return None
    folder: Optional[str] = getattr(options, "output", getattr(options, "run", None))
    return folder


def _command(options: argparse.Namespace) -> str:
    words = [options.verb] + [f"--{name} {getattr(options, name)}" for name in ("iteration", "half")
                              if hasattr(options, name)]
    return " ".join(words)


def _forget_error(options: argparse.Namespace) -> None:
    """Remove the error.json of an earlier attempt at this step; another step's, which may be running, stays."""
    folder = _folder(options)
    if folder is None:
        return
    from .io.run_folder import RunFolder, read_json
    path = RunFolder(folder).error
    try:
        if options.verb in ("prepare", "refine") or read_json(path).get("command") == _command(options):
            path.unlink()
    except (OSError, ValueError, AttributeError):  # there is none, or it is not ours
        pass


def _fail(sentence: str, options: Optional[argparse.Namespace] = None, content: Optional[Dict[str, str]] = None) -> int:
    """Say the sentence; write error.json if there is a folder for it."""
    folder = _folder(options) if options is not None else None
    if options is not None and folder is not None and content is not None:
        from .io.run_folder import RunFolder, write_json
        # a file name that is not UTF-8 comes as surrogates, which JSON in UTF-8 cannot hold
        texts = {key: text.encode("utf-8", "backslashreplace").decode() for key, text in content.items()}
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_json(RunFolder(folder).error, dict(texts, command=_command(options)))
        except (OSError, ValueError):
            pass  # the sentence on standard error is all that is left
    try:
        print("error: " + " ".join(sentence.split()), file=sys.stderr)
    except BrokenPipeError:
        discard_output(2)
    return 1


def _fail_unexpected(options: argparse.Namespace, failure: Exception) -> int:
    """A mistake of the program, not of the user: the traceback goes to error.json, for a bug report."""
    from .records.errors import InputError
    error = InputError(f"unexpected {type(failure).__name__} ({failure})", PROGRAM + " " + _command(options),
                       "please report it, with the file error.json of the run folder")
    if _folder(options) is None:
        traceback.print_exc()
    return _fail(str(error), options, dict(error.as_dict(), traceback=traceback.format_exc()))


if __name__ == "__main__":
    sys.exit(main())
