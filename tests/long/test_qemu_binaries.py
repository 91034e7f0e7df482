"""The function finder on the QEMU of every Debian suite.

Not collected by default; run `pytest tests/long/test_qemu_binaries.py`. Needs Debian with apt, dpkg and
binutils, and the network once.
"""

from __future__ import annotations

import pytest

from intxtrace.capture.qemu_functions import find_functions
from tests.lab.packages import QEMU_SUITES, ensure_qemu
from tests.qemu_binaries import KNOWN, check_against_objdump, layout_of


@pytest.mark.parametrize("suite", QEMU_SUITES)
def test_debian_qemu_has_every_function_where_its_disassembly_says(suite: str) -> None:
    binary = find_functions(ensure_qemu(suite) / "usr/bin/qemu-system-x86_64")
    assert binary.version is not None
    assert binary.version.startswith(QEMU_SUITES[suite])
    assert binary.missing == {}
    assert binary.name_evidence == "code"
    check_against_objdump(binary)
    if binary.build_id in KNOWN:
        assert layout_of(binary) == KNOWN[binary.build_id]
