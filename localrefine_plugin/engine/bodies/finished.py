"""A finished run as one body of a particle, and whether two runs refined the same particles in the same half-sets."""
from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Dict, List

import numpy as np

from ..io.mrc import open_mrc, read_map
from ..io.run_folder import PathLike, RunFolder
from ..io.run_store import load_input, load_iteration, load_particles, load_tables
from ..maps.fsc import FscCurves, read_fsc
from ..records.errors import InputError
from ..records.particles import Particles
from ..records.poses import PoseTable
from ..records.run_input import RunInput


@dataclass(frozen=True)
class Body:
    """What a finished run says of its sub-volume.

    run : the folder.  iteration : the one that the results are of.  poses : of half-set 1 and 2.
    """

    run: RunFolder
    given: RunInput
    particles: Particles
    iteration: int
    poses: Dict[int, PoseTable]

    @property
    def centre(self) -> np.ndarray:
        """(3,) whole px from the centre of the box, xyz: the point whose displacement a motion is told for."""
        return self.given.resolved.mask_centre_offset(self.given.box_size)

    @property
    def subtracted_bodies(self) -> List[RunFolder]:
        """The runs of the bodies that were taken out of the images."""
        return [RunFolder(self.run.path.parent / name) for name in self.given.subtracted_bodies]

    @property
    def curves(self) -> FscCurves:
        return read_fsc(self.run.final("fsc.star"))

    def map(self, name: str) -> np.ndarray:
        """A map (N, N, N) of RUN/final."""
        return read_map(self.run.final(name))[0]

    def used(self) -> np.ndarray:
        """(m,) rows of the particles that have a pose, ascending."""
        return np.sort(np.concatenate([table.row for table in self.poses.values()]))

    def __str__(self) -> str:
        return f"run {self.run.path}"


def open_body(path: PathLike) -> Body:
    """The body of a finished run; InputError for any other folder."""
    run = RunFolder(path)
    if not run.results_complete():
        raise InputError("is not finished", f"run {path}", "run the verb finish first")
    return body_of(run)


def body_of(run: RunFolder) -> Body:
    """The body of a run whose iterations are done; InputError without refined poses."""
    best = load_iteration(run, run.iterations_done()).best_iteration
    tables = load_tables(run, best)
    if len(tables) != 2:
        raise InputError("has no refined poses", f"run {run.path}",
                         "give a run whose result is of iteration 1 or later")
    return Body(run, load_input(run), load_particles(run), best, dict(zip((1, 2), tables)))


def matching_rows(first: Body, second: Body) -> np.ndarray:
    """(n,) row in ``second`` of each particle of ``first``; −1 of those that neither run used.

    A particle is known by the content of its stack and its number there, wherever the file is. InputError unless both
    runs have the same particles, in the same half-sets, in the same box.
    """
    if (first.given.box_size, round(first.given.pixel_size, 4)) != (
            second.given.box_size, round(second.given.pixel_size, 4)):
        raise InputError(f"has a box of {second.given.box_size} px of {second.given.pixel_size:.4f} Å, not "
                         f"{first.given.box_size} px of {first.given.pixel_size:.4f} Å as {first}", str(second),
                         "give runs of the same images")
    rows, keys = zip(*((body.used(), image) for body, image in zip((first, second), image_keys(first, second))))
    ours, theirs = keys[0][rows[0]], keys[1][rows[1]]
    if not np.array_equal(np.sort(ours), np.sort(theirs)):
        common = len(np.intersect1d(ours, theirs))
        raise InputError(f"has other particles than {first}: {common} images are in both, {len(ours)} in that run, "
                         f"{len(theirs)} in this one", str(second), "give runs of the same particles")
    found = np.full(len(first.particles), -1)
    if len(np.unique(ours)) == len(ours):
        found[rows[0][np.argsort(ours)]] = rows[1][np.argsort(theirs)]
    elif np.array_equal(ours, theirs):  # copies of one image (symmetry expansion) are known by their order
        found[rows[0]] = rows[1]
    else:
        raise InputError(f"has copies of the same images in another order than {first}", str(second),
                         "give runs of one particle file")
    differ = first.particles.half_set[rows[0]] != second.particles.half_set[found[rows[0]]]
    if differ.any():
        raise InputError(f"has other half-sets than {first}: {np.count_nonzero(differ)} of {len(differ)} particles are "
                         "in the other half", str(second), "give runs with the half-sets of one refinement")
    return found


def image_keys(*bodies: Body) -> List[np.ndarray]:
    """(n,) int64 of each body: the same number for the same image."""
    stacks = [[stack_name(path) for path in body.given.stacks] for body in bodies]
    number = {name: i for i, name in enumerate(dict.fromkeys(name for names in stacks for name in names))}
    return [np.array([number[name] for name in names], dtype=np.int64)[body.particles.stack] * (1 << 32)
            + body.particles.slice for body, names in zip(bodies, stacks)]


def stack_name(path: str) -> str:
    """What tells a stack from others, in whatever folder and under whatever header it is: its shape and a digest of its
    first and last image; its path, if it is not there any more."""
    if not os.path.exists(path):
        return os.path.realpath(path)
    with open_mrc(path) as mrc:
        images = mrc.data.reshape((-1,) + mrc.data.shape[-2:])
        digest = hashlib.blake2b(digest_size=16)
        for image in (images[0], images[-1]):
            digest.update(np.ascontiguousarray(image).tobytes())
        return f"{images.shape} {digest.hexdigest()}"


def half_rows(first: Body, second: Body, half: int) -> np.ndarray:
    """(m,) where the particles of a half-set of ``first``, in the order of its poses, are in those of ``second``."""
    rows = matching_rows(first, second)[first.poses[half].row]
    table = second.poses[half].row
    order = np.argsort(table)
    return order[np.searchsorted(table[order], rows)]
