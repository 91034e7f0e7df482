"""`python -m tests.packages`: everything that the tests need beside Python packages, so that no test has to skip.

As root it installs Debian packages; the lab's kernel and the headers that bcc compiles with are fetched into the cache.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.cache import cache_folder
from tests.lab import packages as lab

REQUIRED = (
    *lab.REQUIRED,
    *("binutils", "bpftrace", "chromium", "fish", "groff-base", "linux-perf", "mandoc", "trace-cmd", "zsh"),
)


def native_headers() -> Path | None:
    """Return a folder for BCC_KERNEL_SOURCE where the running kernel has no headers; None where it has.

    Another kernel's headers serve: the probes use none of its structures. Debian splits them in two folders, which
    refer to each other by absolute paths; here they are put together.
    """
    if (Path("/lib/modules") / os.uname().release / "build").exists():
        return None
    kernel = lab.ensure_kernel("6.1")
    target = cache_folder("lab") / f"headers-{kernel.release}"
    if not target.exists():
        sources = kernel.root / "usr" / "src"
        flavour = sources / f"linux-headers-{kernel.release}"
        common = sources / f"linux-headers-{kernel.release.removesuffix('-amd64')}-common"
        with tempfile.TemporaryDirectory(dir=cache_folder("lab")) as work:
            both = Path(work) / "both"
            for folder in (common, flavour):
                for part in ("include", "arch/x86/include"):
                    shutil.copytree(folder / part, both / part, dirs_exist_ok=True)
            both.rename(target)
    return target


def use_native_headers() -> None:
    """Let bcc find headers where the running kernel has none."""
    if "BCC_KERNEL_SOURCE" not in os.environ and (headers := native_headers()):
        os.environ["BCC_KERNEL_SOURCE"] = str(headers)


def main() -> int:
    try:
        lab.ensure_packages(REQUIRED)
        lab.ensure_kernel("6.1")
        native_headers()
    except lab.LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
