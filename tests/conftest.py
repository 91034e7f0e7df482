"""What all tests share."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

from tests.packages import use_native_headers

# `make test` tries the same examples each time, so that a change is to blame for what fails; `make fuzz` tries others.
settings.register_profile("repeatable", derandomize=True, deadline=None)


def pytest_configure() -> None:
    use_native_headers()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored, by all that is started, too
    if "INTXTRACE_FUZZ" not in os.environ:
        settings.load_profile("repeatable")
