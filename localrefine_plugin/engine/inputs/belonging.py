"""Whether half-maps, poses and images belong together, tested before anything is computed.

Three questions are put to some hundred images of each half-set, each answered in standard deviations:

1. Do the half-maps explain the images better at their own poses than at those of other particles? If not, and if the
   images tell it, the poses, the images or the maps are others'. Whether the images tell it: the slices at own and at
   other poses must differ by more than the noise (a sphere looks the same from everywhere).
2. Does another reading of the input (`readings`) explain them better than the one that was given, or one motion of the
   whole map? Then that is the likely mistake.
3. Do the images of half-set 1 hold the noise of half-map 1? An image agrees with the map that it was averaged into by
   its own noise. So images correlate with h₁ − h₂, where the structure has cancelled: with + for half-set 1 and − for
   half-set 2 if half-maps and half-sets belong together, the other way round if they were exchanged, and not at all if
   the maps come from other particles or from another split.

None depends on the grey scale. docs/explanation/belonging.md has error rates.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import List, Sequence, Tuple

import numpy as np
from scipy.spatial.transform import Rotation

from ..align.reference import Reference
from ..align.search_plan import align_shell_of
from ..kernels.device import to_host
from ..maps.half_maps import HalfMaps, Radial
from ..model.fourier import lowpass_weight
from ..model.pixels import highest_shell
from ..model.pose import exp_map, project
from ..records.errors import InputError
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings
from .checks import CheckedInputs
from .readings import (
    AXES,
    BELONG,
    BETTER,
    MIRROR,
    MOTION,
    PHASES,
    READINGS,
    Explained,
    Reading,
    evidence_of,
    explained,
    in_deviations,
    is_better,
    likeliest,
    likelihood,
    other_readings,
    poses_matter,
    share_of,
)
from .samples import (
    STILL,
    CommonMotion,
    Match,
    Sample,
    chosen_images,
    common_motion,
    joined_matches,
    least_box,
    match,
    sample_of,
    whole_map,
)

IMAGES, MOST_IMAGES = 100, 1000  # of each half-set: at first, and where these do not surely belong
FRAME_IMAGES = 100  # to choose among 48 frames
FEWEST_IMAGES = 20  # of an optics group, to say anything of it
TELLING = 10.0  # s.d. to be expected before nothing seen means something
COARSE_ANGSTROM = 60.0, 30.0  # where the search for a common motion begins: the coarser, the further it sees
FEWEST_SHELLS = 4
SURELY = 0.6  # s.d. per √image from which poses and images surely belong together: good input has 1.3 to 6, a mirrored
# map, which looks alike from afar, up to 0.4
FROM_AFAR = 0.25  # α of finer pixels over that of coarser ones of things that only look alike from afar
ENOUGH_IMAGES = 100  # to refuse for what they do not show
SAID_PX, REFUSED_PX, SAID_DEG, REFUSED_DEG = 0.5, 2.0, 1.0, 3.0  # of a common motion
# cross / energy of images with the h₁ − h₂ that they were averaged into is ½; measured: .42 to .57, and .10 to .22
# where all views are alike and the signal is that of no real image. Half of ½ is asked for.
OWN_NOISE = 0.25
HALVES_TELL, CHANCE = 5.0, 2.5  # s.d. to be expected of that, and less than which is by chance
FINEST_SHELL = 80  # of h₁ − h₂: finer ones cost memory and tell nothing more
GREY_SCALES_ALIKE = 1.3  # factor within which optics groups keep their own grey scale
DEFOCUS_SUSPECT = 0.92  # an optics group with less of the others' grey scale: its defocus is tried
DEFOCUS_FACTORS = (0.65, 0.74, 0.82, 0.9, 1.11, 1.22, 1.35, 1.54)
# Readings that may be right for some of the images. Flipped phases are not among them: at low resolution an image fits
# nearly as well with them, and noise decides.
OF_SOME = ("tilt", "inverse")
# Share of such images, and Σ log L that they must gain. Up to 0.13 of good images with bad poses fit another reading.
LEAST_SHARE, MOST_SHARE, CERTAIN_GAIN = 0.17, 0.9, 30.0
SOURCE = "half-maps and particles"


@dataclass(frozen=True)
class Belonging:
    """What was found: sentences, and the grey scale of each optics group relative to the largest."""

    said: Tuple[str, ...]
    grey_scale: Tuple[float, ...]


def check_belonging(inputs: CheckedInputs, resolved: ResolvedSettings, workers: int) -> Belonging:
    """Whether half-maps, poses and images belong together; InputError where they do not."""
    particles = inputs.particles
    shell = align_shell_of(resolved.initial_lowpass_angstrom, resolved, particles)
    cutoff = particles.box_size * inputs.pixel_size / resolved.initial_lowpass_angstrom
    volumes = coarse_halves(inputs.halves, lowpass_weight(cutoff), shell)
    references = [whole_map(v, shell, workers) for v in volumes]
    found = look(particles, references, shell, IMAGES, workers)
    if evidence_of(found) < surely(found) and np.count_nonzero(particles.half_set) > 2 * IMAGES:
        found = look(particles, references, shell, MOST_IMAGES, workers)
    samples, motion = [f.sample for f in found], STILL
    for angstrom in (*COARSE_ANGSTROM, resolved.initial_lowpass_angstrom):
        last = max(FEWEST_SHELLS, min(shell, int(particles.box_size * particles.pixel_size / angstrom)))
        motion = common_motion(samples, references, motion, last, 3)
    said, scales = check_groups(found, references, particles, workers)  # first: a bad part spoils the whole
    after = moved_match(samples, references, motion)
    said += check_whole(found, references, volumes, (motion, after), workers)
    fits_better = is_better(after, joined_matches([f.own for f in found]))
    moved = slight_motion(motion, particles.pixel_size) if fits_better else []
    said += moved
    if evidence_of(found) > BELONG and not moved:
        check_some(found)
    if not resolved.resplit_half_sets:
        said += check_half_maps(inputs, found, workers)
    return Belonging(tuple(said), scales)


def coarse_halves(halves: HalfMaps, filtered: Radial, shell: int) -> List[np.ndarray]:
    """Both half-maps, filtered, on as few voxels as hold these shells."""
    box = least_box(halves.box_size, shell)
    return [to_host(halves.coarse(one, other, box))
            for one, other in ((filtered, np.zeros_like), (np.zeros_like, filtered))]


def surely(found: Sequence[Explained]) -> float:
    """The evidence in standard deviations from which images and poses surely belong together."""
    return SURELY * float(np.sqrt(sum(len(f.own.cross) for f in found)))


def look(particles: Particles, references: Sequence[Reference], shell: int, most: int, workers: int
         ) -> List[Explained]:
    """How well each half-map explains at most so many images of its half-set."""
    return [explained(particles, sample_of(particles, chosen_images(particles, half, most), shell, workers=workers),
                      reference) for half, reference in zip((1, 2), references)]


# ---------------------------------------------------------------- the whole set

def check_whole(found: Sequence[Explained], references: Sequence[Reference], volumes: Sequence[np.ndarray],
                moved: Tuple[CommonMotion, Match], workers: int) -> List[str]:
    """InputError where the images do not belong to half-maps and poses, or do in another reading of the input or after
    one motion of the maps; a sentence where too few images say so."""
    motion, after = moved
    own, z, sure = joined_matches([f.own for f in found]), evidence_of(found), surely(found)
    # images with flipped phases are warned of: first_look
    tried = [(reading, m) for reading, m in other_readings(found) if reading.name != PHASES]
    tried.append((moved_reading(motion), after))
    if z < sure:
        tried.append(other_frame(found, references, volumes, workers))
    better = likeliest(tried, own)
    if better is not None and (better.name != MOTION or is_far(motion)):
        raise InputError(f"do not fit each other: {better.problem}", SOURCE, better.remedy)
    if z < -BELONG:
        raise InputError("have the opposite contrast of the particles", "half-maps",
                         "invert the contrast of particles or maps, so that both are white on black")
    coarse, fine, error = own.fine_scales
    only_from_afar = z < sure and fine < FROM_AFAR * coarse - 3 * error
    if not poses_matter(found) or (z > BELONG and not only_from_afar):
        return []
    problem = (f"do not belong together: the half-maps explain {len(own.cross)} images no better at their own poses "
               f"than at those of other particles ({z:.1f} standard deviations; good input has more than {sure:.0f})")
    remedy = "give particles and half-maps of one refinement; check that rows and images were not mixed up"
    if len(own.cross) >= ENOUGH_IMAGES:
        raise InputError(problem, SOURCE, remedy)
    return [f"{SOURCE} perhaps {problem}. {remedy[0].upper()}{remedy[1:]}"]


def other_frame(found: Sequence[Explained], references: Sequence[Reference], volumes: Sequence[np.ndarray],
                workers: int) -> Tuple[Reading, Match]:
    """The likeliest of half-maps whose axes are exchanged or reversed: 24 rotations by 90°, of them and of their mirror
    images. Then moved by what is left, for a box has no voxel in its middle."""
    shell = int(found[0].sample.packed.pixels.shell[-1])
    mirrored = [whole_map(np.ascontiguousarray(np.roll(v[::-1], 1, axis=0)), shell, workers) for v in volumes]
    few = [f.sample.some(np.arange(min(FRAME_IMAGES, len(f.own.cross)))) for f in found]
    tried: List[Tuple[float, int, Sequence[Reference], np.ndarray]] = []
    for hand in (references, mirrored):
        for turn in Rotation.create_group("O").as_matrix().round():
            tried.append((likelihood(matched([turned(s, turn) for s in few], hand)), len(tried), hand, turn))
    _, _, hand, turn = max(tried, key=lambda t: t[:2])
    samples = [turned(f.sample, turn) for f in found]
    motion = common_motion(samples, hand, STILL, shell, 3)
    is_mirror = hand is mirrored and np.count_nonzero(np.diag(turn)) == 3
    return READINGS[MIRROR if is_mirror else AXES], moved_match(samples, hand, motion)


def turned(sample: Sample, turn: np.ndarray) -> Sample:
    return replace(sample, particles=replace(sample.particles, rotation=sample.particles.rotation @ turn))


def matched(samples: Sequence[Sample], references: Sequence[Reference]) -> Match:
    """At the poses of the samples."""
    return joined_matches([match(s, reference, s.particles.rotation, s.particles.shift_px)
                           for s, reference in zip(samples, references)])


def moved_match(samples: Sequence[Sample], references: Sequence[Reference], motion: CommonMotion) -> Match:
    turn = exp_map(motion.rotation[None])[0]
    return joined_matches([match(s, reference, s.particles.rotation @ turn,
                                 s.particles.shift_px + project(s.particles.rotation, motion.displacement))
                           for s, reference in zip(samples, references)])


def check_some(found: Sequence[Explained]) -> None:
    """InputError where some of the images, of one kind by no column, fit in another reading or with the other contrast
    while the others fit as they are."""
    own = joined_matches([f.own for f in found])
    inverted = Reading("contrast", "they have the opposite contrast", "invert the contrast of their images")
    tried = [(reading, m) for reading, m in other_readings(found) if reading.name in OF_SOME]
    tried.append((inverted, replace(own, cross=-own.cross, fine=own.fine * (-1, 1))))
    rows = np.concatenate([f.sample.index for f in found])
    for reading, match_of_reading in tried:
        share, gain, belongs = share_of(match_of_reading, own)
        if LEAST_SHARE < share < MOST_SHARE and gain > CERTAIN_GAIN:
            examples = ", ".join(str(row + 1) for row in np.sort(rows[belongs > 0.9])[:3])
            raise InputError(f"do not all fit the half-maps in the same way: about {100 * share:.0f} % of the images "
                             f"(rows {examples}, …) are different: {reading.problem}", "particles", reading.remedy)


# ---------------------------------------------------------------- optics groups

def check_groups(found: Sequence[Explained], references: Sequence[Reference], particles: Particles, workers: int
                 ) -> Tuple[List[str], Tuple[float, ...]]:
    """Sentences on optics groups with another grey scale, and the scale of each relative to the largest; InputError for
    one that does not fit the half-maps as the others do."""
    said: List[str] = []
    scales = np.ones(len(particles.optics))
    group = [f.sample.particles.optics_group for f in found]
    largest = int(np.bincount(particles.optics_group).argmax())
    most = [f.some(np.flatnonzero(of == largest)) for f, of in zip(found, group)]
    rest = joined_matches([f.own for f in most])
    for g in range(len(particles.optics)) if len(particles.optics) > 1 and evidence_of(most) > BELONG else ():
        mine = [f.some(np.flatnonzero(of == g)) for f, of in zip(found, group)]
        own = joined_matches([f.own for f in mine])
        if len(own.cross) < FEWEST_IMAGES or rest.scale <= 0:
            continue
        name, ratio = f"optics group {particles.optics[g].name}", own.scale / rest.scale
        deviation = float(np.sqrt(((own.cross - own.scale * own.energy) ** 2).sum()) / own.energy.sum()) / rest.scale
        if ratio < -BETTER * deviation:
            raise InputError("has the opposite contrast of the other groups", name, "invert the contrast of its images")
        check_group(mine, rest.scale, name)
        if ratio < DEFOCUS_SUSPECT - 4 * deviation:
            check_defocus(mine, references, name, workers)
        if not 1 / GREY_SCALES_ALIKE < ratio < GREY_SCALES_ALIKE and abs(ratio - 1) > BETTER * deviation:
            scales[g] = ratio
            said.append(f"{name}: its images have {ratio:.3g} times the grey scale of the largest group. This was "
                        "corrected. Check that all groups are normalised in the same way")
    return said, tuple(float(s) for s in scales)


def check_group(found: Sequence[Explained], scale: float, name: str) -> None:
    """InputError for a group that fits in another reading, or not at all. ``scale``: α of the other groups."""
    better = likeliest(other_readings(found), joined_matches([f.own for f in found]))
    if better is not None:
        raise InputError(f"does not fit the half-maps as the other groups do: {better.problem}", name, better.remedy)
    z, expected = evidence_of(found), 0.5 * scale * float(np.sqrt(max(sum(f.difference.sum() for f in found), 0.0)))
    if z < BELONG and expected > TELLING:
        raise InputError(f"does not fit the half-maps at its poses ({z:.1f} standard deviations, {expected:.0f} "
                         "expected)", name, "check its poses and its images, or leave it out")


def check_defocus(found: Sequence[Explained], references: Sequence[Reference], name: str, workers: int) -> None:
    """InputError for a group whose images fit another defocus better, by a factor."""
    tried = []
    for trial in (1.0,) + DEFOCUS_FACTORS:
        matches = []
        for f, reference in zip(found, references):
            p = f.sample.particles
            changed = replace(p, defocus_u=p.defocus_u * trial, defocus_v=p.defocus_v * trial)
            sample = sample_of(changed, np.arange(len(p)), int(f.sample.packed.pixels.shell[-1]), workers=workers)
            matches.append(match(sample, reference, p.rotation, p.shift_px))
        tried.append((Reading(f"{trial:g}", "", ""), joined_matches(matches)))
    best = likeliest(tried[1:], tried[0][1])
    if best is not None:
        raise InputError(f"fits the half-maps better with {best.name} times its defocus", name,
                         "correct rlnDefocusU and rlnDefocusV; defocus does not change when images are rescaled")


# ---------------------------------------------------------------- one motion of the map

def is_far(motion: CommonMotion) -> bool:
    return bool(np.linalg.norm(motion.displacement) > REFUSED_PX
                or np.rad2deg(np.linalg.norm(motion.rotation)) > REFUSED_DEG)


def in_words(motion: CommonMotion) -> str:
    moved, turned = (", ".join(f"{v:.1f}" for v in vector.round(1) + 0.0)  # + 0.0 turns −0 into 0
                     for vector in (motion.displacement, np.rad2deg(motion.rotation)))
    return f"moved by {moved} px and turned by {turned}° along x, y, z"


def moved_reading(motion: CommonMotion) -> Reading:
    return Reading(MOTION, f"the images fit once the half-maps are {in_words(motion)}",
                   "use poses, half-maps and mask of one refinement, in one frame")


def slight_motion(motion: CommonMotion, pixel_size: float) -> List[str]:
    """A sentence on half-maps that fit better once they are moved or turned by little."""
    for vector, part, least in () if is_far(motion) else ((motion.displacement, slice(3, 6), SAID_PX),
                                (motion.rotation, slice(0, 3), np.deg2rad(SAID_DEG))):
        certain = vector @ np.linalg.solve(motion.covariance[part, part], vector) > BETTER ** 2
        if certain and np.linalg.norm(vector) > least:
            return [f"the images fit better once the half-maps are {in_words(motion)} (1 px is {pixel_size:.3g} Å). "
                    "Maps and poses may count from different centres of the box. The refined poses will include this "
                    "motion"]
    return []


# ---------------------------------------------------------------- half-maps and half-sets

def check_half_maps(inputs: CheckedInputs, found: Sequence[Explained], workers: int) -> List[str]:
    """A sentence on half-maps that were not made from these half-sets; InputError for exchanged ones.

    found : of the whole half-maps; the grey scale of the images is known from there. Where their pixels do not tell,
    finer ones are looked at.
    """
    scale = joined_matches([f.own for f in found]).scale
    samples = [f.sample for f in found]
    z, expected = own_noise(inputs.halves, samples, scale, workers)
    if -BELONG < z < CHANCE and expected < HALVES_TELL:
        shell = min(highest_shell(inputs.particles.box_size), FINEST_SHELL)
        samples = [sample_of(inputs.particles, s.index, shell, workers=workers) for s in samples]
        z, expected = own_noise(inputs.halves, samples, scale, workers)
    if z < -BELONG:
        raise InputError(
            f"seem to be exchanged: the images of half-set 1 hold the noise of half-map 2, and the other way round "
            f"({-z:.0f} standard deviations)", "half-maps 1 and 2", "give them in the other order")
    if z < CHANCE and expected > HALVES_TELL:
        return [f"the half-maps were not made from these half-sets: the images do not hold their noise ({z:.1f} "
                f"standard deviations, {expected:.0f} expected). If they come from other particles or another split, "
                "the first FSCs are too good. Use half-maps and half-sets of one refinement"]
    return []


def own_noise(halves: HalfMaps, samples: Sequence[Sample], scale: float, workers: int) -> Tuple[float, float]:
    """How much of the noise of their half-maps the images hold, in standard deviations, and how much at least if the
    half-maps were made from them.

    An image adds ± α energy / 2 by its own noise, + if it is of the half-set it is said to be; the rest of the mean
    square is the noise of this sum. It is at least the energy, and more where poses or signal differ.
    """
    shell = int(samples[0].packed.pixels.shell[-1])
    difference = halves.coarse(np.ones_like, lambda radius: -np.ones_like(radius), least_box(halves.box_size, shell))
    reference = whole_map(to_host(difference), shell, workers)
    own = [matched([sample], [reference]) for sample in samples]
    signed = np.concatenate([sign * m.cross for sign, m in zip((1, -1), own)])
    energy = np.concatenate([m.energy for m in own])
    noise = max(float((signed ** 2 - (0.5 * scale * energy) ** 2).sum()), float(energy.sum()))
    return in_deviations(signed), OWN_NOISE * scale * float(energy.sum()) / np.sqrt(noise)
