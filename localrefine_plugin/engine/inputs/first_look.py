"""What some images of a half-set say at their input poses, before anything is refined.

The grey scale of the half-map, the noise, whether the phases were flipped, and how well a particle can be
aligned by what the mask holds.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterator, List, NamedTuple, Optional, Sequence

import numpy as np

from ..align.half_sums import NoiseSums
from ..align.images import HalfSetImages, pack
from ..align.prior import log_prior
from ..align.reference import make_reference, slice_rows
from ..align.search import PackedImages
from ..align.search_plan import search_plan
from ..align.starts import pose_prior
from ..io.mrc import ImageReader
from ..kernels.slices import gauss_newton_sums
from ..maps.directions import sampling
from ..maps.mask import mass_kda
from ..model.ctf import CtfOnPixels
from ..model.optics import stretch
from ..model.pixels import PixelList, highest_shell, pixel_list
from ..model.pose import project
from ..model.symmetry import operators
from ..motion.prior_shapes import prior_shape
from ..records.errors import InputError
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings
from .checks import PHASE_FLIPPED

BATCH = 100
GREY_SCALE_USUAL = 0.3, 3.0
LEAST_SCF = 0.4  # SCF* of the views: 0.12 within 25° of one axis, 0.58 within 40°
CERTAIN = 6.0  # standard deviations by which phase-flipped images must be likelier


@dataclass(frozen=True)
class FirstLook:
    """scale α of the images to the half-map; noise_power (groups, M + 1), the images' mean power; rotation_sd_deg, the
    s.d. per axis to which one image alone determines its rotation, in the median, by the curvature of the likelihood;
    expected_…, the same of rotation and shift with the prior, which is what the first iteration will reach; and
    whether |C| explains the images better than C."""

    scale: float
    noise_power: np.ndarray
    rotation_sd_deg: float
    expected_rotation_sd_deg: float
    expected_shift_sd_angstrom: float
    phase_flipped: bool


def look_at(particles: Particles, volume: np.ndarray, mask: np.ndarray, resolved: ResolvedSettings,
            workers: int) -> FirstLook:
    """α = Σ Re(X* C Y / σ²) / Σ C² |Y|² / σ², the noise and the curvature at the input poses.

    Raises InputError where the contrast is inverted.
    """
    max_shell = highest_shell(particles.box_size)
    plan = search_plan(resolved, particles, resolved.initial_lowpass_angstrom)
    last = int(np.ceil(plan.align_shell * stretch(particles)))
    reference = make_reference(volume, mask, plan.centre, last, workers)
    pixels = pixel_list(particles.box_size, plan.align_shell, max_shell)
    seen = read_packed(particles, pixels, particles.shift_px + project(particles.rotation, plan.centre), None, workers)
    cross, flipped, energy, curvatures, priors = 0.0, 0.0, 0.0, [], []
    for index in batches(len(particles)):
        rotation, packed = particles.rotation[index], seen.packed.take(index)
        pose = (slice_rows(rotation, reference.scale, packed.magnification), np.zeros((len(index), 2)),
                np.arange(len(index)))
        own = pixels.kx, pixels.ky, len(pixels)
        zero = np.zeros_like(packed.weight)
        # log L = cross − ½ energy, so without W it is the cross term alone
        cross += gauss_newton_sums(reference.ft, *pose, *own, packed.matched, zero, pixels.box_size, False)[0].sum()
        flipped += gauss_newton_sums(reference.ft, *pose, *own, packed.matched * np.sign(seen.contrast[index]), zero,
                                     pixels.box_size, False)[0].sum()
        value, _, curvature = gauss_newton_sums(reference.ft, *pose, *own, np.zeros_like(packed.matched),
                                                packed.weight, pixels.box_size)
        energy -= 2 * value.sum()
        curvatures.append(curvature)
        gaussian = replace(pose_prior(plan, rotation), tails=0.0)  # in its middle a Student t is too narrow
        priors.append(log_prior(gaussian, pose[2], np.zeros((len(index), 3)), rotation, pose[1])[2])
    scale = float(cross / max(energy, 1e-30))
    if scale <= 0:
        raise InputError("have the opposite contrast of the particles (or the poses do not belong to them)",
                         "half-maps", "invert the contrast of particles or maps, so that both are white on black")
    information = scale ** 2 * np.concatenate(curvatures)
    rotation_sd, _ = pose_deviation(information)
    expected_rotation, expected_shift = pose_deviation(information + np.concatenate(priors))
    likelier = bool(flipped - cross > CERTAIN * np.sqrt(2 * energy))
    return FirstLook(scale, seen.noise_power, float(np.rad2deg(rotation_sd)), float(np.rad2deg(expected_rotation)),
                     expected_shift * particles.pixel_size, likelier)


def pose_deviation(curvature: np.ndarray) -> Sequence[float]:
    """Median over images of the s.d. per axis of rotation (rad) and shift (px) from curvatures (n, 5, 5)."""
    covariance = np.linalg.inv(curvature + 1e-6 * np.eye(5))
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    return [float(np.median(np.sqrt(variance[:, part].mean(axis=1)))) for part in (slice(0, 3), slice(3, 5))]


class SeenImages(NamedTuple):
    """n images matched with their CTF and noise at listed pixels, the CTF (n, K) there, and σ² (groups, M + 1)."""

    packed: PackedImages
    contrast: np.ndarray
    noise_power: np.ndarray


def read_packed(particles: Particles, pixels: PixelList, start: np.ndarray, noise_power: Optional[np.ndarray],
                workers: int) -> SeenImages:
    """All images, moved by ``start`` (n, 2) px; read once. Without a ``noise_power`` (groups, M + 1) it is their mean
    power by group and shell: the noise, if no model explains any."""
    max_shell = pixels.max_shell
    blank = np.ones((len(particles.optics), max_shell + 1))
    sums, parts = None, []
    with ImageReader(particles) as reader:
        images = HalfSetImages(particles, reader.read, blank, max_shell, workers)
        for index in batches(len(particles)):
            batch = images.batch(index)
            if noise_power is None:
                # the unit of the sums: about the power of the images
                sums = sums or NoiseSums(particles, blank * max(float(batch.power.mean()), 1e-30))
                group, nothing = particles.optics_group[index], np.zeros((len(index), 0), np.float32)
                sums.add(group, batch.power, nothing, np.zeros(0, int))
            parts.append(pack(batch, pixels, start[index]))
    noise_power = sums.power() if sums is not None else noise_power
    assert noise_power is not None  # there is a first batch
    inverse_noise = (1 / noise_power[:, pixels.shell]).astype(np.float32)[particles.optics_group]
    magnification = None if parts[0].magnification is None else np.concatenate([p.magnification for p in parts])
    packed = PackedImages(pixels, np.concatenate([p.matched for p in parts]) * inverse_noise,
                          np.concatenate([p.weight for p in parts]) * inverse_noise, magnification)
    contrast = CtfOnPixels(particles, pixels.kx, pixels.ky, np.asarray)(np.arange(len(particles)))
    return SeenImages(packed, contrast, noise_power)


def batches(count: int) -> Iterator[np.ndarray]:
    """0 … count − 1, BATCH at a time."""
    for start in range(0, count, BATCH):
        yield np.arange(start, min(start + BATCH, count))


def first_warnings(looks: Sequence[FirstLook], mask: np.ndarray, resolved: ResolvedSettings,
                   pixel_size: float) -> List[str]:
    """What the fitted grey scales and the expected accuracy of the alignment say about the input."""
    warnings = []
    scales = [look.scale for look in looks]
    low, high = GREY_SCALE_USUAL
    if not all(low <= s <= high for s in scales):
        warnings.append(
            f"the particles have {scales[0]:.3g} and {scales[1]:.3g} times the grey scale of the half-maps. The scale "
            "is fitted and corrected. Check that the particles are normalised, that the maps were made from them, and "
            "that maps and poses have the same hand")
    if any(look.phase_flipped for look in looks):
        warnings.append(f"{PHASE_FLIPPED[0]}, or their CTF was corrected, by what they have in common with the "
                        f"half-maps; {PHASE_FLIPPED[1]}")
    rotation, prior = max(look.rotation_sd_deg for look in looks), prior_shape(resolved.prior)
    if rotation > prior.doubtful_rotation_deg(resolved):
        warnings.append(
            f"alignment is doubtful: at {resolved.initial_lowpass_angstrom:.1f} Å one particle determines the "
            f"rotation of the masked part (at most {mass_kda(mask, pixel_size):.0f} kDa of protein) only to "
            f"{rotation:.1f}° per axis. {prior.remedy}")
    return warnings


def view_warnings(particles: Particles, resolved: ResolvedSettings) -> List[str]:
    """A sentence where the views of the input leave out much of the directions; none for views within 40° of one."""
    views = sampling(particles.rotation[particles.half_set > 0], operators(resolved.symmetry))
    if views.scf_star >= LEAST_SCF:
        return []
    unseen = "" if views.unseen < 0.005 else f", and {100 * views.unseen:.0f} % of the directions are seen by none"
    return [f"particles: nearly all are seen from about the same side (SCF* {views.scf_star:.2f}; 1 for even views"
            f"{unseen}). The map will be smeared along that side, and half-maps do not show it. Only particles seen "
            "from other sides help: tilt the grid, or change its surface"]
