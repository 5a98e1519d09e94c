"""Does a map hold the sub-volume twice, as it does where particles are in a state outside the search?

Images of a second state that the search cannot reach are aligned somewhere all the same. Half-maps agree on what that
leaves, and every null test passes. But two maps then hold a second copy of the sub-volume, turned and displaced against
the first: the one that was refined, where about half of the images are in the second state, and the input map, in which
each state stands where its images were, blurred by the motion. Either correlates with what is in the mask, turned and
displaced in the same way:

    C(R, t) = Σ_v (m V)(R⁻¹(v − t)) U(v) / √(…),     V and U whitened between COARSEST and FINEST,

the masked map V against the whole of U, v from the mask's centre, for rotations R beyond the reach of the peak at R = 1
and displacements t of less than NEAR radii of the mask. Copies that lie farther away are neighbours, such as other
subunits. U is V itself, the input map, or what of the input map is not in V: there a copy that V has lost stands alone,
also that of a tenth of the images. In maps of one state this is the correlation of unlike density, whose maxima over t
scatter little from rotation to rotation; a second copy stands out of them. Where it hardly does, or only in what is not
in V, the particles decide (second_state.py): an uneven motion leaves something there as well.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any, List, NamedTuple, Optional

import numpy as np
import scipy.fft

from ..align.reference import cube_about, support_box
from ..kernels.device import to_host
from ..kernels.fft import irfftn_block, rfftn_block
from ..kernels.moved import sum_of_moved
from ..maps.half_maps import HalfMaps
from ..maps.mask import mask_centre, mask_radius
from ..model.fourier import by_shell, resample_map
from ..model.pose import exp_map, rotation_vector_ball
from ..records.results import SecondCopy

Array = Any
COARSEST, FINEST = 40.0, 14.0  # Å: finer detail would ask for finer rotations
VOXELS = 2.2  # of a period of FINEST
STEP_DEG, WIDEST_DEG, LEAST_DEG = 9.0, 60.0, 24.0
FINER_DEG = 4.0, 2.0, 1.0  # steps about the best rotation; the last two where a copy is found
REACH = 1.3  # times FINEST / radius, rad: how far the peak of the map with itself reaches
NEAR, FARTHEST = 0.8, 40.0  # radii of the mask, and Å
CERTAIN, SUSPECTED = 8.0, 6.5  # s.d. of unlike density: at most 5.9 in 17 sets of one state, 8.4 to 19 in 20 of two
LEAST_ROTATIONS = 50
TRIED = 12  # of the likeliest rotations, for one that is a peak


class Cubes(NamedTuple):
    """Masked map (e, e, e), and the whole one (b, b, b) about the mask's centre on voxels of ``voxel`` Å; the squared
    radial mask, to weigh the latter's density."""

    masked: np.ndarray
    whole: np.ndarray
    weight: np.ndarray
    voxel: float


def second_copy(halves: HalfMaps, mask: np.ndarray, pixel_size: float, symmetry: str,
                before: Optional[np.ndarray] = None) -> SecondCopy:
    """Whether the mean of two half-maps, or the map (N, N, N) ``before`` the refinement, holds what is in the mask
    (N, N, N) once more; not asked of a symmetrical particle, which does."""
    radius = mask_radius(mask, mask_centre(mask)).effective * pixel_size
    least = max(np.deg2rad(LEAST_DEG), REACH * FINEST / radius)
    turns = half_ball(least)
    if symmetry.upper() != "C1" or len(turns) < LEAST_ROTATIONS:
        return SecondCopy(False, 0.0, 0.0, 0.0, 0.0, "")
    reach = min(FARTHEST, NEAR * radius)
    maps = cubes(halves, mask, pixel_size, reach)
    if not maps.masked.any():  # a map without detail between COARSEST and FINEST
        return SecondCopy(False, 0.0, 0.0, 0.0, 0.0, "")
    there = None if before is None else cubes(HalfMaps(before, before), mask, pixel_size, reach).whole
    tried = compared(maps, there, turns, reach)
    likeliest = max(tried, key=lambda one: one.deviations)
    motion, displacement, width = likeliest.motion, np.zeros(3), STEP_DEG
    suspected = likeliest.deviations > SUSPECTED
    for step in FINER_DEG if suspected else FINER_DEG[:1]:
        about = motion + rotation_vector_ball(np.deg2rad(width), np.deg2rad(step))
        about = about[np.linalg.norm(about, axis=1) > least]
        near = correlations(likeliest.of, about, reach)
        best = int(np.argmax(near[:, 0]))
        motion, displacement, width = about[best], near[best, 1:], 1.8 * step
    angle, far = float(np.rad2deg(np.linalg.norm(motion))), float(np.linalg.norm(displacement))
    certain = any(one.deviations > CERTAIN for one in tried[:2])
    found = SecondCopy(certain, angle, far, likeliest.deviations, float(np.rad2deg(least)))
    if not suspected:
        return found
    moved = replace(found, rotation_vector=tuple(motion.tolist()),
                    displacement_px=tuple((displacement / pixel_size).tolist()))
    return replace(moved, advice=advice(moved)) if moved.found else moved


class Likeliest(NamedTuple):
    """By how many standard deviations the rotation vector ``motion`` stands out of all others, in these cubes."""

    deviations: float
    motion: np.ndarray
    of: Cubes


def compared(maps: Cubes, before: Optional[np.ndarray], turns: np.ndarray, reach: float) -> List[Likeliest]:
    """The masked map with the whole one, with the input map ``before`` (b, b, b), and with what is in that alone."""
    tried = [stands_out(maps, turns, reach)]
    if before is not None:
        turns = np.concatenate([turns, -turns])
        tried += [stands_out(maps._replace(whole=there), turns, reach)
                  for there in (before, left_over(before, maps.whole))]
    return tried


def left_over(before: np.ndarray, refined: np.ndarray) -> np.ndarray:
    """What of a map (b, b, b) is not in another one, by least squares."""
    share = (before * refined).sum() / (refined * refined).sum()
    rest: np.ndarray = before - share * refined
    return rest


def stands_out(maps: Cubes, turns: np.ndarray, reach: float) -> Likeliest:
    """The likeliest of rotation vectors (n, 3). Below CERTAIN it is one that is no slope of the peak at R = 1: a step
    towards that is less likely."""
    value = correlations(maps, turns, reach)[:, 0]
    median = float(np.median(value))
    spread = max(1.4826 * float(np.median(np.abs(value - median))), 1e-9)
    order = np.argsort(-value, kind="stable")[:TRIED]
    best = order[0]
    if value[best] < median + CERTAIN * spread:
        angle = np.linalg.norm(turns[order], axis=1)
        nearer = turns[order] * (1 - np.deg2rad(STEP_DEG) / angle)[:, None]
        tops = order[correlations(maps, nearer, reach)[:, 0] < value[order]]
        best = tops[0] if len(tops) else order[-1]
    return Likeliest((float(value[best]) - median) / spread, turns[best], maps)


def advice(found: SecondCopy) -> str:
    share = "Probably a quarter to two thirds" if found.share is None else (
        f"About {100 * found.share:.0f} ± {100 * (found.share_error or 0.0):.0f} %")
    return (f"the map holds a second copy of the sub-volume, turned by about {5 * round(found.rotation_deg / 5):.0f}° "
            f"and displaced by about {found.displacement_angstrom:.0f} Å. {share} of the particles are in this second "
            "state, which the search does not reach, or only at its end. Resolution and FSC are those of the mixture. "
            "Classify the particles in 3D first (without alignment, in a mask that holds both places), and refine each "
            "class by itself. If the sub-volume has parts that are alike, the copy may be one of these")


def half_ball(least: float) -> np.ndarray:
    """Rotation vectors (n, 3) from ``least`` rad to the widest: one of each pair ±w, for C(R⁻¹, −R⁻¹t) = C(R, t)."""
    turns = rotation_vector_ball(np.deg2rad(WIDEST_DEG), np.deg2rad(STEP_DEG))
    order = turns @ np.array([1e-6, 1e-3, 1.0])
    chosen: np.ndarray = turns[(np.linalg.norm(turns, axis=1) > least) & (order > 0)]
    return chosen


def cubes(halves: HalfMaps, mask: np.ndarray, pixel_size: float, reach: float) -> Cubes:
    """The maps on coarse voxels; ``reach`` Å of displacements."""
    box = halves.box_size
    first, second, _ = halves.shell_means
    frequency = np.arange(len(first)) / (box * pixel_size)
    band = (frequency > 1 / COARSEST) & (frequency < 1 / FINEST)
    power = np.sqrt(first * second)
    white = np.divide(band, np.sqrt(power), out=np.zeros(len(power)), where=band & (power > 0))
    coarse = min(box, 2 * int(np.ceil(0.5 * VOXELS * box * pixel_size / FINEST)))
    volume, shape = to_host(halves.coarse_mean(by_shell(white), coarse)), resample_map(mask, coarse)
    shape, voxel = np.clip(shape, 0, 1).astype(np.float32), pixel_size * box / coarse
    centre = np.rint(mask_centre(shape) - coarse // 2)
    edge = support_box(shape > 0.1, centre)
    wide = scipy.fft.next_fast_len(edge + int(np.ceil(reach / voxel)), real=True)
    wide += wide % 2
    window, inside = cube_about(shape, centre, edge), cube_about(volume, centre, edge)
    masked = window * (inside - (window * inside).sum() / window.sum())
    return Cubes(masked, cube_about(volume, centre, wide), radial_mean(window ** 2), voxel)


def radial_mean(cube: np.ndarray) -> np.ndarray:
    """Of a cube (e, e, e), about [e // 2]."""
    squared = np.square(np.arange(len(cube)) - len(cube) // 2)
    shell = np.rint(np.sqrt(squared[:, None, None] + squared[:, None] + squared)).astype(int)
    mean = np.bincount(shell.ravel(), cube.ravel()) / np.bincount(shell.ravel())
    return mean[shell].astype(np.float32)


def correlations(of: Cubes, turns: np.ndarray, reach: float) -> np.ndarray:
    """(n, 4): the largest C over displacements of less than ``reach`` Å, and that displacement (x, y, z) in Å."""
    wide, edge = len(of.whole), len(of.masked)
    most = min(int(reach / of.voxel), (wide - 1) // 2)
    begin = (wide - edge) // 2 + most  # so that a cube in the corner of the box is displaced by −most … most
    whole = np.roll(of.whole, (-begin,) * 3, (0, 1, 2))
    target, density = (np.conj(scipy.fft.rfftn(cube)) for cube in (whole, whole ** 2))

    def along_displacements(spectrum: np.ndarray, cube: np.ndarray) -> np.ndarray:
        product = spectrum * rfftn_block(cube, wide, wide // 2)
        near: np.ndarray = irfftn_block(product, wide, (slice(0, 2 * most + 1),) * 3)
        return near
    along = np.square(np.arange(-most, most + 1) * of.voxel)
    distance = np.sqrt(along[:, None, None] + along[:, None] + along)
    there = along_displacements(density, of.weight)
    scale = np.sqrt(np.maximum(there, 0.1 * there.max()) * (of.masked ** 2).sum())
    scale[distance >= reach] = np.inf
    middle, window, found = np.full(3, edge // 2), np.ones((edge,) * 3, np.float32), np.empty((len(turns), 4))
    for number, rotation in enumerate(exp_map(turns)):
        back = rotation[::-1, ::-1].T  # zyx
        turned = sum_of_moved(of.masked, back[None], (middle - back @ middle)[None], window)
        value = along_displacements(target, turned) / scale
        found[number, 0] = value.max()
        found[number, 1:] = -of.voxel * peak(value)[::-1]
    return found


def peak(value: np.ndarray) -> np.ndarray:
    """Where an array (e, e, e) is largest, in voxels from its middle: by parabolas through the neighbours."""
    best = np.array(np.unravel_index(np.argmax(value), value.shape))
    place = best - len(value) // 2.0
    for axis, step in enumerate(np.eye(3, dtype=int)):
        if 0 < best[axis] < len(value) - 1:
            before, top, after = (float(value[tuple(best + k * step)]) for k in (-1, 0, 1))
            bend = before - 2 * top + after
            place[axis] += 0.5 * (before - after) / bend if bend < 0 < min(before, after) else 0.0
    return place
