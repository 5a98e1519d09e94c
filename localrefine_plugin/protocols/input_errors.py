"""What the form says about the inputs before the run: cheap checks of Scipion's objects."""
from __future__ import annotations

import os
from typing import Any, List, Sequence

import numpy as np
from pwem.objects import VolumeMask

from ..engine.inputs.half_sets import PARITY_TEXT, parity_split

SIZE_TOLERANCE = 1e-3  # relative difference of sampling rates that is not rounding any more
LOOKED_AT = 100  # particles; a random split agrees with the parity of so many with a chance of 1e-30


def half_map_files(volume: Any) -> List[str]:
    """File names of the half-maps ([] without)."""
    return [str(name) for name in volume.getHalfMaps(asList=True)] if volume.hasHalfMaps() else []


def particle_errors(particles: Any, resplit: bool) -> List[str]:
    if not particles.hasAlignmentProj():
        return ["*Particles*: they are not aligned to a volume; use the output of a 3D refinement."]
    first = particles.getFirstItem()
    if first is None:
        return ["*Particles*: the set is empty."]
    if not resplit and first.getAttributeValue("_rlnRandomSubset", None) not in (1, 2):
        return ["*Particles*: the items carry no half-set (_rlnRandomSubset of 1 or 2); use the particles of a "
                "refinement with independent half-sets."]
    return []


def volume_errors(volume: Any) -> List[str]:
    if isinstance(volume, VolumeMask):
        return ["*Volume*: this is a mask; give the map of the refinement."]
    halves = half_map_files(volume)
    if len(halves) != 2:
        return ["*Volume*: it has no half-maps; use the output of a refinement, or import it with both half-maps."]
    missing = [name for name in halves if not os.path.exists(name.split(":")[0])]
    return [f"*Volume*: the half-map {name} does not exist." for name in missing]


def geometry_errors(particles: Any, volume: Any, name: str, resample: bool, can_resample: bool = True) -> List[str]:
    """Box and pixel size of a volume against the particles'; both may differ where it will be resampled.
    ``can_resample``: whether the form has a switch for that."""
    dim = volume.getDim()
    if dim is None:
        return [f"The file of the {name} ({volume.getFileName()}) cannot be read."]
    if resample:
        return []
    errors = []
    remedy = f"resample the {name}."
    if can_resample:
        remedy = "switch on *Resample half-maps and mask* (Refinement, advanced), or " + remedy
    pixel, other = particles.getSamplingRate(), volume.getSamplingRate()
    if pixel and other and abs(other / pixel - 1) > SIZE_TOLERANCE:
        errors.append(f"*Sampling rate*: the {name} has {other:.4g} Å/px, the particles have {pixel:.4g} Å/px; "
                      + remedy)
    box = particles.getXDim()
    if box and tuple(dim) != (box, box, box):
        errors.append(f"*Box*: the {name} has {dim[0]} × {dim[1]} × {dim[2]} voxels, the particles have {box} × {box} "
                      f"pixels; " + remedy)
    return errors


def mask_name(k: int) -> str:
    """What mask k, from 0, is called where something is wrong with it."""
    return "mask" if k == 0 else f"mask {k + 1}"


def more_mask_errors(masks: Sequence[Any]) -> List[str]:
    """What several masks cannot be: empty entries, one mask twice."""
    if len(masks) < 2:
        return []
    errors = [f"*More masks*: entry {k} is empty; remove it, or choose a mask."
              for k, mask in enumerate(masks[1:], 1) if mask is None]
    files = [os.path.realpath(mask.getFileName()) for mask in masks if mask is not None]
    if len(set(files)) < len(files):
        errors.append("*More masks*: a mask is given twice; give each body its own mask.")
    return errors


def frame_errors(particles: Any, volume: Any, mask: Any, name: str = "mask") -> List[str]:
    """A mask of another grid whose origin puts its centre elsewhere than the volume's."""
    if not (volume.hasOrigin() and mask.hasOrigin()) or same_grid(volume, mask):
        return []
    distance = max(abs(a - b) for a, b in zip(centre_angstrom(volume), centre_angstrom(mask)))
    if distance <= particles.getSamplingRate() / 2:
        return []
    return [f"*{name.capitalize()}*: by their origins its centre is {distance:.1f} Å from the volume's, so they "
            "are in different frames. Bring it onto the grid of the volume, for instance in ChimeraX: volume resample "
            "#mask onGrid #map; or correct its origin with 'pwem - assign orig & sampling'."]


def same_grid(a: Any, b: Any) -> bool:
    return a.getDim() == b.getDim() and abs(a.getSamplingRate() / b.getSamplingRate() - 1) <= SIZE_TOLERANCE


def centre_angstrom(volume: Any) -> List[float]:
    """x, y, z of voxel N // 2 by the volume's origin."""
    return [shift + n // 2 * volume.getSamplingRate()
            for shift, n in zip(volume.getOrigin().getShifts(), volume.getDim())]


def parity_warnings(particles: Any) -> List[str]:
    """The half-sets that cryosparc2 5.0.1 writes over those of a set; looks at the first particles only."""
    items = [(item.getObjId(), item.getAttributeValue("_rlnRandomSubset", None))
             for item in particles.iterItems(limit=LOOKED_AT)]
    if any(half is None for _, half in items):
        return []
    return [PARITY_TEXT] if parity_split(*np.array(items, dtype=int).reshape(-1, 2).T) else []
