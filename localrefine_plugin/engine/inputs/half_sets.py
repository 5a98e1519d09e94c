"""Half-sets: which particles must be in one, new ones for particles whose old ones shall not count, and signs that
they were replaced before.

Particles are relatives if they share noise: copies of one image, images cut from one image or about one place of a
micrograph, segments of one filament. Relatives in both half-sets make half-maps agree by their noise.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..io.relion_particles import ParticleTable
from ..io.star import StarTable
from ..model.symmetry import operators
from ..records.errors import InputError
from ..records.particles import Particles

TUBE = "rlnHelicalTubeID"
ORIGINAL = "rlnImageOriginalName"
MICROGRAPH, COORDINATES = "rlnMicrographName", ("rlnCoordinateX", "rlnCoordinateY")
MICROGRAPH_PIXEL_SIZES = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")
ONE_PLACE_ANGSTROM = 20.0  # particles do not overlap by more; picks of one particle differ by less
MOST_RELATIVES = 0.01  # share of the particles that may have a relative in the other half-set
MATES_DEG = 15.0  # of a symmetry operator; a part that was refined before has left it by less
LEAST_FOR_PARITY = 24  # particles; a random split has the parity of so many with a chance of 1e-7
PARITY_TEXT = ("half-set = 1 + parity of the particle's id, which is what cryosparc2 5.0.1 writes over the split of a "
               "set it is given; only half-maps that were made with this split are independent "
               "(docs/how-to/chain-programs.md)")


def resplit(particles: Particles, seed: int, tubes: Optional[np.ndarray] = None) -> Particles:
    """The particles in two new random half-sets; all copies of one image, and all relatives, stay together.

    Of images there are equally many in both; of families, each in turn, the largest first, goes to the smaller one.

    Parameters
    ----------
    tubes : (n,) number of each row's family; None where only copies of one image are relatives.
    """
    if tubes is None:
        images = np.stack([particles.stack.astype(np.int64), particles.slice])
        distinct, together = np.unique(images, axis=1, return_inverse=True)
        count = distinct.shape[1]
    else:
        together = tubes
        count = int(tubes.max()) + 1
    if count < 2:
        what = ("rows are copies of one image", "images") if tubes is None else (
            "segments are of one filament, or all images of one place", "filaments or places")
        raise InputError(f"all {what[0]}", "particles", f"give at least two {what[1]}")
    half = np.random.default_rng(seed).permutation(count) % 2 + 1 if tubes is None else _balanced(tubes, count, seed)
    return replace(particles, half_set=half[together.reshape(-1)].astype(np.int8))


def resplit_with_copies(particles: Particles, seed: int, tubes: Optional[np.ndarray], relatives: Sequence[Relatives],
                        copies: Copies) -> Particles:
    """Particles that were split anew, once more where copies were found since; those left out stay so."""
    found = [r for r in (moved_copies(copies), Relatives(copies.pixels, "")) if len(r.pairs)]
    if not found:
        return particles
    half_set = resplit(particles, seed, families(particles, tubes, [*relatives, *found])).half_set
    return replace(particles, half_set=np.where(particles.half_set > 0, half_set, 0).astype(np.int8))


def _balanced(tubes: np.ndarray, count: int, seed: int) -> np.ndarray:
    size = np.bincount(tubes, minlength=count)
    order = np.random.default_rng(seed).permutation(count)
    half, filled = np.empty(count, np.int64), [0, 0]
    for tube in order[np.argsort(-size[order], kind="stable")]:
        smaller = int(filled[1] < filled[0])
        half[tube] = smaller + 1
        filled[smaller] += int(size[tube])
    return half


def tubes_of(table: StarTable) -> Optional[np.ndarray]:
    """(n,) number of each row's filament, by rlnHelicalTubeID in its micrograph; None where no row has one."""
    if TUBE not in table.labels:
        return None
    columns = table.texts(["rlnMicrographName", TUBE])
    numbers = np.array([_number(text) for text in columns[TUBE]])
    if not (numbers > 0).any():  # other programs fill the column with 0
        return None
    micrographs = columns.get("rlnMicrographName", [""] * len(numbers))
    known: Dict[Tuple[str, float], int] = {}
    keys = [(micrograph, number) if number > 0 else (f"row {row}", 0.0)  # without a filament a row is on its own
            for row, (micrograph, number) in enumerate(zip(micrographs, numbers))]
    return np.array([known.setdefault(key, len(known)) for key in keys])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def filament_warning(tubes: Optional[np.ndarray], half_set: np.ndarray, star: str) -> List[str]:
    """What is said of filaments with segments in both half-sets."""
    if tubes is None:
        return []
    count = int(tubes.max()) + 1
    in_both = np.ones(count, bool)
    for half in (1, 2):
        in_both &= np.bincount(tubes[half_set == half], minlength=count) > 0
    if not in_both.any():
        return []
    return [f"{star}: {int(in_both.sum())} of {count} filaments ({TUBE}) have segments in both half-sets. Segments "
            "that overlap show the same pixels, so the half-maps share noise and the FSC is too good. Give the "
            "half-sets of a helical refinement, which keeps a filament together, or set resplit_half_sets"]


def parity_split(ids: np.ndarray, half_set: np.ndarray) -> bool:
    """Whether every half-set (n,) is 1 + id mod 2, for ids (n,) of both parities."""
    odd = np.asarray(ids) % 2
    mixed = len(odd) >= LEAST_FOR_PARITY and 0 < odd.sum() < len(odd)
    return bool(mixed) and np.array_equal(np.asarray(half_set), 1 + odd)


# ---------------------------------------------------------------- copies of one image

def check_duplicates(particles: Particles, star: str, symmetry: str = "C1") -> List[str]:
    """One image twice: refused in two halves or with one pose, else taken for symmetry expansion."""
    order = np.lexsort((particles.slice, particles.stack))
    same = (np.diff(particles.stack[order]) == 0) & (np.diff(particles.slice[order]) == 0)
    if not same.any():
        return []
    first, second = order[:-1][same], order[1:][same]
    crossing = np.flatnonzero(particles.half_set[first] != particles.half_set[second])
    if len(crossing):
        rows = _rows(first[crossing[0]], second[crossing[0]])
        raise InputError(f"rows {rows} are the same image in both half-sets", star,
                         "give all copies of a particle the same rlnRandomSubset")
    copies = np.unique(np.concatenate([first, second]))
    # poses to 1e-4 rad and 1e-3 px, far below what any refinement resolves
    keys = np.column_stack([particles.stack[copies], particles.slice[copies],
                            np.rint(particles.rotation[copies].reshape(-1, 9) * 1e4).astype(np.int64),
                            np.rint(particles.shift_px[copies] * 1e3).astype(np.int64)])
    _, index, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    twice = np.flatnonzero(counts > 1)
    if len(twice):
        pair = copies[np.flatnonzero(index.reshape(-1) == twice[0])[:2]]
        raise InputError(f"rows {_rows(*pair)} are the same image with the same pose ({int((counts - 1).sum())} "
                         "duplicates in all)", star, "remove the duplicate rows")
    between = np.swapaxes(particles.rotation[first], 1, 2) @ particles.rotation[second]
    return ([f"{star}: {len(first)} rows repeat an image with another pose, which is taken for symmetry expansion"]
            + _expanded_twice(between, symmetry, star))


def _expanded_twice(between: np.ndarray, symmetry: str, star: str) -> List[str]:
    """Warning where the rotations (n, 3, 3) from one copy of an image to the next are those of ``symmetry``."""
    group = operators(symmetry)
    if len(group) == 1 or np.mean(_are_mates(between, group)) <= 0.5:
        return []
    return [f"{star}: the particles are symmetry-expanded by {symmetry}, and the symmetry is set to {symmetry} too. "
            "Each image is then inserted several times at the same place of the map, and the noise seems averaged over "
            "more images than there are. Set the symmetry to C1, or give the particles from before the expansion"]


def _are_mates(between: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) whether rotations (n, 3, 3) are those of a point group but for the motion of a part."""
    # trace(Sᵀ R) = 1 + 2 cos of the angle between R and S
    cosine = (np.einsum("gij,nij->ng", group[1:], between) - 1) / 2
    near: np.ndarray = cosine.max(axis=1) > np.cos(np.deg2rad(MATES_DEG))
    return near


def _rows(a: int, b: int) -> str:
    return f"{min(a, b) + 1} and {max(a, b) + 1}"


@dataclass(frozen=True)
class Copies:
    """Pairs of rows (m, 2): ``pixels`` of different images with the same pixels, ``moved`` of images with the same
    noise elsewhere in the box."""

    pixels: np.ndarray
    moved: np.ndarray


# ---------------------------------------------------------------- relatives

@dataclass(frozen=True)
class Relatives:
    """Pairs of rows (m, 2) that show one thing in different images, and how they are known."""

    pairs: np.ndarray
    known_by: str


def relatives_of(particles: Particles, table: ParticleTable) -> List[Relatives]:
    """Of images cut from one image, and of images about one place of a micrograph; none where columns do not tell."""
    found = [Relatives(_pairs_of_one_name(table.particles, ORIGINAL), f"come from one image ({ORIGINAL})")]
    places = _places(particles, table)
    if places is not None:
        found.append(Relatives(_pairs_of_one_place(*places),
                               f"lie within {ONE_PLACE_ANGSTROM:g} Å of each other on one micrograph"))
    image = np.stack([particles.stack, particles.slice])
    different = [replace(r, pairs=r.pairs[(image[:, r.pairs[:, 0]] != image[:, r.pairs[:, 1]]).any(axis=0)])
                 for r in found]
    return [r for r in different if len(r.pairs)]


def check_relatives(found: Sequence[Relatives], half_set: np.ndarray, star: str) -> List[str]:
    """Sentences on relatives; InputError where more than MOST_RELATIVES of the particles have one in the other half."""
    said = []
    for kind in found:
        pairs = kind.pairs[(half_set[kind.pairs] > 0).all(axis=1)]
        apart = pairs[half_set[pairs[:, 0]] != half_set[pairs[:, 1]]]
        crossing = len(apart) > 0
        shown, count = apart if crossing else pairs, len(np.unique(apart if crossing else pairs))
        if not count:
            continue
        named = ", ".join(f"rows {a + 1} and {b + 1}" for a, b in shown[:3])
        where = "are in different half-sets" if crossing else "are in one half-set"
        more = ", …" if len(shown) > 3 else ""
        text = f"{count} of {len(half_set)} particles {kind.known_by} and {where} ({named}{more})"
        if crossing and count > MOST_RELATIVES * len(half_set):
            raise InputError(text, star, "remove the copies, or set resplit_half_sets, which keeps them together")
        if crossing or count > MOST_RELATIVES * len(half_set):
            why = "Half-maps that share noise agree too well" if crossing else "They count twice"
            said.append(f"{star}: {text}. {why}. Remove the copies")
    return said


def check_copies(copies: Copies, particles: Particles, relatives: Sequence[Relatives], star: str) -> List[str]:
    """Sentences on copies; InputError for images with the same pixels in both halves, or for too many others there.
    Pairs that are relatives by columns, too, were judged before."""
    moved, n = moved_copies(copies), len(particles)
    known = [np.sort(r.pairs, axis=1) @ (n, 1) for r in relatives]
    new = ~np.isin(np.sort(moved.pairs, axis=1) @ (n, 1), np.concatenate([np.zeros(0, np.int64), *known]))
    return (_check_same_pixels(copies.pixels, particles, star)
            + check_relatives([replace(moved, pairs=moved.pairs[new])], particles.half_set, star))


def moved_copies(copies: Copies) -> Relatives:
    return Relatives(copies.moved, "show the same noise as another image (one particle, extracted twice)")


def _check_same_pixels(pairs: np.ndarray, particles: Particles, star: str) -> List[str]:
    used = pairs[(particles.half_set[pairs] > 0).all(axis=1)]
    if not len(used):
        return []
    apart = used[particles.half_set[used[:, 0]] != particles.half_set[used[:, 1]]]
    first, second = (f"{particles.slice[row] + 1:06d}@{particles.stacks[particles.stack[row]]}"
                     for row in (apart if len(apart) else used)[0])
    text = f"images {first} and {second} hold the same pixels, and so do {len(used)} pairs in all"
    if len(apart):
        raise InputError(f"{text}; {len(apart)} pairs are in different half-sets", star,
                         "remove the copies, or set resplit_half_sets, which keeps them together")
    return [f"{star}: {text}. They count twice. Remove the copies"]


def families(particles: Particles, tubes: Optional[np.ndarray], relatives: Sequence[Relatives]) -> Optional[np.ndarray]:
    """(n,) number of each row's family, of `tubes_of`, relatives and copies of one image; None if copies are all."""
    if not relatives:
        return tubes
    pairs = [r.pairs for r in relatives]
    image = particles.stack.astype(np.int64) * (int(particles.slice.max()) + 1) + particles.slice
    for label in [image] if tubes is None else [image, tubes]:
        order = np.argsort(label, kind="stable")
        same = np.diff(label[order]) == 0
        pairs.append(np.stack([order[:-1][same], order[1:][same]], axis=1))
    a, b = np.concatenate(pairs).T
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(len(particles), len(particles)))
    numbers: np.ndarray = connected_components(graph, directed=False)[1]
    return numbers


def _pairs_of_one_name(table: StarTable, label: str) -> np.ndarray:
    """Rows (m, 2) of neighbours in the order of their names, which are the same."""
    if label not in table.labels:
        return np.zeros((0, 2), np.int64)
    number = table.numbered(label)
    order = np.argsort(number, kind="stable")
    same = np.diff(number[order]) == 0
    return np.stack([order[:-1][same], order[1:][same]], axis=1)


def _places(particles: Particles, table: ParticleTable) -> Optional[Tuple[np.ndarray, np.ndarray]]:
    """Number of the micrograph (n,) and x, y in Å (n, 2) of each particle's centre on it; None without coordinates."""
    if not {MICROGRAPH, *COORDINATES} <= set(table.particles.labels):
        return None
    at = np.concatenate([np.array([[_number(text) for text in part[label]] for label in COORDINATES]).T
                         for part in table.particles.texts_in_chunks(COORDINATES)])
    if (at == at[0]).all():  # other programs fill the columns with 0
        return None
    micrograph = table.particles.numbered(MICROGRAPH)
    optics = table.optics.texts(MICROGRAPH_PIXEL_SIZES) if table.optics is not None else {}
    sizes = [_number(text) for label in MICROGRAPH_PIXEL_SIZES for text in optics.get(label, [])]
    pixel = sizes[0] if sizes and sizes[0] > 0 else particles.pixel_size
    return micrograph, at * pixel + particles.shift_px * particles.pixel_size


def _pairs_of_one_place(micrograph: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows (m, 2) that are closer than ONE_PLACE_ANGSTROM: micrographs are put side by side, far from each other."""
    apart = np.empty((len(at), 3))
    apart[:, :2] = at - at.min(axis=0)
    apart[:, 2] = micrograph * (2 * ONE_PLACE_ANGSTROM)
    pairs: np.ndarray = cKDTree(apart).query_pairs(ONE_PLACE_ANGSTROM, output_type="ndarray")
    return pairs
