"""Compiles the state machine, and the importers' scanners, with numba, and keeps what was compiled.

numba's cache is pickled code, so it is kept only where nobody else can write: see `cache_folder`.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, ModuleType
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
    slots,
    state,
    states,
    tracepoints,
)
from intxtrace.reconstruct.state import Events

_MODULES = (
    slots,
    identity,
    states,
    ending,
    counting,
    masking,
    signalling,
    delivering,
    setting_up,
    tracepoints,
    machine,
)


@cache
def compiled_machine() -> Any:
    """Return `machine.run` as a compiled function: compile it, or load it."""
    types: Any = import_module("numba.core.types")

    pids = array(np.int64)
    signature = types.int64(_type(state.BLOCK), array(state.EVENT), types.int64, pids, pids)
    return compiled(_MODULES, machine.run, signature)


def compiled(modules: tuple[ModuleType, ...], run: Any, signature: Any) -> Any:
    """Return `run`, a function of one of these modules, as a compiled function: compile it, or load it.

    Every function of the modules is cloned into one namespace, where the functions that it calls are compiled ones; the
    modules themselves stay plain Python.
    """
    namespace: dict[str, Any] = {}
    for module in modules:
        namespace.update(vars(module))
    names = {module.__name__ for module in modules}
    functions = {n: f for n, f in namespace.items() if isinstance(f, FunctionType) and f.__module__ in names}
    del functions[run.__name__]
    for name, function in functions.items():
        namespace[name] = _compiled(_clone(function, namespace))
    return _compiled(_clone(run, namespace), signature)


@cache
def _compiled_assembly() -> Any:
    """Return `_assemble` as a compiled function."""
    types: Any = import_module("numba.core.types")

    columns = types.Tuple([array(signed) for signed in state.SIGNED.values()])
    return _compiled(_assemble, types.void(columns, array(state.EVENT, readonly=False)))


def _clone(function: FunctionType, namespace: dict[str, Any]) -> FunctionType:
    clone = FunctionType(function.__code__, namespace, function.__name__)
    clone.__module__, clone.__qualname__ = function.__module__, function.__qualname__
    return clone


def _type(dtype: Any) -> Any:
    return import_module("numba.np.numpy_support").from_dtype(np.dtype(dtype))


def array(dtype: Any, readonly: bool = True, dimensions: int = 1) -> Any:
    """Return numba's type of an array; `readonly` takes any."""
    return import_module("numba.core.types").Array(_type(dtype), dimensions, "C", readonly=readonly)


def _compiled(function: Callable[..., Any], signature: Any = None) -> Any:
    """Compile a function, or load it.

    Those with a signature can be called from Python, and are kept, with the others that they call in them. The
    signature is fixed, so that nothing is ever compiled twice.
    """
    numba: Any = import_module("numba")
    config: Any = import_module("numba.core.config")
    unliteral: Any = import_module("numba.core.types").unliteral

    # The same compiled code then serves other CPUs (a home folder that several machines share).
    if config.CPU_NAME is None:
        config.CPU_NAME, config.CPU_FEATURES = "generic", ""
    outermost = signature is not None
    folder = cache_folder() if outermost else None
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder or "")
    try:
        compiled = numba.njit(
            signature, cache=folder is not None, no_cpython_wrapper=not outermost, no_cfunc_wrapper=True
        )(function)
    finally:
        config.CACHE_DIR = before
    # Called with a constant, numba would compile a function anew for each: a third of all the time it takes.
    template_for = compiled.get_call_template
    compiled.get_call_template = lambda args, kws: template_for(tuple(map(unliteral, args)), kws)
    return compiled


def records(events: Events, begin: int, scratch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give the events from `begin` on, as many as there are and `scratch` (`state.EVENT`) takes, as records.

    Those that come as columns are assembled in `scratch`.
    """
    if isinstance(events, np.ndarray):
        return events[begin : begin + len(scratch)].view(state.EVENT)
    count = min(len(events["ts"]) - begin, len(scratch))
    columns = tuple(events[name][begin : begin + count].view(signed) for name, signed in state.SIGNED.items())
    _compiled_assembly()(columns, scratch)
    return scratch[:count]


def _assemble(columns: Any, out: Any) -> None:
    (ts, kind, cpu, flags, tgid, tid, value, aux, device, link, link2, vm, arg0, arg1) = columns
    for at in range(len(ts)):
        e = out[at]
        e.ts = ts[at]
        e.kind = kind[at]
        e.cpu = cpu[at]
        e.flags = flags[at]
        e.tgid = tgid[at]
        e.tid = tid[at]
        e.value = value[at]
        e.aux = aux[at]
        e.device = device[at]
        e.link = link[at]
        e.link2 = link2[at]
        e.vm = vm[at]
        e.arg0 = arg0[at]
        e.arg1 = arg1[at]


def prepare() -> None:
    """Compile the machine, or load it, so that a `Reconstructor` need not wait for it in the middle of a recording."""
    compiled_machine()
    _compiled_assembly()


def is_kept(run: Any = machine.run) -> bool:
    """Whether a compiled function, or else the machine, is kept from before, so that only loading takes time."""
    folder = cache_folder()
    module = run.__module__.rpartition(".")[2]
    return folder is not None and any(folder.rglob(f"{module}.{run.__name__}-*.nbc"))


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
    importers = package.parent / "importers"
    sources = [*sorted(package.glob("*.py")), *sorted(importers.glob("*.py"))]
    sources += [package.parent / "events.py", package.parent / "frames.py"]
    text = b"".join(path.read_bytes() for path in sources)
    return hashlib.sha256(text + version("numba").encode() + version("numpy").encode()).hexdigest()[:16]
