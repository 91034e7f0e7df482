"""Recipes: what they define, that shells take them, that they clean up. They run here on a tracefs of plain files."""

from __future__ import annotations

import fnmatch
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import intxtrace
from intxtrace.__main__ import main
from intxtrace.capture.catalogue import CATALOGUE, QEMU_CATALOGUE
from intxtrace.capture.qemu_functions import find_functions
from intxtrace.cli.recipe import KINDS
from intxtrace.events import Kind
from intxtrace.importers.ftrace_dialect import SOURCES
from intxtrace.importers.opening import open_recording
from intxtrace.importers.qemu_events import EVENTS
from intxtrace.recipes.probes import GROUPS, KERNEL, MEASURED, QEMU_EVENTS, TRACEPOINTS, Arg, qemu_probes
from intxtrace.recipes.scripts import LOGGED, RECIPES, TRACEPOINT_FIELDS, Host, Qemu
from tests.kernel_texts import texts

INSTALLED = Path("/usr/bin/qemu-system-x86_64")
# What a Debian 6.12 took, as it was typed there; of arguments that nobody reads there were more.
TAKEN = """
p:intx/handler vfio_intx_handler irq=%di:s32 dev=%si:x64 w0=+0(%si):x64 w8=+8(%si):x64
r:intx/handler_ret vfio_intx_handler ret=$retval:s32
p:intx/efd_signal eventfd_signal_mask ctx=%di:x64 id=+44(%di):s32
p:intx/irqfd_wakeup irqfd_wakeup wait=%di:x64 key=%cx:x64 kvm=-8(%di):x64 gsi=+108(%di):s32 resampler=+144(%di):x64 \
resamplefd=+152(%di):x64 eventfd=+176(%di):x64
p:intx/irqfd_inject irqfd_inject work=%di:x64 kvm=-120(%di):x64 gsi=-4(%di):s32 resampler=+32(%di):x64 \
resamplefd=+40(%di):x64 eventfd=+64(%di):x64
p:intx/set_irq kvm_set_irq kvm=%di:x64 src=%si:s32 gsi=%dx:u32 level=%cx:s32
p:intx/acked_irq kvm_notify_acked_irq kvm=%di:x64 irqchip=%si:u32 pin=%dx:u32
p:intx/resampler_ack irqfd_resampler_ack kian=%di:x64 kvm=-24(%di):x64 gsi=+16(%di):s32
p:intx/notify_resampler kvm_notify_irqfd_resampler kvm=%di:x64 irqchip=%si:u32 pin=%dx:u32
p:intx/virqfd_wakeup virqfd_wakeup wait=%di:x64 key=%cx:x64 vdev=-72(%di):x64 eventfd=-64(%di):x64
r:intx/unmask_ret vfio_pci_intx_unmask_handler ret=$retval:s32
p:intx/virqfd_inject virqfd_inject work=%di:x64 vdev=-40(%di):x64 eventfd=-32(%di):x64
p:intx/mask_locked __vfio_pci_intx_mask vdev=%di:x64
p:intx/unmask_fn vfio_pci_intx_unmask vdev=%di:x64
p:intx/set_irqs vfio_pci_set_irqs_ioctl vdev=%di:x64 flags=%si:x32 index=%dx:u32 start=%cx:u32 count=%r8:u32
p:intx/kvm_irqfd kvm_irqfd kvm=%di:x64 fd=+0(%si):s32 gsi=+4(%si):u32 flags=+8(%si):x32 resamplefd=+12(%si):s32
p:intx/irq_line kvm_vm_ioctl_irq_line kvm=%di:x64
p:intx/efd_write eventfd_write file=%di:x64
"""


def test_every_probe_is_one_of_the_catalogue_and_every_event_one_that_the_importer_reads() -> None:
    hooks = {(hook.target, hook.where) for spec in CATALOGUE for hook in spec.hooks}
    read = {source.name: source for source in SOURCES}
    for probe in KERNEL:
        assert (probe.hook.target, probe.hook.where) in hooks
        source = read[probe.event]
        if source.kind is not None:
            assert source.kind in probe.spec.kinds
    probed = {probe.event for probe in KERNEL}
    of_kernel = {name for name in read if name not in TRACEPOINTS and not name.startswith("qemu_")}
    assert of_kernel - {"kvm_inj_virq"} == probed  # a tracepoint that only helps, and changed its text
    assert {name for name in read if name.startswith("qemu_")} == set(QEMU_EVENTS)


def test_definitions_are_those_that_kernels_took() -> None:
    made = set()
    for probe in KERNEL:
        letter = "p" if probe.hook.where == "entry" else "r"
        arguments = " ".join(arg.for_ftrace(MEASURED) for arg in probe.args)
        made.add(f"{letter}:intx/{probe.event} {probe.hook.target} {arguments}")
    taken = set(TAKEN.replace("\\\n", "").strip().splitlines())
    assert len(taken) == 18
    assert taken <= made


def test_offsets_of_linux_7() -> None:
    moved = {name: offset + 16 for name, offset in MEASURED.items() if name.startswith("kvm_kernel_irqfd.")}
    members = {**MEASURED, **moved, "kvm_kernel_irqfd.kvm": 0, "kvm_kernel_irqfd.wait": 8}
    written = {probe.event: " ".join(arg.for_ftrace(members) for arg in probe.args) for probe in KERNEL}
    assert "kvm=-8(%di):x64 gsi=+124(%di):s32 resampler=+160(%di):x64" in written["irqfd_wakeup"]
    assert "kvm=-136(%di):x64 gsi=-4(%di):s32 resampler=+32(%di):x64" in written["irqfd_inject"]


def test_bpftrace_reads_what_ftrace_reads() -> None:
    (wakeup,) = [probe for probe in KERNEL if probe.event == "irqfd_wakeup"]
    written = {arg.name: arg.for_bpftrace(MEASURED) for arg in wakeup.args}
    assert written["key"] == "(uint64)arg3"
    assert written["kvm"] == "*(uint64 *)(arg0 -8)"
    assert written["gsi"] == "*(int32 *)(arg0 +108)"


# --- QEMU


def test_qemu_probes_are_where_the_finder_says() -> None:
    binary = find_functions(INSTALLED)
    probes, missing = qemu_probes(binary)
    assert not missing
    assert {probe.function.name for probe in probes} <= {spec.name for spec in QEMU_CATALOGUE}
    for kind in ("tracefs", "perf", "trace-cmd", "bpftrace"):
        text = RECIPES[kind](Host((Qemu.of(binary),), MEASURED, None))
        for probe in probes:
            function = binary.functions[probe.function.name]
            if kind == "bpftrace":
                assert f"uprobe:@WORK@/qemu0:{function.address:#x} " in text
            else:
                assert f"uprobe 0 {probe.event} {function.offset:#x} " in text


def test_where_a_name_is_and_what_is_not_known() -> None:
    binary = find_functions(INSTALLED)
    assert binary.name_offset is not None
    assert binary.vbasedev_offset is not None
    written = {probe.event: probe.for_ftrace() for probe in qemu_probes(binary)[0]}
    name, device = binary.name_offset, binary.vbasedev_offset
    assert written["qemu_interrupt"] == f"name=+0(+{device + name}(%di)):string"
    assert written["qemu_eoi"].startswith(f"name=+0(+{name}(%di)):string")
    assert written["qemu_region_read"].startswith(f"name=+0(+{name}(+0(%di))):string addr=%si:x64 size=%dx:u32")
    assert written["qemu_resample_notify"] == "gsi=%di:s32"
    blind = replace(
        binary, vbasedev_offset=None, functions={k: v for k, v in binary.functions.items() if "eoi" not in k}
    )
    probes, missing = qemu_probes(replace(blind, missing={"vfio_intx_eoi": "gone"}))
    assert missing == {"qemu_interrupt": "where it keeps the device's name is not known", "qemu_eoi": "gone"}
    assert not {probe.event for probe in probes} & missing.keys()
    text = RECIPES["tracefs"](
        Host((Qemu(replace(blind, missing={"vfio_intx_eoi": "gone"}), "0" * 64, True),), MEASURED, None)
    )
    assert "# not recorded: qemu_eoi: gone\n" in text


def test_an_eoi_that_runs_on_every_access_is_filtered() -> None:
    binary = find_functions(INSTALLED)
    every = replace(binary.functions["vfio_intx_eoi"], filter_offset=0x128)
    qemu = Qemu(replace(binary, functions={**binary.functions, "vfio_intx_eoi": every}), "0" * 64, True)
    host = Host((qemu,), MEASURED, None)
    assert "pending=+296(%di):u8'\n  filter[intxqemu0/qemu_eoi]='pending != 0'\n" in RECIPES["tracefs"](host)
    assert "/(*(uint8 *)(arg0 +296)) != 0/ { printf(" in RECIPES["bpftrace"](host)


def test_a_qemu_without_a_log_is_told() -> None:
    qemu = Qemu.of(find_functions(INSTALLED))
    assert qemu.logs
    assert "without the log backend" not in RECIPES["qemu-log"](Host((qemu,), MEASURED, None))
    assert "without the log backend" in RECIPES["qemu-log"](Host((replace(qemu, logs=False),), MEASURED, None))


# --- the scripts


@pytest.fixture
def spaced(tmp_path: Path) -> Path:
    """The installed QEMU under a name that shells and the kernel stumble over."""
    folder = tmp_path / "a b'c\"d$(e)"
    folder.mkdir()
    link = folder / "qemu system;x"
    link.symlink_to(INSTALLED)
    return link


def script(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["recipe", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_a_shell_takes_it(kind: str, spaced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(KINDS) == set(RECIPES)
    for options in ([], ["--qemu", str(spaced)], ["--qemu", str(INSTALLED), "--qemu", str(spaced)]):
        text = script(capsys, kind, *options)
        assert text.startswith("#!/bin/bash\n")
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        if kind != "qemu-log":
            assert text.count("\nif use ") == 1  # the same binary twice is one


class FakeHost:
    """Plain files in place of tracefs and kallsyms, and commands that write down how they were called."""

    def __init__(self, root: Path, kernel: str = "6.12.0") -> None:
        self.root, self.tracefs, self.bin = root, root / "tracing", root / "bin"
        for folder in (self.bin, self.tracefs / "instances", self.tracefs / "events" / "header"):
            folder.mkdir(parents=True)
        for name in ("kprobe_events", "uprobe_events", "kprobe_profile"):
            (self.tracefs / name).touch()
        for name in TRACEPOINTS.values():
            (self.tracefs / "events" / name.replace(":", "/")).mkdir(parents=True)
        self.kallsyms = root / "kallsyms"
        modules = {"vfio": "vfio_pci_core", "irqfd": "kvm", "kvm": "kvm", "virqfd": "vfio"}
        lines = ["ffffffff81000000 T eventfd_signal_mask", "ffffffff81000010 D kvm_set_irq", "ffffffff81000020 t other"]
        for name in {probe.hook.target for probe in KERNEL} - {"eventfd_signal", "eventfd_signal_mask"}:
            module = modules.get(name.lstrip("_").split("_")[0])
            lines.append(f"ffffffffc0000000 t {name}" + (f"\t[{module}]" if module else ""))
        self.kallsyms.write_text("\n".join(lines) + "\n")
        self.command("id", "echo 0")
        self.command("uname", f"case $1 in -m) echo x86_64 ;; -r) echo {kernel} ;; esac")
        # What tracefs does by itself when an instance is made, and when it goes.
        self.command("mkdir", f'/bin/mkdir "$1"; cp -r {root}/instance/. "$1"')
        self.command("rmdir", f'cp -r "$1" {root}/gone; rm -r "$1"')
        instance = root / "instance"
        (instance / "options").mkdir(parents=True)
        (instance / "per_cpu" / "cpu0").mkdir(parents=True)
        (instance / "per_cpu" / "cpu0" / "stats").write_text("entries: 0\n")
        (instance / "events").mkdir()
        names = [f"intx/{probe.event}" for probe in KERNEL] + [t.replace(":", "/") for t in TRACEPOINTS.values()]
        for name in [*names, *(f"intxqemu0/{source}" for source in QEMU_NAMES)]:
            (instance / "events" / name).mkdir(parents=True, exist_ok=True)  # efd_signal has two functions

    def command(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def write(self, text: str) -> Path:
        text = text.replace("/sys/kernel/tracing", str(self.tracefs)).replace("/proc/kallsyms", str(self.kallsyms))
        path = self.root / "record.sh"
        path.write_text(text)
        return path

    def run(self, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = self.write(text)
        environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        return subprocess.run(
            ["bash", str(path), *arguments], cwd=self.root, env=environment, capture_output=True, text=True, timeout=60
        )

    def defined(self, file: str) -> tuple[dict[str, str], set[str]]:
        """What was defined (event → the rest of its line), and what of it was taken out again."""
        lines = (self.tracefs / file).read_text().splitlines()
        made = dict(re.split(r"(?<=\w) ", line[2:], maxsplit=1) for line in lines if line[1] == ":" and line[0] in "pr")
        return made, {line[2:] for line in lines if line.startswith("-:")}


QEMU_NAMES = tuple(QEMU_EVENTS)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "host")


def made_elsewhere(*qemus: Path) -> Host:
    """A host without type information."""
    return Host(tuple(Qemu.of(find_functions(path)) for path in qemus), MEASURED, None)


def test_tracefs_records_what_imports_and_takes_its_probes_out(host: FakeHost, spaced: Path) -> None:
    recorded = texts()["deb-6.12/refire"]
    (host.root / "instance" / "trace_pipe").write_bytes(recorded)
    done = host.run(RECIPES["tracefs"](made_elsewhere(spaced)), "out file.txt", "0.1")
    assert done.returncode == 0, done.stderr
    assert "recording into out file.txt" in done.stderr

    out = host.root / "out file.txt"
    assert out.read_bytes() == recorded
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    made, removed = host.defined("kprobe_events")
    assert removed == made.keys() == {f"intx/{probe.event}" for probe in KERNEL}
    assert made["intx/irqfd_wakeup"].startswith("kvm:irqfd_wakeup wait=%di:x64 key=%cx:x64 kvm=-8(%di):x64 ")
    assert made["intx/handler_ret"] == "vfio_pci_core:vfio_intx_handler ret=$retval:s32"
    assert made["intx/efd_signal"] == "eventfd_signal_mask ctx=%di:x64 id=+44(%di):s32"
    assert made["intx/set_irq"].startswith("kvm:kvm_set_irq ")
    made, removed = host.defined("uprobe_events")
    assert removed == made.keys() == {f"intxqemu0/{name}" for name in QEMU_NAMES}
    for definition in made.values():
        assert re.match(r"/tmp/intxtrace\.\w{6}/qemu0:0x[0-9a-f]+ ", definition)
    assert not Path(made["intxqemu0/qemu_eoi"].partition("/qemu0")[0]).exists()

    gone = host.root / "gone"
    assert not list((host.tracefs / "instances").iterdir())
    assert (gone / "trace_clock").read_text() == "mono\n"
    assert (gone / "tracing_on").read_text() == "0\n"
    enabled = {str(path.parent.relative_to(gone / "events")) for path in (gone / "events").glob("*/*/enable")}
    assert enabled == {f"intx/{p.event}" for p in KERNEL} | {f"intxqemu0/{n}" for n in QEMU_NAMES} | {
        "irq/irq_handler_entry",
        *(f"kvm/kvm_{n}" for n in ("eoi", "apic_accept_irq", "apicv_accept_irq", "msi_set_irq", "userspace_exit")),
    }
    assert (gone / "events/irq/irq_handler_entry/filter").read_text() == 'name ~ "vfio-intx*"\n'
    assert main(["import", str(out), "-o", str(host.root / "out.intx"), "-q"]) == 0
    assert len(intxtrace.open_trace(host.root / "out.intx").interrupts)


@pytest.mark.parametrize(("kernel", "offset"), [("7.1.0-x", "+124"), ("6.1.0", "+108")])
def test_each_kernel_has_its_own_offsets(kernel: str, offset: str, tmp_path: Path) -> None:
    """A script that was made on Linux 7.1 runs there, and on older hosts that cannot make one."""
    host = FakeHost(tmp_path / "host", kernel)
    (host.root / "instance" / "trace_pipe").write_text("# nothing\n")
    moved = {name: MEASURED[name] + 16 for name in MEASURED if name.startswith("kvm_kernel_irqfd.")}
    members = {**MEASURED, **moved, "kvm_kernel_irqfd.kvm": 0, "kvm_kernel_irqfd.wait": 8}
    done = host.run(RECIPES["tracefs"](Host((), members, "7.1.0-x")), "out", "0.1")
    assert done.returncode == 0, done.stderr
    made, removed = host.defined("kprobe_events")
    assert made.keys() == removed == {f"intx/{probe.event}" for probe in KERNEL}
    assert f" gsi={offset}(%di):s32 " in made["intx/irqfd_wakeup"]


def test_what_a_kernel_lacks_has_its_fallback(host: FakeHost) -> None:
    lines = [line for line in host.kallsyms.read_text().splitlines() if "vfio_intx_handler" not in line]
    lines = [line for line in lines if not re.search(r" t (kvm_set_irq|irqfd_inject)\b", line)]
    host.kallsyms.write_text("\n".join([*lines, "ffffffff81000000 T eventfd_signal"]) + "\n")
    (host.root / "instance" / "trace_pipe").write_text("# nothing\n")
    done = host.run(RECIPES["tracefs"](made_elsewhere()), "out", "0.1")
    assert done.returncode == 0, done.stderr
    assert "not on this kernel: vfio_intx_handler vfio_intx_handler irqfd_inject kvm_set_irq\n" in done.stderr
    made, _ = host.defined("kprobe_events")
    assert not {"intx/handler", "intx/set_irq"} & made.keys()
    assert made["intx/efd_signal"].startswith("eventfd_signal ")
    enabled = {str(p.parent.relative_to(host.root / "gone/events")) for p in host.root.glob("gone/events/*/*/enable")}
    assert {"irq/irq_handler_exit", "kvm/kvm_set_irq", "workqueue/workqueue_execute_start"} <= enabled
    assert "kvm/kvm_ack_irq" not in enabled


@pytest.mark.parametrize("kind", ["perf", "trace-cmd"])
def test_tools_get_every_event_with_its_filter(kind: str, host: FakeHost, spaced: Path) -> None:
    suffix = {"perf": "data", "trace-cmd": "dat"}[kind]
    host.command(kind, f'printf "%s\\n" "$@" > {host.root}/$1.called; echo x > {host.root}/out.{suffix}; echo text')
    done = host.run(RECIPES[kind](made_elsewhere(spaced)), "out", "1")
    assert done.returncode == 0, done.stderr
    called = (host.root / "record.called").read_text().splitlines()
    chosen = [word for option, word in itertools.pairwise(called) if option == "-e"]
    group = GROUPS[kind]
    wanted = {f"{group}:{probe.event}" for probe in KERNEL} | {f"{group}qemu0:{name}" for name in QEMU_NAMES}
    assert wanted | {"irq:irq_handler_entry", "irq:irq_handler_exit", "kvm:kvm_eoi"} <= set(chosen)
    assert len(set(chosen)) == len(chosen)
    place = called.index("irq:irq_handler_entry")
    assert called[place + 1 : place + 3] == ["--filter" if kind == "perf" else "-f", 'name ~ "vfio-intx*"']
    assert "mono" in called
    assert (host.root / "out").read_text() == "text\n"
    made, removed = host.defined("kprobe_events")
    assert made
    assert made.keys() == removed


@pytest.mark.parametrize(("kind", "suffix"), [("tracefs", ""), ("perf", ".data"), ("trace-cmd", ".dat")])
def test_what_the_kernel_skipped_is_said(kind: str, suffix: str, tmp_path: Path) -> None:
    def run(host: FakeHost) -> subprocess.CompletedProcess[str]:
        (host.root / "instance" / "trace_pipe").write_text("# nothing\n")
        if suffix:
            host.command(kind, f"echo x > {host.root}/out{suffix}; echo text")
        return host.run(RECIPES[kind](made_elsewhere()), "out", "0.1")

    first, host = FakeHost(tmp_path / "first"), FakeHost(tmp_path / "host")
    run(first)
    defined, _ = first.defined("kprobe_events")
    # As the kernel writes it: no groups; and somebody else's probe of the same name.
    missed = [("handler", 7), *((name.partition("/")[2], 2 * name.endswith("/unmask")) for name in defined)]
    text = "".join(f"  {name:44} {9:15} {count:15}\n" for name, count in missed)
    (host.tracefs / "kprobe_events").write_text("p:other/handler vfio_intx_handler\n")
    (host.tracefs / "kprobe_profile").write_text(text)
    done = run(host)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"missed .*", done.stderr) == [f"missed 2 of {GROUPS[kind]}/unmask"]


@pytest.mark.parametrize("group", [False, True])
def test_a_tool_gets_one_sigint(group: bool, host: FakeHost) -> None:
    """Whether Ctrl-C goes to all in the terminal or somebody stops the script alone."""
    tool = f"""
import pathlib, signal, sys, time
if sys.argv[1] == "record":
    hits = []
    signal.signal(signal.SIGINT, lambda *_: hits.append(1))
    pathlib.Path("{host.root}/runs").touch()
    while not hits:
        time.sleep(0.02)
    time.sleep(0.3)
    pathlib.Path("{host.root}/out.data").write_text("x")
    pathlib.Path("{host.root}/hits").write_text(str(len(hits)))
"""
    (host.bin / "tool.py").write_text(tool)
    host.command("perf", f'exec "{sys.executable}" "{host.bin}/tool.py" "$@"')
    host.write(RECIPES["perf"](made_elsewhere()))
    environment = {**os.environ, "PATH": f"{host.bin}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", "record.sh", "out"], cwd=host.root, env=environment, stderr=subprocess.PIPE, start_new_session=True
    ) as script:
        while not (host.root / "runs").exists() and script.poll() is None:
            time.sleep(0.02)
        (os.killpg if group else os.kill)(script.pid, signal.SIGINT)
        assert script.stderr is not None
        said = script.stderr.read().decode()
        assert script.wait(30) == 0, said
    assert (host.root / "hits").read_text() == "1"
    made, removed = host.defined("kprobe_events")
    assert made.keys() == removed


@pytest.mark.parametrize("signalled", [False, True])
@pytest.mark.parametrize(("kind", "suffix"), [("perf", ".data"), ("trace-cmd", ".dat"), ("bpftrace", "")])
def test_a_tool_ends_with_the_command_that_it_runs(kind: str, suffix: str, signalled: bool, host: FakeHost) -> None:
    """trace-cmd waits for its command whatever signal comes; what says "recording" is the command, so it is true."""
    tool = f"""
import shlex, signal, subprocess, sys
if "record" in sys.argv or "-c" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    command = shlex.split(sys.argv[sys.argv.index("-c") + 1]) if "-c" in sys.argv else sys.argv[-2:]
    assert subprocess.call(command) == 0
    open("out{suffix}", "w").write("x")
"""
    (host.bin / "tool.py").write_text(tool)
    host.command(kind, f'exec "{sys.executable}" "{host.bin}/tool.py" "$@"')
    host.write(RECIPES[kind](made_elsewhere()))
    environment = {**os.environ, "PATH": f"{host.bin}:{os.environ['PATH']}"}
    words = ["bash", "record.sh", "out", *([] if signalled else ["0.1"])]
    with subprocess.Popen(words, cwd=host.root, env=environment, stderr=subprocess.PIPE) as script:
        assert script.stderr is not None
        said = b""
        while b"recording into out" not in said and (line := script.stderr.readline()):
            said += line
        if signalled:
            script.send_signal(signal.SIGINT)
        said += script.stderr.read()
        assert script.wait(30) == 0, said.decode()
    assert b"wrote out" in said


def test_bpftrace_gets_one_program(host: FakeHost, spaced: Path) -> None:
    copy = 'for word; do case $word in "/bin/bash "*) cp "${word#/bin/bash }" . ;; esac; done'
    host.command("bpftrace", f'printf "%s\\0" "$@" > {host.root}/called; {copy}; echo x > out')
    done = host.run(RECIPES["bpftrace"](made_elsewhere(spaced)), "out", "7")
    assert done.returncode == 0, done.stderr
    options = (host.root / "called").read_text().split("\0")
    assert options[:5] == ["--unsafe", "-f", "json", "-o", "out"]
    program = options[options.index("-e") + 1]
    assert set(re.findall(r"^(kprobe|kretprobe):(\w+)", program, re.MULTILINE)) == {
        ("kprobe" if probe.hook.where == "entry" else "kretprobe", probe.hook.target)
        for probe in KERNEL
        if probe.hook.target != "eventfd_signal"
    }
    assert "@WORK@" not in program
    assert len(re.findall(r"^uprobe:/tmp/intxtrace\.\w{6}/qemu0:0x", program, re.MULTILINE)) == len(QEMU_NAMES)
    begun = options[options.index("-c") + 1]
    assert re.fullmatch(r"/bin/bash /tmp/intxtrace\.\w{6}/begun", begun)
    assert (host.root / "begun").read_text().startswith("sleep 7 & ")
    for text in re.findall(r'printf\("((?:[^"\\]|\\.)*)"', program):
        # What is printed is one JSON object a line, whatever the numbers.
        assert re.fullmatch(r'\{\\"comm\\":\\"%s\\",(\\"name\\":\\"%s\\",)?\\"ts\\":%llu,.*\}\\n', text)
        assert text.count("%") == text.count(":") - text.count('event\\":')


@pytest.mark.root
def test_bpftrace_takes_what_is_probed_in_qemu(host: FakeHost) -> None:
    binary = find_functions(INSTALLED)
    every = replace(binary.functions["vfio_intx_eoi"], filter_offset=0x128)
    qemu = Qemu.of(replace(binary, functions={**binary.functions, "vfio_intx_eoi": every}))
    host.command("bpftrace", f'printf "%s\\0" "$@" > {host.root}/called; echo x > out')
    assert host.run(RECIPES["bpftrace"](Host((qemu,), MEASURED, None)), "out", "0.1").returncode == 0
    words = (host.root / "called").read_text().split("\0")
    lines = words[words.index("-e") + 1].splitlines()
    probes = [re.sub(r"/tmp/intxtrace\.\w{6}/qemu0", str(INSTALLED), line) for line in lines if "uprobe:/tmp" in line]
    assert len(probes) == len(QEMU_NAMES)
    assert sum("!= 0/ {" in probe for probe in probes) == 2
    done = subprocess.run(["bpftrace", "--unsafe", "-d", "-e", "\n".join(probes)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_script_refuses_what_could_do_harm(host: FakeHost, spaced: Path, tmp_path: Path) -> None:
    text = RECIPES["tracefs"](made_elsewhere(spaced))
    (host.root / "instance" / "trace_pipe").touch()
    (host.root / "out").write_text("mine")
    assert "out exists; name another file" in host.run(text, "out", "0.1").stderr
    assert (host.root / "out").read_text() == "mine"

    (host.tracefs / "events" / "intx").mkdir()
    assert "is another recording running?" in host.run(text, "new", "0.1").stderr
    (host.tracefs / "events" / "intx").rmdir()

    spaced.unlink()
    shutil.copy("/bin/true", spaced)  # another build: its offsets are others
    done = host.run(text, "new", "0.1")
    assert done.returncode == 0
    assert "is not the binary that this was made for" in done.stderr
    assert host.defined("uprobe_events") == ({}, set())

    newer = FakeHost(tmp_path / "newer", kernel="7.1.0")
    assert "made without this kernel's type information" in newer.run(text, "new", "0.1").stderr
    known = RECIPES["tracefs"](Host((), MEASURED, "7.1.1"))
    assert "made without this kernel's type information" in newer.run(known, "new", "0.1").stderr
    newer.command("id", "echo 1000")
    assert "recording needs root" in newer.run(text, "new", "0.1").stderr
    assert newer.defined("kprobe_events") == ({}, set())


def test_qemu_log_prints_options_and_drives_libvirt(host: FakeHost) -> None:
    text = RECIPES["qemu-log"](made_elsewhere())
    options = host.run(text, "options", "/var/log/a b.log").stdout.splitlines()
    assert options == [
        *("-trace", "vfio_*intx*", "-trace", "vfio_region_*", "-trace", "kvm_resample_fd_notify"),
        *("-msg", "timestamp=on", "-D", "/var/log/a b.log"),
    ]
    host.command("virsh", f'printf "%s|" "$@" >> {host.root}/called; echo >> {host.root}/called')
    assert host.run(text, "libvirt", "win 10", "/var/log/a b.log", "0.1").returncode == 0
    assert (host.root / "called").read_text().splitlines() == [
        'qemu-monitor-command|--hmp|win 10|logfile "/var/log/a b.log"|',
        "qemu-monitor-command|--hmp|win 10|log trace:vfio_*intx*,trace:vfio_region_*,trace:kvm_resample_fd_notify|",
        "qemu-monitor-command|--hmp|win 10|log none|",
    ]
    assert host.run(text).returncode == 1
    assert host.run(text, "libvirt", "vm", 'a"b').returncode == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dtrace"], "there is no recipe dtrace; choose from tracefs, trace-cmd, perf, bpftrace, qemu-log"),
        (["tracefs", "--qemu", "/nowhere/qemu"], "/nowhere/qemu cannot be read"),
        (["tracefs", "--qemu", "/bin/true"], "/bin/true has none of QEMU's vfio functions"),
        (["tracefs", "--qemu", "/etc/passwd"], "/etc/passwd"),
        ([], "Missing argument"),
    ],
)
def test_wrong_input(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("intxtrace: ")
    assert says in shown.err
    assert shown.err.count("\n") == 1


# --- what is recorded imports


Args = dict[str, tuple[str, int | str]]


def hits() -> list[tuple[str, Args]]:
    """One hit of each event that a recipe makes, with its arguments: type, value."""

    def of(args: tuple[Arg, ...]) -> Args:
        return {arg.name: (arg.kind, 1) for arg in args}

    found = [(probe.event, of(probe.args)) for probe in KERNEL if probe.hook.target != "eventfd_signal"]
    for probe in qemu_probes(find_functions(INSTALLED))[0]:
        name: Args = {"name": ("string", "0000:01:00.0")} if probe.name_path else {}
        found.append((probe.event, {**name, **of(probe.args)}))
    return found


def as_text(kind: str, event: str, args: Args, at: int) -> str:
    """A line as the recipe's tool prints it."""
    if kind == "bpftrace":
        head = {"comm": "CPU 0/KVM", "ts": 10**9 * (at + 1), "cpu": 0, "pid": 100, "tid": 101, "event": event}
        line = json.dumps({**head, **{name: value for name, (_, value) in args.items()}})
        return json.dumps({"type": "printf", "data": line + "\n"})
    shown = {"string": '"{}"', "x64": "0x{:x}", "x32": "0x{:x}"}
    text = " ".join(f"{name}={shown.get(form, '{}').format(value)}" for name, (form, value) in args.items())
    place = "(0x55e8751363b0)" if event.startswith("qemu") else "(function+0x0/0x40 [module])"
    if kind == "tracefs":
        return f"       CPU 0/KVM-101     (    100) [000] .....     {at + 1}.000000: {event}: {place} {text}"
    if kind == "perf":
        return f"       CPU 0/KVM   100/101   [000]     {at + 1}.000000000:       intx:{event}: {place} {text}"
    return f"       CPU 0/KVM-101   [000]     {at + 1}.000000000: {event}:           {place} {text}"


@pytest.mark.parametrize("kind", ["tracefs", "perf", "trace-cmd", "bpftrace"])
def test_every_event_is_read_with_all_its_arguments(kind: str, tmp_path: Path) -> None:
    wanted = hits()
    assert len(wanted) == len(KERNEL) - 1 + len(QEMU_NAMES)
    lines = [as_text(kind, event, args, at) for at, (event, args) in enumerate(wanted)]
    head = {"tracefs": ["# tracer: nop", "#"], "trace-cmd": ["cpus=1"]}.get(kind, [])
    path = tmp_path / "recorded"
    path.write_text("\n".join([*head, *lines]) + "\n")
    with path.open("rb") as stream:
        recording = open_recording(stream, str(path), ["intxtrace", "import"], {})
        events = [int(number) for batch in recording for number in batch["kind"]]
    assert recording.unreadable == {}
    assert {Kind.QEMU_INTERRUPT, Kind.QEMU_EOI, Kind.QEMU_REGION_READ, Kind.QEMU_MMAPS} <= set(events)
    assert {Kind.HANDLER_ENTRY, Kind.IRQFD_WAKEUP, Kind.KVM_SET_IRQ, Kind.RESAMPLER_ACK, Kind.UNMASK_ENTRY} <= set(
        events
    )
    assert [device.bdf for device in recording.tables.devices if device.bdf] == ["0000:01:00.0"]


def test_tracepoints_are_read_as_bpftrace_prints_them(tmp_path: Path) -> None:
    lines = []
    for at, (name, (_, words)) in enumerate(TRACEPOINT_FIELDS.items()):
        args: Args = {word: ("", "vfio-intx(0000:01:00.0)" if '"' in form else 1) for word, (form, _) in words.items()}
        lines.append(as_text("bpftrace", name.partition(":")[2], args, at))
    assert {name.partition(":")[2] for name in TRACEPOINT_FIELDS} <= TRACEPOINTS.keys()
    path = tmp_path / "recorded"
    path.write_text("\n".join(lines) + "\n")
    with path.open("rb") as stream:
        recording = open_recording(stream, str(path), ["intxtrace", "import"], {})
        kinds = {int(number) for batch in recording for number in batch["kind"]}
    assert recording.unreadable == {}
    assert {Kind.HANDLER_ENTRY, Kind.HANDLER_EXIT, Kind.KVM_EOI, Kind.KVM_SET_IRQ, Kind.KVM_ACK} <= kinds
    assert [device.bdf for device in recording.tables.devices] == ["0000:01:00.0"]


@pytest.mark.parametrize("missing", ["kvm", "wait", "key"])
def test_an_argument_that_a_recipe_forgot_would_be_noticed(missing: str, tmp_path: Path) -> None:
    ((event, args),) = [hit for hit in hits() if hit[0] == "irqfd_wakeup"]
    del args[missing]
    path = tmp_path / "recorded"
    lines = [as_text("tracefs", *hit, at) for at, hit in enumerate(hits()[:3])]
    path.write_text("\n".join(["# tracer: nop", *lines, as_text("tracefs", event, args, 9)]) + "\n")
    with path.open("rb") as stream:
        recording = open_recording(stream, str(path), ["intxtrace", "import"], {})
        for _ in recording:
            pass
    assert recording.unreadable == {"irqfd_wakeup": 1}


def test_qemu_logs_what_the_importer_reads() -> None:
    assert all(any(fnmatch.fnmatchcase(event, pattern) for pattern in LOGGED) for event in EVENTS)
