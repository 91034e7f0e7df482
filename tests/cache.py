"""Where tests keep what they fetch from the network."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of this name in INTXTRACE_CACHE (default: `.cache` at the repository's top); may not exist yet."""
    named = os.environ.get("INTXTRACE_CACHE")
    return (Path(named) if named else Path(__file__).parents[1] / ".cache").resolve() / name
