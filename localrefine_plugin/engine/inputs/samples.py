"""Some images of a half-set at their input poses, matched with slices of a map: what `belonging` judges."""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import List, Optional, Sequence, Tuple

import numpy as np

from ..align.reference import Reference, make_reference, slice_rows
from ..align.search import PackedImages
from ..kernels.batches import evenly_spaced
from ..kernels.slices import extract_slices, gauss_newton_sums
from ..model.ctf import CtfOnPixels
from ..model.fourier import cosine_edge
from ..model.optics import derivatives_by_specimen_shift, image_shift
from ..model.pixels import pixel_list
from ..model.pose import exp_map, project
from ..motion.motion_prior import inverse, seen_in_projection
from ..records.particles import Particles
from .first_look import read_packed

FEW_OF_GROUP, MOST_OF_GROUPS = 60, 1000
ORIGIN = np.zeros(3)
SOFT_EDGE = 0.1  # of the box, of the sphere about a whole particle
LEAST_BOX = 24  # px, of a map cut to low frequencies
SMALL_STEP = 0.5  # χ² by which a step of the common motion matters no more


@dataclass(frozen=True)
class Sample:
    """n images of a half-set.

    Attributes
    ----------
    index : (n,) into the particles of the run.  particles : these n.
    packed : what the search sees of them about `centre`.  start : (n, 2) px, the projected centre at the input poses.
    contrast : (n, K) the CTF.  noise_power : (groups, M + 1) by which the images were weighed.
    """

    index: np.ndarray
    particles: Particles
    packed: PackedImages
    start: np.ndarray
    contrast: np.ndarray
    centre: np.ndarray
    noise_power: np.ndarray

    def some(self, chosen: np.ndarray) -> "Sample":
        """Those of an index (m,)."""
        return Sample(self.index[chosen], self.particles.take(chosen), self.packed.take(chosen), self.start[chosen],
                      self.contrast[chosen], self.centre, self.noise_power)

    def with_flipped_phases(self) -> "Sample":
        """Matched as images whose CTF phases were flipped: by |C|."""
        return replace(self, packed=replace(self.packed, matched=self.packed.matched * np.sign(self.contrast)))

    def contrast_at(self, factor: float) -> np.ndarray:
        """The CTF (n, K) of so many times their defocus."""
        changed, pixels = self._at_defocus(factor), self.packed.pixels
        contrast: np.ndarray = CtfOnPixels(changed, pixels.kx, pixels.ky, np.asarray)(np.arange(len(changed)))
        return contrast

    def _at_defocus(self, factor: float) -> Particles:
        p = self.particles
        return replace(p, defocus_u=p.defocus_u * factor, defocus_v=p.defocus_v * factor)

    def with_defocus(self, factor: float) -> "Sample":
        """Matched with the CTF of so many times their defocus."""
        contrast = self.contrast_at(factor)
        ratio = np.divide(contrast, self.contrast, out=np.zeros_like(contrast), where=self.contrast != 0)
        packed = replace(self.packed, matched=self.packed.matched * ratio, weight=self.packed.weight * ratio ** 2)
        return replace(self, particles=self._at_defocus(factor), packed=packed, contrast=contrast)


@dataclass(frozen=True)
class Match:
    """Of n images with slices Y at poses: cross = Re Σ Z* Y and energy = Σ W |Y|², (n,) float64. The log likelihood
    over noise alone is α cross − ½ α² energy at grey scale α. fine (n, 2): cross and energy of the finer pixels, which
    hold half of the energy of all images."""

    cross: np.ndarray
    energy: np.ndarray
    fine: np.ndarray

    @property
    def scale(self) -> float:
        """The likeliest α."""
        return float(self.cross.sum() / max(self.energy.sum(), 1e-30))

    def likelihood(self, scale: float) -> np.ndarray:
        """(n,)"""
        return scale * self.cross - 0.5 * scale ** 2 * self.energy

    @property
    def fine_scales(self) -> Tuple[float, float, float]:
        """α of the coarser pixels, of the finer ones, and the standard error of the latter. Where slices and images are
        of one thing both are alike; things that only look alike from afar agree in the coarser pixels."""
        cross, energy = self.fine.sum(axis=0)
        coarse = (self.cross.sum() - cross) / max(self.energy.sum() - energy, 1e-30)
        return float(coarse), float(cross / max(energy, 1e-30)), float(1 / np.sqrt(max(energy, 1e-30)))

    def some(self, chosen: np.ndarray) -> "Match":
        """Those of an index (m,)."""
        return Match(self.cross[chosen], self.energy[chosen], self.fine[chosen])


def joined_matches(matches: List[Match]) -> Match:
    return Match(np.concatenate([m.cross for m in matches]), np.concatenate([m.energy for m in matches]),
                 np.concatenate([m.fine for m in matches]))


def chosen_images(particles: Particles, half: int, most: int) -> np.ndarray:
    """Index (n,) of about ``most`` particles of a half-set: the same number of each optics group, evenly spaced. Of
    many groups there are FEW_OF_GROUP each, and at most MOST_OF_GROUPS in all."""
    mine = np.flatnonzero(particles.half_set == half)
    group = particles.optics_group[mine]
    groups = np.unique(group)
    each = max(1, most // len(groups), min(FEW_OF_GROUP, MOST_OF_GROUPS // len(groups)))
    found = []
    for g in groups:
        rows = mine[group == g]
        found.append(rows[evenly_spaced(len(rows), each)])
    return np.sort(np.concatenate(found))


def sample_of(particles: Particles, index: np.ndarray, shell: int, centre: np.ndarray = ORIGIN,
              noise_power: Optional[np.ndarray] = None, workers: int = 1) -> Sample:
    """Images of an index (n,), to a shell, about a centre (px from the box centre); ``noise_power`` (groups, M + 1) is
    measured of them where it is not given."""
    some = particles.take(index)
    pixels = pixel_list(particles.box_size, shell, shell)
    start = some.shift_px + project(some.rotation, centre)
    seen = read_packed(some, pixels, start, noise_power, workers)
    return Sample(index, some, seen.packed, start, seen.contrast, centre, seen.noise_power)


def least_box(box_size: int, shell: int) -> int:
    """Px of a map that holds no more than these shells; an odd box stays, for another one has another middle."""
    return box_size if box_size % 2 else min(box_size, max(LEAST_BOX, 2 * (shell + 4)))


def whole_map(volume: np.ndarray, shell: int, workers: int) -> Reference:
    """A reference of a whole map, inside a soft sphere, to a shell; ``volume`` is that of HalfMaps.coarse."""
    return make_reference(volume, soft_sphere(len(volume)), ORIGIN, shell, workers)


def weighted(references: Sequence[Reference], by_shell: np.ndarray) -> List[Reference]:
    """References of one shape times the weights of the shells (M,). The maps are filtered after their soft sphere."""
    reference = references[0]
    nz, ny, nx = reference.ft.shape
    along = [((np.arange(n) - first) / reference.scale) ** 2 for n, first in ((nz, nz // 2), (ny, ny // 2), (nx, 0))]
    shell = np.sqrt(along[0][:, None, None] + along[1][:, None] + along[2], dtype=np.float32)
    weight = by_shell.astype(np.float32)[np.minimum(np.rint(shell).astype(np.intp), len(by_shell) - 1)]
    return [replace(r, ft=r.ft * weight) for r in references]


@lru_cache(maxsize=1)
def soft_sphere(box_size: int) -> np.ndarray:
    """A mask (N, N, N) that leaves out the corners of a box."""
    offset = np.arange(box_size) - box_size // 2
    radius = np.sqrt((offset ** 2)[:, None, None] + (offset ** 2)[:, None] + offset ** 2)
    return cosine_edge(radius, box_size / 2 * (1 - SOFT_EDGE) - 1, box_size / 2 * SOFT_EDGE).astype(np.float32)


def slices(sample: Sample, reference: Reference, rotation: np.ndarray, shift_px: np.ndarray,
           n_pixels: Optional[int] = None) -> np.ndarray:
    """Y (n, K) at poses (n, 3, 3) and (n, 2), about the sample's centre; of the first ``n_pixels`` pixels."""
    return moved_slices(sample, slices_of(sample, reference, rotation, n_pixels), rotation, shift_px)


def slices_of(sample: Sample, reference: Reference, rotation: np.ndarray, n_pixels: Optional[int] = None) -> np.ndarray:
    """Slices that were not moved."""
    pixels, magnification = sample.packed.pixels, sample.packed.magnification
    found: np.ndarray = extract_slices(reference.ft, slice_rows(rotation, reference.scale, magnification),
                                       pixels.kx[:n_pixels], pixels.ky[:n_pixels])
    return found


def moved_slices(sample: Sample, unmoved: np.ndarray, rotation: np.ndarray, shift_px: np.ndarray) -> np.ndarray:
    found: np.ndarray = unmoved * moving(sample, rotation, shift_px, unmoved.shape[1])
    return found


def moving(sample: Sample, rotation: np.ndarray, shift_px: np.ndarray, n_pixels: int) -> np.ndarray:
    """Phases (n, K) that move slices at these rotations to these shifts."""
    moved = shift_px + project(rotation, sample.centre) - sample.start
    phases: np.ndarray = sample.packed.pixels.first(n_pixels).phases(-image_shift(moved, sample.packed.magnification))
    return phases


def match_of(sample: Sample, slices_at_poses: np.ndarray) -> Match:
    """With slices (n, K), of all pixels or the first K."""
    n_pixels, y = slices_at_poses.shape[1], slices_at_poses
    matched = sample.packed.matched[:, :n_pixels]
    cross = matched.real * y.real + matched.imag * y.imag
    return match_of_pixels(cross, sample.packed.weight[:, :n_pixels] * (y.real ** 2 + y.imag ** 2))


def match_of_pixels(cross: np.ndarray, energy: np.ndarray) -> Match:
    """From Re Z* Y and W |Y|² (n, K) of each pixel."""
    by_pixel = np.cumsum(energy.sum(axis=0), dtype=np.float64)
    half = int(np.searchsorted(by_pixel, by_pixel[-1] / 2))
    coarse, fine = (np.stack([values[:, part].sum(axis=1) for values in (cross, energy)], axis=1).astype(np.float64)
                    for part in (slice(None, half), slice(half, None)))
    cross_sum, energy_sum = (coarse + fine).T
    return Match(cross_sum, energy_sum, fine)


def overlap(sample: Sample, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Σ W Re(Y₁* Y₂) (n,)."""
    return np.einsum("nk,nk->n", sample.packed.weight, one.real * other.real + one.imag * other.imag, dtype=np.float64)


def match(sample: Sample, reference: Reference, rotation: np.ndarray, shift_px: np.ndarray) -> Match:
    return match_of(sample, slices(sample, reference, rotation, shift_px))


def matched(samples: Sequence[Sample], references: Sequence[Reference]) -> Match:
    """At the poses of the samples."""
    return joined_matches([match(s, reference, s.particles.rotation, s.particles.shift_px)
                           for s, reference in zip(samples, references)])


@dataclass(frozen=True)
class CommonMotion:
    """One motion of all images: at R Exp(w), t + P R d. rotation w (3,) rad and displacement d (3,) px in the body
    frame, and the (6, 6) covariance of the error of both. ``last_step``: χ² of the step that led here. ``own_steps``:
    what each sample by itself would have gone, and the covariance of this."""

    rotation: np.ndarray
    displacement: np.ndarray
    covariance: np.ndarray
    last_step: float = np.inf
    own_steps: Tuple[Tuple[np.ndarray, np.ndarray], ...] = ()


STILL = CommonMotion(np.zeros(3), np.zeros(3), np.eye(6))


def common_motion(samples: Sequence[Sample], references: Sequence[Reference], start: CommonMotion, shell: int,
                  steps: int) -> CommonMotion:
    """The one motion that explains all images best, by Gauss–Newton steps from ``start``, to a shell."""
    motion = start
    n_pixels = samples[0].packed.pixels.prefix(shell)
    for _ in range(steps):
        scales = []
        for sample, reference in zip(samples, references):
            rotation, shift = moved_by(motion, sample)
            scales.append(match_of(sample, slices(sample, reference, rotation, shift, n_pixels)).scale)
        motion = motion_step(samples, references, motion, scales, n_pixels)
        if motion.last_step < SMALL_STEP:
            break
    return motion


def moved_by(motion: CommonMotion, sample: Sample) -> Tuple[np.ndarray, np.ndarray]:
    """Rotations (n, 3, 3) and shifts (n, 2) of a sample after a motion."""
    rotation, shift = sample.particles.rotation, sample.particles.shift_px
    return rotation @ exp_map(motion.rotation[None])[0], shift + project(rotation, motion.displacement)


def moved_match(samples: Sequence[Sample], references: Sequence[Reference], motion: CommonMotion) -> Match:
    return joined_matches([match(s, reference, *moved_by(motion, s)) for s, reference in zip(samples, references)])


def motion_step(samples: Sequence[Sample], references: Sequence[Reference], start: CommonMotion,
                scales: Sequence[float], n_pixels: int) -> CommonMotion:
    """One Gauss–Newton step, by the first ``n_pixels`` pixels; ``scales``: α of each sample there."""
    sums = []
    for sample, reference, alpha in zip(samples, references, scales):
        rotation, shift = moved_by(start, sample)
        packed, pixels, scale = sample.packed, sample.packed.pixels, max(alpha, 0.0)
        moved = shift + project(rotation, sample.centre) - sample.start
        _, gradient, curvature = gauss_newton_sums(
            reference.ft, slice_rows(rotation, reference.scale, packed.magnification),
            image_shift(moved, packed.magnification), np.arange(len(rotation)), pixels.kx, pixels.ky,
            n_pixels, packed.matched * np.float32(scale), packed.weight * np.float32(scale ** 2), pixels.box_size)
        gradient, curvature = derivatives_by_specimen_shift(gradient, curvature, packed.magnification)
        b = seen_in_projection(sample.particles.rotation)
        sums.append((1e-9 * np.eye(6) + np.einsum("nij,nik,nkl->jl", b, curvature, b),
                     np.einsum("nij,ni->j", b, gradient)))
    covariance = inverse(sum(information for information, _ in sums))
    pull = sum(p for _, p in sums)
    step = covariance @ pull
    own = [inverse(information) for information, _ in sums]
    return CommonMotion(start.rotation + step[:3], start.displacement + step[3:], covariance, float(step @ pull),
                        tuple((c @ p, c) for c, (_, p) in zip(own, sums)))
