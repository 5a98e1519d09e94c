"""Null tests: a finished run done over, in short and in memory, without what it must not do without.

Each test takes a subset of the particles through one or two iterations as the run did them. Nothing is written,
and no pose goes back to the run.
"""
from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..align.half_alignment import HalfSet
from ..align.half_set import HalfResult, align_half
from ..align.reference_errors import ReferenceErrors, known_errors
from ..align.search_plan import search_plan
from ..inputs.changes import check_stacks
from ..io.mrc import ImageReader, read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, load_iteration, load_motion, load_noise, load_particles, load_poses
from ..kernels.device import Device
from ..maps.fsc import FscCurves, five_curves, read_fsc
from ..maps.half_maps import HalfMaps, random_phases_beyond
from ..maps.reference_filter import next_references, reference_fsc
from ..model import fourier
from ..model.pose import log_map, project
from ..progress import ProgressBar
from ..records.particles import Particles
from ..records.poses import PoseTable
from ..records.resolved import ResolvedSettings

PARTICLES_PER_HALF = 500
PASSES = 2

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class FinishedRun:
    """What the tests need of a run: its best ``iteration`` with its mask and FSC, and the input ``index`` of the
    subset of each half-set."""

    folder: RunFolder
    iteration: int
    resolved: ResolvedSettings
    particles: Particles
    index: Dict[int, np.ndarray]
    mask: np.ndarray
    curves: FscCurves
    device: Device
    workers: int

    @property
    def seed(self) -> int:
        return self.resolved.seed

    def align_resolution(self, iteration: int) -> float:
        """Å the next align step went to."""
        return load_iteration(self.folder, iteration).align_resolution_angstrom

    def motion(self, iteration: int, half: int) -> Optional[np.ndarray]:
        found = load_motion(self.folder, iteration, half)
        return None if found is None else found.covariance

    def poses(self, iteration: int, half: int) -> Optional[PoseTable]:
        """Of the subset; None for iteration 0."""
        table = load_poses(self.folder, iteration, half)
        if table is None:
            return None
        kept = np.isin(table.row, self.index[half])
        return PoseTable(**{name: column[kept] for name, column in table.columns().items()})

    def curves_of(self, maps: Sequence[np.ndarray], mask: np.ndarray) -> FscCurves:
        return five_curves(HalfMaps(maps[0], maps[1], self.workers), mask, self.particles.pixel_size, self.seed,
                           self.resolved.fsc_randomise_below)


def load_finished(folder: RunFolder, device: Device, workers: int) -> FinishedRun:
    """The best iteration of a run and a subset of its particles."""
    k = load_iteration(folder, folder.iterations_done()).best_iteration
    given, particles = load_input(folder), load_particles(folder)
    check_stacks(folder, given)
    resolved = given.resolved
    return FinishedRun(folder, k, resolved, particles, chosen_rows(particles, PARTICLES_PER_HALF, resolved.seed),
                       read_map(folder.mask_in_use(k))[0], read_fsc(folder.fsc(k)), device, workers)


def chosen_rows(particles: Particles, per_half: int, seed: int) -> Dict[int, np.ndarray]:
    """Index (m,) of at most ``per_half`` particles of each half-set: whole micrographs, known by their defocus.

    Copies of a particle have its defocus and come along, also where they are in the other half-set; choosing
    particles at random would part them and hide what the tests look for.
    """
    rng = np.random.default_rng(seed)
    defocus = np.stack([particles.defocus_u, particles.defocus_v, particles.defocus_angle], axis=1)
    order = np.lexsort((shuffled(np.stack([particles.stack, particles.slice], axis=1), rng), shuffled(defocus, rng)))
    return {half: np.sort(order[particles.half_set[order] == half][:per_half]) for half in (1, 2)}


def shuffled(keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random number (n,) for every different row of ``keys`` (n, k)."""
    different, number = np.unique(keys, axis=0, return_inverse=True)
    return rng.permutation(len(different))[number.ravel()]


def with_random_phases(images: np.ndarray, first_shell: int, seed: int) -> np.ndarray:
    """Images (n, N, N) float32 with the phases of white noise from ``first_shell`` on, their amplitudes kept.

    The noise is drawn from the content of the image: copies of an image stay copies.
    """
    n = images.shape[-1]
    beyond = fourier.shell_index_rfft((n, n)) >= first_shell
    out = np.empty_like(images)
    for i, image in enumerate(np.ascontiguousarray(images)):
        rng = np.random.default_rng([seed, zlib.crc32(image.tobytes())])
        ft = fourier.forward(image)
        noise = fourier.forward(rng.standard_normal((n, n), dtype=np.float32))[beyond]
        ft[beyond] = np.abs(ft[beyond]) * noise / np.maximum(np.abs(noise), np.finfo(np.float32).tiny)
        out[i] = fourier.inverse(ft, (n, n))
    return out


@dataclass(frozen=True)
class Start:
    """What a pass starts from.

    reference : (N, N, N).  iteration : whose noise it goes by.  resolution : Å, how far the search goes.
    poses, motion, errors : of the pass before, where there was one.
    """

    reference: np.ndarray
    iteration: int
    resolution: float
    poses: Optional[PoseTable] = None
    motion: Optional[np.ndarray] = None
    errors: Optional[ReferenceErrors] = None


def aligned(finished: FinishedRun, half: int, start: Start, change: Change, phase: str) -> HalfResult:
    """The subset of a half-set, its images changed, aligned and reconstructed as an align step does.

    Nothing is subtracted, whatever the run did: images that are replaced hold no rest of a particle.
    """
    index = finished.index[half]
    particles = finished.particles.take(index)
    plan = search_plan(finished.resolved, particles, start.resolution, start.motion)
    bar = ProgressBar(f"null test: {phase}, half {half}", len(index))
    with ImageReader(particles) as reader:
        def changed(some: np.ndarray, out: Optional[np.ndarray] = None) -> np.ndarray:
            images = reader.read(some, out)
            images[:] = change(images)
            return images
        task = HalfSet(particles, index, changed, start.reference, finished.mask,
                       load_noise(finished.folder, start.iteration, half), start.poses, start.errors)
        return align_half(task, plan, finished.device, finished.workers, bar.update)


def noise_only(finished: FinishedRun) -> FscCurves:
    """FSC after two iterations with noise of each image's own spectrum in its place, begun as the run was.

    The second goes as far as the first: to the initial low-pass, which is all that the references share.
    """
    references = [read_map(finished.folder.reference(0, half))[0] for half in (1, 2)]
    resolution = finished.align_resolution(0)
    poses: List[Optional[PoseTable]] = [None, None]
    motions: List[Optional[np.ndarray]] = [None, None]
    errors: List[Optional[ReferenceErrors]] = [None, None]
    for i in range(PASSES):
        starts = [Start(references[h], 0, resolution, poses[h], motions[h], errors[h]) for h in (0, 1)]
        results = [aligned(finished, half, start, lambda images: with_random_phases(images, 1, finished.seed),
                           f"noise for images, pass {i + 1} of {PASSES}") for half, start in enumerate(starts, 1)]
        poses = [result.poses for result in results]
        motions = [None if result.motion is None else result.motion.covariance for result in results]
        maps = [result.half_map for result in results]
        references = [fourier.lowpass(volume, finished.particles.pixel_size, resolution, workers=finished.workers)
                      for volume in maps]
        errors = errors_of(finished, references, results)
    return finished.curves_of(maps, finished.mask)


def without_detail(finished: FinishedRun, first_shell: int) -> List[np.ndarray]:
    """Half-maps after the run's last iteration was done twice more with random phases from a shell on.

    The phases of images and references are random, yet the search goes as far as the run's did and references are
    filtered by the run's own FSC: what can be fitted in noise, is.
    """
    last = finished.iteration - 1
    folder, resolution = finished.folder, finished.align_resolution(last)
    references = [random_phases_beyond(read_map(folder.reference(last, half))[0], first_shell, finished.seed + half,
                                       finished.workers) for half in (1, 2)]
    poses = [finished.poses(last, half) for half in (1, 2)]
    maps: List[np.ndarray] = []
    errors: List[Optional[ReferenceErrors]] = [None, None]
    for i in range(PASSES):
        starts = [Start(references[h], last, resolution, poses[h], finished.motion(last, h + 1), errors[h])
                  for h in (0, 1)]
        results = [aligned(finished, half, start,
                           lambda images: with_random_phases(images, first_shell, finished.seed),
                           f"random phases, pass {i + 1} of {PASSES}") for half, start in enumerate(starts, 1)]
        maps, poses = [result.half_map for result in results], [result.poses for result in results]
        uniform = replace(finished.resolved, non_uniform=False)
        references = next_references(HalfMaps(maps[0], maps[1], finished.workers), finished.mask, finished.curves,
                                     uniform).maps
        errors = errors_of(finished, references, results)
    return maps


def errors_of(finished: FinishedRun, references: Sequence[np.ndarray],
              results: Sequence[HalfResult]) -> List[Optional[ReferenceErrors]]:
    """What the next pass knows of the errors of references made of these results."""
    centre = finished.resolved.mask_centre_offset(finished.particles.box_size)
    agreement = np.array(reference_fsc(references, finished.mask, finished.workers))
    return [known_errors(agreement, volume, result.half_map, finished.mask, centre, result.accumulator_mean)
            for volume, result in zip(references, results)]


def with_other_reference(finished: FinishedRun, half: int) -> Tuple[PoseTable, PoseTable]:
    """Poses of the subset as the run's last iteration found them, and with the other half-set's reference instead."""
    last = finished.iteration - 1
    before = finished.poses(last, half)
    if before is not None:  # two modes: everyone goes through the grid, the start decides nothing
        before = replace(before, modes=np.full(len(before), 2))
    reference = read_map(finished.folder.reference(last, 3 - half))[0]
    start = Start(reference, last, finished.align_resolution(last), before, finished.motion(last, half))
    result = aligned(finished, half, start, lambda images: images, "the other half's reference")
    own = finished.poses(finished.iteration, half)
    assert own is not None  # only iteration 0 has none
    return own, result.poses


def disagreement(own: PoseTable, other: PoseTable, centre: np.ndarray) -> np.ndarray:
    """χ² per degree of freedom (n,) between two sets of poses of the same images, whitened by the first's posterior.

    ``centre``: (3,) of the mask, px from the box centre. What all particles have in common, a rotation and a
    displacement of one reference against the other, is taken out first.
    """
    w = log_map(np.swapaxes(own.rotation, 1, 2) @ other.rotation)
    moved = other.shift_px + project(other.rotation, centre) - own.shift_px - project(own.rotation, centre)
    x = np.concatenate([w - np.median(w, axis=0), moved - project(own.rotation, common_shift(own.rotation, moved))],
                       axis=1)
    chi2: np.ndarray = np.einsum("ni,ni->n", x, np.linalg.solve(own.covariance, x[..., None])[..., 0]) / x.shape[1]
    return chi2


def common_shift(rotation: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The displacement (3,) in the body frame that explains the images' (n, 2) best: least squares of P R g = moved."""
    shift: np.ndarray = np.linalg.lstsq(rotation[:, :2].reshape(-1, 3), moved.ravel(), rcond=None)[0]
    return shift
