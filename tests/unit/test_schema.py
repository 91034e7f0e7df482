"""The published shapes hold for what every command prints with --json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import typer

from intxtrace.__main__ import main
from intxtrace.cli import app
from intxtrace.render import json as render_json
from intxtrace.render.schema import SHAPES, schema
from tests.unit.traces import some_events, write_trace

TRACES = sorted((Path(__file__).parents[1] / "traces").glob("*.intx"))


def commands_with_json() -> set[str]:
    group = cast(Any, typer.main.get_command(app))
    return {name for name, command in group.commands.items() if any("--json" in p.opts for p in command.params)}


def call(name: str, trace: Path) -> list[str]:
    """The command that prints a shape of this trace."""
    if name == "live":
        return ["live", "--once", "--json", "--replay", str(trace), "--speed", "1000", "--window", "60s"]
    return [SHAPES[name].command, str(trace), "--json"]


def strict(value: Any) -> Any:
    """Forbid members that the shape does not name: what a new version may add, this version must publish."""
    if isinstance(value, dict):
        value = {key: strict(item) for key, item in value.items()}
        if value.get("type") == "object" and "properties" in value:
            value["additionalProperties"] = False
    return [strict(item) for item in value] if isinstance(value, list) else value


OF_A_TRACE = [name for name in SHAPES if name != "doctor"]
"""doctor takes no trace."""


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    # doctor says with its status whether this host can be traced.
    assert main(arguments) in ((0, 1) if arguments[0] == "doctor" else (0,))
    return json.loads(capsys.readouterr().out)


def test_every_command_with_json_has_a_shape() -> None:
    assert commands_with_json() == {shape.command for shape in SHAPES.values()}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_json_schema(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "schema", name)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found == schema(name) == printed(capsys, "schema", f"intxtrace.{name}")
    assert found["properties"]["version"] == {"const": render_json.VERSION}
    assert {kind["description"] != "" for kind in found["$defs"].values()} == {True}


@pytest.mark.parametrize("name", ["devices", "doctor"])
def test_what_is_printed_of_this_host_has_the_shape(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema.Draft202012Validator(strict(schema(name))).validate(printed(capsys, name, "--json"))


@pytest.mark.parametrize("name", OF_A_TRACE)
def test_what_is_printed_has_the_shape(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validator = jsonschema.Draft202012Validator(strict(schema(name)))
    odd = write_trace(tmp_path / "odd.intx", some_events(300))
    empty = write_trace(tmp_path / "empty.intx")
    for trace in (*TRACES, odd, empty):
        validator.validate(printed(capsys, *call(name, trace)))


@pytest.mark.parametrize("name", OF_A_TRACE)
def test_a_document_of_another_shape_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    validator = jsonschema.Draft202012Validator(schema(name))
    document = printed(capsys, *call(name, TRACES[0]))
    validator.validate(document)
    refused = 0
    for broken in _broken(document):
        refused += not validator.is_valid(broken)
    assert refused == 5
    newer = {**document, "comment": "of a later version"}
    assert validator.is_valid(newer)


def _broken(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {**document, "version": document["version"] + 1}
    yield {**document, "schema": "intxtrace.other"}
    yield {key: value for key, value in document.items() if key != "data"}
    yield {**document, "data": None}
    inner = json.loads(json.dumps(document))
    row = inner["data"][0] if isinstance(inner["data"], list) else inner["data"]
    row.pop(next(iter(row)))
    yield inner


def test_members_say_what_they_mean() -> None:
    kinds = schema("summary")["$defs"]
    assert kinds["Quality"]["properties"]["lost"] == {
        "type": "integer",
        "description": "Events that were dropped, those of no known device included.",
    }
    assert kinds["Distribution"]["properties"]["p99_99"] == {"type": ["integer", "null"]}
    assert "figures" not in kinds["DeviceSummary"]["properties"]
    assert schema("info")["$defs"]["Metadata"]["properties"]["clock"]["enum"] == ["monotonic", "realtime", "none"]


def test_the_list_names_every_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(SHAPES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "there is no shape nothing; choose from devices, doctor, info, interrupts, live, summary"),
        ([""], "there is no shape ; choose from"),
        (["summary", "info"], "Got unexpected extra argument"),
    ],
)
def test_wrong_input(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert says in shown.err
    assert shown.err.count("\n") == 1
