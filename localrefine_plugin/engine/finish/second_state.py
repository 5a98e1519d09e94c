"""How many particles are in the state of a second copy of the sub-volume (second_copy.py).

The second copy is the first one moved by M = (R, t) about the mask's centre. An image at the pose (g, s) that shows the
first copy shows what the reference has in the mask; one that shows the second copy shows it at the pose (g R, s + P g
t). Some images are searched as in an iteration about their input pose, about this moved by M, and about it moved by
M⁻¹, so near that no pose belongs to two of these places. They are compared with the other half-set's reference, so
that their noise is not in it. Images of the first state fit the first copy at the input pose, and the second copy at
M⁻¹. Those of the second state fit the second copy at the input pose, and the first copy at M. How well images fit
where there is neither is measured about poses moved by M turned to an axis at right angles. state_mixture.py makes a
share of it, whether the reference holds one copy or both, and whether or not the run's own search reaches the second
state.

Two states are believed if they explain the images much better than one does, and if a copy fits where it is moved to:
at M or M⁻¹ images of noise fit no better than anywhere. So the particles decide on a copy that is only suspected.
"""
from __future__ import annotations

from dataclasses import replace
from typing import List, Tuple

import numpy as np

from ..align.half_alignment import match_sums, model_match
from ..align.images import displaced
from ..align.modes import best_modes
from ..align.reference import Reference
from ..align.search import search
from ..align.search_plan import align_shell_of, grid_of, levels_of, search_plan
from ..align.starts import pose_prior
from ..align.verdicts import gains
from ..io.mrc import read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, load_iteration, load_motion, stored_particles, stored_poses
from ..model.pixels import pixel_list
from ..model.pose import exp_map, project
from ..progress import ProgressBar
from ..records.results import SecondCopy
from .cross_half import Sample
from .second_copy import advice
from .state_mixture import States, states_told

Place = Tuple[np.ndarray, np.ndarray]  # R (3, 3) and t (3,) px
MOST, LEAST = 1000, 200  # particles of a half-set
COST = 4.5e5  # of the particles of a half-set times the square of the last shell, within these limits: 3 s of CPU time
LEAST_PARTICLES = 100  # of both half-sets, for the mixture
TOLD = 0.15  # error of a share that is said
LEAST_SHARE = 0.1  # so few particles leave no copy in a map: the mixture has parted something else
LEAST_MOVED = 0.45  # 0.49 and more in 21 sets of two states; at most 0.25 where 30 % of the images are noise
TELLS, CONFIRMS = 6.0, 30.0  # gain, where the map is certain and where it is not. 10 to 300 in these sets; at most 20
# where LEAST_MOVED is reached by one of 45 motions that are not there
UNCERTAIN = 0.03  # of the share, because z is not quite Gaussian
MOTION_ERROR_DEG, MOTION_ERROR_ANGSTROM = 3.0, 2.0  # of M: 0.7° to 4° in 13 sets of 16, 7° and 11° in two
UNTOLD = States(0.0, np.inf, 0.0, 0.0)


def counted(run: RunFolder, iteration: int, found: SecondCopy, workers: int) -> SecondCopy:
    """With the share of the particles in the state of a second copy that was ``found`` or suspected in the map of an
    iteration, if it can be told."""
    if not found.rotation_vector or iteration == 0:
        return found
    z = np.concatenate([at_places(run, iteration, half, found, workers) for half in (1, 2)])
    told = states_told(z[:, :3], float(z[:, 3].mean())) if len(z) >= LEAST_PARTICLES else UNTOLD
    enough = TELLS if found.found else CONFIRMS
    parted = told.gain > enough and told.moved > LEAST_MOVED and LEAST_SHARE < told.share < 1 - LEAST_SHARE
    if not found.found and not parted:
        return replace(found, rotation_vector=(), displacement_px=())
    known = replace(found, found=True)
    if parted and told.error < TOLD:
        known = replace(known, share=told.share, share_error=float(np.hypot(UNCERTAIN, told.error)))
    return replace(known, advice=advice(known))


def at_places(run: RunFolder, iteration: int, half: int, found: SecondCopy, workers: int) -> np.ndarray:
    """z (m, 4) of some particles of a half-set: about the input poses, about these moved by M, by M⁻¹, and to a place
    of nothing."""
    poses, before = stored_poses(run, iteration, half), load_iteration(run, iteration - 1)
    assert poses is not None  # of an iteration that is done
    resolved, resolution = load_input(run).resolved, before.align_resolution_angstrom
    shell = align_shell_of(resolution, resolved, stored_particles(run))
    some = Sample.of(run, iteration, half, poses, int(np.clip(COST / shell ** 2, LEAST, MOST)))
    motion = load_motion(run, iteration - 1, half)
    learned = None if motion is None else widened(motion.covariance, some)
    plan = search_plan(resolved, some.particles, resolution, learned)
    near = np.deg2rad(found.least_rotation_deg) / 2
    rotation = some.particles.rotation
    about = replace(some, plan=replace(plan, rotation_extent=min(near, plan.rotation_extent)), rotation=rotation,
                    shift=some.particles.shift_px + project(rotation, plan.centre))
    reference = some.reference(read_map(run.reference(iteration - 1, 3 - half))[0], workers)
    return searched(about, reference, places(found, half), workers)


def widened(motion: np.ndarray, some: Sample) -> np.ndarray:
    """The learned covariance (6, 6) of the motion and the errors of M."""
    errors = [np.deg2rad(MOTION_ERROR_DEG)] * 3 + [MOTION_ERROR_ANGSTROM / some.particles.pixel_size] * 3
    added: np.ndarray = motion + np.diag(np.square(errors))
    return added


def places(found: SecondCopy, half: int) -> List[Place]:
    """Motions: none, M, M⁻¹, and one of M's size about an axis at right angles to M's, the opposite one for half 2."""
    turn, displacement = exp_map(np.array([found.rotation_vector]))[0], np.array(found.displacement_px)
    axis = np.array(found.rotation_vector) / np.linalg.norm(found.rotation_vector)
    across = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    aside = exp_map((1.5 - half) * np.pi * across[None] / np.linalg.norm(across))[0]
    return [(np.eye(3), np.zeros(3)), (turn, displacement), (turn.T, -turn.T @ displacement),
            (aside @ turn @ aside.T, aside @ displacement)]


def searched(some: Sample, reference: Reference, where: List[Place], workers: int) -> np.ndarray:
    """z (m, places) of the best poses about those of the sample, moved to each place."""
    box, plan = some.particles.box_size, some.plan
    pixels = pixel_list(box, plan.align_shell, some.noise.shape[1] - 1)
    grid, shell = grid_of(plan, box, some.particles.pixel_size)
    levels, z = levels_of(pixels, shell, plan.align_shell), np.empty((len(some.chosen), len(where)))
    bar = ProgressBar("states of particles", len(z))
    for index, packed in some.batches(workers):
        everyone = np.ones(len(index), bool)
        for column, (turn, displacement) in enumerate(where):
            rotation = some.rotation[index]
            there = displaced(packed, project(rotation, displacement))
            prior = pose_prior(plan, rotation @ turn).to_device(np.asarray, there.magnification)
            best = best_modes(search(reference, there, prior, grid, levels, None, everyone), len(index))
            z[index, column] = gains(*match_sums(*model_match(reference, there, best))).z
        bar.update(int(index[-1]) + 1, len(z))
    return z
