"""Debian packages of the lab: what L0 needs installed, and the kernels that L1 and L2 boot.

Kernels are fetched, never installed: `apt-get download` with a private apt configuration, whose mirror is
the one that this machine's own apt sources name, unpacked with `dpkg-deb -x` into
`<cache>/lab/kernel-<series>`. A folder of that name is complete: it appears by one rename, after the last step.
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

REQUIRED = ("qemu-system-x86", "busybox-static", "python3-bpfcc", "bpftool", "cpio", "kmod", "mount")

# Series -> the suites it comes from.
KERNELS = {
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("bookworm-backports",),
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
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
        return self.root / "boot" / f"vmlinuz-{self.release}"

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
    cache = cache_folder("lab")
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"kernel-{series}"
    with _locked(cache / "lock"):
        if not folder.exists():
            for killed in cache.glob(f"kernel-{series}.part-*"):
                shutil.rmtree(killed)
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"kernel-{series}.part-") as part:
                root = Path(part) / "root"
                _fetch_kernel(series, Path(part), root)
                root.rename(folder)
    [modules] = (folder / "lib" / "modules").iterdir()
    return Kernel(modules.name, folder)


def _fetch_kernel(series: str, work: Path, root: Path) -> None:
    apt = PrivateApt(work / "apt", KERNELS[series])
    _retry(apt.update)
    kinds = ("linux-image-", "linux-headers-", "linux-kbuild-")
    names = apt.closure(["linux-image-amd64", "linux-headers-amd64"], kinds)
    debs = work / "debs"
    debs.mkdir()
    _retry(lambda: apt.download(names, debs))
    root.mkdir()
    for deb in sorted(debs.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(root)])
    releases = [path.name for path in (root / "lib" / "modules").iterdir()]
    if len(releases) != 1 or not (root / "boot" / f"vmlinuz-{releases[0]}").exists():
        raise LabError(f"{' '.join(names)} hold the kernels {releases}: expected one, with its image.")
    release = releases[0]
    _run(["depmod", "-b", str(root), release])
    if not (root / "usr/src" / f"linux-headers-{release}").exists():
        raise LabError(f"{' '.join(names)} hold no headers for {release}.")


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
