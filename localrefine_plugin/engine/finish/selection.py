"""Particles kept by their probability to be aligned, and what that does to the half-maps.

Kept are those of probability p ≥ a threshold, or as many of the most probable as keep the mean of 1 − p, the expected
share of wrong ones among them, at or below a false discovery rate (Newton et al. 2004,
doi:10.1093/biostatistics/5.2.155). Each half-set was judged by its own reference.

A selection can only help if it leaves out what is wrong; leaving out particles at random costs resolution, and that is
the yardstick. Noise images that were aligned to two similar references make half-maps agree as well, so that the FSC of
all particles may be better than it should be. Half-maps are made four times from the final poses: of all particles, of
all weighted by p as in the run, of those kept, and of as many chosen at random. Of the same four it is measured how
much better the particles fit the reference of their own half-set than the other's (cross_half.py).
"""
from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Sequence, Tuple

import numpy as np

from ..align.half_alignment import insert_batch
from ..align.images import HalfSetImages
from ..align.marginalize import Insertions
from ..align.search_plan import search_plan
from ..io.mrc import ImageReader, read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, load_iteration, load_noise, stored_half_set, stored_particles, stored_poses
from ..maps.fsc import fsc, resolution_at
from ..maps.reconstruct import new_accumulator, reconstruct
from ..model.pixels import last_column
from ..progress import ProgressBar, say
from ..records.iteration import FSC_THRESHOLD
from ..records.poses import PoseTable
from ..records.resolved import ResolvedSettings
from ..records.results import Selection, SelectionEffect
from .cross_half import Advantage, own_advantage, prefers_noise

IMAGES_AT_ONCE = 200
CHOICES = ("all", "weighted", "kept", "random")


def kept_of(probability: np.ndarray, resolved: ResolvedSettings) -> np.ndarray:
    """(n,) bool: the particles that both settings keep, as far as they are given."""
    kept = np.ones(len(probability), bool)
    if resolved.keep_probability is not None:
        kept &= probability >= resolved.keep_probability
    if resolved.false_discovery_rate is not None:
        order = np.argsort(-probability, kind="stable")
        wrong = np.cumsum(1 - probability[order]) / np.arange(1, len(order) + 1)
        number = np.count_nonzero(wrong <= resolved.false_discovery_rate)
        kept &= probability >= probability[order][number - 1] if number else False
    return kept


def select(run: RunFolder, iteration: int) -> Dict[int, np.ndarray]:
    """The rows (m,) of the input that are kept, by half-set; all of a half-set that was too small to be judged."""
    resolved, rows = load_input(run).resolved, {}
    for half in (1, 2):
        poses = stored_poses(run, iteration, half)
        assert poses is not None  # of an iteration that is done
        if poses.probability_aligned is None:
            say(f"warning: half-set {half} has too few particles to judge them: none was left out")
            rows[half] = np.asarray(poses.row)
        else:
            rows[half] = poses.row[kept_of(np.asarray(poses.probability_aligned), resolved)]
    return rows


def effect(run: RunFolder, iteration: int, rows: Dict[int, np.ndarray], workers: int) -> Selection:
    """What keeping ``rows`` does to resolution and FSC inside the mask; no effect is measured where all are kept, or
    none of a half-set."""
    number, count = sum(map(len, rows.values())), np.count_nonzero(np.asarray(stored_particles(run).half_set))
    expected_wrong, not_judged, counts = 0.0, 0, {}
    for half in (1, 2):
        poses = stored_poses(run, iteration, half)
        assert poses is not None
        judged = poses.probability_aligned is not None
        not_judged += 0 if judged else len(poses)
        probability = np.asarray(poses.probability_aligned) if judged else np.ones(len(poses))
        kept = np.isin(np.asarray(poses.row), rows[half])
        rng = np.random.default_rng([load_input(run).resolved.seed, half])
        counts[half] = dict(all=np.ones(len(poses)), weighted=probability, kept=kept * 1.0,
                            random=rng.permutation(kept) * 1.0)
        expected_wrong += float((1 - probability)[kept].sum())
    selected = Selection(number, count - number, expected_wrong / max(number, 1), {}, not_judged=not_judged)
    compared = selected.left_out and all(map(len, rows.values()))
    return measured_effect(run, iteration, selected, counts, workers) if compared else selected


def measured_effect(run: RunFolder, iteration: int, selected: Selection, counts: Dict[int, Dict[str, np.ndarray]],
                    workers: int) -> Selection:
    """With half-maps of each choice, and how well its particles fit the reference of their own half-set; ``counts``
    (n,) of the particles of each half-set, by choice."""
    given, mask = load_input(run), read_map(run.mask_in_use(iteration))[0]
    maps: Dict[str, List[np.ndarray]] = {choice: [] for choice in CHOICES}
    fits: Dict[str, List[Tuple[np.ndarray, np.ndarray]]] = {choice: [] for choice in CHOICES}
    for half, of in counts.items():
        poses = stored_poses(run, iteration, half)
        assert poses is not None
        found = half_maps(run, iteration, half, poses, [of[choice] for choice in CHOICES], workers)
        for choice, volume in zip(CHOICES, found):
            maps[choice].append(volume * mask)
        some, better = own_advantage(run, iteration, half, poses, workers)
        for choice in CHOICES:
            fits[choice].append((of[choice][some], better))
    curves = {choice: fsc(first, second, workers) for choice, (first, second) in maps.items()}
    advantage = {choice: Advantage.of(fits[choice]) for choice in CHOICES}
    every, kept = advantage["all"], advantage["kept"]
    return replace(
        selected, own_advantage_error=kept.error, own_advantage_spread=every.spread,
        prefers_noise=prefers_noise(every, kept), effect={
            choice: SelectionEffect(resolution_at(curve, FSC_THRESHOLD, len(mask), given.pixel_size),
                                    float(curve[1:].mean()), advantage[choice].mean)
            for choice, curve in curves.items()})


def half_maps(run: RunFolder, iteration: int, half: int, poses: PoseTable, counts: Sequence[np.ndarray],
              workers: int) -> List[np.ndarray]:
    """Half-maps (N, N, N) of a half-set at its final poses, its images counting so much (n,) in each."""
    _, particles = stored_half_set(run, half)
    resolved = load_input(run).resolved
    plan = search_plan(resolved, particles, load_iteration(run, iteration - 1).align_resolution_angstrom)
    plan = replace(plan, centre=np.zeros(3))  # poses are told by shifts of the box centre
    noise = load_noise(run, iteration, half)
    max_shell, box = noise.shape[1] - 1, particles.box_size
    accumulators = [new_accumulator(max_shell, np) for _ in counts]
    bar = ProgressBar(f"effect of the selection, half {half}", len(particles))
    with ImageReader(particles) as reader:
        images = HalfSetImages(particles, reader.read, noise, max_shell, workers)
        for start in range(0, len(particles), IMAGES_AT_ONCE):
            index = np.arange(start, min(start + IMAGES_AT_ONCE, len(particles)))
            batch = images.batch(index)
            for accumulator, of_each in zip(accumulators, counts):
                some = np.flatnonzero(of_each[index] > 0)
                chosen = Insertions(some, poses.rotation[index[some]], np.zeros((len(some), 2)),
                                    of_each[index[some]].astype(np.float32), np.zeros(len(some), np.float32))
                insert_batch(accumulator, batch, chosen, poses.shift_px[index], plan, last_column(max_shell), box)
            bar.update(int(index[-1]) + 1, len(particles))
    return [reconstruct(accumulator, box, max_shell, workers) for accumulator in accumulators]
