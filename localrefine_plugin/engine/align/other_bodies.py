"""The other bodies of the particle, taken out of the images where they were found in the last iteration.

Density of another body pulls at the poses of this one: in the mask, where masks overlap, and in the projections, where
it lies over it. Unlike noise it is known. Of an image X with CTF C,

    X̃ = X − C Σ_j e^{−2πi k·t_j/N} S_j(R_jᵀk),      S_j = F[s_j V_j],      s_j = m_j / max(1, Σ_i m_i),

with (R_j, t_j) the pose of body j after the last iteration, V_j its reference, m_j its mask: density in two masks is
shared out. Everything is the half-set's own. Images are searched and inserted like this. So the map of a body lacks the
others, and where masks overlap and nothing moves, V_1 = T − s_2 V_2 and V_2 = T − s_1 V_1 of the density T: two thirds
of it each for equal shares. bodies/compose.py and bodies/scene.py put it together again.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, List, Optional, Sequence

import numpy as np

from ..kernels.device import array_module
from ..kernels.slices import extract_slices
from ..model.optics import image_shift
from ..model.pixels import PixelList
from .images import Batch
from .reference import Reference, make_reference, slice_rows

Array = Any
LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class OtherBody:
    """``volume`` (N, N, N) filtered and unmasked, its ``share`` (N, N, N) of the density, and the poses of the m
    particles of a half-set: rotation (m, 3, 3), shift_px (m, 2)."""

    volume: np.ndarray
    share: np.ndarray
    rotation: np.ndarray
    shift_px: np.ndarray


def share_of(masks: Sequence[np.ndarray], k: int) -> np.ndarray:
    """s_k (N, N, N) of masks (N, N, N)."""
    share: np.ndarray = masks[k] / np.maximum(np.sum(masks, axis=0), 1)
    return np.where(share < LEAST_SHARE, 0, share).astype(np.float32)


class OtherBodies:
    """What is subtracted from the images of a half-set, to ``max_shell``, where ``to_device`` puts arrays."""

    def __init__(self, others: Sequence[OtherBody], pixels: PixelList, max_shell: int,
                 to_device: Callable[[Any], Any], workers: int):
        self.others, self.pixels, self.to_device = others, pixels.to_device(to_device), to_device
        # the column kx = 0 of a half-plane holds k and −k, of which a list of pixels has one
        self.column = to_device(pixels.index[pixels.kx == 0])
        self.opposite = 2 * pixels.max_shell * (pixels.max_shell + 1) - self.column
        self.references: List[Reference] = []
        for other in others:
            reference = make_reference(other.volume, other.share, np.zeros(3), max_shell, workers)
            self.references.append(replace(reference, ft=to_device(reference.ft)))

    def subtracted(self, batch: Batch, index: np.ndarray, inverse_noise: Array, scale: Optional[Array]) -> Batch:
        """The images of particles ``index`` (n,) without the others.

        With Z = C X / σ², W = C² / σ² and S the sum of the others: Z − W S, and |X − C S|² = |X|² + σ² (W |S|² − 2
        Re(conj(Z) S)).

        Parameters
        ----------
        inverse_noise : 1 / σ² (n, 2M + 1, M + 1).  scale : (n,) grey scale of each particle; None: 1.
        """
        total = sum(self.seen(reference, other, index, batch.magnification)
                    for reference, other in zip(self.references, self.others))
        if scale is not None:
            total *= scale.astype(np.float32)[:, None]
        n, (rows, columns) = len(index), batch.signal.shape[1:]
        plane = array_module(total).zeros((n, rows * columns), np.complex64)
        plane[:, self.pixels.index] = total
        plane[:, self.opposite] = plane[:, self.column].conj()
        plane = plane.reshape(n, rows, columns)
        change = batch.weight * (plane.real ** 2 + plane.imag ** 2)
        change -= 2 * (batch.signal.real * plane.real + batch.signal.imag * plane.imag)
        return replace(batch, signal=batch.signal - batch.weight * plane, power=batch.power + change / inverse_noise)

    def seen(self, reference: Reference, other: OtherBody, index: np.ndarray, magnification: Optional[Array]) -> Array:
        """What the images of particles ``index`` (n,) show of another body, without CTF (n, K)."""
        rotation, shift = self.to_device(other.rotation[index]), self.to_device(other.shift_px[index])
        rows = slice_rows(rotation, reference.scale, magnification)
        slices = extract_slices(reference.ft, rows, self.pixels.kx, self.pixels.ky)
        slices *= self.pixels.phases(-image_shift(shift, magnification))
        return slices
