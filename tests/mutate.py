"""Breaks every rule of the state machine, one at a time, and tells which breaks no test notices.

`python -m tests.mutate [MODULE …]`: every `if` of the rule modules is negated and every assignment and call dropped,
each alone, in a forked process, in plain Python. A mutant is killed by a random trace on which the reference
disagrees, by a golden test, or by not ending. Exit status 1 if one survives that `EQUIVALENT` does not explain.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from tests.golden import test_interrupts, test_joins, test_rules, test_states
from tests.random_traces import Case, make
from tests.reference.compare import Rows, difference, of_fast, of_reference

MODULES = ("masking", "signalling", "delivering", "setting_up", "ending", "counting", "states", "identity", "machine")
GOLDENS: tuple[ModuleType, ...] = (test_rules, test_interrupts, test_joins, test_states)
TRACES = 250
PATIENCE = 2
"""Seconds of processor time that one trace, or one golden test, may take."""

EQUIVALENT: dict[str, str] = {}
"""Mutants that change nothing: `module.function: what` and why."""


class Mutation(ast.NodeTransformer):
    """Breaks the statement with this number; `said` is what it did."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.said = ""

    def visit(self, node: ast.AST) -> Any:
        """Count the statements that can be broken."""
        dropped = isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        )
        if dropped or isinstance(node, ast.If):
            self.left -= 1
            if self.left == -1:
                if isinstance(node, ast.If):
                    self.said = f"negate: if {ast.unparse(node.test)}"
                    node.test = ast.UnaryOp(ast.Not(), node.test)
                    return node
                self.said = f"drop: {ast.unparse(node)}"
                return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)


def mutants(module: ModuleType) -> Iterator[tuple[str, FunctionType, CodeType]]:
    """Yield what is broken, the function and its broken code."""
    tree = ast.parse(inspect.getsource(module))
    for number, function in enumerate(tree.body):
        if not isinstance(function, ast.FunctionDef):
            continue
        broken = 0
        while True:
            mutation = Mutation(broken)
            mutated = ast.parse(inspect.getsource(module)).body[number]
            body = ast.Module([mutation.visit(mutated)], [])
            if not mutation.said:
                break
            broken += 1
            namespace: dict[str, Any] = {}
            code = compile(ast.fix_missing_locations(body), str(module.__file__), "exec", dont_inherit=False)
            exec(code, vars(module).copy(), namespace)
            name = f"{module.__name__.rsplit('.', 1)[1]}.{function.name}: {mutation.said}"
            yield name, getattr(module, function.name), namespace[function.name].__code__


def goldens() -> list[Callable[[], None]]:
    """Return the golden tests as calls without arguments."""
    calls: list[Callable[[], None]] = []
    for module in GOLDENS:
        for name, test in vars(module).items():
            if not name.startswith("test_") or not isinstance(test, FunctionType):
                continue
            marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
            if not marks:
                calls.append(test)
                continue
            names, values = marks[0].args[:2]
            for value in values:
                single = isinstance(names, str)
                arguments = {names: value} if single else dict(zip(names, value, strict=True))
                calls.append(lambda test=test, arguments=arguments: test(**arguments))  # type: ignore[misc]
    return calls


def killed(function: FunctionType, code: CodeType, corpus: list[tuple[Case, Rows]], tests: list[Any]) -> bool:
    """Run everything with a broken function, in a process of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            function.__code__ = code
            for case, expected in corpus:
                signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
                if difference(expected, of_fast(case.records, case.tables)):
                    os._exit(1)
            for test in tests:
                signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
                test()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] != 0


def main(chosen: list[str]) -> int:
    """Break everything and print what survives."""
    corpus = [(case, of_reference(case.records, case.tables)) for case in map(make, range(TRACES))]
    corpus = [(case, expected) for case, expected in corpus if len(case.records)]
    tests = goldens()
    count, survivors, begin = 0, [], time.monotonic()
    for name in chosen or MODULES:
        module = importlib.import_module(f"intxtrace.reconstruct.{name}")
        if not count and not killed_by_nothing(module, corpus, tests):
            print("the tests fail with nothing broken: no mutant can be judged")
            return 1
        for said, function, code in mutants(module):
            count += 1
            if not killed(function, code, corpus, tests):
                survivors.append(said)
                print("equivalent" if said in EQUIVALENT else "SURVIVES  ", said, flush=True)
    unexplained = [said for said in survivors if said not in EQUIVALENT]
    stale = [] if chosen else [said for said in EQUIVALENT if said not in survivors]
    for said in stale:
        print("listed as equivalent, but killed or gone:", said)
    print(f"{count} mutants, {len(unexplained)} survive unexplained, {len(survivors) - len(unexplained)} equivalent, ")
    print(f"{time.monotonic() - begin:.0f} s, {Path(sys.executable).name}")
    return 1 if unexplained or stale else 0


def killed_by_nothing(module: ModuleType, corpus: list[tuple[Case, Rows]], tests: list[Any]) -> bool:
    """Whether an unbroken function passes."""
    function = next(f for f in vars(module).values() if isinstance(f, FunctionType))
    return not killed(function, function.__code__, corpus, tests)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
