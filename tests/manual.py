"""`python -m tests.manual`: makes the manual page anew, its commands and options from the commands themselves.

The page is kept beside its template, so that a package needs nothing but it; a test holds it to what is made here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import intxtrace
from intxtrace.cli import app

PAGE = Path(__file__).parents[1] / "intxtrace" / "man" / "intxtrace.1"


def escaped(text: str) -> str:
    """Write a text so that roff shows each character as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("~", "\\(ti").replace("^", "\\(ha").replace("…", "...")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in text.split("\n"))


def filled(text: str) -> str:
    """Write a paragraph: a line for each sentence, which roff wants, and no longer than it wants them."""
    sentences = re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(text.split()))
    lines = (line for one in sentences for line in textwrap.wrap(one, 68, break_on_hyphens=False))
    return escaped("\n".join(lines))


def paragraphs(text: str) -> str:
    """Write paragraphs, which blank lines divide."""
    return "\n.PP\n".join(map(filled, re.split(r"\n\s*\n", text.strip())))


def examples(epilog: str) -> str:
    """Write the examples at the end of a help text."""
    lines = [line.strip() for line in epilog.partition("Examples:")[2].splitlines() if line.strip()]
    shown = escaped("\n".join(lines))
    return f".PP\nExamples:\n.PP\n.RS 4\n.nf\n{shown}\n.fi\n.RE"


def synopsis(context: Any, name: str) -> str:
    """Write how a command is called: arguments in italics."""
    words = [escaped(word) for word in context.command.collect_usage_pieces(context)]
    return f".B {escaped(name)}\n.RI {' '.join(roman_or_italic(word) for word in words)}".rstrip()


def roman_or_italic(word: str) -> str:
    """Alternate roman and italic for .RI: brackets are roman, what stands in them is italic."""
    match = re.fullmatch(r"([\[{]?)(.*?)([]}]?(?:\.\.\.)?)", word)
    assert match
    opening, inner, closing = match.groups()
    return f'"{opening.replace("{", "")}" "{inner}" "{closing.replace("}", "")} " ""'


def parameters(context: Any) -> Iterator[str]:
    """Write each argument and option with what its help says."""
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or (parameter.name == "help" and context.parent is not None):
            continue  # each command takes --help: it is said once
        value = "" if getattr(parameter, "is_flag", False) else escaped(parameter.metavar or parameter.name)
        if parameter.param_type_name == "argument":
            tag = f".I {value}"
        else:
            names = "\\fR, \\fP".join(escaped(name) for name in parameter.opts)
            tag = f'.BI "{names}{" " if value else ""}" {value}'.rstrip()
        yield f".TP\n{tag}\n{filled(record[1])}"


def command(context: Any, name: str) -> Iterator[str]:
    """Write a command: synopsis, what it does, its parameters and examples."""
    yield f".SS {escaped(name)}"
    yield synopsis(context, f"intxtrace {name}")
    yield ".PP"
    yield paragraphs(context.command.help)
    yield from parameters(context)
    yield examples(context.command.epilog)


def page() -> str:
    """Write the whole page."""
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="intxtrace")
    commands: dict[str, Any] = vars(root)["commands"]
    parts = {
        "VERSION": intxtrace.__version__,
        "SYNOPSIS": synopsis(context, "intxtrace"),
        "COMMANDS": "\n".join(
            line
            for name, one in commands.items()
            for line in command(typer.Context(one, parent=context, info_name=name), name)
        ),
        "OPTIONS": "\n".join(parameters(context)),
    }
    text = PAGE.with_suffix(".1.in").read_text()
    return re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], text)


if __name__ == "__main__":
    PAGE.write_text(page())
