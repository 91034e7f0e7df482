"""Benchmarks: each prints its figure beside a peer's from the same run. `make bench`, or one module alone."""

from tests.packages import use_native_headers

use_native_headers()
