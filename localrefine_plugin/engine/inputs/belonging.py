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

from ..align.reference import Reference
from ..align.search_plan import align_shell_of
from ..kernels.device import to_host
from ..maps.half_maps import HalfMaps, Radial
from ..model.fourier import lowpass_weight
from ..model.pixels import highest_shell
from ..records.errors import InputError
from ..records.particles import Particles
from ..records.resolved import ResolvedSettings
from .axes import other_frame
from .checks import CheckedInputs
from .other_ctf import (
    CTF_REMEDY,
    Against,
    against,
    another_ctf,
    check_other_ctf,
    opposite_in_detail,
    other_defoci,
)
from .parts import FEWEST_IMAGES, check_groups, check_half_sets, check_some
from .placed import check_placed, other_rows, some_do_not_fit
from .readings import (
    BELONG,
    BETTER,
    MOTION,
    PHASES,
    ROWS,
    Explained,
    Reading,
    compared,
    evidence_of,
    explained,
    in_deviations,
    is_better,
    likeliest,
    likelihood,
    other_readings,
    poses_matter,
    poses_of_others,
    surely,
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
    match_of,
    matched,
    motion_step,
    moved_match,
    sample_of,
    slices,
    weighted,
    whole_map,
)

IMAGES, MOST_IMAGES = 100, 1000  # of each half-set: at first, and where these do not surely belong
FINER, MOST_COEFFICIENTS = 1.4, 4e6  # detail to look at for CTFs, over that of the first alignment; memory
COARSE_ANGSTROM = 60.0, 30.0  # where the search for a common motion begins: the coarser, the further it sees
FEWEST_SHELLS = 4
FROM_AFAR = 0.25  # α of finer pixels over that of coarser ones of things that only look alike from afar
ENOUGH_IMAGES = 100  # to refuse for what they do not show
SAID_PX, REFUSED_PX, SAID_DEG, REFUSED_DEG = 0.5, 2.0, 1.0, 3.0  # of a common motion
STAYS = 0.5  # of what is said: a motion of less is none, and one step tells it
APART_PX, APART_DEG, APART_IMAGES = 1.0, 3.0, 50  # of half-maps; views from one side alone gave up to 0.7 px
# cross / energy of images with the h₁ − h₂ that they were averaged into is ½; measured: .42 to .57, and .10 to .22
# where all views are alike and the signal is that of no real image. Half of ½ is asked for.
OWN_NOISE = 0.25
HALVES_TELL, CHANCE = 5.0, 2.5  # s.d. to be expected of that, and less than which is by chance
FINEST_SHELL = 80  # of h₁ − h₂: finer ones cost memory and tell nothing more
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
    references = [whole_map(v, shell, workers) for v in coarse_halves(inputs.halves, lowpass_weight(cutoff), shell)]
    found = look(particles, references, shell, IMAGES, workers)
    if evidence_of(found) < surely(found) and np.count_nonzero(particles.half_set) > 2 * IMAGES:
        found = look(particles, references, shell, MOST_IMAGES, workers)
    motion, after = best_motion(found, particles, references, resolved.initial_lowpass_angstrom)
    tried = readings_of_all(found, particles, references, (motion, after))
    refuse_common(found, tried, motion)
    said, scales = check_groups(found, particles)  # before the whole: a bad part spoils it
    said += check_half_sets(found)
    said += check_whole(found, particles, references, (tried, motion), workers)
    fits_better = is_better(after, joined_matches([f.own for f in found]))
    moved = slight_motion(motion, particles.pixel_size) if fits_better else []
    said += moved
    said += moved_apart([f.sample for f in found], references, motion)
    across = [against(f.sample, other) for f, other in zip(found, references[::-1])]
    if evidence_of(found) > BELONG and not moved:
        said += check_images(inputs, resolved, (found, across), references, workers)
    if not resolved.resplit_half_sets:
        said += check_half_maps(inputs, (found, across), resolved.exchange_half_maps, workers)
    return Belonging(tuple(said), scales)


def check_images(inputs: CheckedInputs, resolved: ResolvedSettings,
                 seen: Tuple[Sequence[Explained], Sequence[Against]], references: Sequence[Reference],
                 workers: int) -> List[str]:
    """What is said of some of the images, by their own half-map and by that of the other half-set; InputError for what
    is refused. Other readings are tried with the other half-map only where some images do not fit it.

    seen : the images with their own half-map, and with the other one, which is not filtered.
    """
    found, across = seen
    particles, shell = inputs.particles, int(found[0].sample.packed.pixels.shell[-1])
    said = check_some(found, lambda: look(particles, references, shell, MOST_IMAGES, workers))
    if said:
        return said
    crossed = crossed_slices(inputs.halves, across, references)
    images = [Against(f.sample, f.slices) for f in crossed]
    if not some_do_not_fit(found, crossed) and not another_ctf(images):
        return []
    others = crossed_references(inputs.halves, references)
    crossed = [explained(particles, f.sample, other) for f, other in zip(found, others)]
    return (check_some(crossed, lambda: look(particles, others, shell, MOST_IMAGES, workers))
            or check_other_ctf(images, lambda: finer_look(inputs, resolved, workers), particles)
            + check_placed((found, references), (crossed, others), particles, workers))


def coarse_halves(halves: HalfMaps, filtered: Radial, shell: int) -> List[np.ndarray]:
    """Both half-maps, filtered, on as few voxels as hold these shells."""
    box = least_box(halves.box_size, shell)
    return [to_host(halves.coarse(one, other, box))
            for one, other in ((filtered, np.zeros_like), (np.zeros_like, filtered))]


def crossed_references(halves: HalfMaps, references: Sequence[Reference]) -> List[Reference]:
    """For the images of each half-set, the half-map of the other.

    An image agrees with the map that it was averaged into by its own noise, even if it was averaged in upside down. The
    map of the other half-set does not hold it. It is filtered by the FSC F: then cross = energy for all |k|.
    """
    return weighted(references[::-1], fsc_weight(halves))


def crossed_slices(halves: HalfMaps, across: Sequence[Against], references: Sequence[Reference]) -> List[Explained]:
    """The same, without other readings; slices at the poses of the images are known, but for the filter."""
    weight = fsc_weight(halves)[across[0].sample.packed.pixels.shell].astype(np.float32)
    return [compared(a.sample, a.slices * weight, slices(a.sample, other, *poses_of_others(a.sample)) * weight)
            for a, other in zip(across, references[::-1])]


def fsc_weight(halves: HalfMaps) -> np.ndarray:
    return np.clip(to_host(halves.unmasked), 0, 1)


def look(particles: Particles, references: Sequence[Reference], shell: int, most: int, workers: int
         ) -> List[Explained]:
    """How well each half-map explains at most so many images of its half-set."""
    return [explained(particles, sample_of(particles, chosen_images(particles, half, most), shell, workers=workers),
                      reference) for half, reference in zip((1, 2), references)]


def finer_look(inputs: CheckedInputs, resolved: ResolvedSettings, workers: int) -> List[Against]:
    """Many images of each half-set against the half-map of the other, to finer detail."""
    particles = inputs.particles
    angstrom = resolved.initial_lowpass_angstrom / FINER
    shell = align_shell_of(angstrom, resolved, particles)
    cutoff = lowpass_weight(particles.box_size * inputs.pixel_size / angstrom)
    references = [whole_map(v, shell, workers) for v in coarse_halves(inputs.halves, cutoff, shell)]
    most = int(np.clip(MOST_COEFFICIENTS / (np.pi / 2 * shell ** 2), IMAGES, MOST_IMAGES))
    return [against(sample_of(particles, chosen_images(particles, half, most), shell, workers=workers), reference)
            for half, reference in zip((1, 2), crossed_references(inputs.halves, references))]


# ---------------------------------------------------------------- the whole set

Tried = Sequence[Tuple[Reading, Match]]


def readings_of_all(found: Sequence[Explained], particles: Particles, references: Sequence[Reference],
                    moved: Tuple[CommonMotion, Match]) -> Tried:
    """Every reading that may be right for all images: of the file, of the maps' axes, one motion of the maps, and the
    CTF."""
    # flipped phases: check_half_sets, check_other_ctf
    tried = [(reading, m) for reading, m in other_readings(found) if reading.name != PHASES]
    frame = other_frame(found, references, moved[1], evidence_of(found) > surely(found))
    return [*tried, (moved_reading(moved[0]), moved[1]), *([frame] if frame is not None else []),
            *other_defoci(found, particles)]


def refuse_common(found: Sequence[Explained], tried: Tried, motion: CommonMotion) -> None:
    """InputError where another reading is the likeliest of all images, and likelier than the one given in every part,
    of each half-set and optics group: then no part is to blame."""
    own = joined_matches([f.own for f in found])
    better = likeliest(tried, own)
    if better is None or not is_refused(better, motion):
        return
    there = next(m for reading, m in tried if reading.name == better.name)
    part = np.concatenate([2 * f.sample.particles.optics_group + half for half, f in enumerate(found)])
    parts = [np.flatnonzero(part == p) for p in np.unique(part)]
    if all(likelihood(there.some(p)) > likelihood(own.some(p)) for p in parts if len(p) >= FEWEST_IMAGES):
        raise InputError(f"do not fit each other: {better.problem}", SOURCE, better.remedy)


def is_refused(better: Reading, motion: CommonMotion) -> bool:
    return better.name != MOTION or is_far(motion)


def check_whole(found: Sequence[Explained], particles: Particles, references: Sequence[Reference],
                moved: Tuple[Tried, CommonMotion], workers: int) -> List[str]:
    """InputError where the images do not belong to half-maps and poses, or do in another reading of the input or after
    one motion of the maps; a sentence where too few images say so."""
    tried, motion = moved
    own, z, sure = joined_matches([f.own for f in found]), evidence_of(found), surely(found)
    better = likeliest(tried, own)
    if better is not None and is_refused(better, motion):
        raise InputError(f"do not fit each other: {better.problem}", SOURCE, better.remedy)
    if z < -BELONG:
        raise InputError("have the opposite contrast of the particles", "half-maps",
                         "invert the contrast of particles or maps, so that both are white on black")
    if opposite_in_detail(own) and z > sure:
        raise InputError("do not fit each other: the images have the opposite sign of the half-maps at fine detail, as "
                         "with a wrong CTF or flipped phases", SOURCE, CTF_REMEDY)
    coarse, fine, error = own.fine_scales
    only_from_afar = z < sure and fine < FROM_AFAR * coarse - 3 * error
    if not poses_matter(found) or (z > BELONG and not only_from_afar):
        return []
    problem = (f"do not belong together: the half-maps explain {len(own.cross)} images no better at their own poses "
               f"than at those of other particles ({z:.1f} standard deviations; good input has more than {sure:.0f})")
    rows = other_rows(found, None, particles, references, workers)
    if rows is not None:
        raise InputError(f"do not fit each other: the images fit the poses of other rows ({rows.words})", SOURCE, ROWS)
    remedy = "give particles and half-maps of one refinement; check that rows and images were not mixed up"
    if len(own.cross) >= ENOUGH_IMAGES:
        raise InputError(problem, SOURCE, remedy)
    return [f"{SOURCE} perhaps {problem}. {remedy[0].upper()}{remedy[1:]}"]


# ---------------------------------------------------------------- one motion of the map

def best_motion(found: Sequence[Explained], particles: Particles, references: Sequence[Reference],
                angstrom: float) -> Tuple[CommonMotion, Match]:
    """The one motion of the map that explains all images best, and how well: by steps from coarse to fine detail,
    unless the images surely fit as they are, and are pulled nowhere by coarse and by all detail."""
    samples, pixels = [f.sample for f in found], found[0].sample.packed.pixels
    box = particles.box_size * particles.pixel_size
    shells = [max(FEWEST_SHELLS, min(int(pixels.shell[-1]), int(box / a))) for a in (*COARSE_ANGSTROM, angstrom)]
    if evidence_of(found) > surely(found):
        scales = [f.own.scale for f in found]
        motion = motion_step(samples, references, STILL, scales, len(pixels))
        coarse = motion_step(samples, references, STILL, scales, pixels.prefix(shells[0]))
        if is_within(motion, STAYS * SAID_PX, STAYS * SAID_DEG) and coarse.last_step < BETTER ** 2:
            return motion, joined_matches([f.own for f in found])
    motion = STILL
    for shell in shells:
        motion = common_motion(samples, references, motion, shell, 3)
    return motion, moved_match(samples, references, motion)


def is_within(motion: CommonMotion, px: float, degrees: float) -> bool:
    return bool(np.linalg.norm(motion.displacement) <= px and np.rad2deg(np.linalg.norm(motion.rotation)) <= degrees)


def is_far(motion: CommonMotion) -> bool:
    return not is_within(motion, REFUSED_PX, REFUSED_DEG)


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


def moved_apart(samples: Sequence[Sample], references: Sequence[Reference], motion: CommonMotion) -> List[str]:
    """A sentence on half-maps in two frames, each in that of its own images; InputError where these are far apart."""
    (first, error), (second, other_error) = motion.own_steps
    step, covariance = second - first, error + other_error
    few = min(len(s.index) for s in samples) < APART_IMAGES  # poses scatter, which the covariance leaves out
    if few or not any(size > least and step[part] @ np.linalg.solve(covariance[part, part], step[part]) > BETTER ** 2
               for part, size, least in ((slice(0, 3), np.linalg.norm(step[:3]), np.deg2rad(APART_DEG)),
                                         (slice(3, 6), np.linalg.norm(step[3:]), APART_PX))):
        return []
    shell = int(samples[0].packed.pixels.shell[-1])
    one, two = (common_motion([s], [r], motion, shell, 5) for s, r in zip(samples, references))
    apart = replace(motion, rotation=two.rotation - one.rotation, displacement=two.displacement - one.displacement)
    problem = (f"are in two frames: each fits its own images once half-map 2, and not half-map 1, is {in_words(apart)}")
    remedy = "give the half-maps of one refinement, as it wrote them"
    if is_far(apart):
        raise InputError(problem, "half-maps 1 and 2", remedy)
    return [f"half-maps 1 and 2: they {problem}. {remedy[0].upper()}{remedy[1:]}"]


# ---------------------------------------------------------------- half-maps and half-sets

def check_half_maps(inputs: CheckedInputs, seen: Tuple[Sequence[Explained], Sequence[Against]], exchanged: bool,
                    workers: int) -> List[str]:
    """A sentence on half-maps that were not made from these half-sets; InputError for exchanged ones.

    seen : the images with their own half-map, which tells their grey scale, and with the other one. Where their pixels
    do not tell, finer ones are looked at.  exchanged : whether they were exchanged by a setting.
    """
    found, across = seen
    scale = joined_matches([f.own for f in found]).scale
    z, expected = own_noise([match_of(f.sample, f.slices - a.slices) for f, a in zip(found, across)], scale)
    if -BELONG < z < CHANCE and expected < HALVES_TELL:
        shell = min(highest_shell(inputs.particles.box_size), FINEST_SHELL)
        samples = [sample_of(inputs.particles, f.sample.index, shell, workers=workers) for f in found]
        difference = inputs.halves.coarse(np.ones_like, lambda radius: -np.ones_like(radius),
                                          least_box(inputs.halves.box_size, shell))
        reference = whole_map(to_host(difference), shell, workers)
        one, two = (matched([s], [reference]) for s in samples)
        z, expected = own_noise([one, replace(two, cross=-two.cross)], scale)
    if z < -BELONG:
        raise InputError(
            f"seem to be exchanged: the images of half-set 1 hold the noise of half-map 2, and the other way round "
            f"({-z:.0f} standard deviations)", "half-maps 1 and 2", "switch exchange_half_maps off" if exchanged else
            "give them in the other order, or set exchange_half_maps")
    if z < CHANCE and expected > HALVES_TELL:
        return [f"the half-maps were not made from these half-sets: the images do not hold their noise ({z:.1f} "
                f"standard deviations, {expected:.0f} expected). If they come from other particles or another split, "
                "the first FSCs are too good. Use half-maps and half-sets of one refinement"]
    return []


def own_noise(matches: Sequence[Match], scale: float) -> Tuple[float, float]:
    """How much of the noise of their half-maps the images hold, in standard deviations, and how much at least if the
    half-maps were made from them.

    matches : of the images of each half-set with their own half-map less the other. An image adds α energy / 2 by its
    own noise if it is of the half-set it is said to be; the rest of the mean square is the noise of this sum. It is at
    least the energy, and more where poses or signal differ.
    """
    own = joined_matches(list(matches))
    noise = max(float((own.cross ** 2 - (0.5 * scale * own.energy) ** 2).sum()), float(own.energy.sum()))
    return in_deviations(own.cross), OWN_NOISE * scale * float(own.energy.sum()) / np.sqrt(noise)
