"""The function finder on the QEMU of every Debian suite, fetched with apt and kept in a cache folder.

Not collected by default; run `pytest tests/long/test_qemu_binaries.py`. Needs Debian with apt, dpkg and
binutils, and the network once. The folder is `qemu` in that of tests/cache.py.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from intxtrace.capture.qemu_functions import find_functions
from tests.cache import cache_folder
from tests.qemu_binaries import KNOWN, check_against_objdump, layout_of

# Suite → the QEMU release that it has.
SUITES = {"bullseye": "5.2", "bookworm": "7.2", "bookworm-backports": "10.0", "trixie": "10.0", "sid": ""}
MEMBER = "./usr/bin/qemu-system-x86_64"


def run(*command: str | Path, cwd: Path | None = None) -> bytes:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=cwd).stdout


def mirror() -> str:
    """The Debian mirror of this machine's own apt sources."""
    targets = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").decode().split()
    found = [uri for uri in targets if uri.rstrip("/").endswith("/debian")]
    assert found, "this machine has no apt source that ends in /debian"
    return found[0]


def qemu_of(suite: str) -> Path:
    """The suite's QEMU binary, from the cache or fetched with a private apt configuration."""
    folder = cache_folder("qemu") / suite
    binary = folder / "qemu-system-x86_64"
    if binary.exists():
        return binary
    for name in ("lists/partial", "archives/partial"):
        (folder / "apt" / name).mkdir(parents=True, exist_ok=True)
    (folder / "apt/status").touch()
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "apt/sources.list").write_text(f"deb [arch=amd64 signed-by={keys}] {mirror()} {suite} main\n")
    options = (
        f"Dir::Etc::sourcelist={folder}/apt/sources.list",
        "Dir::Etc::sourceparts=-",
        f"Dir::State::lists={folder}/apt/lists",
        f"Dir::State::status={folder}/apt/status",
        f"Dir::Cache={folder}/apt",
        "APT::Sandbox::User=root",
        "APT::Architecture=amd64",
    )
    apt = ("apt-get", "-q", *(word for option in options for word in ("-o", option)), "-t", suite)
    run(*apt, "update")
    run(*apt, "download", "qemu-system-x86", cwd=folder)
    (package,) = folder.glob("qemu-system-x86_*.deb")
    with tarfile.open(fileobj=io.BytesIO(run("dpkg-deb", "--fsys-tarfile", package))) as archive:
        content = archive.extractfile(MEMBER)
        assert content is not None
        partial = folder / "partial"
        partial.write_bytes(content.read())
    partial.rename(binary)
    package.unlink()
    return binary


@pytest.mark.parametrize("suite", SUITES)
def test_debian_qemu_has_every_function_where_its_disassembly_says(suite: str) -> None:
    binary = find_functions(qemu_of(suite))
    assert binary.version is not None
    assert binary.version.startswith(SUITES[suite])
    assert binary.missing == {}
    assert binary.name_evidence == "code"
    check_against_objdump(binary)
    if binary.build_id in KNOWN:
        assert layout_of(binary) == KNOWN[binary.build_id]
