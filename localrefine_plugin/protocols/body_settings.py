"""Settings of single bodies, written in one field of the form: a line for each body.

    2: rotation_extent_deg = 10; fulcrum = [60, 48, 31]

Keys are those of settings.json or the parameters of the protocol (docs/reference/parameters.md names both); values are
as in settings.json, or the words yes, no and automatic.
"""
from __future__ import annotations

import json
import re
from typing import Any, Dict, List

from ..engine.records.bodies import ALIKE_IN_ALL
from ..engine.records.errors import InputError
from ..engine.records.settings import DESCRIBED, Settings
from .form_local_refine import PER_BODY, PER_BODY_LABEL, param_name, prior_errors, settings_values

LINE = re.compile(r"(?:body\s*)?(\d+)\s*:(.*)", re.IGNORECASE)
BETWEEN = re.compile(r"[;,](?![^\[]*\])")  # not between the coordinates of a fulcrum
WORDS = {"yes": True, "no": False, "automatic": None}
KEYS = {name.lower(): key for key in DESCRIBED for name in (key, param_name(key))}


def read_lines(text: str, bodies: int) -> Dict[int, Dict[str, Any]]:
    """Number of the body, from 1 → key of a setting → value.

    Raises
    ------
    InputError : for the first line that cannot be meant.
    """
    found: Dict[int, Dict[str, Any]] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        match = LINE.fullmatch(line)
        if match is None:
            raise InputError(f"'{line}' does not begin with the number of a body and a colon", PER_BODY_LABEL,
                             "write, for instance, 2: rotation_extent_deg = 10; fulcrum = box")
        number = int(match[1])
        if not 1 <= number <= bodies:
            raise InputError(f"'{line}': there is no body {number}", PER_BODY_LABEL,
                             f"body 1 is that of the first mask; give a number from 1 to {bodies}")
        for entry in filter(None, (entry.strip() for entry in BETWEEN.split(match[2]))):
            key, value = read_entry(entry)
            if key in found.setdefault(number, {}):
                raise InputError(f"{key} is given twice for body {number}", PER_BODY_LABEL, "give it once")
            found[number][key] = value
    return found


def read_entry(entry: str) -> Any:
    """(key, value) of "key = value"."""
    name, equals, text = (part.strip() for part in entry.partition("="))
    if not equals or not text:
        raise InputError(f"'{entry}' is not a setting and its value", PER_BODY_LABEL,
                         "write, for instance, prior = off")
    key = KEYS.get(name.lower())
    if key is None:
        raise InputError(f"there is no setting '{name}'", PER_BODY_LABEL,
                         "take a name from the page Parameters, for instance rotation_extent_deg")
    if key in ALIKE_IN_ALL:
        raise InputError(f"{key} must be the same for all bodies", PER_BODY_LABEL,
                         "set it in its own field of the form")
    value = read_value(text)
    try:
        Settings.from_dict({key: value})
    except InputError as error:
        raise InputError(f"{name} = {text}: {error.problem}", PER_BODY_LABEL, error.remedy) from None
    return key, value


def read_value(text: str) -> Any:
    """As in a JSON file; a word needs no quotes."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def settings_of_bodies(protocol: Any) -> List[Dict[str, Any]]:
    """The content of settings.json of each body: the values of the form, with those of its line. Raises InputError.

    One for all if no body has settings of its own: then the engine gets one file, as for one mask.
    """
    common, own = settings_values(protocol), own_of_bodies(protocol)
    if not own:
        return [common]
    return [dict(common, **own.get(number, {})) for number in range(1, bodies_of(protocol) + 1)]


def own_of_bodies(protocol: Any) -> Dict[int, Dict[str, Any]]:
    """What the form says of single bodies. Raises InputError."""
    return read_lines(protocol.getAttributeValue(PER_BODY, None) or "", bodies_of(protocol))


def bodies_of(protocol: Any) -> int:
    return 1 + len(protocol.moreMasks)


def errors(protocol: Any) -> List[str]:
    """What is wrong with the settings of single bodies, or with those of the form for any of them."""
    try:
        own, each = own_of_bodies(protocol), settings_of_bodies(protocol)
    except InputError as error:
        return [f"*{error.source}*: {error.problem}; {error.remedy}."]
    given = settings_values(protocol)["fulcrum"]
    if not isinstance(given, str) and any("fulcrum" not in own.get(k, {}) for k in range(2, bodies_of(protocol) + 1)):
        return [f"*Fulcrum*: coordinates hold for one mask only; choose the centre of mass of the mask, or give each "
                f"of the other bodies a fulcrum in *{PER_BODY_LABEL}*."]
    return list(dict.fromkeys(text for values in each for text in prior_errors(values)))
