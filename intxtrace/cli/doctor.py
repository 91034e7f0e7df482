"""`intxtrace doctor`: can this host be traced, and if not, what to install."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    wait: Annotated[bool, typer.Option("--wait", help="Judge `record --wait`: no VM need run yet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (schema intxtrace.doctor).")] = False,
) -> None:
    """Say whether `record` would work here, and what to do if not.

    As root it loads and attaches every probe, as `record` does, and leaves at once. Exit status 0: record would work;
    1: it would not, and the last line says what it would say.
    """
    from intxtrace.capture.doctor import diagnose

    found = diagnose(wait=wait)
    if as_json:
        from intxtrace.render import json

        print(json.document("doctor", found), end="")
    else:
        from rich.console import Console

        from intxtrace.render import host

        host.print_diagnosis(found, Console())
    raise typer.Exit(0 if found.ready else 1)
