"""What each verb of the command line does. What it needs is imported when it is called: `settings` waits for nothing
heavy."""
from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from contextlib import contextmanager
from typing import Any, Dict, Iterator

from .failures import described, forget_error


def run_settings(options: argparse.Namespace) -> None:
    from .records.codec import as_json
    from .records.settings import Settings
    _print_json(as_json(Settings.describe()))


def run_refine(options: argparse.Namespace) -> None:
    from . import refine
    from .workers.assemble import assembled
    with assembled(options.device, options.threads, options.processes) as (team, options.device):
        if not team.is_first:
            _serve(team, options)
            return
        with _naming(team):
            if len(options.mask) == 1:
                _check_settings_of(options, 1)
                options.mask, options.settings = options.mask[0], next(iter(options.settings), None)
                refine.refine(**_checked_arguments(options), team=team)
            else:
                from .refine_bodies import refine_bodies
                refine_bodies(**_arguments_of_bodies(options), team=team)


def run_prepare(options: argparse.Namespace) -> None:
    arguments = _checked_arguments(options)
    from . import refine
    refine.prepare(**arguments)


def _checked_arguments(options: argparse.Namespace) -> Dict[str, Any]:
    """The arguments of `refine.prepare` and `refine.refine`, once the output folder may be written to."""
    from .io.cryosparc import is_cs
    from .io.run_folder import RunFolder
    if is_cs(options.particles):
        options.particles = _star_of_cs(options, f"{os.path.normpath(options.output)}_particles.star")
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


def _arguments_of_bodies(options: argparse.Namespace) -> Dict[str, Any]:
    """The arguments of `refine_bodies`, which itself looks at the output folder."""
    from .io.cryosparc import is_cs
    from .io.run_folder import BodiesFolder
    from .prepare.arguments import check_output, read_settings
    _check_settings_of(options, len(options.mask))
    if is_cs(options.particles):
        options.particles = _star_of_cs(options, f"{os.path.normpath(options.output)}_particles.star")
    check_output(options.output, options.mode, {})
    forget_error(options)
    given = list(options.settings) or [None]
    settings = []
    for number, source in enumerate(given * len(options.mask) if len(given) == 1 else given, 1):
        before = BodiesFolder(options.output).body(number).settings
        use_before = source is None and options.mode == "continue" and before.exists()
        settings.append(read_settings(before if use_before else source))
    return dict(particles=options.particles, half_map_1=options.half_map_1, half_map_2=options.half_map_2,
                masks=options.mask, output=options.output, settings=settings, device=options.device,
                threads=options.threads, mode=options.mode)


def _check_settings_of(options: argparse.Namespace, bodies: int) -> None:
    from .records.errors import InputError
    if len(options.settings) not in (0, 1, bodies):
        raise InputError(f"is given {len(options.settings)} times for {bodies} "
                         f"{'mask' if bodies == 1 else 'masks'}", "--settings",
                         "give it once for all masks, or once for each of them")


def _star_of_cs(options: argparse.Namespace, star: str) -> str:
    """The STAR file of a .cs file."""
    from .io.cryosparc import star_of_cs
    from .progress import say
    for text in star_of_cs(options.particles, options.passthrough, star):
        say(text)
    return star


def run_forecast(options: argparse.Namespace) -> None:
    from tempfile import TemporaryDirectory

    from .forecast.forecast import Inputs, forecast
    from .io.cryosparc import is_cs
    from .prepare.arguments import check_forecast_file, read_settings
    from .records.codec import as_json
    if options.json is not None:
        check_forecast_file(options.json)
    with TemporaryDirectory() as folder:
        particles = options.particles
        if is_cs(particles):
            particles = _star_of_cs(options, os.path.join(folder, "particles.star"))
        given = Inputs(particles, options.half_map_1, options.half_map_2, read_settings(options.settings),
                       options.sample, options.resolution)
        found = forecast(given, options.mask, options.device, options.threads)
    if options.json is not None:
        from .io.run_folder import write_json
        write_json(options.json, {"forecasts": [as_json(one) for one in found]})


def run_align(options: argparse.Namespace) -> None:
    from . import refine
    from .workers.assemble import assembled
    with assembled(options.device, options.threads, options.processes) as (team, options.device):
        if team.is_first:
            _check_run(options)
            halves = (1, 2) if options.half == "both" else (int(options.half),)
            with _naming(team):
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


@contextmanager
def _naming(team: Any) -> Iterator[None]:
    """What stops the first member of a team and is its machine's fault says which machine that is."""
    from .records.errors import InputError
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, MemoryError) as failure:
        if team.size == 1:
            raise
        error = described(failure, "align")
        raise InputError(error.problem, f"{error.source} ({team.name()})", error.remedy) from failure


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
    from .io.run_folder import BodiesFolder, RunFolder
    from .prepare.arguments import OutputError
    run, bodies = RunFolder(options.run), BodiesFolder(options.run).bodies()
    if bodies:
        raise OutputError(f"holds a run of {len(bodies)} masks, each in a folder of its own",
                          f"run folder {options.run}", f"give one of these folders, as {bodies[0].path}")
    if run.iterations_done() < 0:
        raise OutputError("holds no prepared run", f"run folder {options.run}", "run the verb prepare first")
    forget_error(options)


def _print_json(content: Any) -> None:
    # ASCII, so that it can be parsed whatever encoding the shell has
    print(json.dumps(content, indent=1))
