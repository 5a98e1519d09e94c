"""What an alignment takes from the folder of its run."""
from __future__ import annotations

from typing import Optional

import numpy as np

from ..io.mrc import read_map
from ..io.run_folder import RunFolder
from ..io.run_store import load_iteration, load_noise
from .reference_errors import ReferenceErrors, known_errors


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
