"""One half-set, one iteration: align every particle and reconstruct (the E and the M step).

Nothing of the other half-set is known here. The work is handed out in spans of images to the members of a team
(engine/team.py), each of which adds up what it did (half_alignment.py); the first makes the map of the total.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..kernels.batches import in_batches
from ..kernels.device import CPU, Device, to_host
from ..kernels.fixed_point import FixedPointSums, OutOfRange
from ..kernels.prefetch import Prefetch
from ..maps.reconstruct import reconstruct
from ..motion.motion_prior import Evidence
from ..progress import say, silent
from ..records.errors import InputError
from ..records.iteration import Verdict
from ..records.motion import LearnedMotion
from ..records.particles import image_numbers
from ..records.poses import Covariances, PoseTable
from ..team import ALONE, NOWHERE, Team, spans
from .half_alignment import HalfAlignment, HalfSet
from .half_sums import HalfFindings, refitted_scales
from .images import LastTransforms
from .memory import MemoryNeed, check_fits, need_of, together
from .nulls import moments, null_images, pooled, search_size
from .reference_errors import accumulator_mean
from .search_plan import SearchPlan
from .verdicts import LEAST_PARTICLES, Nulls, Probabilities, gains, judged

BATCH_BYTES = 192 << 20  # on the host
LARGEST_BATCH = 4096  # on a GPU: images enough to keep it busy
NULLS_AT_ONCE = 25  # of each kind
MOST_LOWERED = 10  # times that sums are made again: images 10³⁶ times as bright as expected


@dataclass(frozen=True)
class HalfResult:
    """What an align step found: half_map (N, N, N), poses, noise_power (groups, M + 1), accumulator_mean (M + 1,) of
    the accumulator's D by shell, what a learned prior learned, the verdict (None of too few particles, or not asked
    for), wall seconds by phase, and what the images told a learned prior."""

    half_map: np.ndarray
    poses: PoseTable
    noise_power: np.ndarray
    accumulator_mean: np.ndarray
    motion: Optional[LearnedMotion]
    verdict: Optional[Verdict]
    phase_seconds: Dict[str, float]
    evidence: Optional[Evidence] = None


def align_half(half: HalfSet, plan: SearchPlan, device: Device = CPU, workers: int = 1,
               progress: Callable[[int, int], None] = silent, verdicts: bool = True) -> HalfResult:
    """Align and reconstruct one half-set, on ``device``; the result is the host's. ``verdicts`` False: aligned
    particles are not told from others, which takes a search of its own."""
    result = HalfTask(half, plan, device, workers, verdicts=verdicts).align(progress)
    assert result is not None  # who is alone is the first
    return result


@dataclass(frozen=True)
class HalfTask:
    """A half-set to be aligned on ``device``, by this member of a team; ``claims``: a folder for `Team.claims`."""

    half: HalfSet
    plan: SearchPlan
    device: Device
    workers: int
    team: Team = ALONE
    claims: Path = NOWHERE
    verdicts: bool = True

    def need(self) -> MemoryNeed:
        """What this member takes of memory."""
        half = self.half
        return need_of(self.plan, half.particles, half.max_shell, half.mask, self.device, half.static_part is not None,
                       [other.mask for other in half.others])

    def align(self, progress: Callable[[int, int], None]) -> Optional[HalfResult]:
        """The result for the first member of the team, None for others. It has the same bits for any team, as long as
        the sums of the map are integers."""
        results = align_together([self], progress)
        return None if results is None else results[0]


def align_together(tasks: Sequence[HalfTask], progress: Callable[[int, int], None]) -> Optional[List[HalfResult]]:
    """The results of several bodies of one half-set, whose images are read and transformed once, for the first member
    of the team; None for others. Each body has the bits that it has on its own."""
    team, device = tasks[0].team, tasks[0].device
    need = together([task.need() for task in tasks])
    check_fits(device, need)
    parts = team.collect(need.fixed)
    fixed = team.agree(parts is not None and all(parts))  # those of one GPU with little memory, if need be
    if not fixed:
        say("the GPU's memory does not hold sums in 64-bit integers: the last bits of the map may differ between "
            "runs")
    try:
        return attempt_together(tasks, progress, need, 0 if fixed else None)
    except OutOfRange:
        if not team.is_first:
            return None
    alone = [replace(task, team=ALONE) for task in tasks]
    for lowered in range(1, MOST_LOWERED):
        say("images are much brighter than their noise tells: the sums of the map are made again, less fine")
        try:
            return attempt_together(alone, progress, need, lowered)
        except OutOfRange:
            continue
    raise InputError("images are too bright for the sums of a map", "particles",
                     "normalise the images, or leave out those with hot pixels")


def attempt_together(tasks: Sequence[HalfTask], progress: Callable[[int, int], None], need: MemoryNeed,
                     lowered: Optional[int]) -> Optional[List[HalfResult]]:
    """``lowered`` as in HalfAlignment. Raises OutOfRange."""
    first, device, team = tasks[0], tasks[0].device, tasks[0].team
    count, shared = len(first.half.particles), LastTransforms() if len(tasks) > 1 else None
    with Prefetch(first.half.read, count, first.half.particles.box_size, device) as ahead:
        works = [HalfAlignment(replace(task.half, read=ahead), task.plan, device, task.workers, lowered, shared)
                 for task in tasks]
        size = batch_size(need, device)
        if device.on_gpu:
            say(f"{min(size, count)} images at a time")

        def in_parts(do: Sequence[Callable[[np.ndarray], None]], part: Tuple[int, int], most: int) -> None:
            ahead.end = part[1]
            for span in [part] if len(do) == 1 else pieces(part, most):
                for one in do:
                    in_batches(one, span, most, device, need.remedy)

        def adding(work: HalfAlignment) -> Callable[[np.ndarray], None]:
            def batch(index: np.ndarray) -> None:
                team.check()
                work.add(index)
                if work is works[-1]:
                    progress(int(index[-1]) + 1, count)
            return batch
        images = spans(count, team.size)
        judging = first.verdicts and count >= LEAST_PARTICLES
        nulls = spans(len(null_images(count, first.half.nulls)) * judging, team.size)
        try:
            for number in team.claims(len(images) + len(nulls), first.claims):
                if number < len(images):
                    in_parts([adding(work) for work in works], images[number], size)
                else:
                    in_parts([work.add_nulls for work in works], nulls[number - len(images)], min(size, NULLS_AT_ONCE))
        except OutOfRange:
            for work in works:
                work.findings.out_of_range = True
    if shared is not None:
        shared.made.clear()
    results: List[HalfResult] = []
    while works:
        work = works.pop(0)  # the memory of each is free before the next map is made
        total = collected(work, team)
        if team.size > 1 and not results:  # another member had the last images
            progress(count, count)
        if total is not None:
            results.append(finished(work, total))
    device.release()
    return results if team.is_first else None


def pieces(part: Tuple[int, int], most: int) -> List[Tuple[int, int]]:
    """A span (first, end) in spans of at most so many images."""
    return [(start, min(start + most, part[1])) for start in range(part[0], part[1], most)]


def collected(work: HalfAlignment, team: Team) -> Optional[HalfFindings]:
    """What all members of the team found, and in ``work`` the sums of the map, for its first member; None for others.

    Raises
    ------
    OutOfRange : for all members, if the sums of one or of all left their range.
    """
    work.drop_references()  # their memory is the reconstruction's now
    accumulator = work.accumulator
    fixed = accumulator if isinstance(accumulator, FixedPointSums) else None
    work.findings.weight_sum = to_host(work.findings.weight_sum)
    batches = [] if team.is_first else work.findings.take_batches()
    parts = team.collect((work.findings, None if fixed is None else fixed.reached))
    if parts is not None:
        for findings, reached in parts[1:]:
            work.findings.include_sums(findings)
            if fixed is not None:
                fixed.reached = fixed.reached + reached
    out = team.agree(work.findings.out_of_range or (fixed is not None and not fixed.fit()))
    if out:
        raise OutOfRange
    for found in team.hand_over(batches):
        work.findings.include(found)
    if fixed is not None:
        fixed.sums = team.total(fixed.sums)
    else:
        work.accumulator = team.total(accumulator)
    return work.findings if team.is_first else None


def finished(work: HalfAlignment, found: HalfFindings) -> HalfResult:
    """The half-map and everything else, from what was found of all images."""
    half, plan, timer = work.half, work.plan, work.timer
    with timer("reconstruct"):
        half_map = to_host(reconstruct(work.float_accumulator(), half.particles.box_size, half.max_shell, work.workers))
    with timer("learn motion"):
        evidence = found.all_evidence()
        motion = learned_motion(plan, evidence)
    count, scale, verdict = len(half.particles), work.scale, None
    columns: Dict[str, Any] = found.take_columns(count)
    columns.update({name: Covariances(columns[name]) for name in ("covariance", "pose_error_covariance")})
    if found.nulls:
        with timer("judge"):
            verdict, probabilities = verdict_of(half, plan, found, columns["covariance"], scale)
        columns.update(gain=probabilities.gain, probability_aligned=probabilities.aligned,
                       probability_empty=probabilities.empty)
    if plan.per_particle_scale:
        columns["scale"] = refitted_scales(found.all_matches(count), scale)
    weight_sum = np.ldexp(found.weight_sum.astype(float), -work.exponent[1]).reshape(found.noise.counted.shape)
    return HalfResult(half_map, PoseTable(row=half.index, **columns), found.noise.power(),
                      accumulator_mean(weight_sum[found.noise.counted] * len(plan.symmetry), found.noise.shell,
                                       half.max_shell), motion, verdict, timer.seconds, evidence)


def verdict_of(half: HalfSet, plan: SearchPlan, found: HalfFindings, covariance: Covariances,
               scale: Optional[np.ndarray]) -> Tuple[Verdict, Probabilities]:
    """Aligned particles told from others (verdicts.py), from their posteriors' ``covariance`` (m, 5, 5) and the
    ``scale`` (m,) with which they were matched."""
    particles, size = half.particles, search_size(plan, half.particles.rotation, covariance)
    cross, energy = found.all_matches(len(particles))
    gained = gains(cross, energy) if scale is None else gains(cross / scale, energy / scale ** 2)
    others, noise = (gains(*found.all_nulls(kind)).z for kind in ("others", "noise"))
    known = pooled(half.nulls, others, noise, size)
    verdict, probabilities = judged(gained, Nulls(*moments(known, size), known.weight),
                                    len(particles) / len(np.unique(image_numbers(particles))))
    return replace(verdict, nulls=known), probabilities


def learned_motion(plan: SearchPlan, evidence: Optional[Evidence]) -> Optional[LearnedMotion]:
    """What all images of this half tell of the motion, if the plan asks."""
    if plan.motion_covariance is None or plan.motion_start is None or evidence is None:
        return None
    return plan.prior.learn(evidence, plan.motion_covariance, plan.motion_start)


def batch_size(need: MemoryNeed, device: Device) -> int:
    """Images per batch: few megabytes on the host, half of what is left of the memory on a GPU."""
    if not device.on_gpu:
        return max(1, int(BATCH_BYTES // need.host_image))
    return int(max(1, min(LARGEST_BATCH, device.memory_bytes() // (2 * need.image))))
