"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

from tests.packages import use_native_headers

# `make test` tries the same examples each time, so that a change is to blame for what fails; `make fuzz` tries others.
settings.register_profile("repeatable", derandomize=True, deadline=None)


def pytest_configure() -> None:
    use_native_headers()
    if "INTXTRACE_FUZZ" not in os.environ:
        settings.load_profile("repeatable")
