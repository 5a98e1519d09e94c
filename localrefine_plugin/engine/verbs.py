"""What each verb of the command line does. What it needs is imported when it is called: `settings` waits for nothing
heavy."""
from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from typing import Any, Dict

from .failures import described, forget_error


def run_settings(options: argparse.Namespace) -> None:
    from .records.codec import as_json
    from .records.settings import Settings
    _print_json(as_json(Settings.describe()))


def run_refine(options: argparse.Namespace) -> None:
    from . import refine
    from .workers.assemble import assembled
    with assembled(options.device, options.threads, options.processes) as (team, options.device):
        if team.is_first:
            refine.refine(**_checked_arguments(options), team=team)
        else:
            _serve(team, options)


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
    forget_error(options)
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
    from . import refine
    from .workers.assemble import assembled
    with assembled(options.device, options.threads, options.processes) as (team, options.device):
        if team.is_first:
            _check_run(options)
            halves = (1, 2) if options.half == "both" else (int(options.half),)
            refine.align(options.run, options.iteration, halves, options.device, options.threads, team)
        else:
            _serve(team, options)


def run_member(options: argparse.Namespace) -> None:
    """One of the processes of a team, started by its first member, which is told what stops it."""
    from .records.errors import InputError
    from .workers.processes import Failure, Joined
    team = Joined(options.descriptor, options.rank, options.size)
    try:
        _serve(team, options)
    except InputError as error:
        if not isinstance(error.__cause__, (InputError, MemoryError, OSError)):
            traceback.print_exc()
        team.send(0, Failure(error))
        sys.exit(1)


def _serve(team: Any, options: argparse.Namespace) -> None:
    """What a member does that is not the first. InputError: what stopped it, and who it is."""
    from . import refine
    from .records.errors import InputError
    try:
        refine.serve(team, options.device, options.threads)
    except Exception as failure:
        error = described(failure, "align")
        raise InputError(error.problem, f"{error.source} ({team.name()})", error.remedy) from failure


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


def run_film(options: argparse.Namespace) -> None:
    _check_run(options)
    from .bodies.film import film
    film(options.run, options.rest, options.frames, options.axes, options.threads)


def run_rigidity(options: argparse.Namespace) -> None:
    _check_run(options)
    from .rigidity.rigidity import rigidity
    rigidity(options.run, options.cells, options.particles)


def run_outline(options: argparse.Namespace) -> None:
    from .rigidity.outline import outline
    outline(options.half_map_1, options.half_map_2, options.mask)


def run_compose(options: argparse.Namespace) -> None:
    from .bodies.compose import compose
    forget_error(options)
    compose(options.runs, options.output, options.frame, options.threads)


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
    forget_error(options)


def _print_json(content: Any) -> None:
    # ASCII, so that it can be parsed whatever encoding the shell has
    print(json.dumps(content, indent=1))
