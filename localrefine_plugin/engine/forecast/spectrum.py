"""Signal and noise of one particle, by shell, from the half-maps of a sample of them.

With s the amplitude that errors and posteriors of the poses leave (blur.py), a half-map of n marginalised images holds

    signal  b² P₀,   b = s + (1 − s) c,        noise  ν ν₀ / n.

c is the share of the signal that is in the reference: where a pose is uncertain, the noise of an image is laid down in
the shape of the reference, and gives back what the blur takes. (Expectation–maximisation leaves a perfect reference,
c = 1, as it is.) ν is the blur of the posterior alone, which the noise of an image suffers as its signal does. P₀ b² is
the cross spectrum of the two half-maps; it has no bias. Where it is lost in noise, P₀ follows A exp(−B/2 d⁻²)
(Guinier).
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..maps.fsc import independent_fraction
from ..model.fourier import forward, lowpass_weight, shell_counts, shell_means
from ..motion.motion_prior import inverses
from .blur import attenuation
from .sample import SampleRun, Views

# Chosen by the sets of docs/explanation/forecast.md
FIRST_ERRORS = 0.75  # the errors of the first iteration are smaller than stated: its reference shows too little
USUAL_B, SPREAD_OF_B = 150.0, 60.0  # Å², of the power of a half-map
GUINIER_FROM_ANGSTROM = 12.0
OFF_THE_LINE = 0.3  # a spectrum's deviation from the line
BLUR_ERROR = 0.3  # relative, of ln b²
TRIED_B = np.arange(0.0, 400.0, 5.0)


class Spectrum(NamedTuple):
    """(S,) by shell: signal P₀ in the mask and noise ν₀ of one particle."""

    signal: np.ndarray
    noise: np.ndarray


def spectrum_of(run: SampleRun, views: Views, mask: np.ndarray, lowpass_angstrom: float, marginalize: bool,
                workers: int = 1) -> Spectrum:
    """Signal and noise of the sample's particles inside a mask (N, N, N); ``lowpass_angstrom`` of its reference."""
    curves, box = run.curves, run.curves.box_size
    shells = np.arange(box // 2 + 1)
    first, second, cross = shell_means(*(forward(r.half_map * mask, workers) for r in run.results))
    total = np.sqrt(first * second)
    error = total / np.sqrt(np.maximum(shell_counts(box) * independent_fraction(mask, workers), 1))

    def left(covariance: np.ndarray) -> np.ndarray:
        return attenuation(covariance, views.rotation, views.points, shells, box)
    smeared = left(FIRST_ERRORS * views.covariance) if marginalize else np.ones((len(views.points), len(shells)))
    kept = left(FIRST_ERRORS * views.error) * smeared
    known = left(inverses(views.prior)) * lowpass_weight(box * curves.pixel_size / lowpass_angstrom)(
        shells.astype(np.float64))
    blur = np.maximum(((kept + (1 - kept) * known * marginalize) ** 2).mean(axis=0), 1e-12)
    signal = along_guinier(cross / blur, error / blur, blur, curves.spatial_frequency)
    noise = np.maximum(total - cross, 0) * run.per_half / np.maximum((smeared ** 2).mean(axis=0), 1e-12)
    return Spectrum(signal, noise)


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
    return np.maximum(drawn, np.maximum(0.01 * line, 1e-30))


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
