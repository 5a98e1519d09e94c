"""What the errors of a reference do to the poses found with it: the image's own noise in it, and everybody else's.

**Its own.** A reference is its half-map, filtered by f, times the mask; and the half-map holds the image itself, as
C X / (σ² D) at the pose x₀ it had. So the noise of the image agrees with the reference where the image was before.
With w and u the rotation and the shift of a pose from x₀, the score is too high by

    S(w, u) = Σ_k s_k exp(−½ κ² k² (⅔ q |w|² + ½ |u|²)),      s_k = W_k f_k V / ((2N)³ D_k),      κ = 2π / N,

W_k the sum of 2 C²/σ² over the pixels of shell k, D_k the mean of the accumulator, V the volume of the mask and q the
mean square of a coordinate in it: its transform says by how much a slice must turn until it meets another's noise. An
image inserted over its posterior, of variances c_w and c_u per axis, has each term of S widened by them. S holds images
back at their last pose: on `mid` its curvature is 0.7 of the likelihood's, so that an iteration went little more
than half of the way. `search` takes S out of the score of every image that kept one mode. (In the first
iteration x₀ is the input pose, where S is as good as a narrow prior: taking it out made poses worse, and is not done.)

**Everybody's.** The curvature H of the likelihood counts the detail of the reference, be it signal or noise. With F the
FSC of the two half-sets' references, signal is ρ H with

    ρ = Σ_k F_k k² |C Y|²_k / σ²_k  /  Σ_k k² |C Y|²_k / σ²_k,

while the pull of the image's noise has the variance H; with the prior's curvature Q, hence, poses are in error by

    (ρH + Q)⁻¹ (H + Q) (ρH + Q)⁻¹     instead of     (H + Q)⁻¹.

What both do to poses and to their whitened errors was measured: docs/motion-prior.md, docs/performance.md.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Tuple

import numpy as np
import scipy.fft

from .fourier import shell_index_rfft
from .kernels.device import array_module
from .pixels import PixelList
from .pose import log_map
from .reference import cube_about, support_box

Array = Any
PADDING = 2  # of the accumulator
LEAST_SIGNAL = 0.25  # ρ: with less of it nothing tells how far off poses are


@dataclass(frozen=True)
class ReferenceErrors:
    """What is known of a reference's errors, by shell (M + 1,).

    agreement : F, FSC of the two references inside the mask.  share : f V / ((2N)³ D), zeros if the reference was not
    made from the images that are aligned with it.
    """

    agreement: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class OwnTerm:
    """S of n images: strength (n, S) of its terms with their rates (n, S) per rad² and per px², about the last pose,
    rotation (n, 3, 3) and shift (n, 2) px as the search counts it."""

    strength: Array
    rotation_rate: Array
    shift_rate: Array
    rotation: Array
    shift: Array

    def each(self, change: Callable[[Array], Array]) -> "OwnTerm":
        return OwnTerm(*(change(getattr(self, name)) for name in self.__dataclass_fields__))

    def at(self, owner: Array, rotation: Array, shift: Array) -> Tuple[Array, Array]:
        """S (m,) at poses of images ``owner``, and its gradient (m, 5) in (right increment of R, u)."""
        xp = array_module(shift)
        w = log_map(xp.swapaxes(self.rotation[owner], 1, 2) @ rotation)
        u = shift - self.shift[owner]
        rotation_rate, shift_rate = self.rotation_rate[owner], self.shift_rate[owner]
        w2, u2 = (xp.sum(v * v, axis=1)[:, None].astype(np.float32) for v in (w, u))
        term = self.strength[owner] * xp.exp(-0.5 * (rotation_rate * w2 + shift_rate * u2))
        # |w| does not depend on which side the increment is: its gradient is w to either
        pulls = [xp.sum(term * rate, axis=1)[:, None] * v for rate, v in ((rotation_rate, w), (shift_rate, u))]
        return xp.sum(term, axis=1).astype(np.float64), -xp.concatenate(pulls, axis=1)


def coverage(weight: np.ndarray, shell: np.ndarray, max_shell: int) -> np.ndarray:
    """D (M + 1,), the mean of the accumulator by shell, from the sum of C²/σ² over all insertions at half-plane pixels
    of these shells."""
    edges = np.arange(max_shell + 2) - 0.5
    area, volume = 0.5 * np.pi * np.diff(edges ** 2), 0.5 * 4 / 3 * np.pi * PADDING ** 3 * np.diff(edges ** 3)
    mean = np.bincount(shell, weight, max_shell + 1) / np.maximum(np.bincount(shell, minlength=max_shell + 1), 1)
    density: np.ndarray = mean * area / volume  # of half a shell each: small shells hold more or fewer pixels than that
    return density


def own_share(reference_map: np.ndarray, half_map: np.ndarray, mask: np.ndarray, centre: np.ndarray,
              density: np.ndarray) -> np.ndarray:
    """f V / ((2N)³ D) (M + 1,) of a filtered and an unfiltered half-map (N, N, N) in the mask about ``centre`` (px from
    the box centre), with D (M + 1,) of `coverage`. f is the regression of the one's transform on the other's, by shell;
    below the join resolution, where the other half's map is in the reference too, it is too large by up to 2.
    """
    box, edge = mask.shape[0], support_box(mask, centre)
    filtered, plain = (scipy.fft.rfftn(cube_about(volume * mask, centre, edge)) for volume in (reference_map, half_map))
    shell = shell_index_rfft((edge,) * 3).ravel()
    passed, power = (np.bincount(shell, (other.conj() * plain).real.ravel()) for other in (filtered, plain))
    transfer = np.clip(passed / np.maximum(power, 1e-30), 0, 1)
    f = np.interp(np.arange(len(density)) * edge / box, np.arange(len(transfer)), transfer)
    covered = np.maximum(density, 1e-6 * density.max())  # where no image reaches nothing comes back
    share: np.ndarray = np.where(density > 0, f, 0) * mask.sum(dtype=np.float64) / ((PADDING * box) ** 3 * covered)
    return share


def own_term(share: np.ndarray, mask_radius: float, pixels: PixelList, weight: Array, spread: Array, rotation: Array,
             shift: Array, settled: Array) -> OwnTerm:
    """S of n images of weight 2 C²/σ² (n, K) at ``pixels``, last at ``rotation`` and ``shift``, inserted there over the
    variances ``spread`` (n, 2) per axis of rotation (rad²) and shift (px²).

    mask_radius : effective, px; q is a fifth of its square.  settled : (n,) bool, the others have no S.
    """
    xp = array_module(weight)
    shells = np.unique(pixels.shell)
    first = np.append(np.searchsorted(pixels.shell, shells), len(pixels))
    by_shell = xp.stack([weight[:, a:b].sum(axis=1) for a, b in zip(first[:-1], first[1:])], axis=1)
    k2 = (2 * np.pi / pixels.box_size * shells) ** 2
    rotation_rate, shift_rate = (xp.asarray((factor * k2).astype(np.float32))
                                 for factor in (2 / 3 * mask_radius ** 2 / 5, 0.5))
    wide = [1 + rate * spread[:, i, None].astype(np.float32) for i, rate in enumerate((rotation_rate, shift_rate))]
    strength = by_shell * xp.asarray(share[shells].astype(np.float32)) / (wide[0] ** 1.5 * wide[1])
    strength *= settled[:, None]
    return OwnTerm(strength, rotation_rate / wide[0], shift_rate / wide[1], rotation, shift)


def signal_share(agreement: np.ndarray, pixels: PixelList, energy: Array) -> Array:
    """ρ (n,) from F (M + 1,) and W |Y|² (n, K) at ``pixels``."""
    xp = array_module(energy)
    k2 = (pixels.shell ** 2).astype(np.float32)
    signal = xp.asarray((np.clip(agreement, 0, 1)[pixels.shell] * k2).astype(np.float32))
    # einsum: the sums of a threaded BLAS depend on the number of threads
    total, of_signal = (xp.einsum("nk,k->n", energy, factor) for factor in (xp.asarray(k2), signal))
    return xp.maximum(of_signal / xp.maximum(total, 1e-30), LEAST_SIGNAL)


def error_covariance(curvature: Array, precision: Array, share: Array) -> Array:
    """(ρH + Q)⁻¹ (H + Q) (ρH + Q)⁻¹ (n, 5, 5) from H, H + Q and ρ (n,)."""
    xp = array_module(curvature)
    precision = precision + 1e-9 * xp.eye(5)  # a direction of which nothing is known has no small error
    shrunk = xp.linalg.inv(precision - (1 - share)[:, None, None] * curvature)
    return shrunk @ precision @ shrunk
