"""How much the drain takes, and what it costs: the mapped ring against bcc's own callback, in one run.

A raw tracepoint emits one record for every getppid(2) of a child process that does nothing else. Each reader drains
for the same time; what the kernel emitted, what was delivered and what was lost must add up exactly.

Run as root: python -m tests.benchmarks.bench_drain [SECONDS]
"""

from __future__ import annotations

import ctypes as ct
import itertools
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intxtrace.capture import kernel
from intxtrace.capture.btf import Btf
from intxtrace.capture.program import Planner, compile_source
from intxtrace.capture.recording import POLL_SECONDS
from intxtrace.capture.ring import CallbackRing, Drain, MappedRing, Source
from intxtrace.events import Kind

RING_BYTES = 16 << 20
_PROGRAM = """
BPF_PERCPU_ARRAY(emitted, u64, 1);
int bench(unsigned long long *ctx) {
  if (ctx[1] != GETPPID || bpf_get_current_pid_tgid() >> 32 != PRODUCER)
    return 0;
  int zero = 0;
  u64 *n = emitted.lookup(&zero);
  if (!n)
    return 0;
  struct fields v = {.device = 1, .arg0 = ++*n};
  emit(KIND_HANDLER_ENTRY, 0, &v);
  return 0;
}
"""
_GETPPID = {"x86_64": 110, "aarch64": 173}


@dataclass
class Run:
    """What one reader did."""

    seconds: float
    emitted: int
    delivered: int
    lost: int
    cpu: float
    in_order: bool


def _produce(go: object, stop: object) -> None:
    getppid = os.getppid
    go.wait()  # type: ignore[attr-defined]
    while not stop.is_set():  # type: ignore[attr-defined]
        for _ in itertools.repeat(None, 100_000):
            getppid()


def measure(open_source: Callable[[object], Source], seconds: float) -> Run:
    """Drain a full-rate producer for so long, then let it stop, drain the rest and count."""
    context = multiprocessing.get_context("fork")
    go, stop = context.Event(), context.Event()
    producer = context.Process(target=_produce, args=(go, stop), daemon=True)
    producer.start()
    btf = Btf()
    try:
        source = Planner(btf, {}).plan("none", RING_BYTES).source
    finally:
        btf.close()
    head = f"#define PRODUCER {producer.pid}\n#define GETPPID {_GETPPID[os.uname().machine]}\n"
    bpf = compile_source(head + source + _PROGRAM)
    start = bpf_code(bpf, "bench")
    program = kernel.load_program(start, "bench", kernel.PROG_RAW_TRACEPOINT)
    ring = Drain(open_source(bpf))
    link = kernel.open_raw_tracepoint(program, "sys_enter")
    delivered = 0
    in_order = True
    last = 0
    try:
        before = resource.getrusage(resource.RUSAGE_SELF)
        begun = time.monotonic()
        go.set()
        done_at = begun + seconds
        while True:
            events = ring.take()
            if len(events):
                delivered += len(events)
                times = events["ts"]
                in_order = in_order and int(times[0]) >= last and bool(np.all(times[1:] >= times[:-1]))
                last = int(times[-1])
            now = time.monotonic()
            if now >= done_at:
                break
            time.sleep(POLL_SECONDS)
        elapsed = now - begun
        after = resource.getrusage(resource.RUSAGE_SELF)
        stop.set()
        producer.join()
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        at_the_end = delivered
        while len(events := ring.take(everything=True)):
            delivered += len(events)
        emitted = sum(bpf["emitted"][ct.c_int(0)])
        lost = sum(cpu_loss.count for cpu_loss in bpf["losses"][ct.c_int(Kind.HANDLER_ENTRY)])
    finally:
        os.close(link)
        os.close(program)
        ring.close()
        bpf.cleanup()
        producer.kill()
    assert emitted == delivered + lost, (emitted, delivered, lost)
    return Run(elapsed, emitted, at_the_end, lost, cpu, in_order)


def bpf_code(bpf: object, symbol: str) -> bytes:
    """Take the instructions of a compiled program."""
    from intxtrace.capture.bcc_import import import_bcc

    lib, module = import_bcc().lib, bpf.module  # type: ignore[attr-defined]
    return ct.string_at(lib.bpf_function_start(module, symbol.encode()), lib.bpf_function_size(module, symbol.encode()))


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    readers: dict[str, Callable[[object], Source]] = {
        "mapped ring": lambda bpf: MappedRing(bpf["events"].map_fd, RING_BYTES),  # type: ignore[index]
        "bcc callback": CallbackRing,
    }
    costs = {}
    for name, open_source in readers.items():
        run = measure(open_source, seconds)
        costs[name] = run.cpu / max(run.delivered, 1) * 1e6
        print(
            f"{name:12}: {run.delivered / run.seconds / 1e6:5.2f} M events/s delivered for {run.seconds:.1f} s, "
            f"{run.lost:,} of {run.emitted:,} lost, {costs[name]:.3f} us CPU per event, "
            f"order {'kept' if run.in_order else 'BROKEN'}"
        )
    print(f"ratio: the callback costs {costs['bcc callback'] / costs['mapped ring']:.1f} times the mapped ring's CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
