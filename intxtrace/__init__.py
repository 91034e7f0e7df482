"""intxtrace: which way did each INTx interrupt of a passed-through PCI device take, and what did it cost?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intxtrace.api import Trace, open_trace

__version__ = "0.1.0"
__all__ = ["Trace", "__version__", "open_trace"]


def __getattr__(name: str) -> Any:
    # pandas and pyarrow take most of a second to load, which `intxtrace --help` must not.
    if name in ("Trace", "open_trace"):
        from intxtrace import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
