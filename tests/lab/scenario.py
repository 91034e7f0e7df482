"""Guests one after the other, with a recorder around them: described on L0, run in L1.

On L0 `run_scenario` boots L1 and starts this module in it; there `play` does the work. The folder afterwards:

    console.log output.log               L1's kernel, and what `play` printed
    <n>-<guest>/truth.json …              one folder per guest, see `guest.run_guest`
    recording/ or <n>-<guest>/recording/  where a recorder ran: recorder.json (argv, status, seconds), stdout,
                                         stderr and what it wrote to {out}
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from intxtrace.reconstruct.compile import prepare
from tests.lab.guest import FAULTS, GUESTS, run_guest
from tests.lab.host import SHARE, EmulatorError, HostResult, run_host
from tests.lab.packages import REPOSITORY, LabError, qemu_command
from tests.lab.truth import Truth

RECORDER_START_SECONDS = 600.0  # attaching kprobes by the dozen takes bpftrace minutes under emulation
RECORDER_STOP_SECONDS = 120.0


@dataclass(frozen=True)
class Recorder:
    """A command that runs in L1, in the repository's folder, and is ended with SIGINT.

    `{out}` in a word of `argv` becomes the folder of its recording. It is ready once `ready` stands in its
    standard output or error; with no `ready`, at once. `each`: one recording per guest, started before it and
    stopped after it; else one around all guests.
    """

    argv: list[str]
    ready: str = ""
    each: bool = True


def recorder_of_this_checkout(*options: str, each: bool) -> Recorder:
    """`intxtrace record`, as it stands in this checkout."""
    argv = [sys.executable, "-m", "intxtrace", "record", "--wait", "-o", "{out}/trace.intx", *options]
    return Recorder(argv, "recording to", each)


def watcher_of_this_checkout() -> Recorder:
    """`intxtrace live` on a terminal (tests.lab.watch); here compiling its reconstructor takes no minutes."""
    prepare()
    return Recorder([sys.executable, "-m", "tests.lab.watch", "{out}"], "watching", each=False)


@dataclass(frozen=True)
class Scenario:
    """Which guests run: names of `guest.GUESTS` or `guest.FAULTS`, in order, repeats allowed."""

    guests: list[str]
    pings: int = 10
    interval: float = 0.2
    recorder: Recorder | None = None
    beside: dict[str, Recorder] = field(default_factory=dict)  # others meanwhile, around all guests, by their folders
    options: list[str] = field(default_factory=list)  # further QEMU arguments for every guest
    qemu: str = "7.2"  # of packages.QEMUS: what the guests run in
    survey: bool = False  # see guest.run_guest


@dataclass(frozen=True)
class ScenarioResult:
    """Of each guest, in order: its folder, truth, and the folder of its recording (None without a
    recorder)."""

    host: HostResult
    folders: list[Path]
    truths: list[Truth]
    recordings: list[Path | None]


def run_scenario(
    scenario: Scenario,
    out: Path,
    kernel: str = "6.1",
    timeout: float = 900.0,
    on_output: Callable[[str], None] | None = None,
) -> ScenarioResult:
    """L0: boot L1, play the scenario in it, give back the truths.

    An EmulatorError is played once more, from an empty folder; what it left goes to `emulator-fault/`.
    Raises LabError when `out` is not empty, or when anything failed in L1.
    """
    names = _names(scenario)
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise LabError(f"{out} is not empty: name a new folder, so that nothing old is taken for a result.")
    described = json.dumps({**asdict(scenario), "command": qemu_command(scenario.qemu)}, indent=1)

    def attempt() -> HostResult:
        (out / "scenario.json").write_text(described)
        return run_host(f"exec $PYTHON -m {__spec__.name} {SHARE}", out, kernel, timeout, on_output=on_output)

    try:
        result = attempt()
    except EmulatorError as fault:
        print(f"once more: {fault}", file=sys.stderr)
        failed = out / "emulator-fault"
        left = list(out.iterdir())
        failed.mkdir()
        for path in left:
            path.rename(failed / path.name)
        result = attempt()
    if result.status != 0:
        end = "\n".join(result.output.read_text(errors="replace").splitlines()[-60:])
        raise LabError(f"The scenario failed in L1 ({result.output}):\n{end}")
    folders = [out / name for name in names]
    recordings = [_recording(scenario, out, folder) for folder in folders]
    truths = [Truth.read(folder / "truth.json") for folder in folders]
    return ScenarioResult(result, folders, truths, recordings)


def play(out: Path) -> None:
    """L1: run the guests that `out`/scenario.json names."""
    described = json.loads((out / "scenario.json").read_text())
    command = described.pop("command")
    recorder = Recorder(**described.pop("recorder")) if described["recorder"] else described.pop("recorder")
    beside = {name: Recorder(**fields) for name, fields in described.pop("beside").items()}
    scenario = Scenario(**described, recorder=recorder, beside=beside)
    around_all = scenario.recorder if scenario.recorder and not scenario.recorder.each else None
    around_each = scenario.recorder if scenario.recorder and scenario.recorder.each else None
    with ExitStack() as stack:
        for name, one in {"recording": around_all, **scenario.beside}.items():
            stack.enter_context(_recording_by(one, out / name))
        for guest, name in zip(scenario.guests, _names(scenario), strict=True):
            with _recording_by(around_each, out / name / "recording"):
                truth = run_guest(
                    guest, out / name, scenario.pings, scenario.interval, command, scenario.options, scenario.survey
                )
            print(truth.summary())


@contextmanager
def _recording_by(recorder: Recorder | None, folder: Path) -> Iterator[None]:
    if recorder is None:
        yield
        return
    folder.mkdir(parents=True)
    argv = [word.replace("{out}", str(folder)) for word in recorder.argv]
    begun = time.monotonic()
    stdout, stderr = folder / "stdout", folder / "stderr"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    try:
        while recorder.ready.encode() not in stdout.read_bytes() + stderr.read_bytes():
            if process.poll() is not None or time.monotonic() - begun > RECORDER_START_SECONDS:
                raise LabError(f"The recorder is not ready ({process.poll()}): {_end(stderr)}")
            time.sleep(0.1)
        ready_seconds = time.monotonic() - begun
        print(f"recorder ready after {ready_seconds:.1f} s")
        yield
        if process.poll() is not None:
            raise LabError(f"The recorder ended by itself ({process.poll()}): {_end(stderr)}")
        stopping = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(RECORDER_STOP_SECONDS)
        stop_seconds = time.monotonic() - stopping
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    seconds = {"ready_seconds": ready_seconds, "stop_seconds": stop_seconds}
    kept = {"argv": argv, "status": process.returncode, **seconds}
    (folder / "recorder.json").write_text(json.dumps(kept, indent=1))
    if process.returncode != 0:
        raise LabError(f"The recorder ended with {process.returncode}: {_end(stderr)}")


def _end(path: Path) -> str:
    return path.read_text(errors="replace")[-4000:]


def _names(scenario: Scenario) -> list[str]:
    unknown = sorted(set(scenario.guests) - {*GUESTS, *FAULTS})
    if unknown or not scenario.guests:
        raise LabError(f"No guest {', '.join(unknown) or 'named'}: choose of {', '.join((*GUESTS, *FAULTS))}.")
    return [f"{number}-{guest}" for number, guest in enumerate(scenario.guests, 1)]


def _recording(scenario: Scenario, out: Path, folder: Path) -> Path | None:
    if scenario.recorder is None:
        return None
    return (folder if scenario.recorder.each else out) / "recording"


if __name__ == "__main__":
    try:
        play(Path(sys.argv[1]))
    except LabError as error:
        print(error)
        sys.exit(1)
