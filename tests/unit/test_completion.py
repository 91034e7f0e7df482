"""Completion in real shells: what Tab makes of a line, whatever names there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from intxtrace.__main__ import main
from intxtrace.cli import completion
from tests.terminal import Terminal

SHELLS = {"bash": ("--norc", "--noprofile", "-i"), "zsh": ("-f", "-i")}
MISCHIEF = "evil \\\\$(touch x)`touch x`;touch x'\"\\.intx"

HOST = """
from pathlib import Path
from intxtrace.capture import host
names = {7: "win10", 8: "build", 9: "$(touch x)"}
devices = {7: ("0000:01:00.0", "0000:02:00.0")}
found = [host.Process(pid, 1, name, Path(), (), devices.get(pid, ())) for pid, name in names.items()]
host.processes = lambda: found
"""
"""Stands in for a host where VMs run."""

TYPED = {
    "intxtrace summ": ["summary"],
    "intxtrace summary --pa": ["summary", "--path"],
    "intxtrace summary --path u": ["summary", "--path", "u"],
    "intxtrace summary --path us": ["summary", "--path", "userspace"],
    "intxtrace summary --path=us": ["summary", "--path=userspace"],
    "intxtrace summary --origin res": ["summary", "--origin", "resignal"],
    "intxtrace summary --outcome lo": ["summary", "--outcome", "lossy"],
    "intxtrace recipe bpf": ["recipe", "bpftrace"],
    "intxtrace export x.intx --format ope": ["export", "x.intx", "--format", "openmetrics"],
    "intxtrace summary sl": ["summary", "slow.intx"],
    "intxtrace summary de": ["summary", "deep/"],
    "intxtrace summary deep/": ["summary", "deep/deeper.intx"],
    "intxtrace summary tw": ["summary", "two words.intx"],
    "intxtrace summary ev": ["summary", MISCHIEF],
    "intxtrace import slow.t": ["import", "slow.txt"],
    "intxtrace record --vm w": ["record", "--vm", "win10"],
    "intxtrace live --device 0": ["live", "--device", "0000:0"],
    "intxtrace live --device 0000:01": ["live", "--device", "0000:01:00.0"],
    "intxtrace live --device=0000:02:0": ["live", "--device=0000:02:00.0"],
}
"""What is typed before Tab, and the words that stand there after it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of traces and others, whose names are mischief at worst."""
    for name in ("slow.intx", "slow.txt", "two words.intx", MISCHIEF):
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/deeper.intx").touch()
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(HOST)
    return tmp_path


def variables(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "XDG_CONFIG_HOME": "", "PYTHONPATH": str(folder / "site")}


@pytest.mark.parametrize("shell", SHELLS)
def test_tab(shell: str, folder: Path) -> None:
    begin = "autoload -Uz compinit; compinit -u -D; " if shell == "zsh" else ""
    with Terminal(*SHELLS[shell], program=shell, folder=folder, columns=200, variables=variables(folder)) as terminal:
        # A mark is typed in two parts, so that it is not seen before it is run.
        terminal.press(f"PS1='> ' PS2=; {begin}eval \"$(intxtrace completion {shell})\"; echo 'rea''dy' >&2\r".encode())
        terminal.shows("ready")
        for line in TYPED:
            terminal.press(f"{line}\t\x01printf '%s\\0' \x05; echo; echo 'do''ne' >&2\r".encode())
            terminal.shows("done")
            terminal.drawn = b""
        terminal.press(b"exit\r")
        _, printed = terminal.end()
    found = [part.split("\0")[:-1] for part in printed.decode().split("\n")[:-1]]
    assert found == [["intxtrace", *words] for words in TYPED.values()]
    assert not (folder / "x").exists()


FOUND = {
    "intxtrace summ": ["summary"],
    "env intxtrace recipe b": ["bpftrace"],
    "intxtrace summary --pa": ["--path"],
    "intxtrace summary --path u": ["unknown", "userspace"],
    "intxtrace summary --path=u": ["--path=unknown", "--path=userspace"],
    "intxtrace export x.intx --format ": ["csv", "jsonl", "openmetrics", "parquet", "perfetto"],
    "intxtrace summary sl": ["slow.intx"],
    "intxtrace summary deep/": ["deep/deeper.intx"],
    "intxtrace summary ev": [MISCHIEF],
    "intxtrace import slow": ["slow.intx", "slow.txt"],
    "intxtrace record --vm ": ["build", "win10"],
    "intxtrace record --pid ": ["7", "8", "9"],
    "intxtrace live --device 0000:0": ["0000:01:00.0", "0000:02:00.0"],
}
"""What fish finds for a line."""


@pytest.mark.parametrize("line", FOUND)
def test_tab_in_fish(line: str, folder: Path) -> None:
    command = f"intxtrace completion fish | source; complete --do-complete {line!r}"
    environment = {**os.environ, **variables(folder)}
    done = subprocess.run(
        ["fish", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert sorted(found.partition("\t")[0] for found in done.stdout.splitlines()) == FOUND[line]
    assert not (folder / "x").exists()


@pytest.mark.parametrize(
    "line", ["intxtrace ", "intxtrace summary --", "intxtrace summary --path ", "intxtrace summary "]
)
def test_it_is_quick(line: str, folder: Path) -> None:
    """What a key press waits for must not load the libraries of the commands."""
    code = "import sys; from intxtrace.__main__ import main; main(); print(*sys.modules, file=sys.stderr)"
    environment = {**os.environ, completion.ASKED: "bash", "_TYPER_COMPLETE_ARGS": line}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout
    assert not {"pandas", "numpy", "pyarrow", "rich", "textual"} & set(done.stderr.split())


def test_a_shell_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 1
    assert capsys.readouterr().err == "intxtrace: there is no completion for tcsh; choose from bash, zsh, fish\n"
