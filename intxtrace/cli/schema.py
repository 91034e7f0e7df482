"""`intxtrace schema`: the published shapes of what --json prints."""

from __future__ import annotations

from typing import Annotated

import typer


def schema(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A shape; without one, all are listed.")] = None,
) -> None:
    """Print the shape of a command's --json, as JSON Schema.

    It is of draft 2020-12; a shape's version grows when a member goes or changes its meaning.
    """
    from intxtrace.errors import IntxtraceError
    from intxtrace.render.json import VERSION
    from intxtrace.render.schema import SHAPES, document

    if name is None:
        for known, shape in SHAPES.items():
            print(f"{known}  version {VERSION}  intxtrace {shape.command} --json")
        return
    if name.removeprefix("intxtrace.") not in SHAPES:
        raise IntxtraceError(f"there is no shape {name}; choose from {', '.join(SHAPES)}")
    print(document(name.removeprefix("intxtrace.")), end="")
