"""Fourier shell correlation of two half-maps (half_maps.py): five curves, resolution, fsc.star.

relion_postprocess counts the plane kx = 0 twice; the curves agree to better than 0.01 where a shell holds enough
coefficients.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np
from emtable import Table

from ..io.run_folder import write_atomic
from ..kernels.device import array_module
from ..kernels.shells import shell_sums
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
from .half_maps import HalfMaps, RandomPhases, Region, region_of, shell_correlation, transform_within
from .mask import dilate_soft

Array = Any
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


def fsc(map1: np.ndarray, map2: np.ndarray, workers: int = 1) -> np.ndarray:
    """FSC of two maps by shell.

    Parameters
    ----------
    map1, map2 : (N, N, N).

    Returns
    -------
    (N // 2 + 1,) float64. Shell 0 is ±1 or 0: one coefficient has no correlation to speak of.
    """
    return shell_correlation(fourier.forward(map1, workers), fourier.forward(map2, workers))


def spherical_mask(box_size: int, xp: Any = np) -> Array:
    """1 up to 0.85 · N/2 from the box centre, raised cosine to 0 at N/2: (N, N, N) float32, numpy's or CuPy's."""
    axis = np.square(np.arange(box_size) - box_size // 2)
    inner, outer = SPHERE_INNER * box_size / 2, box_size / 2
    table = fourier.cosine_edge(np.sqrt(np.arange(3 * axis.max() + 1)), (inner + outer) / 2, outer - inner)
    table, axis = xp.asarray(table.astype(np.float32)), xp.asarray(axis.astype(np.int32))
    mask, plane = xp.empty((box_size,) * 3, np.float32), axis[:, None] + axis
    for z in range(box_size):
        mask[z] = table[plane + axis[z]]
    return mask


def five_curves(halves: HalfMaps, mask: Array, pixel_size: float, seed: int = 1,
                randomise_below: float = 0.8, under_mask: Optional[np.ndarray] = None) -> FscCurves:
    """The five FSC curves of two half-maps and what the corrected one rests on.

    The corrected curve is that of Chen et al. 2013 (doi:10.1016/j.ultramic.2013.06.004) as
    relion_postprocess computes it: phases are randomised from the first shell where the UNMASKED FSC
    is below ``randomise_below``; from 2 shells after that, F = (F_t − F_n) / (1 − F_n), before it F = F_t.
    A pair whose unmasked FSC never falls that low has nothing to correct: F_n = F_t, corrected = tight.

    Parameters
    ----------
    halves : unfiltered, unmasked.  mask : (N, N, N), the mask in use.  pixel_size : Å.  seed : of the random phases.
    under_mask : `HalfMaps.under` of the mask, where it is known.
    """
    n, xp = halves.box_size, array_module(mask)
    start = first_below(halves.unmasked, randomise_below)
    tight = halves.under(mask) if under_mask is None else under_mask
    tight, randomised, corrected = masked_curves(tight, mask, random_phases(halves, start, region_of(mask), seed))
    loose = dilate_soft(mask, pixel_size, LOOSE_DILATE_ANGSTROM, LOOSE_EDGE_ANGSTROM)
    return FscCurves(
        box_size=n, pixel_size=float(pixel_size), spatial_frequency=np.arange(n // 2 + 1) / (n * pixel_size),
        unmasked=halves.unmasked, spherical=halves.under(spherical_mask(n, xp)),
        loose=halves.under(loose), tight=tight, randomised=randomised, corrected=corrected,
        corrected_error=standard_error(corrected, mask, halves.workers), randomise_shell=start)


def random_phases(halves: HalfMaps, randomise_shell: int, region: Region, seed: int) -> Optional[RandomPhases]:
    """The half-maps with random phases; None where no shell is randomised."""
    return None if randomise_shell > halves.box_size // 2 else RandomPhases(halves, randomise_shell, region, seed)


def masked_curves(tight: np.ndarray, mask: Array,
                  phases: Optional[RandomPhases]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F_t, as given, F_n and the corrected curve, (N // 2 + 1,) each, under a mask; ``phases`` of `random_phases`."""
    if phases is None:
        return tight, tight, tight
    randomised = phases.under(mask)
    return tight, randomised, corrected_fsc(tight, randomised, phases.first_shell)


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
    region = region_of(mask)
    correlation = transform_within(mask[region] ** 2, fourier.box_of(mask.shape), workers)
    at_zero = float(abs(correlation[0, 0, 0])) ** 2
    fourier.multiply_radial(correlation, lambda d: np.sqrt(np.where(d <= 1, 1 - d / 2, 0.5 / np.maximum(d, 1))))
    total = float(shell_sums(correlation, correlation)[0].sum())
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
