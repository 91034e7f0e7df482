"""The recipes as shell scripts. Which function a kernel has, and in which module, a script looks up when it runs."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import intxtrace
from intxtrace.capture.qemu_functions import QemuBinary
from intxtrace.recipes.probes import ALWAYS, FILTERS, GROUPS, KERNEL, MEASURED, Arg, KernelProbe, Members, qemu_probes
from intxtrace.units import printable


@dataclass(frozen=True)
class Qemu:
    """One QEMU binary: what the finder found, and the file that it looked at."""

    binary: QemuBinary
    sha256: str
    logs: bool
    """It can write its trace events to a log: it was built with the log backend."""

    @classmethod
    def of(cls, binary: QemuBinary) -> Qemu:
        """Look at the file once more, for what a script must check and what the log needs.

        Raises:
            OSError: it cannot be read any more.
        """
        digest, logs, tail = hashlib.sha256(), False, b""
        with Path(binary.path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                # The format of the log backend: the event's name, then its own format (tracetool/backend/log.py).
                logs = logs or b"vfio_intx_interrupt  (%s) Pin %c" in tail + block
                tail = block[-64:]
        return cls(binary, digest.hexdigest(), logs)


@dataclass(frozen=True)
class Host:
    """What a recipe is made for."""

    qemus: tuple[Qemu, ...]
    members: Members
    kernel: str | None
    """Release of the kernel whose type information gave `members`; None: they are `probes.MEASURED`. On other kernels
    a script takes what was measured."""


def _head(kind: str, host: Host, needs: str, made: str) -> list[str]:
    return [
        "#!/bin/bash",
        f"# Made by intxtrace {intxtrace.__version__}: intxtrace recipe {kind}",
        "# Run it as root on the VM host:  bash THIS [OUT [SECONDS]]",
        f"# It records until Ctrl-C, or for SECONDS, {made}. Afterwards: intxtrace import OUT",
        f"# It needs {needs}. All probes go when it ends.",
        "set -u; umask 077; export LC_ALL=C",
        f"out=${{1:-intx-{kind}.txt}} seconds=${{2:-}}",
        'die() { echo "$0: $*" >&2; exit 1; }',
        '[ ! -e "$out" ] || die "$out exists; name another file"',
        '[ "$(id -u)" = 0 ] || die "recording needs root"',
        '[ "$(uname -m)" = x86_64 ] || die "the registers in this script are those of x86-64"',
        *_kernel_check(host),
    ]


def _kernel_check(host: Host) -> list[str]:
    known = "" if host.kernel is None else f"{shlex.quote(host.kernel)} | "
    return [
        *([] if host.kernel is None else ["# Structure offsets of this kernel: from its own type information."]),
        "# Those of others: as measured on 4.15 to 6.18; those of Linux 7.0 are others, and no symbol tells.",
        "case $(uname -r) in",
        f"  {known}[0-6].*) ;;",
        '  *) die "made without this kernel\'s type information; make it on this host" ;;',
        "esac",
    ]


def _symbols() -> list[str]:
    names = sorted({probe.hook.target for probe in KERNEL})
    return [
        "# Which functions this kernel has, and in which module.",
        "declare -A target=()",
        'while read -r symbol module; do [ -z "$symbol" ] || target[$symbol]=${module:+$module:}$symbol; done <<< "$(',
        "  awk -v names='" + " ".join(names) + "' '",
        "    BEGIN { split(names, list); for (i in list) wanted[list[i]] = 1 }",
        '    $2 ~ /^[tTwW]$/ && ($3 in wanted) { gsub(/[][]/, "", $4); print $3, $4 }\' /proc/kallsyms)"',
        'have() { [ -n "${target[$1]:-}" ]; }',
    ]


def _tracefs(group: str) -> list[str]:
    return [
        "tracefs=/sys/kernel/tracing",
        '[ -e "$tracefs/kprobe_events" ] || tracefs=/sys/kernel/debug/tracing',
        '[ -e "$tracefs/kprobe_events" ] ||',
        '  die "no kprobe_events: the kernel has no kprobes, or: mount -t tracefs nodev /sys/kernel/tracing"',
        f'for folder in "$tracefs"/events/{group} "$tracefs"/events/{group}qemu*; do',
        '  [ ! -d "$folder" ] || die "$folder is there already: is another recording running?"',
        "done",
    ]


def _qemu_links(host: Host) -> list[str]:
    """A link for each binary: neither uprobe_events nor bpftrace takes a path with a space."""
    lines = ["work=$(mktemp -d /tmp/intxtrace.XXXXXX) || exit 1"]
    if not host.qemus:
        return [*lines, "# No QEMU binary was found: name one with --qemu. The kernel's side is complete without."]
    lines += [
        "# A probe in the middle of an instruction would crash the VM: offsets are used for the very same binary only.",
        "use() {  # NUMBER SHA256 PATH",
        '  if [ "$(sha256sum < "$3" 2> /dev/null)" != "$2  -" ]; then',
        '    echo "$0: $3 is not the binary that this was made for: its functions are not recorded; make it again" >&2',
        "    return 1",
        "  fi",
        '  ln -s -- "$3" "$work/qemu$1"',
        "}",
    ]
    return lines


def _quote(path: Path) -> str:
    return shlex.quote(os.fsdecode(path))


def _definitions(host: Host, group: str, *, exits: bool) -> list[str]:
    """Commands that define all probes for ftrace in a group of events, and fill `events` and `filter`."""
    lines = [
        "events=() lacking=()",
        "declare -A filter=()",
        "clean() {",
        '  for event in "${events[@]}"; do',
        "    case $event in",
        f'      {group}/*) echo "-:$event" >> "$tracefs/kprobe_events" ;;',
        f'      {group}qemu*) echo "-:$event" >> "$tracefs/uprobe_events" ;;',
        "    esac",
        "  done 2> /dev/null",
        '  rm -rf -- "$work"',
        "}",
        "trap clean EXIT",
        "kprobe() {  # EVENT p|r FUNCTION ARGUMENTS",
        f'  if have "$3" && echo "$2:{group}/$1 ${{target[$3]}} $4" >> "$tracefs/kprobe_events"; then',
        f'    events+=("{group}/$1")',
        "  else",
        '    lacking+=("$3")',
        "    return 1",
        "  fi",
        "} 2> /dev/null",
        "tracepoint() {  # GROUP/NAME",
        '  [ -d "$tracefs/events/$1" ] && case " ${events[*]} " in *" $1 "*) ;; *) events+=("$1") ;; esac',
        "}",
        "uprobe() {  # NUMBER EVENT OFFSET ARGUMENTS",
        f'  if echo "p:{group}qemu$1/$2 $work/qemu$1:$3 $4" >> "$tracefs/uprobe_events"; then',
        f'    events+=("{group}qemu$1/$2")',
        "  else",
        '    lacking+=("QEMU: $2")',
        "  fi",
        "} 2> /dev/null",
        *_kernel_block(host, _as_kprobe),
    ]
    always = [*ALWAYS, *(["irq:irq_handler_exit"] if exits else [])]
    lines += [f"tracepoint {name.replace(':', '/')}" for name in always]
    lines += [f"filter[{name.replace(':', '/')}]={shlex.quote(text)}" for name, text in FILTERS.items()]
    for number, qemu in enumerate(host.qemus):
        probes, missing = qemu_probes(qemu.binary)
        lines += _about(qemu, missing)
        lines.append(f"if use {number} {qemu.sha256} {_quote(qemu.binary.path)}; then")
        for probe in probes:
            lines.append(
                f"  uprobe {number} {probe.event} {probe.function.offset:#x} {shlex.quote(probe.for_ftrace())}"
            )
            if probe.condition:
                lines.append(f"  filter[{group}qemu{number}/{probe.event}]='{probe.condition.name} != 0'")
        lines += ["  :", "fi"]
    lines += [
        '[ ${#lacking[@]} = 0 ] || echo "$0: not on this kernel: ${lacking[*]}" >&2',
        '[ ${#events[@]} != 0 ] || die "nothing can be recorded: are vfio-pci and kvm loaded?"',
    ]
    return lines


def _about(qemu: Qemu, missing: dict[str, str]) -> list[str]:
    build = printable(qemu.binary.build_id or "none")
    lines = [f"# QEMU {printable(qemu.binary.version or 'of unknown version')}, build-id {build}"]
    return lines + [f"# not recorded: {event}: {printable(reason)}" for event, reason in missing.items()]


def _kernel_block(host: Host, one: Callable[[KernelProbe, Members], str]) -> list[str]:
    """The kernel's probes, with the structure offsets of the kernel that the script finds."""
    measured = list(_kernel_lines(MEASURED, one))
    own = list(_kernel_lines(host.members, one))
    if host.kernel is None or own == measured:
        return measured
    condition = f'if [ "$(uname -r)" = {shlex.quote(host.kernel)} ]; then'
    return [condition, *(f"  {line}" for line in own), "else", *(f"  {line}" for line in measured), "fi"]


def _kernel_lines(members: Members, one: Callable[[KernelProbe, Members], str]) -> Iterable[str]:
    """Each probe under the condition that the catalogue gives it, with its fallback."""
    for probe in KERNEL:
        line = one(probe, members)
        if probe.spec.unless.startswith("!"):
            yield f"! have {probe.spec.unless[1:]} || {{ {line}; }}"
        elif probe.spec.unless:
            yield f"have {probe.spec.unless} || {{ {line}; }}"
        elif probe.fallback:
            yield " || ".join([line, *(f"tracepoint {name.replace(':', '/')}" for name in probe.fallback)])
        else:
            yield line


def _as_kprobe(probe: KernelProbe, members: Members) -> str:
    arguments = " ".join(arg.for_ftrace(members) for arg in probe.args)
    letter = "p" if probe.hook.where == "entry" else "r"
    return f"kprobe {probe.event} {letter} {probe.hook.target} {shlex.quote(arguments)}"


_SLEEP = 'sleep "${seconds:-infinity}" & sleeping=$!; wait $sleeping; kill $sleeping 2> /dev/null'


def _run(command: str) -> list[str]:
    """Commands that run a tool around a command of ours, which the tool starts once it records: `$work/begun`.

    The end of that command ends the tool, whatever ends the script.
    """
    return [
        "printf 'sleep %q & trap \"kill $!\" TERM; echo $$ > %q; echo %q >&2; wait; exit 0\\n' "
        '"${seconds:-infinity}" "$work/pid" "recording into $out; Ctrl-C ends it" > "$work/begun"',
        "# In a session of its own, so that Ctrl-C reaches this script alone: a second SIGINT would cut it short.",
        "recording=",
        "end() {",
        '  if [ -s "$work/pid" ]; then kill "$(< "$work/pid")"; else kill -INT $recording; fi',
        "} 2> /dev/null",
        "trap end INT TERM",
        f"setsid {command} & recording=$!",
        "while kill -0 $recording 2> /dev/null; do wait $recording; done",
    ]


def _missed(group: str) -> list[str]:
    """Commands that say what the kernel skipped of a group's kprobes.

    kprobe_profile names no group (probes_profile_seq_show, kernel/trace/trace_kprobe.c, Linux 6.1), but has a line for
    each line of kprobe_events, in the same order.
    """
    return [
        "# The kernel skips a kprobe that an interrupt finds running, and counts that.",
        'awk \'NR == FNR { sub(/^[^:]*:/, "", $1); event[FNR] = $1; next }',
        f'     event[FNR] == "{group}/" $1 && $3 {{ print "missed", $3, "of", event[FNR] }}\' '
        '"$tracefs/kprobe_events" "$tracefs/kprobe_profile" >&2',
    ]


def tracefs(host: Host) -> str:
    """Make the script that records with the kernel's tracefs alone."""
    group = GROUPS["tracefs"]
    lines = [
        *_head("tracefs", host, "tracefs and kprobes, no tool", "into OUT"),
        *_tracefs(group),
        *_symbols(),
        *_qemu_links(host),
        *_definitions(host, group, exits=False),
        "# An instance of its own: other users of ftrace are not disturbed.",
        "instance=$tracefs/instances/intxtrace-$$",
        'mkdir "$instance" || exit 1',
        'trap \'echo 0 > "$instance/events/enable"; rmdir "$instance"; clean\' EXIT',
        'echo 0 > "$instance/tracing_on"',
        'echo mono > "$instance/trace_clock"',
        'echo 16384 > "$instance/buffer_size_kb"  # per CPU',
        'echo 1 2> /dev/null > "$instance/options/record-tgid"',
        'for event in "${events[@]}"; do',
        '  [ -z "${filter[$event]:-}" ] || echo "${filter[$event]}" > "$instance/events/$event/filter"',
        '  echo 1 > "$instance/events/$event/enable"',
        "done",
        'cat "$instance/trace_pipe" > "$out" & reading=$!',
        "trap : INT TERM",
        'echo 1 > "$instance/tracing_on"',
        'echo "recording into $out; Ctrl-C ends it" >&2',
        _SLEEP,
        'echo 0 > "$instance/tracing_on"',
        "# What is still in the buffers goes to the file before the reader does.",
        "for _ in {1..600}; do",
        '  grep -q "^entries: [1-9]" "$instance"/per_cpu/cpu*/stats || break',
        "  sleep 0.1",
        "done",
        "sleep 0.5",
        "{ kill $reading; wait $reading; } 2> /dev/null",
        *_missed(group),
        'echo "wrote $out: $(wc -l < "$out") lines" >&2',
    ]
    return "\n".join(lines) + "\n"


def trace_cmd(host: Host) -> str:
    """Make the script that records with trace-cmd."""
    group = GROUPS["trace-cmd"]
    lines = [
        *_head("trace-cmd", host, "trace-cmd and kprobes", "into OUT.dat, and writes the text OUT"),
        "command -v trace-cmd > /dev/null || die 'trace-cmd is not installed'",
        *_tracefs(group),
        *_symbols(),
        *_qemu_links(host),
        *_definitions(host, group, exits=True),
        "chosen=()",
        'for event in "${events[@]}"; do',
        '  chosen+=(-e "${event/\\//:}")',
        '  [ -z "${filter[$event]:-}" ] || chosen+=(-f "${filter[$event]}")',
        "done",
        *_run('trace-cmd record -C mono -b 16384 -o "$out.dat" "${chosen[@]}" bash "$work/begun" > /dev/null'),
        *_missed(group),
        '[ -s "$out.dat" ] || die "trace-cmd recorded nothing"',
        'trace-cmd report -t -i "$out.dat" > "$out"',
        'echo "wrote $out: $(wc -l < "$out") lines" >&2',
    ]
    return "\n".join(lines) + "\n"


def perf(host: Host) -> str:
    """Make the script that records with perf."""
    group = GROUPS["perf"]
    lines = [
        *_head("perf", host, "perf and kprobes", "into OUT.data, and writes the text OUT"),
        "command -v perf > /dev/null || die 'perf is not installed'",
        *_tracefs(group),
        *_symbols(),
        *_qemu_links(host),
        *_definitions(host, group, exits=True),
        "chosen=()",
        'for event in "${events[@]}"; do',
        '  chosen+=(-e "${event/\\//:}")',
        '  [ -z "${filter[$event]:-}" ] || chosen+=(--filter "${filter[$event]}")',
        "done",
        *_run('perf record -q -a -k mono -m 16M -o "$out.data" "${chosen[@]}" -- bash "$work/begun"'),
        *_missed(group),
        '[ -s "$out.data" ] || die "perf recorded nothing"',
        "# Without one of its options for guests, perf script leaves out what happens while a vCPU is loaded.",
        "guest=()",
        "if perf script -h 2>&1 | grep -q -e --guestkallsyms; then",
        "  guest=(--guestkallsyms /dev/null)",
        "else",
        '  echo "$0: this perf hides what interrupts a vCPU; print $out.data by a newer one, as this script does" >&2',
        "fi",
        "fields=trace:comm,pid,tid,cpu,time,event,trace",
        'perf script --ns -F "$fields" --show-lost-events "${guest[@]}" -i "$out.data" > "$out"',
        'echo "wrote $out: $(wc -l < "$out") lines" >&2',
    ]
    return "\n".join(lines) + "\n"


# Tracepoints as bpftrace reads their fields: the condition, and argument → (printf's word, expression). The names are
# those of include/trace/events/{irq,kvm}.h and arch/x86/kvm/trace.h.
TRACEPOINT_FIELDS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "irq:irq_handler_entry": (
        'strncmp(str(args->name), "vfio-intx", 9) == 0',
        {"irq": ("%d", "args->irq"), "name": ('"%s"', "str(args->name)")},
    ),
    "irq:irq_handler_exit": ("", {"irq": ("%d", "args->irq"), "ret": ("%d", "args->ret")}),
    "kvm:kvm_eoi": ("", {"apicid": ("%d", "args->apicid"), "vector": ("%d", "args->vector")}),
    "kvm:kvm_apic_accept_irq": ("", {"apicid": ("%d", "args->apicid"), "vec": ("%d", "args->vec")}),
    "kvm:kvm_apicv_accept_irq": ("", {"apicid": ("%d", "args->apicid"), "vec": ("%d", "args->vec")}),
    "kvm:kvm_msi_set_irq": ("", {"address": ("%llu", "args->address"), "data": ("%llu", "args->data")}),
    "kvm:kvm_userspace_exit": ("args->reason == 26", {"reason": ("%d", "args->reason")}),
    "kvm:kvm_set_irq": (
        "",
        {"gsi": ("%u", "args->gsi"), "level": ("%d", "args->level"), "source": ("%d", "args->irq_source_id")},
    ),
    "kvm:kvm_ack_irq": ("", {"irqchip": ("%u", "args->irqchip"), "pin": ("%u", "args->pin")}),
}

# What a name could break stands first: of members of one name the last one counts.
_PRINT = (
    r'printf("{\"comm\":\"%s\",__NAME__\"ts\":%llu,\"cpu\":%d,\"pid\":%d,\"tid\":%d,'
    r'\"event\":\"__EVENT__\"__WORDS__}\n"'
)


def _bpf_print(event: str, words: dict[str, tuple[str, str]], name: str = "") -> str:
    """Write a printf of one JSON object."""
    told = "".join(f',\\"{key}\\":' + word.replace('"', '\\"') for key, (word, _) in words.items())
    text = _PRINT.replace("__EVENT__", event).replace("__WORDS__", told)
    text = text.replace("__NAME__", '\\"name\\":\\"%s\\",' if name else "")
    values = ["comm", *([name] if name else []), "nsecs", "cpu", "pid", "tid", *(value for _, value in words.values())]
    return f"{text}, {', '.join(values)});"


def _bpf_words(args: Iterable[Arg], members: Members) -> dict[str, tuple[str, str]]:
    signed = {"s32": "%d", "x64": "%llu", "u64": "%llu"}
    return {arg.name: (signed.get(arg.kind, "%u"), arg.for_bpftrace(members)) for arg in args}


def _as_bpftrace(probe: KernelProbe, members: Members) -> str:
    kind = "kprobe" if probe.hook.where == "entry" else "kretprobe"
    printed = _bpf_print(probe.event, _bpf_words(probe.args, members))
    return f"add {probe.hook.target} {shlex.quote(f'{kind}:{probe.hook.target} {{ {printed} }}')}"


def bpftrace(host: Host) -> str:
    """Make the script that records with bpftrace, as NDJSON."""
    lines = [
        *_head("bpftrace", host, "bpftrace 0.17 or newer", "into OUT"),
        "command -v bpftrace > /dev/null || die 'bpftrace is not installed'",
        *_symbols(),
        *_qemu_links(host),
        "trap 'rm -rf -- \"$work\"' EXIT",
        "program='' lacking=() unsafe=()",
        'add() { if have "$1"; then program+=$2$\'\\n\'; else lacking+=("$1"); return 1; fi; }',
        "declare -A tracepoints=()",
        "tracepoint() {",
        '  [ -d /sys/kernel/tracing/events/"$1" ] || [ -d /sys/kernel/debug/tracing/events/"$1" ] || return',
        "  case $1 in",
    ]
    for name, (condition, words) in TRACEPOINT_FIELDS.items():
        text = _bpf_print(name.partition(":")[2], words)
        predicate = f"/{condition}/ " if condition else ""
        lines.append(
            f"    {name.replace(':', '/')})"
            f" tracepoints[$1]={shlex.quote(f'tracepoint:{name} {predicate}{{ {text} }}')} ;;"
        )
    lines += ["  esac", "}"]
    lines += _kernel_block(host, _as_bpftrace)
    # bpftrace's text has no flags: a CPU is in a hard interrupt until irq_handler_exit.
    lines += [f"tracepoint {name.replace(':', '/')}" for name in (*ALWAYS, "irq:irq_handler_exit")]
    lines.append("for text in \"${tracepoints[@]}\"; do program+=$text$'\\n'; done")
    for number, qemu in enumerate(host.qemus):
        lines += _bpf_qemu(number, qemu)
    lines += [
        '[ ${#lacking[@]} = 0 ] || echo "$0: not on this kernel: ${lacking[*]}" >&2',
        '[ -n "$program" ] || die "nothing can be recorded: are vfio-pci and kvm loaded?"',
        "ulimit -l unlimited 2> /dev/null",
        "export BPFTRACE_PERF_RB_PAGES=4096",
        *_run('bpftrace "${unsafe[@]}" -f json -o "$out" -c "/bin/bash $work/begun" -e "${program//@WORK@/$work}"'),
        '[ -s "$out" ] || die "bpftrace recorded nothing"',
        'echo "wrote $out: $(wc -l < "$out") lines" >&2',
    ]
    return "\n".join(lines) + "\n"


def _bpf_qemu(number: int, qemu: Qemu) -> list[str]:
    probes, missing = qemu_probes(qemu.binary)
    for probe in probes:
        if probe.function.address != probe.function.offset:
            missing[probe.event] = "bpftrace takes an address for an offset, and they differ in this binary"
    lines = [*_about(qemu, missing), f"if use {number} {qemu.sha256} {_quote(qemu.binary.path)}; then"]
    lines.append("  unsafe=(--unsafe)  # functions without a symbol: bpftrace asks for it")
    for probe in probes:
        if probe.event in missing:
            continue
        predicate = f"/({probe.condition.for_bpftrace({})}) != 0/ " if probe.condition else ""
        printed = _bpf_print(probe.event, _bpf_words(probe.args, {}), probe.name_for_bpftrace())
        text = f"uprobe:@WORK@/qemu{number}:{probe.function.address:#x} {predicate}{{ {printed} }}"
        lines.append(f"  program+={shlex.quote(text)}$'\\n'")
    return [*lines, "fi"]


LOGGED = ("vfio_*intx*", "vfio_region_*", "kvm_resample_fd_notify")
"""QEMU's trace events: what `-trace` and `log trace:` take."""


def qemu_log(host: Host) -> str:
    """Make the script that has QEMU log its own events."""
    lines = [
        "#!/bin/bash",
        f"# Made by intxtrace {intxtrace.__version__}: intxtrace recipe qemu-log",
        "# Options for a VM that is yet to start, a line each:  bash THIS options LOG",
        "#   with timestamps, without which a log has no times; LOG must be new, and writable for QEMU.",
        "# A VM of libvirt that runs:                          bash THIS libvirt VM LOG [SECONDS]",
        "#   its log has times if libvirt started it with -msg timestamp=on (log_timestamp in qemu.conf).",
        "# Any other that runs, at its monitor:                logfile LOG",
        f"#                                                     log {','.join(f'trace:{name}' for name in LOGGED)}",
        "# Afterwards: intxtrace import LOG. What KVM delivers alone QEMU does not know of: record the kernel too.",
    ]
    for qemu in host.qemus:
        if not qemu.logs:
            path, version = printable(str(qemu.binary.path)), printable(qemu.binary.version or "of unknown version")
            lines.append(f"# {path} (QEMU {version}) was built without the log backend: it logs no events.")
    lines += [
        "set -u",
        'die() { echo "$0: $*" >&2; exit 1; }',
        "case ${1:-} in",
        "  options)",
        "    log=${2:?name the log}",
        f"    printf '%s\\n' {' '.join(f'-trace {shlex.quote(name)}' for name in LOGGED)} \\",
        '      -msg timestamp=on -D "$log"',
        "    ;;",
        "  libvirt)",
        "    vm=${2:?name the VM} log=${3:?name the log} seconds=${4:-}",
        "    command -v virsh > /dev/null || die 'virsh is not installed'",
        '    monitor() { virsh qemu-monitor-command --hmp "$vm" "$1"; }',
        '    case $log in *\\"* | *\\\\*) die "the name of the log must have no quote and no backslash" ;; esac',
        '    monitor "logfile \\"$log\\"" || exit 1',
        "    trap : INT TERM",
        f"    monitor {shlex.quote('log ' + ','.join(f'trace:{name}' for name in LOGGED))}",
        '    echo "logging into $log; Ctrl-C ends it" >&2',
        f"    {_SLEEP}",
        "    monitor 'log none'",
        "    ;;",
        '  *) die "say options LOG, or libvirt VM LOG [SECONDS]" ;;',
        "esac",
    ]
    return "\n".join(lines) + "\n"


RECIPES: dict[str, Callable[[Host], str]] = {
    "tracefs": tracefs,
    "trace-cmd": trace_cmd,
    "perf": perf,
    "bpftrace": bpftrace,
    "qemu-log": qemu_log,
}
