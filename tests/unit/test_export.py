"""`intxtrace export`: every format is read back by somebody else's parser and compared with what the API says."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import parser as prometheus
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.samples import Sample
from pyarrow import csv, parquet

import intxtrace
from intxtrace import files, frames
from intxtrace.__main__ import main
from intxtrace.analysis import Analysis
from intxtrace.analysis.results import STAGE_MEASURES
from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD
from intxtrace.render.openmetrics import openmetrics
from intxtrace.render.perfetto import MAX_LANES, ChromeTrace
from intxtrace.render.tables import schema
from intxtrace.units import printable
from tests import frames_sample as sample
from tests.unit.traces import METADATA, some_events, write_trace

newest: Any = openmetrics_parser  # it has no types
TRACES = Path(__file__).parents[1] / "traces"
RECORDED = [TRACES / f"{name}.intx" for name in ("userspace-6.1", "kernel-6.12", "hybrid-6.1", "pair-kernel-6.1")]
FORMATS = ("parquet", "csv", "jsonl", "perfetto", "openmetrics")


def export(tmp_path: Path, trace: Path, form: str, *options: str) -> Path:
    out = tmp_path / f"out.{form}"
    assert main(["export", str(trace), "--format", form, "-o", str(out), *options]) == 0
    return out


def same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found.reset_index(drop=True), wanted.reset_index(drop=True), check_dtype=False)


@pytest.mark.parametrize("trace", RECORDED, ids=lambda path: path.stem)
@pytest.mark.parametrize("table", ["interrupts", "states"])
def test_tables_say_what_the_frames_say(trace: Path, table: str, tmp_path: Path) -> None:
    opened = intxtrace.open_trace(trace)
    wanted = getattr(opened, table)
    assert len(wanted)
    contract = frames.INTERRUPTS if table == "interrupts" else frames.DEVICE_STATES
    dtypes = {name: dtype for name, (dtype, _) in contract.items()}

    written = parquet.read_table(export(tmp_path, trace, "parquet", "--table", table))
    same(written.to_pandas(types_mapper=_nullable).astype(dtypes), wanted)
    assert json.loads(written.schema.metadata[b"intxtrace"])["hostname"] == opened.metadata.hostname
    assert written.schema.field("bdf").metadata == {b"description": b"PCI address of the device"}

    types = {field.name: field.type for field in schema(table, opened.metadata)}
    options = csv.ConvertOptions(column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False)
    read = csv.read_csv(export(tmp_path, trace, "csv", "--table", table), convert_options=options)
    same(read.to_pandas(types_mapper=_nullable).astype(dtypes), wanted)

    lines = [json.loads(line) for line in export(tmp_path, trace, "jsonl", "--table", table).read_text().splitlines()]
    same(pd.DataFrame(lines, columns=list(contract), dtype=object).astype(dtypes), wanted)


@pytest.mark.parametrize("table", ["interrupts", "states"])
def test_polars_reads_the_same_rows(table: str, tmp_path: Path) -> None:
    """Somebody else's reader of all three, with the columns' types: every value, and null where nothing is known."""
    frame = getattr(intxtrace.open_trace(RECORDED[3]), table)
    wanted = frame.astype(object).where(frame.notna(), None).to_dict("records")
    contract = frames.INTERRUPTS if table == "interrupts" else frames.DEVICE_STATES
    types = {"Int64": pl.Int64, "string": pl.String, "boolean": pl.Boolean}
    columns: Any = {name: types[dtype] for name, (dtype, _) in contract.items()}
    assert pl.read_parquet(export(tmp_path, RECORDED[3], "parquet", "--table", table)).rows(named=True) == wanted
    for form, read in (("csv", pl.read_csv), ("jsonl", pl.read_ndjson)):
        found = read(export(tmp_path, RECORDED[3], form, "--table", table), schema=columns)
        assert found.rows(named=True) == wanted


def _nullable(kind: pa.DataType) -> Any:
    return {pa.int64(): pd.Int64Dtype(), pa.string(): pd.StringDtype(), pa.bool_(): pd.BooleanDtype()}.get(kind)


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_events_keep_every_bit(form: str, tmp_path: Path) -> None:
    events = [some_events(3000), some_events(2000, first_ts=2_000_000_000, seed=1)]
    events[0]["kind"][7] = 999  # of a newer version
    trace = write_trace(tmp_path / "a.intx", *events)
    out = export(tmp_path, trace, form, "--table", "events")
    if form == "jsonl":
        found = pa.Table.from_pylist(
            [json.loads(line) for line in out.read_text().splitlines()], schema("events", METADATA)
        )
    elif form == "csv":
        types = {field.name: field.type for field in schema("events", METADATA)}
        found = csv.read_csv(out, convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=True))
    else:
        found = parquet.read_table(out)
    whole = np.concatenate(events)
    for name in RECORD.names or ():
        assert np.array_equal(found[name].to_numpy(), whole[name]), name
    names = intxtrace.open_trace(trace).events["kind_name"]
    assert found["kind_name"].to_pylist() == [None if pd.isna(name) else name for name in names]
    assert found["kind_name"][7].as_py() is None


def test_events_by_time(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "a.intx", some_events(1000))
    out = export(tmp_path, trace, "parquet", "--table", "events", "--from", "100us", "--to", "200us")
    assert parquet.read_table(out)["ts"].to_numpy().tolist() == [1_000_000_000 + 1000 * i for i in range(100, 200)]


def test_filters_hold_for_every_format(tmp_path: Path) -> None:
    trace = RECORDED[0]
    rows = intxtrace.open_trace(trace).interrupts
    wanted = rows[(rows["origin"] == "resignal").fillna(False)]
    assert 0 < len(wanted) < len(rows)
    read = parquet.read_table(export(tmp_path, trace, "parquet", "--origin", "resignal")).to_pandas()
    assert read["id"].tolist() == wanted["id"].tolist()
    drawn = json.loads(export(tmp_path, trace, "perfetto", "--origin", "resignal").read_text())["traceEvents"]
    assert sorted(e["args"]["id"] for e in drawn if e.get("cat") == "userspace") == wanted["id"].tolist()
    counted = metrics(export(tmp_path, trace, "openmetrics", "--origin", "resignal").read_text())
    assert [s.value for s in counted["intxtrace_interrupts"]] == [len(wanted)]


# --- Perfetto


def drawing(text: str) -> dict[str, list[dict[str, Any]]]:
    """Check a trace by the rules of the Trace Event Format, and return its events by phase.

    Slices of a track nest, flows begin and end inside of slices, all that is drawn has a named process and track.
    """
    document = json.loads(text)
    assert document.keys() == {"displayTimeUnit", "traceEvents"}
    phases: dict[str, list[dict[str, Any]]] = defaultdict(list)
    required = {
        "B": {"name"},
        "E": set(),
        "C": {"name", "args"},
        "s": {"id", "cat", "name"},
        "f": {"id", "cat", "name"},
    }
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in document["traceEvents"]:
        phases[event["ph"]].append(event)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            continue
        assert required[event["ph"]] <= event.keys()
        assert isinstance(event["ts"], float | int)
        assert event["pid"] > 0
        if event["ph"] != "C":
            tracks[event["pid"], event["tid"]].append(event)
    named = {e["pid"] for e in phases["M"] if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]) for e in phases["M"] if e["name"] == "thread_name"}
    assert {e["pid"] for e in phases["C"]} | {pid for pid, _ in tracks} <= named
    assert tracks.keys() == threads
    assert len({tid for _, tid in threads}) == len(threads)
    for events in tracks.values():
        depth, before = 0, -math.inf
        for event in events:  # in order of the file, which is that of time on each track
            assert event["ts"] >= before
            before = event["ts"]
            depth += {"B": 1, "E": -1}.get(event["ph"], 0)
            assert depth >= (0 if event["ph"] == "E" else 1)
        assert depth == 0
    begun, ended = ([event["id"] for event in phases[phase]] for phase in "sf")
    assert sorted(begun) == sorted(ended)
    assert len(set(begun)) == len(begun)
    assert all(event["bp"] == "e" for event in phases["f"])
    return phases


def slices(phases: dict[str, list[dict[str, Any]]], text: str) -> Iterator[tuple[str, str, int, int, dict[str, Any]]]:
    """Yield every slice: track, name, begin and end in ns after the zero, arguments."""
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in phases["M"] if e["name"] == "thread_name"}
    stacks: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in json.loads(text)["traceEvents"]:
        if event["ph"] == "B":
            stacks[event["tid"]].append(event)
        elif event["ph"] == "E":
            begun = stacks[event["tid"]].pop()
            track = names[event["pid"], event["tid"]].partition(",")[0]
            yield track, begun["name"], round(begun["ts"] * 1000), round(event["ts"] * 1000), begun.get("args", {})


@pytest.mark.parametrize("trace", RECORDED, ids=lambda path: path.stem)
def test_perfetto_draws_every_interrupt_stage_state_and_flood(trace: Path, tmp_path: Path) -> None:
    opened = intxtrace.open_trace(trace)
    text = export(tmp_path, trace, "perfetto").read_text()
    phases = drawing(text)
    found = list(slices(phases, text))
    zero = (opened.begin_at or 0) // 10**9 * 10**9
    rows = opened.interrupts
    interrupts = [one for one in found if one[0] in frames.PATHS and one[1] in frames.ORIGINS]
    outer = {args["id"]: (track, begin + zero, end + zero) for track, _, begin, end, args in interrupts}
    assert sorted(outer) == rows["id"].tolist()
    stages = ["raised_at", "signalled_at", "injected_at", "acknowledged_at", "unmasked_at"]
    for row in rows.to_dict("records"):
        known = [row[stage] for stage in stages if not pd.isna(row[stage])]
        assert outer[row["id"]] == (row["path"], min(known), max(known))
    for measure in STAGE_MEASURES:
        drawn = sorted(end - begin for _, name, begin, end, _ in found if name == measure.removesuffix("_ns"))
        assert drawn == sorted(rows[measure].dropna().tolist())
    until = {args["id"]: end + zero for track, name, _, end, args in found if track == "guest"}
    ends = rows[rows["eoi_at"].notna()]
    assert until == dict(zip(ends["id"].tolist(), ends["eoi_at"].tolist(), strict=True))
    assert sorted(event["id"] for event in phases["f"]) == sorted(until)
    states = [name for track, name, *_ in found if track == "state"]
    assert states == opened.states["state"].tolist()
    counters = opened.counters[opened.counters["offset"].isna()]
    for counter, total in counters.groupby("counter")["count"].sum().items():
        assert sum(e["args"]["a second"] for e in phases["C"] if e["name"] == counter) == total


def test_perfetto_says_that_a_flood_is_over() -> None:
    parts: list[bytes] = []
    chrome = ChromeTrace(parts.append, 0)
    rows = [
        (1, "unclaimed", 1, None, 5),
        (1, "unclaimed", 2, None, 6),
        (1, "unclaimed", 7, None, 7),
        (1, "bar_reads", 3, 0x10, 8),  # only by offset: both make the total
        (1, "bar_reads", 3, 0x20, 9),
        (1, "bar_writes", 4, None, 10),  # a total, beside which the offsets do not count
        (1, "bar_writes", 5, 0x10, 10),
        (None, "lost", 1, None, 3),
    ]
    made = pd.DataFrame(rows, columns=["device", "counter", "begin_at", "offset", "count"])
    made["begin_at"] *= 10**9
    counters = made.reindex(columns=list(frames.COUNTERS))
    counters = counters.astype({name: dtype for name, (dtype, _) in frames.COUNTERS.items()})
    chrome.add(frames.empty(frames.INTERRUPTS), frames.empty(frames.DEVICE_STATES), counters, None)
    chrome.finish()
    phases = drawing(b"".join(parts).decode())
    counted = defaultdict(list)
    for event in phases["C"]:
        counted[event["name"]].append((event["ts"] / 1e6, event["args"]["a second"]))
    assert counted == {
        "unclaimed": [(1, 5), (2, 6), (3, 0), (7, 7), (8, 0)],
        "bar_reads": [(3, 17), (4, 0)],
        "bar_writes": [(4, 10), (5, 0)],
        "lost": [(1, 3), (2, 0)],
    }
    assert {event["args"]["name"] for event in phases["M"]} == {"no device"}


def test_perfetto_writes_exact_instants_before_and_after_its_zero() -> None:
    chrome = ChromeTrace(lambda _: None, 5_000)
    assert [chrome._ts(ns) for ns in (5_000, 5_001, 1_005_000 + 5_000, 4_999, 3_999)] == [
        "0.000",
        "0.001",
        "1005.000",
        "-0.001",
        "-1.001",
    ]


def test_perfetto_gives_overlapping_interrupts_tracks_of_their_own() -> None:
    parts: list[bytes] = []
    chrome = ChromeTrace(parts.append, 0)
    rows = frames.empty(frames.INTERRUPTS).reindex(range(MAX_LANES + 6))
    rows["id"], rows["raised_at"], rows["unmasked_at"] = range(1, len(rows) + 1), range(100, 100 + len(rows)), 10_000
    rows["eoi_at"] = 10_000
    rows["path"], rows["origin"], rows["outcome"] = "kernel", "hardware", "complete"
    rows["vm"], rows["bdf"] = sample.HOSTILE + '"\n', "0000:01:00.0"
    rows["device"] = 1
    rows = rows.astype({name: dtype for name, (dtype, _) in frames.INTERRUPTS.items()})
    chrome.add(rows, frames.empty(frames.DEVICE_STATES), frames.empty(frames.COUNTERS), None)
    chrome.finish()
    phases = drawing(b"".join(parts).decode())
    tracks = [e["args"]["name"] for e in phases["M"] if e["name"] == "thread_name"]
    assert tracks[:3] == ["kernel", "kernel, overlapping 2", "kernel, overlapping 3"]
    assert len(tracks) == 2 * MAX_LANES
    assert chrome.left_out == 6


# --- OpenMetrics


def metrics(text: str) -> dict[str, list[Sample]]:
    """Read a text with both parsers, which must find the same samples."""
    families = {family.name: family.samples for family in newest.text_string_to_metric_families(text)}
    older = [s for family in prometheus.text_string_to_metric_families(text) for s in family.samples]
    newer = [s for samples in families.values() for s in samples]
    assert _values(older) == _values(newer)
    # What expfmt/text_parse.go takes as a type.
    types = {line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    assert types <= {"counter", "gauge", "histogram", "summary", "untyped"}
    return families


def _values(samples: list[Sample]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {(s.name, frozenset(s.labels.items())): s.value for s in samples}
    assert len(found) == len(samples)
    return found


def summary_of(hostile: bool = False) -> Any:
    tables = sample.tables(hostile)
    analysis = Analysis(sample.sample_metadata(), tables)
    for batch in sample.sample(hostile=hostile):
        analysis.add(*batch)
    return analysis.finish()


def test_openmetrics_agree_with_the_summary() -> None:
    found = summary_of()
    families = metrics(openmetrics(found))
    device = found.devices[0]
    labels = {"device": device.bdf, "vm": device.vm}
    counted = {
        (s.labels["path"], s.labels["origin"], s.labels["outcome"]): s.value
        for s in families["intxtrace_interrupts"]
        if s.labels["device"] == device.bdf
    }
    assert counted == {(row.path, row.origin, row.outcome): row.count for row in device.counts.rows}
    for path in device.latency:
        if path.path == "all":
            continue
        for measure in ("masked_ns", *STAGE_MEASURES):
            masked = measure == "masked_ns"
            stage = {} if masked else {"stage": measure.removesuffix("_ns")}
            family = families["intxtrace_masked_seconds" if masked else "intxtrace_stage_seconds"]
            mine = [s for s in family if s.labels.items() >= {**labels, "path": path.path, **stage}.items()]
            if getattr(path, measure).count:
                _check_histogram(mine, getattr(path, measure))
            else:
                assert not mine
    for name in ("unclaimed", "resignals", "reentries", "bar_reads", "noop_unmasks"):
        values = [s.value for s in families[f"intxtrace_{name}"] if s.labels == labels]
        assert values == [getattr(device.floods, name)]
    lost = families["intxtrace_lost_events"]
    assert sum(s.value for s in lost) == found.quality.lost
    states = {
        s.labels["state"]: s.value for s in families["intxtrace_state_seconds"] if s.labels["device"] == device.bdf
    }
    assert states == {state: pytest.approx(ns / 1e9) for state, ns in device.states.time_ns.items()}


def _check_histogram(samples: list[Sample], wanted: Any) -> None:
    buckets = {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_bucket")}
    (count,) = [s.value for s in samples if s.name.endswith("_count")]
    (total,) = [s.value for s in samples if s.name.endswith("_sum")]
    assert count == buckets[math.inf] == wanted.count > 0
    assert total * 1e9 / count == pytest.approx(wanted.mean, abs=0.06)
    assert list(buckets.values()) == sorted(buckets.values())
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        ns = getattr(wanted, name)
        below = [value for le, value in buckets.items() if le * 1e9 < ns * 0.99]
        above = [value for le, value in buckets.items() if le * 1e9 > ns * 1.01]
        assert max(below, default=0) <= share * count
        assert min(above) >= share * (count - 1)


def test_a_bucket_holds_what_is_below_its_bound() -> None:
    found = summary_of()
    rows = sample.sample()[0][0]
    done = rows[(rows["outcome"] == "complete") & (rows["path"] == "kernel")]["masked_ns"].dropna()
    family = metrics(openmetrics(found))["intxtrace_masked_seconds"]
    wanted = {"path": "kernel", "vm": "win10"}
    for s in family:
        if s.name.endswith("_bucket") and s.labels["le"] != "+Inf" and s.labels.items() >= wanted.items():
            bound = float(s.labels["le"]) * 1e9
            assert (done < bound * 0.99).sum() <= s.value <= (done < bound * 1.01).sum()


def test_openmetrics_escape_names_of_guests() -> None:
    found = summary_of(hostile=True)
    found.devices[0].__dict__["vm"] = 'a"b\\c\nd} 1\n# EOF\ud800\u202e' + "x" * 500
    shown = {s.labels.get("vm", "") for s in metrics(openmetrics(found))["intxtrace_interrupts"]}
    assert all(len(name) <= 200 for name in shown)
    assert any(name.startswith('a"b\\c\\nd} 1\\n# EOF\\ud800\\u202ex') for name in shown)


sampled = cache(summary_of)
ODD = st.text(st.sampled_from('a"\\\n{}=,# \t\x00\u202e\ud800é𝄞') | st.characters(), max_size=8) | st.just("x" * 250)


@settings(max_examples=25, deadline=None)
@given(ODD, ODD, st.booleans())
@example("\n", "\\n", True)
@example("x" * 250, "x" * 251, True)
def test_openmetrics_of_any_names(one: str, other: str, same_address: bool) -> None:
    """Any parser finds both VMs, and no sample twice, however alike their names look."""
    whole = sampled()
    named = [replace(device, vm=name) for device, name in zip(whole.devices, (one, other), strict=False)]
    if same_address:
        named = [replace(device, bdf="0000:09:00.0") for device in named]
    found = replace(whole, devices=(*named, *whole.devices[2:]))
    families = metrics(openmetrics(found))
    shown = {(s.labels["device"], s.labels["vm"]) for s in families["intxtrace_lost_events"] if s.labels["device"]}
    assert len(shown) == len(found.devices)
    assert {vm for _, vm in shown} >= {printable(one), printable(other)}


def test_two_devices_of_one_name_stay_apart() -> None:
    found = summary_of()
    twins = (found.devices[0], found.devices[1])
    for number, twin in enumerate(twins):
        twin.__dict__.update(bdf=None, vm=None, device=number if number else None)
    text = openmetrics(found)
    assert {s.labels["device"] for s in metrics(text)["intxtrace_lost_events"]} >= {"unknown", "#1"}
    twins[0].__dict__.update(bdf="0000:09:00.0")
    twins[1].__dict__.update(bdf="0000:09:00.0")
    assert {s.labels["device"] for s in metrics(openmetrics(found))["intxtrace_lost_events"]} >= {
        "0000:09:00.0",
        "0000:09:00.0 #1",
    }


def test_without_a_clock_there_are_counts_but_no_times() -> None:
    analysis = Analysis(sample.sample_metadata(clock="none", realtime_anchor_ns=None), sample.tables())
    analysis.add(sample.interrupts(500, clock=False))
    families = metrics(openmetrics(analysis.finish()))
    assert sum(s.value for s in families["intxtrace_interrupts"]) == 500
    assert (
        not {"intxtrace_masked_seconds", "intxtrace_recording_duration_seconds", "intxtrace_bursts"} & families.keys()
    )


# --- files


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_is_private_and_never_overwritten_unasked(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = export(tmp_path, RECORDED[0], form)
    whole = out.read_bytes()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert f"wrote {out} ({len(whole):,} bytes)" in capsys.readouterr().out
    out.write_text("mine")
    assert main(["export", str(RECORDED[0]), "--format", form, "-o", str(out)]) == 1
    assert "exists; choose another name, or overwrite it with --force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    other = tmp_path / "other"
    out.rename(other)
    out.symlink_to(other)
    assert main(["export", str(RECORDED[0]), "--format", form, "-o", str(out), "--force"]) == 0
    assert not out.is_symlink()
    assert other.read_text() == "mine"
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", out.name]
    assert main(["export", str(RECORDED[0]), "--format", form]) == 0
    suffix = {"perfetto": "perfetto.json", "openmetrics": "prom"}.get(form, form)
    assert (tmp_path / f"userspace-6.1.{suffix}").read_bytes() == whole


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), ValueError("a bug")])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_cut_short_leaves_nothing(error: Any, force: bool, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if force:
        path.write_text("before")

    def write() -> None:
        with files.whole(path, force=force) as stream:
            stream.write(b"half")
            stream.flush()
            assert path.exists() is force
            raise error

    with pytest.raises((KeyboardInterrupt, ValueError, IntxtraceError)):
        write()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == ([("a", "before")] if force else [])


def test_who_came_first_keeps_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def write() -> None:
        with files.whole(path) as stream:
            stream.write(b"ours")
            path.write_text("theirs")

    with pytest.raises(IntxtraceError, match="exists; choose another name"):
        write()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "theirs")]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with files.whole(tmp_path / "a") as stream:
        stream.write(b"whole")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "whole")]


@pytest.mark.parametrize("form", ["csv", "jsonl", "perfetto", "openmetrics"])
def test_standard_output_is_the_same(form: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "intxtrace", "export", str(RECORDED[0]), "--format", form, "-o", "-"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert done.stdout == export(tmp_path, RECORDED[0], form).read_bytes()
    assert done.stderr == b""


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "a.intx", some_events(50_000))
    command = [
        sys.executable,
        "-m",
        "intxtrace",
        "export",
        str(trace),
        "--format",
        "csv",
        "--table",
        "events",
        "-o",
        "-",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(100)
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == 141


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "xml"], "--format xml is not known; choose from parquet, csv"),
        (["--format", "csv", "--table", "x"], "--table x is not known; choose from interrupts, states, events"),
        (["--format", "perfetto", "--table", "states"], "--table has no meaning with --format perfetto"),
        (["--format", "parquet", "-o", "-"], "Parquet is no text for standard output; name a file with -o"),
        (["--format", "csv", "--table", "events", "--path", "kernel"], "--path cannot be told of single events"),
        (["--format", "csv", "-o", "no/where.csv"], "the folder no does not exist"),
        (["--format", "csv", "-o", "/dev/full", "--force"], "/dev/full is not a regular file"),
        (["--format", "csv", "-o", "TRACE", "--force"], "is the trace itself"),
        (["--format", "csv", "--vm", "nobody"], "there is no VM nobody in this trace"),
        ([], "Missing option '--format'"),
    ],
)
def test_wrong_input(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "a.intx"
    trace.write_bytes(RECORDED[0].read_bytes())
    assert main(["export", str(trace), *(str(trace) if word == "TRACE" else word for word in options)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("intxtrace: ")
    assert says in shown.err
    assert shown.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.intx"]


def test_a_trace_without_a_clock_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_trace(tmp_path / "a.intx", metadata=replace(METADATA, clock="none", realtime_anchor_ns=None))
    assert main(["export", str(trace), "--format", "perfetto", "-o", str(tmp_path / "b")]) == 1
    assert "the trace has no clock" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMATS)
def test_a_trace_without_events(form: str, tmp_path: Path) -> None:
    out = export(tmp_path, write_trace(tmp_path / "a.intx"), form)
    if form == "parquet":
        assert parquet.read_table(out).num_rows == 0
    elif form == "perfetto":
        drawing(out.read_text())
    elif form == "openmetrics":
        metrics(out.read_text())
    else:
        assert out.read_text().count("\n") == (1 if form == "csv" else 0)
