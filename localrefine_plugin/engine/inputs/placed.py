"""Images that do not show the particle at their poses: how many, and whether they fit the poses of other rows.

Of an image at its pose z = cross / √energy (`samples.Match`) is about its signal in standard deviations; of an image at
the pose of another, or of noise, it is about 0. The images are a mixture of both: that of align/verdicts.py, without
its search. An image that was given the pose of another row has its own pose in some other row of the file. So the poses
of all rows are tried with images that do not fit their own. Mixed-up rows are known by two things: images fit poses of
other rows far better than the best of as many by chance, and the images of these rows do not fit there either.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..align.reference import Reference, slice_rows
from ..align.verdicts import KNOWN_WELL, Gains, Nulls, densities, fit, gains
from ..kernels.batches import evenly_spaced
from ..kernels.slices import extract_slices
from ..model.optics import image_shift
from ..model.pixels import shell_starts
from ..model.pose import exp_map, project
from ..records.errors import InputError
from ..records.iteration import Verdict
from ..records.particles import Particles, image_numbers
from .parts import LEAST_FINE
from .readings import READINGS, Explained
from .samples import Sample, joined_matches, match, sample_of

SHIFT = 0.3, 0.15  # of z, of images that were averaged into the half-map: mean and s.d.
LEAST_GAIN = 2.0  # log L over "all images fit", as in align/verdicts.py
STEP_SURELY, STEP_IMAGES = 7.0, 10  # s.d. of the mean z at the poses of the rows one distance away; of so many images
SURELY_NOT = 0.1  # probability to fit, below which an image is tried with the poses of other rows
SAID_SHARE, SAID_AFAR, LEAST_IMAGES = 0.15, 0.25, 50  # of images that do not fit, and of images, to say so
ROWS_SAID, ROWS_REFUSED = 0.03, 0.08  # of images that fit other rows; as of the next row
FEWEST_HITS, LEAST_HITS = 4, 0.1  # images that fit other rows, and their share of those that do not fit, to believe it
CONTROL_TURNS = np.array([[1.9, 1.1, 0.6], [-0.8, 1.5, -1.7]])  # rad: no symmetry of a particle
BEYOND_CHANCE = 2.5  # s.d. above the best by chance: 1 to 2 % of the images
MOST_TRIED, MOST_ROWS, MOST_PIXELS, AT_ONCE = 100, 50_000, 1500, 500
HOLD, ERRORS = 0.5, 2.0  # of the power of the others, by so many standard errors: images hold a particle, or do not


# ---------------------------------------------------------------- how many do not fit

@dataclass(frozen=True)
class Placed:
    """verdict : the mixture.  fits (n,) : the probability of each image to fit its pose.  share, error : of those that
    do not."""

    verdict: Verdict
    fits: np.ndarray
    share: float
    error: float


def gains_of(found: Sequence[Explained]) -> Gains:
    own = joined_matches([f.own for f in found])
    return gains(own.cross, own.energy)


def placed(found: Sequence[Explained]) -> Placed:
    """The mixture of images that fit their poses and images that do not; the latter are calibrated by the same images
    at the poses of others."""
    of_all = gains_of(found)
    other = joined_matches([f.other for f in found])
    elsewhere = gains(other.cross, other.energy).z
    others = float(elsewhere.mean()), max(float(elsewhere.std()), 1.0)
    verdict = fit(of_all, Nulls(others, (0.0, 1.0), KNOWN_WELL, SHIFT), LEAST_GAIN)
    density = densities(of_all, verdict)
    share, total = 1 - verdict.share_aligned, density.sum(axis=1)
    fits = density[:, 0] / total
    if share < 0.5 / len(total):
        return Placed(verdict, fits, share, 1 / len(total))
    # d log f / d share, of the mixture f of two densities
    slope = ((total - density[:, 0]) / share - density[:, 0] / max(1 - share, 1e-9)) / total
    return Placed(verdict, fits, share, float(1 / np.sqrt((slope ** 2).sum())))


def some_do_not_fit(own: Sequence[Explained], crossed: Sequence[Explained]) -> bool:
    """Whether it should be asked what these images are."""
    return max(placed(found).share for found in (own, crossed)) > ROWS_SAID


Matched = Tuple[Sequence[Explained], Sequence[Reference]]


def check_placed(own: Matched, crossed: Matched, particles: Particles, workers: int) -> List[str]:
    """A sentence on images that do not show the particle at their poses; InputError for poses of other rows.

    own, crossed : the images of each half-set with a reference, that of their own half-map and that of the other, which
    does not hold their noise. An image that was averaged in at a wrong pose fits its own half-map a little there.
    """
    less, (found, references) = max(((placed(of[0]), of) for of in (own, crossed)), key=lambda tried: tried[0].share)
    if len(less.fits) < LEAST_IMAGES or less.share < ROWS_SAID:
        return []
    rows = other_rows(found, less, particles, references, workers)
    about = f"about {100 * less.share:.0f} ± {100 * less.error:.0f} % of the images"
    if rows is not None:
        problem = (f"are mixed up with images: {about} do not fit their own poses and fit those of other rows "
                   f"({rows.words})")
        remedy = READINGS["next row"].remedy
        if less.share > ROWS_REFUSED:
            raise InputError(problem, "poses", remedy)
        return [f"poses: they {problem}. {remedy[0].upper()}{remedy[1:]}"]
    if less.share < (SAID_SHARE if fit_in_detail(found, less) else SAID_AFAR):
        return []
    return [f"particles: {about} do not show the particle at their poses. {what_they_hold(crossed[0], less.fits)}"]


def fit_in_detail(found: Sequence[Explained], here: Placed) -> bool:
    """Whether the images that fit do so in the finer pixels, too. If not, poses are off by more than the detail, and
    good images fit theirs badly."""
    own = joined_matches([f.own for f in found])
    coarse, fine, error = own.some(np.flatnonzero(here.fits >= SURELY_NOT)).fine_scales
    return fine > LEAST_FINE * coarse - error


# ---------------------------------------------------------------- what they hold instead

def what_they_hold(found: Sequence[Explained], fits: np.ndarray) -> str:
    """Noise, or particles at other poses: by the power of the images where the others have signal."""
    share, error = held_share(found, fits)
    leave_out = "Leave them out if a classification finds them"
    if share - ERRORS * error > HOLD:
        return ("By their power they hold particles, so their poses are wrong, or they are other particles. Align them "
                f"anew without limits. {leave_out}")
    if share + ERRORS * error < HOLD:
        return f"By their power they are noise, or something else without the particle. {leave_out}"
    return f"They are noise, other particles, or have wrong poses. {leave_out}"


def held_share(found: Sequence[Explained], fits: np.ndarray) -> Tuple[float, float]:
    """The share of a particle's power that is in the images that do not fit, and its error.

    By shells k: P the power of an image over that of the noise, S what the half-map explains of those that fit. With
    weights w = S / var P it is 1 + Σ w (P − P_fit) / Σ w S.
    """
    power = np.concatenate([by_shell(f.sample, power_of(f.sample)) for f in found])
    signal = np.concatenate([by_shell(f.sample, explained_of(f)) for f in found])
    good, bad = fits > 1 - SURELY_NOT, fits < SURELY_NOT
    if min(np.count_nonzero(good), np.count_nonzero(bad)) < 2:
        return HOLD, 1.0
    held = np.maximum(joined_matches([f.own for f in found]).some(np.flatnonzero(good)).scale * signal[good].mean(0), 0)
    weight = held / np.maximum(power[good].var(axis=0), 1e-30)
    expected = max(float(weight @ held), 1e-30)
    left, those = ((power[of] - power[good].mean(axis=0)) @ weight / expected for of in (bad, good))
    return 1 + float(left.mean()), float(np.sqrt(left.var() / len(left) + those.var() / len(those)))


def power_of(sample: Sample) -> np.ndarray:
    """2 |X|² / σ² (n, K): |Z|² / W; 0 near the zeros of the CTF."""
    matched, weight = sample.packed.matched, sample.packed.weight
    there = weight > 1e-3 * weight.max()
    return np.where(there, (matched.real ** 2 + matched.imag ** 2) / np.maximum(weight, 1e-30), 0)


def explained_of(found: Explained) -> np.ndarray:
    """Re Z* Y (n, K)."""
    matched, y = found.sample.packed.matched, found.slices
    cross: np.ndarray = matched.real * y.real + matched.imag * y.imag
    return cross


def by_shell(sample: Sample, values: np.ndarray) -> np.ndarray:
    """Sums (n, shells) of values (n, K); pixels are sorted by shell."""
    sums: np.ndarray = np.add.reduceat(values, shell_starts(sample.packed.pixels.shell), axis=1, dtype=np.float64)
    return sums


# ---------------------------------------------------------------- poses of other rows

class OtherRows(NamedTuple):
    """Images (index into the particles) and the rows whose poses they fit."""

    image: np.ndarray
    row: np.ndarray

    @property
    def step(self) -> int:
        """The one distance of most of the rows from the images; 0 if there is none."""
        steps, counts = np.unique(self.row - self.image, return_counts=True)
        most = int(counts.argmax())
        return int(steps[most]) if counts[most] >= max(FEWEST_HITS, 0.5 * len(self.image)) else 0

    @property
    def words(self) -> str:
        some = ", ".join(f"image {i + 1}: row {j + 1}" for i, j in zip(self.image[:3], self.row[:3]))
        apart = f"{abs(self.step)} rows {'below' if self.step > 0 else 'above'}, " if self.step else ""
        return f"{apart}{some}, …"


def other_rows(found: Sequence[Explained], here: Optional[Placed], particles: Particles,
               references: Sequence[Reference], workers: int) -> Optional[OtherRows]:
    """Which rows' poses the images fit that do not fit their own; None if this may be chance.

    here : which images fit; None if none does. How well an image fits the best of as many poses by chance is measured:
    at the poses of all rows, turned in the frame of the map by CONTROL_TURNS, which are the poses of no image.
    """
    starts = np.cumsum([0] + [len(f.own.cross) for f in found])
    turned = [replace(particles, rotation=particles.rotation @ turn) for turn in exp_map(CONTROL_TURNS)]
    tried, chance, steps = [], [], Steps(len(particles))
    for f, reference, start in zip(found, references, starts):
        fits = np.zeros(len(f.own.cross)) if here is None else here.fits[start:start + len(f.own.cross)]
        not_here = np.flatnonzero(fits < SURELY_NOT)
        sample = f.sample.some(not_here[evenly_spaced(len(not_here), MOST_TRIED)] if len(not_here) else not_here)
        tried.append((sample.index, *best_rows(sample, reference, particles, steps)))
        chance += [best_rows(sample, reference, control)[1] for control in turned]
    image, row, best = (np.concatenate(parts) for parts in zip(*tried))
    by_chance = np.concatenate(chance)
    if len(image) < FEWEST_HITS:
        return None
    step = steps.surely()
    if step:
        there = image[(image + step >= 0) & (image + step < len(particles))]
        rows = OtherRows(there, there + step)
    else:
        surely = best > by_chance.mean() + BEYOND_CHANCE * by_chance.std()
        rows = OtherRows(image[surely], row[surely])
        if len(rows.image) < max(FEWEST_HITS, LEAST_HITS * len(image)):
            return None
    if here is not None and not also_misplaced(rows, found, here, particles, references, workers):
        return None
    return rows


class Steps:
    """Sums of z over images by the distance of the row that it was found at: image names that are shifted by a number
    of rows show in all images together, where no single one tells its row."""

    def __init__(self, rows: int):
        self.rows = rows
        self.count, self.sum, self.squares = np.zeros((3, 2 * rows - 1))

    def add(self, image: np.ndarray, row: np.ndarray, z: np.ndarray) -> None:
        """z (n, m) of images (n,) at the poses of rows (m,); −inf is left out."""
        there = np.isfinite(z)
        step, z = (row - image[:, None] + self.rows - 1)[there], z[there]
        for total, weight in ((self.count, None), (self.sum, z), (self.squares, z ** 2)):
            total += np.bincount(step, weight, len(total))

    def surely(self) -> int:
        """The one distance at which the mean z is STEP_SURELY standard deviations above that of all; else 0."""
        n = max(self.count.sum(), 1)
        mean = self.sum.sum() / n
        deviation = np.sqrt(max(self.squares.sum() / n - mean ** 2, 1e-30))
        above = (self.sum - self.count * mean) / (deviation * np.sqrt(np.maximum(self.count, 1)))
        above[self.count < STEP_IMAGES] = 0
        above[self.rows - 1] = 0  # their own rows
        best = int(above.argmax())
        return best - self.rows + 1 if above[best] > STEP_SURELY else 0


def best_rows(sample: Sample, reference: Reference, particles: Particles, steps: Optional[Steps] = None
              ) -> Tuple[np.ndarray, np.ndarray]:
    """The row (n,) whose pose explains each image best, and z (n,) there; added to ``steps``.

    Neither its own row nor those of other copies of it (symmetry expansion): it fits these as it fits its own, and its
    noise is in the half-map at all of these poses.
    """
    n, rows, number = len(sample.index), evenly_spaced(len(particles), MOST_ROWS), image_numbers(particles)
    best, row = np.full(n, -np.inf), np.zeros(n, dtype=int)
    for group in np.unique(sample.particles.optics_group):
        mine = np.flatnonzero(sample.particles.optics_group == group)
        some = sample.some(mine)
        for first in range(0, len(rows), AT_ONCE):
            here = rows[first:first + AT_ONCE]
            z = at_poses(some, reference, particles, here)
            z[number[some.index][:, None] == number[here]] = -np.inf
            if steps is not None:
                steps.add(some.index, here, z)
            highest = z.argmax(axis=1)
            value = z[np.arange(len(mine)), highest]
            better = value > best[mine]
            best[mine[better]], row[mine[better]] = value[better], here[highest[better]]
    return row, best


def at_poses(sample: Sample, reference: Reference, particles: Particles, rows: np.ndarray) -> np.ndarray:
    """z (n, m) of images of one optics group at the poses of m rows, by two matrix products."""
    packed = sample.packed
    k = min(len(packed.pixels), MOST_PIXELS)
    pixels, rotation = packed.pixels.first(k), particles.rotation[rows]
    one = packed.magnification_of(np.zeros(len(rows), dtype=int))
    y = extract_slices(reference.ft, slice_rows(rotation, reference.scale, one), pixels.kx, pixels.ky)
    place = particles.shift_px[rows] + project(rotation, sample.centre)
    y = y * pixels.phases(-image_shift(place, one))
    start = image_shift(sample.start, packed.magnification)
    unmoved = packed.matched[:, :k] * pixels.phases(-start)
    cross = unmoved.real @ y.real.T + unmoved.imag @ y.imag.T
    energy = packed.weight[:, :k] @ (y.real ** 2 + y.imag ** 2).T
    z: np.ndarray = cross / np.sqrt(np.maximum(energy, 1e-12))
    return z


def also_misplaced(rows: OtherRows, found: Sequence[Explained], here: Placed, particles: Particles,
                   references: Sequence[Reference], workers: int) -> bool:
    """Whether the images of these rows do not fit their own poses either, more than images in general. Otherwise images
    only found something similar."""
    not_there, count, shell = 0, 0, int(found[0].sample.packed.pixels.shell[-1])
    for half, reference, f in zip((1, 2), references, found):
        index = np.unique(rows.row[particles.half_set[rows.row] == half])
        if len(index) == 0:
            continue
        sample = sample_of(particles, index, shell, f.sample.centre, f.sample.noise_power, workers)
        m = match(sample, reference, sample.particles.rotation, sample.particles.shift_px)
        density = densities(gains(m.cross, m.energy), here.verdict)
        not_there += int(np.count_nonzero(density[:, 0] < 0.5 * density.sum(axis=1)))
        count += len(index)
    return count > 0 and not_there > (1 + here.share) / 2 * count
