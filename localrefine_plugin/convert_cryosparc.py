"""Where particles of a Scipion set came from, if they were imported from a .cs file of cryoSPARC.

Each item says its uid and the copy of the .cs file in the folder of its import; its image is a link beside that copy.
The engine then writes the new poses into such a file as well (engine/io/cryosparc.py).
"""
from __future__ import annotations

import logging
import os
from typing import Any, Dict, List, Optional, Sequence

from .engine.io.cryosparc import UID, source_table
from .engine.io.star import StarTable

logger = logging.getLogger(__name__)

UID_ATTRIBUTE, FILE_ATTRIBUTE = "_lrUid", "_lrCsFile"
FILE = FILE_ATTRIBUTE[1:]
IMAGES = "images"  # the folder of the links, beside the copy of the .cs file


def origin(files: Sequence[str], columns: Dict[str, List[Any]]) -> Optional[StarTable]:
    """The table that tells the engine where the rows came from; None, and no uid in ``columns``, if they came from
    nowhere, or cannot go back there.

    files : of the images of all rows.  columns : by label; `FILE` is taken out.
    """
    names = set(columns.pop(FILE, ()))
    if not names:
        columns.pop(UID, None)
        return None
    name = next(iter(names))
    reason = ""
    if len(names) > 1:
        reason = f"they came from {len(names)} files"
    elif not os.path.exists(name):
        reason = f"{name} is not there any more"
    elif {os.path.abspath(file) for file in map(os.path.dirname, set(files))} != {
            os.path.abspath(os.path.join(os.path.dirname(name), IMAGES))}:
        reason = "their images are not those that were imported"
    elif len(set(columns[UID])) < len(columns[UID]):
        reason = "some particles are there more than once"
    if reason:
        logger.warning("no .cs file of cryoSPARC will be written for these particles: %s", reason)
        del columns[UID]
        return None
    return source_table([os.path.abspath(name)])
