"""`intxtrace recipe`: the commands that make a recording where bcc cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intxtrace.cli.completion import among

if TYPE_CHECKING:
    from intxtrace.recipes.probes import Members
    from intxtrace.recipes.scripts import Qemu

KINDS = ("tracefs", "trace-cmd", "perf", "bpftrace", "qemu-log")


def recipe(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help=f"What to record with: {', '.join(KINDS)}.", autocompletion=among(*KINDS)),
    ],
    qemu: Annotated[
        list[Path] | None,
        typer.Option(
            "--qemu",
            metavar="BINARY",
            help="Look for functions in this QEMU binary, of this or another host (may be repeated; default: those "
            "that run here or are installed).",
        ),
    ] = None,
) -> None:
    """Print a shell script that records on a host without bcc.

    What it records imports fully. This command changes nothing; the script records when it is run, as root, on the VM
    host. Where QEMU's functions are is found in the binary, where structures keep what is read in this kernel's type
    information.
    """
    from intxtrace.cli.output import note
    from intxtrace.errors import IntxtraceError
    from intxtrace.recipes.scripts import RECIPES, Host

    if kind not in RECIPES:
        raise IntxtraceError(f"there is no recipe {kind}; choose from {', '.join(KINDS)}")
    members, kernel = _members()
    qemus = _binaries(qemu)
    if not qemus:
        note("no QEMU was found here; name the VM host's with --qemu, or its side of an interrupt is not recorded")
    print(RECIPES[kind](Host(qemus, members, kernel)), end="")


def _members() -> tuple[Members, str | None]:
    """Return this kernel's structure offsets and its release; where it does not tell them, those measured elsewhere."""
    import platform

    from intxtrace.capture.btf import Btf
    from intxtrace.errors import IntxtraceError
    from intxtrace.recipes.probes import MEASURED

    try:
        btf = Btf()
    except IntxtraceError:
        return MEASURED, None
    try:
        found = {name: btf.offset(*name.split(".")) for name in MEASURED}
    finally:
        btf.close()
    known = {name: offset for name, offset in found.items() if offset is not None}
    return (known, platform.release()) if known.keys() == MEASURED.keys() else (MEASURED, None)


def _binaries(named: list[Path] | None) -> tuple[Qemu, ...]:
    """Find the QEMU binaries: those that are named, or that run or are installed here, each once."""
    from intxtrace import files
    from intxtrace.capture.qemu_functions import find_functions
    from intxtrace.cli.output import note
    from intxtrace.errors import IntxtraceError
    from intxtrace.recipes.scripts import Qemu

    found: dict[str, Qemu] = {}
    for path in named if named is not None else _on_this_host():
        try:
            qemu = Qemu.of(find_functions(path.absolute()))
        except IntxtraceError as error:
            if named is not None:
                raise
            note(str(error))
            continue
        except OSError as error:
            raise IntxtraceError(files.sentence(error, path)) from None
        if not qemu.binary.functions:
            problem = f"{path} has none of QEMU's vfio functions; name the binary of QEMU itself"
            if named is not None:
                raise IntxtraceError(problem)
            note(problem)
            continue
        found.setdefault(qemu.sha256, qemu)
    return tuple(found.values())


def _on_this_host() -> list[Path]:
    from intxtrace.capture.host import installed_qemu, processes

    running = []
    for process in processes():
        try:
            running.append(process.exe.readlink())
        except OSError:
            continue
    return [*installed_qemu(), *(path for path in running if path.is_file())]
