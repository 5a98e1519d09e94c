"""A verb of the engine as a process of its own, run by a protocol."""
from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from pyworkflow.utils import cleanPath

from ..report.run_state import read_json


def run_engine(protocol: Any, error_file: Path, verb: str, *arguments: str) -> None:
    """Run ``verb`` through the protocol; the engine's one-sentence error, left in ``error_file``, becomes ours.

    A process per step keeps the GPU's memory and libraries out of Scipion's, and Stop can kill it.
    """
    cleanPath(str(error_file))
    words = ["-m", "localrefine_plugin.engine", verb, *arguments]
    try:
        protocol.runJob(shlex.quote(sys.executable), " ".join(shlex.quote(word) for word in words), numberOfMpi=1)
    except Exception as failure:
        message = read_json(error_file).get("message")
        raise RuntimeError(message or f"the engine stopped in '{verb}' without saying why ({failure}); "
                           "the end of the log has the details") from failure
