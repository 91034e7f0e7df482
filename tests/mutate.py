"""Breaks every rule of the state machine, one at a time, and tells which breaks no test notices.

`python -m tests.mutate [--operands] [MODULE …]`: in the rule modules every condition is negated, every returned truth
value flipped, and every assignment and call dropped; with `--operands` also every operand of an `and` or `or` left out.
Each alone, in memory, in plain Python, in a forked process. A mutant is killed by a golden, or by a random trace of
`make test` on which the reference disagrees; raising, or not ending, is failing too. Only what runs through the broken
line is tried, goldens first.

What no golden kills is printed: `random` a random trace does, `equivalent` nothing can (`EQUIVALENT` says why),
`SURVIVES` nothing does. Exit status 1 if one survives that `EQUIVALENT` does not list, or it lists one that does not.
"""

from __future__ import annotations

import ast
import copy
import gc
import importlib
import inspect
import itertools
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from tests.golden import (
    test_delivering,
    test_handing_out,
    test_interrupts,
    test_joins,
    test_masking,
    test_reused_rows,
    test_rules,
    test_setting_up,
    test_signalling,
    test_states,
    test_tracepoints,
)
from tests.random_traces import make
from tests.reference.compare import difference, of_fast, of_reference
from tests.reference.test_reference import TRACES
from tests.unit import test_reconstruct

MODULES = (
    *("masking", "signalling", "delivering", "setting_up", "ending"),
    *("counting", "states", "slots", "identity", "machine", "tracepoints"),
)
GOLDENS: tuple[ModuleType, ...] = (
    *(test_interrupts, test_rules, test_reused_rows, test_handing_out),
    *(test_masking, test_signalling, test_delivering, test_setting_up),
    *(test_joins, test_states, test_tracepoints),
)
SLOW = (test_rules.test_any_one_probe_may_be_missing,)
"""Goldens that take long and kill nothing that the others do not."""
MORE_GOLDENS = (test_reconstruct.test_a_probe_that_comes_and_goes,)
PATIENCE = 3.0
"""Seconds of processor time that one golden, or one random trace, may take."""
MEMORY = 1 << 30
"""Bytes that a mutant may take beyond what all of them share."""

EQUIVALENT: dict[str, str] = {
    "identity.new_device: drop: device.state_reason = NOTHING_SEEN": "it is 0, as every field is at first",
}
"""Mutants that change nothing, by what they are called -> why no input can show it."""

KILLED_BY_GOLDEN, KILLED_BY_TRACE, SURVIVED = 1, 2, 3


@dataclass
class Killer:
    """Something that a mutant may fail."""

    name: str
    run: Callable[[], None]
    golden: bool
    lines: set[tuple[str, int]] = field(default_factory=set)
    """What it runs of the rules: function and line."""
    seconds: float = 0.0


@dataclass
class Mutant:
    """A broken rule."""

    name: str
    function: FunctionType
    code: CodeType
    lines: set[tuple[str, int]]
    """Where it is broken."""


# ---- what is broken


def breaks(function: ast.FunctionDef, operands: bool) -> Iterator[tuple[str, ast.FunctionDef, ast.AST]]:
    """Yield what is broken, the broken function and the place in the whole one."""
    for number, node in enumerate(ast.walk(function)):
        if isinstance(node, ast.If | ast.IfExp):
            broken, its = copied(function, number)
            its.test = ast.UnaryOp(ast.Not(), its.test)
            yield f"negate: if {ast.unparse(node.test)}", broken, node.test
        elif isinstance(node, ast.BoolOp) and operands:
            for left_out, operand in enumerate(node.values):
                broken, its = copied(function, number)
                its.values[left_out] = ast.Constant(isinstance(node.op, ast.And))
                yield f"leave out: {ast.unparse(operand)}, of: {ast.unparse(node)}", broken, node
        elif (
            isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool)
        ):
            broken, its = copied(function, number)
            its.value = ast.Constant(ast.unparse(node) == "return False")
            yield f"flip: {ast.unparse(node)}", broken, node
        elif is_effect(node):
            broken, its = copied(function, number)
            for holder in ast.walk(broken):
                for name in ("body", "orelse"):
                    statements = getattr(holder, name, [])
                    if isinstance(statements, list) and its in statements:
                        statements[statements.index(its)] = ast.copy_location(ast.Pass(), its)
            yield f"drop: {ast.unparse(node)}", broken, node


def is_effect(node: ast.AST) -> bool:
    """Whether a statement sets something or calls something."""
    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return call or isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)


def copied(function: ast.FunctionDef, number: int) -> tuple[ast.FunctionDef, Any]:
    """Copy a function; with the node of this number."""
    broken = copy.deepcopy(function)
    return broken, next(itertools.islice(ast.walk(broken), number, None))


def mutants(module: ModuleType, operands: bool) -> Iterator[Mutant]:
    """Break a module in every way; what is broken alike twice in a function is numbered."""
    short = module.__name__.rsplit(".", 1)[1]
    for function in ast.parse(inspect.getsource(module)).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        times: Counter[str] = Counter()
        for what, broken, place in breaks(function, operands):
            times[what] += 1
            again = f" #{times[what]}" if times[what] > 1 else ""
            body = ast.fix_missing_locations(ast.Module([broken], []))
            namespace: dict[str, Any] = {}
            exec(compile(body, str(module.__file__), "exec"), vars(module).copy(), namespace)
            numbers = range(place.lineno, (place.end_lineno or place.lineno) + 1)  # type: ignore[attr-defined]
            yield Mutant(
                f"{short}.{function.name}: {what}{again}",
                getattr(module, function.name),
                namespace[function.name].__code__,
                {(str(module.__file__), line) for line in numbers},
            )


# ---- what notices


def goldens() -> Iterator[Killer]:
    """Yield the golden tests, once for each of their parameters."""
    tests = [test for module in GOLDENS for name, test in vars(module).items() if is_golden(module, name, test)]
    for test in (*tests, *MORE_GOLDENS):
        marks = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        choices = []
        for names, values in marks:
            names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
            choices.append([dict(zip(names, v if len(names) > 1 else (v,), strict=True)) for v in values])
        for chosen in itertools.product(*choices):
            arguments = {name: value for part in chosen for name, value in part.items()}
            if set(arguments) != set(inspect.signature(test).parameters):
                raise SystemExit(f"{test.__name__} takes fixtures: it cannot kill mutants")
            yield Killer(f"{test.__name__}{[*arguments.values()] or ''}", call(test, arguments), golden=True)


def is_golden(module: ModuleType, name: str, test: Any) -> bool:
    own = isinstance(test, FunctionType) and test.__module__ == module.__name__
    return name.startswith("test_") and own and test not in SLOW


def call(test: Callable[..., None], arguments: dict[str, Any]) -> Callable[[], None]:
    return lambda: test(**arguments)


def random_traces() -> Iterator[Killer]:
    """Yield random traces on which the reference must agree."""
    for seed in range(TRACES):
        case = make(seed)
        if not len(case.records):
            continue
        expected = of_reference(case.records, case.tables)

        def run(case: Any = case, expected: Any = expected) -> None:
            assert not difference(expected, of_fast(case.records, case.tables))

        yield Killer(f"random trace {seed}", run, golden=False)


def observe(killer: Killer, files: set[str]) -> None:
    """Run it with nothing broken, noting which lines it runs, and how long it takes."""
    lines = killer.lines

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return on_line

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        return on_line if frame.f_code.co_filename in files else None

    begin = time.process_time()
    sys.settrace(on_call)
    try:
        killer.run()
    finally:
        sys.settrace(None)
    killer.seconds = time.process_time() - begin


# ---- one mutant in one process


def start(mutant: Mutant, killers: list[Killer]) -> int:
    """Fork a process in which a rule is broken; its exit status is the verdict. Returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    verdict = KILLED_BY_GOLDEN
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever started it ends it.
        signal.signal(signal.SIGVTALRM, lambda *_: os._exit(verdict))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        mutant.function.__code__ = mutant.code
        for killer in killers:
            verdict = KILLED_BY_GOLDEN if killer.golden else KILLED_BY_TRACE
            signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
            killer.run()
        verdict = SURVIVED
    finally:
        os._exit(verdict)


def main(arguments: list[str]) -> int:
    """Break everything and print what survives."""
    operands = "--operands" in arguments
    chosen = [name for name in arguments if name != "--operands"]
    begin = time.monotonic()
    modules = [importlib.import_module(f"intxtrace.reconstruct.{name}") for name in chosen or MODULES]
    files = {str(module.__file__) for module in modules}
    broken = [mutant for module in modules for mutant in mutants(module, operands)]
    killers = [*goldens(), *random_traces()]
    for killer in killers:
        observe(killer, files)
    killers.sort(key=lambda killer: (not killer.golden, killer.seconds))
    print(
        f"{len(broken)} mutants, {len(killers)} goldens and random traces, {time.monotonic() - begin:.0f} s", flush=True
    )

    gc.freeze()  # What all share stays shared.
    whole = Mutant("nothing", broken[0].function, broken[0].function.__code__, set())
    if os.waitstatus_to_exitcode(os.waitpid(start(whole, killers), 0)[1]) != SURVIVED:
        print("something fails with nothing broken: no mutant can be judged")
        return 1
    running: dict[int, Mutant] = {}
    verdicts: dict[str, int] = {}
    waiting = iter(broken)
    try:
        while len(verdicts) < len(broken):
            while len(running) < (os.cpu_count() or 1) and (mutant := next(waiting, None)):
                running[start(mutant, [k for k in killers if k.lines & mutant.lines])] = mutant
            child, status = os.wait()
            mutant = running.pop(child)
            verdict = os.waitstatus_to_exitcode(status)
            verdicts[mutant.name] = verdict if verdict in (KILLED_BY_TRACE, SURVIVED) else KILLED_BY_GOLDEN
            tell(mutant.name, verdicts[mutant.name])
            if len(verdicts) % 100 == 0:
                print(f"{len(verdicts)} of {len(broken)}, {time.monotonic() - begin:.0f} s", flush=True)
    except KeyboardInterrupt:
        for child in running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        print("interrupted")

    number = Counter(verdicts.values())
    survivors = {name for name, verdict in verdicts.items() if verdict == SURVIVED}
    names = {mutant.name for mutant in broken}
    listed = [name for name in EQUIVALENT if name.split(".")[0] in (chosen or MODULES)]
    listed = [name for name in listed if operands or ": leave out: " not in name]
    stale = [name for name in listed if name not in names or verdicts.get(name, SURVIVED) != SURVIVED]
    for name in stale:
        print("listed as equivalent, but killed or gone:", name)
    print(
        f"{len(verdicts)} of {len(broken)} mutants in {time.monotonic() - begin:.0f} s: "
        f"{number[KILLED_BY_GOLDEN]} killed by a golden, {number[KILLED_BY_TRACE]} by a random trace only, "
        f"{len(survivors & EQUIVALENT.keys())} equivalent, {len(survivors - EQUIVALENT.keys())} survive"
    )
    ended = len(verdicts) == len(broken)
    return 0 if ended and not stale and survivors <= EQUIVALENT.keys() else 1


def tell(name: str, verdict: int) -> None:
    """Print a mutant that no golden killed."""
    if verdict == KILLED_BY_TRACE:
        print("random    ", name, flush=True)
    elif verdict == SURVIVED:
        print("equivalent" if name in EQUIVALENT else "SURVIVES  ", name, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
