"""The first iterations of a run of some particles, in a folder that is thrown away: what a forecast before a run needs.

They are made as those of a run, by the same functions, all but the first with references that the sample makes.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional, Sequence, Tuple

import numpy as np

from ..align.half_set import align_half
from ..align.of_run import half_task, save_half
from ..align.static_part import static_parts
from ..inputs.checks import CheckedInputs
from ..io.mrc import ImageReader, read_map, write_map
from ..io.run_folder import RunFolder
from ..io.run_store import (
    load_input,
    load_iteration,
    load_noise,
    load_settings,
    save_arrays,
    save_particles,
    save_record,
    stored_half_set,
    stored_particles,
)
from ..kernels.batches import evenly_spaced
from ..kernels.device import Device
from ..maps.fsc import FscCurves, write_fsc
from ..maps.half_maps import read_half_maps
from ..merge.merge import curves_in_mask, merge_halves
from ..motion.prior_shapes import prior_shape
from ..prepare.prepare import first_references
from ..records.iteration import HalfRecord, IterationRecord
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings
from ..records.run_input import RunInput
from ..records.settings import Settings
from .sample import ITERATIONS, SampleRun, sample_of

WARM = 16  # images
LEARNED = "learned"


@dataclass(frozen=True)
class Start:
    """A run of some ``particles`` as prepare would leave it.

    maps : the half-maps given, [] where nobody asks for them.  mask, references and static parts (none where nothing is
    subtracted), of each half: (N, N, N), on the grey scale of the images.  noise : power of each half.  scales : by
    which the half-maps were multiplied.  record : of iteration 0.
    """

    particles: Particles
    settings: Settings
    resolved: ResolvedSettings
    maps: Sequence[np.ndarray]
    mask: np.ndarray
    references: Sequence[np.ndarray]
    static: Sequence[np.ndarray]
    noise: Sequence[np.ndarray]
    scales: Tuple[float, ...]
    record: IterationRecord

    def learning(self) -> Optional["Start"]:
        """With the learned prior, where the settings have none that pulls.

        What is seen of the signal is corrected for the errors of the poses, and without any prior these are known too
        badly at low signal: at SNR .02 the resolution of a run is forecast a fifth too fine.
        """
        if prior_shape(self.resolved.prior).pulls:
            return None
        extents = prior_shape(LEARNED).extents(self.resolved)
        settings = replace(self.settings, prior=LEARNED, rotation_extent_deg=None, shift_extent_angstrom=None)
        return replace(self, settings=settings, resolved=replace(
            self.resolved, prior=LEARNED, rotation_extent_deg=extents[0], shift_extent_angstrom=extents[1],
            rotation_extent_fixed=False, shift_extent_fixed=False))


def start_of(inputs: CheckedInputs, settings: Settings, resolved: ResolvedSettings, curves: FscCurves,
             workers: int) -> Start:
    """From checked inputs and the FSC ``curves`` of their half-maps."""
    looks, references = first_references(inputs, resolved, workers)
    scales = tuple(look.scale for look in looks)
    static = static_parts(inputs.halves.maps, inputs.mask, inputs.pixel_size, curves.resolutions()["unmasked"],
                          workers) if settings.subtract else []
    scaled, scaled_static = ([volume * scale for volume, scale in zip(volumes, scales)]
                             for volumes in (references, static))
    return Start(inputs.particles, settings, resolved, inputs.maps, inputs.mask, scaled, scaled_static,
                 [look.noise_power for look in looks], scales, curves.record(0, resolved.initial_lowpass_angstrom))


def start_of_run(run: RunFolder, sample: int) -> Start:
    """From a prepared run, with at most ``sample`` particles of each half-set."""
    given, particles = load_input(run), stored_particles(run)
    half_set = np.asarray(particles.half_set)
    rows = [mine[evenly_spaced(len(mine), sample)] for mine in (np.flatnonzero(half_set == half) for half in (1, 2))]
    static = [read_map(run.static_part(half))[0] for half in (1, 2)] if given.resolved.subtract else []
    return Start(particles.take(np.sort(np.concatenate(rows))), load_settings(run), given.resolved, [],
                 read_map(run.mask)[0], [read_map(run.reference(0, half))[0] for half in (1, 2)], static,
                 [load_noise(run, 0, half) for half in (1, 2)], given.grey_scale, load_iteration(run, 0))


def iterated(start: Start, folder: Path, device: Device, workers: int) -> SampleRun:
    """ITERATIONS, in an empty ``folder``, which is a run folder then."""
    run = as_run(start, folder)
    for k in range(1, ITERATIONS + 1):
        for half in (1, 2):
            align(run, k, half, device, workers)
        if k < ITERATIONS:
            save_record(run.iteration_done(k), merge_halves(run, k, workers, device))
    maps = read_half_maps(run, ITERATIONS, workers)
    curves = curves_in_mask(run, ITERATIONS, maps, start.resolved, start.particles.pixel_size)[0]
    write_fsc(run.fsc(ITERATIONS), curves)
    save_record(run.iteration_done(ITERATIONS), curves.record(ITERATIONS, curves.resolutions()["corrected"]))
    return sample_of(run)


def as_run(start: Start, folder: Path) -> RunFolder:
    """``start`` as a prepared run; its half-maps are those that it uses."""
    run, pixel_size = RunFolder(folder), start.particles.pixel_size
    run.iteration(0).mkdir(parents=True)
    given = [str(folder / f"half_map_{half}.mrc") for half in (1, 2)]
    for path, volume in zip(given, start.maps):
        write_map(path, volume, pixel_size)
    for half in (1, 2):
        write_map(run.reference(0, half), start.references[half - 1], pixel_size)
        save_arrays(run.noise(0, half), power=start.noise[half - 1])
    for half, volume in enumerate(start.static, 1):
        write_map(run.static_part(half), volume, pixel_size)
    write_map(run.mask, start.mask, pixel_size)
    save_particles(run, start.particles)
    save_record(run.settings, replace(start.settings, exchange_half_maps=False))
    save_record(run.input, RunInput(
        "", given[0], given[1], str(run.mask), start.particles.box_size, pixel_size,
        replace(start.resolved, exchange_half_maps=False), start.particles.optics, start.particles.stacks,
        start.scales))
    save_record(run.iteration_done(0), replace(start.record, files={}))
    return run


def align(run: RunFolder, iteration: int, half: int, device: Device, workers: int) -> None:
    """One half-set; without progress, as a sample is small."""
    rows, particles = stored_half_set(run, half)
    run.iteration(iteration).mkdir(exist_ok=True)
    with ImageReader(particles) as reader:
        half_set, plan = half_task(run, iteration, half, (rows, particles), reader)
        if (iteration, half) == (1, 1):  # the first images wait until kernels are loaded, or compiled
            some = np.arange(min(WARM, len(rows)))
            align_half(replace(half_set, particles=half_set.particles.take(some), index=rows[some]), plan, device,
                       workers, verdicts=False)
        result = align_half(half_set, plan, device, workers)
    save_half(run, iteration, half, result, particles.pixel_size)
    save_record(run.half_done(iteration, half), HalfRecord(
        iteration, half, len(particles), verdict=result.verdict, phase_seconds=result.phase_seconds))
