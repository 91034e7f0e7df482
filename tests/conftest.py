"""What all tests share."""

from __future__ import annotations

import os

import pytest

from tests.packages import native_headers


def pytest_configure(config: pytest.Config) -> None:
    """Let bcc find headers where the running kernel has none."""
    if "BCC_KERNEL_SOURCE" not in os.environ and (headers := native_headers()):
        os.environ["BCC_KERNEL_SOURCE"] = str(headers)
