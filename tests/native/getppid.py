"""A real ring under full load, on any kernel with BPF: one record for every getppid(2) of a process of our own."""

from __future__ import annotations

import ctypes as ct
import os
import subprocess
import sys
from typing import Any, Self

from intxtrace.capture import kernel
from intxtrace.capture.bcc_import import import_bcc
from intxtrace.capture.btf import Btf
from intxtrace.capture.plan import Planner
from intxtrace.capture.program import compile_source
from intxtrace.events import Kind

_PROGRAM = """
BPF_ARRAY(producer, u32, 1);
BPF_ARRAY(emitted, u64, 1);
static __always_inline int on_getppid(unsigned long long *ctx) {
  int zero = 0;
  u32 *tgid = producer.lookup(&zero);
  u64 *n = emitted.lookup(&zero);
  if (ctx[1] != GETPPID || !tgid || !n || bpf_get_current_pid_tgid() >> 32 != *tgid)
    return 0;
  struct fields v = {.device = 1, .link = 2, .link2 = 3, .vm = 4, .arg0 = ++*n, .arg1 = 6, .value = -7, .aux = 8};
  return emit(KIND_HANDLER_ENTRY, FLAG_IN_UNMASK, &v);
}
int getppid_probe(unsigned long long *ctx) {
  unsigned long long began = run_begin();
  run_end(began, on_getppid(ctx), 0);
  return 0;
}
"""
_GETPPID = {"x86_64": 110, "aarch64": 173}
KIND = Kind.HANDLER_ENTRY

# Waits for a line, calls getppid so often (0: until it is killed), says so, and waits for the next.
_PRODUCER = """
import itertools, os, sys
getppid = os.getppid
for line in sys.stdin:
    for _ in itertools.repeat(None, int(line)) if int(line) else iter(int, 1):
        getppid()
    print(flush=True)
"""


class Getppid:
    """The probe and its producer. Use as a context manager."""

    def __init__(self, ring_bytes: int) -> None:
        btf = Btf()
        try:
            source = Planner(btf, {}).plan("none", ring_bytes).source
        finally:
            btf.close()
        self.ring_bytes = ring_bytes
        self.bpf: Any = compile_source(f"#define GETPPID {_GETPPID[os.uname().machine]}\n{source}{_PROGRAM}")
        lib, module = import_bcc().lib, self.bpf.module
        name = b"getppid_probe"
        code = ct.string_at(lib.bpf_function_start(module, name), lib.bpf_function_size(module, name))
        self._program = kernel.load_program(code, "getppid_probe", kernel.PROG_RAW_TRACEPOINT)
        self._link = kernel.open_raw_tracepoint(self._program, "sys_enter")
        self._producer = subprocess.Popen(
            [sys.executable, "-c", _PRODUCER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.bpf[b"producer"][ct.c_int(0)] = ct.c_uint32(self._producer.pid)

    def start(self, calls: int = 0) -> None:
        """Let the producer call getppid so often; 0: until `stop`."""
        assert self._producer.stdin
        self._producer.stdin.write(b"%d\n" % calls)
        self._producer.stdin.flush()

    def finish(self) -> None:
        """Wait until the calls are made."""
        assert self._producer.stdout
        self._producer.stdout.readline()

    def stop(self) -> None:
        """End the producer."""
        self._producer.kill()
        self._producer.wait()

    @property
    def emitted(self) -> int:
        """Records that the probe tried to send."""
        return int(self.bpf[b"emitted"][ct.c_int(0)].value)

    @property
    def lost(self) -> int:
        """Records that it could not send."""
        return sum(self.bpf[b"losses"][ct.c_int(KIND)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for pipe in (self._producer.stdin, self._producer.stdout):
            if pipe:
                pipe.close()
        os.close(self._link)
        os.close(self._program)
        self.bpf.cleanup()
