"""Signal and noise of one particle, by shell, from the half-maps of a sample of them.

With s the amplitude that errors and posteriors of the poses leave, the cross spectrum of the half-maps of marginalised
images is

    X = b² P₀,   b = s + (1 − s) c.

It has no bias. c is the amplitude in the reference: where a pose is uncertain, the noise of an image is laid down in
the shape of the reference, and gives back what the blur takes. (Expectation–maximisation leaves a perfect reference,
c = 1, as it is.) The cross spectrum of a reference with the other half's map is Y = c b P₀, so that with γ = Y / X

    b = s / (1 − (1 − s) γ).

Images that do not show the sub-volume count little by then (each by its probability); P₀ is that of the others as they
are diluted. Where the cross spectrum is lost in noise, P₀ follows A exp(−B/2 d⁻²) (Guinier).

The noise of a map at known poses is known from what was inserted: ν₀ / n = ⟨mask²⟩ / (8 D) in a masked half-map, with D
the accumulator's mean (align/reference_errors.py), of C²/σ² on a grid that is twice as fine. Images that count by
weights w have ⟨w²⟩ / ⟨w⟩ of it.
"""
from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np

from ..maps.fsc import independent_fraction
from ..maps.reconstruct import PADDING
from ..model.fourier import forward, shell_counts, shell_means
from .blur import attenuation
from .sample import SampleRun, Views

# Chosen by the sets of docs/explanation/forecast.md
SEEN = 2.0  # standard errors of X, from which γ is known
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


def spectrum_of(run: SampleRun, views: Views, marginalize: bool, workers: int = 1) -> Spectrum:
    """Signal and noise of the sample's particles inside the mask."""
    curves, box = run.curves, run.curves.box_size
    shells = np.arange(box // 2 + 1)
    maps, references = ([forward(getattr(half, name) * run.mask, workers) for half in run.halves]
                        for name in ("half_map", "reference"))
    first, second, cross = shell_means(*maps)
    error = np.sqrt(first * second / np.maximum(shell_counts(box) * independent_fraction(run.mask, workers), 1))

    def left(covariance: np.ndarray) -> np.ndarray:
        return attenuation(covariance, views.rotation, views.points, shells, box)
    amplitude = left(views.error)
    if marginalize:
        amplitude = amplitude * left(views.covariance)
        amplitude = amplitude / (1 - (1 - amplitude) * known_share(maps, references, cross, error))
    blur = np.maximum((amplitude ** 2).mean(axis=0), 1e-12)
    return Spectrum(along_guinier(cross / blur, error / blur, blur, curves.spatial_frequency), noise_of(run))


def known_share(maps: Sequence[np.ndarray], references: Sequence[np.ndarray], cross: np.ndarray,
                error: np.ndarray) -> np.ndarray:
    """γ (S,), of the transforms of half-maps, and of the references that they were made with, in the mask; 0 where the
    half-maps agree on nothing."""
    with_other = 0.5 * (shell_means(references[0], maps[1])[2] + shell_means(references[1], maps[0])[2])
    return np.where(cross > SEEN * error, np.clip(with_other / np.maximum(cross, 1e-30), 0, 1), 0.0)


def noise_of(run: SampleRun) -> np.ndarray:
    """ν₀ (S,) of one particle in the masked map; beyond the last shell of the map as there."""
    density = np.mean([half.accumulator_mean for half in run.halves], axis=0)
    covered = np.maximum(density, 1e-6 * density.max())
    noise = run.per_half * float(np.mean(np.square(run.mask, dtype=np.float64))) / (PADDING ** 3 * covered)
    if run.plan.weight_by_probability:
        noise *= float(np.mean([half.purity for half in run.halves]))
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
