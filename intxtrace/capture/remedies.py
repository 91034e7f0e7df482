"""What to install where something is missing: the exact package of each distribution."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

_FAMILIES = {
    "debian": ("debian", "ubuntu", "devuan", "raspbian", "linuxmint", "pop"),
    "fedora": ("fedora", "rhel", "centos", "rocky", "almalinux", "ol"),
    "arch": ("arch", "archlinux", "manjaro", "endeavouros"),
}
_ARCH_FLAVOURS = ("lts", "zen", "hardened", "rt", "rt-lts")


@dataclass(frozen=True)
class Distribution:
    """Which distribution this is, and which kernel runs."""

    family: str
    """`debian`, `proxmox`, `fedora`, `arch`, or empty: another one."""
    name: str
    release: str
    """Of the kernel, as `uname -r` prints it."""

    @property
    def bcc(self) -> str:
        """The command that installs bcc."""
        commands = {
            "debian": "apt install python3-bpfcc",
            "proxmox": "apt install python3-bpfcc",
            "fedora": "dnf install python3-bcc",
            "arch": "pacman -S python-bcc",
        }
        return commands.get(self.family, "") or (
            "Debian, Ubuntu, Proxmox: apt install python3-bpfcc; Fedora, RHEL: dnf install python3-bcc; "
            "Arch: pacman -S python-bcc"
        )

    @property
    def headers(self) -> str:
        """The command that installs the headers of the running kernel."""
        release = self.release
        commands = {
            "debian": f"apt install linux-headers-{release}",
            "proxmox": f"apt install {_proxmox_headers(release)}",
            "fedora": f"dnf install kernel-devel-{release}",
            "arch": f"pacman -S {_arch_headers(release)}",
        }
        return commands.get(self.family, "") or (
            f"Debian, Ubuntu: apt install linux-headers-{release}; Fedora, RHEL: dnf install kernel-devel-{release}; "
            "Arch: pacman -S linux-headers"
        )


def _proxmox_headers(release: str) -> str:
    # Renamed from pve-headers- with Proxmox VE 8.1 (kernel 6.5).
    match = re.match(r"(\d+)\.(\d+)", release)
    newer = match is not None and (int(match[1]), int(match[2])) >= (6, 5)
    return f"{'proxmox' if newer else 'pve'}-headers-{release}"


def _arch_headers(release: str) -> str:
    # `6.12.3-arch1-1`, `6.6.63-1-lts`, `6.12.1-zen1-1-zen`
    flavour = next((f for f in sorted(_ARCH_FLAVOURS, key=len, reverse=True) if release.endswith(f"-{f}")), "")
    return f"linux-{flavour}-headers" if flavour else "linux-headers"


def distribution(root: Path = Path("/"), release: str | None = None) -> Distribution:
    """Tell which distribution has its files under `root`, by os-release(5); Proxmox by its kernel's name."""
    release = os.uname().release if release is None else release
    found: dict[str, str] = {}
    for path in (root / "etc/os-release", root / "usr/lib/os-release"):
        with contextlib.suppress(OSError):
            for line in path.read_text(errors="replace")[:65536].splitlines():
                key, _, value = line.partition("=")
                found.setdefault(key.strip(), value.strip().strip("\"'"))
            break
    ids = [found.get("ID", ""), *found.get("ID_LIKE", "").split()]
    family = next((name for one in ids for name, members in _FAMILIES.items() if one in members), "")
    if release.endswith("-pve") and family == "debian":
        family = "proxmox"
    return Distribution(family, found.get("PRETTY_NAME", "") or found.get("ID", ""), release)
