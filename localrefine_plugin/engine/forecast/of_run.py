"""The forecast of a run as one line of its log, from what the run itself has.

A run of many particles is forecast before its first iteration, from iterations of some of them. Where these would be a
good part of the run, they are its own first iterations, of all particles, and the line comes after them.
"""
from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Optional

import numpy as np

from ..control.rest_control import rest_control
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, save_record, stored_half_set, stored_particles
from ..kernels.device import Device
from ..progress import say
from ..records.forecast import SAMPLE
from ..workers.selftest import ensure_tested
from .first_iterations import Start, iterated, start_of_run
from .forecast import LEAST_SAMPLE, Whole, of_sample, sentence
from .sample import ITERATIONS, SampleRun, sample_of
from .static import DOUBT

MANY = 20_000  # particles, of whose run ITERATIONS of SAMPLE of each half-set are 3 % or less
SAID = "forecast for this run"
FOLDER = ".forecast.tmp."  # what a killed run leaves is removed when it is continued


def forecast_before(run: RunFolder, device: Device, workers: int) -> None:
    """Say what a prepared run of many particles will reach, from SAMPLE of each half-set; others are left to
    `forecast_after`."""
    half_set = np.asarray(stored_particles(run).half_set)
    if run.iterations_done() > 0 or run.forecast(0).exists() or (half_set > 0).sum() < MANY:
        return
    say(f"{SAID}: {2 * SAMPLE} particles are aligned first")
    ensure_tested(device)
    start = start_of_run(run, SAMPLE)
    tell(run, 0, sampled(run, start, device, workers), known_well(run, start, device, workers), workers)


def sampled(run: RunFolder, start: Start, device: Device, workers: int) -> SampleRun:
    with TemporaryDirectory(prefix=FOLDER, dir=run.path) as folder:
        return iterated(start, Path(folder), device, workers)


def known_well(run: RunFolder, start: Start, device: Device, workers: int) -> Optional[SampleRun]:
    """The sample with a prior that learns, where the run has none."""
    learning = start.learning()
    return None if learning is None else sampled(run, learning, device, workers)


def forecast_after(run: RunFolder, iteration: int, device: Device, workers: int) -> None:
    """Say what a run will reach once ITERATIONS are merged, unless it has ended; where that was said before the first,
    say whether the mask may hold much that does not move, which takes three short alignments."""
    if iteration != ITERATIONS or run.stopped_before(iteration + 1):
        return
    if run.forecast(0).exists():
        if rest_control(run, iteration, device, workers)[0].doubtful:
            say(f"warning: {DOUBT}")
        return
    if min(len(stored_half_set(run, half)[0]) for half in (1, 2)) < LEAST_SAMPLE:
        return
    tell(run, iteration, sample_of(run), known_well(run, start_of_run(run, SAMPLE), device, workers), workers)


def tell(run: RunFolder, iteration: int, sample: SampleRun, known: Optional[SampleRun], workers: int) -> None:
    """Say and save the forecast."""
    given, count = load_input(run), int((np.asarray(stored_particles(run).half_set) > 0).sum())
    found = of_sample(sample, given.resolved, Whole(given.mask, count, given.predicted_memory_mb), workers, known)
    save_record(run.forecast(iteration), found)
    say(sentence(found, SAID))
