"""How many particles are in the state of a second copy of the sub-volume (second_copy.py).

The second copy is the first one moved by (R, t) about the mask's centre. An image at the input pose (g, s) that shows
the first copy shows what the reference has in the mask; one that shows the second copy shows it at the pose
(g R, s + P g t). So some images are searched twice as in an iteration, about both poses, with the other half-set's
reference, so that the noise of an image is not in it. With z of align/verdicts.py,

    d = z₂ − z₁

is above 0 for particles of the second state, and below for those of the first; a mixture of two Gaussians of the same
width has the share. It is believed where both stand apart, and the upper mean is above 0: a second state that the
search reaches from the first pose fits there as well. A copy that is only suspected in the map is believed if they
stand well apart and the upper mean is well above 0: images of noise, which fit nowhere, have a d of 0.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Tuple

import numpy as np

from ..align.half_alignment import match_sums, model_match
from ..align.modes import best_modes
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
SWEEPS = 300
LEAST_SIGMA = 0.8
UNCERTAIN = 0.03  # of the share, because d is not quite Gaussian


def counted(run: RunFolder, iteration: int, found: SecondCopy, workers: int) -> SecondCopy:
    """With the share of the particles in the state of a second copy that was ``found`` or suspected in the map of an
    iteration, if it can be told."""
    if not found.rotation_vector or iteration == 0:
        return found
    halves = [preferences(run, iteration, half, found, workers) for half in (1, 2)]
    d = np.concatenate(halves)
    share, apart, upper = two_gaussians(d)
    if not found.found and (apart < WELL_APART or upper < PREFERRED):
        return replace(found, rotation_vector=(), displacement_px=())
    if apart < APART or upper < 0:  # no peak of particles that prefer the second state
        return found
    first, second = (two_gaussians(of_half)[0] for of_half in halves)
    drawn = np.sqrt(share * (1 - share) / len(d))
    error = float(np.hypot(UNCERTAIN, max(abs(first - second) / 2, drawn * apart / (apart - 1))))
    known = replace(found, found=True, share=share, share_error=error)
    return replace(known, advice=advice(known))


def preferences(run: RunFolder, iteration: int, half: int, found: SecondCopy, workers: int) -> np.ndarray:
    """d (m,) of at most PARTICLES_PER_HALF particles of a half-set."""
    poses, before = stored_poses(run, iteration, half), iteration - 1
    assert poses is not None  # of an iteration that is done
    some, motion = Sample.of(run, iteration, half, poses, PARTICLES_PER_HALF), load_motion(run, before, half)
    plan = search_plan(load_input(run).resolved, some.particles, load_iteration(run, before).align_resolution_angstrom,
                       None if motion is None else motion.covariance)
    rotation = some.particles.rotation
    place = some.particles.shift_px + project(rotation, plan.centre)
    first = replace(some, plan=plan, rotation=rotation, shift=place)
    turn, displacement = exp_map(np.array([found.rotation_vector]))[0], np.array(found.displacement_px)
    second = replace(first, rotation=rotation @ turn, shift=place + project(rotation, displacement))
    reference = first.reference(read_map(run.reference(before, 3 - half))[0], workers)
    return searched(second, reference, workers) - searched(first, reference, workers)


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


def two_gaussians(d: np.ndarray) -> Tuple[float, float, float]:
    """Of d (m,): the weight of the upper of two Gaussians, how many widths both means are apart, and the upper one.
    Expectation–maximisation, the likeliest of three beginnings."""
    fits = []
    for share in (0.3, 0.5, 0.7):
        means, sigma = np.quantile(d, (0.2, 0.8)), max(float(d.std()) / 2, LEAST_SIGMA)
        for _ in range(SWEEPS):
            density = np.array([1 - share, share]) * np.exp(-0.5 * ((d[:, None] - means) / sigma) ** 2) / sigma + 1e-300
            total = density.sum(axis=1)
            weight = density / total[:, None]
            share = float(weight[:, 1].mean())
            means = (weight * d[:, None]).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-9)
            sigma = max(float(np.sqrt((weight * (d[:, None] - means) ** 2).sum() / len(d))), LEAST_SIGMA)
        fits.append((float(np.log(total).sum()), share, float(means[1] - means[0]) / sigma, float(means[1])))
    return max(fits)[1:]
