"""What a run has, on fewer pixels of the same field of view.

The control aligns a sample of the images three times over, and makes maps that are looked at up to a few Å. Sums of a
map take 8 (N / 2)³ cells and more, whatever the number of images: with the pixels that the resolution needs, box 256 at
1.4 Å becomes box 120, a tenth of the cells.

Transforms are cropped, so all that is left has the value it had. With s the new box over the old one, maps keep their
grey values; images are multiplied by s³, so that they are the projections of these maps, and the power of their noise
by s⁶. Lengths in px are multiplied by s. An odd box stays, for another one has another middle.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence, Tuple

import numpy as np
import scipy.fft

from ..align.other_bodies import OtherBody
from ..kernels import fft
from ..kernels.background import plane_fit, without_background
from ..kernels.device import CPU, Device, array_module, to_host
from ..kernels.prefetch import Read
from ..model.fourier import resample_map
from ..model.pixels import highest_shell
from ..motion.motion_prior import about_point
from ..records.particles import Particles
from ..records.poses import PoseTable
from ..records.resolved import ResolvedSettings

Array = np.ndarray
AT_ONCE = 1 << 26  # bytes of images that are cropped at a time
WORTH_IT = 0.9  # of the box: a larger one is no less work


@dataclass(frozen=True)
class Coarser:
    """Boxes of ``old`` px as boxes of ``new`` px."""

    old: int
    new: int
    workers: int = 1

    @classmethod
    def holding(cls, box_size: int, last_shell: int, workers: int) -> "Coarser":
        """On the fewest px, of a box that is transformed fast, whose `highest_shell` is ``last_shell`` or more."""
        new = 2 * int(scipy.fft.next_fast_len(last_shell + 1, real=True))
        return cls(box_size, box_size if box_size % 2 or new > WORTH_IT * box_size else new, workers)

    @property
    def scale(self) -> float:
        """s"""
        return self.new / self.old

    @property
    def same(self) -> bool:
        return self.old == self.new

    def map(self, volume: Array) -> Array:
        """(N, N, N)"""
        return volume if self.same else resample_map(volume, self.new, self.workers)

    def mask(self, mask: Array) -> Array:
        """By linear interpolation, so that it is zero where it was."""
        return mask if self.same else interpolated(mask, self.new)

    def full_size(self, mask: Array) -> Array:
        """A mask of the coarser grid on the finer one."""
        return mask if self.same else interpolated(mask, self.old)

    def images(self, read: Read, index: Array, device: Device = CPU) -> Array:
        """Images ``index`` (n,) that ``read`` gives, (n, N, N), less their background."""
        background = [device.to_device(part) for part in plane_fit(self.old)]
        found = np.empty((len(index), self.new, self.new), np.float32)
        step = max(1, AT_ONCE // (4 * self.old ** 2))
        for start in range(0, len(index), step):
            part = slice(start, start + step)
            images = without_background(device.to_device(read(index[part])), *background)
            found[part] = to_host(cropped(images, self.new, self.workers))
        return found

    def noise(self, power: Array) -> Array:
        """(groups, M + 1)"""
        return power if self.same else power[:, :highest_shell(self.new) + 1] * self.scale ** 6

    def density(self, mean: Array) -> Array:
        """(M + 1,), the mean of an accumulator's D, which counts C² / σ²."""
        return mean if self.same else mean[:highest_shell(self.new) + 1] / self.scale ** 6

    def particles(self, particles: Particles) -> Particles:
        if self.same:
            return particles
        optics = tuple(replace(group, box_size=self.new, pixel_size=group.pixel_size / self.scale)
                       for group in particles.optics)
        return replace(particles, shift_px=particles.shift_px * self.scale, optics=optics)

    def poses(self, table: PoseTable) -> PoseTable:
        """Of `PoseTable` what a search begins with, and the covariances."""
        if self.same:
            return table
        px = np.array([1, 1, 1, self.scale, self.scale], np.float32)
        covariances = {name: np.asarray(getattr(table, name)) * px[:, None] * px
                       for name in ("covariance", "pose_error_covariance")}
        return replace(table, shift_px=table.shift_px * self.scale, **covariances)

    def other_body(self, other: OtherBody) -> OtherBody:
        if self.same:
            return other
        return replace(other, volume=self.map(other.volume), mask=self.mask(other.mask),
                       shift_px=other.shift_px * self.scale)

    def resolved(self, resolved: ResolvedSettings) -> ResolvedSettings:
        if self.same:
            return resolved
        return replace(resolved, fulcrum_px=self.point(resolved.fulcrum_px),
                       mask_centre_px=self.point(resolved.mask_centre_px))

    def point(self, corner: Sequence[float]) -> Tuple[float, ...]:
        """x, y, z in px from the corner of the box."""
        return tuple((v - self.old // 2) * self.scale + self.new // 2 for v in corner)

    def motion(self, covariance: Array, resolved: ResolvedSettings) -> Array:
        """Σ (6, 6) about the centre of the mask of a run, about that of `resolved`: whole px of each grid."""
        if self.same:
            return covariance
        px = np.array([1, 1, 1, self.scale, self.scale, self.scale])
        centre = self.resolved(resolved).mask_centre_offset(self.new)
        offset = centre - self.scale * resolved.mask_centre_offset(self.old)
        return about_point(covariance * px[:, None] * px, offset)


def interpolated(mask: Array, box: int) -> Array:
    """A mask (N, N, N) on ``box`` px of the same field of view, with the same middle."""
    n, step = len(mask), len(mask) / box
    at = np.clip(n // 2 + step * (np.arange(box) - box // 2), 0, n - 1)
    low = np.minimum(at.astype(int), n - 2)
    share = (at - low).astype(np.float32)
    for axis in range(3):
        along = share.reshape([-1 if k == axis else 1 for k in range(3)])
        mask = mask.take(low, axis) * (1 - along) + mask.take(low + 1, axis) * along
    return mask


def cropped(images: Array, box: int, workers: int = 1) -> Array:
    """Images (n, N, N), N even, on ``box`` px, with as much of their transforms as `highest_shell` allows, times s³."""
    xp, n, last = array_module(images), images.shape[-1], highest_shell(box)
    spectra = fft.rfft2(xp.fft.ifftshift(images, axes=(1, 2)), workers)
    few = xp.zeros((len(images), box, box // 2 + 1), np.complex64)
    few[:, :last + 1, :last + 1] = spectra[:, :last + 1, :last + 1]
    few[:, box - last:, :last + 1] = spectra[:, n - last:, :last + 1]
    few *= np.float32((box / n) ** 3)
    rows = fft.ifft(few, 1, workers)
    return xp.fft.fftshift(fft.irfft(rows, box, 2, workers), axes=(1, 2))
