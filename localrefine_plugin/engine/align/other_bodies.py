"""The other bodies of the particle, taken out of the images where they were found in the last iteration.

Density of another body pulls at the poses of this one: in the mask, where masks overlap, and in the projections, where
it lies over it. Unlike noise it is known. Of an image X with CTF C,

    X̃ = X − C Σ_j e^{−2πi k·t_j/N} S_j(R_jᵀk),      S_j = F[U_j],

with (R_j, t_j) the pose of body j after the last iteration, and U_j what is known of its own density. Everything is the
half-set's own. Images are searched and inserted like this. So the map of a body lacks the others; bodies/complete.py
puts it together in the end.

**Whose density it is, in several masks.** In the map V_j of a body, made of images without the others, its own density
is sharp, and what is left of the others' is smeared by their motion against it. With m_j the masks and n iterations,

    U_j⁰ = λ m_j V_j⁰,      U_jⁿ = (1 − λ) U_jⁿ⁻¹ + λ m_j V_jⁿ,      λ = 1 / max(1, Σ_i m_i).

In one mask, and where soft edges add up to 1 or less, λ is 1 and U is the masked reference. In two masks at once λ = ½:
in the beginning the density of the input is shared out, and then each body keeps what its map goes on to show. With d
the factor by which the motion damps detail of one body in the map of the other, V_1 = D_1 + d (D_2 − U_2), and V_2
likewise. The error of U_1 + U_2 falls to (1 − d) / 2 of itself in an iteration, and that of U_1 − U_2 to (1 + d) / 2:
both bodies are told apart where they move (it is the damped iteration of Jacobi), and stay shared out where they do
not.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Iterable, List, Optional, Sequence

import numpy as np

from ..kernels.device import array_module
from ..kernels.without import Images, Pixels, take_out
from ..model.optics import image_shift
from ..model.pixels import last_column
from .images import Batch
from .reference import Reference, make_reference, slice_rows

Array = Any
NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class OtherBody:
    """``volume`` · ``mask``, both (N, N, N), is U_j. And the poses of the m particles of a half-set: rotation
    (m, 3, 3), shift_px (m, 2). Beyond ``last_shell`` nothing is known of the volume."""

    volume: np.ndarray
    mask: np.ndarray
    rotation: np.ndarray
    shift_px: np.ndarray
    last_shell: int = NO_LIMIT


def part_of_each(masks: Sequence[np.ndarray]) -> np.ndarray:
    """λ (N, N, N) of masks (N, N, N)."""
    part: np.ndarray = 1 / np.maximum(np.sum(masks, axis=0), 1)
    return part.astype(np.float32)


def followed(maps: Iterable[np.ndarray], part: np.ndarray) -> np.ndarray:
    """U_j / m_j (N, N, N) of the references V⁰, V¹, … of a body."""
    total: np.ndarray = np.zeros_like(part)
    for volume in maps:
        total += part * (volume - total)
    return total


def columns_to(last_shell: int, max_shell: int) -> np.ndarray:
    """(2M + 1,) int32: the last column of each row of a half-plane of M = ``max_shell`` with |k| ≤ ``last_shell`` + ½;
    −1 where there is none."""
    if last_shell >= max_shell:
        return last_column(max_shell)
    return np.pad(last_column(last_shell), max_shell - last_shell, constant_values=-1)


class OtherBodies:
    """What is subtracted from the images (N, N) of a half-set, to ``max_shell`` M, for which slices go to the shell
    ``reach``; ``to_device`` puts arrays where it is done."""

    def __init__(self, others: Sequence[OtherBody], box_size: int, max_shell: int, reach: int,
                 to_device: Callable[[Any], Any], workers: int):
        self.others, self.to_device = others, to_device
        self.pixels = [Pixels(*map(to_device, Pixels.to(columns_to(other.last_shell, max_shell)))) for other in others]
        self.wave = to_device(np.arange(-max_shell, max_shell + 1) * (2 * np.pi / box_size))
        self.references: List[Reference] = []
        for other in others:
            to_shell = min(reach, int(np.ceil(other.last_shell * reach / max_shell)))
            reference = make_reference(other.volume, other.mask, np.zeros(3), to_shell, workers)
            self.references.append(replace(reference, ft=to_device(reference.ft)))

    def take_out(self, batch: Batch, index: np.ndarray, inverse_noise: Array, scale: Optional[Array]) -> None:
        """Write into the ``batch`` of particles ``index`` (n,) what is left of it without the others.

        Parameters
        ----------
        inverse_noise : 1 / σ² (n, 2M + 1, M + 1).  scale : (n,) grey scale of each particle; None: 1.
        """
        images = Images(batch.signal, batch.weight, batch.power, inverse_noise)
        for reference, other, pixels in zip(self.references, self.others, self.pixels):
            rows = slice_rows(self.to_device(other.rotation[index]), reference.scale, batch.magnification)
            shift = image_shift(self.to_device(other.shift_px[index]), batch.magnification)
            take_out(reference.ft, rows, self.factors(shift, scale), pixels, images)

    def factors(self, shift: Array, scale: Optional[Array]) -> Array:
        """What `kernels.without.take_out` takes, of shifts (n, 2) px."""
        xp = array_module(shift)
        found = xp.exp(-1j * self.wave * shift[:, :, None])
        if scale is not None:
            found[:, 0] *= scale[:, None]
        return found.astype(np.complex64)
