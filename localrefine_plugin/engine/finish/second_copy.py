"""Does the map hold the sub-volume twice, as it does where half of the particles are in a state outside the search?

Images of a second state that the search cannot reach are aligned somewhere all the same, and the map then holds two
copies of the sub-volume, one turned and displaced against the other. Half-maps agree on both, and every null test
passes. But the map then correlates with itself, turned and displaced in the same way:

    C(R, t) = Σ_v (m V)(R⁻¹(v − t)) V(v) / √(…),     V whitened between COARSEST and FINEST,

the masked map against the whole one, v from the mask's centre, for rotations R beyond the reach of the peak at R = 1
and displacements t of less than NEAR radii of the mask. Copies that lie farther away are neighbours, such as other
subunits. In a map of one state this is the correlation of unlike density, whose maxima over t scatter little from
rotation to rotation; a second copy stands out of them.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

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
CERTAIN = 8.0  # s.d. of unlike density: at most 6.1 in 18 sets of one state, 10 to 14 in those of two
LEAST_ROTATIONS = 50


class Cubes(NamedTuple):
    """Masked map (e, e, e), and the whole one (b, b, b) about the mask's centre on voxels of ``voxel`` Å; the squared
    radial mask, to weigh the latter's density."""

    masked: np.ndarray
    whole: np.ndarray
    weight: np.ndarray
    voxel: float


def second_copy(halves: HalfMaps, mask: np.ndarray, pixel_size: float, symmetry: str) -> SecondCopy:
    """Whether the mean of two half-maps holds what is in the mask (N, N, N) once more; not asked of a symmetrical
    particle, which does."""
    radius = mask_radius(mask, mask_centre(mask)).effective * pixel_size
    least = max(np.deg2rad(LEAST_DEG), REACH * FINEST / radius)
    turns = half_ball(least)
    if symmetry.upper() != "C1" or len(turns) < LEAST_ROTATIONS:
        return SecondCopy(False, 0.0, 0.0, 0.0, 0.0, "")
    reach = min(FARTHEST, NEAR * radius)
    maps = cubes(halves, mask, pixel_size, reach)
    if not maps.masked.any():  # a map without detail between COARSEST and FINEST
        return SecondCopy(False, 0.0, 0.0, 0.0, 0.0, "")
    value = correlations(maps, turns, reach)[:, 0]
    median = float(np.median(value))
    spread = 1.4826 * float(np.median(np.abs(value - median)))
    deviations = (float(value.max()) - median) / max(spread, 1e-9)
    there = deviations > CERTAIN
    motion, displacement = turns[np.argmax(value)], np.zeros(3)
    width = STEP_DEG
    for step in FINER_DEG if there else FINER_DEG[:1]:
        about = motion + rotation_vector_ball(np.deg2rad(width), np.deg2rad(step))
        near = correlations(maps, about, reach)
        best = int(np.argmax(near[:, 0]))
        motion, displacement, width = about[best], near[best, 1:], 1.8 * step
    angle, far = float(np.rad2deg(np.linalg.norm(motion))), float(np.linalg.norm(displacement))
    found = SecondCopy(there, angle, far, deviations, float(np.rad2deg(least)))
    if not there:
        return found
    return replace(found, advice=advice(found), rotation_vector=tuple(motion.tolist()),
                   displacement_px=tuple((displacement / pixel_size).tolist()))


def advice(found: SecondCopy) -> str:
    share = "Probably a third to two thirds of the particles are" if found.share is None else (
        f"About {100 * found.share:.0f} ± {100 * (found.share_error or 0.0):.0f} % of the particles are")
    return (f"the map holds a second copy of the sub-volume, turned by about {5 * round(found.rotation_deg / 5):.0f}° "
            f"and displaced by about {found.displacement_angstrom:.0f} Å. {share} in a second state that the search "
            "does not reach, and resolution and FSC are those of the mixture. Classify the particles in 3D first "
            "(without alignment, in a mask that holds both places), and refine each class by itself. If the sub-volume "
            "has parts that are alike, the copy may be one of these")


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
