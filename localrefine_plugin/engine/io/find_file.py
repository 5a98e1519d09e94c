"""Files named in other files: where they are, and which name was probably meant where there is none."""
from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Iterator, List, Optional

from ..records.errors import InputError
from .run_folder import PathLike, RunFolder, read_json

MOST_RUNS = 20  # one from the results of the other
FORMATS_OF_RELION = (":mrcs", ":mrc")  # RELION reads x.stk:mrcs as MRC, whatever the extension says
OTHER_ENDINGS = {".mrc": (".mrcs", ".map"), ".mrcs": (".mrc", ".stk"), ".map": (".mrc",), ".stk": (".mrcs",)}


def find_file(name: str, star: PathLike) -> str:
    """Absolute path of a file named in a STAR file.

    Sought from the folder of the STAR file, from the working directory, from each folder above the STAR file, then, of
    a result of a run, from where the particles of this run lay.
    Raises InputError with the name that was probably meant.
    """
    folder = Path(os.path.abspath(star)).parent
    bases = [str(base) for base in [folder, Path.cwd(), *folder.parents, *folders_of_inputs(folder)]]
    plain = next((name[:-len(ending)] for ending in FORMATS_OF_RELION if name.endswith(ending)), name)
    for candidate in (name, plain):
        for base in bases:
            try:
                if os.path.isfile(os.path.join(base, candidate)):
                    return os.path.realpath(os.path.join(base, candidate))
            except ValueError:  # a null byte in the name
                break
    raise InputError(f"image file {name!r} does not exist{did_you_mean(plain, bases)}", str(star),
                     "image paths are relative to the STAR file, to the working directory or to the project folder")


def folders_of_inputs(final: Path) -> List[Path]:
    """Of a folder RUN/final: where the particles that RUN was given lie, and those that a run before it was given."""
    found: List[Path] = []
    while final.name == "final" and len(found) < MOST_RUNS:
        record = RunFolder(final.parent).input
        given = _particles_of(record, record.stat().st_mtime_ns) if record.is_file() else ""
        if not given:  # not a run's, whatever its name
            break
        final = Path(given).parent
        found.append(final)
    return found


@lru_cache(maxsize=2 * MOST_RUNS)
def _particles_of(record: Path, _changed: int) -> str:
    """The particles that a run was given; "" where this is no record of a run."""
    try:
        return str(read_json(record).get("particles", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def did_you_mean(name: str, bases: List[str]) -> str:
    """A question to add to an error, "" where no file has such a name."""
    meant = similar_file(name, bases)
    return f"; did you mean {meant!r}?" if meant else ""


def similar_file(name: str, bases: List[str]) -> Optional[str]:
    """A name of a file that differs from this one in slashes, the kind of MRC ending, or upper and lower case."""
    if "\0" in name:
        return None
    for candidate in _similar_names(name):
        for base in bases:
            found = _in_any_case(base, candidate)
            if found is not None:
                return found
    return None


def _similar_names(name: str) -> Iterator[str]:
    for path in dict.fromkeys((name, name.replace("\\", "/"))):
        stem, ending = os.path.splitext(path)
        yield path
        for other in OTHER_ENDINGS.get(ending.lower(), ()):
            yield stem + other


def _in_any_case(base: str, name: str) -> Optional[str]:
    """``name`` as the files below ``base`` spell it; None if there is no such file."""
    spelt: List[str] = [] if not name.startswith("/") else ["/"]
    for part in Path(name).parts[len(spelt):]:
        folder = os.path.join(base, *spelt)
        if part not in (".", "..") and not os.path.lexists(os.path.join(folder, part)):
            try:
                entries = sorted(entry for entry in os.listdir(folder) if entry.lower() == part.lower())
            except OSError:
                return None
            if not entries:
                return None
            part = entries[0]
        spelt.append(part)
    return os.path.join(*spelt) if spelt and os.path.isfile(os.path.join(base, *spelt)) else None
