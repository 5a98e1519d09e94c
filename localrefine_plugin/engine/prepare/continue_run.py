"""What a changed setting means for a run that is continued: the steps that depend on it are done again, no others."""
from __future__ import annotations

import json
from typing import List

from ..io.run_folder import RunFolder, read_json, remove, write_json
from ..io.run_store import load_input, load_settings
from ..progress import say
from ..records.codec import as_json
from ..records.settings import ALIGN, DESCRIBED, MERGE, PREPARE, Settings


def changed_settings(before: Settings, now: Settings) -> List[str]:
    """The names of the settings that differ."""
    old, new = as_json(before), as_json(now)
    return [name for name in new if new[name] != old[name]]


def take_over(run: RunFolder, settings: Settings) -> bool:
    """Go on with these settings in a prepared run, once what depends on the changed ones is removed.

    False if everything does, so that it has to be prepared again; nothing has been touched then.
    """
    before, now = load_settings(run), settings
    changed = changed_settings(before, now)
    for name in changed:
        say(f"setting {name} was {json.dumps(getattr(before, name))}, is now {json.dumps(getattr(now, name))}")
    steps = {DESCRIBED[name].step for name in changed}
    if PREPARE in steps:
        say("everything depends on that and is done again")
        return False
    if steps & {ALIGN, MERGE}:
        remove(run.forecast(0))
    if ALIGN in steps:
        for half in (1, 2):
            run.forget_align(1, half)
    elif MERGE in steps:
        run.forget_merge(1)
    elif changed:
        remove(run.report)
    write_json(run.settings, as_json(settings))
    given = load_input(run)
    if as_json(given.resolved) != read_json(run.input)["resolved"]:  # for those who look; the steps ask `load_input`
        write_json(run.input, as_json(given))
    return True
