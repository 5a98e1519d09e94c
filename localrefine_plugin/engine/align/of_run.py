"""What an alignment takes from the folder of its run."""
from __future__ import annotations

from typing import List, Optional

import numpy as np

from ..io.mrc import read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_input, load_iteration, load_noise, stored_poses
from ..model.pixels import shell_of_resolution
from ..records.particles import Particles
from .other_bodies import OtherBody, followed, part_of_each
from .reference_errors import ReferenceErrors, known_errors

BEYOND = 1.25  # times the shell of its resolution a reference still shows something: half-maps agree to less than 0.1


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
