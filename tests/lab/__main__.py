"""`python -m tests.lab`: see the package's docstring."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

from intxtrace.__main__ import main as intxtrace_main
from tests.lab import recipes as recipes_
from tests.lab.compare import compare, show
from tests.lab.findings import GUESTS as FAULTY
from tests.lab.findings import diagnosed, named, summarise, surveyed
from tests.lab.guest import GUESTS
from tests.lab.host import run_host
from tests.lab.packages import KERNELS, QEMUS, LabError
from tests.lab.scenario import Recorder, Scenario, recorder_of_this_checkout, run_scenario

BEGUN = time.monotonic()


def progress(text: str) -> None:
    """Print lines with the seconds since the start before each."""
    for line in text.splitlines():
        print(f"[{time.monotonic() - BEGUN:6.1f}] {line}", flush=True)


def main() -> int:
    arguments = _parser().parse_args()
    try:
        status: int = arguments.run(arguments)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return status


def shell_script(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="intxtrace-lab-") as temporary:
        share = arguments.share or Path(temporary)
        result = run_host(arguments.file, share, arguments.kernel, arguments.timeout, on_output=progress)
    progress(f"exit status {result.status}; L1 booted in {result.boot_seconds:.1f} s")
    return result.status


def run(arguments: argparse.Namespace) -> int:
    recorder = None
    if arguments.recorder:
        recorder = Recorder(shlex.split(arguments.recorder), arguments.ready, arguments.recording == "each")
    guests = arguments.guests.split(",")
    scenario = Scenario(guests, arguments.pings, arguments.interval, recorder, qemu=arguments.qemu)
    result = run_scenario(scenario, arguments.out, arguments.kernel, arguments.timeout, progress)
    progress(f"done; L1 booted in {result.host.boot_seconds:.1f} s, boots: {result.host.boots}")
    return 0


def truth(arguments: argparse.Namespace) -> int:
    """Record guests, compare with the ground truth, write a report of each."""
    guests, recorder = arguments.guests.split(","), recorder_of_this_checkout(each=True)
    scenario = Scenario(guests, arguments.pings, arguments.interval, recorder, qemu=arguments.qemu)
    result = run_scenario(scenario, arguments.out, arguments.kernel, arguments.timeout, progress)
    wrong = 0
    for found, recording in zip(result.truths, result.recordings, strict=True):
        if recording is None:
            raise LabError(f"{found.name} has no recording.")
        trace = recording / "trace.intx"
        rows = compare(trace, found)
        print("\n" + show(f"{found.name} on Linux {found.kernel}, {found.qemu_version}", rows))
        wrong += sum(not row.holds for row in rows)
        intxtrace_main(["report", str(trace), "-o", str(arguments.out / f"{found.name}.html")])
    print(f"\n{wrong} figures are wrong" if wrong else "\nevery figure holds")
    return 1 if wrong else 0


def findings(arguments: argparse.Namespace) -> int:
    """Record guests with one thing wrong each, hold what is named and what `devices` says against what is so."""
    guests, recorder = arguments.guests.split(","), recorder_of_this_checkout(each=True)
    scenario = Scenario(guests, recorder=recorder, qemu=arguments.qemu, survey=True)
    result = run_scenario(scenario, arguments.out, arguments.kernel, arguments.timeout, progress)
    wrong = 0
    for guest, found, folder, recording in zip(guests, result.truths, result.folders, result.recordings, strict=True):
        if recording is None:
            raise LabError(f"{found.name} has no recording.")
        trace = recording / "trace.intx"
        summary = summarise(trace)
        rows = [*named(guest, summary, found), *surveyed(guest, folder, found, trace, summary)]
        if guest == "kernel":
            rows += diagnosed(folder, found)
        print("\n" + show(f"{found.name} on Linux {found.kernel}, {found.qemu_version}", rows))
        for finding in summary.findings:
            print(f"  {finding.severity}: {finding.name} · {finding.bdf}: {finding.title}")
        wrong += sum(not row.holds for row in rows)
    print(f"\n{wrong} figures are wrong" if wrong else "\nevery figure holds")
    return 1 if wrong else 0


def recipes(arguments: argparse.Namespace) -> int:
    """Record guests with recipes beside intxtrace, import, compare."""
    guests, wanted = arguments.guests.split(","), arguments.tools.split(",")
    if unknown := set(wanted) - set(recipes_.TOOLS):
        raise LabError(f"No recipe {', '.join(sorted(unknown))}: choose of {', '.join(recipes_.TOOLS)}.")
    wrong = 0
    for play in recipes_.PLAYS:
        tools = tuple(tool for tool in play if tool in wanted)
        if not tools:
            continue
        scenario = recipes_.scenario(guests, tools, arguments.qemu)
        folder = arguments.out / "+".join(tools)
        result = run_scenario(scenario, folder, arguments.kernel, arguments.timeout, progress)
        for found, rows, remarks in recipes_.compare_all(folder, result.truths, result.folders, tools):
            shown = show(f"{found.name} on Linux {found.kernel}, {found.qemu_version}", rows)
            print("\n" + "\n".join([shown, *remarks]))
            wrong += sum(not row.holds for row in rows)
    print(f"\n{wrong} figures are wrong" if wrong else "\nevery figure holds")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run", help="run guests and collect their truth")
    one.add_argument("--out", type=Path, required=True, help="a folder for everything that comes back")
    one.add_argument("--guests", default=",".join(GUESTS), help="which guests, in order, with commas")
    one.add_argument("--pings", type=int, default=10, help="per guest; about two interrupts each")
    one.add_argument("--interval", type=float, default=0.2, help="seconds between pings")
    one.add_argument("--recorder", help="a command to run in L1 while guests run; {out} is its folder")
    one.add_argument("--ready", default="", help="text in the recorder's output that says it is ready")
    one.add_argument("--recording", choices=("each", "one"), default="each", help="per guest, or one")
    one.add_argument("--timeout", type=float, default=900.0, help="seconds, from L1's boot on")
    one.set_defaults(run=run)
    table = commands.add_parser("truth", help="record guests and compare with their truth")
    table.add_argument("--out", type=Path, required=True, help="a new folder for recordings, truth and reports")
    table.add_argument("--guests", default=",".join(GUESTS), help="which guests, in order, with commas")
    table.add_argument("--pings", type=int, default=10, help="per guest; about two interrupts each")
    table.add_argument("--interval", type=float, default=0.2, help="seconds between pings")
    table.add_argument("--timeout", type=float, default=1200.0, help="seconds, from L1's boot on")
    table.set_defaults(run=truth)
    wrong = commands.add_parser("findings", help="guests with one thing wrong each: is it named, and is devices right")
    wrong.add_argument("--out", type=Path, required=True, help="a new folder for recordings, truth and what was said")
    wrong.add_argument("--guests", default=",".join(FAULTY), help="which guests, in order, with commas")
    wrong.add_argument("--timeout", type=float, default=2400.0, help="seconds, from L1's boot on")
    wrong.set_defaults(run=findings)
    beside = commands.add_parser("recipes", help="record with every recipe beside intxtrace, import, compare")
    beside.add_argument("--out", type=Path, required=True, help="a new folder for recordings and truth")
    beside.add_argument("--guests", default=",".join(recipes_.GUESTS), help="which guests, in order, with commas")
    beside.add_argument("--tools", default=",".join(recipes_.TOOLS), help="which recipes, with commas")
    beside.add_argument("--timeout", type=float, default=2400.0, help="seconds, from L1's boot on")
    beside.set_defaults(run=recipes)
    script = commands.add_parser("shell-script", help="boot L1 and run a script in it")
    script.add_argument("file", type=Path)
    script.add_argument("--share", type=Path, help="$SHARE in L1 (default: deleted afterwards)")
    script.add_argument("--timeout", type=float, default=600.0, help="seconds, from L1's boot on")
    script.set_defaults(run=shell_script)
    for command in (one, table, wrong, beside):
        command.add_argument("--qemu", choices=QEMUS, default="7.2", help="what guests run in (default: 7.2)")
    for command in (one, table, wrong, beside, script):
        command.add_argument("--kernel", choices=KERNELS, default="6.1")
    return parser


if __name__ == "__main__":
    sys.exit(main())
