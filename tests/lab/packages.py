"""Debian packages of the lab: what L0 needs installed, the kernels that L1 and L2 boot, further QEMUs.

Kernels and QEMUs are fetched, never installed: `apt-get download` with a private apt configuration, whose mirror is
the one that this machine's own apt sources name, unpacked with `dpkg-deb -x` into `<cache>/lab/kernel-<series>` or
`<cache>/lab/qemu-<suite>`. A folder of that name is complete: it appears by one rename, after the last step.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cache import cache_folder

REPOSITORY = Path(__file__).resolve().parents[2]

REQUIRED = ("qemu-system-x86", "busybox-static", "python3-bpfcc", "bpftool", "cpio", "kmod", "mount", "pciutils")

# Series -> the suites it comes from.
KERNELS = {
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("bookworm-backports",),
    "7": ("trixie-backports",),  # moves on
}
# Suite -> the QEMU release that it has; testing's and sid's move on.
QEMU_SUITES = {
    "bullseye": "5.2",
    "bookworm": "7.2",
    "bookworm-backports": "10.0",
    "trixie": "10.0",
    "trixie-backports": "11.",
    "forky": "",
    "sid": "",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# QEMU release -> the suite whose binary runs with this machine's libraries; None: the installed one.
QEMUS = {"7.2": None, "10.0": "bookworm-backports", "11": None}
# … or the suites whose QEMU runs with their own libraries, in a container; the first one's moves on.
CONTAINERS = {"11": ("trixie-backports", "trixie")}
QEMU_PACKAGES = ("qemu-system-x86", "qemu-system-data")
ATTEMPTS = 4


class LabError(RuntimeError):
    """The lab cannot be built or did not come up: one sentence that says what is wrong and what to do."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked Debian kernel with its headers."""

    release: str  # uname -r
    root: Path  # the packages' files, as under /

    @property
    def image(self) -> Path:
        beside = self.modules / "vmlinuz"  # since 7.0
        return beside if beside.exists() else self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.root / "lib" / "modules" / self.release

    def module_files(self, *names: str) -> list[Path]:
        """The files of modules and all they depend on, in loading order; what is built in is left out.

        Raises LabError for a module that this kernel does not have.
        """
        files: list[Path] = []
        for name in names:
            out = _run(["modprobe", "-d", str(self.root), "-S", self.release, "--show-depends", name])
            for line in out.splitlines():
                kind, _, rest = line.partition(" ")
                path = Path(rest.split()[0]) if kind == "insmod" else None
                if path is not None and path not in files:
                    files.append(path)
        return files


def ensure_packages(wanted: Sequence[str] = REQUIRED) -> None:
    """Install what is wanted and this machine lacks; LabError where that takes root and we are not."""
    missing = [package for package in wanted if not _installed(package)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise LabError(f"Packages are missing: run apt-get install {' '.join(missing)} as root.")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}

    def attempt() -> None:
        _run(["apt-get", "update"], environment)
        _run(install, environment)

    _retry(attempt)


def _installed(package: str) -> bool:
    argv = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout == "installed"


def ensure_kernel(series: str) -> Kernel:
    """The newest kernel of a series (a key of KERNELS) with headers, from the cache or fetched into it."""
    if series not in KERNELS:
        raise LabError(f"No kernel {series} in the lab: choose one of {', '.join(KERNELS)}.")
    folder = _cached(f"kernel-{series}", lambda work, root: _fetch_kernel(series, work, root))
    [modules] = (folder / "lib" / "modules").iterdir()
    return Kernel(modules.name, folder)


def ensure_qemu(suite: str) -> Path:
    """The files, as under /, of a suite's qemu-system-x86 and its data, from the cache or fetched into it.

    Debian's libraries are not with it: on an older release only its bytes can be read.
    """
    if suite not in QEMU_SUITES:
        raise LabError(f"No QEMU of {suite} in the lab: choose one of {', '.join(QEMU_SUITES)}.")
    return _cached(f"qemu-{suite}", lambda work, root: _fetch(work, root, (suite,), QEMU_PACKAGES))


def qemu_command(release: str) -> list[str]:
    """The beginning of a command line that runs a QEMU of QEMUS: the installed one, or one of the cache.

    Firmware that is not in Debian's QEMU packages comes from the machine's own.
    """
    if release not in QEMUS:
        raise LabError(f"No QEMU {release} in the lab: choose one of {', '.join(QEMUS)}.")
    if release in CONTAINERS:
        return [str(_ensure_container(release) / "run-qemu")]
    suite = QEMUS[release]
    if suite is None:
        return ["qemu-system-x86_64"]
    root = ensure_qemu(suite)
    return [str(root / "usr/bin/qemu-system-x86_64"), "-L", str(root / "usr/share/qemu"), "-L", "/usr/share/seabios"]


# Before it, a CPU could keep running code that another had just replaced ("accel/tcg: Always lock pages before
# translation", v8.1): L1 patches its code whenever a probe or a VM comes or goes, and died of it now and then.
EMULATOR = (8, 1)


def emulator() -> list[str]:
    """The beginning of a command line that emulates L1: the installed QEMU, or 10.0 where that is too old."""
    said = _run(["qemu-system-x86_64", "--version"])
    version = re.search(r"version (\d+)\.(\d+)", said)
    if not version:
        raise LabError(f"qemu-system-x86_64 does not say which version it is: {said!r}")
    return ["qemu-system-x86_64"] if (int(version[1]), int(version[2])) >= EMULATOR else qemu_command("10.0")


RUN_QEMU = """#!/bin/sh
# As root: this QEMU in a container, a root file system and mount namespace of its own; its folder is this one's.
root=$(dirname "$(realpath "$0")")
exec unshare -m sh -c '
    root=$1 && shift
    mount --bind . "$root/mnt"
    for folder in dev proc sys; do mount --rbind /$folder "$root/$folder"; done
    exec unshare --root="$root" --wd=/mnt /usr/bin/qemu-system-x86_64 "$@"
' sh "$root" "$@"
"""


def _ensure_container(release: str) -> Path:
    """A root file system with a QEMU and all that it needs, from the cache or fetched into it."""

    def fetch(work: Path, root: Path) -> None:
        suites = CONTAINERS[release]
        apt = PrivateApt(work / "apt", suites)
        _retry(apt.update)
        _retry(lambda: apt.download_with_all_it_needs("qemu-system-x86", suites[0]))
        for deb in sorted((work / "apt/cache/archives").glob("*.deb")):
            _run(["dpkg-deb", "-x", str(deb), str(root)])
        for folder in ("mnt", "dev", "proc", "sys"):
            (root / folder).mkdir(exist_ok=True)
        for folder in ("bin", "lib", "lib64"):
            (root / folder).symlink_to(f"usr/{folder}")
        (root / "run-qemu").write_text(RUN_QEMU)
        (root / "run-qemu").chmod(0o755)

    return _cached(f"container-{release}", fetch)


def _cached(name: str, fetch: Callable[[Path, Path], object]) -> Path:
    """A folder of the cache; where it is missing, `fetch` fills one of that name, given a folder to work in."""
    cache = cache_folder("lab")
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / name
    with _locked(cache / "lock"):
        if not folder.exists():
            for killed in cache.glob(f"{name}.part-*"):
                shutil.rmtree(killed)
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"{name}.part-") as part:
                root = Path(part) / "root"
                fetch(Path(part), root)
                root.rename(folder)
    return folder


def _fetch(work: Path, root: Path, suites: Sequence[str], start: Sequence[str], follow: tuple[str, ...] = ()) -> str:
    """Unpack packages, and those they need whose names begin with one of `follow`, into `root`; their names."""
    apt = PrivateApt(work / "apt", suites)
    _retry(apt.update)
    names = apt.closure(start, follow)
    debs = work / "debs"
    debs.mkdir()
    _retry(lambda: apt.download(names, debs))
    root.mkdir()
    for deb in sorted(debs.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(root)])
    return " ".join(names)


def _fetch_kernel(series: str, work: Path, root: Path) -> None:
    start = ("linux-image-amd64", "linux-headers-amd64")
    # Since 7.0 image and modules are packages of their own.
    follow = tuple(f"linux-{part}-" for part in ("image", "headers", "kbuild", "modules", "binary", "base"))
    names = _fetch(work, root, KERNELS[series], start, follow)
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    releases = [path.name for path in (root / "lib" / "modules").iterdir()]
    if len(releases) != 1 or not Kernel(releases[0], root).image.exists():
        raise LabError(f"{names} hold the kernels {releases}: expected one, with its image.")
    release = releases[0]
    _run(["depmod", "-b", str(root), release])
    if not (root / "usr/src" / f"linux-headers-{release}").exists():
        raise LabError(f"{names} hold no headers for {release}.")


class PrivateApt:
    """apt with its own sources, lists and state: the machine's configuration is read, never changed."""

    def __init__(self, folder: Path, suites: Sequence[str]) -> None:
        for sub in ("lists/partial", "cache/archives/partial"):
            (folder / sub).mkdir(parents=True)
        (folder / "status").touch()
        sources = folder / "sources.list"
        signed = f" signed-by={KEYRING}" if KEYRING.exists() else ""
        lines = [f"deb [arch=amd64{signed}] {_mirror(suite)} {suite} main\n" for suite in suites]
        sources.write_text("".join(lines))
        options = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "_apt",
            "Acquire::Retries": 3,
        }
        self._options = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        # --error-on=any: without it a list that could not be fetched is only a warning
        _run(["apt-get", *self._options, "update", "--error-on=any"])

    def closure(self, start: Sequence[str], prefixes: tuple[str, ...]) -> list[str]:
        """The packages reached from `start` over dependencies whose names begin with one of `prefixes`."""
        found: list[str] = []
        todo = list(start)
        while todo:
            name = todo.pop()
            if name in found:
                continue
            found.append(name)
            out = _run(["apt-cache", *self._options, "depends", "--important", name])
            todo += [dep for dep in re.findall(r"Depends: (\S+)", out) if dep.startswith(prefixes)]
        return sorted(found)

    def download_with_all_it_needs(self, name: str, suite: str) -> None:
        """Into cache/archives of its folder; `name` and what it needs come from `suite` where that has them."""
        options = [*self._options, "-o", "Debug::NoLocking=true", "-y", "--no-install-recommends", "--download-only"]
        _run(["apt-get", *options, "-t", suite, "install", name])

    def download(self, names: Sequence[str], folder: Path) -> None:
        _run(["apt-get", *self._options, "download", *names], cwd=folder)


def _mirror(suite: str) -> str:
    """The URI of a Debian suite on the mirror this machine's own apt sources name."""
    out = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"])
    mirrors = [tuple(line.split()) for line in out.splitlines() if len(line.split()) == 2]
    security = suite.endswith("-security")
    own = f"{_codename()}-security" if security else _codename()
    for uri, release in mirrors:
        if release == own:
            return uri
    raise LabError(f"The apt sources of this machine name no mirror for Debian {own}: add one.")


def _codename() -> str:
    match = re.search(r"^VERSION_CODENAME=(\S+)$", Path("/etc/os-release").read_text(), re.M)
    if not match:
        raise LabError("/etc/os-release names no Debian release: the lab needs a Debian machine.")
    return match[1]


def _run(argv: Sequence[str], environment: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Standard output of a command; LabError with the end of what it said when it fails."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    full = {**(environment or os.environ), "PATH": path, "LC_ALL": "C"}
    if shutil.which(argv[0], path=path) is None:
        raise LabError(f"{argv[0]} is missing: the lab needs a Debian machine with it installed.")
    done = subprocess.run(argv, env=full, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise LabError(f"{argv[0]} failed ({' '.join(argv[-3:])}): {said}")
    return done.stdout


def _retry(step: Callable[[], None]) -> None:
    """Networks fail for a moment: try a few times, with growing pauses."""
    for attempt in range(ATTEMPTS):
        try:
            return step()
        except LabError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(2 * 3**attempt)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
