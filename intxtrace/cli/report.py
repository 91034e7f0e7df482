"""`intxtrace report`: the latency report, one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intxtrace.cli.filters import Choice, with_filters
from intxtrace.cli.options import TraceFile


@with_filters
def report(
    trace: TraceFile,
    choice: Choice,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where to write it. Default: TRACE's name with .html, here."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the web browser.")] = False,
) -> None:
    """Write the latency report: one HTML file that needs no network."""
    from intxtrace import files
    from intxtrace.analysis import Options
    from intxtrace.api import open_trace
    from intxtrace.cli import output
    from intxtrace.errors import IntxtraceError
    from intxtrace.render import html
    from intxtrace.units import printable

    opened = open_trace(trace)
    target = Path(trace.stem + ".html") if out is None else out
    if target.exists() and target.samefile(trace):
        raise IntxtraceError(f"{target} is the trace itself; write the report to another file")
    if not force and (target.exists() or target.is_symlink()):
        raise IntxtraceError(f"{target} exists; choose another name with -o, or overwrite it with --force")
    filters = choice.resolve(opened.metadata, opened.tables, lambda: opened.begin_at)
    page = html.write_report(output.summarised(opened, filters, Options(windows=html.WINDOWS))).encode()
    files.write_whole(target, page, force=force)
    print(f"wrote {printable(str(target))} ({len(page):,} bytes)")
    output.note_end(opened)
    if open_:
        _show(target)


def _show(page: Path) -> None:
    import webbrowser

    from intxtrace.cli import output

    address = page.resolve().as_uri()
    if not webbrowser.open(address):
        output.note(f"found no web browser to open it; open {address} in one")
