"""How many particles are in the state of a second copy that the map holds (second_copy.py).

The second copy is the first one moved by (R, t) about the mask's centre. An image at the pose (g, s) that shows the
first copy shows what the reference T has in the mask; one that shows the second copy shows T moved, which is T at the
pose (g R, s + P g t). With Y and Y' these two whitened models of an image X,

    d = (log L(Y') − log L(Y)) / |Y' − Y|,     log L(Y) = Re⟨X, Y⟩ − ½ |Y|²,

has the standard deviation 1 of the noise, and for particles of either state a mean that grows with |Y' − Y|. T is the
other half-set's reference, so that the noise of X is not in it. T holds some of the other copy, and poses are
uncertain, so that means and standard deviation are fitted: d is a mixture of two Gaussians of the same width, whose
means are in proportion to |Y' − Y|. The share of the second state is the weight of the upper one. It is believed where
both stand apart.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Tuple

import numpy as np

from ..align.half_alignment import modelled
from ..align.modes import Modes
from ..io.mrc import read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_poses
from ..model.pose import exp_map, project
from ..records.results import SecondCopy
from .cross_half import Sample
from .second_copy import advice

PARTICLES_PER_HALF = 500
APART = 2.0  # standard deviations between both means, where the mixture has two peaks
SWEEPS = 300
LEAST_SIGMA = 0.8
UNCERTAIN = 0.03  # of the share, because d is not quite Gaussian: four sets were off by 0.01 to 0.04


def counted(run: RunFolder, iteration: int, found: SecondCopy, workers: int) -> SecondCopy:
    """With the share of the particles in the state of a second copy that was ``found`` in the map of an iteration, if
    it can be told."""
    if not found.found or iteration == 0:
        return found
    halves = [preferences(run, iteration, half, found, workers) for half in (1, 2)]
    share, apart = two_gaussians(np.concatenate(halves, axis=1))
    if apart < APART:
        return found
    first, second = (two_gaussians(of_half)[0] for of_half in halves)
    drawn = np.sqrt(share * (1 - share) / sum(of_half.shape[1] for of_half in halves))
    error = float(np.hypot(UNCERTAIN, max(abs(first - second) / 2, drawn * apart / (apart - 1))))
    known = replace(found, share=share, share_error=error)
    return replace(known, advice=advice(known))


def preferences(run: RunFolder, iteration: int, half: int, found: SecondCopy, workers: int) -> np.ndarray:
    """(2, m): d and |Y' − Y| of at most PARTICLES_PER_HALF particles of a half-set."""
    poses = load_poses(run, iteration, half)
    assert poses is not None
    some = Sample.of(run, iteration, half, poses, PARTICLES_PER_HALF)
    reference = some.reference(read_map(run.reference(iteration - 1, 3 - half))[0], workers)
    turn, displacement = exp_map(np.array([found.rotation_vector]))[0], np.array(found.displacement_px)
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


def two_gaussians(of: np.ndarray) -> Tuple[float, float]:
    """Of d and |Y' − Y| (2, m): the weight of the upper of two Gaussians, and how many widths they are apart at the
    mean of |Y' − Y|. Expectation–maximisation, the likeliest of three beginnings."""
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
        fits.append((float(np.log(total).sum()), share, float(means[1] - means[0]) / sigma))
    return max(fits)[1:]
