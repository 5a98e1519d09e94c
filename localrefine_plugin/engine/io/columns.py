"""Columns of a STAR table as texts and checked numbers."""
from __future__ import annotations

from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..records.errors import InputError
from .star import StarTable, unquote

TEXTS = ("rlnImageName", "rlnOpticsGroupName", "rlnOddZernike", "rlnEvenZernike")
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
RECENTRED_IMAGE = "lrRecentreImageName"  # of re-centred particles: the image from before, which is in another frame
CTF = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")


class Columns:
    """Columns of one table, read in one pass: names as texts, the others as checked numbers.

    Texts of a label in ``given_to`` are not kept but given to its function, row after row, a chunk at a time.
    """

    def __init__(self, table: StarTable, labels: Sequence[str],
                 given_to: Optional[Mapping[str, Callable[[List[str]], None]]] = None):
        self.source, self.name, self.rows = table.source, table.name, len(table)
        where = [(label, table.labels.index(label)) for label in labels if label in table.labels]
        self._texts: Dict[str, List[str]] = {label: [] for label, _ in where if label in TEXTS}
        self._numbers = {label: np.empty(self.rows) for label, _ in where if label not in TEXTS}
        self._wrong: Dict[str, Tuple[int, str]] = {}  # the first row that is not a finite number
        for start, rows in table.raw_rows():
            for label, j in where:
                texts = [unquote(row[j]) for row in rows]
                if label in (given_to or ()):
                    given_to[label](texts)  # type: ignore[index]
                elif label in TEXTS:
                    self._texts[label].extend(texts)
                elif label not in self._wrong:
                    self._add_numbers(label, start, texts)

    def _add_numbers(self, label: str, start: int, texts: List[str]) -> None:
        try:
            values = np.array([float(text) for text in texts], dtype=np.float64)
        except ValueError:
            values = np.array([_number(text) for text in texts])
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            self._wrong[label] = start + int(wrong[0]), texts[wrong[0]]
        self._numbers[label][start:start + len(values)] = values

    def __contains__(self, label: str) -> bool:
        return label in self._texts or label in self._numbers

    def text(self, label: str) -> List[str]:
        return self._texts[self._present(label)]

    def numbers(self, label: str, default: Optional[float] = None) -> np.ndarray:
        """(n,) float64, finite."""
        if label not in self and default is not None:
            return np.full(self.rows, default)
        values = self._numbers[self._present(label)]
        if label in self._wrong:
            raise self._not_a_number(label, *self._wrong[label])
        return values

    def forget(self, labels: Sequence[str]) -> None:
        """Give back the memory of numbers that nobody needs any more."""
        for label in labels:
            self._numbers.pop(label, None)

    def lists(self, label: str) -> List[Tuple[float, ...]]:
        """Finite numbers of texts [1.2,-3,…]; none where the column is missing."""
        found = []
        for row, text in enumerate(self._texts.get(label, ["[]"] * self.rows)):
            parts = [part for part in text.strip("[] ").split(",") if part.strip()]
            if not all(np.isfinite(_number(part)) for part in parts):
                raise self._not_a_number(label, row, text, "a list of finite numbers")
            found.append(tuple(float(part) for part in parts))
        return found

    def integers(self, label: str) -> np.ndarray:
        values = self.numbers(label)
        wrong = np.flatnonzero((values != np.rint(values)) | (np.abs(values) > 2 ** 31))
        if len(wrong):
            raise self._not_a_number(label, int(wrong[0]), f"{values[wrong[0]]:g}", "a whole number")
        return values.astype(np.int64)

    def require(self, label: str) -> None:
        """Raise InputError if the table has no such column."""
        self._present(label)

    def _present(self, label: str) -> str:
        if label not in self:
            raise InputError(f"table data_{self.name} has no column {label}", self.source, _remedy(label))
        return label

    def _not_a_number(self, label: str, row: int, text: str, kind: str = "a finite number") -> InputError:
        return InputError(f"row {row + 1} of table data_{self.name} has {label} '{text}', not {kind}", self.source,
                          "correct or remove the row")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _remedy(label: str) -> str:
    if label == "rlnRandomSubset":
        return "use the particles of a refinement that split them into half-sets (3D auto-refine)"
    if label in ANGLES:
        return "use the particles of a 3D refinement, which have poses"
    if label in CTF:
        return "estimate the CTF and extract the particles with it"
    return "export the particles again with this column"
