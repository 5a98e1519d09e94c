"""Several masks in one run: RUN/body_N is an ordinary run with mask N, and RUN/final/composite joins them.

The bodies have the same particles and half-sets. Images are checked once, and in each iteration they are read, freed of
their background and transformed once for all bodies. Each is aligned to images without the others, where the iteration
before found these (align/other_bodies.py); with subtract_bodies off nothing of one body enters another, and each has
the bits of a run of its own. A body that has converged is left out of the iterations of the others.
"""
from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

from .align.half_set import batch_size
from .align.memory import GIB, MemoryNeed, free_host_memory, host_memory, together
from .bodies.compose import compose
from .bodies.joint import joint_motion
from .bodies.layout import layout_of, layout_words
from .inputs.belonging import check_belonging
from .inputs.checks import check_readable
from .inputs.exclude import exclude_unusable
from .io.mrc import read_map
from .io.run_folder import BodiesFolder, RunFolder, remove
from .io.run_store import load_input, load_particles, save_record
from .kernels.device import Device, choose_device
from .kernels.host import worker_count
from .prepare.arguments import OutputError, check_output, check_same_run
from .prepare.prepare import clear, finest_need
from .progress import say, speaking_of
from .records.bodies import ALIKE_IN_ALL, Bodies
from .records.errors import InputError
from .records.settings import Settings
from .refine import align_bodies, finish, merge, prepare
from .team import ALONE, Team

OF_PARTICLES = ("half_set", "stack", "slice", "optics_group", "rotation", "shift_px")


def refine_bodies(particles: str, half_map_1: str, half_map_2: str, masks: Sequence[str], output: str,  # noqa: PLR0913
                  settings: Sequence[Settings], device: str = "auto", threads: int = 0, mode: str = "new",
                  team: Team = ALONE) -> BodiesFolder:
    """A local refinement of several bodies; `refine.refine` has the arguments.

    Parameters
    ----------
    masks : one of each body; the composite is in the frame of the first.  settings : of each body.

    Raises
    ------
    InputError : before any computing, one sentence on what is wrong and what to do.
    """
    folder = BodiesFolder(output)
    maps = dict(particles=particles, half_map_1=half_map_1, half_map_2=half_map_2)
    check_bodies(masks, settings)
    begin(folder, maps, masks, mode)
    check_readable(particles, half_map_1, masks, settings[0])
    look, belong, runs = once(exclude_unusable), once(check_belonging), []
    before = [folder.body(number).iterations_done() for number in range(1, len(masks) + 1)]
    for number, mask in enumerate(masks, 1):
        with speaking_of(f"body {number}"):
            runs.append(prepare(**maps, mask=mask, output=str(folder.body(number).path), settings=settings[number - 1],
                                device=device, threads=threads, mode="continue" if mode == "continue" else "new",
                                look=look, belong=belong))
    check_same_particles(runs)
    name_each_other(runs)
    forget_dependent(runs, before)
    if not all(run.results_complete() for run in runs):
        remove(folder.record)
    said = layout_words(layout_of(runs, worker_count(threads)))
    for text in said.words:
        say(text)
    for text in said.warnings:
        say(f"warning: {text}")
    groups = groups_of(runs, [choose_device(word) for word in device.split(",")])
    iterate(runs, groups, (device, threads), team)
    for number, run in enumerate(runs, 1):
        with speaking_of(f"body {number}"):
            finish(str(run.path), threads, device)
    if folder.record.exists():
        say("composite: written before")
        return folder
    write_results(folder, masks, said, threads)
    return folder


def iterate(runs: Sequence[RunFolder], groups: Sequence[Sequence[RunFolder]], how: Tuple[str, int], team: Team) -> None:
    """All iterations of all bodies; the runs of a group are aligned together, on ``how`` (device, threads)."""
    device, threads = how
    k = min(run.iterations_done() for run in runs) + 1
    while not all(run.stopped_before(k) for run in runs):
        for group in groups:
            going = [run for run in group if not run.stopped_before(k) and run.iterations_done() < k]
            if going:
                with speaking_of(names(runs, going)):
                    align_bodies([str(run.path) for run in going], k, (1, 2), device, threads, team)
            for run in going:
                with speaking_of(names(runs, [run])):
                    merge(str(run.path), k, threads, device)
        k += 1


def names(runs: Sequence[RunFolder], some: Sequence[RunFolder]) -> str:
    numbers = [str(runs.index(run) + 1) for run in some]
    return f"body {numbers[0]}" if len(numbers) == 1 else f"bodies {', '.join(numbers[:-1])} and {numbers[-1]}"


def write_results(folder: BodiesFolder, masks: Sequence[str], said: Bodies, threads: int) -> None:
    """The composite, links to the results of the bodies, and the record of the run, last."""
    runs = [folder.body(number) for number in range(1, len(masks) + 1)]
    remove(folder.composite)
    compose([run.path for run in runs], folder.composite, 1, threads)
    for number, run in enumerate(runs, 1):
        link = folder.link(number)
        remove(link)
        try:
            link.symlink_to(os.path.join("..", run.path.name, "final"), target_is_directory=True)
        except OSError as error:  # a file system without links
            say(f"{link} could not be made ({error.strerror}); the results of body {number} are in {run.path}/final")
    save_record(folder.record, replace(said, motion=joint_motion([run.path for run in runs])))
    say(f"results of {len(runs)} bodies are in {folder.path / 'final'}")


# ---------------------------------------------------------------- before anything is computed

def check_bodies(masks: Sequence[str], settings: Sequence[Settings]) -> None:
    """InputError for a mask given twice, and for settings that must be the same for all bodies."""
    paths = [os.path.realpath(mask) for mask in masks]
    for mask, path in zip(masks, paths):
        if paths.count(path) > 1:
            raise InputError("is given twice", f"mask {mask}", "give each body its own mask")
    for name in ALIKE_IN_ALL:
        values = [getattr(one, name) for one in settings]
        if any(value != values[0] for value in values):
            raise InputError(f"setting {name} differs between the bodies", "settings",
                             "give it the same value for all, or refine them in runs of their own")


def begin(folder: BodiesFolder, maps: Dict[str, str], masks: Sequence[str], mode: str) -> None:
    """Make the folder ready, or raise OutputError; never touches foreign files."""
    given: Dict[str, Any] = dict(maps, **{f"mask {number}": mask for number, mask in enumerate(masks, 1)})
    check_output(folder.path, mode, given)
    alone, there = RunFolder(folder.path), folder.bodies()
    if mode == "continue":
        if alone.settings.exists() or alone.input.exists():
            raise OutputError("holds a run of one mask", f"output {folder.path}",
                              "continue with this mask, or give another name")
        if len(there) > len(masks):
            raise OutputError(f"holds a run of {len(there)} masks", f"output {folder.path}",
                              "continue with the same masks, or give another name")
        for number, mask in enumerate(masks, 1):
            check_same_run(folder.body(number), dict(maps, mask=mask))
    elif mode == "overwrite":
        clear(alone)
    folder.path.mkdir(parents=True, exist_ok=True)


def once(look: Callable[..., Any]) -> Callable[..., Any]:
    """``look`` at what all bodies have in common, that does its work for the first one and tells the others what it
    saw."""
    seen: List[Any] = []

    def remembered(*given: Any) -> Any:
        if not seen:
            seen.append(look(*given))
        return seen[0]
    return remembered


def check_same_particles(runs: Sequence[RunFolder]) -> None:
    """InputError unless the prepared runs have the same particles in the same half-sets."""
    first = load_particles(runs[0])
    for run in runs[1:]:
        other = load_particles(run)
        for name in OF_PARTICLES:
            if not np.array_equal(getattr(first, name), getattr(other, name)):
                raise InputError(f"its particles are not those of {runs[0].path} ({name} differs)", f"run {run.path}",
                                 "start the run again with --overwrite")


def name_each_other(runs: Sequence[RunFolder]) -> None:
    """Write into the input of each run which the other bodies are, so that every verb on it knows."""
    for run in runs:
        given, others = load_input(run), tuple(other.path.name for other in runs if other is not run)
        if given.other_bodies != others:
            save_record(run.input, replace(given, other_bodies=others))


def forget_dependent(runs: Sequence[RunFolder], before: Sequence[int]) -> None:
    """Remove the iterations of bodies that had others subtracted, if one of these is done again from an iteration
    ``before``: with other settings it will be elsewhere."""
    if not any(run.iterations_done() < count for run, count in zip(runs, before)):
        return
    for run in runs:
        if load_input(run).resolved.subtract_bodies:
            for half in (1, 2):
                run.forget_align(1, half)


def groups_of(runs: Sequence[RunFolder], devices: Sequence[Device]) -> List[List[RunFolder]]:
    """The runs that are aligned together: all, or each alone if the memory does not hold what all take."""
    particles = len(load_particles(runs[0]))
    for device in devices:
        need = together([need_of_run(run, runs, device) for run in runs])
        if device.on_gpu:
            taken, free = need.least, float(device.memory_bytes())
        else:
            taken, free = host_memory(need, batch_size(need, device), particles), free_host_memory() or np.inf
        if taken > free:
            say(f"the memory holds one body at a time (all would take {taken / GIB:.1f} GiB, {free / GIB:.1f} GiB are "
                "free): images are read once for each body")
            return [[run] for run in runs]
    return [list(runs)]


def need_of_run(run: RunFolder, runs: Sequence[RunFolder], device: Device) -> MemoryNeed:
    resolved = load_input(run).resolved
    others = [read_map(other.mask)[0] for other in runs if other is not run and resolved.subtract_bodies]
    return finest_need(load_particles(run), read_map(run.mask)[0], resolved, device, others)
