"""The shapes of what `--json` prints, as JSON Schema (draft 2020-12), made from the dataclasses that are printed.

A shape's version grows when a member changes its meaning or goes; a new member is not a new version, so what reads a
document must let members pass that it does not know.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from intxtrace.analysis.inventory import Info
from intxtrace.analysis.live_results import LiveView
from intxtrace.analysis.results import Interrupt, Summary
from intxtrace.host_results import Devices, Diagnosis
from intxtrace.render.json import VERSION
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Device, Probe, Vm


class Shape(NamedTuple):
    """What stands in `data`, and which command prints it."""

    data: Any
    command: str


SHAPES: dict[str, Shape] = {
    "devices": Shape(Devices, "devices"),
    "doctor": Shape(Diagnosis, "doctor"),
    "info": Shape(Info, "info"),
    "interrupts": Shape(tuple[Interrupt, ...], "interrupts"),
    "live": Shape(LiveView, "live"),
    "summary": Shape(Summary, "summary"),
}
"""By the name that follows `intxtrace.` in a document's `schema`."""

_ROWS: dict[tuple[type, str], Any] = {
    (Info, "metadata"): Metadata,
    (Info, "probes"): list[Probe],
    (Info, "vms"): list[Vm],
    (Info, "devices"): list[Device],
}
"""Members that hold a trace's own JSON, which is that of these dataclasses (`extra` spread out)."""

_PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def schema(name: str) -> dict[str, Any]:
    """Make the JSON Schema of a document. Raises KeyError for a name that is not in `SHAPES`."""
    definitions: dict[str, Any] = {}
    shape = SHAPES[name]
    data = _of(shape.data, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:intxtrace:{name}:{VERSION}",
        "title": f"intxtrace {shape.command} --json",
        "description": "Instants end in _at (ns of the trace's clock), durations in _ns; what is not known is null.",
        "type": "object",
        "properties": {"schema": {"const": f"intxtrace.{name}"}, "version": {"const": VERSION}, "data": data},
        "required": ["schema", "version", "data"],
        "$defs": dict(sorted(definitions.items())),
    }


def document(name: str) -> str:
    """Write the JSON Schema of a document. Raises KeyError for a name that is not in `SHAPES`."""
    return json.dumps(schema(name), indent=2, ensure_ascii=False) + "\n"


def _of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Translate a type."""
    if hint is Any:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        parts = [_of(part, definitions) for part in arguments]
        if all(part.keys() == {"type"} for part in parts):
            return {"type": [part["type"] for part in parts]}
        return {"anyOf": parts}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    if origin is list or (origin is tuple and arguments[1:] == (...,)):
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is tuple:
        size = {"minItems": len(arguments), "maxItems": len(arguments)}
        return {"type": "array", "prefixItems": [_of(part, definitions) for part in arguments], **size}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # it may hold itself
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    raise TypeError(f"{hint} has no JSON form")


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, meanings = get_type_hints(kind), dict(_meanings(kind))
    properties = {}
    for member in dataclasses.fields(kind):
        if member.name == "extra" or not member.metadata.get("json", True):
            continue
        properties[member.name] = _of(_ROWS.get((kind, member.name), hints[member.name]), definitions)
        if member.name in meanings:
            properties[member.name] = {**properties[member.name], "description": meanings[member.name]}
    whole = {"type": "object", "properties": properties, "required": list(properties)}
    return {"description": inspect.cleandoc(kind.__doc__ or ""), **whole}


def _meanings(kind: type) -> Iterator[tuple[str, str]]:
    """Yield the docstring of each member: the string that follows it in the source."""
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base) or base.__module__ not in sys.modules:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for member, following in zip(tree.body, tree.body[1:], strict=False):
            match member, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    yield name, " ".join(text.split())
