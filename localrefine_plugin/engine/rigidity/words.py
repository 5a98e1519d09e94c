"""What was found of the motion inside a particle, in sentences and for ChimeraX."""
from __future__ import annotations

from typing import List, Sequence, Tuple

import numpy as np

from ..merge.motion_report import hinge_words
from ..records.rigidity import CellMotion, RigidBody

RGB = ("#8c8c8c", "#d9a441", "#4477aa", "#aa3377", "#228833", "#ee6677")


def words_of(cells: Sequence[CellMotion], bodies: Sequence[RigidBody], particles: int) -> Tuple[str, ...]:
    seen = np.array([cell.detectable_angstrom for cell in cells])
    limit = (f"In {particles} images a motion of {np.median(seen):.1f} Å per axis of one cell is seen (two standard "
             f"errors; {seen.min():.1f} to {seen.max():.1f} Å)")
    if len(bodies) == 1:
        said = ["The images show one rigid body: no part of the particle is seen to move as a body of its own"]
    else:
        said = [f"The images show {len(bodies)} bodies that move against each other. Look at the masks, then refine "
                "each body with its own"]
        said += [body_words(body) for body in bodies[1:]]
        said += [forecast_words(body) for body in bodies if body.forecast is not None]
    return (*said, *loose_words(cells), limit)


def body_words(body: RigidBody) -> str:
    """How a body moves."""
    motion = body.motion
    assert motion is not None
    turned, moved = (", ".join(f"{v:.1f}" for v in widths)
                     for widths in (motion.rotation_widths_deg, motion.displacement_widths_angstrom))
    hinge = "" if motion.hinge is None else f". {hinge_words(motion.hinge)}"
    return (f"Body {body.number} ({100 * body.share:.0f} % of the density, {body.mask}) moves against body 1 by "
            f"{turned}° and {moved} Å (standard deviations along its axes, the latter at its centre){hinge}")


def forecast_words(body: RigidBody) -> str:
    """What a refinement with the mask of a body will reach."""
    found = body.forecast
    assert found is not None
    text = (f"A local refinement with {body.mask} is expected to reach about {found.to_report_angstrom:.1f} Å, with "
            f"poses known to {found.rotation_error_deg:.1f}° and {found.shift_error_angstrom:.1f} Å per axis")
    return f"{text}. {found.doubt}" if found.doubt else text


def loose_words(cells: Sequence[CellMotion]) -> List[str]:
    """Cells that move although they belong to the body that the others are told against."""
    loose = [cell for cell in cells if cell.body == 1 and cell.moves]
    if not loose:
        return []
    most = max(loose, key=lambda cell: cell.displacement_angstrom)
    at = ", ".join(f"{v:.0f}" for v in most.centre_px)
    share = 100 * sum(cell.share for cell in loose)
    return [f"{len(loose)} of the cells of body 1 ({share:.0f} % of the density) move by up to "
            f"{most.displacement_angstrom:.1f} ± {most.displacement_error_angstrom:.1f} Å per axis (at {at} px), but "
            "not together. Such cells lie at the border of a body, bend, or are not there in every particle"]


def table_of(cells: Sequence[CellMotion]) -> List[str]:
    """One line for each cell, of those that move least first."""
    lines = ["body  share  motion per axis      seen from   centre (px)"]
    for cell in sorted(cells, key=lambda one: (one.body, one.variance_angstrom2)):
        at = ", ".join(f"{v:.0f}" for v in cell.centre_px)
        lines.append(f"{cell.body:4d}  {100 * cell.share:4.1f} %  {cell.displacement_angstrom:4.1f} ± "
                     f"{cell.displacement_error_angstrom:.1f} Å {'*' if cell.moves else ' '}       "
                     f"{cell.detectable_angstrom:4.1f} Å    {at}")
    return lines


def chimerax_script(bodies: Sequence[RigidBody], level: float, largest: float) -> str:
    """Commands of ChimeraX: the map coloured by the motion, the masks of the bodies hidden behind it."""
    lines = ["# The motion inside a particle, for ChimeraX. Model 1 is the map, coloured by motion (model 2, in Å):",
             f"# grey where nothing moves, red from {largest:.1f} Å. Models 3 and up are the masks of the bodies:",
             "# show one of them with  show #3 models", "set bgColor white", "open ../map.mrc", "open motion.mrc",
             f"volume #1 style surface level {level:.5g}", "hide #2 models",
             f"color sample #1 map #2 palette 0,#b0b0b0:{0.5 * largest:.3g},#f0d060:{largest:.3g},#c02020"]
    for number, body in enumerate(bodies, 3):
        lines += [f"open {body.mask}", f"volume #{number} style surface level 0.5 transparency 0.6 color "
                  f"{RGB[(number - 3) % len(RGB)]}", f"hide #{number} models"]
    return "\n".join([*lines, "view"]) + "\n"
