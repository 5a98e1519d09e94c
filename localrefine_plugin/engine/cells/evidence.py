"""What the images say of the motion of every cell at the poses found.

An image of half-set h is compared with the half-map of the OTHER half-set, which does not hold its noise. With Y the
whole particle at the pose of the image, J_c the derivative of cell c (kernels/cells.py), and W the weight of pixels,

    g_c = J_cᵀ W (x − α Y),        H_cd = J_cᵀ W J_d.

Where the cells move by x_c, g_c is Σ_d H_cd x_d and noise of covariance H. Blur does not spoil this: of a cell whose
place u has the variance v, the map shows F exp(−k² v/2), and the regression of Re(conj(−ik F e^(−k²v/2)) F e^(−iku))
on u is k² F² e^(−k²v), which is H of the blurred map. Noise in the map would spoil it. So each cell is filtered by
f = ⟨F₁* F₂⟩ / ⟨|F₂|²⟩, shell by shell: then the mean of f F₂* F₁ is that of |f F₂|².

What is called noise decides what is called motion, and a spectrum may be wrong by a few percent. So the residual r of
each image is compared with the derivatives J' of the others of its batch, too, where no motion shows. W is divided by

    c = Σ |P' r|² / Σ tr P',        P' = J' (J'ᵀJ' + ridge)⁻¹ J'ᵀ,

in which every motion of every cell counts alike: a plain sum of (J'ᵀr)² is that of the heaviest cell, and is not known
to better than 3 % from a thousand images.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, Tuple

import numpy as np
import scipy.fft
import scipy.ndimage

from ..align.images import HalfSetImages, pack
from ..align.reference import cube_about, slice_rows, support_box, transform_cube
from ..kernels.cells import MOTIONS, cell_slices
from ..model.fourier import shell_index_rfft
from ..model.pixels import PixelList, pixel_list
from ..model.pose import cross_matrix, project
from ..records.particles import Particles
from .divide import Cells

PADDING = 2.0
SHELLS_ALIKE = 1.5  # s.d., in shells of the cell's own box, over which its filter is smoothed
BATCH = 16
RIDGE, NOTHING = 1e-3, 1e-6  # of the diagonal of JᵀJ; of what no image shows
LEAST_SCALE_KNOWN = 100.0  # pseudo-information of α = 1: its s.d. is 0.1


@dataclass(frozen=True)
class CellEvidence:
    """Of n images and C cells: score g (n, C, 6) and curvature H (n, C, 6, C, 6) float32, in (w in rad, d in px about
    the BOX centre) of each cell in the body frame."""

    score: np.ndarray
    curvature: np.ndarray

    def take(self, index: np.ndarray) -> "CellEvidence":
        return CellEvidence(self.score[index], self.curvature[index])


@dataclass(frozen=True)
class CellReference:
    """The Fourier volumes (4, nz, ny, nx) of a cell, their scale, and its centre, px from the box centre."""

    volumes: np.ndarray
    scale: float
    centre: np.ndarray


@dataclass(frozen=True)
class HalfTask:
    """Images of one half-set at their poses: rotation (n, 3, 3), shift (n, 2) px; noise (groups, M + 1)."""

    particles: Particles
    read: Callable[[np.ndarray], np.ndarray]
    rotation: np.ndarray
    shift: np.ndarray
    noise: np.ndarray


def cell_references(cells: Cells, other: np.ndarray, own: np.ndarray, last: int) -> List[CellReference]:
    """References, to shell ``last``, of all cells of the other half-set's map; the own one tells signal from noise."""
    return [cell_reference(cells.mask(c), centre, other, own, last) for c, centre in enumerate(cells.centres)]


def cell_reference(mask: np.ndarray, centre: np.ndarray, other: np.ndarray, own: np.ndarray,
                   last: int) -> CellReference:
    """Of a cell of the other half-set's map (N, N, N)."""
    box, edge = len(mask), support_box(mask, centre)
    padded = scipy.fft.next_fast_len(int(np.ceil(edge * PADDING)), real=True)
    padded += padded % 2
    first, second = (np.fft.rfftn(cube_about(volume * mask, centre, edge)) for volume in (other, own))
    filtered = np.fft.irfftn(first * signal_filter(first, second)[shell_index_rfft((edge,) * 3)], s=(edge,) * 3)
    place = np.arange(edge, dtype=np.float32) - edge // 2
    arms = (1.0, place[None, None, :], place[None, :, None], place[:, None, None])
    stack = [transform_cube(np.ascontiguousarray(filtered * arm, dtype=np.float32), padded, box, last, 1)
             for arm in arms]
    together = np.stack([reference.ft for reference in stack], axis=-1)  # the four of a sample in one line of a cache
    return CellReference(np.moveaxis(together, -1, 0), stack[0].scale, centre)


def signal_filter(other: np.ndarray, own: np.ndarray) -> np.ndarray:
    """f by shell, of the transforms of a cell in both half-maps."""
    shell = shell_index_rfft((len(other),) * 3)
    shared, power = (scipy.ndimage.gaussian_filter1d(np.bincount(shell.ravel(), values.ravel()), SHELLS_ALIKE,
                                                     mode="nearest")
                     for values in ((own.conj() * other).real, other.real ** 2 + other.imag ** 2))
    result: np.ndarray = np.clip(shared / np.maximum(power, 1e-30), 0, 1)
    return result


def cell_evidence(task: HalfTask, references: List[CellReference], last: int,
                  progress: Callable[[int, int], None]) -> CellEvidence:
    """g and H of all images of a task, over the shells up to ``last``."""
    images = HalfSetImages(task.particles, task.read, task.noise, task.noise.shape[1] - 1, 1)
    pixels = pixel_list(task.particles.box_size, last, task.noise.shape[1] - 1)
    parts, null, expected = [], 0.0, 0.0
    for start in range(0, len(task.particles), BATCH):
        index = np.arange(start, min(start + BATCH, len(task.particles)))
        found, of_others = of_batch(images, pixels, index, task, references)
        parts.append(found)
        null, expected = null + of_others[0], expected + of_others[1]
        progress(start + len(index), len(task.particles))
    factor = expected / null
    return CellEvidence(factor * np.concatenate([part.score for part in parts]),
                        np.float32(factor) * np.concatenate([part.curvature for part in parts]))


def of_batch(images: HalfSetImages, pixels: PixelList, index: np.ndarray, task: HalfTask,
             references: List[CellReference]) -> Tuple[CellEvidence, Tuple[float, float]]:
    """g and H of the images of a batch, and both sums of c."""
    n, cells, box = len(index), len(references), task.particles.box_size
    rotation = task.rotation[index]
    packed = pack(images.batch(index), pixels, task.shift[index])
    root = np.sqrt(packed.weight)
    plane = np.zeros((n, len(pixels)), np.complex64)
    jacobian = np.empty((cells, n, MOTIONS, len(pixels)), np.complex64)
    for c, reference in enumerate(references):
        cell_slices(reference.volumes, slice_rows(rotation, reference.scale), reference.scale, pixels.kx, pixels.ky,
                    pixels.phases(-project(rotation, reference.centre)), root, box, plane, jacobian[c])
    seen = packed.matched / np.maximum(root, 1e-20)
    seen[root <= 0] = 0
    match = np.einsum("nk,nk->n", seen.real, plane.real) + np.einsum("nk,nk->n", seen.imag, plane.imag)
    energy = np.einsum("nk,nk->n", plane.real, plane.real) + np.einsum("nk,nk->n", plane.imag, plane.imag)
    scale = (match + LEAST_SCALE_KNOWN) / (energy + LEAST_SCALE_KNOWN)
    residual = (seen - scale[:, None].astype(np.float32) * plane).view(np.float32)
    to_box = np.zeros((cells * MOTIONS, cells * MOTIONS))
    for c, reference in enumerate(references):
        part = slice(MOTIONS * c, MOTIONS * (c + 1))
        to_box[part, part] = about_box_centre(reference.centre)
    score, curvature = np.empty((n, cells * MOTIONS)), np.empty((n,) + to_box.shape, np.float32)
    null = expected = 0.0
    for i in range(n):
        rows = np.ascontiguousarray(jacobian[:, i]).reshape(cells * MOTIONS, -1).view(np.float32)
        along = (rows @ residual.T).astype(np.float64)
        score[i] = along[:, i] @ to_box
        squares = (rows @ rows.T).astype(np.float64)
        curvature[i] = to_box.T @ squares @ to_box
        of_others = null_of(np.delete(along, i, axis=1), squares)
        null, expected = null + of_others[0], expected + of_others[1]
    found = CellEvidence(score.reshape(n, cells, MOTIONS), curvature.reshape(n, cells, MOTIONS, cells, MOTIONS))
    return found, (null, expected)


def null_of(along: np.ndarray, squares: np.ndarray) -> Tuple[float, float]:
    """Σ |P' r|² of k residuals, of J'ᵀr (m, k) and J'ᵀJ' (m, m), and what noise gives."""
    inverse = np.linalg.inv(squares + RIDGE * np.diag(np.diag(squares) + NOTHING))
    return float((along * (inverse @ along)).sum()), along.shape[1] * float((inverse * squares).sum())


def about_box_centre(centre: np.ndarray) -> np.ndarray:
    """(6, 6) from (w, d) about the box centre to (w, d') about a point: d' = d + w × centre."""
    matrix = np.eye(MOTIONS)
    matrix[3:, :3] = -cross_matrix(np.asarray(centre, dtype=np.float64))
    return matrix
