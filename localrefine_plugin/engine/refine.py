"""The outer loop: the verbs of the tracked steps, each stateless on the run folder."""
from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, List, Sequence

import numpy as np

from .align.half_set import HalfTask, align_together
from .align.of_run import half_task, save_half
from .bodies.complete import completed_half_maps
from .finish.results import write_results
from .forecast.of_run import forecast_after, forecast_before
from .inputs.belonging import check_belonging
from .inputs.changes import check_stacks
from .inputs.checks import Look
from .inputs.exclude import exclude_unusable
from .io.mrc import ImageReader
from .io.run_folder import RunFolder, remove_temporary
from .io.run_store import load_input, save_record, stored_half_set
from .kernels.device import Device, choose_device
from .kernels.host import few_threads, measured, reused_memory, worker_count
from .merge.merge import merge_halves
from .prepare.prepare import Belong
from .prepare.prepare import prepare as prepare_run
from .progress import ProgressBar, be_silent, say
from .records.errors import InputError
from .records.iteration import FSC_THRESHOLD, HalfRecord, IterationRecord
from .records.settings import Settings
from .team import ALONE, Team
from .workers.selftest import ensure_tested

READ_THREADS = 4  # for a GPU, which takes images faster than one thread reads them; a CPU computes meanwhile


def refine(particles: str, half_map_1: str, half_map_2: str, mask: str, output: str, settings: Settings,  # noqa: PLR0913
           device: str = "auto", threads: int = 0, mode: str = "new", team: Team = ALONE) -> RunFolder:
    """A whole local refinement: prepare, iterate to convergence, write the results.

    Parameters
    ----------
    particles, half_map_1, half_map_2, mask : paths of the inputs.  output : the run folder.
    device : "auto", "cpu", "cuda" or "cuda:N"; the GPUs of the members of a team, "cuda:N,cuda:M,…".
    threads : 0 = all available.  mode : "new", "overwrite" or "continue".
    team : those who align with this process, its first member (workers/assemble.py).

    Raises
    ------
    InputError : before any computing, one sentence on what is wrong and what to do.
    """
    run = prepare(particles, half_map_1, half_map_2, mask, output, settings, device, threads, mode)
    for k in range(run.iterations_done() + 1, settings.max_iterations + settings.extra_final_passes + 1):
        if run.stopped_before(k):
            break
        align(str(run.path), k, (1, 2), device, threads, team)
        merge(str(run.path), k, threads, device)
    finish(str(run.path), threads, device)
    return run


def prepare(particles: str, half_map_1: str, half_map_2: str, mask: str, output: str, settings: Settings,  # noqa: PLR0913
            device: str = "auto", threads: int = 0, mode: str = "new", look: Look = exclude_unusable,
            belong: Belong = check_belonging) -> RunFolder:
    """`prepare.prepare`, and what a run of many particles is expected to reach, on the first device."""
    run = prepare_run(particles, half_map_1, half_map_2, mask, output, settings, device, threads, mode, look, belong)
    chosen = choose_device(device.split(",")[0])
    forecast_before(run, chosen, worker_count(threads))
    chosen.release()
    return run


def align(run: str, iteration: int, halves: Sequence[int], device: str = "auto", threads: int = 0,
          team: Team = ALONE) -> None:
    """Align the particles of half-sets and reconstruct their maps, with the other members of the team; ``device`` as in
    `refine`."""
    align_bodies([run], iteration, halves, device, threads, team)


def align_bodies(runs: Sequence[str], iteration: int, halves: Sequence[int], device: str = "auto", threads: int = 0,
                 team: Team = ALONE) -> None:
    """`align` of runs of the same particles with other masks, whose images are read and transformed once for all."""
    folders = [folder for folder in map(RunFolder, runs) if not folder.stopped_before(iteration)]
    if not folders:
        say(f"iteration {iteration}: the refinement has stopped, nothing to do")
        return
    todo = []
    for half in halves:
        waiting = [str(folder.path.resolve()) for folder in folders if not folder.half_complete(iteration, half)]
        if waiting:
            todo.append(HalfOrder(half, waiting))
        else:
            say(f"iteration {iteration} half {half}: done before")
    if not todo:
        return
    if "," in device and team.size == 1:
        raise ValueError(f"{device} needs a team (workers/assemble.py)")
    for folder in folders:
        require(folder, iteration, folder.complete(folder.iteration_done(iteration - 1)), f"iteration {iteration - 1}")
    for part in todo:
        for folder in part.folders:
            folder.forget_align(iteration, part.half)
    chosen = choose_device(device.split(",")[0])
    ensure_tested(chosen)
    order = AlignOrder(iteration, todo, uuid.uuid4().hex)
    team.order(order)
    for part in todo:
        align_half_set(order, part, chosen, threads, team)
    team.done()


@dataclass(frozen=True)
class HalfOrder:
    """A half-set to be aligned in run folders that have the same particles."""

    half: int
    runs: List[str]

    @property
    def folders(self) -> List[RunFolder]:
        return [RunFolder(run) for run in self.runs]


@dataclass(frozen=True)
class AlignOrder:
    """What the members of a team are told: which half-sets of which runs, and a word for their claims that is used
    once."""

    iteration: int
    parts: List[HalfOrder]
    word: str

    def claims(self, part: HalfOrder) -> Path:
        return part.folders[0].iteration(self.iteration) / f".half_{part.half}_claims.tmp.{self.word}"


def serve(team: Any, device: str, threads: int) -> None:
    """What a member of a team does that is not the first, until it is told that there is no more."""
    be_silent()
    chosen = choose_device(device)
    ensure_tested(chosen)

    def work(order: AlignOrder) -> None:
        for part in order.parts:
            align_half_set(order, part, chosen, threads, team)
    team.serve(work)


def align_half_set(order: AlignOrder, part: HalfOrder, chosen: Device, threads: int, team: Team) -> None:
    """The part of this member in the alignment of a half-set; the first writes the results. Opens nothing of the other
    half."""
    folders, iteration, half, workers = part.folders, order.iteration, part.half, team.share(worker_count(threads))
    with measured() as cost, few_threads(workers):
        given = load_input(folders[0])
        if team.is_first and chosen.word not in given.device_word.split(","):  # those were named at the beginning
            say(f"iteration {iteration} half {half}: on {chosen.description}")
        row, particles = stored_half_set(folders[0], half)
        bar = ProgressBar(f"iteration {iteration} half {half}: align and insert", len(particles))
        of_member = np.unique(particles.stack)[team.rank::team.size]  # each looks at its share of the stacks
        check_stacks(folders[0], given, of_member)
        with ImageReader(particles, min(READ_THREADS, workers) if chosen.on_gpu else 1) as reader:
            tasks = [HalfTask(half_set, plan, chosen, workers, team, order.claims(part)) for half_set, plan in (
                half_task(folder, iteration, half, (row, particles), reader) for folder in folders)]
            results = align_together(tasks, bar.update)
        check_stacks(folders[0], given, of_member)  # what was read may have been another file's; all have read it
        team.collect(None)  # no other member has found one
        if results is None:
            return
        saved = [save_half(folder, iteration, half, result, particles.pixel_size)
                 for folder, result in zip(folders, results)]
    share = replace(cost, wall_seconds=cost.wall_seconds / len(folders), cpu_seconds=cost.cpu_seconds / len(folders))
    for folder, result, files in zip(folders, results, saved):
        save_record(folder.half_done(iteration, half), HalfRecord(
            iteration=iteration, half=half, particles=len(particles), verdict=result.verdict,
            phase_seconds=result.phase_seconds, device=chosen.description, processes=team.size,
            files=folder.sizes(files)), share)


def require(folder: RunFolder, iteration: int, complete: bool, what: str) -> None:
    """Raise InputError unless the step before this one is complete."""
    if not complete:
        raise InputError(f"{what} is not complete, iteration {iteration} needs it", f"run folder {folder.path}",
                         "run its verbs first, or refine --continue")


@reused_memory()
def merge(run: str, iteration: int, threads: int = 0, device: str = "auto") -> None:
    """FSC of the two half-maps, the references of the next iteration, and whether to go on; on the first device."""
    folder = RunFolder(run)
    if folder.stopped_before(iteration):
        say(f"iteration {iteration}: the refinement has stopped, nothing to do")
        return
    if folder.iterations_done() >= iteration:
        say(f"iteration {iteration}: merged before")
        return
    require(folder, iteration, folder.iterations_done() == iteration - 1, f"iteration {iteration - 1}")
    for half in (1, 2):
        require(folder, iteration, folder.half_complete(iteration, half), f"half {half}")
    folder.forget_merge(iteration)
    remove_temporary(folder.iteration(iteration))
    chosen = choose_device(device.split(",")[0])
    with measured() as cost:
        merged = merge_halves(folder, iteration, worker_count(threads), chosen)
    chosen.release()
    save_record(folder.iteration_done(iteration), merged, cost)
    say(iteration_line(merged))
    forecast_after(folder, iteration, chosen, worker_count(threads))
    chosen.release()


def iteration_line(done: IterationRecord) -> str:
    """What the log says of an iteration."""
    line = f"iteration {done.iteration}: {done.resolution_angstrom['corrected']:.2f} Å (FSC {FSC_THRESHOLD}, corrected)"
    change = done.pose_change
    if change is not None:
        line += f", median change {change.rotation_median_deg:.2f}° and {change.shift_median_angstrom:.2f} Å"
    return f"{line}; {done.stop_reason}" if done.stop_reason else line


@reused_memory()
def finish(run: str, threads: int = 0, device: str = "auto") -> None:
    """Write RUN/final and the report from the best iteration; maps are worked on on the first device."""
    folder = RunFolder(run)
    if folder.results_complete():
        say("results: written before")
        return
    require(folder, 1, folder.iterations_done() > 0, "iteration 1")
    chosen = choose_device(device.split(",")[0])
    write_results(folder, worker_count(threads), chosen, completed_half_maps(folder))
    chosen.release()
