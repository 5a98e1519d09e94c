"""What a run says of the directions of its map: record, arrays for the picture, and a sentence."""
from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from ..io.run_folder import RunFolder
from ..io.run_store import load_input, save_arrays, save_record
from ..maps.directions import CONE_DEG, ConeFsc, Sampling, cone_fsc, sampling
from ..maps.half_maps import HalfMaps
from ..model.symmetry import operators
from ..records.results import SEEN_BY_NONE, Directions

Array = Any
EVEN_SCF, EVEN_CFAR = 0.81, 0.5  # the field's: views from all sides about one axis; cryoSPARC's orientation diagnostics


def write_directions(run: RunFolder, halves: HalfMaps, mask: Array, rotation: np.ndarray) -> Directions:
    """directions.json and directions.npz of half-maps made of views ``rotation`` (n, 3, 3), in a mask (N, N, N)."""
    given = load_input(run)
    views = sampling(rotation, operators(given.resolved.symmetry))
    cones = cone_fsc(*halves.spectra_under(mask), given.pixel_size)
    save_arrays(run.final("directions.npz"), sampling_directions=views.directions, views=views.views,
                cone_directions=cones.directions, cone_curves=cones.curves.astype(np.float32),
                cone_resolution_angstrom=cones.resolution_angstrom)
    found = record_of(views, cones)
    save_record(run.final("directions.json"), found)
    return found


def record_of(views: Sampling, cones: ConeFsc) -> Directions:
    best, worst = int(cones.resolution_angstrom.argmin()), int(cones.resolution_angstrom.argmax())
    resolutions = float(cones.resolution_angstrom[best]), float(cones.resolution_angstrom[worst])
    direction = tuple(float(v) for v in cones.directions[worst])
    return Directions(cones.cfar, views.scf, views.scf_star, views.unseen, resolutions[0], resolutions[1], direction,
                      advice(views, cones.cfar, resolutions))


def advice(views: Sampling, cfar: float, resolutions: Sequence[float]) -> str:
    """A sentence where the map is not equally good in all directions, else ""."""
    if views.scf_star >= EVEN_SCF and cfar >= EVEN_CFAR:
        return ""
    text = (f"the map is not equally good in all directions (cFAR {cfar:.2f}, even above {EVEN_CFAR}; SCF* "
            f"{views.scf_star:.2f}, even above {EVEN_SCF}): between {resolutions[0]:.1f} and {resolutions[1]:.1f} Å "
            f"within cones of {CONE_DEG:.0f}°. The resolution in one number holds only on average")
    if views.unseen > SEEN_BY_NONE:
        text += (f". {100 * views.unseen:.0f} % of the directions are seen by no particle. Half-maps agree there all "
                 "the same, for what is missing is missing in both: the map is worse than its FSC says")
    return text + (". Look at streaks along one direction before you interpret the map. Only particles seen from other "
                   "sides help: tilt the grid, or change its surface")
