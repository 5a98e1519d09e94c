"""Parts of the images that do not fit the half-maps as the others do: optics groups, half-sets, and kinds of images
that no column tells apart."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np

from ..records.errors import InputError
from ..records.particles import Particles
from .grey_scales import GREY_SCALES_ALIKE
from .readings import (
    BELONG,
    BETTER,
    PHASES,
    Explained,
    Reading,
    evidence_of,
    likeliest,
    other_readings,
    share_of,
    surely,
)
from .samples import Match, Sample, joined_matches, match_of

FEWEST_IMAGES = 20  # of a part, to say anything of it
TELLING = 10.0  # s.d. to be expected before nothing seen means something
DEFOCUS_SUSPECT = 0.92  # an optics group with less of the others' grey scale: its defocus is tried
DEFOCUS_FACTORS = (0.65, 0.74, 0.82, 0.9, 1.11, 1.22, 1.35, 1.54)
FIRST_FACTORS = (0.82, 1.22)  # images with any other factor fit one of these better than none
# Of images of another kind: what they gain in log L, in all and each, to be known from noise. Good input gains less
# than 45 in all, or less than 1.2 each.
CERTAIN_GAIN, GAIN_EACH = 30.0, 2.0
# Their share from which it is said, and refused. The CTFs of some micrographs are wrong in many sets. Up to 0.13 of
# good images with bad poses fit a particle that is turned over.
SHARES, DEFOCUS_SHARES, TURNED_SHARES, MOST_SHARE = (0.03, 0.08), (0.03, 0.12), (0.14, 0.14), 0.8
OF_SOME = {"tilt": TURNED_SHARES, "inverse": TURNED_SHARES, "next row": SHARES, "previous row": SHARES}
LEAST_FALL = 0.4  # of the fall of α where signs differ
DEFOCUS_REMEDY = "correct rlnDefocusU and rlnDefocusV; defocus does not change when images are rescaled"


# ---------------------------------------------------------------- kinds that no column tells apart

@dataclass(frozen=True)
class Kind:
    """A reading that may be right for some of the images: how it matches all of them, the shares from which it is said
    and refused, and what CTF (n, K) it gives the images of a sample, where it is another one."""

    reading: Reading
    match: Match
    shares: Tuple[float, float]
    contrast: Optional[Callable[[Sample], np.ndarray]] = None


def check_some(found: Sequence[Explained], look_at_more: Callable[[], List[Explained]]) -> List[str]:
    """A sentence where few images fit in another reading while the others fit as they are; InputError for more. What
    some images say is asked of more."""
    if different_kind(found) is None:
        return []
    more = look_at_more()
    different = different_kind(more)
    if different is None:
        return []
    kind, share, belongs = different
    if kind.contrast is not None and not falls_where_signs_differ(more, kind.contrast, share):
        return []
    rows = np.sort(np.concatenate([f.sample.index for f in more])[belongs > 0.9])[:3]
    text = (f"do not all fit the half-maps in the same way: about {100 * share:.0f} % of the images (rows "
            f"{', '.join(str(row + 1) for row in rows)}, …) are different: {kind.reading.problem}")
    remedy = kind.reading.remedy
    if share > kind.shares[1]:
        raise InputError(text, "particles", remedy)
    return [f"particles: they {text}. {remedy[0].upper()}{remedy[1:]}"]


def different_kind(found: Sequence[Explained]) -> Optional[Tuple[Kind, float, np.ndarray]]:
    """The kind of which some images most certainly are, their share, and the probability (n,) of each to be of it."""
    own = joined_matches([f.own for f in found])
    of_kinds = [(kind, *share_of(kind.match, own)) for kind in kinds_of(found, own)]
    certain = [(gain, i) for i, (kind, share, gain, _) in enumerate(of_kinds)
               if is_of_a_kind(share, gain, kind.shares[0], len(own.cross))]
    if not certain:
        return None
    kind, share, _, belongs = of_kinds[max(certain)[1]]
    return kind, share, belongs


def kinds_of(found: Sequence[Explained], own: Match) -> List[Kind]:
    """Other contrast, other readings, and other defoci if one of FIRST_FACTORS is of a kind."""
    inverted = Reading("contrast", "they have the opposite contrast", "invert the contrast of their images")
    kinds = [Kind(inverted, replace(own, cross=-own.cross, fine=own.fine * (-1, 1)), SHARES)]
    for reading, m in other_readings(found):
        if reading.name == PHASES:
            kinds.append(Kind(reading, m, SHARES, lambda sample: np.abs(sample.contrast)))
        elif reading.name in OF_SOME:
            kinds.append(Kind(reading, m, OF_SOME[reading.name]))
    if any(is_of_a_kind(*share_of(with_defocus(found, factor), own)[:2], DEFOCUS_SHARES[0], len(own.cross))
           for factor in FIRST_FACTORS):
        kinds += [defocus_kind(found, factor) for factor in DEFOCUS_FACTORS]
    return kinds


def defocus_kind(found: Sequence[Explained], factor: float) -> Kind:
    reading = Reading("defocus", f"they fit with about {factor:g} times their defocus", DEFOCUS_REMEDY)
    return Kind(reading, with_defocus(found, factor), DEFOCUS_SHARES,
                lambda sample: sample.with_defocus(factor).contrast)


def with_defocus(found: Sequence[Explained], factor: float) -> Match:
    """With so many times the defocus of each image, at its pose."""
    return joined_matches([match_of(f.sample.with_defocus(factor), f.slices) for f in found])


def is_of_a_kind(share: float, gain: float, least: float, count: int) -> bool:
    return least < share < MOST_SHARE and gain > max(CERTAIN_GAIN, GAIN_EACH * share * count)


def falls_where_signs_differ(found: Sequence[Explained], contrast: Callable[[Sample], np.ndarray],
                             share: float) -> bool:
    """Whether α falls, at one |k|, from pixels where another CTF C′ has the sign of C to those where it has not.

    It must if a share p of the images has C′: their cross is C′/C times the energy, so that α is 1 − p + p C′/C. Where
    poses are off, single images fit any CTF by chance, but the sums over all images do not: they are then the same at
    both, within LEAST_FALL of the expected fall.
    """
    shell = found[0].sample.packed.pixels.shell
    sums = np.zeros((3, 2, int(shell[-1]) + 1))  # cross, energy, energy C′/C; same sign, other sign
    for f in found:
        own, matched, y = f.sample.contrast, f.sample.packed.matched, f.slices
        ratio = np.divide(contrast(f.sample), own, out=np.zeros_like(own), where=own != 0)
        energy = f.sample.packed.weight * (y.real ** 2 + y.imag ** 2)
        for i, values in enumerate((matched.real * y.real + matched.imag * y.imag, energy, energy * ratio)):
            for j, where in enumerate((ratio >= 0, ratio < 0)):
                sums[i, j] += np.bincount(shell, (values * where).sum(axis=0, dtype=np.float64), sums.shape[2])
    cross, energies, other = sums[:, :, (sums[1] > 0).all(axis=0)]

    def fall(values: np.ndarray) -> float:
        elsewhere = float((energies[1] * values[0] / energies[0]).sum())
        return 1 - float(values[1].sum()) / elsewhere if elsewhere > 0 else 0.0
    return fall(cross) > LEAST_FALL * fall((1 - share) * energies + share * other) > 0


# ---------------------------------------------------------------- half-sets

def check_half_sets(found: Sequence[Explained]) -> None:
    """InputError where the images of one half-set belong to their half-map and those of the other do not, or do in
    another reading of the input."""
    for half, this, other in ((1, found[0], found[1]), (2, found[1], found[0])):
        if evidence_of([other]) > surely([other]) and len(this.own.cross) >= FEWEST_IMAGES:
            check_part([this], other.own.scale, f"half-set {half}")


# ---------------------------------------------------------------- optics groups

def check_groups(found: Sequence[Explained], particles: Particles) -> Tuple[List[str], Tuple[float, ...]]:
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
        check_part(mine, rest.scale, name)
        if ratio < DEFOCUS_SUSPECT - 4 * deviation:
            check_defocus(mine, name)
        if not 1 / GREY_SCALES_ALIKE < ratio < GREY_SCALES_ALIKE and abs(ratio - 1) > BETTER * deviation:
            scales[g] = ratio
            said.append(f"{name}: its images have {ratio:.3g} times the grey scale of the largest group. This was "
                        "corrected. Check that all groups are normalised in the same way")
    return said, tuple(float(s) for s in scales)


def check_part(found: Sequence[Explained], scale: float, name: str) -> None:
    """InputError for a part that fits in another reading, or not at all. ``scale``: α of the other images."""
    better = likeliest(other_readings(found), joined_matches([f.own for f in found]))
    if better is not None:
        raise InputError(f"does not fit the half-maps as the others do: {better.problem}", name, better.remedy)
    z, expected = evidence_of(found), 0.5 * scale * float(np.sqrt(max(sum(f.difference.sum() for f in found), 0.0)))
    if z < BELONG and expected > TELLING:
        raise InputError(f"does not fit the half-maps at its poses ({z:.1f} standard deviations, {expected:.0f} "
                         "expected)", name, "check its poses and its images, or leave it out")


def check_defocus(found: Sequence[Explained], name: str) -> None:
    """InputError for a group whose images fit another defocus better, by a factor."""
    tried = [(Reading(f"{factor:g}", "", ""), with_defocus(found, factor)) for factor in DEFOCUS_FACTORS]
    best = likeliest(tried, joined_matches([f.own for f in found]))
    if best is not None:
        raise InputError(f"fits the half-maps better with {best.name} times its defocus", name, DEFOCUS_REMEDY)
