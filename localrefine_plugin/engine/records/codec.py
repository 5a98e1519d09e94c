"""Records ↔ JSON: one way out, and one tolerant way in.

A field is stored under its own name, or under ``metadata["json"]``. Reading leaves out what the record does not know
(a newer program wrote it) and takes the default of what is missing (an older one did).
"""
from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, Dict, Tuple, Type, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

Record = TypeVar("Record")
PLAIN: Dict[type, Tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}


def as_json(record: Any) -> Any:
    """What json.dump writes of a record: a dict; of its values lists, dicts, numbers, texts and None."""
    if dataclasses.is_dataclass(record):
        return {key_of(f): as_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {key: as_json(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [as_json(value) for value in record]
    if isinstance(record, (np.ndarray, np.generic)):
        return record.tolist()
    return record


def from_json(record_class: Type[Record], content: Dict[str, Any]) -> Record:
    """The record of a JSON object.

    Raises
    ------
    KeyError : a field without a default is missing.  TypeError : ``content`` is not an object, or a value in it is of
        another type than its field.
    """
    if not isinstance(content, dict):
        raise TypeError(f"{record_class.__name__} is not a JSON object")
    types = types_of(record_class)  # type: ignore[arg-type]
    values = {}
    for f in dataclasses.fields(record_class):  # type: ignore[arg-type]
        if key_of(f) in content:
            values[f.name] = _typed(types[f.name], content[key_of(f)])
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise KeyError(key_of(f))
    return record_class(**values)


@lru_cache(maxsize=None)
def types_of(record_class: type) -> Dict[str, Any]:
    """The types of its fields, whose texts Python compiles each time it is asked."""
    return get_type_hints(record_class)


def key_of(f: "dataclasses.Field[Any]") -> str:
    """The name of a field in JSON."""
    return str(f.metadata.get("json", f.name))


def _typed(kind: Any, value: Any) -> Any:
    """A JSON value as the type of its field: records and tuples are made anew, numbers and texts are taken as they are.

    An empty object where a record may be None is None, which is how old runs wrote "none".
    """
    if dataclasses.is_dataclass(kind):
        return from_json(kind, value)  # type: ignore[arg-type]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Union and len(arguments) == 2 and type(None) in arguments:
        some = next(a for a in arguments if a is not type(None))
        return None if value is None or (value == {} and dataclasses.is_dataclass(some)) else _typed(some, value)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_typed(arguments[0], v) for v in value)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], v) for key, v in value.items()}
    if origin in (tuple, dict) or kind in PLAIN and not _is(value, kind):
        raise TypeError(f"{value!r} is not of the type {getattr(kind, '__name__', kind)}")
    return value


def _is(value: Any, kind: type) -> bool:
    """Whether a JSON value is of a plain type; an int is a float, a bool is neither."""
    return isinstance(value, PLAIN[kind]) and (kind is bool or not isinstance(value, bool))
