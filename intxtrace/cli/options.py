"""What several commands declare alike: arguments and options, and how a group of them becomes one parameter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from intxtrace.cli.completion import devices, traces, vms

TraceFile = Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file (*.intx).", autocompletion=traces)]
Devices = Annotated[
    list[str],
    typer.Option(
        "--device",
        metavar="BDF",
        help="Only this device (may be repeated).",
        show_default=False,
        autocompletion=devices,
    ),
]
Vms = Annotated[
    list[str],
    typer.Option(
        "--vm", metavar="NAME|PID", help="Only this VM (may be repeated).", show_default=False, autocompletion=vms
    ),
]

Command = Callable[..., None]


def shared(declared: Command, made: Callable[..., Any], name: str) -> Callable[[Command], Command]:
    """Make a decorator that gives a command the options which `declared` declares.

    The command's parameter `name` becomes `made(**options)`. An option that the command has already, by another such
    decorator, serves both.
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        options = inspect.signature(declared, eval_str=True).parameters
        kept = {p.name: p for p in own.parameters.values() if p.name != name}

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            made_of = made(**{option: values[option] for option in options})
            command(**{name: made_of}, **{option: values[option] for option in kept})

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in {**kept, **options}.values()]
        vars(wrapper)["__signature__"] = own.replace(parameters=parameters)
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate
