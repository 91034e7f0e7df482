"""What all tests share."""

from __future__ import annotations

from tests.packages import use_native_headers


def pytest_configure() -> None:
    use_native_headers()
