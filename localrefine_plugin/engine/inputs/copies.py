"""Images that hold the same pixels, or the same noise elsewhere in the box: copies, whatever their rows say.

A particle that was extracted twice, some pixels apart, has the same noise in both images. The magnitudes |F(k)| of a
Fourier transform do not change when an image is moved, and from one noise image to another they are independent. So
an image is known by its *mark*: for some hundred pairs of frequencies of about one |k|, whether |F(a)| > |F(b)|. None
depends on the grey scale, the background or the spectrum of the noise. Marks of B bits agree in B / 2 ± √B / 2 bits by
chance; those of an image and its copy in nearly all, less what came in at the edges. Pairs that agree in a group of
bits are looked up (locality-sensitive hashing, doi:10.1145/276698.276876), so the cost grows with the number of images
and not with its square. The cross-correlation of the two images then decides.
"""
from __future__ import annotations

from typing import Tuple

import numpy as np

from ..io.mrc import ImageReader
from ..kernels.batches import evenly_spaced
from ..kernels.bits import BITS_SET, OF_ROW, ROW_BITS, alike_neighbours
from ..kernels.fft import irfftn, rfft2
from ..records.particles import Particles

PIXELS_LOOKED_AT = 1024  # to know an image again
WINDOWS = (64, 128)  # px in the middle of the box that are looked at: where the box is less, and from three times more
BAND = 0.2, 0.9  # of Nyquist: finer than what two views of a particle share, coarser than what resampling spoils
BLOCK = 32  # frequencies next to each other in |k|, of which pairs are drawn
MOST_BITS, MANY_IMAGES = 592, 100_000  # of a mark, of so many images or more: all pairs of a window of 64 px
LEAST_GROUP = 10  # bits that pairs must share to be compared; more for more images: about 100 comparisons each
FARTHEST = 64  # neighbours in the order of such bits that are compared
KEYS_AT_ONCE = 50_000
CERTAIN = 8.0  # s.d. by which marks agree, and by which the cross-correlation has a peak: of 10¹⁰ pairs, none by chance
MOST_COMPARED, MOST_AGREE = 100, 0.9  # pairs whose images are compared; share of them that speaks for all


def pixel_keys(images: np.ndarray) -> np.ndarray:
    """(m,) uint64 of images (m, N, N) float32: the same for the same pixels, of which every n-th is looked at, and by
    chance (2⁻⁶⁴) for others. Σ bits · odd random numbers, modulo 2⁶⁴."""
    step = max(1, images[0].size // PIXELS_LOOKED_AT)
    bits = np.ascontiguousarray(images.reshape(len(images), -1)[:, ::step]).view(np.uint32).astype(np.uint64)
    odd = np.random.default_rng(0).integers(0, 2 ** 63, bits.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    keys: np.ndarray = (bits * odd).sum(axis=1, dtype=np.uint64)
    return keys


def pairs_of_keys(keys: np.ndarray) -> np.ndarray:
    """(m, 2) of neighbours among equal keys (n,)."""
    ordered = np.sort(keys)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    rows = np.concatenate([start + np.flatnonzero(np.isin(keys[start:start + KEYS_AT_ONCE], twice))
                           for start in range(0, len(keys), KEYS_AT_ONCE)])
    rows = rows[np.argsort(keys[rows], kind="stable")]
    same = keys[rows[1:]] == keys[rows[:-1]]
    return np.stack([rows[:-1][same], rows[1:][same]], axis=1)


class Marker:
    """Marks of ``count`` images of one box size; ``rounds``: in how many orders their bits are to be looked up."""

    def __init__(self, box_size: int, count: int = 0):
        self.window = min(box_size, WINDOWS[int(box_size >= 3 * WINDOWS[0])])
        self.start = box_size // 2 - self.window // 2
        radius, inside = _half_plane(self.window)
        order = inside[np.argsort(radius[inside], kind="stable")]
        rng = np.random.default_rng(0)
        blocks = np.stack([rng.permutation(block) for block in order[:len(order) // BLOCK * BLOCK].reshape(-1, BLOCK)]
                          ) if len(order) >= BLOCK else np.zeros((0, BLOCK), int)
        shuffled = rng.permutation(blocks.size // 2 // 16 * 16)  # so that a group of bits is of all |k|
        bits = len(shuffled) if count < MANY_IMAGES else min(len(shuffled), MOST_BITS)
        self.rounds = len(shuffled) // max(bits, 1)
        shuffled = shuffled[:bits]
        self.one, self.other = blocks[:, :BLOCK // 2].ravel()[shuffled], blocks[:, BLOCK // 2:].ravel()[shuffled]

    @property
    def words(self) -> int:
        return len(self.one) // 16

    def __call__(self, images: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """(m, B / 16) uint16 of images (m, N, N), and the root mean square (m,) of |F(k)| at its frequencies."""
        middle = slice(self.start, self.start + self.window)
        ft = rfft2(np.ascontiguousarray(images[:, middle, middle]), 1).reshape(len(images), -1)
        power = ft.real ** 2 + ft.imag ** 2
        one, other = power.take(self.one, axis=1), power.take(self.other, axis=1)
        marks: np.ndarray = np.packbits(one > other, axis=1).view(np.uint16)
        return marks, np.sqrt((one.sum(axis=1) + other.sum(axis=1)) / max(2 * len(self.one), 1))


def _half_plane(window: int) -> Tuple[np.ndarray, np.ndarray]:
    """|k| of an rfft2 in units of Nyquist, flat, and the index of those in BAND and on neither axis."""
    ky, kx = np.meshgrid(np.fft.fftfreq(window) * 2, np.fft.rfftfreq(window) * 2, indexing="ij")
    radius = np.hypot(ky, kx).ravel()
    inside = (radius > BAND[0]) & (radius < BAND[1]) & (kx.ravel() > 0) & (ky.ravel() != 0)
    return radius, np.flatnonzero(inside)


def pairs_of_marks(marks: np.ndarray, rounds: int = 1) -> np.ndarray:
    """(m, 2) of marks (n, B / 16) that agree by CERTAIN standard deviations, each pair once; all bits are looked up in
    groups ``rounds`` times, in other groups each time."""
    n, bits = len(marks), 16 * marks.shape[1]
    if n < 2 or bits < CERTAIN ** 2:
        return np.zeros((0, 2), np.int64)
    group, rng = max(LEAST_GROUP, int(np.ceil(np.log2(n))) - 3), np.random.default_rng(0)
    most, found = (bits - CERTAIN * np.sqrt(bits)) / 2, [np.zeros(0, np.uint64)]
    for number in range(rounds):
        order = rng.permutation(bits) if number else np.arange(bits)
        for first in range(0, bits - group + 1, group):
            ordered = _in_order_of(marks, order[first:first + group])
            found.append(alike_neighbours(marks, ordered, FARTHEST, most, BITS_SET))
    pairs = np.unique(np.concatenate(found))
    return np.stack([pairs >> ROW_BITS, pairs & OF_ROW], axis=1).astype(np.int64)


def _in_order_of(marks: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) uint64, sorted: the bits ``group`` of each mark, and in the last ROW_BITS bits its row. A number of 8 bytes
    that is sorted in its place is all that this takes of a million marks."""
    packed, shift = marks.view(np.uint8), (7 - group % 8).astype(np.uint8)
    place = (2.0 ** np.arange(len(group))).astype(np.float32)
    ordered = np.arange(len(marks), dtype=np.uint64)
    for start in range(0, len(marks), KEYS_AT_ONCE):
        key = (packed[start:start + KEYS_AT_ONCE, group // 8] >> shift & np.uint8(1)) @ place
        ordered[start:start + KEYS_AT_ONCE] |= key.astype(np.uint64) << ROW_BITS
    ordered.sort()
    return ordered


def confirmed(pairs: np.ndarray, particles: Particles) -> np.ndarray:
    """Those of the pairs of rows (m, 2) whose images have a cross-correlation with a peak. Of more than MOST_COMPARED
    pairs as many are compared; the others are taken if nearly all of these have one, too."""
    some = evenly_spaced(len(pairs), min(len(pairs), MOST_COMPARED))
    with ImageReader(particles) as reader:
        certain = np.array([has_peak(reader.read_unchecked(pair)) for pair in pairs[some]], bool)
    everything = len(some) < len(pairs) and certain.mean() > MOST_AGREE
    return pairs if everything else pairs[some][certain]


def has_peak(images: np.ndarray) -> bool:
    """Whether two images (2, N, N) are alike but for a displacement, by their phase correlation in BAND."""
    box = images.shape[1]
    ft = rfft2(images, 1).reshape(2, -1)
    product = ft[0] * ft[1].conj()
    _, inside = _half_plane(box)
    phases = np.zeros_like(product)
    phases[inside] = product[inside] / np.maximum(np.abs(product[inside]), np.float32(1e-30))
    correlation = np.abs(irfftn(phases.reshape(1, box, -1), (1, box, box)))
    return bool(correlation.max() > CERTAIN * np.sqrt(np.mean(correlation ** 2)))
