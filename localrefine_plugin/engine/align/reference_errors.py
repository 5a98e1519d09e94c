"""What the errors of a reference do to the poses found with it: the image's own noise in it, and everybody else's.

**Its own.** A reference is its half-map, filtered by f, times the mask; and the half-map holds the image itself, as
C X / (σ² D) at the pose x₀ it had. So the noise of the image agrees with the reference where the image was before.
With w and u the rotation and the shift of a pose from x₀, the score is too high by

    S(w, u) = Σ_k s_k exp(−½ κ² k² (wᵀA w + ½ |u|²)),      s_k = W_k f_k V / ((2N)³ D_k),      κ = 2π / N,
    A = ½ ([x̂]×ᵀ M [x̂]× + [ŷ]×ᵀ M [ŷ]×),

W_k the sum of 2 C²/σ² over the pixels of shell k, D_k the mean of the accumulator, V the volume of the mask, M its
second moment ⟨v vᵀ⟩ about its centre, and x̂, ŷ the axes of the image, both in the body frame: the transform of the mask
says by how much a slice must turn until it meets another's noise. An image inserted over its posterior has each term
widened by it. S holds images back at their last pose. `search` takes DAMPING · S out of the score of every image that
kept one mode: what is left of S slows by little, while more than there is would make poses swing about their goal. In
the first iteration x₀ is the input pose, where S is as good as a narrow prior, and is left in.

**Everybody's.** The curvature H of the likelihood counts the detail of the reference, be it signal or noise. With F the
FSC of the two half-sets' references, signal is ρ H with

    ρ = Σ_k F_k k² |C Y|²_k / σ²_k  /  Σ_k k² |C Y|²_k / σ²_k,

while the pull of the image's noise has the variance H; with the prior's curvature Q, hence, poses are in error by

    (ρH + Q)⁻¹ (H + Q) (ρH + Q)⁻¹     instead of     (H + Q)⁻¹.

docs/explanation/motion-prior.md and tried.md say what both do to poses and to their whitened errors.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Tuple

import numpy as np
import scipy.fft

from ..kernels import poses
from ..kernels.device import array_module
from ..model.fourier import shell_index_rfft
from ..model.pixels import PixelList
from ..model.pose import cross_matrix, inverse_right_jacobian, log_map
from .reference import cube_about, support_box

Array = Any
PADDING = 2  # of the accumulator
DAMPING = 0.8  # of S is taken out
LEAST_SIGNAL = 0.25  # ρ: with less of it nothing tells how far off poses are


@dataclass(frozen=True)
class ReferenceErrors:
    """What is known of a reference's errors, by shell (M + 1,).

    agreement : F, FSC of the two references inside the mask.  share : f V / ((2N)³ D).  moment : M (3, 3) of the mask,
    px², xyz.
    """

    agreement: np.ndarray
    share: np.ndarray
    moment: np.ndarray


@dataclass(frozen=True)
class SelfNoiseBias:
    """S of n images: strength (n, S) of its terms, their rates (n, S) for wᵀA w and for |u|², and A (n, 3, 3), about
    the last pose, rotation (n, 3, 3) and shift (n, 2) px as the search counts it."""

    strength: Array
    rotation_rate: Array
    shift_rate: Array
    form: Array
    rotation: Array
    shift: Array

    def each(self, change: Callable[[Array], Array]) -> "SelfNoiseBias":
        return SelfNoiseBias(*(change(getattr(self, name)) for name in self.__dataclass_fields__))

    def at(self, owner: Array, rotation: Array, shift: Array) -> Tuple[Array, Array]:
        """S (m,) at poses of images ``owner``, and its gradient (m, 5) in (right increment of R, u)."""
        w = log_map(np.swapaxes(self.rotation[owner], 1, 2) @ rotation)
        u = shift - self.shift[owner]
        rotation_rate, shift_rate = self.rotation_rate[owner], self.shift_rate[owner]
        turned = (self.form[owner] @ w[..., None])[..., 0]
        w2, u2 = (np.sum(v * along, axis=1)[:, None].astype(np.float32) for v, along in ((w, turned), (u, u)))
        term = self.strength[owner] * np.exp(-0.5 * (rotation_rate * w2 + shift_rate * u2))
        turned = (np.swapaxes(inverse_right_jacobian(w), 1, 2) @ turned[..., None])[..., 0]
        pulls = [np.sum(term * rate, axis=1)[:, None] * v for rate, v in ((rotation_rate, turned), (shift_rate, u))]
        return np.sum(term, axis=1).astype(np.float64), -np.concatenate(pulls, axis=1)


def accumulator_mean(weight: np.ndarray, shell: np.ndarray, max_shell: int) -> np.ndarray:
    """D (M + 1,), the mean of the accumulator by shell, from the sum of C²/σ² over all insertions at half-plane pixels
    of these shells."""
    edges = np.arange(max_shell + 2) - 0.5
    area, volume = 0.5 * np.pi * np.diff(edges ** 2), 0.5 * 4 / 3 * np.pi * PADDING ** 3 * np.diff(edges ** 3)
    mean = np.bincount(shell, weight, max_shell + 1) / np.maximum(np.bincount(shell, minlength=max_shell + 1), 1)
    density: np.ndarray = mean * area / volume  # of half a shell each: small shells hold more or fewer pixels than that
    return density


def known_errors(agreement: np.ndarray, reference_map: np.ndarray, half_map: np.ndarray, mask: np.ndarray,
                 centre: np.ndarray, density: np.ndarray) -> ReferenceErrors:
    """The errors of a reference made of the images' own half-map; see `own_share` for the arguments."""
    share = own_share(reference_map, half_map, mask, centre, density)
    return ReferenceErrors(agreement, share, second_moment(mask, centre))


def own_share(reference_map: np.ndarray, half_map: np.ndarray, mask: np.ndarray, centre: np.ndarray,
              density: np.ndarray) -> np.ndarray:
    """f V / ((2N)³ D) (M + 1,) of a filtered and an unfiltered half-map (N, N, N) in the mask about ``centre`` (px from
    the box centre), with D (M + 1,) of `accumulator_mean`. f is the regression of the one's transform on the other's,
    by shell; below the join resolution, where the other half's map is in the reference too, it is too large by up to 2.
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


def second_moment(mask: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """M (3, 3) = ⟨v vᵀ⟩ of a mask about ``centre`` (px from the box centre, xyz), px²."""
    weight = cube_about(mask, centre, support_box(mask, centre)).astype(np.float64)
    offset = np.arange(len(weight)) - len(weight) // 2
    moment: np.ndarray = np.empty((3, 3))
    for i in range(3):
        for j in range(3):  # the axes of arrays are z, y, x
            values = offset.reshape([-1 if axis == 2 - i else 1 for axis in range(3)]) * offset.reshape(
                [-1 if axis == 2 - j else 1 for axis in range(3)])
            moment[i, j] = (weight * values).sum() / weight.sum()
    return moment


def turning_form(moment: Array, rotation: Array) -> Array:
    """A (n, 3, 3) of images at ``rotation`` (n, 3, 3)."""
    crosses = [cross_matrix(rotation[:, axis]) for axis in (0, 1)]
    form: Array = 0.5 * sum(array_module(c).swapaxes(c, 1, 2) @ moment @ c for c in crosses)
    return form


def self_noise_bias(errors: ReferenceErrors, pixels: PixelList, weight: Array, covariance: Array, rotation: Array,
             shift: Array, in_reference: Array) -> SelfNoiseBias:
    """DAMPING · S of n images of weight 2 C²/σ² (n, K) at ``pixels``, last at ``rotation`` and ``shift``, inserted
    there over the posterior ``covariance`` (n, 5, 5), zeros if at one pose.

    in_reference : (n,) how much each counted at that pose; those that were inserted elsewhere too have 0, and no S.
    """
    xp = array_module(weight)
    shells, by_shell = sums_by_shell(pixels, weight)
    k2 = (2 * np.pi / pixels.box_size * shells) ** 2
    form = turning_form(xp.asarray(errors.moment), rotation)
    spread = (xp.trace(form @ covariance[:, :3, :3], axis1=1, axis2=2) / 3,
              xp.trace(covariance[:, 3:, 3:], axis1=1, axis2=2) / 2)
    rates = [xp.asarray((factor * k2).astype(np.float32)) for factor in (1.0, 0.5)]
    wide = [1 + rate * variance[:, None].astype(np.float32) for rate, variance in zip(rates, spread)]
    strength = by_shell * xp.asarray((DAMPING * errors.share[shells]).astype(np.float32)) / (wide[0] ** 1.5 * wide[1])
    strength *= in_reference[:, None]
    return SelfNoiseBias(strength, rates[0] / wide[0], rates[1] / wide[1], form, rotation, shift)


def sums_by_shell(pixels: PixelList, values: Array) -> Tuple[np.ndarray, Array]:
    """The shells (S,) that pixels lie on, and the sums (n, S) of values (n, K) float32 at the pixels of each."""
    shells = np.unique(pixels.shell)
    first = np.append(np.searchsorted(pixels.shell, shells), len(pixels))
    if array_module(values) is not np:
        return shells, poses.sum_shells(values, first)
    return shells, np.stack([values[:, a:b].sum(axis=1) for a, b in zip(first[:-1], first[1:])], axis=1)


def signal_share(agreement: np.ndarray, pixels: PixelList, energy: Array) -> Array:
    """ρ (n,) from F (M + 1,) and W |Y|² (n, K) at ``pixels``."""
    xp, shell = array_module(energy), pixels.shell
    if xp is not np:
        shell, energy = sums_by_shell(pixels, energy)
    k2 = (shell ** 2).astype(np.float32)
    factors = k2, (np.clip(agreement, 0, 1)[shell] * k2).astype(np.float32)
    # no product by BLAS: its sums depend on the number of threads, those of a GPU's on the number of images
    total, of_signal = (np.einsum("nk,k->n", energy, factor) if xp is np else (energy * xp.asarray(factor)).sum(axis=1)
                        for factor in factors)
    return xp.maximum(of_signal / xp.maximum(total, 1e-30), LEAST_SIGNAL)


def pose_error_covariance(curvature: Array, precision: Array, share: Array) -> Array:
    """(ρH + Q)⁻¹ (H + Q) (ρH + Q)⁻¹ (n, 5, 5) from H, H + Q and ρ (n,)."""
    if array_module(curvature) is not np:
        return poses.pose_errors(curvature, precision, share)
    precision = precision + 1e-9 * np.eye(5)  # a direction of which nothing is known has no small error
    shrunk = np.linalg.inv(precision - (1 - share)[:, None, None] * curvature)
    return shrunk @ precision @ shrunk
