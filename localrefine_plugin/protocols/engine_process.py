"""A verb of the engine as a process of its own, run by a protocol."""
from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Optional

from pyworkflow.utils import cleanPath

from ..report.run_state import read_json


def run_engine(protocol: Any, error_file: Path, verb: str, *arguments: str, made: Optional[Path] = None,
               ranks: int = 1) -> None:
    """Run ``verb`` through the protocol; the engine's one-sentence error, left in ``error_file``, becomes ours.

    A process per step keeps the GPU's memory and libraries out of Scipion's, and Stop can kill it. More than one rank
    is started by the command of hosts.conf, mpirun as a rule. A queue does not tell Scipion that a job failed: what the
    verb writes last must have been ``made``.
    """
    cleanPath(str(error_file))
    words = ["-m", "localrefine_plugin.engine", verb, *arguments]
    try:
        protocol.runJob(shlex.quote(sys.executable), " ".join(shlex.quote(word) for word in words), numberOfMpi=ranks)
    except Exception as failure:
        message = read_json(error_file).get("message")
        raise RuntimeError(message or f"the engine stopped in '{verb}' without saying why ({failure}); "
                           "the end of the log has the details") from failure
    if made is not None and not made.exists():
        raise RuntimeError(read_json(error_file).get("message") or
                           f"the job of '{verb}' ended before its work was done, and left no message. The queue may "
                           "have stopped it: too little time or memory was asked for. Look at the job's log, then "
                           "Continue")
