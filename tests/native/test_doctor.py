"""`doctor` where something is really missing: it names that and nothing else, and its exit status is `record`'s.

What is missing is hidden by a mount namespace of the two commands' own, taken from them with their rights, or left
out of their environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from intxtrace.capture import host
from intxtrace.capture.bcc_import import import_bcc

pytestmark = pytest.mark.root

BCC = Path(str(import_bcc().__file__)).parent
RELEASE = os.uname().release


@dataclass(frozen=True)
class Surroundings:
    """What a command finds itself in."""

    script: str = ":"
    """What is hidden; mounts are the command's own."""
    wrapped: tuple[str, ...] = ()
    """What runs the command."""
    variables: dict[str, str | None] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    """The checks that have another state than on this machine as it is."""
    remedy: str = ""
    """What doctor says to do about the first of them."""
    reason: str = ""
    """Why record does not work, as far as that is the reason."""


def hidden(*paths: Path | str) -> str:
    """Make a script that hides folders and files, those that are there."""
    mounts = ((path, "-t tmpfs none" if Path(path).is_dir() else "--bind /dev/null") for path in paths)
    return "\n".join(f"mount {what} {path}" for path, what in mounts if Path(path).exists()) or ":"


_BPF_RIGHTS = "-sys_admin,-bpf,-perfmon"
PRIVILEGES = {"privileges": "missing"}
CRIPPLED = {
    "another user": Surroundings(
        # The right to read is for the interpreter, whose folder may be root's alone.
        wrapped=(
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
        ),
        changed=PRIVILEGES,
        remedy="run this with sudo",
        reason="recording loads probes into the kernel and needs root",
    ),
    "root of a container": Surroundings(
        wrapped=("setpriv", f"--bounding-set={_BPF_RIGHTS}", f"--inh-caps={_BPF_RIGHTS}"),
        changed=PRIVILEGES,
        remedy="--privileged",
        reason="the kernel lets this process load no BPF",
    ),
    "a user namespace": Surroundings(
        wrapped=("unshare", "--user", "--map-root-user"),
        changed=PRIVILEGES,
        remedy="run this as root of the host itself",
        reason="the kernel lets this process load no BPF",
    ),
    "a PID namespace": Surroundings(
        wrapped=("unshare", "--pid", "--fork", "--mount-proc"),
        changed=PRIVILEGES,
        remedy="--pid=host",
        reason="this process sees only those of its PID namespace",
    ),
    "no bcc": Surroundings(
        hidden(BCC), changed={"bcc": "missing"}, remedy="python3-bpfcc", reason="bcc is not installed: install it"
    ),
    "bcc without its library": Surroundings(
        hidden("/usr/lib/x86_64-linux-gnu/libbcc.so.0"),
        changed={"bcc": "missing"},
        remedy="python3-bpfcc",
        reason=f"bcc at {BCC} does not load (",
    ),
    "bcc without libbpf": Surroundings(
        hidden("/usr/lib/x86_64-linux-gnu/libbpf.so.1", "/usr/lib/x86_64-linux-gnu/libbpf.so.0"),
        changed={"BTF": "missing", "bcc": "missing"},
        remedy="python3-bpfcc",
        reason=f"bcc at {BCC} does not load (",
    ),
    "no kernel headers": Surroundings(
        hidden(f"/lib/modules/{RELEASE}", "/sys/kernel/kheaders.tar.xz"),
        variables={"BCC_KERNEL_SOURCE": None},
        changed={"kernel headers": "missing"},
        remedy=f"linux-headers-{RELEASE}",
        reason=f"bcc finds no headers of kernel {RELEASE}",
    ),
    "a folder without headers": Surroundings(
        variables={"BCC_KERNEL_SOURCE": "/usr"},
        changed={"kernel headers": "missing"},
        remedy=f"linux-headers-{RELEASE}",
        reason=f"bcc finds no headers of kernel {RELEASE}",
    ),
    "no BTF": Surroundings(
        hidden("/sys/kernel/btf"),
        changed={"BTF": "missing"},
        remedy="CONFIG_DEBUG_INFO_BTF=y",
        reason="this kernel has no type information",
    ),
    "no QEMU": Surroundings(hidden(*host.INSTALLED_QEMU), changed={"QEMU": "worse"}, remedy="found when it starts"),
    "no tracefs": Surroundings(
        hidden("/sys/kernel/tracing", "/sys/kernel/debug"), changed={"tracefs": "worse"}, remedy="mount -t tracefs"
    ),
    "no securityfs": Surroundings(hidden("/sys/kernel/security")),
}


@dataclass(frozen=True)
class Answers:
    """What the two commands said."""

    doctor: int
    found: dict[str, Any]
    record: int
    said: list[str]

    @property
    def checks(self) -> dict[str, dict[str, str]]:
        return {check["name"]: check for check in self.found["checks"]}

    @property
    def states(self) -> dict[str, str]:
        return {name: check["state"] for name, check in self.checks.items()}


def asked(folder: Path, given: Surroundings) -> Answers:
    environment = {**os.environ, **{name: value for name, value in given.variables.items() if value is not None}}
    for name in [name for name, value in given.variables.items() if value is None]:
        environment.pop(name, None)
    script = f'set -e\n{given.script}\nexec "$@"'
    begin = ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh", *given.wrapped]
    begin += [sys.executable, "-m", "intxtrace"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*begin, *words]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)

    doctor = run("doctor", "--wait", "--json")
    assert doctor.stdout, doctor.stderr
    record = run("record", "--wait", "--duration", "1s", "-o", "trace.intx")
    return Answers(doctor.returncode, json.loads(doctor.stdout)["data"], record.returncode, record.stderr.splitlines())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """This machine as it is."""
    return asked(tmp_path_factory.mktemp("whole"), Surroundings())


def agree(answers: Answers, folder: Path) -> None:
    assert answers.doctor == answers.record == (0 if answers.found["ready"] else 1)
    assert (folder / "trace.intx").exists() == answers.found["ready"]
    if not answers.found["ready"]:
        assert answers.said == [f"intxtrace: {answers.found['reason']}"]


def test_as_it_is(tmp_path: Path) -> None:
    agree(asked(tmp_path, Surroundings()), tmp_path)


@pytest.mark.parametrize("name", CRIPPLED)
def test_crippled(name: str, tmp_path: Path, whole: Answers) -> None:
    given = CRIPPLED[name]
    answers = asked(tmp_path, given)
    agree(answers, tmp_path)
    changed = {check: state for check, state in answers.states.items() if state != whole.states.get(check)}
    assert changed == given.changed
    if given.changed:
        assert given.remedy in answers.checks[next(iter(given.changed))]["remedy"]
    if given.reason:
        assert answers.found["reason"].startswith(given.reason)
    else:
        assert answers.found["reason"] == whole.found["reason"]
