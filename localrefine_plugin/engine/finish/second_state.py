"""How many particles are in the state of a second copy of the sub-volume (second_copy.py).

The second copy is the first one moved by (R, t) about the mask's centre. An image at the pose (g, s) that shows the
first copy shows what the reference has in the mask; one that shows the second copy shows it at the pose (g R, s + P g
t). Some images are compared with the other half-set's reference, so that their noise is not in it, in two ways.

**Searched** as in an iteration, about the input pose and about this moved. With z of align/verdicts.py, d = z₂ − z₁ is
above 0 for particles of the second state, and below for those of the first. This tells a state that the map has lost.

**At the pose found**, and at this moved. With Y and Y' these two whitened models of an image X,

    d = (log L(Y') − log L(Y)) / |Y' − Y|,     log L(Y) = Re⟨X, Y⟩ − ½ |Y|²,

has the standard deviation 1 of the noise, and for particles of either state a mean that grows with |Y' − Y|. This tells
both where the reference holds both, and searches find either.

d is a mixture of two Gaussians of the same width, whose means are in proportion to |Y' − Y| in the second way. The
share of the second state is the weight of the upper one. It is believed where both stand apart, and, where it was
searched, the upper mean is above 0. A copy that is only suspected in the map is believed if they stand well apart and
the upper mean is well above 0: images of noise, which fit nowhere, have a d of 0.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Sequence, Tuple

import numpy as np

from ..align.half_alignment import match_sums, model_match, modelled
from ..align.modes import Modes, best_modes
from ..align.reference import Reference
from ..align.search import search
from ..align.search_plan import grid_of, levels_of, search_plan
from ..align.starts import pose_prior
from ..align.verdicts import gains
from ..io.mrc import read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, load_iteration, load_motion, stored_poses
from ..model.pixels import pixel_list
from ..model.pose import exp_map, project
from ..progress import ProgressBar
from ..records.results import SecondCopy
from .cross_half import Sample
from .second_copy import advice

PARTICLES_PER_HALF = 300
APART = 2.0  # standard deviations between both means, where the mixture has two peaks
WELL_APART, PREFERRED = 2.5, 0.8  # and the upper mean, where the map alone is not certain
LEAST_SHARE = 0.1  # so few particles leave no copy in a map: the mixture has parted something else
SWEEPS = 300
LEAST_SIGMA = 0.8
UNCERTAIN = 0.03  # of the share, because d is not quite Gaussian


def counted(run: RunFolder, iteration: int, found: SecondCopy, workers: int) -> SecondCopy:
    """With the share of the particles in the state of a second copy that was ``found`` or suspected in the map of an
    iteration, if it can be told."""
    if not found.rotation_vector or iteration == 0:
        return found
    halves = [about_both_places(run, iteration, half, found, workers) for half in (1, 2)]
    _, apart, upper = two_gaussians(np.concatenate(halves, axis=1))
    if not found.found and (apart < WELL_APART or upper < PREFERRED):
        return replace(found, rotation_vector=(), displacement_px=())
    if apart < APART or upper < 0:  # no peak of particles that prefer the second state
        halves = [at_poses_found(run, iteration, half, found, workers) for half in (1, 2)]
    return with_share(replace(found, found=True), halves)


def with_share(found: SecondCopy, halves: Sequence[np.ndarray]) -> SecondCopy:
    """With the share by d and its scale (2, m) of each half-set, where they tell it."""
    joined = np.concatenate(halves, axis=1)
    share, apart, _ = two_gaussians(joined)
    if apart < APART or not LEAST_SHARE < share < 1 - LEAST_SHARE:
        return replace(found, advice=advice(found))
    first, second = (two_gaussians(of_half)[0] for of_half in halves)
    drawn = np.sqrt(share * (1 - share) / joined.shape[1])
    error = float(np.hypot(UNCERTAIN, max(abs(first - second) / 2, drawn * apart / (apart - 1))))
    known = replace(found, share=share, share_error=error)
    return replace(known, advice=advice(known))


def about_both_places(run: RunFolder, iteration: int, half: int, found: SecondCopy, workers: int) -> np.ndarray:
    """(2, m): d of searches of at most PARTICLES_PER_HALF particles of a half-set, and ones."""
    some, reference = sample_of(run, iteration, half, workers)
    motion, before = load_motion(run, iteration - 1, half), load_iteration(run, iteration - 1)
    plan = search_plan(load_input(run).resolved, some.particles, before.align_resolution_angstrom,
                       None if motion is None else motion.covariance)
    rotation = some.particles.rotation
    place = some.particles.shift_px + project(rotation, plan.centre)
    first = replace(some, plan=plan, rotation=rotation, shift=place)
    turn, displacement = moved_by(found)
    second = replace(first, rotation=rotation @ turn, shift=place + project(rotation, displacement))
    d = searched(second, reference, workers) - searched(first, reference, workers)
    return np.stack([d, np.ones_like(d)])


def at_poses_found(run: RunFolder, iteration: int, half: int, found: SecondCopy, workers: int) -> np.ndarray:
    """(2, m): d and |Y' − Y| of at most PARTICLES_PER_HALF particles of a half-set."""
    some, reference = sample_of(run, iteration, half, workers)
    turn, displacement = moved_by(found)
    result = np.empty((2, len(some.chosen)))
    for index, packed in some.batches(workers):
        rotation, owner = some.rotation[index], np.arange(len(index))
        first = modelled(reference, packed, Modes.of(owner, rotation=rotation))
        second = modelled(reference, packed, Modes.of(owner, rotation=rotation @ turn,
                                                      shift=project(rotation, displacement)))
        change = second - first
        cross = (packed.matched.real * change.real + packed.matched.imag * change.imag).sum(axis=1)
        energy = [(packed.weight * (y.real ** 2 + y.imag ** 2)).sum(axis=1) for y in (first, second, change)]
        apart = np.sqrt(np.maximum(energy[2], 1e-12))
        result[:, index] = (cross - 0.5 * (energy[1] - energy[0])) / apart, apart
    return result


def sample_of(run: RunFolder, iteration: int, half: int, workers: int) -> Tuple[Sample, Reference]:
    """Some particles of a half-set at the poses found, and the other half-set's reference."""
    poses = stored_poses(run, iteration, half)
    assert poses is not None  # of an iteration that is done
    some = Sample.of(run, iteration, half, poses, PARTICLES_PER_HALF)
    return some, some.reference(read_map(run.reference(iteration - 1, 3 - half))[0], workers)


def moved_by(found: SecondCopy) -> Tuple[np.ndarray, np.ndarray]:
    """R (3, 3) and t (3,) px."""
    return exp_map(np.array([found.rotation_vector]))[0], np.array(found.displacement_px)


def searched(some: Sample, reference: Reference, workers: int) -> np.ndarray:
    """z (m,) of the best poses about those of the sample."""
    box, plan = some.particles.box_size, some.plan
    pixels = pixel_list(box, plan.align_shell, some.noise.shape[1] - 1)
    grid, shell = grid_of(plan, box, some.particles.pixel_size)
    levels, z = levels_of(pixels, shell, plan.align_shell), np.empty(len(some.chosen))
    bar = ProgressBar("states of particles", len(z))
    for index, packed in some.batches(workers):
        prior = pose_prior(plan, some.rotation[index]).to_device(np.asarray, packed.magnification)
        modes = search(reference, packed, prior, grid, levels, None, np.ones(len(index), bool))
        z[index] = gains(*match_sums(*model_match(reference, packed, best_modes(modes, len(index))))).z
        bar.update(int(index[-1]) + 1, len(z))
    return z


def two_gaussians(of: np.ndarray) -> Tuple[float, float, float]:
    """Of d and its scale (2, m): the weight of the upper of two Gaussians, how many widths they are apart at the mean
    scale, and the upper mean there. Expectation–maximisation, the likeliest of three beginnings."""
    d, scale = of[0], of[1] / of[1].mean()
    fits = []
    for share in (0.3, 0.5, 0.7):
        means, sigma = np.quantile(d, (0.2, 0.8)), max(float(d.std()) / 2, LEAST_SIGMA)
        for _ in range(SWEEPS):
            offset = d[:, None] - means * scale[:, None]
            density = np.array([1 - share, share]) * np.exp(-0.5 * (offset / sigma) ** 2) / sigma + 1e-300
            total = density.sum(axis=1)
            weight = density / total[:, None]
            share = float(weight[:, 1].mean())
            means = (weight * (d * scale)[:, None]).sum(axis=0) / np.maximum(
                (weight * (scale ** 2)[:, None]).sum(axis=0), 1e-9)
            offset = d[:, None] - means * scale[:, None]
            sigma = max(float(np.sqrt((weight * offset ** 2).sum() / len(d))), LEAST_SIGMA)
        fits.append((float(np.log(total).sum()), share, float(means[1] - means[0]) / sigma, float(means[1])))
    return max(fits)[1:]
