"""Inputs in the project that are edited or deleted while a protocol lasts: a copy of the set, and digests of the files.

The outputs are made from the copy: they belong to the particles that were refined. On Continue, an input whose content
is another makes the steps that depend on it run again.
"""
from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, Iterable, List

Known = Dict[str, List[Any]]  # path → [size, time in ns, digest of the content]


def copy_set(items: Any, target: str) -> None:
    """A copy of the file of a set, consistent even while another process writes to it."""
    source_uri = Path(os.path.abspath(items.getFileName())).as_uri()
    with closing(sqlite3.connect(f"{source_uri}?mode=ro", uri=True)) as source:
        with closing(sqlite3.connect(target)) as copy:
            source.backup(copy)


def copied_set(items: Any, path: str) -> Any:
    """The set of the copy; ``items`` is the set it was made of, as the protocol has it."""
    copied = items.getClass()()
    copied.copyInfo(items)
    prefix = items._mapperPath[1] if len(items._mapperPath) > 1 else ""
    copied._mapperPath.set(f"{path}, {prefix}")
    copied.load()
    copied.loadAllProperties()
    return copied


def digests(paths: Iterable[str], known: Known) -> Known:
    """How files look; the content of those that look as they are ``known`` is not read again. A file that is not there
    has no digest."""
    from ..engine.io.fingerprints import of_file
    found: Known = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found[path] = [-1, -1, ""]
            continue
        before = known.get(path, [-1, -1, ""])
        if before[:2] == [status.st_size, status.st_mtime_ns]:
            found[path] = before
        else:
            now = of_file(path)
            found[path] = [now.size, now.modified_ns, now.digest]
    return found


def changes(known: Known) -> List[str]:
    """A sentence on each file whose content is not what is known of it."""
    said = []
    for path, (_, _, digest) in digests(known, known).items():
        if digest != known[path][2]:
            what = "was deleted" if not digest else "was changed"
            said.append(f"{path}: {what} while the protocol ran. The outputs belong to what it held when the run began")
    return said
