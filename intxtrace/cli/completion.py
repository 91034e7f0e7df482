"""What completes on the command line: the values of options and arguments, and the scripts that shells load.

typer finds what a word stands for; its own scripts for shells are not used. The one for zsh evaluates what it is
given, so that the name of a VM or of a file could run a command, and the one for bash splits a PCI address at its
colons. Those in `intxtrace/completions` ask with the line up to the cursor, and get a value a line, with what it
means after a tab.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

ASKED = "_INTXTRACE_COMPLETE"
"""Which shell asks; the line is in _TYPER_COMPLETE_ARGS, which typer reads."""
SCRIPTS = {"bash": "intxtrace.bash", "zsh": "_intxtrace", "fish": "intxtrace.fish"}
_PLAIN = re.compile(r"[\w.:@+-]+")
"""What needs no quoting in any shell: what is completed stands on the command line as it is."""


def answer(app: typer.Typer) -> None:
    """Print what completes the line that a shell asks about."""
    from typer._completion_classes import FishComplete
    from typer.main import get_command

    asked = FishComplete(get_command(app), {}, "intxtrace", ASKED)
    for item in asked.get_completions(*asked.get_completion_args()):
        print(item.value, " ".join((item.help or "").split()), sep="\t")


def among(*words: str) -> Callable[[str], list[str]]:
    """Complete one of these words."""

    def complete(incomplete: str) -> list[str]:
        return list(words)

    return complete


def traces(incomplete: str) -> list[tuple[str, str]]:
    """Complete a trace file's name, or a folder's; what begins with ~ is left to the shell."""
    folder, _, begin = incomplete.rpartition("/")
    place = Path(folder or ("/" if incomplete.startswith("/") else "."))
    found = []
    try:
        for entry in sorted(os.scandir(place), key=lambda one: one.name):
            name = incomplete.removesuffix(begin) + entry.name
            if (entry.name.startswith(".") and not begin.startswith(".")) or not name.isprintable():
                continue
            if entry.is_dir():
                found.append((f"{name}/", "a folder"))
            elif entry.name.endswith(".intx"):
                found.append((name, "a trace"))
    except OSError:
        return []
    return found


def vms(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a VM that runs here."""
    from intxtrace.capture.host import processes

    return [(one.name, f"pid {one.pid}") for one in processes() if _PLAIN.fullmatch(one.name)]


def pids(incomplete: str) -> list[tuple[str, str]]:
    """Complete the pid of a VM that runs here."""
    from intxtrace.capture.host import processes
    from intxtrace.units import printable

    return [(str(one.pid), printable(one.name, 40)) for one in processes()]


def devices(incomplete: str) -> list[tuple[str, str]]:
    """Complete the PCI address of a device that a VM of this host has."""
    from intxtrace.capture.host import processes
    from intxtrace.units import printable

    return [(bdf, printable(one.name, 40)) for one in processes() for bdf in one.devices]


def completion(
    shell: Annotated[
        str,
        typer.Argument(metavar="SHELL", help=f"One of {', '.join(SCRIPTS)}.", autocompletion=among(*SCRIPTS)),
    ],
) -> None:
    """Print the script by which a shell completes what is typed.

    Commands, options and their values: traces, VMs and devices of this host, words. It changes nothing: load it, or
    put it where the shell looks for such scripts. A package that is installed for the whole system has put it there.
    """
    from importlib.resources import files

    from intxtrace.errors import IntxtraceError

    if shell not in SCRIPTS:
        raise IntxtraceError(f"there is no completion for {shell}; choose from {', '.join(SCRIPTS)}")
    print((files("intxtrace") / "completions" / SCRIPTS[shell]).read_text(), end="")
