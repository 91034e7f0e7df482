"""From the probe catalogue and what this kernel has to a plan: how each probe is attached, and what is compiled."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from importlib import resources

from intxtrace.capture import kernel
from intxtrace.capture.btf import Btf
from intxtrace.capture.catalogue import (
    ADDRESSES,
    CATALOGUE,
    OFFSETS,
    QEMU_CATALOGUE,
    RETURN,
    Call,
    Hook,
    QemuSpec,
    Spec,
)
from intxtrace.events import Kind, c_header
from intxtrace.trace.tables import Probe

# Where a probe context keeps the arguments and the return value, in words: struct pt_regs of x86-64, struct
# user_pt_regs of arm64 (arch/*/include/uapi/asm/ptrace.h).
_REGISTERS = {"x86_64": ((14, 13, 12, 11, 9, 8), 10), "aarch64": ((0, 1, 2, 3, 4, 5), 0)}

MACHINES = tuple(_REGISTERS)
"""Architectures that can be traced, as `uname -m` names them."""

BAR_MODES = ("count", "all", "none")
DEFAULT_RING_BYTES = 16 << 20
PAGE = 4096


@dataclass(frozen=True)
class Planned:
    """One program that is to be compiled and attached for a hook."""

    symbol: str
    """Name of the C function."""
    hook: Hook
    method: str
    module: str = ""
    btf_id: int = 0
    arguments: int = 0


@dataclass
class Plan:
    """How each probe of the catalogue is to be attached on this kernel."""

    probes: list[Probe]
    programs: dict[str, list[Planned]] = field(default_factory=dict)
    """By probe name."""
    source: str = ""
    numbers: dict[str, int] = field(default_factory=dict)
    """By program, its place in the map `costs`; of a QEMU probe that for the first binary, and so on."""
    qemu_programs: int = 0
    """How far apart a QEMU probe's places for two binaries are."""


def _c_call(call: Call, argument: list[str], result: str) -> str:
    words = [result if index == RETURN else argument[index] for index in call.arguments]
    return f"{call.function}({', '.join([*words, *map(str, call.constants)])})"


def _wrapper(symbol: str, call: Call, *, method: str, arguments: int, machine: str, number: str) -> str:
    """Write the program that takes the arguments out of its context and calls the probe's function.

    `number` is its place in the map `costs`, in C.
    """
    if method in ("kprobe", "kretprobe", "uprobe"):
        registers, result = _REGISTERS[machine]
        words = [f"ctx[{index}]" for index in registers]
        value = f"ctx[{result}]"
    else:
        words = [f"ctx[{index}]" for index in range(max(arguments, 6))]
        value = f"ctx[{arguments}]"
    return (
        f"int {symbol}(unsigned long long *ctx) {{ unsigned long long began = run_begin(); "
        f"run_end(began, {_c_call(call, words, value)}, {number}); return 0; }}\n"
    )


def _offset_lines(btf: Btf) -> tuple[list[str], dict[str, int | None]]:
    lines = []
    found: dict[str, int | None] = {}
    # Used under #ifdef: absent means that the kernel does it another way.
    optional = {"pci_sysdata_domain", "irqaction_name", "irqaction_dev_id", "work_struct_func"}
    for name, places in OFFSETS.items():
        offset = next((o for o in (btf.offset(*place) for place in places) if o is not None), None)
        found[name] = offset
        if offset is not None:
            lines.append(f"#define OFF_{name} {offset}")
        elif name not in optional:
            lines.append(f"#define OFF_{name} 0 /* not in this kernel: no probe that needs it is attached */")
    return lines, found


class Planner:
    """Decides, by what this kernel has, how each probe is attached."""

    def __init__(self, btf: Btf, symbols: dict[str, kernel.Symbol], demoted: frozenset[str] = frozenset()) -> None:
        """Take the kernel's BTF and symbols; `demoted` names probes whose fentry attachment failed."""
        self._btf = btf
        self._symbols = symbols
        self._demoted = demoted
        self._offset_lines, self._offsets = _offset_lines(btf)

    def plan(self, bar: str, ring_bytes: int) -> Plan:
        """Choose a method for each probe and write the source that bcc compiles."""
        plan = Plan([])
        for spec in CATALOGUE:
            if not self._needless(spec):
                self._plan_probe(plan, spec)
        kernel_symbols = [p.symbol for programs in plan.programs.values() for p in programs]
        qemu_symbols = [f"q_{spec.name}" for spec in qemu_specs(bar)]
        plan.numbers = {symbol: number for number, symbol in enumerate([*kernel_symbols, *qemu_symbols])}
        plan.qemu_programs = len(qemu_symbols)
        plan.source = self._source(plan, bar, ring_bytes)
        return plan

    def _needless(self, spec: Spec) -> bool:
        if not spec.unless:
            return False
        present = spec.unless.lstrip("!") in self._symbols
        return not present if spec.unless.startswith("!") else present

    def _plan_probe(self, plan: Plan, spec: Spec) -> None:
        row = Probe(len(plan.probes), name=spec.name, kinds=[kind.name for kind in spec.kinds])
        plan.probes.append(row)
        lacking = [need for need in spec.needs if not self._has(need)]
        if lacking:
            row.reason = f"this kernel's type information lacks {', '.join(lacking)}"
            return
        planned, reason = self._hooks(spec, spec.hooks)
        if planned is None and spec.fallback and spec.name + "/fallback" not in self._demoted:
            row.reason = reason
            planned, fallback_reason = self._hooks(spec, spec.fallback)
            row.state = "fallback"
            reason = f"{reason}; {fallback_reason}" if fallback_reason else reason
        elif planned is not None:
            row.state = "attached"
        if planned is None:
            row.state = "missing"
            row.reason = spec.optional or reason
            row.optional = bool(spec.optional)
            return
        plan.programs[spec.name] = planned
        row.method = planned[0].method
        row.target = f"{planned[0].module}:{planned[0].hook.target}" if planned[0].module else planned[0].hook.target
        row.resolved = {"fentry": "btf", "fexit": "btf"}.get(row.method, "kallsyms")

    def _has(self, need: str) -> bool:
        name = need.replace(".", "_")
        return self._offsets.get(name) is not None

    def _hooks(self, spec: Spec, hooks: tuple[Hook, ...]) -> tuple[list[Planned] | None, str]:
        planned = []
        for index, hook in enumerate(hooks):
            symbol = f"p{index}_{'fallback_' if hooks is spec.fallback else ''}" + "".join(
                c if c.isalnum() else "_" for c in spec.name
            )
            one, reason = self._hook(spec, hook, symbol)
            if one is None:
                return None, reason
            planned.append(one)
        return planned, ""

    def _hook(self, spec: Spec, hook: Hook, symbol: str) -> tuple[Planned | None, str]:
        if hook.where == "tracepoint":
            if f"__traceiter_{hook.target}" not in self._symbols:
                return None, f"this kernel has no tracepoint {hook.target}, or its module is not loaded"
            if "work" in hook.call.function and not {"irqfd_inject", "virqfd_inject"} <= self._visible():
                return None, "the addresses of irqfd_inject and virqfd_inject are not visible in /proc/kallsyms"
            return Planned(symbol, hook, "raw_tracepoint"), ""
        known = self._symbols.get(hook.target)
        if known is None:
            return None, f"the kernel has no function {hook.target}, or its module is not loaded, or it was inlined"
        function = None if spec.name in self._demoted else self._btf.function(hook.target)
        if function:
            method = "fentry" if hook.where == "entry" else "fexit"
            return Planned(symbol, hook, method, function.module, function.id, function.arguments), ""
        if "register_kprobe" not in self._symbols:
            why = "takes no fentry" if spec.name in self._demoted else "has no type information"
            return None, f"{hook.target} {why} and this kernel has no kprobes"
        method = "kprobe" if hook.where == "entry" else "kretprobe"
        return Planned(symbol, hook, method, known.module), ""

    def _visible(self) -> set[str]:
        return {name for name in ADDRESSES if name in self._symbols and self._symbols[name].address}

    def _source(self, plan: Plan, bar: str, ring_bytes: int) -> str:
        machine = os.uname().machine
        head = [
            *self._offset_lines,
            *(f"#define FN_{name} 0x{self._symbols[name].address:x}ull" for name in sorted(self._visible())),
            f"#define RING_PAGES {ring_bytes // PAGE}",
            f"#define PROGRAMS {len(plan.numbers)}",
            f"#define QEMU_PROGRAMS {plan.qemu_programs}",
            f"#define HANDLER_GETS_IRQ_CTX {int(self._offsets['vfio_pci_irq_ctx_vdev'] is not None)}",
            f"#define COUNT_BAR_ACCESS {int(bar == 'count')}",
            c_header(),
        ]
        body = (resources.files("intxtrace") / "bpf" / "intxtrace.c").read_text()
        tail = [
            _wrapper(
                p.symbol,
                p.hook.call,
                method=p.method,
                arguments=p.arguments,
                machine=machine,
                number=str(plan.numbers[p.symbol]),
            )
            for programs in plan.programs.values()
            for p in programs
        ]
        tail += [
            _wrapper(
                f"q_{spec.name}",
                spec.call,
                method="uprobe",
                arguments=6,
                machine=machine,
                number=f"{plan.numbers[f'q_{spec.name}']} + QEMU_PROGRAMS * this_slot()",
            )
            for spec in qemu_specs(bar)
        ]
        return "\n".join([*head, body, *tail])


def qemu_specs(bar: str) -> tuple[QemuSpec, ...]:
    """Return the QEMU probes, and the kinds they make, for a way of watching BAR accesses (one of `BAR_MODES`)."""
    specs = []
    for spec in QEMU_CATALOGUE:
        if Kind.QEMU_REGION_COUNT not in spec.kinds or bar == "count":
            specs.append(spec)
        elif bar == "all":
            specs.append(replace(spec, kinds=spec.kinds[:1]))
    return tuple(specs)


def wanted_symbols() -> set[str]:
    """Name every symbol that a plan may ask for."""
    names = {"register_kprobe", *ADDRESSES}
    for spec in CATALOGUE:
        for hook in (*spec.hooks, *spec.fallback):
            names.add(f"__traceiter_{hook.target}" if hook.where == "tracepoint" else hook.target)
    return names
