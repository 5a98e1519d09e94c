"""Parts of the images that do not fit the half-maps as the others do: optics groups, half-sets, and kinds of images
that no column tells apart."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..records.errors import InputError
from ..records.particles import Particles
from .grey_scales import GREY_SCALES_ALIKE
from .readings import (
    BELONG,
    BETTER,
    PHASES,
    READINGS,
    RIVALS,
    Explained,
    Reading,
    evidence_of,
    likeliest,
    likelihood,
    other_readings,
    share_of,
    surely,
)
from .samples import Match, joined_matches, match_of

FEWEST_IMAGES = 20  # of a part, to say anything of it
HALVES_ALIKE, HALF_IMAGES = 0.5, 50  # of the evidence by one image: .84 in good half-sets of one size, .65 at 95 to 5
TELLING = 10.0  # s.d. to be expected before nothing seen means something
DEFOCUS_SUSPECT = 0.92  # an optics group with less of the others' grey scale: its defocus is tried
DEFOCUS_FACTORS = (0.65, 0.74, 0.82, 0.9, 1.11, 1.22, 1.35, 1.54)
FIRST_FACTORS = (0.82, 1.22)  # images with any other factor fit one of these better than none
# Of images of another kind: what they gain in log L, in all and each, to be known from noise. Good input gains less
# than 45 in all, or less than 1.2 each.
CERTAIN_GAIN, GAIN_EACH = 30.0, 2.0
# α of the finer pixels over that of the coarser ones, of the images that fit as they are, is .97 to 1.04. Up to .78:
# poses are off by more than the detail, single images fit anything, and up to 17 % of good ones fit in another reading.
LEAST_FINE = 0.9


class Shares(NamedTuple):
    """Of images of another kind, from which it is said, refused, and believed where the others do not fit in detail."""

    said: float
    refused: float
    afar: float


CONTRAST_SHARES, ROW_SHARES = Shares(0.03, 0.08, 0.03), Shares(0.03, 0.08, 1.0)
TURNED_SHARES = Shares(0.08, 0.14, 0.17)  # a particle that is turned over looks much the same
ORIGIN_SHARES = Shares(0.08, 0.14, 1.0)  # origins that are mostly error are better as anything else: 4 % of good images
PHASE_SHARES = Shares(0.08, 0.08, 1.0)
DEFOCUS_SHARES = Shares(0.03, 0.12, 1.0)  # the CTFs of some micrographs are wrong in many sets
OF_SOME = {"tilt": TURNED_SHARES, "inverse": TURNED_SHARES, "next row": ROW_SHARES, "previous row": ROW_SHARES,
           PHASES: PHASE_SHARES, "origins, px": ORIGIN_SHARES, "origins, sign": ORIGIN_SHARES}
MOST_SHARE = 0.8
DEFOCUS_REMEDY = "correct rlnDefocusU and rlnDefocusV; defocus does not change when images are rescaled"


# ---------------------------------------------------------------- kinds that no column tells apart

@dataclass(frozen=True)
class Kind:
    """A reading that may be right for some of the images, and how it matches all of them."""

    reading: Reading
    match: Match
    shares: Shares


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
    rows = np.sort(np.concatenate([f.sample.index for f in more])[belongs > 0.9])[:3]
    text = (f"do not all fit the half-maps in the same way: about {100 * share:.0f} % of the images (rows "
            f"{', '.join(str(row + 1) for row in rows)}, …) are different: {kind.reading.problem}")
    remedy = kind.reading.remedy
    if share > kind.shares.refused:
        raise InputError(text, "particles", remedy)
    return [f"particles: they {text}. {remedy[0].upper()}{remedy[1:]}"]


def different_kind(found: Sequence[Explained]) -> Optional[Tuple[Kind, float, np.ndarray]]:
    """The kind of which some images most certainly are, their share, and the probability (n,) of each to be of it.

    None where the other images do not fit in detail either (LEAST_FINE), unless the share is large.
    """
    own = joined_matches([f.own for f in found])
    of_kinds = [(kind, *share_of(kind.match, or_rival(found, own, kind))) for kind in kinds_of(found, own)]
    certain = [(gain, i) for i, (kind, share, gain, _) in enumerate(of_kinds)
               if is_of_a_kind(share, gain, kind.shares.said, len(own.cross))]
    if not certain:
        return None
    kind, share, _, belongs = of_kinds[max(certain)[1]]
    coarse, fine, error = own.some(np.flatnonzero(belongs < 0.5)).fine_scales
    believed = share > kind.shares.afar or fine > LEAST_FINE * coarse - error
    return (kind, share, belongs) if believed else None


def or_rival(found: Sequence[Explained], own: Match, kind: Kind) -> Match:
    """What a kind must be better than: the images as they are, or with other origins, which may be mostly error."""
    if kind.reading.name not in RIVALS:
        return own
    rival = joined_matches([f.readings[RIVALS[kind.reading.name]] for f in found])
    scale = max(own.scale, 0.0)
    better = rival.likelihood(scale) > own.likelihood(scale)
    return Match(np.where(better, rival.cross, own.cross), np.where(better, rival.energy, own.energy),
                 np.where(better[:, None], rival.fine, own.fine))


def kinds_of(found: Sequence[Explained], own: Match) -> List[Kind]:
    """Other contrast, other readings, and other defoci if one of FIRST_FACTORS is of a kind."""
    inverted = Reading("contrast", "they have the opposite contrast", "invert the contrast of their images")
    kinds = [Kind(inverted, replace(own, cross=-own.cross, fine=own.fine * (-1, 1)), CONTRAST_SHARES)]
    kinds += [Kind(READINGS[name], joined_matches([f.readings[name] for f in found]), shares)
              for name, shares in OF_SOME.items()]
    if any(is_of_a_kind(*share_of(with_defocus(found, factor), own)[:2], DEFOCUS_SHARES.said, len(own.cross))
           for factor in FIRST_FACTORS):
        kinds += [defocus_kind(found, factor) for factor in DEFOCUS_FACTORS]
    return kinds


def defocus_kind(found: Sequence[Explained], factor: float) -> Kind:
    reading = Reading("defocus", f"they fit with about {factor:g} times their defocus", DEFOCUS_REMEDY)
    return Kind(reading, with_defocus(found, factor), DEFOCUS_SHARES)


def with_defocus(found: Sequence[Explained], factor: float) -> Match:
    """With so many times the defocus of each image, at its pose."""
    return joined_matches([match_of(f.sample.with_defocus(factor), f.slices) for f in found])


def is_of_a_kind(share: float, gain: float, least: float, count: int) -> bool:
    return least < share < MOST_SHARE and gain > max(CERTAIN_GAIN, GAIN_EACH * share * count)


# ---------------------------------------------------------------- half-sets

def check_half_sets(found: Sequence[Explained]) -> List[str]:
    """A sentence where the images of one half-set fit much less well than those of the other; InputError where they do
    not fit at all, or in another reading of the input. What both have in common is judged with the whole set."""
    said: List[str] = []
    if not any(evidence_of([f]) > surely([f]) for f in found):
        return said
    for better in (likeliest(other_readings([f]), f.own) for f in found):
        if better is not None and all(likelihood(f.readings[better.name]) > likelihood(f.own) for f in found):
            if better.name == PHASES:
                raise InputError(f"do not fit the half-maps: {better.problem}", "particles", better.remedy)
            return said
    for half, this, other in ((1, found[0], found[1]), (2, found[1], found[0])):
        if evidence_of([other]) > surely([other]) and len(this.own.cross) >= FEWEST_IMAGES:
            name = f"half-set {half}"
            check_part([this], other.own.scale, name)
            each, of_other = (evidence_of([f]) / np.sqrt(len(f.own.cross)) for f in (this, other))
            if each < HALVES_ALIKE * of_other and min(len(f.own.cross) for f in found) >= HALF_IMAGES:
                said.append(f"{name}: its images fit half-map {half} much less well than those of half-set {3 - half} "
                            f"fit half-map {3 - half} ({each:.1f} and {of_other:.1f} standard deviations each). Check "
                            "that poses, images and half-map of both half-sets come from one refinement")
    return said


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
