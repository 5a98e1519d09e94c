"""Signal and noise of one particle, by shell, from the half-maps of a sample of them.

With s the amplitude that errors and posteriors of the poses leave, and a the share of images that show the sub-volume
where it is looked for, the cross spectrum of the half-maps of n marginalised images is

    b² P₀,   b = a s + (1 − a s − (1 − a) s₀) c,

with s₀ that of images that lie anywhere in the prior; it has no bias. c is the share of the signal that is in the
reference: where a pose is uncertain, the noise of an image is laid down in the shape of the reference, and gives back
what the blur takes. (Expectation–maximisation leaves a perfect reference, c = 1, as it is.) Where the cross spectrum is
lost in noise, P₀ follows A exp(−B/2 d⁻²) (Guinier).
In later iterations each image counts by its probability w to be aligned: the signal of the map is that of a share
⟨w²⟩ / ⟨w⟩.

The noise of a map at known poses is known from what was inserted: ν₀ / n = ⟨mask²⟩ / (8 D) in a masked half-map, with D
the accumulator's mean (align/reference_errors.py), of C²/σ² on a grid that is twice as fine.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..maps.fsc import independent_fraction
from ..maps.reconstruct import PADDING
from ..model.fourier import forward, lowpass_weight, shell_counts, shell_means
from ..motion.motion_prior import inverses
from .blur import attenuation
from .sample import SampleRun, Views

# Chosen by the sets of docs/explanation/forecast.md
FIRST_ERRORS = 0.6  # the errors of the first iteration are smaller than stated: its reference shows too little
INPUT_BLUR = 1.5  # the input half-maps are blurred by more than the motion that is learned from them
USUAL_B, SPREAD_OF_B = 150.0, 60.0  # Å², of the power of a half-map
GUINIER_FROM_ANGSTROM = 12.0
OFF_THE_LINE = 0.3  # a spectrum's deviation from the line
BLUR_ERROR = 0.3  # relative, of ln b²
SMOOTH = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9  # over shells
TRIED_B = np.arange(0.0, 400.0, 5.0)


class Spectrum(NamedTuple):
    """(S,) by shell: signal P₀ in the mask and noise ν₀ of one particle."""

    signal: np.ndarray
    noise: np.ndarray


def spectrum_of(run: SampleRun, views: Views, lowpass_angstrom: float, marginalize: bool, workers: int = 1) -> Spectrum:
    """Signal and noise of the sample's particles inside the mask; ``lowpass_angstrom`` of its reference."""
    curves, box = run.curves, run.curves.box_size
    shells = np.arange(box // 2 + 1)
    first, second, cross = shell_means(*(forward(half.half_map * run.mask, workers) for half in run.halves))
    total = np.sqrt(first * second)
    error = total / np.sqrt(np.maximum(shell_counts(box) * independent_fraction(run.mask, workers), 1))

    def left(covariance: np.ndarray) -> np.ndarray:
        return attenuation(covariance, views.rotation, views.points, shells, box)
    smeared = left(views.covariance) if marginalize else np.ones((len(views.points), len(shells)))
    aligned, purity = (float(np.mean([getattr(half, name) for half in run.halves])) for name in ("aligned", "purity"))
    kept = left(FIRST_ERRORS * views.error) * smeared
    anywhere = left(INPUT_BLUR * inverses(views.prior))
    known = anywhere * lowpass_weight(box * curves.pixel_size / lowpass_angstrom)(shells.astype(np.float64))
    amplitude = aligned * kept + (1 - (aligned * kept + (1 - aligned) * anywhere)) * known * marginalize
    blur = np.maximum((amplitude ** 2).mean(axis=0), 1e-12)
    signal = along_guinier(cross / blur, error / blur, blur, curves.spatial_frequency)
    if not run.plan.weight_by_probability:
        return Spectrum(signal * aligned ** 2, noise_of(run))
    return Spectrum(signal * purity ** 2, noise_of(run) / aligned)


def noise_of(run: SampleRun) -> np.ndarray:
    """ν₀ (S,) of one particle in the masked map; beyond the last shell of the map as there."""
    density = np.mean([half.accumulator_mean for half in run.halves], axis=0)
    covered = np.maximum(density, 1e-6 * density.max())
    noise = run.per_half * float(np.mean(np.square(run.mask, dtype=np.float64))) / (PADDING ** 3 * covered)
    result: np.ndarray = np.pad(noise, (0, run.curves.box_size // 2 + 1 - len(noise)), mode="edge")
    return result


def along_guinier(power: np.ndarray, error: np.ndarray, blur: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """P₀ (S,) from measured ``power`` with its standard ``error``, both divided by ``blur``: as measured where that is
    certain, else drawn to the likeliest line. ``frequency`` in 1/Å."""
    beyond = frequency > 1 / GUINIER_FROM_ANGSTROM
    off = np.hypot(0.5 * OFF_THE_LINE, BLUR_ERROR * np.abs(np.log(blur)))
    fit = likeliest_line(power[beyond], error[beyond], off[beyond], frequency[beyond])
    line = np.zeros_like(power)
    line[beyond] = fit
    measured = 1 / np.maximum(error ** 2 + (off * line) ** 2, 1e-60)
    expected = np.divide(1, (OFF_THE_LINE * line) ** 2, out=np.zeros_like(line), where=line > 0)
    drawn = (power * measured + line * expected) / (measured + expected)
    drawn = np.maximum(drawn, np.maximum(0.01 * line, 1e-30))
    if beyond.any():  # a resolution is where the curve first falls below a threshold: noise must not take it there
        off_line = np.pad(np.log(drawn[beyond] / fit), len(SMOOTH) // 2, mode="edge")
        drawn[beyond] = fit * np.exp(np.convolve(off_line, SMOOTH, mode="valid"))
    return drawn


def likeliest_line(power: np.ndarray, error: np.ndarray, off: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """A exp(−B/2 d⁻²), B about USUAL_B, of data with a standard error and a relative deviation ``off``."""
    best, found = np.inf, np.zeros_like(power)
    for b_factor in TRIED_B if len(power) else ():
        shape, spread = np.exp(-0.5 * b_factor * frequency ** 2), error
        for _ in range(6):
            weight = 1 / spread ** 2
            height = max(float((shape * power * weight).sum() / (shape ** 2 * weight).sum()), 1e-9 * float(error.max()))
            spread = np.hypot(error, off * height * shape)
        misfit = (((power - height * shape) / spread) ** 2 + 2 * np.log(spread)).sum() + (
            (b_factor - USUAL_B) / SPREAD_OF_B) ** 2
        if misfit < best:
            best, found = misfit, height * shape
    return found
