"""Half-maps whose axes are reversed, exchanged or turned by 90° or 180°.

Such a map is V(F v) with one of the 48 orthogonal matrices F of the cube, and its slices at R F are those of V at R. A
matrix that mirrors will do: a slice is the transform at Rᵀ k, whatever the determinant of R. A particle may look much
like its own mirror image, so this is asked of every input. A few images tell which frame they fit best.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Optional, Sequence, Tuple

import numpy as np
from scipy.spatial.transform import Rotation

from ..align.reference import Reference
from ..kernels.batches import evenly_spaced
from ..model.pose import project
from .readings import AXES, MIRROR, READINGS, Explained, Reading, is_better
from .samples import STILL, Match, Sample, common_motion, moved_match, moving, overlap, slices_of

FEW_IMAGES, FRAME_IMAGES = 6, 60  # of each half-set: where images belong to their poses, and where this is not sure
BETWEEN = np.full(3, -0.5)  # px from the voxel N/2: the middle of an even box, which stays where an array is reversed
STEPS, AT_ONCE = 3, 4  # of the common motion; parts that the frames are tried in, for memory


def frames() -> np.ndarray:
    """(48, 3, 3), the identity first; the second half mirrors."""
    turns = Rotation.create_group("O").as_matrix().round()
    turns = turns[np.argsort(-np.trace(turns, axis1=1, axis2=2), kind="stable")]
    return np.concatenate([turns, turns @ np.diag([1.0, 1.0, -1.0])])


def other_frame(found: Sequence[Explained], references: Sequence[Reference], moved: Match, sure: bool
                ) -> Optional[Tuple[Reading, Match]]:
    """The reading of the half-maps in another frame, moved by what is left; None where some images fit best as they
    are, or all fit as well after one motion.

    moved : all images after the best motion, for a particle with a symmetry fits in other frames, too.
    sure : whether images surely fit their poses.
    """
    samples, every = [f.sample for f in found], frames()
    few = [s.some(evenly_spaced(len(s.index), FEW_IMAGES if sure else FRAME_IMAGES)) for s in samples]
    tried = np.concatenate([likelihoods(few, references, some) for some in np.split(every, AT_ONCE)])
    best, centred = np.unravel_index(int(tried.argmax()), tried.shape)
    if best == 0:
        return None
    there = [turned(s, every[best], int(centred) * BETWEEN) for s in samples]
    motion = common_motion(there, references, STILL, int(samples[0].packed.pixels.shell[-1]), STEPS)
    mirrors = best >= len(every) // 2 and np.count_nonzero(np.diag(every[best])) == 3
    reading, match = READINGS[MIRROR if mirrors else AXES], moved_match(there, references, motion)
    return (reading, match) if is_better(match, moved, reading.least) else None


def likelihoods(samples: Sequence[Sample], references: Sequence[Reference], tried: np.ndarray) -> np.ndarray:
    """log L (m, 2) of samples in frames (m, 3, 3), about the voxel N/2 and about the middle of the box: ½ cross² /
    energy, that of the likeliest grey scale."""
    cross, energy = np.zeros((len(tried), 2)), np.zeros((len(tried), 1))
    for sample, reference in zip(samples, references):
        n = len(sample.index)
        every, frame = sample.some(np.tile(np.arange(n), len(tried))), np.repeat(tried, n, axis=0)
        unmoved = slices_of(every, reference, every.particles.rotation @ frame)
        product = every.packed.matched.conj() * unmoved
        there = turned(every, frame, BETWEEN).particles
        centred = product * moving(every, there.rotation, there.shift_px, unmoved.shape[1])
        by_image = np.stack([product.real.sum(axis=1), centred.real.sum(axis=1)], axis=1)
        cross += by_image.reshape(len(tried), n, 2).sum(axis=1)
        energy += overlap(every, unmoved, unmoved).reshape(len(tried), n, 1).sum(axis=1)
    return 0.5 * np.maximum(cross, 0) ** 2 / np.maximum(energy, 1e-30)


def turned(sample: Sample, frame: np.ndarray, about: np.ndarray) -> Sample:
    """At the poses that a map V(F (v − c) + c) has, about a point c, where V has those of the sample; one frame F
    (3, 3), or one of each image (n, 3, 3)."""
    p = sample.particles
    shift = p.shift_px + project(p.rotation, about - frame @ about)
    return replace(sample, particles=replace(p, rotation=p.rotation @ frame, shift_px=shift))
