"""What a changed setting means for a run that is continued: the steps that depend on it are done again, no others."""
from __future__ import annotations

import json
from typing import List

from ..io.run_folder import RunFolder, read_json, remove, write_json
from ..io.run_store import OF_ALIGN, OF_MERGE, TAKEN_AS_THEY_ARE, load_settings, taken
from ..progress import say
from ..records.settings import Settings


def changed_settings(run: RunFolder, settings: Settings) -> List[str]:
    """The names of the settings that differ from those in the run folder."""
    before = load_settings(run)
    now = json.loads(json.dumps(settings.as_dict()))  # as a file would give it back: tuples are lists
    return [name for name in now if now[name] != before[name]]


def take_over(run: RunFolder, settings: Settings) -> bool:
    """Go on with these settings in a prepared run, once what depends on the changed ones is removed.

    False if everything does, so that it has to be prepared again; nothing has been touched then.
    """
    changed = changed_settings(run, settings)
    before, now = load_settings(run), settings.as_dict()
    for name in changed:
        say(f"setting {name} was {json.dumps(before[name])}, is now {json.dumps(now[name])}")
    if any(name not in TAKEN_AS_THEY_ARE for name in changed):
        say("everything depends on that and is done again")
        return False
    if any(name in OF_ALIGN for name in changed):
        for half in (1, 2):
            run.forget_align(1, half)
    elif any(name in OF_MERGE for name in changed):
        run.forget_merge(1)
    elif changed:
        remove(run.report)
    write_json(run.settings, now)
    described = read_json(run.input)
    resolved = dict(described["resolved"], **taken(now))
    if resolved != described["resolved"]:  # for those who look; the steps ask `state.load_input`
        write_json(run.input, dict(described, resolved=resolved))
    return True
