"""Memory of every command that streams, at one size and at eight times that: it must not grow with the file.

Beside it: pandas, which holds the same trace. Exit status 1 if a command's memory grows by a third of what that one's
does: it would hold events, or rows.

Run: python -m tests.benchmarks.bench_streaming [MILLIONS]  (of events, 0.5; the compiled code's own pages come first)
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from intxtrace.importers import compile as scanners
from intxtrace.reconstruct import compile as reconstructor
from tests.benchmarks.bench_growth import measure
from tests.benchmarks.bench_import import Repeated, ndjson
from tests.fuzz.recordings import simple, text_of
from tests.generate import MIX, write
from tests.kernel_texts import texts

TIMES = 8
SHARE = 1 / 3
PEER = "naive pandas table"

EXPORTS = (
    *((form, "--table", table) for form in ("parquet", "csv", "jsonl") for table in ("interrupts", "states", "events")),
    ("perfetto",),
    ("openmetrics",),
)


def commands(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield what is run of a folder's files: a name, and the arguments of intxtrace."""
    trace, out = str(folder / "long.intx"), str(folder / "out")
    for form, *options in EXPORTS:
        yield (
            " ".join(["export", form, *options[1:]]),
            ["export", trace, "--format", form, *options, "-o", out, "--force"],
        )
    for name in ("summary", "info", "devices", "interrupts"):
        yield f"{name} --json", [name, trace, "--json"]
    yield "info --repair", ["info", trace, "--repair", out, "--force"]
    yield "report", ["report", trace, "-o", out, "--force"]
    for name in RECORDINGS:
        yield f"import {name}", ["import", str(folder / name), "-o", out, "--force"]
    for names in (("vm1.log", "vm2.log"), ("kernel.txt", "vm1.log"), ("vm1.log", "long.intx")):
        files = [str(folder / name) for name in names]
        yield f"import {' '.join(names)}", ["import", *files, "-o", out, "--force"]


def again(text: bytes, lines: int) -> Iterator[bytes]:
    """Repeat whole lines until there are so many."""
    stream = Repeated(text, max(1, lines // text.count(b"\n")))
    while part := stream.read(1 << 20):
        yield part


def ftrace(lines: int) -> Iterator[bytes]:
    text = texts()["deb-6.12/storm"]
    return again(b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"#")), lines)


def instant(begin: int, number: int) -> tuple[int, int]:
    """Return seconds and microseconds of an interrupt, about every 10 ms: of a strict beat no two can be told apart."""
    return divmod(begin * 1_000_000 + number * 10_000 + number * 7919 % 9000, 1_000_000)


def log_of(address: bytes) -> Callable[[int], Iterator[bytes]]:
    """Return what makes a log of one device."""

    def made(lines: int) -> Iterator[bytes]:
        for number in range(lines // 2):
            seconds, micros = instant(1_795_374_412, number)
            yield (
                b"124@%d.%06d:vfio_intx_interrupt  (%b) Pin A\n129@%d.%06d:vfio_intx_eoi  (%b) EOI\n"
                % (seconds, micros, address, seconds, micros + 30, address)
            )

    return made


def kernel(lines: int) -> Iterator[bytes]:
    """Make the kernel's side of it."""
    for number in range(lines // 3):
        seconds, micros = instant(412, number)
        yield (
            b"  <idle>-0     [001] d.h1. %d.%06d: irq_handler_entry: irq=21 name=vfio-intx(0000:00:05.0)\n"
            b"  <idle>-0     [001] d.h1. %d.%06d: irq_handler_exit: irq=21 ret=handled\n"
            b"  CPU 0/KVM-129     [000] ..... %d.%06d: kvm_set_irq: gsi 22 level 0 source 0\n"
            % (seconds, micros, seconds, micros, seconds, micros + 35)
        )


RECORDINGS: dict[str, Callable[[int], Iterator[bytes]]] = {
    "ftrace.txt": ftrace,
    "ftrace.txt.gz": ftrace,
    "qemu.log": lambda lines: again(text_of("qemu-7.2-userspace.log.gz"), lines),
    "bpftrace.ndjson": lambda lines: ndjson(lines // 4),
    "qemu.simple": lambda lines: simple(lines // 4),
}
MERGED: dict[str, Callable[[int], Iterator[bytes]]] = {
    "vm1.log": log_of(b"0000:00:05.0"),
    "vm2.log": log_of(b"0000:00:06.0"),
    "kernel.txt": kernel,
}


def fill(folder: Path, events: int) -> None:
    """Write the files."""
    write(folder / "long.intx", events, MIX)
    for name, made in (RECORDINGS | MERGED).items():
        path = folder / name
        with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as file:
            for part in made(events):
                file.write(part)


CHILD = """
import sys
from pathlib import Path
from intxtrace.__main__ import main
status = main(sys.argv[1:])
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(status)
"""
"""Not getrusage: its maximum begins with the parent's."""


def peak(arguments: list[str]) -> float:
    """Run a command; return the MB that were resident at most."""
    command = [sys.executable, "-c", CHILD, *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return int(done.stderr.split()[-1]) / 1024


def main(millions: float) -> int:
    """Run everything at both sizes, and print figures."""
    reconstructor.prepare()  # To compile takes more memory than anything else.
    scanners.prepare()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / "one", Path(name) / "more"]
        for folder, times in zip(folders, (1, TIMES), strict=True):
            folder.mkdir()
            fill(folder, int(millions * 1e6 * times))
        held = [measure(PEER, folder / "long.intx")[1] for folder in folders]
        print(
            f"{PEER}: {held[0]:.0f} and {held[1]:.0f} MB at {millions} M events and {TIMES} times as many", flush=True
        )
        grown = []
        for (what, first), (_, second) in zip(*map(commands, folders), strict=True):
            sizes = [peak(first), peak(second)]
            ratio = (sizes[1] - sizes[0]) / (held[1] - held[0])
            print(f"  {what}: {sizes[0]:.0f} and {sizes[1]:.0f} MB: {ratio:.2f} of the growth of pandas", flush=True)
            if ratio > SHARE:
                grown.append(what)
    if grown:
        print(f"grows with the file: {', '.join(grown)}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.5))
