"""Everything that can be wrong with the input, refused before anything is computed.

`check_inputs` is the whole of it. What cannot be right raises InputError; what may be meant, but often is
not, is a warning.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np

from ..io.mrc import open_mrc, stack_shape
from ..io.relion_particles import (
    BEAM_TILT,
    DISTORTION,
    FARTHEST_PIXEL_SIZE,
    ZERNIKE,
    ParticleTable,
    in_frame,
    read_particles,
)
from ..io.run_folder import PathLike
from ..kernels.device import CPU, Device, array_module, device_for_volumes, to_host
from ..maps.fsc import resolution_at
from ..maps.half_maps import HalfMaps
from ..maps.mask import check_mask, dense_region, noise_in_mask
from ..model.optics import several_pixel_sizes
from ..model.symmetry import mask_symmetry_error, operators
from ..motion.prior_shapes import prior_shape
from ..records.errors import InputError
from ..records.iteration import FSC_THRESHOLD
from ..records.particles import Particles
from ..records.run_input import Excluded
from ..records.settings import Settings
from .exclude import GREY_RANGE, Images, exclude_unusable, exclusion_warning
from .frames import place_mask, refuse_other_frame, same_frame_warnings
from .grey_scales import split_by_level
from .grids import read_on_grid, read_pixel_size
from .half_sets import (
    PARITY_TEXT,
    check_copies,
    check_duplicates,
    check_relatives,
    families,
    filament_warning,
    parity_split,
    relatives_of,
    resplit,
    resplit_with_copies,
    tubes_of,
)
from .refined_before import refined_before

LEAST_BOX = 8
ASYMMETRIC = 0.1  # symmetry.mask_symmetry_error of a symmetric mask is below 0.03
LEAST_RADIANS = 0.1  # smaller phase shifts would be no phase plate's in either unit
USUAL_OPTICS = (60, 1250), (0, 8), (0.01, 0.4)  # kV, mm, amplitude contrast: what microscopes and specimens have


Look = Callable[[Particles, str], Tuple[Particles, Tuple[Excluded, ...], Images]]


@dataclass(frozen=True)
class CheckedInputs:
    """Inputs that passed: the two half-maps and `mask`, (N, N, N) float32, the mask within [0, 1], and the FSC
    `under_mask` (N // 2 + 1,).

    `excluded` particles are of half-set 0.
    """

    particles: Particles
    table: ParticleTable
    halves: HalfMaps
    mask: np.ndarray
    under_mask: np.ndarray
    pixel_size: float
    warnings: Tuple[str, ...]
    excluded: Tuple[Excluded, ...] = ()

    @property
    def maps(self) -> Tuple[np.ndarray, np.ndarray]:
        """The half-maps, on the host."""
        return to_host(self.halves.maps[0]), to_host(self.halves.maps[1])


def check_inputs(particles_star: PathLike, half_map_1: PathLike, half_map_2: PathLike, mask: PathLike,  # noqa: PLR0913
                 settings: Settings, workers: int = 1, device: Device = CPU,
                 look: Look = exclude_unusable,
                 given: Optional[Tuple[Particles, ParticleTable]] = None) -> CheckedInputs:
    """Read and check the inputs of a local refinement; every image is looked at once, maps are compared on ``device``.

    ``look`` : what looks at the images; a run of several masks lets it look once for all of them.
    ``given`` : some particles of the table, read before; the others are not looked at.

    Memory: three maps, the STAR file and a batch of images.

    Raises
    ------
    InputError : the first thing found that cannot be right, in the order particles, maps, mask,
        settings, images.
    """
    star = str(particles_star)
    if settings.exchange_half_maps:
        half_map_1, half_map_2 = half_map_2, half_map_1
    particles, table = given or read_particles(particles_star, need_half_sets=not settings.resplit_half_sets)
    optics = _check_optics(particles, star)
    particles, table, warnings = _in_frame_of_half_map(particles, table, half_map_1, star)
    warnings += optics
    warnings += _check_table(table, star) + refined_before(table, star)
    if settings.exchange_half_maps:
        warnings.append(f"half-maps 1 and 2 were exchanged, as exchange_half_maps says: half-map 1 is {half_map_1}")
    tubes, relatives = tubes_of(table.particles), relatives_of(particles, table)
    if settings.resplit_half_sets:
        particles = resplit(particles, settings.seed, families(particles, tubes, relatives))
        warnings.append("the half-sets were split anew: the two references share particles with both of them and are "
                        "not independent, so the FSC of the first iterations is too good")
    else:
        warnings += _check_parity(particles, table, star)
    warnings += _check_half_sets(particles, star) + filament_warning(tubes, particles.half_set, star)
    warnings += check_duplicates(particles, star, settings.symmetry)
    warnings += check_relatives(relatives, particles.half_set, star)
    warnings += _check_ctf(particles, star)
    _check_stacks(particles, star)
    names = f"half-map 1 {half_map_1}", f"half-map 2 {half_map_2}", f"mask {mask}"
    volumes = []
    for path, name in zip((half_map_1, half_map_2, mask), names):
        volume, said = read_on_grid(path, name, particles, settings.resample_maps)
        if said:
            refuse_other_frame(path, name, half_map_1)
        elif name.startswith("mask") and settings.honour_mask_origin:
            volume, said = place_mask(volume, path, name, half_map_1)
        else:
            said = same_frame_warnings(path, name, half_map_1)
        volumes.append(volume)
        warnings += said
    maps = _check_values(volumes[0], names[0]), _check_values(volumes[1], names[1])
    warnings += _check_half_maps(maps, names[:2])
    on = device_for_volumes(device, particles.box_size).to_device
    halves = HalfMaps(on(maps[0]), on(maps[1]), workers)
    check_mask(volumes[2], particles.box_size, particles.pixel_size, 0.0, source=names[2])  # refuses what is no mask
    clipped = np.clip(volumes[2], 0, 1)
    under_mask = halves.under(array_module(halves.maps[0]).asarray(clipped))
    warnings += _check_mask(clipped, halves, under_mask, names[2], particles)
    warnings += _check_symmetry(clipped, settings, names[2])
    warnings += _check_settings(settings, particles)
    particles, excluded, seen = look(particles, star)
    if settings.resplit_half_sets:
        particles = resplit_with_copies(particles, settings.seed, tubes, relatives, seen.copies)
    warnings += exclusion_warning(excluded, len(particles)) + check_copies(seen.copies, particles, relatives, star)
    particles, said = split_by_level(particles, seen.level, star)
    warnings += said
    return CheckedInputs(particles, table, halves, clipped, under_mask, particles.pixel_size, tuple(warnings), excluded)


def check_readable(particles_star: PathLike, half_map_1: PathLike, masks: Sequence[PathLike],
                   settings: Settings) -> None:
    """InputError for a mask of several that cannot be one, before anything is done with the others."""
    particles, table = read_particles(particles_star, need_half_sets=not settings.resplit_half_sets)
    _check_optics(particles, str(particles_star))
    particles, _, _ = _in_frame_of_half_map(particles, table, half_map_1, str(particles_star))
    for path in masks:
        mask, _ = read_on_grid(path, f"mask {path}", particles, settings.resample_maps)
        check_mask(mask, particles.box_size, particles.pixel_size, 0.0, source=f"mask {path}")


def _check_optics(particles: Particles, star: str) -> List[str]:
    optics = particles.optics
    boxes = sorted({group.box_size for group in optics})
    if len(boxes) > 1:
        raise InputError(f"the optics groups have several box sizes, {_listed(boxes)} px", star,
                         "extract all particles with one box size, or crop them all to the smallest: "
                         f"relion_image_handler --i {star} --o cropped --new_box {boxes[0]}")
    if particles.box_size < LEAST_BOX:
        raise InputError(f"the box of {particles.box_size} px is too small", star, f"use at least {LEAST_BOX} px")
    said = []
    for group in optics:
        for (value, low, high, label, unit), usual in zip((
                (group.voltage_kv, 10, 3000, "rlnVoltage", "kV"),
                (group.spherical_aberration_mm, -10, 20, "rlnSphericalAberration", "mm"),
                (group.amplitude_contrast, 0, 1, "rlnAmplitudeContrast", "(a fraction, not per cent)")), USUAL_OPTICS):
            if not low <= value <= high:
                raise InputError(f"optics group {group.name} has {label} {value:g}, not within {low} … {high} {unit}",
                                 star, f"correct {label}")
            if not usual[0] <= value <= usual[1]:
                said.append(f"{star}: optics group {group.name} has {label} {value:g}; usual is {usual[0]:g} to "
                            f"{usual[1]:g} {unit}. Check it: a wrong CTF limits the resolution")
    return said


def _in_frame_of_half_map(particles: Particles, table: ParticleTable, half_map: PathLike,
                          star: str) -> Tuple[Particles, ParticleTable, List[str]]:
    """Particles of several pixel sizes in the frame of the half-maps, and what is said of it."""
    if not several_pixel_sizes(table.pixel_size):
        return particles, table, []
    pixel_size = read_pixel_size(half_map, f"half-map 1 {half_map}")
    if np.abs(table.pixel_size / pixel_size - 1).max() <= FARTHEST_PIXEL_SIZE:  # else the half-maps have another grid
        particles, table = in_frame(particles, table, pixel_size)
    sizes = _listed(np.unique(table.pixel_size).tolist())
    said = (f"{star}: the optics groups have pixel sizes of {sizes} Å; every image is scaled about its centre to the "
            f"{particles.pixel_size:g} Å of the half-maps")
    return particles, table, [said]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:-1]) + f" and {values[-1]:g}"


FOLLOWS_NOISE = 6.0, 12.0  # s.d. from which it is said, refused; masks of low-passed maps have less than 5
PHASE_FLIPPED = "the images are phase-flipped", "give the particles without phase flipping; the CTF is corrected here"
_OTHER_IMAGES = ("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped", "rlnImageDimensionality")
_IGNORED_ZERO = ("rlnCtfBfactor",) + BEAM_TILT + DISTORTION[1:3]
_IGNORED_ONE = ("rlnCtfScalefactor", DISTORTION[0], DISTORTION[3])
_MODELLED = {"optics": BEAM_TILT + ZERNIKE + DISTORTION, "particles": (), "": BEAM_TILT}  # "" is RELION 3.0


def _check_table(table: ParticleTable, star: str) -> List[str]:
    """What the STAR file says and the engine does not model: refused if it changes what the images are."""
    warnings = []
    for part in (table.optics, table.particles):
        if part is None:
            continue
        for label, texts in part.texts(_OTHER_IMAGES).items():
            if label == "rlnImageDimensionality" and any(text == "3" for text in texts):
                raise InputError("the images are three-dimensional", star, "give two-dimensional particles")
            if label == "rlnCtfDataAreCtfPremultiplied" and any(text == "1" for text in texts):
                raise InputError("the images are premultiplied by the CTF", star,
                                 "extract the particles without premultiplication")
            if label == "rlnCtfDataArePhaseFlipped" and any(text == "1" for text in texts):
                raise InputError(PHASE_FLIPPED[0], star, PHASE_FLIPPED[1])
        modelled = _MODELLED["" if table.optics is None else "optics" if part is table.optics else "particles"]
        for label, texts in part.texts(_IGNORED_ZERO + _IGNORED_ONE + ZERNIKE).items():
            if label not in modelled and any(_says_something(label, text) for text in set(texts)):
                warnings.append(f"{star}: {label} is not modelled, its values are ignored")
    return warnings


def _says_something(label: str, text: str) -> bool:
    if label in ZERNIKE:
        return any(digit in text for digit in "123456789")
    try:
        return abs(float(text) - (label in _IGNORED_ONE)) > 1e-6
    except ValueError:
        return True


def _check_half_sets(particles: Particles, star: str) -> List[str]:
    counts = [int(np.count_nonzero(particles.half_set == half)) for half in (1, 2)]
    for half, count in zip((1, 2), counts):
        if count == 0:
            raise InputError(f"half-set {half} has no particles", star,
                             "give the particles of both half-sets of a refinement (rlnRandomSubset 1 and 2)")
    if 3 * min(counts) < 2 * max(counts):
        return [f"{star}: the half-sets are unequal ({counts[0]} and {counts[1]} particles). The smaller one "
                "has the worse poses and limits the FSC. In the final map each half-map has its own weight. "
                "Set resplit_half_sets for two halves of one size"]
    return []


def _check_parity(particles: Particles, table: ParticleTable, star: str) -> List[str]:
    """Half-sets that are the parity of Scipion's ids."""
    try:
        ids = np.array(table.particles.texts(["rlnImageId"])["rlnImageId"], dtype=float).astype(np.int64)
    except (KeyError, ValueError):
        return []
    return [f"{star}: {PARITY_TEXT}"] if parity_split(ids, particles.half_set) else []


def _check_ctf(particles: Particles, star: str) -> List[str]:
    defocus = np.maximum(np.abs(particles.defocus_u), np.abs(particles.defocus_v))
    largest = float(defocus.max())
    if (particles.defocus_u < 0).all() and (particles.defocus_v < 0).all():
        raise InputError("every defocus is negative", star, "give underfocus as positive rlnDefocusU and rlnDefocusV")
    if largest == 0:
        return [f"{star}: every defocus is 0; the images are taken as they are, apart from amplitude contrast and "
                "spherical aberration"]
    if largest < 50:
        raise InputError(f"the largest defocus is {largest:g} Å", star, "give rlnDefocusU and rlnDefocusV in Å, not µm")
    phase = np.abs(particles.phase_shift)
    if 0 < phase.max() <= 2 * np.pi and np.median(phase) > LEAST_RADIANS:
        return [f"{star}: rlnPhaseShift goes to {phase.max():.2f}. These seem to be radians; the program reads them as "
                "degrees. Multiply the column by 57.2958 if they are"]
    return []


def _check_stacks(particles: Particles, star: str) -> None:
    """Every stack is complete, has square images of the box size, and holds the images asked of it."""
    last = np.full(len(particles.stacks), -1, dtype=np.int64)
    np.maximum.at(last, particles.stack, particles.slice)
    box_size = particles.box_size
    for i, path in enumerate(particles.stacks):
        with open_mrc(path) as mrc:
            count, rows, columns = stack_shape(mrc, path)
        if (rows, columns) != (box_size, box_size):
            raise InputError(f"has images of {columns} × {rows} px, the particles of {star} have a box of "
                             f"{box_size} px", path, "extract the particles anew, or correct rlnImageSize")
        if last[i] >= count:
            row = int(np.flatnonzero((particles.stack == i) & (particles.slice == last[i]))[0])
            raise InputError(f"holds {count} images, row {row + 1} of {star} asks for number {last[i] + 1}", path,
                             "the stack is truncated or the STAR file belongs to another one")


def _check_values(volume: np.ndarray, name: str) -> np.ndarray:
    """A half-map, finite, not constant, and of values whose squares 32-bit floats can hold."""
    if not np.isfinite(volume).all():
        raise InputError(f"holds {int(np.count_nonzero(~np.isfinite(volume)))} NaN or infinite values", name,
                         "reconstruct it again")
    low, high = float(volume.min()), float(volume.max())
    if low == high:
        raise InputError(f"is constant ({low:g} everywhere)", name, "give a reconstructed half-map")
    if not GREY_RANGE[0] < high - low < GREY_RANGE[1] or abs(low) > GREY_RANGE[1]:
        raise InputError(f"has values from {low:.3g} to {high:.3g}", name,
                         "reconstruct it from particles normalised to a standard deviation of 1")
    return volume


def _check_half_maps(maps: Tuple[np.ndarray, np.ndarray], names: Tuple[str, str]) -> List[str]:
    mean1, mean2 = (volume.mean(dtype=np.float64) for volume in maps)
    products = np.zeros(3)
    for plane1, plane2 in zip(*maps):
        centred = (plane1 - mean1).ravel(), (plane2 - mean2).ravel()
        products += [a @ b for a, b in (centred, (centred[0],) * 2, (centred[1],) * 2)]
    correlation = products[0] / np.sqrt(products[1] * products[2])
    # the correlation of two independent halves falls short of 1 by noise / signal
    if abs(correlation) > 1 - 1e-6:
        raise InputError(f"is identical to {names[0]}" + (" with the contrast inverted" if correlation < 0 else ""),
                         names[1], "give the two half-maps of one refinement")
    warnings = []
    sphere = _inscribed_sphere(maps[0].shape[0])
    for volume, name in zip(maps, names):
        zeros = float(np.mean(volume[::2, ::2, ::2][sphere] == 0))
        if zeros > 0.1:
            warnings.append(f"{name}: {100 * zeros:.0f} % of the inner voxels are exactly 0; masked half-maps make the "
                            "first FSC too good, give unmasked ones")
    return warnings


def _inscribed_sphere(box_size: int) -> np.ndarray:
    """Every second voxel of the box, bool, radius 0.4 N: half-maps may come with the corners zeroed."""
    square = np.square(np.arange(0, box_size, 2) - box_size // 2)
    inside: np.ndarray = square[:, None, None] + square[:, None] + square < (0.4 * box_size) ** 2
    return inside


def _check_mask(mask: np.ndarray, halves: HalfMaps, under_mask: np.ndarray, name: str,
                particles: Particles) -> List[str]:
    box_size, pixel_size = particles.box_size, particles.pixel_size
    resolution = resolution_at(under_mask, FSC_THRESHOLD, box_size, pixel_size)
    warnings = check_mask(mask, box_size, pixel_size, resolution, dense_region(halves, pixel_size), name)
    noise = noise_in_mask(array_module(halves.maps[0]).asarray(mask), halves.spectra[0] - halves.spectra[1],
                          pixel_size, halves.workers)
    if abs(noise) > FOLLOWS_NOISE[0]:
        text = (f"follows the noise of half-map {1 if noise > 0 else 2} ({abs(noise):.0f} standard deviations), so the "
                "FSC under it is too good")
        remedy = "make the mask from both half-maps, low-passed to 15 Å, with a soft edge"
        if abs(noise) > FOLLOWS_NOISE[1]:
            raise InputError(text, name, remedy)
        warnings.append(f"{name}: {text}. {remedy[0].upper()}{remedy[1:]}")
    if resolution >= box_size * pixel_size:
        warnings.append(f"{name}: the half-maps do not correlate inside it at any resolution; are they of these "
                        "particles and this frame?")
    return warnings


def _check_symmetry(mask: np.ndarray, settings: Settings, name: str) -> List[str]:
    """Refuse a mask that breaks the symmetry, unless told otherwise."""
    error = mask_symmetry_error(mask, operators(settings.symmetry))
    if error <= ASYMMETRIC:
        return []
    problem = f"breaks the symmetry {settings.symmetry} (by {100 * error:.0f} %)"
    if not settings.allow_asymmetric_mask:
        raise InputError(problem, name, "use C1 with symmetry-expanded particles for a part of a symmetric complex, "
                                        "or set allow_asymmetric_mask")
    return [f"{name}: {problem}; its density is averaged with that of its symmetry mates, which are not aligned"]


def _check_settings(settings: Settings, particles: Particles) -> List[str]:
    """Settings that are in range by themselves but not for this box and pixel size."""
    box_size, pixel_size = particles.box_size, particles.pixel_size
    if not isinstance(settings.fulcrum, str) and not all(0 <= v <= box_size - 1 for v in settings.fulcrum):
        raise InputError(f"{list(settings.fulcrum)} lies outside the box of {box_size} px", "setting fulcrum",
                         "give x, y, z in px from the corner of the box")
    extent = settings.shift_extent_angstrom
    if extent is not None and extent > box_size * pixel_size / 2:
        raise InputError(f"{extent:g} Å is more than half the box ({box_size * pixel_size / 2:g} Å)",
                         "setting shift_extent_angstrom", "choose a smaller value")
    prior = prior_shape(settings.prior)
    refused = prior.refusal(settings)
    if refused:
        raise InputError(refused[0], "settings prior, recenter_rotations, recenter_shifts", refused[1])
    warnings = prior.warnings(settings)
    lowpass = settings.initial_lowpass_angstrom
    if lowpass is not None and lowpass > box_size * pixel_size / 2:
        raise InputError(f"{lowpass:g} Å leaves nothing of a box of {box_size * pixel_size:g} Å",
                         "setting initial_lowpass_angstrom", "choose a smaller value")
    if lowpass is not None and lowpass < 2 * pixel_size:
        warnings.append(f"setting initial_lowpass_angstrom: {lowpass:g} Å is beyond Nyquist ({2 * pixel_size:g} Å)")
    return warnings
