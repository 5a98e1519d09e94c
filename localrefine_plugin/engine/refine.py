"""The outer loop: the verbs of the tracked steps, each stateless on the run folder."""
from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np

from .align.half_set import HalfResult, HalfSet, align_half
from .align.of_run import errors_of_reference
from .align.search_plan import search_plan
from .finish.results import write_results
from .inputs.changes import check_stacks
from .io.mrc import ImageReader, read_map, write_map
from .io.run_folder import RunFolder, remove_temporary
from .io.run_store import (
    load_input,
    load_iteration,
    load_motion,
    load_noise,
    load_particles,
    load_poses,
    save_arrays,
    save_record,
)
from .kernels.device import choose_device
from .kernels.host import measured, worker_count
from .merge.merge import merge_halves
from .prepare.prepare import prepare as prepare
from .progress import ProgressBar, say
from .records.errors import InputError
from .records.iteration import FSC_THRESHOLD, HalfRecord, IterationRecord
from .records.settings import Settings
from .workers.selftest import ensure_tested
from .workers.two_gpus import align_on_two_gpus

READ_THREADS = 4  # for a GPU, which takes images faster than one thread reads them; a CPU computes meanwhile


def refine(particles: str, half_map_1: str, half_map_2: str, mask: str, output: str, settings: Settings,  # noqa: PLR0913
           device: str = "auto", threads: int = 0, mode: str = "new") -> RunFolder:
    """A whole local refinement: prepare, iterate to convergence, write the results.

    Parameters
    ----------
    particles, half_map_1, half_map_2, mask : paths of the inputs.  output : the run folder.
    device : "auto", "cpu", "cuda", "cuda:N", or "cuda:N,cuda:M" for a GPU each half-set.  threads : 0 = all available.
    mode : "new", "overwrite" or "continue".

    Raises
    ------
    InputError : before any computing, one sentence on what is wrong and what to do.
    """
    run = prepare(particles, half_map_1, half_map_2, mask, output, settings, device, threads, mode)
    for k in range(run.iterations_done() + 1, settings.max_iterations + settings.extra_final_passes + 1):
        if run.stopped_before(k):
            break
        align_both(str(run.path), k, device, threads)
        merge(str(run.path), k, threads, device)
    finish(str(run.path), threads, device)
    return run


def align_both(run: str, iteration: int, device: str = "auto", threads: int = 0) -> None:
    """Align both half-sets: one after the other, or at the same time on two GPUs."""
    devices = device.split(",")
    if len(devices) == 1:
        for half in (1, 2):
            align(run, iteration, half, device, threads)
    elif not RunFolder(run).stopped_before(iteration):
        align_on_two_gpus(run, iteration, devices, worker_count(threads))


def align(run: str, iteration: int, half: int, device: str = "auto", threads: int = 0) -> None:
    """Align the particles of one half-set and reconstruct its map; opens nothing of the other half."""
    folder = RunFolder(run)
    if folder.stopped_before(iteration):
        say(f"iteration {iteration}: the refinement has stopped, nothing to do")
        return
    if folder.half_complete(iteration, half):
        say(f"iteration {iteration} half {half}: done before")
        return
    require(folder, iteration, folder.complete(folder.iteration_done(iteration - 1)), f"iteration {iteration - 1}")
    folder.forget_align(iteration, half)
    chosen = choose_device(device)
    ensure_tested(chosen)
    with measured() as cost:
        given = load_input(folder)
        resolved = given.resolved
        if chosen.word not in given.device_word.split(","):  # those of the run were named at its beginning
            say(f"iteration {iteration} half {half}: on {chosen.description}")
        everything = load_particles(folder)
        row = np.flatnonzero(everything.half_set == half)
        particles = everything.take(row)
        before = load_iteration(folder, iteration - 1)
        mask, _ = read_map(folder.mask_in_use(iteration - 1))
        reference_map, _ = read_map(folder.reference(iteration - 1, half))
        motion = load_motion(folder, iteration - 1, half)
        plan = search_plan(resolved, particles, before.align_resolution_angstrom,
                           None if motion is None else motion.covariance)
        errors = errors_of_reference(folder, iteration - 1, half, reference_map, mask, plan.centre)
        bar = ProgressBar(f"iteration {iteration} half {half}: align and insert", len(particles))
        check_stacks(folder, given, particles.stack)
        with ImageReader(particles, min(READ_THREADS, worker_count(threads)) if chosen.on_gpu else 1) as reader:
            task = HalfSet(particles, row, reader.read, reference_map, mask, load_noise(folder, iteration - 1, half),
                           load_poses(folder, iteration - 1, half), errors,
                           read_map(folder.static_part(half))[0] if resolved.subtract else None)
            result = align_half(task, plan, chosen, worker_count(threads), bar.update)
        check_stacks(folder, given, particles.stack)  # what was read may have been another file's
        files = save_half(folder, iteration, half, result, particles.pixel_size)
    save_record(folder.half_done(iteration, half), HalfRecord(
        iteration=iteration, half=half, particles=len(particles), verdict=result.verdict,
        phase_seconds=result.phase_seconds,
        device=chosen.description, files=folder.sizes(files)), cost)


def save_half(folder: RunFolder, iteration: int, half: int, result: HalfResult, pixel_size: float) -> List[Path]:
    """Write what an align step found; returns the files."""
    folder.iteration(iteration).mkdir(exist_ok=True)
    files = [folder.half_map(iteration, half), folder.poses(iteration, half), folder.noise(iteration, half)]
    write_map(files[0], result.half_map, pixel_size)
    save_arrays(files[1], **result.poses.columns())
    save_arrays(files[2], power=result.noise_power, accumulator_mean=result.accumulator_mean)
    if result.motion is not None:
        files.append(folder.motion(iteration, half))
        save_arrays(files[3], **result.motion.columns())
    return files


def require(folder: RunFolder, iteration: int, complete: bool, what: str) -> None:
    """Raise InputError unless the step before this one is complete."""
    if not complete:
        raise InputError(f"{what} is not complete, iteration {iteration} needs it", f"run folder {folder.path}",
                         "run its verbs first, or refine --continue")


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


def iteration_line(done: IterationRecord) -> str:
    """What the log says of an iteration."""
    line = f"iteration {done.iteration}: {done.resolution_angstrom['corrected']:.2f} Å (FSC {FSC_THRESHOLD}, corrected)"
    change = done.pose_change
    if change is not None:
        line += f", median change {change.rotation_median_deg:.2f}° and {change.shift_median_angstrom:.2f} Å"
    return f"{line}; {done.stop_reason}" if done.stop_reason else line


def finish(run: str, threads: int = 0, device: str = "auto") -> None:
    """Write RUN/final and the report from the best iteration; maps are worked on on the first device."""
    folder = RunFolder(run)
    if folder.results_complete():
        say("results: written before")
        return
    require(folder, 1, folder.iterations_done() > 0, "iteration 1")
    chosen = choose_device(device.split(",")[0])
    write_results(folder, worker_count(threads), chosen)
    chosen.release()
