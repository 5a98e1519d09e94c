"""What the uncertainty of the poses takes from a map, which two half-maps cannot see.

The FSC cannot detect a blur that both half-maps share. Poses that are uncertain by a few degrees blur the sub-volume,
more so far from its centre. Both half-maps are blurred alike; the FSC between them then comes from the sharper core,
and is better than the FSC to the truth. The blur is known: the covariance of every pose. The effect of poses
drawn from such covariances on the map is

    κ(k) = FSC(⟨map moved by a draw⟩, map)   inside the mask,

and a marginalised map carries it twice, once for the errors of the poses (PoseTable.pose_error_covariance) and once
for the smearing over their posteriors (PoseTable.covariance), so that the FSC of the map to the truth is expected at

    C(k) = √(2F / (1 + F)) · κ_error(k) · κ_posterior(k),

without the last factor if it is not marginalised, with F the corrected half-map FSC (Rosenthal & Henderson 2003,
doi:10.1016/j.jmb.2003.07.013, for the square root; `expected_map_to_truth` for half-sets of unequal size).
Half-map FSC 0.143 corresponds to C = 0.5 where κ = 1. The resolution to report is the coarser of both.

Measured against the truth (FSC 0.5, benchmark data, half-maps / to report / truth in Å): `mid` 5.46 / 5.47 / 5.49;
prior off 5.47 / 5.49 / 5.50; at SNR .02 7.39 / 7.52 (7.35 to 8.85) / 8.11, Gaussian prior 8.57 / 9.94 / 9.91, prior
off 10.06 / 10.97 (10.54 to 11.71) / 11.28 (benchmarks/honesty/resolution_to_report.py).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple, Union

import numpy as np

from ..align.reference import cube_about, integer_centre, support_box
from ..kernels.device import array_module
from ..kernels.moved import sum_of_moved
from ..maps.fsc import FscCurves, fsc, resolution_at
from ..model.fourier import apply_shell_filter, resample_map
from ..model.pose import exp_map
from ..records.iteration import TRUTH_THRESHOLD

Array = Any
Share = Union[float, np.ndarray]
DRAWS = 32
WORTH_SAYING = 1.05
HARDLY_KNOWN = 1.1
STANDARD_ERRORS = 2
FINEST = 0.7  # the map is looked at on pixels of 0.7 × half its resolution


def expected_map_to_truth(corrected: np.ndarray, kappa: np.ndarray, share: Share = 0.5) -> np.ndarray:
    """C(k) by shell of the weighted mean of two half-maps, from their corrected FSC F and the product of all κ, both
    (N // 2 + 1,), and the share r of what both know that half-map 1 knows, by shell or in all.

    With S the signal-to-noise ratio of the mean, the half-maps have r S and (1 − r) S, so that
    F² = r (1 − r) S² / ((1 + r S)(1 + (1 − r) S)), and C = √(S / (1 + S)). For r = ½ it is √(2F / (1 + F)).
    """
    f2, product = np.clip(corrected, 0, 1) ** 2, np.asarray(share) * (1 - np.asarray(share))
    # S = (F² + √(F⁴ + 4 p (1 − F²) F²)) / (2 p (1 − F²)) with p = r (1 − r); C² = top / (top + bottom), also for F = 1
    top = f2 + np.sqrt(f2 ** 2 + 4 * product * (1 - f2) * f2)
    bottom = 2 * product * (1 - f2)
    ratio = np.divide(top, top + bottom, out=np.zeros_like(top), where=top > 0)
    expected: np.ndarray = np.sqrt(ratio) * np.clip(kappa, 0, 1)
    return expected


def as_half_map_fsc(curve: np.ndarray) -> np.ndarray:
    """F = C² / (2 − C²): the FSC that two half-maps of such a map would have if they saw all that it lacks."""
    return curve ** 2 / (2 - curve ** 2)


def expected_resolution(curve: np.ndarray, box_size: int, pixel_size: float) -> float:
    """Å at which the expected FSC to the truth, of half-map curves (N // 2 + 1,), falls to 0.5."""
    return resolution_at(curve, TRUTH_THRESHOLD, box_size, pixel_size)


def expected_range(curves: FscCurves, kappa: np.ndarray, share: Share = 0.5) -> Tuple[float, float]:
    """Å at which C falls to 0.5 if F is off by STANDARD_ERRORS of its standard errors, the finer one first.

    A curve that crosses 0.5 steeply gives a narrow range. One that runs along 0.5 gives a wide one, and the resolution
    is then hardly known.
    """
    finer, coarser = (expected_resolution(
        expected_map_to_truth(curves.corrected + sign * STANDARD_ERRORS * curves.corrected_error, kappa, share),
        curves.box_size, curves.pixel_size) for sign in (1, -1))
    return finer, coarser


def advice(expected: float, reported: float, coarsest: float) -> str:
    """Sentences when the poses' uncertainty costs more than a twentieth of the reported resolution, or when the error
    of the FSC allows one that is a tenth coarser than what is to be reported; else ""."""
    to_report, sentences = max(expected, reported), []
    if expected > WORTH_SAYING * reported:
        sentences.append(
            f"the half-maps agree to {reported:.2f} Å, but the uncertainty of the poses blurs both alike. Report "
            f"{expected:.2f} Å, the resolution expected against the true structure. A learned or narrower prior, a "
            "larger mask, or more particles can improve it")
    if coarsest > HARDLY_KNOWN * to_report:
        sentences.append(f"The resolution is hardly known. The curve expected against the true structure runs close to "
                         f"{TRUTH_THRESHOLD} from {to_report:.2f} to {coarsest:.2f} Å. Report both ends, or show the "
                         "curve")
    return ". ".join(sentences)


@dataclass(frozen=True)
class BlurredMap:
    """The map that is blurred, without its noise and on no more voxels than its resolution asks for.

    cube, window : (e, e, e) of map and mask about the mask's centre, where the map was.
    scale : voxels of these per px.  shells : (N // 2 + 1,) those of the box, in shells of the cube.
    """

    cube: Array
    window: Array
    scale: float
    shells: np.ndarray

    @classmethod
    def of(cls, volume: Array, mask: np.ndarray, corrected: np.ndarray, resolution_px: float,
           workers: int = 1) -> "BlurredMap":
        """Of a map (N, N, N) in a mask (N, N, N); ``corrected``, its FSC, filters it first, so that noise is not
        moved. ``resolution_px`` of the map."""
        box = volume.shape[0]
        centre = integer_centre(mask)
        f = np.clip(corrected, 0, 1)
        filtered = apply_shell_filter(volume, np.sqrt(2 * f / (1 + f)), workers)
        edge = min(support_box(mask, centre), 2 * (box // 2))
        window = array_module(volume).asarray(cube_about(mask, centre, edge))
        cube, window, scale = coarser(cube_about(filtered, centre, edge), window, resolution_px)
        return cls(cube, window, scale, np.arange(box // 2 + 1) * edge / box)

    def correlation(self, covariance: np.ndarray, rotation: np.ndarray, seed: int) -> np.ndarray:
        """κ (N // 2 + 1,) of poses with posteriors ``covariance`` (n, 5, 5) of (rotation in rad, displacement of the
        projected mask centre in px) at ``rotation`` (n, 3, 3)."""
        moved = mean_over_poses(self, covariance, rotation, seed)
        kappa = fsc(moved * self.window, self.cube * self.window)
        result: np.ndarray = np.interp(self.shells, np.arange(len(kappa)), kappa)
        return result


def coarser(cube: Array, window: Array, resolution_px: float) -> Tuple[Array, Array, float]:
    """Cube and window on the fewest voxels that hold the resolution, and the new voxels per old one."""
    edge = cube.shape[0]
    new = int(np.ceil(edge / max(1.0, 0.5 * FINEST * resolution_px)))
    new += new % 2
    if new >= edge:
        return cube, window, 1.0
    return resample_map(cube, new), resample_map(window, new).clip(0, 1), new / edge


def mean_over_poses(of: BlurredMap, covariance: np.ndarray, rotation: np.ndarray, seed: int) -> Array:
    """The cube, where the window is not zero, averaged over DRAWS motions drawn from the posteriors of particles chosen
    at random.

    Displacements are known in the image plane only; along the view they have no effect on that image, so each
    is taken within the plane of its particle. Linear interpolation makes the expected resolution 0.2 % coarser than
    cubic splines do.
    """
    rng = np.random.default_rng(seed)
    middle, turns, offsets = np.full(3, of.cube.shape[0] // 2), np.empty((DRAWS, 3, 3)), np.empty((DRAWS, 3))
    for d, i in enumerate(rng.choice(len(covariance), DRAWS)):
        values, axes = np.linalg.eigh(covariance[i].astype(np.float64))
        # by the symmetric root: it does not depend on the signs that a library gives the axes
        x = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T @ rng.standard_normal(5)
        turns[d] = exp_map(x[:3])[::-1, ::-1]  # zyx
        displacement = (of.scale * rotation[i][:2].T @ x[3:])[::-1]
        offsets[d] = middle - turns[d] @ (middle + displacement)
    return sum_of_moved(of.cube, turns, offsets, of.window) / np.float32(DRAWS)
