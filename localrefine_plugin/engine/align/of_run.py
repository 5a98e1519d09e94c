"""What an alignment takes from the folder of its run, and what it leaves there."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np

from ..io.mrc import ImageReader, read_map, write_map
from ..io.run_folder import RunFolder
from ..io.run_store import (
    load_input,
    load_iteration,
    load_motion,
    load_noise,
    load_nulls,
    save_arrays,
    stored_poses,
)
from ..model.pixels import shell_of_resolution
from ..records.particles import Particles
from .half_alignment import HalfSet
from .half_set import HalfResult
from .other_bodies import OtherBody, followed, part_of_each
from .reference_errors import ReferenceErrors, known_errors
from .search_plan import SearchPlan, search_plan

BEYOND = 1.25  # times the shell of its resolution a reference still shows something: half-maps agree to less than 0.1


def half_task(folder: RunFolder, iteration: int, half: int, of_half: Tuple[np.ndarray, Particles],
              reader: ImageReader) -> Tuple[HalfSet, SearchPlan]:
    """What is aligned of a half-set in an iteration of a run, and how it is searched; ``of_half`` as
    `stored_half_set` has it for another run, whose grey scales of optics groups may differ."""
    given, before = load_input(folder), load_iteration(folder, iteration - 1)
    row, particles = of_half[0], replace(of_half[1], optics=given.optics)
    mask, _ = read_map(folder.mask_in_use(iteration - 1))
    reference_map, _ = read_map(folder.reference(iteration - 1, half))
    motion = load_motion(folder, iteration - 1, half)
    plan = search_plan(given.resolved, particles, before.align_resolution_angstrom,
                       None if motion is None else motion.covariance)
    errors = errors_of_reference(folder, iteration - 1, half, reference_map, mask, plan.centre)
    noise, poses = load_noise(folder, iteration - 1, half), stored_poses(folder, iteration - 1, half)
    static_part = read_map(folder.static_part(half))[0] if given.resolved.subtract else None
    nulls, others = load_nulls(folder, iteration - 1, half), other_bodies(folder, iteration - 1, half, particles, row)
    return HalfSet(particles, row, reader, reference_map, mask, noise, poses, errors, static_part, nulls, others), plan


def save_half(folder: RunFolder, iteration: int, half: int, result: HalfResult, pixel_size: float) -> List[Path]:
    """Write what an align step found; returns the files."""
    folder.iteration(iteration).mkdir(exist_ok=True)
    files = [folder.half_map(iteration, half), folder.poses(iteration, half), folder.noise(iteration, half)]
    write_map(files[0], result.half_map, pixel_size)
    save_arrays(files[1], **result.poses.columns())
    save_arrays(files[2], power=result.noise_power, accumulator_mean=result.accumulator_mean)
    if result.motion is not None:
        files.append(folder.motion(iteration, half))
        save_arrays(files[3], **result.motion.columns())
    return files


def errors_of_reference(folder: RunFolder, iteration: int, half: int, reference_map: np.ndarray, mask: np.ndarray,
                        centre: np.ndarray) -> Optional[ReferenceErrors]:
    """What is known of the errors of the reference that an iteration left.

    None of the input's: it need not be made from these images, and ends where both halves agree.
    """
    if iteration == 0:
        return None
    agreement = np.array(load_iteration(folder, iteration).reference_fsc)
    half_map, density = read_map(folder.half_map(iteration, half))[0], load_noise(folder, iteration, half,
                                                                                            "accumulator_mean")
    return known_errors(agreement, reference_map, half_map, mask, centre, density)


def other_bodies(folder: RunFolder, iteration: int, half: int, particles: Particles,
                 rows: np.ndarray) -> List[OtherBody]:
    """The other bodies of a run of several masks as an iteration left them; [] where they are not subtracted. Of a body
    that had converged before: as its last iteration left it. ``particles`` are those of the half-set with these
    ``rows`` (m,) of the input table."""
    given = load_input(folder)
    if not given.subtracted_bodies:
        return []
    bodies = [folder] + [RunFolder(folder.path.parent / name) for name in given.subtracted_bodies]
    last = [min(iteration, body.iterations_done()) for body in bodies]
    masks = [read_map(body.mask_in_use(k))[0] for body, k in zip(bodies, last)]
    part = part_of_each(masks)
    found = []
    for body, k, mask in list(zip(bodies, last, masks))[1:]:
        poses = stored_poses(body, k, half)
        if poses is None:
            rotation, shift = particles.rotation, particles.shift_px
        else:
            at = np.searchsorted(np.asarray(poses.row), rows)
            rotation, shift = poses.rotation[at], poses.shift_px[at]
        volume = followed((read_map(body.reference(i, half))[0] for i in range(k + 1)), part)
        resolution = load_iteration(body, k).align_resolution_angstrom
        known = BEYOND * shell_of_resolution(resolution, particles.box_size, particles.pixel_size)
        found.append(OtherBody(volume, mask, rotation, shift, int(np.ceil(known))))
    return found
