"""How input files looked when a run began, and whether they still look like that.

A STAR file, a map and a mask are known by a digest of their whole content. A stack can be as large as a disk: it is
known by its size, the time of its last change, and a digest of a sample of its bytes.
"""
from __future__ import annotations

import hashlib
import os
from typing import Optional, Sequence, Tuple

import numpy as np

from ..records.run_input import Fingerprint
from .run_folder import PathLike

CHUNK = 1 << 22
BLOCK = 4096  # bytes of a sample: the header of a stack, or a small image
ALL_BLOCKS, FEWEST_BLOCKS, MOST_BLOCKS = 4096, 2, 16  # of all stacks together; of one


def of_file(path: PathLike) -> Fingerprint:
    """Of the whole content."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as handle:
        size, modified = _looks(handle.fileno())
        for chunk in iter(lambda: handle.read(CHUNK), b""):
            digest.update(chunk)
    return Fingerprint(size, modified, digest.hexdigest())


def of_stack(path: PathLike, blocks: int) -> Fingerprint:
    """Of so many blocks, evenly spaced from the first bytes to the last."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as handle:
        size, modified = _looks(handle.fileno())
        for start in np.unique(np.linspace(0, max(size - BLOCK, 0), blocks).astype(np.int64)):
            digest.update(os.pread(handle.fileno(), BLOCK, int(start)))
    return Fingerprint(size, modified, digest.hexdigest())


def of_stacks(paths: Sequence[str]) -> Tuple[Fingerprint, ...]:
    return tuple(of_stack(path, blocks_for(len(paths))) for path in paths)


def blocks_for(stacks: int) -> int:
    """Blocks of each of so many stacks: thousands of small ones are sampled less, for every block is a wait."""
    return int(np.clip(ALL_BLOCKS // max(stacks, 1), FEWEST_BLOCKS, MOST_BLOCKS))


def untouched(path: PathLike, before: Fingerprint) -> Optional[bool]:
    """Whether size and time of a file are as they were; None if it is not there any more."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) == (before.size, before.modified_ns)


def _looks(descriptor: int) -> Tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns
