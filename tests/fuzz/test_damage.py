"""The bounds of the fuzz tests themselves: what is beyond them is noticed, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz import damage
from tests.fuzz.damage import Beyond, bounded


def test_a_small_program_that_a_large_process_starts_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "PROGRAMS", 32 << 20)
    large = b"x" * (256 << 20)
    with bounded():
        subprocess.run(["true"], check=True)
    assert large


def test_a_large_program_is_beyond() -> None:
    # In a process of its own: what is the most of any program stays so.
    code = """if True:
        import subprocess, sys
        from tests.fuzz import damage
        damage.PROGRAMS = 64 << 20
        with damage.bounded():
            subprocess.run([sys.executable, "-c", "b'x' * (300 << 20)"], check=True)
    """
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert "MB were resident of a program" in ended.stderr
    assert ended.returncode == 1


def test_too_much_memory_is_beyond() -> None:
    with pytest.raises(Beyond, match="MB more than before were resident"), bounded():
        assert b"x" * (damage.MEMORY * 2)


def test_too_much_time_is_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin() -> None:
        while True:
            pass

    monkeypatch.setattr(damage, "SECONDS", 0.1)
    with pytest.raises(Beyond, match="processor time"), bounded():
        spin()
