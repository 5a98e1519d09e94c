"""The forecast of a run as one line of its log, from what the run itself has.

A run of many particles is forecast before its first iteration, from an alignment of some of them. Where that would be a
good part of the run, the first iteration itself is that alignment, of all particles, and the line comes after it.
"""
from __future__ import annotations

from typing import List, Optional

import numpy as np

from ..align.search_plan import search_plan
from ..control.rest_control import rest_control
from ..io.mrc import read_map
from ..io.run_folder import RunFolder, read_json, reading
from ..io.run_store import (
    load_input,
    load_motion,
    load_noise,
    save_record,
    stored_half_set,
    stored_particles,
    stored_poses,
)
from ..kernels.batches import evenly_spaced
from ..kernels.device import Device
from ..maps.fsc import read_fsc
from ..progress import say
from ..records.codec import from_json
from ..records.forecast import SAMPLE
from ..records.iteration import HalfRecord
from ..records.resolved import ResolvedSettings
from ..workers.selftest import ensure_tested
from .forecast import LEAST_SAMPLE, Whole, of_sample, sentence
from .sample import SampleHalf, SampleRun, align_once, counted, learning, seen
from .static import DOUBT

MANY = 20_000  # particles, of whose run one alignment of SAMPLE of each half-set is less than 2 %
SAID = "forecast for this run"


def forecast_before(run: RunFolder, device: Device, workers: int) -> None:
    """Say what a prepared run of many particles will reach, from SAMPLE of each half-set; others are left to
    `forecast_after_first`."""
    half_set = np.asarray(stored_particles(run).half_set)
    if run.iterations_done() > 0 or run.forecast(0).exists() or (half_set > 0).sum() < MANY:
        return
    say(f"{SAID}: {2 * SAMPLE} particles are aligned")
    ensure_tested(device)
    resolved = load_input(run).resolved
    tell(run, 0, sampled(run, resolved, device, workers), known_well(run, resolved, device, workers), workers)


def sampled(run: RunFolder, resolved: ResolvedSettings, device: Device, workers: int) -> SampleRun:
    """At most SAMPLE particles of each half-set, aligned as in the first iteration of a run with these settings."""
    half_set = np.asarray(stored_particles(run).half_set)
    rows = [mine[evenly_spaced(len(mine), SAMPLE)] for mine in (np.flatnonzero(half_set == half) for half in (1, 2))]
    particles = stored_particles(run).take(np.concatenate(rows))
    places = np.split(np.arange(len(particles)), [len(rows[0])])
    shown = references_of(run), read_map(run.mask_in_use(0))[0], [load_noise(run, 0, half) for half in (1, 2)]
    return align_once(particles, places, shown, resolved, (device, workers))


def known_well(run: RunFolder, resolved: ResolvedSettings, device: Device, workers: int) -> Optional[SampleRun]:
    """The sample with the settings of `learning`, if there are any."""
    with_prior = learning(resolved)
    return None if with_prior is None else sampled(run, with_prior, device, workers)


def forecast_after_first(run: RunFolder, device: Device, workers: int) -> None:
    """Say what a run will reach once its first iteration is merged, unless it has ended; where that was said before it,
    say whether the mask may hold much that does not move, which takes three short alignments."""
    if run.stopped_before(2):
        return
    if run.forecast(0).exists():
        if rest_control(run, 1, device, workers)[0].doubtful:
            say(f"warning: {DOUBT}")
        return
    halves = [stored_half_set(run, half) for half in (1, 2)]
    if min(len(rows) for rows, _ in halves) < LEAST_SAMPLE:
        return
    resolved = load_input(run).resolved
    plan = search_plan(resolved, halves[0][1], resolved.initial_lowpass_angstrom)
    sample = SampleRun([half_of(run, half) for half in (1, 2)], plan, references_of(run),
                       read_map(run.mask_in_use(1))[0], read_fsc(run.fsc(1)))
    tell(run, 1, sample, known_well(run, resolved, device, workers), workers)


def references_of(run: RunFolder) -> List[np.ndarray]:
    """The low-passed input half-maps (N, N, N)."""
    return [read_map(run.reference(0, half))[0] for half in (1, 2)]


def half_of(run: RunFolder, half: int) -> SampleHalf:
    """A half-set after the first iteration."""
    (rows, particles), poses, motion = stored_half_set(run, half), stored_poses(run, 1, half), load_motion(run, 1, half)
    assert poses is not None  # of iteration 1
    with reading(run.half_done(1, half)):
        seconds = from_json(HalfRecord, read_json(run.half_done(1, half))).phase_seconds
    chosen = seen(poses)
    return SampleHalf(
        particles.take(chosen), poses.covariance[chosen], poses.pose_error_covariance[chosen],
        read_map(run.half_map(1, half))[0], load_noise(run, 1, half),
        load_noise(run, 1, half, "accumulator_mean"), len(rows), seconds,
        None if motion is None else motion.covariance, None, *counted(poses))


def tell(run: RunFolder, iteration: int, sample: SampleRun, known: Optional[SampleRun], workers: int) -> None:
    """Say and save the forecast."""
    given, count = load_input(run), int((np.asarray(stored_particles(run).half_set) > 0).sum())
    found = of_sample(sample, given.resolved, Whole(given.mask, count, given.predicted_memory_mb), workers, known)
    save_record(run.forecast(iteration), found)
    say(sentence(found, SAID))
