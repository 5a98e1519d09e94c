"""Arguments for tracked steps that make Scipion's Continue re-run what it must, and nothing else.

Scipion skips a step of a continued run when the stored step at the same position has the same
function name and arguments, was finished, and its result files exist. It looks at each step alone, so

* a changed parameter or input must show in the arguments of the first step that depends on it, and
* when a step has to run again (its arguments changed, its files are gone, it failed), all later ones must, too.

The first is a fingerprint of parameters or inputs; the second a token that is kept as long as the
chain of previous steps is unbroken and is new from the first break on. A step that runs again asks the
run folder whether there is anything to do.
"""
from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any, Dict, List, Sequence


def fingerprint(content: Dict[str, Any]) -> str:
    """A short digest of a JSON-like dict, the same in every process."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


class StepChain:
    """The tokens of a run's steps.

    Parameters
    ----------
    previous : the steps of the stored run (Protocol.loadSteps()); empty for a new one.
    """

    def __init__(self, previous: Sequence[Any]):
        self._previous = list(previous)
        self._fresh = uuid.uuid4().hex[:8]
        self._position = 0
        self._intact = True

    def arguments(self, function_name: str, *arguments: Any) -> List[Any]:
        """The arguments of the next step: its own and the token."""
        token = self._kept_token(function_name, list(arguments))
        self._position += 1
        return [*arguments, token]

    def _kept_token(self, function_name: str, arguments: List[Any]) -> str:
        old = self._previous[self._position] if self._position < len(self._previous) else None
        if self._intact and old is not None and _is_done(old, function_name, arguments):
            return str(json.loads(old.argsStr.get())[-1])
        self._intact = False
        return self._fresh


def _is_done(step: Any, function_name: str, arguments: List[Any]) -> bool:
    """Whether a stored step finished with these arguments (token aside) and its files are still there."""
    stored = json.loads(step.argsStr.get() or "[]")
    return (step.isFinished() and step.funcName.get() == function_name
            and stored[:-1] == arguments and step._postconditions())
