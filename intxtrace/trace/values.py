"""JSON from a trace is untrusted: bounded, and checked against the types that the dataclasses declare."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

MAX_JSON = 16 << 20
"""Bytes of JSON in one message. A host with hundreds of VMs needs far less than one MiB."""

_LEAST, _MOST = -(1 << 63), (1 << 64) - 1


def load_json(text: bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, is too long or too deep, or holds an integer that no 64-bit field can.
    """
    if len(text) > MAX_JSON:
        raise ValueError("too much JSON")
    try:
        return _clean(json.loads(text))
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _clean(value: Any) -> Any:
    """Bound integers, and replace lone surrogates, which could not be printed."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case bool():
            return value
        case int() if not _LEAST <= value <= _MOST:
            raise ValueError("an integer of more than 64 bits")
        case list():
            return [_clean(item) for item in value]
        case dict():
            return {_clean(key): _clean(item) for key, item in value.items()}
        case _:
            return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a declared type: int, str, bool, None, a Literal, a list of one, or a union."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(fits(item, typing.get_args(hint)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    return type(value) is hint
