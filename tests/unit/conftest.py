"""Hosts that the tests of capturing share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from intxtrace.capture import bcc_import, host


@pytest.fixture
def no_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "processes", lambda: [])


@pytest.fixture
def no_bcc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kept = {name: module for name, module in sys.modules.items() if name == "bcc" or name.startswith("bcc.")}
    for name in kept:
        del sys.modules[name]
    monkeypatch.setattr(bcc_import, "_candidates", lambda: [])
    yield
    sys.modules.update(kept)


@pytest.fixture
def one_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    one = host.Process(4711, 1, "win10", Path("/proc/4711/exe"), ("qemu",), ("0000:01:00.0",))
    monkeypatch.setattr(host, "processes", lambda: [one])
