"""The first step: check everything, settle what "auto" means, write the input as iteration 0."""
from __future__ import annotations

import os
import platform
import sys
from dataclasses import replace
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np

from ..align.half_set import batch_size
from ..align.memory import MemoryNeed, check_fits, check_host, host_memory, need_of, prediction
from ..align.search_plan import resolve, search_plan
from ..align.static_part import static_parts
from ..inputs.belonging import Belonging, check_belonging
from ..inputs.changes import check_continued, file_states, keep_inputs
from ..inputs.checks import CheckedInputs, Look, check_inputs
from ..inputs.exclude import exclude_unusable
from ..inputs.first_look import FirstLook, first_warnings, look_at, view_warnings
from ..io.mrc import write_map
from ..io.run_folder import BodiesFolder, RunFolder, remove, remove_temporary
from ..io.run_store import save_arrays, save_particles, save_record
from ..kernels.batches import evenly_spaced
from ..kernels.device import Device, array_module, choose_device, to_host
from ..kernels.host import measured, reused_memory, worker_count
from ..maps.fsc import five_curves, write_fsc
from ..maps.mask import mass_kda
from ..maps.reference_filter import joined
from ..model.fourier import lowpass_weight
from ..model.pixels import highest_shell
from ..progress import say
from ..records.errors import InputError
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings
from ..records.run_input import RunInput
from ..records.settings import Settings
from .arguments import check_output, check_same_run
from .continue_run import take_over

Belong = Callable[[CheckedInputs, ResolvedSettings, int], Belonging]
FIRST_IMAGES = 500  # per half-set: shells of a few hundred pixels times this many images


@reused_memory()
def prepare(particles: str, half_map_1: str, half_map_2: str, mask: str, output: str, settings: Settings,  # noqa: PLR0913
            device: str = "auto", threads: int = 0, mode: str = "new", look: Look = exclude_unusable,
            belong: Belong = check_belonging) -> RunFolder:
    """Check the inputs and write RUN with iteration 0; see refine.refine for the arguments, check_inputs for ``look``.
    ``belong`` : whether they belong together; as ``look``, a run of several masks asks it once.
    """
    run = RunFolder(output)
    paths = {name: os.path.realpath(path) for name, path in dict(
        particles=particles, half_map_1=half_map_1, half_map_2=half_map_2, mask=mask).items()}
    # a GPU that cannot be had stops us before the folder is touched
    devices = [choose_device(word) for word in device.split(",")]
    on = " and ".join(chosen.description for chosen in devices)
    say(f"alignment will run on {on}")
    if open_run(run, paths, settings, mode):
        return run
    workers, before = worker_count(threads), file_states(paths)
    with measured() as cost:
        say("checking particles, maps and mask")
        inputs = check_inputs(particles, half_map_1, half_map_2, mask, settings, workers, devices[0], look)
        on_device = array_module(inputs.halves.maps[0]).asarray(inputs.mask)
        curves = five_curves(inputs.halves, on_device, inputs.pixel_size, settings.seed, settings.fsc_randomise_below,
                             inputs.under_mask)
        resolved = resolve(settings, inputs.mask, curves.resolutions()["corrected"], inputs.pixel_size)
        try:
            belonging = belong(inputs, resolved, workers)
        except InputError:
            say_warnings(inputs.warnings)  # one of them may be the cause
            raise
        inputs = with_grey_scales(inputs, belonging.grey_scale)
        predicted = max(check_memory(inputs, resolved, chosen) for chosen in devices)
        looks, references = first_references(inputs, resolved, workers)
        resolved = replace(resolved, mask_mass_kda=mass_kda(inputs.mask, inputs.pixel_size),
                           expected_rotation_sd_deg=max(look.expected_rotation_sd_deg for look in looks),
                           expected_shift_sd_angstrom=max(look.expected_shift_sd_angstrom for look in looks))
        static = static_parts(inputs.halves.maps, on_device, inputs.pixel_size, curves.resolutions()["unmasked"],
                              workers) if settings.subtract else []
        warnings = [*inputs.warnings, *belonging.said, *view_warnings(inputs.particles, resolved),
                    *first_warnings(looks, inputs.mask, resolved, inputs.pixel_size)]
    scales = [look.scale for look in looks]
    run.iteration(0).mkdir(parents=True, exist_ok=True)
    keep_inputs(run, paths, inputs.particles.stacks, before)
    files = [run.mask, run.fsc(0), run.particles, run.given_particles, run.fingerprints]
    write_map(run.mask, inputs.mask, inputs.pixel_size)
    for half in (1, 2):
        write_map(run.reference(0, half), references[half - 1] * scales[half - 1], inputs.pixel_size)
        save_arrays(run.noise(0, half), power=looks[half - 1].noise_power)
        files += [run.reference(0, half), run.noise(0, half)]
        if settings.subtract:
            write_map(run.static_part(half), to_host(static[half - 1] * scales[half - 1]), inputs.pixel_size)
            files.append(run.static_part(half))
    write_fsc(run.fsc(0), curves)
    save_particles(run, inputs.particles)
    save_record(run.settings, settings)
    save_record(run.input, RunInput(
        **paths, versions=versions(), device=on, device_word=",".join(chosen.word for chosen in devices),
        box_size=inputs.particles.box_size, pixel_size=inputs.pixel_size, predicted_memory_mb=predicted / 2 ** 20,
        resolved=resolved, grey_scale=tuple(scales), warnings=tuple(warnings), excluded=inputs.excluded,
        optics=inputs.particles.optics, stacks=inputs.particles.stacks, other_bodies=()))
    save_record(run.iteration_done(0), replace(curves.record(0, resolved.initial_lowpass_angstrom),
                                               warnings=tuple(warnings), files=run.sizes(files)), cost)
    say(f"expected error of the poses after the first iteration, per axis: {resolved.expected_rotation_sd_deg:.1f}°, "
        f"{resolved.expected_shift_sd_angstrom:.1f} Å{resolved.counted_density}")
    say_warnings(warnings)
    return run


def say_warnings(warnings: Sequence[str]) -> None:
    for text in warnings:
        say(f"warning: {text}")


def with_grey_scales(inputs: CheckedInputs, scales: Sequence[float]) -> CheckedInputs:
    """The inputs with the grey scale of each optics group so many times what it was taken for."""
    optics = tuple(replace(group, grey_scale=group.grey_scale * scale)
                   for group, scale in zip(inputs.particles.optics, scales))
    return replace(inputs, particles=replace(inputs.particles, optics=optics))


def open_run(run: RunFolder, paths: Dict[str, str], settings: Settings, mode: str) -> bool:
    """Make the run folder ready; True if it holds a prepared run to continue. Never touches foreign files."""
    check_output(run.path, mode, paths)
    if mode == "continue":
        check_same_run(run, paths)
        remove_temporary(run.path)
        if run.iterations_done() >= 0 and take_over(run, settings):
            check_continued(run)
            return True
    clear(run)
    run.path.mkdir(parents=True, exist_ok=True)
    return False


def clear(run: RunFolder) -> None:
    """Remove what an earlier run wrote, and only that; first of all what would make it look prepared."""
    several = BodiesFolder(run.path)
    remove(several.record)
    for body in several.bodies():
        clear(body)
        if not any(body.path.iterdir()):  # else somebody put files there
            body.path.rmdir()
    remove(run.iteration_done(0))
    run.forget_merge(0)
    for path in (run.settings, run.input, run.error, run.particles, run.mask, run.iteration(0), run.path / "final"):
        remove(path)
    remove_temporary(run.path)


def first_references(inputs: CheckedInputs, resolved: ResolvedSettings,
                     workers: int) -> Tuple[List[FirstLook], List[np.ndarray]]:
    """First look at each half and its low-passed map, each from its own half alone (but for the join)."""
    cutoff = inputs.particles.box_size * inputs.pixel_size / resolved.initial_lowpass_angstrom
    references = [to_host(volume) for volume in joined(
        inputs.halves, resolved.join_halves_resolution_angstrom, inputs.pixel_size, lowpass_weight(cutoff))]
    looks = []
    for half in (1, 2):
        index = np.flatnonzero(inputs.particles.half_set == half)
        index = index[evenly_spaced(len(index), FIRST_IMAGES)]
        looks.append(look_at(inputs.particles.take(index), references[half - 1], inputs.mask, resolved, workers))
    return looks, references


def check_memory(inputs: CheckedInputs, resolved: ResolvedSettings, device: Device) -> float:
    """Say what memory the run will take, or refuse it; bytes of the machine's, 0 where the work is done on a GPU."""
    need = finest_need(inputs.particles, inputs.mask, resolved, device)
    if device.on_gpu:
        check_fits(device, need)
        say(prediction(device, need))
        return 0.0
    taken = host_memory(need, batch_size(need, device), len(inputs.particles))
    check_host(taken, need.box_size)
    say(f"memory: about {taken / 2 ** 30:.2f} GiB")
    return taken


def finest_need(particles: Particles, mask: np.ndarray, resolved: ResolvedSettings, device: Device,
                others: Sequence[np.ndarray] = ()) -> MemoryNeed:
    """What the alignment takes of memory once it goes as far as it may; ``others``: masks of bodies subtracted."""
    plan = search_plan(resolved, particles, 2 * particles.pixel_size)
    return need_of(plan, particles, highest_shell(particles.box_size), mask, device, resolved.subtract,
                   others)


def versions() -> Dict[str, str]:
    """Versions of what computes, for the record."""
    import numba
    import scipy
    own = sys.modules[__name__.split(".")[0]].__version__
    return {"scipion-em-localrefine": own, "python": platform.python_version(), "numpy": np.__version__,
            "scipy": scipy.__version__, "numba": numba.__version__}
