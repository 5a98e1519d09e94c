"""Particles that cannot be used, left out one by one while they are few.

Left out is a particle whose image holds NaN or infinity, is constant or is far stronger than the others; one without
defocus among others that have it; and one with a defocus, phase shift or origin that no particle can have. More than
1 % of them is no accident and is refused.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Tuple

import numpy as np

from ..io.image_problems import image_problems
from ..io.mrc import ImageReader
from ..records.errors import InputError
from ..records.particles import Particles
from ..records.run_input import Excluded
from .copies import KEYS_AT_ONCE, Marker, confirmed, pairs_of_keys, pairs_of_marks, pixel_keys
from .half_sets import Copies

MOST_EXCLUDED = 0.01
TOO_STRONG = 1e3
"""Times the median range of grey values; particles under ice of different thickness differ by less than ten times."""
GREY_RANGE = 1e-12, 1e12  # its square, times the pixels of an image, must fit a 32-bit float
LARGEST_DEFOCUS = 5e5
LARGEST_PHASE_SHIFT = 3600.0
ONE_POSE = 5  # images with exactly one pose are no coincidence
LISTED = 3
BATCH_BYTES = 2 * 2 ** 20  # what a cache of the CPU holds


@dataclass(frozen=True)
class Images:
    """What was seen of the images that can be used: ``copies``, and by row of the particles the ``level`` (n,) of their
    noise, NaN for the others."""

    copies: Copies
    level: np.ndarray


def exclude_unusable(particles: Particles, star: str) -> Tuple[Particles, Tuple[Excluded, ...], Images]:
    """The particles with half-set 0 for those that cannot be used, the list of these, and what was seen of the others;
    looks at every image once.

    Raises
    ------
    InputError : more than 1 % cannot be used, an image cannot be read, or the grey values are out of all proportion.
    """
    of_table = _unusable_rows(particles)
    _refuse_many(of_table, particles, star)  # before all images are read
    of_images, seen = _unusable_images(particles)
    reasons = {**of_images, **of_table}
    if not reasons:
        return particles, (), seen
    _refuse_many(reasons, particles, star)
    rows = sorted(reasons)
    half_set = particles.half_set.copy()
    half_set[rows] = 0
    for half in (1, 2):
        if not np.any(half_set == half):
            raise InputError(f"half-set {half} has no particle that can be used", star, "re-extract the particles")
    return replace(particles, half_set=half_set), tuple(
        Excluded(row + 1, f"{particles.slice[row] + 1:06d}@{particles.stacks[particles.stack[row]]}", reasons[row])
        for row in rows), seen


def _refuse_many(reasons: Dict[int, str], particles: Particles, star: str) -> None:
    if len(reasons) <= MOST_EXCLUDED * len(particles):
        return
    row = min(reasons)
    raise InputError(
        f"row {row + 1} (image {particles.slice[row] + 1} of {particles.stacks[particles.stack[row]]}) {reasons[row]}, "
        f"and {len(reasons)} of {len(particles)} particles cannot be used, more than {100 * MOST_EXCLUDED:g} %",
        star, "remove, correct or re-extract these particles")


def exclusion_warning(excluded: Tuple[Excluded, ...], count: int) -> List[str]:
    """What is said of the excluded of ``count`` particles; the first few by name."""
    if not excluded:
        return []
    named = "; ".join(f"row {e.row} ({e.image}) {e.reason}" for e in excluded[:LISTED])
    more = f"; and {len(excluded) - LISTED} more, listed in input.json" if len(excluded) > LISTED else ""
    return [f"{len(excluded)} of {count} particles cannot be used. They are left out of the refinement and of the "
            f"output: {named}{more}"]


def _unusable_rows(particles: Particles) -> Dict[int, str]:
    """Reason by row, from what the table says."""
    defocus = np.maximum(np.abs(particles.defocus_u), np.abs(particles.defocus_v))
    origin = np.abs(particles.shift_px).max(axis=1)
    reasons: Dict[int, str] = {}
    for values, bad, text in (
            (defocus, (defocus == 0) & bool(defocus.any()), "has a defocus of {:g}"),
            (defocus, defocus > LARGEST_DEFOCUS, "has a defocus of {:g} Å"),
            (particles.phase_shift, np.abs(particles.phase_shift) > LARGEST_PHASE_SHIFT, "has a phase shift of {:g}°"),
            (origin, origin > particles.box_size / 2, "has an origin of {:g} px, outside its image")):
        reasons.update({int(row): text.format(values[row]) for row in np.flatnonzero(bad)})
    return {**reasons, **_unaligned_rows(particles)}


def _unaligned_rows(particles: Particles) -> Dict[int, str]:
    """Reason by row, of different images with one and the same pose: that of particles that were not aligned."""
    _, index, count = np.unique(_pose_keys(particles), return_inverse=True, return_counts=True)
    some = np.flatnonzero(count[index.ravel()] >= ONE_POSE)
    _, index, count = np.unique(_rounded_poses(particles, some), axis=0, return_inverse=True, return_counts=True)
    suspect = np.flatnonzero(count >= ONE_POSE)
    reasons: Dict[int, str] = {}
    for pose_index in suspect:
        rows = some[index.ravel() == pose_index]
        images = len(np.unique(np.stack([particles.stack[rows], particles.slice[rows]]), axis=1).T)
        if ONE_POSE <= images < len(particles):
            reasons.update({int(row): f"has the same pose as {images - 1} others. It was not aligned" for row in rows})
    return reasons


def _rounded_poses(particles: Particles, rows: Any) -> np.ndarray:
    """(n, 11) of rotation and shift."""
    pose = np.concatenate([particles.rotation[rows].reshape(-1, 9), particles.shift_px[rows]], axis=1)
    rounded: np.ndarray = pose.round(6) + 0.0  # turns −0 into 0
    return rounded


def _pose_keys(particles: Particles) -> np.ndarray:
    """(n,) uint64, the same for the same pose; what sorts numbers takes a tenth of the memory of what sorts poses."""
    return np.concatenate([pixel_keys(_rounded_poses(particles, slice(start, start + KEYS_AT_ONCE)).astype(np.float32))
                           for start in range(0, len(particles), KEYS_AT_ONCE)])


def _unusable_images(particles: Particles) -> Tuple[Dict[int, str], Images]:
    """Reason by row; symmetry-expanded copies share their image. And what was seen of the others."""
    rows, image = _images_of(particles)
    span, level, keys = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32), np.empty(len(rows), np.uint64)
    marker = Marker(particles.box_size, len(rows))
    marks = np.empty((len(rows), marker.words), np.uint16)
    problems: Dict[int, str] = {}
    batch = max(1, BATCH_BYTES // (4 * particles.box_size ** 2))
    with ImageReader(particles) as reader:
        for start in range(0, len(rows), batch):
            images = reader.read_unchecked(rows[start:start + batch])
            here = slice(start, start + len(images))
            problems.update({start + i: text for i, text in image_problems(images).items()})
            with np.errstate(invalid="ignore", over="ignore"):
                span[here] = np.ptp(images, axis=(1, 2))
                marks[here], level[here] = marker(images)
            keys[here] = pixel_keys(images)
    if len(problems) < len(rows):
        problems.update(_too_strong(span, problems, particles, rows))
    del span
    bad = list(problems)
    level[bad] = np.nan
    marks[bad] = np.random.default_rng(0).integers(0, 1 << 16, (len(bad), marker.words))  # like no other
    same = pairs_of_keys(keys)
    twins = np.unique(same)
    keys = keys[twins]
    near = _other_pixels(pairs_of_marks(marks, marker.rounds), twins, keys)
    same = same[~np.isin(same, bad).any(axis=1)]
    seen = Images(Copies(rows[same], confirmed(rows[near], particles)), level[image])
    return {int(row): problems[i] for row, i in enumerate(image) if i in problems} if problems else {}, seen


def _images_of(particles: Particles) -> Tuple[np.ndarray, np.ndarray]:
    """A row (m,) of each image, in the order of the files, and the image (n,) of each row."""
    key = particles.stack.astype(np.int64) * (int(particles.slice.max()) + 1) + particles.slice
    _, rows, image = np.unique(key, return_index=True, return_inverse=True)
    return rows.astype(np.int32), image.ravel().astype(np.int32)


def _other_pixels(pairs: np.ndarray, twins: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Those of the pairs (m, 2) that do not hold the same pixels; ``keys`` are those of the ``twins`` only."""
    if not len(twins):
        return pairs
    at = np.minimum(np.searchsorted(twins, pairs), len(twins) - 1)
    same = (twins[at] == pairs).all(axis=1) & (keys[at[:, 0]] == keys[at[:, 1]])
    other: np.ndarray = pairs[~same]
    return other


def _too_strong(span: np.ndarray, problems: Dict[int, str], particles: Particles, rows: np.ndarray) -> Dict[int, str]:
    usable = np.ones(len(span), bool)
    usable[list(problems)] = False
    median = float(np.median(span[usable]))
    if not GREY_RANGE[0] < median < GREY_RANGE[1]:
        raise InputError(f"the grey values of most images span {median:.3g}",
                         particles.stacks[particles.stack[rows[0]]], "normalise them to a standard deviation of 1")
    return {int(i): f"has grey values that span {span[i]:.3g}, most images {median:.3g}"
            for i in np.flatnonzero(usable & (span > TOO_STRONG * median))}
