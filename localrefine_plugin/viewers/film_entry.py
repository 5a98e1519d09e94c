"""The film of a run, made when somebody wants to see it."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Optional

from ..engine.io.run_folder import RunFolder
from ..report.run_state import RunState, read_json


def made(run: RunFolder, rest: Optional[Path]) -> str:
    """Make the film of a finished run against ``rest`` (None: the input poses), unless it is there; what went wrong, or
    "". In a process of its own: the engine's compiled code stays out of Scipion's window."""
    if not run.results_complete():
        return "The film is made of the results: it can be seen when the protocol has finished."
    found = RunState(run.path).film
    if found is not None and _same(found.rest, rest) and run.complete(run.film):
        return ""
    command = [sys.executable, "-m", "localrefine_plugin.engine", "film", str(run.path)]
    done = subprocess.run(command + ([] if rest is None else ["--rest", str(rest)]), check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode == 0:
        return ""
    message = read_json(run.error).get("message") or (done.stderr.strip().splitlines() or ["without saying why"])[-1]
    return f"The film could not be made: {message}"


def _same(known: str, rest: Optional[Path]) -> bool:
    """Whether the film that is there is against the run asked for."""
    return (known == "") if rest is None else known != "" and os.path.realpath(known) == os.path.realpath(rest)
