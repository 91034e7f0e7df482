"""The command line: one small module per command, which parses, calls and renders.

Only `typer` and the standard library are imported here and at the top of the command modules, so that `--help` is
instant; everything else is imported in the command that needs it.
"""

from __future__ import annotations

from typing import Annotated

import typer

import intxtrace
from intxtrace.cli import (
    completion,
    devices,
    doctor,
    export,
    import_,
    info,
    interrupts,
    live,
    recipe,
    record,
    report,
    schema,
    summary,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,  # it has its own: see intxtrace.cli.completion
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would take half of the time that --help has
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"intxtrace {intxtrace.__version__}")
        raise typer.Exit


def _examples(*lines: str) -> str:
    """Make the end of a help text; \\b keeps its lines as they are."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


@app.callback(
    epilog=_examples(
        "sudo intxtrace record -o trace.intx --duration 10s",
        "intxtrace summary trace.intx",
        "intxtrace report trace.intx --open",
    )
)
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Which way did each INTx interrupt of a passed-through PCI device take, and what did it cost?"""


app.command(
    epilog=_examples(
        "sudo intxtrace doctor",
        "sudo intxtrace doctor --wait && sudo intxtrace record --wait -o boot.intx",
        "sudo intxtrace doctor --json | jq '.data.binaries[].functions'",
    )
)(doctor.doctor)
app.command(
    epilog=_examples(
        "sudo intxtrace devices",
        "sudo intxtrace devices --json | jq '.data.vms[].devices[].mode'",
        "intxtrace devices trace.intx",
    )
)(devices.devices)
app.command(
    epilog=_examples(
        "sudo intxtrace record",
        "sudo intxtrace record -o slow.intx --vm win10 --duration 30s",
        "sudo intxtrace record --device 0000:01:00.0 --max-interrupts 10000",
        "sudo intxtrace record --wait --dry-run",
        "sudo intxtrace record --keep 60s --stop-when 'masked>5ms'",
        "sudo intxtrace record -- virsh start win10",
    )
)(record.record)
app.command(
    epilog=_examples(
        "sudo intxtrace live",
        "sudo intxtrace live --vm win10 --path userspace --window 30s",
        "sudo intxtrace live --once --json | jq '.data.devices[] | {vm, bdf, path, rate}'",
        "intxtrace live --replay trace.intx --speed 2",
    )
)(live.live)
app.command(
    name="import",
    epilog=_examples(
        "intxtrace import trace.txt -o trace.intx",
        "sudo cat /sys/kernel/tracing/trace | intxtrace import - -o now.intx",
        "intxtrace import /var/log/libvirt/qemu/win10.log.gz -o win10.intx",
        "intxtrace import trace.txt qemu.log -o both.intx",
        "intxtrace import trace.txt --map my_irq=qemu_interrupt --map my_eoi=qemu_eoi",
    ),
)(import_.import_)
app.command(
    epilog=_examples(
        "intxtrace recipe tracefs > record.sh",
        "sudo bash record.sh trace.txt 30 && intxtrace import trace.txt",
        "intxtrace recipe bpftrace --qemu /mnt/otherhost/usr/bin/qemu-system-x86_64",
    )
)(recipe.recipe)
app.command(
    epilog=_examples(
        "intxtrace info trace.intx",
        "intxtrace info trace.intx --json",
        "intxtrace info cut.intx --repair whole.intx",
    )
)(info.info)
app.command(
    epilog=_examples(
        "intxtrace summary trace.intx",
        "intxtrace summary trace.intx --vm guest1 --from 2 --to 5.5",
        "intxtrace summary trace.intx --json | jq .data.devices",
    )
)(summary.summary)
app.command(
    epilog=_examples(
        "intxtrace interrupts trace.intx --limit 50",
        "intxtrace interrupts trace.intx --min 1ms --path userspace",
        "intxtrace interrupts trace.intx --by time --from 2026-01-31T12:00:00 --json",
    )
)(interrupts.interrupts)
app.command(
    epilog=_examples(
        "intxtrace report trace.intx",
        "intxtrace report trace.intx --open",
        "intxtrace report trace.intx -o report.html --device 0000:01:00.0",
    )
)(report.report)
app.command(
    epilog=_examples(
        "intxtrace export trace.intx --format parquet -o trace.parquet",
        "intxtrace export trace.intx --format csv --table states -o -",
        "intxtrace export trace.intx --format perfetto --vm guest1 --from 2 --to 5",
        "intxtrace export trace.intx --format openmetrics -o intx.prom --force",
    )
)(export.export)
app.command(epilog=_examples("intxtrace schema", "intxtrace schema summary > summary.schema.json"))(schema.schema)
app.command(
    epilog=_examples(
        'eval "$(intxtrace completion bash)"',
        "intxtrace completion zsh > ~/.zfunc/_intxtrace",
        "intxtrace completion fish > ~/.config/fish/completions/intxtrace.fish",
    )
)(completion.completion)
