"""The verb forecast: what a refinement will reach and take, from some particles of each half-set."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import List, NamedTuple, Optional, Sequence

import numpy as np

from ..align.half_set import batch_size
from ..align.memory import host_memory
from ..align.search_plan import align_shell_of, resolve
from ..control.sample import FEW, MANY, SHARE
from ..inputs.belonging import check_belonging
from ..inputs.checks import CheckedInputs, check_inputs
from ..io.relion_particles import ParticleTable, read_particles
from ..io.run_folder import PathLike, RunFolder
from ..kernels.batches import evenly_spaced
from ..kernels.device import CPU, Device, choose_device
from ..kernels.host import worker_count
from ..maps.fsc import five_curves
from ..prepare.prepare import finest_need, with_grey_scales
from ..progress import say
from ..records.errors import InputError
from ..records.forecast import SAMPLE, Forecast
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings
from ..records.settings import Settings
from .first_iterations import iterated, start_of
from .iterate import End, Refinement, count_for
from .sample import ITERATIONS, SampleRun, expected_motion, views_of
from .spectrum import spectrum_of
from .static import doubt

LEAST_SAMPLE = 100
MULTIPLES = 0.25, 1.0, 4.0, 16.0  # of the particles there are
OF_A_RUN = 5  # iterations, typically; four to eight in the runs of docs/explanation/forecast.md
EXTRAPOLATED = 0.8  # of the resolution that the sample shows
# Of the time, measured in the runs of docs/explanation/forecast.md
SETTLED = 0.9  # of the last search's time per pixel is a later one's
START_SECONDS = 5.0
MERGE_IN_MAPS, FINISH_IN_MAPS = 0.8, 5.0  # reconstructions of both half-maps
CONTROL_ALIGNMENTS = 3


class Inputs(NamedTuple):
    """Files and settings that all masks share."""

    particles: PathLike
    half_map_1: PathLike
    half_map_2: PathLike
    settings: Settings
    sample: int = SAMPLE
    wanted_angstrom: Optional[float] = None


def forecast(given: Inputs, masks: Sequence[PathLike], device: str = "auto", threads: int = 0) -> List[Forecast]:
    """A forecast for each mask; says one line about each.

    Raises
    ------
    InputError : as the run itself would, by what the sample shows; or for too few particles.
    """
    chosen, workers = choose_device(device), worker_count(threads)
    everyone, table = read_particles(given.particles, need_half_sets=not given.settings.resplit_half_sets)
    rows = sample_rows(everyone, given.sample, str(given.particles))
    some = everyone.take(rows), table.take(rows)
    found = []
    for mask in masks:
        found.append(of_mask(given, mask, len(everyone), some, (chosen, workers)))
        say(sentence(found[-1]))
    return found


def sample_rows(particles: Particles, sample: int, source: str) -> np.ndarray:
    """Rows of so many particles of each half-set, evenly spaced; of twice as many where there are no half-sets yet."""
    if sample < LEAST_SAMPLE:
        raise InputError(f"a sample of {sample} particles of each half-set is too small for a forecast", "--sample",
                         f"take at least {LEAST_SAMPLE}")
    sets = [np.flatnonzero(particles.half_set == half) for half in (1, 2)]
    if not all(len(rows) for rows in sets):
        sets = [np.arange(len(particles))[half::2] for half in (0, 1)]
    if min(len(rows) for rows in sets) < LEAST_SAMPLE:
        raise InputError(f"has fewer than {LEAST_SAMPLE} particles in a half-set, too few for a forecast", source,
                         "run the refinement itself: it takes less than a minute")
    return np.sort(np.concatenate([rows[evenly_spaced(len(rows), sample)] for rows in sets]))


def of_mask(given: Inputs, mask: PathLike, count: int, some: "tuple[Particles, ParticleTable]",
            where: "tuple[Device, int]") -> Forecast:
    """``count`` of all particles, ``some`` of them, on a device with so many threads."""
    (device, workers), settings = where, given.settings
    inputs = check_inputs(given.particles, given.half_map_1, given.half_map_2, mask, settings, workers, CPU,
                          given=some)  # only images are worked on on a GPU
    curves = five_curves(inputs.halves, inputs.mask, inputs.pixel_size, settings.seed, settings.fsc_randomise_below,
                         inputs.under_mask)
    resolved = resolve(settings, inputs.mask, curves.resolutions()["corrected"], inputs.pixel_size)
    inputs = with_grey_scales(inputs, check_belonging(inputs, resolved, workers).grey_scale)
    used = count * float(np.mean(inputs.particles.half_set > 0))
    memory = 0.0 if device.on_gpu else memory_of(inputs, resolved, device, int(used)) / 2 ** 20
    start, whole = start_of(inputs, settings, resolved, curves, workers), Whole(str(mask), used, memory,
                                                                                given.wanted_angstrom)
    learning = start.learning()
    with TemporaryDirectory() as folder:
        run = iterated(start, Path(folder), device, workers)
        doubted = doubt(RunFolder(folder), device, workers)
    with TemporaryDirectory() as folder:
        known = None if learning is None else iterated(learning, Path(folder), device, workers)
    return replace(of_sample(run, resolved, whole, workers, known), doubt=doubted)


class Whole(NamedTuple):
    """Of the run that is forecast: its mask, the particles of both half-sets, MiB that it takes, and a resolution that
    is asked for."""

    mask: str
    particles: float
    memory_mb: float
    wanted_angstrom: Optional[float] = None


def of_sample(run: SampleRun, resolved: ResolvedSettings, whole: Whole, workers: int,
              known: Optional[SampleRun] = None) -> Forecast:
    """What the whole run will reach, from some particles; ``known``: the same with a prior that learns, where the
    run has none."""
    views = views_of(run, expected_motion(run), resolved.seed, workers)
    shown = (run, views) if known is None else (
        known, views_of(known, expected_motion(known), resolved.seed, workers))
    spectrum = spectrum_of(*shown, resolved.marginalize, workers)
    refinement, used = Refinement(views, spectrum, resolved, run.particles), whole.particles
    end = refinement.end(used / 2)
    plain = Forecast(
        whole.mask, int(used), int(2 * run.per_half), end.resolution, end.to_report, end.rotation_error,
        end.shift_error, run.curves.resolutions()["corrected"], seconds_of(run, resolved, end, used), whole.memory_mb,
        tuple(int(used * times) for times in MULTIPLES),
        tuple(refinement.end(times * used / 2).to_report for times in MULTIPLES),
        finest_angstrom=2 * run.particles.pixel_size)
    wanted = whole.wanted_angstrom
    if wanted is None:
        return plain
    needed = 2 * count_for(refinement.end, wanted, used / 2)
    return replace(plain, wanted_angstrom=wanted, wanted_particles=int(needed) if np.isfinite(needed) else None)


def seconds_of(run: SampleRun, resolved: ResolvedSettings, end: End, particles: float) -> float:
    """Of the whole run: its first iterations as the sample took, but for their number of pixels, later ones as the last
    of these; the maps, and the control at the end."""
    shell = align_shell_of(end.resolution, resolved, run.particles)
    pixels = [1.0] + [(shell / last) ** 2 for last in run.align_shells[1:]]
    search = [times * run.seconds(k, "search") for k, times in enumerate(pixels)]
    rest = [run.seconds(k, "read and transform", "pack", "noise", "insert") for k in range(ITERATIONS)]
    iterations, settled = min(OF_A_RUN, resolved.max_iterations), SETTLED * search[-1]
    each = sum(search[:iterations]) + sum(rest[:iterations]) + max(iterations - ITERATIONS, 0) * (settled + rest[-1])
    maps, judge = (run.seconds(ITERATIONS - 1, phase) * 2 * run.per_half for phase in ("reconstruct", "judge"))
    control = 2 * float(np.clip(SHARE * particles / 2, FEW, MANY))
    return (START_SECONDS + particles * each + iterations * (judge + (1 + MERGE_IN_MAPS) * maps) + FINISH_IN_MAPS * maps
            + CONTROL_ALIGNMENTS * control * settled)


def memory_of(inputs: CheckedInputs, resolved: ResolvedSettings, device: Device, particles: int) -> float:
    """Bytes on the CPU."""
    need = finest_need(inputs.particles, inputs.mask, resolved, device)
    return host_memory(need, batch_size(need, device), particles)


def sentence(found: Forecast, of: str = "") -> str:
    """One line for the log and the wizard; ``of``: what it is a forecast of, the mask if nothing is said."""
    fewer, *_, most = zip(found.numbers, found.to_report_of_numbers)
    text = (f"{of or f'forecast for {found.mask}'}: about {found.to_report_angstrom:.1f} Å to report with "
            f"{found.particles} particles, poses known to {found.rotation_error_deg:.1f}° and "
            f"{found.shift_error_angstrom:.1f} Å per axis; {fewer[1]:.1f} Å with {fewer[0]} particles, "
            f"{most[1]:.1f} Å with {most[0]}{found.end_of_pixels}")
    if found.to_report_angstrom < EXTRAPOLATED * found.measured_to_angstrom:
        text += (f" (these particles show signal to {found.measured_to_angstrom:.1f} Å; the rest supposes that it "
                 "falls off as it does in most maps)")
    if found.wanted_angstrom is not None:
        text += (f"; {found.wanted_angstrom:g} Å would take about {rounded(found.wanted_particles)} particles"
                 if found.wanted_particles is not None else
                 f"; {found.wanted_angstrom:g} Å is out of reach for any number of particles")
    text += f"; about {duration(found.seconds)}"
    text += f" and {found.memory_mb / 1024:.1f} GiB" if found.memory_mb else ""
    return f"{text}. {found.doubt}" if found.doubt else text


def rounded(number: int) -> str:
    """To two digits."""
    return f"{float(f'{number:.2g}'):,.0f}"


def duration(seconds: float) -> str:
    """To a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
