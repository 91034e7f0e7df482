"""Whatever happens to the bytes of another tool's recording: a result or a sentence, never a traceback or a hang.

`make test` damages a thousand copies of each; `make fuzz` a hundred thousand, others.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from intxtrace.errors import IntxtraceError
from intxtrace.importers import blocks
from tests.fuzz.jobs import run
from tests.fuzz.recordings import BINARY, RECORDINGS, SMALL, VARIANTS, binary, both, merge, read, read_file, whole

CASES = 1000


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, size in SMALL:
        monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_damaged_recording_gives_a_result_or_a_sentence(name: str) -> None:
    assert read(whole(name)) > 0
    tally = run(name, range(CASES // 2 if name in VARIANTS else CASES))
    assert tally.failures == []
    assert tally.results or name == "gzip"  # Its checksum finds everything.


@pytest.mark.parametrize("name", BINARY)
def test_a_damaged_recording_that_a_program_reads(name: str) -> None:
    read_file(binary(name))
    tally = run(name, range(CASES // 20))
    assert tally.failures == []
    assert tally.nothing + tally.results
    assert tally.sentences


def test_damaged_recordings_are_merged_or_give_a_sentence() -> None:
    assert merge(both()) > 0
    tally = run("merged", range(CASES))
    assert tally.failures == []
    assert tally.results
    assert tally.sentences


@pytest.mark.parametrize(
    "line", [b"", b"\0", b"[", b"1@", b"{", b"CPU:", b"vfio_intx_eoi  (", b"a-1 [000] 1.000000: x"]
)
def test_a_line_without_an_end_needs_bounded_memory(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1 << 14)
    event = b"1@10.000000:vfio_intx_interrupt  (a) Pin A\n"
    data = event + (line or b" ") * ((1 << 21) // max(len(line), 1))
    tracemalloc.start()
    try:
        with pytest.raises(IntxtraceError, match="a line is longer than any"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_events_do_not_pile_up() -> None:
    text = whole("ftrace")
    text = text[text.index(b"\n") + 1 : text.rindex(b"\n") + 1]
    sizes = []
    for times in (10, 40):
        tracemalloc.start()
        read(text * times)
        sizes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 40 * len(text)
    assert np.diff(sizes)[0] < 1 << 20
