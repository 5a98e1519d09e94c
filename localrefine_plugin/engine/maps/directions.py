"""Whether a map is equally good in all directions: the views that made it, and the FSC in cones.

**Sampling.** A view along n̂ fills the Fourier samples of shell R whose direction v̂ meets |n̂·v̂| < 1/(2R). With s the
number of views at a direction, over the directions that are seen at all, and f the share of those that are not, the
sampling compensation factor (Baldwin & Lyumkis 2020, doi:10.1016/j.pbiomolbio.2019.09.002) is

    SCF = 1 / (⟨1/s⟩ ⟨s⟩),        SCF* = SCF / (1 + f / (1 − f) · ⟨s⟩ · SCF / 2),

the share of the signal-to-noise ratio that is left beside even views. It is 1 for even views and 8/π² = 0.81 for views
from all sides about one axis, the last distribution that leaves nothing out. Half-maps cannot see what is missing in
both.

**Cones.** The FSC among the samples within 20° of a direction, for many directions; the cone FSC area ratio (cFAR) is
the smallest area under these curves over the largest, each up to where it falls to 0.143.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np
from scipy.sparse import csr_matrix

from ..kernels.batches import evenly_spaced
from ..kernels.cones import cell_sums
from ..kernels.device import array_module
from ..records.iteration import FSC_THRESHOLD
from .fsc import first_below, resolution_at

Array = Any
FOURIER_RADIUS, VIEWS_PER_SAMPLE = 50, 50  # R, or less where it would leave fewer views than that at a direction
MOST_VIEWS = 20_000
DIRECTIONS = 2000  # of sampling, on half a sphere
CONE_DEG, CONES = 20.0, 300
FEWEST_SAMPLES = 20  # of a shell in a cone; with fewer the FSC is that of the whole shell
BELTS, SECTORS = 40, 80  # of half a sphere, of equal area: a third of a cone's width
CHUNK = 500


@dataclass(frozen=True)
class Sampling:
    """directions (d, 3) of half a sphere, views (d,) at each, SCF, SCF*, and the share of directions never seen."""

    directions: np.ndarray
    views: np.ndarray
    scf: float
    scf_star: float
    unseen: float


@dataclass(frozen=True)
class ConeFsc:
    """directions (c, 3) of half a sphere, curves (c, N // 2 + 1), resolution (c,) in Å at FSC 0.143, and cFAR."""

    directions: np.ndarray
    curves: np.ndarray
    resolution_angstrom: np.ndarray
    cfar: float


def half_sphere(count: int) -> np.ndarray:
    """(count, 3) directions z > 0, nearly even (a Fibonacci spiral)."""
    z = (np.arange(count) + 0.5) / count
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(count)
    across = np.sqrt(1 - z ** 2)
    return np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)


def sampling(rotation: np.ndarray, symmetry: np.ndarray) -> Sampling:
    """Of views with these poses (n, 3, 3), with the operators (g, 3, 3) of a point group."""
    rotation = rotation[evenly_spaced(len(rotation), MOST_VIEWS // len(symmetry))]
    views = (rotation[:, None] @ symmetry[None])[:, :, 2].reshape(-1, 3)  # the beam, in the frame of the map
    width = 0.5 / np.clip(len(views) / (2 * VIEWS_PER_SAMPLE), 1, FOURIER_RADIUS)
    directions = half_sphere(DIRECTIONS)
    count = np.concatenate([np.count_nonzero(np.abs(directions[start:start + CHUNK] @ views.T) < width, axis=1)
                            for start in range(0, DIRECTIONS, CHUNK)])
    seen = count[count > 0]
    if not len(seen):
        return Sampling(directions, count, 0.0, 0.0, 1.0)
    unseen = 1 - len(seen) / len(count)
    scf = float(1 / (np.mean(1 / seen) * count.mean()))
    star = scf / (1 + unseen / (1 - unseen) * count.mean() * scf / 2)
    return Sampling(directions, count, scf, float(star), float(unseen))


def cone_fsc(ft1: Array, ft2: Array, pixel_size: float) -> ConeFsc:
    """FSC of two maps in cones, from their half-spectra (N, N, N // 2 + 1)."""
    box = len(ft1)
    cells, place = shells_and_places(box, array_module(ft1))
    cells *= BELTS * SECTORS
    cells += place
    found, numbers = cell_sums(cells, ft1, ft2, (box // 2 + 1) * BELTS * SECTORS)
    cross, power1, power2 = values = found.T.reshape(3, -1, BELTS * SECTORS)
    directions = half_sphere(CONES)
    # sparse, a sixteenth of the sphere: and the sums of a threaded BLAS depend on the number of threads
    in_cone = csr_matrix(np.abs(directions @ places().T) > np.cos(np.deg2rad(CONE_DEG)), dtype=np.float64)
    sums = [in_cone @ of_cells.T for of_cells in values]
    curves = sums[0] / np.sqrt(np.maximum(sums[1] * sums[2], 1e-30))
    samples = in_cone @ numbers.reshape(-1, BELTS * SECTORS).T
    everywhere = cross.sum(axis=1) / np.sqrt(np.maximum(power1.sum(axis=1) * power2.sum(axis=1), 1e-30))
    curves = np.where(samples < FEWEST_SAMPLES, everywhere, curves)
    area = np.array([curve[1:first_below(curve, FSC_THRESHOLD)].clip(0).sum() for curve in curves])
    resolution = np.array([resolution_at(curve, FSC_THRESHOLD, box, pixel_size) for curve in curves])
    return ConeFsc(directions, curves, resolution, float(area.min() / max(area.max(), 1e-12)))


def shells_and_places(box: int, xp: Any = np) -> Tuple[Array, Array]:
    """Shell and cell of the half sphere (N, N, N // 2 + 1) int32 of each sample of a half-spectrum."""
    k = np.rint(np.fft.fftfreq(box, 1 / box)).astype(np.float32)
    y, x = k[:, None], np.arange(box // 2 + 1, dtype=np.float32)
    # the other half of the sphere is the complex conjugate
    around = {up: xp.asarray((SECTORS * (np.arctan2(up * y, up * x) / (2 * np.pi) % 1)).astype(np.int32) % SECTORS)
              for up in (1, -1)}
    shell, place = (xp.empty((box, box, box // 2 + 1), np.int32) for _ in range(2))
    plane = xp.asarray(y ** 2), xp.asarray(x ** 2)
    for i, z in enumerate(k):
        radius = xp.sqrt(z ** 2 + plane[0] + plane[1])
        belt = xp.minimum((BELTS * abs(z) / xp.maximum(radius, 1)).astype(np.int32), BELTS - 1)
        shell[i], place[i] = xp.rint(radius).astype(np.int32), belt * SECTORS + around[-1 if z < 0 else 1]
    return shell, place


def places() -> np.ndarray:
    """(BELTS · SECTORS, 3) middles of the cells of the half sphere."""
    z = np.repeat((np.arange(BELTS) + 0.5) / BELTS, SECTORS)
    angle = 2 * np.pi * (np.tile(np.arange(SECTORS), BELTS) + 0.5) / SECTORS
    across = np.sqrt(1 - z ** 2)
    return np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)
