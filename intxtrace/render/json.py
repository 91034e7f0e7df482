"""Results as JSON: the dataclasses as they are, field by field, in an envelope that names schema and version."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intxtrace.analysis.results import Interrupt, Summary

VERSION = 1


def to_json(value: Any) -> Any:
    """Turn dataclasses, mappings, tuples and plain values into what `json` writes; null stays null.

    Fields with the metadata `json: False` (what the figures draw) are left out. Raises TypeError for anything else.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value) if f.metadata.get("json", True)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def document(schema: str, data: Any) -> str:
    """Write a document: `{"schema": "intxtrace.<schema>", "version": 1, "data": …}`, and a line end."""
    envelope = {"schema": f"intxtrace.{schema}", "version": VERSION, "data": to_json(data)}
    return json.dumps(envelope, indent=2, allow_nan=False) + "\n"


def summary(found: Summary) -> str:
    """Write a summary as schema `intxtrace.summary`."""
    return document("summary", found)


def interrupts(rows: tuple[Interrupt, ...]) -> str:
    """Write interrupts as schema `intxtrace.interrupts`."""
    return document("interrupts", rows)
