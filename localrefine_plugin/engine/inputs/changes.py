"""Input files that changed since a run began: named, and refused where it matters.

A run works from its own copy of the particles, of the mask, and of the references made of the half-maps. It reads the
images from the user's stacks in every iteration. So a stack that changed is refused at once. A particle file, a map or
a mask that changed is refused when the run is continued, for the user may expect that the new one is used; an ordinary
run finishes with its copy and says what changed. Rows of the particle file in another order are the same particles.
"""
from __future__ import annotations

import shutil
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..io.fingerprints import blocks_for, of_file, of_stack, of_stacks, untouched
from ..io.relion_particles import USED_COLUMNS, particle_table_of
from ..io.run_folder import PathLike, RunFolder, read_json, reading, write_atomic
from ..io.run_store import load_input, save_record
from ..io.star import StarTable, read_star
from ..progress import say
from ..records.codec import from_json
from ..records.errors import InputError
from ..records.run_input import INPUT_NAMES, InputFingerprints, RunInput

REMEDY = "put the old file back, or start a new run"
SAME_NUMBER = 2e-6  # relative or absolute: programs write six digits
NAMED = 3  # columns or files named in a sentence; the others are counted


def keep_inputs(run: RunFolder, paths: Dict[str, str], stacks: Sequence[str],
                before: Dict[str, Tuple[int, int]]) -> None:
    """Copy the particle file into the run and write down how all input files look.

    ``before`` is `file_states` of the time before they were read; a file that is not as it was then is refused.
    """
    def copy(name: str) -> None:
        shutil.copyfile(paths["particles"], name)
    write_atomic(run.given_particles, copy)
    files = {name: of_file(paths[name]) for name in INPUT_NAMES}
    for name, found in files.items():
        if before[name] != (found.size, found.modified_ns):
            raise InputError("was written to while it was read", f"{name} {paths[name]}", "start the run again")
    if of_file(run.given_particles).digest != files["particles"].digest:
        raise InputError("was written to while it was read", paths["particles"], "start the run again")
    save_record(run.fingerprints, InputFingerprints(files, of_stacks(stacks)))


def file_states(paths: Dict[str, str]) -> Dict[str, Tuple[int, int]]:
    """Size and time of the input files; (-1, -1) for one that cannot be looked at: reading it will say why."""
    found = {}
    for name, path in paths.items():
        try:
            status = Path(path).stat()
            found[name] = status.st_size, status.st_mtime_ns
        except OSError:
            found[name] = -1, -1
    return found


def load_fingerprints(run: RunFolder) -> Optional[InputFingerprints]:
    """None in a run of an older version."""
    if not run.fingerprints.exists():
        return None
    return _loaded(run.fingerprints.resolve(), run.fingerprints.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # 10⁵ stacks take 2 s, and each half-set of each iteration asks
def _loaded(path: Path, _modified_ns: int) -> InputFingerprints:
    with reading(path):
        return from_json(InputFingerprints, read_json(path))


# ---------------------------------------------------------------- stacks

def check_stacks(run: RunFolder, given: RunInput, used: Optional[np.ndarray] = None) -> List[str]:
    """Raise InputError for a stack that is not what it was when the run began; sentences on those written to since
    whose size and sample are the same. ``used`` (n,): only these stacks, by their number; no other is touched."""
    known = load_fingerprints(run)
    touched = []
    for number in np.unique(np.arange(len(given.stacks)) if used is None else np.asarray(used)) if known else ():
        path, before = given.stacks[number], known.stacks[number]  # type: ignore[union-attr]
        same = untouched(path, before)
        if same is None:
            raise InputError("is not there any more", f"image stack {path}", "put it back, and continue the run")
        if same:
            continue
        now = of_stack(path, blocks_for(len(given.stacks)))
        if now.size != before.size or now.digest != before.digest:
            what = "its size" if now.size != before.size else "the content"
            raise InputError(f"has changed since the run began ({what} is another)", f"image stack {path}",
                             "put the old stack back, or start a new run")
        touched.append(path)
    if not touched:
        return []
    return [f"{_listed(touched)}: written to since the run began. The size and a sample of the content are as before, "
            "and the run takes them for the same images"]


# ---------------------------------------------------------------- particles, maps, mask

def check_continued(run: RunFolder) -> None:
    """Of a run that is continued: say what changed, and raise InputError where the user may expect it to be used."""
    given = load_input(run)
    refused, said = changed_files(run, given)
    if refused:
        raise refused[0]
    for text in said + check_stacks(run, given):
        say(f"warning: {text}")


def changes_at_the_end(run: RunFolder) -> List[str]:
    """Sentences on what changed while a run went on; its results are those of the files as they were."""
    given = load_input(run)
    refused, said = changed_files(run, given)
    try:
        said += check_stacks(run, given)
    except InputError as error:
        refused.append(error)
    return [f"{error.source}: {error.problem}. The results are those of the file as it was when the run began"
            for error in refused] + said


def changed_files(run: RunFolder, given: RunInput) -> Tuple[List[InputError], List[str]]:
    """(changes that matter, changes that do not) of the particle file, the half-maps and the mask."""
    known = load_fingerprints(run)
    refused: List[InputError] = []
    said: List[str] = []
    for name in INPUT_NAMES if known else ():
        path, before = getattr(given, name), known.files[name]  # type: ignore[union-attr]
        same = untouched(path, before)
        if same is None:
            said.append(f"{name} {path}: is not there any more. The run goes on with its own copy")
        elif not same and of_file(path).digest != before.digest:
            if name == "particles":
                refuse, mention = particle_changes(run.given_particles, path)
                said += mention
                refused += [InputError(f"has changed since the run began: {text}", path, REMEDY) for text in refuse]
            else:
                refused.append(InputError("has changed since the run began", f"{name} {path}", REMEDY))
    return refused, said


def particle_changes(before: PathLike, now: str) -> Tuple[List[str], List[str]]:
    """(what matters, what does not) between the particle file as it was and as it is, rows joined by their images."""
    try:
        tables = [read_star(path) for path in (before, now)]
        old, new = (particle_table_of(found, now) for found in tables)
    except InputError as error:
        return [f"it is no particle file any more ({error.problem})"], []
    differences = table_differences(old, new, "rlnImageName")
    optics = [next((table for table in found if table.name == "optics"), StarTable("optics")) for found in tables]
    matter = [text for label, text in differences if label in USED_COLUMNS]
    matter += [f"{text} of the optics groups" for _, text in table_differences(optics[0], optics[1], "rlnOpticsGroup")]
    others = [text for label, text in differences if label not in USED_COLUMNS]
    said = [f"{now}: {_some(others)} since the run began. The results keep the old values"] if others else []
    if not matter and not others:
        said = [f"{now}: was written again since the run began, with the same particles. The run goes on with its own "
                "copy, and the results have the rows in the order of that"]
    return [_some(matter)] if matter else [], said


def table_differences(old: StarTable, new: StarTable, key: str) -> List[Tuple[str, str]]:
    """(label, sentence) of each column that differs; the label is ``key`` where the rows are not those of before."""
    before, now = (table.texts(table.labels) for table in (old, new))
    names, others = before.get(key, []), now.get(key, [])
    if sorted(names) != sorted(others):
        gone, more = Counter(names) - Counter(others), Counter(others) - Counter(names)
        return [(key, f"{sum(gone.values())} of {len(names)} rows are gone, {sum(more.values())} are new (by {key})")]
    found = [(label, f"column {label} is gone") for label in before if label not in now]
    found += [(label, f"column {label} is new") for label in now if label not in before]
    labels = [label for label in before if label in now]
    keys = [key] + [label for label in USED_COLUMNS if label in labels] + labels
    order, other_order = (np.lexsort([np.array(columns[label]) for label in reversed(keys)])
                          for columns in (before, now))
    for label in labels:
        a, b = np.array(before[label])[order], np.array(now[label])[other_order]
        rows = int(np.count_nonzero(~_same(a, b)))
        if rows:
            found.append((label, f"{label} differs in {rows} of {len(a)} rows"))
    return found


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether texts (n,) are the same, or the same numbers but for their last digits."""
    same: np.ndarray = a == b
    for i in np.flatnonzero(~same):
        try:
            x, y = float(a[i]), float(b[i])
        except ValueError:
            continue
        same[i] = abs(x - y) <= SAME_NUMBER * max(1.0, abs(x))
    return same


def _some(sentences: Sequence[str]) -> str:
    more = len(sentences) - NAMED
    return ", ".join(sentences[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _listed(paths: Sequence[str]) -> str:
    more = len(paths) - 1
    return f"image stack {paths[0]}" + (f" and {more} more" if more else "")
