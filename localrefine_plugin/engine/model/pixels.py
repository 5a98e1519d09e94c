"""The half-plane of image frequencies, in an order that makes a resolution limit a prefix."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Tuple

import numpy as np

from ..kernels.device import array_module

Array = Any


@dataclass(frozen=True)
class PixelList:
    """Half-plane pixels (Friedel column counted once, no DC), shell by shell and by angle in a shell.

    Attributes
    ----------
    kx, ky : (K,) float32, cycles per box.
    shell : (K,) int64, rounded |k|.
    index : (K,) int64, position in the flattened `half_plane` of that image.
        kx, ky and index may be on a device, shell is always numpy's.
    box_size : N.  max_shell : M, the half-plane has rows ky = −M … M and columns kx = 0 … M.
    """

    kx: Array
    ky: Array
    shell: np.ndarray
    index: Array
    box_size: int
    max_shell: int

    def __len__(self) -> int:
        return len(self.kx)

    def to_device(self, to_device: Callable[[np.ndarray], Array]) -> "PixelList":
        """The list where ``to_device`` puts arrays."""
        return replace(self, kx=to_device(self.kx), ky=to_device(self.ky), index=to_device(self.index))

    def phases(self, displacement_px: Array) -> Array:
        """e^{2πi k·u/N} (n, K) complex64 for displacements u (n, 2) px, as products of one table per axis."""
        xp = array_module(displacement_px)
        frequency = xp.arange(-self.max_shell, self.max_shell + 1) * (2 * np.pi / self.box_size)
        table = xp.exp(1j * frequency * displacement_px[:, :, None]).astype(np.complex64)
        column, row = (k.astype(np.int64) + self.max_shell for k in (self.kx, self.ky))
        return table[:, 0].take(column, axis=1) * table[:, 1].take(row, axis=1)

    def first(self, count: int) -> "PixelList":
        """The first ``count`` of them."""
        if count == len(self):
            return self
        return PixelList(self.kx[:count], self.ky[:count], self.shell[:count], self.index[:count], self.box_size,
                         self.max_shell)

    def prefix(self, max_shell: float) -> int:
        """Number of pixels whose shell is at most ``max_shell``."""
        return int(np.searchsorted(self.shell, max_shell, side="right"))


def highest_shell(box_size: int) -> int:
    """Highest shell in use: below Nyquist."""
    return (box_size - 1) // 2


def pixel_list(box_size: int, last_shell: int, max_shell: int) -> PixelList:
    """All pixels with 0 < |k| and rounded |k| ≤ last_shell of a half-plane of M = ``max_shell``."""
    ky, kx = np.meshgrid(np.arange(-max_shell, max_shell + 1), np.arange(max_shell + 1), indexing="ij")
    radius = np.hypot(kx, ky)
    shell = np.rint(radius).astype(np.int64)
    chosen = (shell <= last_shell) & ((kx > 0) | (ky > 0))
    kx, ky, shell = kx[chosen], ky[chosen], shell[chosen]
    order = np.lexsort((np.arctan2(ky, kx), shell))  # neighbours in the list are neighbours in the plane: cache
    kx, ky, shell = kx[order], ky[order], shell[order]
    index = (ky + max_shell) * (max_shell + 1) + kx
    return PixelList(kx.astype(np.float32), ky.astype(np.float32), shell, index, box_size, max_shell)


def half_plane_frequencies(max_shell: int) -> Tuple[np.ndarray, np.ndarray]:
    """kx and ky (2M + 1, M + 1) float32 of a half-plane."""
    ky, kx = np.meshgrid(np.arange(-max_shell, max_shell + 1), np.arange(max_shell + 1), indexing="ij")
    return kx.astype(np.float32), ky.astype(np.float32)


def last_column(max_shell: int) -> np.ndarray:
    """(2M + 1,) int32: last column of each row of a half-plane with |k| ≤ M + ½."""
    ky = np.arange(-max_shell, max_shell + 1)
    return np.minimum(np.floor(np.sqrt((max_shell + 0.5) ** 2 - ky ** 2)), max_shell).astype(np.int32)


def shell_of_resolution(resolution_angstrom: float, box_size: int, pixel_size: float) -> float:
    """Shell (cycles per box) of a resolution in Å: N·a / d."""
    return box_size * pixel_size / resolution_angstrom


def shell_starts(shell: np.ndarray) -> np.ndarray:
    """Where each shell begins among pixels that are sorted by shell (K,), for `np.add.reduceat`."""
    starts: np.ndarray = np.flatnonzero(np.diff(shell, prepend=-1))
    return starts
