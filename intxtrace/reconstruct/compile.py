"""Compiles the state machine with numba, and keeps what was compiled.

numba's cache is pickled code, so it is kept only where nobody else can write: see `cache_folder`.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from intxtrace.reconstruct import (
    counting,
    delivering,
    ending,
    identity,
    machine,
    masking,
    setting_up,
    signalling,
    state,
    states,
    tracepoints,
)

_MODULES = (identity, states, ending, counting, masking, signalling, delivering, setting_up, tracepoints, machine)


@cache
def compiled_machine() -> Any:
    """Return `machine.run` as a compiled function; the first call with arguments compiles it, or loads it.

    Every function of the machine's modules is cloned into one namespace, where the functions that it calls are compiled
    ones; the modules themselves stay plain Python.
    """
    numba: Any = import_module("numba")
    config: Any = import_module("numba.core.config")

    # The same compiled code then serves other CPUs (a home folder that several machines share).
    if config.CPU_NAME is None:
        config.CPU_NAME, config.CPU_FEATURES = "generic", ""
    folder = cache_folder()
    before = config.CACHE_DIR
    namespace: dict[str, Any] = {}
    for module in _MODULES:
        namespace.update(vars(module))
    functions = {n: f for n, f in namespace.items() if isinstance(f, FunctionType) and _is_rule(f)}
    try:
        config.CACHE_DIR = str(folder or "")
        for name, function in functions.items():
            clone = FunctionType(function.__code__, namespace, name)
            clone.__module__, clone.__qualname__ = function.__module__, function.__qualname__
            # Only `run` is called from Python, and only it is worth a cache entry: it holds the others.
            outermost = name == machine.run.__name__
            namespace[name] = numba.njit(
                clone,
                cache=outermost and folder is not None,
                no_cpython_wrapper=not outermost,
                no_cfunc_wrapper=True,
            )
    finally:
        config.CACHE_DIR = before
    return namespace[machine.run.__name__]


def prepare() -> None:
    """Compile the machine, or load it, so that a `Reconstructor` need not wait for it in the middle of a recording."""
    block = state.to_block(state.new_state())
    none = np.zeros(0, np.int64)
    compiled_machine()(block[0], np.zeros(0, state.EVENT), 0, none, none)


def is_kept() -> bool:
    """Whether compiled code is kept from before, so that only loading takes time."""
    folder = cache_folder()
    return folder is not None and any(folder.rglob("*.nbc"))


def _is_rule(function: FunctionType) -> bool:
    return any(function.__module__ == module.__name__ for module in _MODULES)


def cache_folder() -> Path | None:
    """Return the folder for compiled code, made if need be; None if there is none that only we can write to.

    It is under `$XDG_CACHE_HOME`, or `.cache` of the home folder, and there is one per state of the sources: numba
    notices a change in the file of a function, not in those that it calls.
    """
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    for base in (os.environ.get("XDG_CACHE_HOME"), str(Path.home() / ".cache"), str(home / ".cache")):
        if base and Path(base).is_absolute():
            folder = Path(base) / "intxtrace" / f"compiled-{_digest()}"
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if is_ours_alone(folder):
                    return folder
            except OSError:
                continue
    return None


def is_ours_alone(folder: Path) -> bool:
    """Whether nobody but us (and root) can put a file into this folder or put another folder in its place."""
    owners = (os.geteuid(), 0)
    if folder.resolve() != folder.absolute():
        return False
    status = folder.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        return False
    for parent in folder.parents:
        status = parent.stat()
        shared = stat.S_IMODE(status.st_mode) & 0o022
        if status.st_uid not in owners or (shared and not status.st_mode & stat.S_ISVTX):
            return False
    return True


def _digest() -> str:
    package = Path(__file__).parent
    sources = [*sorted(package.glob("*.py")), package.parent / "events.py", package.parent / "frames.py"]
    text = b"".join(path.read_bytes() for path in sources)
    return hashlib.sha256(text + version("numba").encode() + version("numpy").encode()).hexdigest()[:16]
