"""The outer loop: the verbs of the tracked steps, each stateless on the run folder."""
from __future__ import annotations

import numpy as np

from .align import align_half
from .files import ImageReader, read_map, write_map
from .kernels.device import choose_device
from .merge import merge_halves
from .plan import search_plan
from .prepare import prepare as prepare
from .progress import ProgressBar, say
from .records import Settings
from .results import write_results
from .run_folder import RunFolder, read_json, write_json
from .selftest import ensure_tested
from .state import load_motion, load_noise, load_particles, load_poses, measured, save_arrays, worker_count


def refine(particles: str, half_map_1: str, half_map_2: str, mask: str, output: str, settings: Settings,
           device: str = "auto", threads: int = 0, mode: str = "new") -> RunFolder:
    """A whole local refinement: prepare, iterate to convergence, write the results.

    Parameters
    ----------
    particles, half_map_1, half_map_2, mask : paths of the inputs.  output : the run folder.
    device : "auto", "cpu", "cuda" or "cuda:N".  threads : 0 = all available.
    mode : "new", "overwrite" or "continue".

    Raises
    ------
    InputError : before any computing, one sentence on what is wrong and what to do.
    """
    run = prepare(particles, half_map_1, half_map_2, mask, output, settings, device, threads, mode)
    for k in range(run.iterations_done() + 1, settings.max_iterations + settings.extra_final_passes + 1):
        if finished(run, k):
            break
        for half in (1, 2):
            align(str(run.path), k, half, device, threads)
        merge(str(run.path), k, threads)
    finish(str(run.path), threads)
    return run


def finished(run: RunFolder, iteration: int) -> bool:
    """True if the refinement stopped before this iteration: converged (and its extra passes done), or at the most."""
    settings = read_json(run.settings)
    extra = settings["extra_final_passes"]
    if iteration > settings["max_iterations"] + extra:
        return True
    return any(read_json(run.iteration_done(k))["converged"]
               for k in range(iteration - extra) if run.iteration_done(k).exists())


def align(run: str, iteration: int, half: int, device: str = "auto", threads: int = 0) -> None:
    """Align the particles of one half-set and reconstruct its map; opens nothing of the other half."""
    folder = RunFolder(run)
    if finished(folder, iteration):
        say(f"iteration {iteration}: the refinement has stopped, nothing to do")
        return
    if folder.half_done(iteration, half).exists():
        say(f"iteration {iteration} half {half}: done before")
        return
    chosen = choose_device(device)
    say(f"iteration {iteration} half {half}: on {chosen.description}")
    ensure_tested(chosen)
    with measured() as cost:
        resolved = read_json(folder.input)["resolved"]
        everything = load_particles(folder)
        row = np.flatnonzero(everything.half_set == half)
        particles = everything.take(row)
        before = read_json(folder.iteration_done(iteration - 1))
        mask, _ = read_map(folder.mask_in_use(iteration - 1))
        reference_map, _ = read_map(folder.reference(iteration - 1, half))
        motion = load_motion(folder, iteration - 1, half)
        plan = search_plan(resolved, particles, before["align_resolution_angstrom"],
                           None if motion is None else motion.covariance)
        bar = ProgressBar(f"iteration {iteration} half {half}: align and insert", len(particles))
        with ImageReader(particles) as reader:
            result = align_half(particles, row, reader.read, reference_map, mask,
                                load_noise(folder, iteration - 1, half), plan,
                                load_poses(folder, iteration - 1, half), worker_count(threads), bar.update, chosen)
        folder.iteration(iteration).mkdir(exist_ok=True)
        write_map(folder.half_map(iteration, half), result.half_map, particles.pixel_size)
        save_arrays(folder.poses(iteration, half), **result.poses.columns())
        save_arrays(folder.noise(iteration, half), power=result.noise_power)
        if result.motion is not None:
            save_arrays(folder.motion(iteration, half), **result.motion.columns())
    write_json(folder.half_done(iteration, half), dict(
        iteration=iteration, half=half, particles=len(particles), phase_seconds=result.phase_seconds,
        device=chosen.description, **cost))


def merge(run: str, iteration: int, threads: int = 0) -> None:
    """FSC of the two half-maps, the references of the next iteration, and whether to go on."""
    folder = RunFolder(run)
    if finished(folder, iteration):
        say(f"iteration {iteration}: the refinement has stopped, nothing to do")
        return
    if folder.iteration_done(iteration).exists():
        say(f"iteration {iteration}: merged before")
        return
    with measured() as cost:
        decision = merge_halves(folder, iteration, worker_count(threads))
    write_json(folder.iteration_done(iteration), dict(decision, **cost))
    change = decision["pose_change"]
    say(f"iteration {iteration}: {decision['resolution_angstrom']['corrected']:.2f} Å (FSC 0.143, corrected), "
        f"median change {change['rotation_median_deg']:.2f}° and {change['shift_median_angstrom']:.2f} Å"
        + (f"; {decision['stop_reason']}" if decision["stop_reason"] else ""))


def finish(run: str, threads: int = 0) -> None:
    """Write RUN/final and the report from the best iteration."""
    write_results(RunFolder(run), worker_count(threads))
