"""Optics groups of a Scipion set: the STAR text that import protocols keep with the set, or its acquisitions."""
from __future__ import annotations

import io
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .engine.io.star import StarTable
from .engine.records.errors import InputError

OPTICS_ATTRIBUTE = "_rlnOpticsGroup"
SAME_PIXEL_SIZE = 1e-3  # relative, as in the engine
Acquisition = Tuple[float, float, float]  # kV, mm, fraction
_ACQUISITION_LABELS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
# Columns in which the groups of one microscope may differ without their images being different.
_GEOMETRY_AND_NAMES = ("rlnOpticsGroup", "rlnOpticsGroupName", "rlnImageSize", "rlnImageDimensionality",
                       "rlnMicrographOriginalPixelSize", "rlnMicrographPixelSize", "rlnMtfFileName")


def acquisition_of(item: Any) -> Optional[Acquisition]:
    """Voltage, spherical aberration and amplitude contrast of an item of its own; None without."""
    acquisition = item.getAcquisition()
    if acquisition is None or acquisition.getVoltage() is None:
        return None
    return _values(acquisition)


def _values(acquisition: Any) -> Acquisition:
    return (float(acquisition.getVoltage() or 0), float(acquisition.getSphericalAberration() or 0),
            float(acquisition.getAmplitudeContrast() or 0))


def optics_groups(particles: Any, ids: Sequence[int], acquisitions: Sequence[Optional[Acquisition]],
                  groups: Sequence[Any]) -> Tuple[List[int], StarTable]:
    """Group number of each row and the table data_optics.

    The set's own optics table is used where there is one, with the image size and pixel size of the
    particles as they are now. Otherwise there is one group per distinct acquisition of the items.

    Raises
    ------
    InputError
        The set has several different optics groups and an item does not say which is its own, or names
        one that is not there, or has an acquisition that contradicts its group.
    """
    geometry = {"rlnImagePixelSize": float(particles.getSamplingRate()), "rlnImageSize": int(particles.getXDim()),
                "rlnImageDimensionality": 2}
    default = _values(particles.getAcquisition())
    text = getattr(particles.getAcquisition(), "opticsGroupInfo", None)
    if text is not None and text.get():
        columns = _columns_of_text(text.get(), geometry, default)
        numbers = _numbers(ids, groups, columns)
        own = [None if acquisition == default else acquisition for acquisition in acquisitions]
        _check_acquisitions(ids, own, numbers, columns)
        return numbers, StarTable.from_columns("optics", columns)
    keys = [default if key is None else key for key in acquisitions]
    distinct = sorted(set(keys))
    rows = [dict(rlnOpticsGroupName=f"opticsGroup{number}", rlnOpticsGroup=number,
                 **dict(zip(_ACQUISITION_LABELS, key)), **geometry) for number, key in enumerate(distinct, start=1)]
    return ([distinct.index(key) + 1 for key in keys],
            StarTable.from_columns("optics", {label: [row[label] for row in rows] for label in rows[0]}))


def _columns_of_text(text: str, geometry: Dict[str, Any], default: Acquisition) -> Dict[str, List[Any]]:
    from emtable import Table
    source = Table()
    source.readStar(io.StringIO(text), tableName="optics")
    columns = {label: [getattr(row, label) for row in source] for label in source.getColumnNames()}
    n = len(source)
    columns.setdefault("rlnOpticsGroup", list(range(1, n + 1)))
    pixel_sizes = _pixel_sizes(columns.get("rlnImagePixelSize", []), geometry["rlnImagePixelSize"])
    columns.update({label: [value] * n for label, value in geometry.items()})
    columns["rlnImagePixelSize"] = pixel_sizes or columns["rlnImagePixelSize"]
    for label, value in zip(_ACQUISITION_LABELS, default):
        columns.setdefault(label, [value] * n)
    return columns


def _pixel_sizes(given: Sequence[Any], sampling_rate: float) -> List[float]:
    """Å of each optics group of a set of this sampling rate, for groups of several pixel sizes; [] for others.

    The set's sampling rate is that of one group: the one with just this size, or else the first, as the import of
    RELION's files takes it, of images that were scaled since.
    """
    sizes = [float(size) for size in given]
    if len(sizes) < 2 or min(sizes) <= 0 or max(sizes) - min(sizes) <= SAME_PIXEL_SIZE * min(sizes):
        return []
    nearest = min(sizes, key=lambda size: abs(size - sampling_rate))
    of_set = nearest if abs(nearest - sampling_rate) <= SAME_PIXEL_SIZE * sampling_rate else sizes[0]
    return [sampling_rate * size / of_set for size in sizes]


def changes_geometry(text: str) -> bool:
    """Whether optics groups have magnification matrices or several pixel sizes, by the text kept with a set."""
    if "rlnMagMat00" in text:
        return True
    columns = _columns_of_text(text, {"rlnImagePixelSize": 1.0}, (0.0, 0.0, 0.0))
    return len(set(columns["rlnImagePixelSize"])) > 1


def _numbers(ids: Sequence[int], groups: Sequence[Any], columns: Dict[str, List[Any]]) -> List[int]:
    """The group of every item; one that says nothing is in the first, if that makes no difference."""
    known = [int(number) for number in columns["rlnOpticsGroup"]]
    different = any(len(set(map(str, values))) > 1 for label, values in columns.items()
                    if label not in _GEOMETRY_AND_NAMES)
    numbers = []
    for item, group in zip(ids, groups):
        if group is None and different:
            raise InputError(f"the set has {len(known)} different optics groups and item {item} does not say which is "
                             "its own", "input particles",
                             "give every particle its group with 'relion - assign optics groups'")
        number = known[0] if group is None else int(group)
        if number not in known:
            raise InputError(f"item {item} is in optics group {number}, the set has {_listed(known)}",
                             "input particles", "after joining sets run 'relion - assign optics groups'")
        numbers.append(number)
    return numbers


def _check_acquisitions(ids: Sequence[int], acquisitions: Sequence[Optional[Acquisition]], numbers: Sequence[int],
                        columns: Dict[str, List[Any]]) -> None:
    """InputError for an item whose own acquisition is not that of its group: joined sets keep only one table.

    What an item merely copied from its set says nothing about its group, and is not given here.
    """
    table = {int(number): tuple(float(columns[label][row]) for label in _ACQUISITION_LABELS)
             for row, number in enumerate(columns["rlnOpticsGroup"])}
    agreed = set()
    for item, own, number in zip(ids, acquisitions, numbers):
        if own is None or (own, number) in agreed:
            continue
        if any(abs(a - b) > 1e-3 * max(1.0, abs(b)) for a, b in zip(own, table[number])):
            raise InputError("item {} has {:g} kV, {:g} mm, {:g}, but its optics group {} has {:g} kV, {:g} mm, {:g}"
                             .format(item, *own, number, *table[number]), "input particles",
                             "after joining sets run 'relion - assign optics groups'")
        agreed.add((own, number))


def _listed(numbers: Sequence[int]) -> str:
    return ("group " if len(numbers) == 1 else "groups ") + ", ".join(map(str, numbers))
