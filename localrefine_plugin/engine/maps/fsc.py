"""Fourier shell correlation of two half-maps: five curves, resolution, fsc.star.

    FSC(s) = Re Σ F1 F2* / √(Σ|F1|² Σ|F2|²)   over the shell s = round(|k|) of the full spectrum,

sums in float64, Friedel mates counted alike. (relion_postprocess counts the plane kx = 0 twice; the curves
agree to better than 0.01 where a shell holds enough coefficients.)
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple, Union

import numpy as np
from emtable import Table

from ..io.run_folder import write_atomic
from ..model import fourier
from ..records.iteration import (
    CURVE_NAMES,
    FSC_CURVES,
    FSC_THRESHOLD,
    RANDOMISED,
    STANDARD_ERROR,
    TRUTH_THRESHOLD,
    IterationRecord,
)
from .mask import dilate_soft

SPHERE_INNER = 0.85
"""The spherical mask is 1 up to this fraction of N/2 and falls to 0 at N/2."""

LOOSE_DILATE_ANGSTROM = 12.0
LOOSE_EDGE_ANGSTROM = 12.0

UNRELIABLE_SHELLS = 2
"""Shells after the start of randomisation that keep the uncorrected value, as in relion_postprocess."""


@dataclass(frozen=True)
class FscCurves:
    """FSC of two half-maps by shell 0 … N // 2; every array is (N // 2 + 1,) float64.

    Attributes
    ----------
    box_size : N.  pixel_size : Å.
    spatial_frequency : shell / (N · pixel_size), 1/Å.
    unmasked, spherical, loose, tight : the FSC under no mask, a soft sphere, the mask in use dilated,
        the mask in use.
    randomised : F_n, the FSC of the phase-randomised half-maps under the mask in use.
    corrected : (F_t − F_n) / (1 − F_n).  corrected_error : its standard error.
    randomise_shell : first shell with random phases; N // 2 + 1 if none.
    """

    box_size: int
    pixel_size: float
    spatial_frequency: np.ndarray
    unmasked: np.ndarray
    spherical: np.ndarray
    loose: np.ndarray
    tight: np.ndarray
    randomised: np.ndarray
    corrected: np.ndarray
    corrected_error: np.ndarray
    randomise_shell: int

    def resolutions(self, threshold: float = FSC_THRESHOLD) -> Dict[str, float]:
        """Resolution in Å of each of FSC_CURVES at a threshold."""
        return {name: resolution_at(getattr(self, name), threshold, self.box_size, self.pixel_size)
                for name in CURVE_NAMES}

    def resolution_range(self) -> List[float]:
        """Å at which the corrected curve plus and minus its standard error falls to 0.143, the finer one first."""
        return [resolution_at(self.corrected + sign * self.corrected_error, FSC_THRESHOLD, self.box_size,
                              self.pixel_size) for sign in (1, -1)]

    def record(self, iteration: int, align_resolution_angstrom: float) -> IterationRecord:
        """The record of an iteration, so far with what the curves say."""
        return IterationRecord(iteration, self.resolutions(), self.resolutions(TRUTH_THRESHOLD),
                               tuple(self.resolution_range()), align_resolution_angstrom)


def shell_correlation(ft1: np.ndarray, ft2: np.ndarray, box_size: int) -> np.ndarray:
    """FSC of two cubic half-spectra: (N // 2 + 1,) float64; 0 in a shell where either has no power."""
    power = fourier.radial_mean_power(ft1, box_size) * fourier.radial_mean_power(ft2, box_size)
    return _ratio(_cross_power(ft1, ft2, box_size), power)


def _cross_power(ft1: np.ndarray, ft2: np.ndarray, box_size: int) -> np.ndarray:
    """Mean of Re F1 F2* by shell."""
    def product(z: int) -> np.ndarray:
        a, b = ft1[z], ft2[z]
        return np.multiply(a.real, b.real, dtype=np.float64) + np.multiply(a.imag, b.imag, dtype=np.float64)
    return fourier.shell_sums(product, box_size) / fourier.shell_counts(box_size)


def _ratio(cross: np.ndarray, power_product: np.ndarray) -> np.ndarray:
    return np.divide(cross, np.sqrt(power_product), out=np.zeros_like(cross), where=power_product > 0)


def fsc(map1: np.ndarray, map2: np.ndarray, workers: int = 1) -> np.ndarray:
    """FSC of two maps by shell.

    Parameters
    ----------
    map1, map2 : (N, N, N).

    Returns
    -------
    (N // 2 + 1,) float64. Shell 0 is ±1 or 0: one coefficient has no correlation to speak of.
    """
    box_size = fourier.box_of(map1.shape)
    return shell_correlation(fourier.forward(map1, workers), fourier.forward(map2, workers), box_size)


def spherical_mask(box_size: int) -> np.ndarray:
    """1 up to 0.85 · N/2 from the box centre, raised cosine to 0 at N/2: (N, N, N) float32."""
    axis = np.square(np.arange(box_size) - box_size // 2)
    radius = np.sqrt(axis[:, None, None] + axis[:, None] + axis, dtype=np.float32)
    inner, outer = SPHERE_INNER * box_size / 2, box_size / 2
    return fourier.cosine_edge(radius, (inner + outer) / 2, outer - inner).astype(np.float32)


def five_curves(half1: np.ndarray, half2: np.ndarray, mask: np.ndarray, pixel_size: float, seed: int = 1,
                randomise_below: float = 0.8, workers: int = 1) -> FscCurves:
    """The five FSC curves of two half-maps and what the corrected one rests on.

    The corrected curve is that of Chen et al. 2013 (doi:10.1016/j.ultramic.2013.06.004) as
    relion_postprocess computes it: phases are randomised from the first shell where the UNMASKED FSC
    is below ``randomise_below``; from 2 shells after that, F = (F_t − F_n) / (1 − F_n), before it F = F_t.
    A pair whose unmasked FSC never falls that low has nothing to correct: F_n = F_t, corrected = tight.

    Parameters
    ----------
    half1, half2 : (N, N, N) unfiltered, unmasked half-maps.  mask : (N, N, N), the mask in use.
    pixel_size : Å.  seed : of the random phases.
    """
    n = fourier.box_of(half1.shape)

    unmasked = _closed(fsc(half1, half2, workers))
    start = first_below(unmasked, randomise_below)
    tight, randomised, corrected = masked_curves(half1, half2, mask, start, seed, workers)
    loose = dilate_soft(mask, pixel_size, LOOSE_DILATE_ANGSTROM, LOOSE_EDGE_ANGSTROM)
    return FscCurves(
        box_size=n, pixel_size=float(pixel_size), spatial_frequency=np.arange(n // 2 + 1) / (n * pixel_size),
        unmasked=unmasked, spherical=_under(half1, half2, spherical_mask(n), workers),
        loose=_under(half1, half2, loose, workers), tight=tight, randomised=randomised, corrected=corrected,
        corrected_error=standard_error(corrected, mask, workers), randomise_shell=start)


def masked_curves(half1: np.ndarray, half2: np.ndarray, mask: np.ndarray, randomise_shell: int, seed: int,
                  workers: int = 1) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F_t, F_n and the corrected curve, (N // 2 + 1,) each, under a mask; random phases from ``randomise_shell`` on."""
    tight = _under(half1, half2, mask, workers)
    if randomise_shell >= len(tight):
        return tight, tight, tight
    ft1, ft2 = fourier.forward(half1, workers), fourier.forward(half2, workers)
    randomised = randomised_fsc(ft1, ft2, mask, randomise_shell, seed, workers)
    return tight, randomised, corrected_fsc(tight, randomised, randomise_shell)


def _under(half1: np.ndarray, half2: np.ndarray, mask: np.ndarray, workers: int) -> np.ndarray:
    return _closed(fsc(half1 * mask, half2 * mask, workers))


def _closed(curve: np.ndarray) -> np.ndarray:
    """The curve with shell 0 set to 1: a single coefficient, whose correlation can only be ±1."""
    curve[0] = 1.0
    return curve


def randomised_fsc(ft1: np.ndarray, ft2: np.ndarray, mask: np.ndarray, first_shell: int, seed: int,
                   workers: int = 1) -> np.ndarray:
    """F_n: the FSC of two maps under a mask after randomising their phases from ``first_shell`` on.

    Random phases of the two halves are independent, so what they add to Σ F1 F2* has mean zero: the
    numerator is that of the shells below ``first_shell`` under the mask, which is not random at all.
    Only the power of the random part needs a draw. This is the expectation of the curve that
    relion_postprocess draws once, without the 1/√n_eff of noise that one draw carries into F.

    Parameters
    ----------
    ft1, ft2 : half-spectra of the half-maps.  mask : (N, N, N).

    Returns
    -------
    (N // 2 + 1,) float64.
    """
    n = fourier.box_of(mask.shape)
    kept_fts, powers = [], []
    for half, map_ft in enumerate((ft1, ft2), start=1):
        kept, random = _randomised_parts(map_ft, n, first_shell, np.random.default_rng([seed, half]), workers)
        kept_ft = fourier.forward(fourier.inverse(kept, mask.shape, workers) * mask, workers)
        random_ft = fourier.forward(fourier.inverse(random, mask.shape, workers) * mask, workers)
        powers.append(fourier.radial_mean_power(kept_ft, n) + fourier.radial_mean_power(random_ft, n))
        kept_fts.append(kept_ft)
    return _closed(_ratio(_cross_power(kept_fts[0], kept_fts[1], n), powers[0] * powers[1]))


def _randomised_parts(map_ft: np.ndarray, box_size: int, first_shell: int, rng: np.random.Generator,
                      workers: int) -> Tuple[np.ndarray, np.ndarray]:
    """The half-spectrum below ``first_shell``, and the rest with random phases (its amplitudes kept).

    The phases are those of white noise, so that Friedel mates stay conjugate.
    """
    kept = map_ft.copy()
    random = fourier.forward(rng.standard_normal((box_size,) * 3, dtype=np.float32), workers)
    for z, radius_squared in fourier.planes_radius_squared(box_size):
        beyond = radius_squared >= first_shell ** 2
        amplitude = np.abs(map_ft[z]) * beyond
        random[z] *= amplitude / np.maximum(np.abs(random[z]), np.finfo(np.float32).tiny)
        kept[z][beyond] = 0
    return kept, random


def random_phases_beyond(volume: np.ndarray, first_shell: int, seed: int, workers: int = 1) -> np.ndarray:
    """A map (N, N, N) with random phases from ``first_shell`` on, amplitudes kept."""
    kept, random = _randomised_parts(fourier.forward(volume, workers), len(volume), first_shell,
                                     np.random.default_rng(seed), workers)
    return fourier.inverse(kept + random, volume.shape, workers)


def corrected_fsc(tight: np.ndarray, randomised: np.ndarray, randomise_shell: int) -> np.ndarray:
    """(F_t − F_n) / (1 − F_n) from UNRELIABLE_SHELLS after the start of randomisation on, F_t before."""
    corrected = tight.copy()
    first = randomise_shell + UNRELIABLE_SHELLS
    f_t, f_n = tight[first:], randomised[first:]
    remaining = 1 - f_n
    corrected[first:] = np.divide(f_t - f_n, remaining, out=np.zeros_like(f_t), where=remaining > 1e-6)
    return corrected


def standard_error(curve: np.ndarray, mask: np.ndarray, workers: int = 1) -> np.ndarray:
    """(1 − F²) / √n_eff, n_eff = independent values in the shell × the fraction of the box the mask leaves.

    A shell of n coefficients of the full spectrum holds n independent real values (Friedel).

    Parameters
    ----------
    curve : (N // 2 + 1,).  mask : (N, N, N).
    """
    effective = fourier.shell_counts(len(mask)) * independent_fraction(mask, workers)
    return (1 - np.square(np.clip(curve, -1, 1))) / np.sqrt(np.maximum(effective, 1.0))


def independent_fraction(mask: np.ndarray, workers: int = 1) -> float:
    """Fraction of the values of a shell that stay independent under a mask.

    White noise under a mask m correlates between k and k + d as C(d), C the transform of m². In a shell
    of thickness 1 a displacement d stays inside with the probability w(d) = ⟨max(0, 1 − |d·n|)⟩ over the
    directions n: 1 − d/2 for d ≤ 1, 1/(2d) beyond. The fraction is C(0)² / Σ_d |C(d)|² w(d). It tends to
    V_mask / V_box when the mask fills the box and is about twice that for a small mask, whose smear is
    thicker than a shell; simulated noise agrees to 5 %.
    """
    n = fourier.box_of(mask.shape)
    correlation = fourier.forward(np.square(mask), workers)
    at_zero = float(np.abs(correlation[0, 0, 0])) ** 2
    fourier.multiply_radial(correlation, n, lambda d: np.sqrt(np.where(d <= 1, 1 - d / 2, 0.5 / np.maximum(d, 1))))
    weights = fourier.rfft_weights(mask.shape)
    total = sum(float(np.sum(np.square(np.abs(plane), dtype=np.float64) * weights)) for plane in correlation)
    return at_zero / total if total > 0 else 0.0


def first_below(curve: np.ndarray, threshold: float) -> int:
    """The first shell from 1 on where the curve is below the threshold; len(curve) if none is."""
    below = np.nonzero(curve[1:] < threshold)[0]
    return int(below[0]) + 1 if len(below) else len(curve)


def resolution_at(curve: np.ndarray, threshold: float, box_size: int, pixel_size: float) -> float:
    """Resolution in Å where a curve first falls below a threshold, linear between shells.

    A curve that never does is resolved to its last shell (Nyquist) as far as anyone can tell; one that is
    below from shell 1 on is resolved to nothing: the answer is then the length of the box, shell 1.
    """
    length = box_size * pixel_size
    shell = first_below(curve, threshold)
    if shell == len(curve):
        return length / (len(curve) - 1)
    if shell == 1:
        return length
    above, below = curve[shell - 1], curve[shell]
    return float(length / (shell - 1 + (above - threshold) / (above - below)))


_COLUMNS = (*FSC_CURVES[:4], RANDOMISED, FSC_CURVES[4], STANDARD_ERROR)
"""Of fsc.star, after index and resolution."""


def write_fsc(path: Union[str, Path], curves: FscCurves) -> None:
    """Write fsc.star: data_general (box, pixel size, start of randomisation) and data_fsc (the curves)."""
    general = Table(columns=["rlnImageSize", "rlnPixelSize", "lrRandomiseShell"])
    general.addRow(curves.box_size, repr(curves.pixel_size), curves.randomise_shell)
    table = Table(columns=["rlnSpectralIndex", "rlnResolution", "rlnAngstromResolution"]
                  + [curve.label for curve in _COLUMNS])
    for shell, frequency in enumerate(curves.spatial_frequency):
        angstrom = 1 / frequency if shell else 999.0  # the value RELION writes for shell 0
        table.addRow(shell, float(frequency), float(angstrom),
                     *(float(getattr(curves, curve.name)[shell]) for curve in _COLUMNS))

    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8") as handle:
            general.writeStar(handle, tableName="general", singleRow=True)
            table.writeStar(handle, tableName="fsc")
    write_atomic(path, write)


def read_fsc(path: Union[str, Path]) -> FscCurves:
    """The curves of an fsc.star written by `write_fsc`, to the six decimals of the file."""
    general = _rows(path, "general")[0]
    rows = _rows(path, "fsc")
    values = {curve.name: np.array([float(getattr(row, curve.label)) for row in rows]) for curve in _COLUMNS}
    box_size, pixel_size = int(general.rlnImageSize), float(general.rlnPixelSize)
    return FscCurves(box_size=box_size, pixel_size=pixel_size, randomise_shell=int(general.lrRandomiseShell),
                     spatial_frequency=np.arange(len(rows)) / (box_size * pixel_size), **values)


def _rows(path: Union[str, Path], table: str) -> List[Table.Row]:
    return list(Table(fileName=str(path), tableName=table))
