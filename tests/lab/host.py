"""L0: boot L1, the nested VM host, and run one script in it.

L1's root is this machine's root file system, read-only over virtio-9p under a tmpfs overlay: what is
installed here is there, with the same paths, and nothing written there comes back. Only the share does: a
writable folder of L0, mounted at SHARE in L1. In the share afterwards: `console.log` (kernel messages),
`output.log` (the script's output), `cards.log` (accesses to PCI configuration space, as the emulated machine saw
them), `qemu.stderr` and what the script wrote.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.lab.packages import REPOSITORY, Kernel, LabError, emulator, ensure_kernel, ensure_packages

BUSYBOX = Path("/bin/busybox")
SHARE = "/run/intxtrace-lab"  # in L1
BOOT_SECONDS = 180.0
BOOT_ATTEMPTS = 2
POWEROFF_SECONDS = 20.0
SILENT_SECONDS = 240.0  # L1 shows every 5 s that it runs; it hung once, and why is not known
MEMORY = "6G"

# Devices with an INTx pin on L1's root bus, each with an IOMMU group of its own; the two e1000 share an interrupt line.
# The e1000e can do MSI and MSI-X too.
# romfile= spares the firmware a boot attempt; restrict=on: slirp answers pings to its own gateway only.
DEVICES = (
    "-netdev", "user,id=net0,restrict=on,net=10.0.5.0/24",
    "-device", "e1000,netdev=net0,addr=0x6,romfile=",
    "-netdev", "user,id=net1,restrict=on,net=10.0.9.0/24",
    "-device", "e1000,netdev=net1,addr=0xa,romfile=",
    "-netdev", "user,id=net2,restrict=on,net=10.0.5.0/24",
    "-device", "e1000e,netdev=net2,addr=0xb,romfile=",
    "-device", "edu,addr=0x7",
)  # fmt: skip

# panic=-1 with -no-reboot: a panic, or an oops that a probe caused, ends QEMU at once instead of hanging.
COMMAND_LINE = (
    "console=ttyS0 rdinit=/init intel_iommu=on iommu=nopt mitigations=off tsc=reliable panic=-1 oops=panic loglevel=5"
)

INIT = """#!/bin/busybox sh
set -e
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in {modules}; do insmod /modules/$module; done
mkdir -p /lower /memory /root
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /lower
mount -t tmpfs -o size=3G tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work overlay /root
mkdir -p /root{share} /root/lib/modules /root/usr/src
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /root{share}
ln -s {kernel}/lib/modules/{release} /root/lib/modules/{release}
# bcc and the headers' own makefiles follow absolute links to /usr
for folder in src lib; do
    for path in /root{kernel}/usr/$folder/linux-*; do ln -sfn "${{path#/root}}" /root/usr/$folder/; done
done
for mounted in dev proc sys; do mount --move /$mounted /root/$mounted; done
exec switch_root /root /bin/sh {share}/.lab/stage2
"""

# The status file is the only word on how the script ended; it appears by a rename, so it is never half
# written.
STAGE2 = """export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C.UTF-8 TERM=dumb
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 SHARE={share} LAB_KERNEL={kernel} PYTHON={python}
{environment}
set -e
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
busybox ip link set lo up
hostname intxtrace-lab
modprobe kvm-amd
modprobe vfio-pci
echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
set +e
echo 'lab host ready'
: > $SHARE/.lab/ready
(while :; do : > $SHARE/.lab/alive; sleep 5; done) &
cd {repository}
$SHARE/.lab/script > $SHARE/output.log 2>&1 < /dev/null
status=$?
if [ $status != 0 ]; then
    echo "--- exit status $status; the end of L1's dmesg:" >> $SHARE/output.log
    dmesg | tail -n 40 >> $SHARE/output.log
fi
echo $status > $SHARE/.lab/status.part
mv $SHARE/.lab/status.part $SHARE/.lab/status
sync
echo o > /proc/sysrq-trigger
sleep 60
"""


@dataclass(frozen=True)
class HostResult:
    """How a script in L1 ended. `boot_seconds` is QEMU's start to "lab host ready", `seconds` all of it."""

    status: int
    console: Path
    output: Path
    boot_seconds: float
    seconds: float
    boots: int


class HostError(LabError):
    """L1 did not come up, died or hung: its console says more."""


class EmulatorError(HostError):
    """L1 died with its clock set back: L0's QEMU ran the host's kernel while still in the guest's world.

    Under TCG a CPU adds the guest's TSC offset from VMRUN to #VMEXIT (helper_vmrun, do_vmexit, helper_rdtsc,
    target/i386/tcg, QEMU 7.2), and nothing in L1 can set its clock back. Seen once in about a hundred guests, as page
    faults without end that overflowed the vCPU thread's stack.
    """


def run_host(
    script: str | Path,
    share: Path,
    kernel: str = "6.1",
    timeout: float = 600.0,
    environment: Mapping[str, str] | None = None,
    on_output: Callable[[str], None] | None = None,
) -> HostResult:
    """Boot L1 and run a script (text or a file; bash without a #! line) in it: root, in the repository.

    The script sees $SHARE, $LAB_KERNEL (the folder of the unpacked kernel), $PYTHON (this interpreter) and
    `environment`. `on_output` gets its output as it comes. `timeout` counts from "lab host ready".
    A boot that fails is tried once more; what happens after it never is.
    Raises HostError when L1 does not boot, panics, or does not end in time; EmulatorError where that is L0's doing.
    """
    ensure_packages()
    unpacked = ensure_kernel(kernel)
    share = share.resolve()
    share.mkdir(parents=True, exist_ok=True)
    text = script.read_text() if isinstance(script, Path) else script
    begun = time.monotonic()
    for attempt in range(1, BOOT_ATTEMPTS + 1):
        lab = share / ".lab"
        shutil.rmtree(lab, ignore_errors=True)
        lab.mkdir()
        for old in ("console.log", "output.log", "cards.log"):
            (share / old).unlink(missing_ok=True)
        _write_scripts(lab, text, unpacked, environment or {})
        try:
            _write_initramfs(lab / "initramfs", unpacked)
            with _qemu(unpacked, lab / "initramfs", share) as process:
                boot_seconds = _wait_ready(process, share, last=attempt == BOOT_ATTEMPTS)
                if boot_seconds is None:
                    continue
                status = _wait_status(process, share, timeout, on_output)
        finally:
            shutil.rmtree(lab, ignore_errors=True)
        seconds = time.monotonic() - begun
        return HostResult(status, share / "console.log", share / "output.log", boot_seconds, seconds, attempt)
    raise AssertionError("the last attempt raises")


def _wait_ready(process: subprocess.Popen[bytes], share: Path, last: bool) -> float | None:
    """Seconds until L1 was ready; None when it did not come up and another attempt is left."""
    begun = time.monotonic()
    while not (share / ".lab" / "ready").exists():
        ended = process.poll() is not None
        if ended or time.monotonic() - begun > BOOT_SECONDS:
            what = "ended while booting" if ended else f"was not ready after {BOOT_SECONDS:.0f} s"
            if last:
                raise HostError(f"L1 {what}, {BOOT_ATTEMPTS} times. {_tail(share)}")
            with contextlib.suppress(FileNotFoundError):  # QEMU itself may have refused to start
                (share / "console.log").replace(share / "console.failed-boot.log")
            return None
        time.sleep(0.05)
    return time.monotonic() - begun


def _wait_status(
    process: subprocess.Popen[bytes], share: Path, timeout: float, on_output: Callable[[str], None] | None
) -> int:
    """The script's exit status, its output passed on while waiting."""
    status = share / ".lab" / "status"
    deadline = time.monotonic() + timeout
    shown = 0
    while True:
        done = status.exists() or process.poll() is not None
        shown = _pass_on(share / "output.log", shown, on_output, flush=done)
        if done:
            break
        alive = share / ".lab" / "alive"
        if alive.exists() and time.time() - alive.stat().st_mtime > SILENT_SECONDS:
            raise HostError(f"L1 hangs: nothing runs in it for {SILENT_SECONDS:.0f} s. {_tail(share)}")
        if time.monotonic() > deadline:
            raise HostError(f"L1's script did not end in {timeout:.0f} s. {_tail(share)}")
        time.sleep(0.1)
    if not status.exists():
        console = share / "console.log"
        back = clock_set_back(console.read_text(errors="replace") if console.exists() else "")
        if back:
            raise EmulatorError(f"L1 died, its clock set back by {back:.1f} s: QEMU's fault. {_tail(share)}")
        raise HostError(f"L1 died while the script ran. {_tail(share)}")
    with contextlib.suppress(subprocess.TimeoutExpired):  # the result is complete; QEMU is killed in any case
        process.wait(POWEROFF_SECONDS)
    return int(status.read_text())


def clock_set_back(console: str) -> float:
    """By how many seconds the times of a kernel's log lines step back at most; 0.0 below a second.

    Two CPUs' lines may swap by microseconds.
    """
    times = [float(at) for at in re.findall(r"^\[ *(\d+\.\d+)\]", console, re.M)]
    back = max((before - after for before, after in pairwise(times)), default=0.0)
    return back if back >= 1.0 else 0.0


def _pass_on(path: Path, start: int, on_output: Callable[[str], None] | None, flush: bool) -> int:
    """Hand whole lines (all of it when `flush`) of a growing file on; where the next call should start."""
    if on_output is None or not path.exists():
        return start
    with path.open("rb") as handle:
        handle.seek(start)
        data = handle.read()
    if not flush:
        data = data[: data.rfind(b"\n") + 1]
    if data:
        on_output(data.decode(errors="replace"))
    return start + len(data)


def _tail(share: Path, lines: int = 12) -> str:
    """The console from shortly before a panic, oops or lockup on, else its end; and QEMU's own words."""
    console, stderr = share / "console.log", share / "qemu.stderr"
    said = console.read_text(errors="replace").splitlines() if console.exists() else []
    trouble = re.compile(r"Kernel panic|BUG:|Oops|general protection|soft lockup|rcu.*stall|Out of memory")
    first = next((i - 5 for i, line in enumerate(said) if trouble.search(line)), len(said) - lines)
    shown = said[max(first, 0) :][: 3 * lines]
    shown += [line for line in stderr.read_text(errors="replace").splitlines() if "TCG doesn't support" not in line]
    return f"Its console ({console}):\n" + "\n".join(shown)


def _write_scripts(lab: Path, script: str, kernel: Kernel, environment: Mapping[str, str]) -> None:
    stage2 = STAGE2.format(
        share=SHARE,
        kernel=shlex.quote(str(kernel.root)),
        python=shlex.quote(sys.executable),
        repository=shlex.quote(str(REPOSITORY)),
        environment="\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
    )
    (lab / "stage2").write_text(stage2)
    path = lab / "script"
    path.write_text(script if script.startswith("#!") else "#!/bin/bash\n" + script)
    path.chmod(0o755)


def _write_initramfs(target: Path, kernel: Kernel) -> None:
    modules = kernel.module_files("virtio_pci", "9pnet_virtio", "9p", "overlay")
    names = [path.name.removesuffix(".xz") for path in modules]
    init = INIT.format(
        modules=" ".join(names), share=SHARE, kernel=shlex.quote(str(kernel.root)), release=kernel.release
    )
    write_initramfs(target, init, modules)


def write_initramfs(target: Path, init: str, modules: list[Path]) -> None:
    """A cpio archive: busybox, /init, and modules (unpacked where they are compressed) under /modules."""
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        root = Path(work)
        for folder in ("bin", "dev", "proc", "sys", "modules"):
            (root / folder).mkdir()
        shutil.copy(BUSYBOX, root / "bin" / "busybox")
        (root / "bin" / "sh").symlink_to("busybox")
        for module in modules:
            data = module.read_bytes()
            if module.suffix == ".xz":
                data = lzma.decompress(data)
            (root / "modules" / module.name.removesuffix(".xz")).write_bytes(data)
        (root / "init").write_text(init)
        (root / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        with target.open("wb") as out:
            argv = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
            subprocess.run(argv, cwd=root, input=names.encode(), stdout=out, check=True)


@contextlib.contextmanager
def _qemu(kernel: Kernel, initramfs: Path, share: Path) -> Iterator[subprocess.Popen[bytes]]:
    """QEMU, running; killed on the way out with all it started, and by the kernel when this process dies."""
    nine = "security_model=none,multidevs=remap"
    escaped = str(share).replace(",", ",,")  # a comma ends a QEMU option
    argv = [
        "setpriv", "--pdeathsig", "KILL",
        *emulator(), "-name", "intxtrace-lab", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        # an AMD CPU because TCG nests SVM only; the IOMMU may still be the Intel one that VFIO works with
        "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt", "-M", "q35", "-smp", "2", "-m", MEMORY,
        "-device", "intel-iommu,intremap=off,caching-mode=on",
        "-kernel", str(kernel.image), "-initrd", str(initramfs), "-append", COMMAND_LINE,
        "-fsdev", f"local,id=root,path=/,readonly=on,{nine}",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
        "-fsdev", f"local,id=share,path={escaped},{nine}",
        "-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
        "-trace", "pci_cfg_*", "-D", str(share / "cards.log"),
        "-chardev", f"file,id=console,path={escaped}/console.log", "-serial", "chardev:console", *DEVICES,
    ]  # fmt: skip
    with (share / "qemu.stderr").open("wb") as said:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
