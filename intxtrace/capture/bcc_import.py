"""Finds the distribution's bcc, also from a virtual environment.

The `bcc` on PyPI is an unrelated package; the real one comes as python3-bpfcc (Debian, Ubuntu), python3-bcc (Fedora,
RHEL) or python-bcc (Arch) and is pure Python on top of libbcc, so any interpreter of the same major version can
import it from the system's folder. Only that one package is loaded from there: its neighbours stay out of the way.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

from intxtrace.capture import remedies
from intxtrace.errors import IntxtraceError


def _install() -> str:
    return (
        f"install it from your distribution ({remedies.distribution().bcc}; never `pip install bcc`, which is another "
        "project)"
    )


def _candidates() -> list[Path]:
    patterns = ("usr/lib/python3/dist-packages", "usr/lib/python3*/site-packages", "usr/lib64/python3*/site-packages")
    return [folder / "bcc" / "__init__.py" for pattern in patterns for folder in sorted(Path("/").glob(pattern))]


def import_bcc() -> ModuleType:
    """Import bcc.

    Raises:
        IntxtraceError: it is not installed, or its library does not load.
    """
    if "bcc" in sys.modules:
        return sys.modules["bcc"]
    for path in _candidates():
        if not path.is_file():
            continue
        spec = importlib.util.spec_from_file_location("bcc", path, submodule_search_locations=[str(path.parent)])
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules["bcc"] = module
        try:
            with warnings.catch_warnings():
                # bcc's own source has invalid escape sequences, which newer interpreters warn of.
                warnings.simplefilter("ignore")
                spec.loader.exec_module(module)
        except (ImportError, OSError, AttributeError) as error:
            for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
                del sys.modules[name]
            raise IntxtraceError(f"bcc at {path.parent} does not load ({error}): {_install()}") from error
        return module
    raise IntxtraceError(f"bcc is not installed: {_install()}")
