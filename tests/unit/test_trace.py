"""The trace file: what is written is read, and no content of a file makes the reader fail but by a sentence."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import stat
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, arrow_schema
from intxtrace.trace import messages
from intxtrace.trace.metadata import KEY, Metadata
from intxtrace.trace.reader import TraceReader, repair
from intxtrace.trace.tables import Device, Probe, Tables, Vm
from intxtrace.trace.values import load_json
from intxtrace.trace.writer import BATCH_ROWS, TABLES_KEY, TraceWriter
from tests.unit.traces import METADATA, some_events, some_tables, write_trace


def read(path: Path) -> tuple[np.ndarray[Any, Any], TraceReader]:
    with TraceReader(path) as reader:
        batches = [batch for batch, _ in reader.iter_batches()]
    return np.concatenate([np.empty(0, RECORD), *batches]), reader


def foreign(schema: pa.Schema, *batches: tuple[pa.RecordBatch, dict[bytes, bytes] | None]) -> bytes:
    """What another program could have written."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as stream:
        for batch, custom in batches:
            stream.write_batch(batch, custom_metadata=custom)
    return sink.getvalue()


def columns(events: np.ndarray[Any, Any]) -> list[pa.Array]:
    return [pa.array(np.ascontiguousarray(events[name])) for name in RECORD.names or ()]


def own_schema(**changes: Any) -> pa.Schema:
    return arrow_schema({KEY: json.dumps({**METADATA.to_values(), **changes}).encode()})


# --- round trip


def test_round_trip(tmp_path: Path) -> None:
    first, second = some_events(1000), some_events(10, seed=1)
    path = write_trace(tmp_path / "a.intx", first, second)
    events, reader = read(path)
    assert np.array_equal(events, np.concatenate([first, second]))
    assert reader.metadata == METADATA
    assert reader.tables == some_tables()
    assert (reader.truncated, reader.lost_bytes, reader.problem) == (False, 0, "")


numbers = st.integers(0, (1 << 64) - 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(*[numbers] * len(RECORD.names or ())), max_size=20), max_size=5),
    st.lists(st.tuples(st.integers(0, 5), st.text(), st.none() | st.integers(0, 1 << 32)), max_size=5),
    st.text(),
)
def test_round_trip_of_anything(batches: list[list[tuple[int, ...]]], rows: list[Any], name: str) -> None:
    arrays = []
    for batch in batches:
        array = np.zeros(len(batch), RECORD)
        for column, field in enumerate(RECORD.names or ()):
            bits = np.array([row[column] for row in batch], "u8")
            array[field] = bits.astype(f"u{RECORD[field].itemsize}").view(RECORD[field])
        arrays.append(array)
    tables = Tables(
        devices=[Device(i, bdf=bdf, host_irq=irq) for i, bdf, irq in {row[0]: row for row in rows}.values()]
    )
    metadata = replace(METADATA, hostname=name, extra={"later": [name]})
    with tempfile.TemporaryDirectory() as folder:
        path = write_trace(Path(folder) / "a.intx", *arrays, tables=tables, metadata=metadata)
        events, reader = read(path)
    assert np.array_equal(events, np.concatenate([np.empty(0, RECORD), *arrays]))
    assert reader.metadata == metadata
    assert reader.tables.devices == (sorted(tables.devices, key=lambda row: row.id) if arrays else [])


def test_long_arrays_are_cut_into_batches(tmp_path: Path) -> None:
    events = some_events(2 * BATCH_ROWS + 5)
    with TraceReader(write_trace(tmp_path / "a.intx", events)) as reader:
        assert [len(batch) for batch, _ in reader.iter_batches()] == [BATCH_ROWS, BATCH_ROWS, 5]


def test_table_rows_travel_when_they_appear_or_change(tmp_path: Path) -> None:
    tables = Tables()
    with TraceWriter(tmp_path / "a.intx", METADATA) as writer:
        writer.write(some_events(2), tables)
        tables.vms.append(Vm(0, pid=1, name="a"))
        writer.write(some_events(0), tables)
        size = writer.size
        writer.write(some_events(0), tables)
        assert writer.size == size, "nothing changed, nothing is written"
        tables.vms[0].devices.append("0000:01:00.0")
        tables.devices.append(Device(3, bdf="0000:01:00.0"))
        writer.write(some_events(2), tables)
    with TraceReader(tmp_path / "a.intx") as reader:
        before = reader.tables
        seen = [[(row.id, list(row.devices)) for row in reader.tables.vms] for _ in reader.iter_record_batches()]
        assert reader.tables is before, "whoever holds the tables sees them grow"
    assert seen == [[], [], [(0, [])], [(0, ["0000:01:00.0"])]]
    assert [row.id for row in reader.tables.devices] == [3]


def test_scan_counts_events_and_reads_all_tables(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "a.intx", some_events(10), some_events(20))
    with TraceReader(path) as reader:
        assert reader.scan() == 30
        assert reader.tables == some_tables()
        assert not reader.truncated


def test_pyarrow_and_polars_read_a_whole_file_as_it_is(tmp_path: Path) -> None:
    events = some_events(1000)
    path = write_trace(tmp_path / "a.intx", events)
    with path.open("rb") as file:
        table = pa.ipc.open_stream(file).read_all()
    frame = pl.read_ipc_stream(path)
    for name in RECORD.names or ():
        assert np.array_equal(table.column(name).to_numpy(), events[name])
        assert np.array_equal(frame[name].to_numpy(), events[name])


def test_a_new_trace_is_a_trace_before_its_first_event(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.intx", METADATA):
        events, reader = read(tmp_path / "a.intx")
    assert len(events) == 0
    assert "no end mark" in reader.problem


def test_writer_refuses_another_dtype(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.intx", METADATA) as writer, pytest.raises(ValueError, match="RECORD"):
        writer.write(np.zeros(3, "u8"))


# --- creating the file


def test_file_is_private_and_never_overwritten_unasked(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "a.intx", some_events(3))
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(IntxtraceError, match=r"exists; .*--force"):
        TraceWriter(path, METADATA)
    assert path.read_bytes() == before
    TraceWriter(path, METADATA, force=True).close()
    assert len(read(path)[0]) == 0


@pytest.mark.parametrize("force", [False, True])
def test_a_link_is_never_followed(tmp_path: Path, force: bool) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    link = tmp_path / "a.intx"
    link.symlink_to(target)
    if force:
        TraceWriter(link, METADATA, force=True).close()
        assert not link.is_symlink()
    else:
        with pytest.raises(IntxtraceError, match="exists"):
            TraceWriter(link, METADATA)
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("name", "says"),
    [("folder", "not a regular file"), ("none/a.intx", "does not exist; create it"), ("fifo", "regular")],
)
def test_places_that_cannot_be_written(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(IntxtraceError, match=says):
        TraceWriter(tmp_path / name, METADATA, force=True)


def test_full_disk_keeps_the_whole_batches(tmp_path: Path) -> None:
    # A limit on the size of files stops a write in its middle, as a full disk does, with another number.
    path = tmp_path / "a.intx"
    writer = TraceWriter(path, METADATA)
    writer.write(some_events(1000), some_tables())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (writer.size + 1000, hard))
        with pytest.raises(IntxtraceError, match="its first 1000 events are kept"):
            writer.write(some_events(1000, seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    writer.close()
    events, reader = read(path)
    assert np.array_equal(events, some_events(1000))
    assert not reader.truncated


def test_full_disk_is_a_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.fail("this test needs /dev/full")
    from intxtrace.files import sentence, write_all

    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="space") as caught:
            write_all(fd, b"x")
    finally:
        os.close(fd)
    assert (
        sentence(caught.value, "a.intx") == "no space left to write a.intx; free some space, or write to another disk"
    )


# --- cut files


def test_cut_at_every_byte_gives_the_whole_batches_before(tmp_path: Path) -> None:
    parts = [some_events(3), some_events(2, seed=1)]
    path = tmp_path / "a.intx"
    ends = []
    with TraceWriter(path, METADATA) as writer:
        ends.append((writer.size, 0))
        for part in parts:
            writer.write(part, some_tables())
            ends.append((writer.size, writer.events))
    whole = path.read_bytes()
    with TraceReader(path) as opened:
        schema_end = opened.position
    events = np.concatenate(parts)
    cut = tmp_path / "cut.intx"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        if size < schema_end:
            with pytest.raises(IntxtraceError, match="is empty" if size == 0 else "not an intxtrace trace"):
                TraceReader(cut)
            continue
        kept_bytes, kept_events = max([(schema_end, 0)] + [end for end in ends if end[0] <= size])
        got, reader = read(cut)
        assert np.array_equal(got, events[:kept_events])
        assert reader.truncated
        assert reader.lost_bytes == size - kept_bytes
        assert reader.problem


def test_repair_gives_a_clean_copy(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "a.intx", some_events(30), some_events(20))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    reader = repair(path, tmp_path / "b.intx")
    assert reader.lost_bytes > 0
    events, repaired = read(tmp_path / "b.intx")
    assert np.array_equal(events, some_events(30))
    assert not repaired.truncated
    assert stat.S_IMODE((tmp_path / "b.intx").stat().st_mode) == 0o600
    path.write_bytes(whole)
    repair(path, tmp_path / "c.intx")
    assert (tmp_path / "c.intx").read_bytes() == whole
    for out in (path, tmp_path / "link"):
        if out != path:
            out.symlink_to(path)
        with pytest.raises(IntxtraceError, match="is the trace itself"):
            repair(path, out, force=True)
    assert path.read_bytes() == whole


def test_bytes_after_the_end_mark_are_told(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "a.intx", some_events(3))
    with path.open("ab") as file:
        file.write(b"12345")
    events, reader = read(path)
    assert len(events) == 3
    assert reader.lost_bytes == 5
    assert "5 bytes follow" in reader.problem


# --- other files


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"# tracer: nop\n" * 50,
        b"ARROW1\0\0" + b"\0" * 500,
        b"\x7fELF" + b"\0" * 500,
        b"\xff" * 1000,
        b"\0" * 1000,
        messages.END_MARK,
        b"\xff\xff\xff\xff\xf8\xff\xff\xff" + b"\0" * 100,
        b"\xff\xff\xff\xff\x10\x00\x00\x00" + b"\xff" * 16,
        b"\xff\xff\xff\xff\x00\x01\x00\x00" + bytes(range(256)),
        foreign(pa.schema([("a", pa.int64())])),
        foreign(pa.schema([("a", pa.int64())], metadata={b"other": b"1"})),
    ],
)
def test_not_a_trace(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(IntxtraceError, match="is not an intxtrace trace; name a file that"):
        TraceReader(path)


def test_names_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, says in (("none", "no such file"), ("", "is a folder"), ("fifo", "not a regular file")):
        with pytest.raises(IntxtraceError, match=says):
            TraceReader(tmp_path / name)
    with pytest.raises(IntxtraceError, match="not a regular file"):
        TraceReader("/dev/null")


def test_newer_major_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.intx"
    path.write_bytes(foreign(own_schema(format_version="2.3")))
    with pytest.raises(IntxtraceError, match=r"format version 2\.3 .* reads up to 1\.x; upgrade intxtrace"):
        TraceReader(path)


def test_newer_minor_version_is_read_and_what_is_new_is_kept(tmp_path: Path) -> None:
    events = some_events(5)
    events["kind"][:2] = 999
    schema = own_schema(format_version="1.7", moon="full").append(pa.field("phase", pa.string()))
    batch = pa.RecordBatch.from_arrays([*columns(events), pa.array(list("abcde"))], schema=schema)
    rows = {"vms": [{"id": 0, "name": "a", "mood": [1]}], "moons": [{"id": 0}]}
    path = tmp_path / "a.intx"
    path.write_bytes(foreign(schema, (batch, {TABLES_KEY: json.dumps(rows).encode()})))
    got, reader = read(path)
    assert np.array_equal(got, events)
    assert reader.metadata.extra == {"moon": "full"}
    assert reader.tables.vms[0].to_json()["mood"] == [1]
    repair(path, tmp_path / "b.intx")
    assert (tmp_path / "b.intx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b"[" * 100_000,
        b'{"format_version": "1"}',
        b'{"format_version": "0.9"}',
        b'{"format_version": "x.0"}',
        b'{"format_version": 1.0}',
        b'{"format_version": "1.0", "clock": "sundial"}',
        b'{"format_version": "1.0", "hostname": 3}',
        b'{"format_version": "1.0", "command_line": "ls"}',
        b'{"format_version": "1.0", "started_at": true}',
        b'{"format_version": "1.0", "started_at": ' + b"9" * 5000 + b"}",
        b'{"format_version": "1.0", "started_at": 36893488147419103232}',
    ],
)
def test_damaged_metadata(tmp_path: Path, metadata: bytes) -> None:
    path = tmp_path / "a.intx"
    path.write_bytes(foreign(arrow_schema({KEY: metadata})))
    with pytest.raises(IntxtraceError, match=r"is damaged: .*; record again"):
        TraceReader(path)


def test_columns_that_are_missing_or_of_another_type(tmp_path: Path) -> None:
    path = tmp_path / "a.intx"
    for schema in (
        own_schema().remove(0),
        own_schema().set(1, pa.field("kind", pa.int32())),
        own_schema().append(pa.field("ts", pa.uint64())),
    ):
        path.write_bytes(foreign(schema))
        with pytest.raises(IntxtraceError, match=r"is damaged: its column (ts|kind) is missing"):
            TraceReader(path)


@pytest.mark.parametrize(
    "rows",
    [
        b"",
        b"[]",
        b'{"vms": {}}',
        b'{"vms": [1]}',
        b'{"vms": [{}]}',
        b'{"vms": [{"id": "0"}]}',
        b'{"vms": [{"id": 0, "name": ["x"]}]}',
        b'{"vms": [{"id": 0, "devices": [0]}]}',
        b'{"devices": [{"id": 0, "host_irq": "11"}]}',
        b'{"devices": [{"id": 0, "msi": 1}]}',
    ],
)
def test_damaged_tables_end_the_trace_there(tmp_path: Path, rows: bytes) -> None:
    schema = own_schema()
    batch = pa.RecordBatch.from_arrays(columns(some_events(4)), schema=schema)
    path = tmp_path / "a.intx"
    path.write_bytes(foreign(schema, (batch, None), (batch, {TABLES_KEY: rows})))
    events, reader = read(path)
    assert len(events) == 4
    assert "damaged at byte" in reader.problem


def test_nulls_are_damage(tmp_path: Path) -> None:
    schema = pa.schema([field.with_nullable(True) for field in own_schema()], metadata=own_schema().metadata)
    arrays = columns(some_events(4))
    arrays[3] = pa.array([1, None, 3, 4], pa.uint32())
    path = tmp_path / "a.intx"
    path.write_bytes(foreign(schema, (pa.RecordBatch.from_arrays(arrays, schema=schema), None)))
    events, reader = read(path)
    assert len(events) == 0
    assert "damaged at byte" in reader.problem


def test_table_rows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intxtrace.trace.reader.MAX_TABLE_ROWS", 3)
    tables = Tables(probes=[Probe(i) for i in range(10)])
    _, reader = read(write_trace(tmp_path / "a.intx", some_events(1), tables=tables))
    assert [row.id for row in reader.tables.probes] == [0, 1, 2]


def test_a_batch_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "a.intx", some_events(1000))
    data = bytearray(path.read_bytes())
    fd = os.open(path, os.O_RDONLY)
    try:
        header: messages.Header | None = messages.read_header(fd, 0, len(data))
        while header is not None and not header.rows:
            header = messages.read_header(fd, header.end, len(data))
    finally:
        os.close(fd)
    assert header is not None
    sizes = [offset for offset, size in header.buffers if size]
    struct.pack_into("<q", data, header.body + sizes[0], 1 << 40)
    path.write_bytes(data)
    events, reader = read(path)
    assert len(events) == 0
    assert "damaged at byte" in reader.problem


def test_any_damaged_byte_is_survived(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "a.intx", some_events(3))
    whole = path.read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 0xFF
        path.write_bytes(data)
        try:
            reader = TraceReader(path)
        except IntxtraceError:
            continue
        with reader:
            assert sum(len(batch) for batch, _ in reader.iter_batches()) in (0, 3)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_after_a_valid_begin(garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.intx"
        path.write_bytes(foreign(own_schema())[: -len(messages.END_MARK)] + garbage)
        events, reader = read(path)
    assert len(events) == 0
    assert reader.truncated == (garbage != messages.END_MARK)


def test_strings_that_cannot_be_printed_are_made_printable() -> None:
    assert load_json(rb'{"a\ud800": ["\udc80x"]}') == {"a?": ["?x"]}


def test_metadata_of_this_host_anchors_the_clock() -> None:
    import time

    metadata = Metadata.of_this_host(["intxtrace"])
    assert metadata.realtime(time.monotonic_ns()) == pytest.approx(time.time_ns(), abs=10**9)
    assert replace(metadata, clock="realtime").realtime(5) == 5
    assert replace(metadata, clock="none").realtime(5) is None
    assert replace(metadata, realtime_anchor_ns=None).realtime(5) is None
