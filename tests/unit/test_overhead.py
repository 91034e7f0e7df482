"""What the probes cost: from the kernel's counts to a row, from rows to an interrupt, and in every output."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import intxtrace
from intxtrace.analysis import Summary, analyse
from intxtrace.analysis.inventory import inventory
from intxtrace.analysis.overhead import HOT_PATH, overhead
from intxtrace.analysis.results import PathOverhead
from intxtrace.capture.overhead import _body, _difference
from intxtrace.capture.run_times import take_runs
from intxtrace.events import Kind
from intxtrace.render.html import write_report
from intxtrace.render.json import summary as summary_json
from intxtrace.render.text import print_info, print_summary
from intxtrace.render.words import path_overhead, probe_cost
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Probe, Tables
from tests.frames_sample import sample, sample_metadata, tables
from tests.unit.traces import METADATA, some_events, some_tables, write_trace


def test_the_code_that_is_timed_begins_as_the_function_does() -> None:
    for begin in ("53", "554889e5", "4156", "4157415641", "50"):
        assert _body(begin)[0] == 0x53
    assert _body("f30f1efa") == bytes.fromhex("f30f1efac3")
    for begin in ("", "4883ec28", "f30f1e", "4c89f8", "4158", "415f", "e8000000"):
        assert _body(begin)[:2] == bytes.fromhex("89f8")


def test_the_quickest_batches_are_held_against_each_other() -> None:
    assert _difference([100_000, 12_000, 15_400], [9_000, 9_900, 70_000], 100) == 30
    assert _difference([9_000], [9_000], 1) is None
    assert _difference([8_000], [9_000], 1) is None


def test_runs_of_entry_and_return_are_those_of_one_call() -> None:
    row = Probe(0)
    take_runs(row, [])
    assert (row.runs, row.run_ns) == (None, None)
    take_runs(row, [(0, [])])
    assert (row.runs, row.run_ns) == (0, None)
    take_runs(row, [(10, [390, 400, 9_000]), (9, [150, 250])])
    assert (row.runs, row.run_ns) == (9, 600)
    take_runs(row, [(10, [400]), (0, [])])
    assert (row.runs, row.run_ns) == (0, None)


def test_a_trace_keeps_what_was_found_while_it_was_written(tmp_path: Path) -> None:
    known = some_tables()
    path = tmp_path / "a.intx"
    with intxtrace.trace.writer.TraceWriter(path, METADATA) as writer:
        writer.write(some_events(3), known)
        take_runs(known.probes[0], [(3, [300])])
        known.probes[0].attach_ns = 57
        writer.write(some_events(2), known)
    first, second = intxtrace.open_trace(path).tables.probes
    assert (first.attach_ns, first.run_ns, first.runs) == (57, 300, 3)
    assert (second.attach_ns, second.run_ns, second.runs) == (None, None, None)


def probes_of(path: str, attach_ns: int | None = 100, run_ns: int | None = 400) -> list[Probe]:
    """A measured row for each probe of the hot path."""
    kinds = dict.fromkeys(hit.kinds[0] for hit in HOT_PATH[path])
    return [
        Probe(
            number, name=kind.name, kinds=[kind.name], state="attached", attach_ns=attach_ns, run_ns=run_ns, runs=1_000
        )
        for number, kind in enumerate(kinds)
    ]


@pytest.fixture(name="found", scope="module")
def _found() -> Summary:
    return analyse(sample(5_000), sample_metadata(), Tables(tables().probes, tables().vms, tables().devices))


def costs(found: Summary, probes: list[Probe], metadata: Metadata = METADATA) -> dict[str, PathOverhead]:
    device = found.devices[0]
    return {one.path: one for one in overhead(device.latency, probes, metadata)}


def test_an_interrupt_costs_what_its_probes_cost_as_often_as_it_hits_them(found: Summary) -> None:
    hits = sum(hit.times for hit in HOT_PATH["kernel"])
    kernel = costs(found, probes_of("kernel"))["kernel"]
    (latency,) = (one for one in found.devices[0].latency if one.path == "kernel")
    assert kernel.probes_ns == 500 * hits
    assert kernel.masked_ns == latency.masked_ns.p50
    assert kernel.masked_ns
    assert kernel.share == round(500 * hits / kernel.masked_ns, 4)

    rows = probes_of("kernel")
    (waking,) = (row for row in rows if row.kinds == ["KVM_SET_IRQ"])
    waking.run_ns = 1_400
    assert costs(found, rows)["kernel"].probes_ns == 500 * hits + 2 * 1_000


def test_a_probe_that_is_not_there_costs_nothing(found: Summary) -> None:
    hits = sum(hit.times for hit in HOT_PATH["kernel"])
    rows = probes_of("kernel")
    rows[0].state = "missing"
    assert costs(found, rows)["kernel"].probes_ns == 500 * (hits - 1)
    assert costs(found, rows[1:])["kernel"].probes_ns == 500 * (hits - 1)


@pytest.mark.parametrize("field", ["attach_ns", "run_ns", "runs"])
def test_what_was_not_measured_is_not_known(found: Summary, field: str) -> None:
    rows = probes_of("kernel")
    setattr(rows[3], field, None)
    assert costs(found, rows)["kernel"] == PathOverhead("kernel", None, costs(found, [])["kernel"].masked_ns, None)
    rows[3].attach_ns, rows[3].run_ns, rows[3].runs = 100, None, 0  # it was measured, but never ran
    assert costs(found, rows)["kernel"].probes_ns is None


def test_alternatives_count_as_often_as_they_ran(found: Summary) -> None:
    rows = probes_of("userspace")
    (read,) = (row for row in rows if row.kinds == ["QEMU_REGION_READ"])
    once = costs(found, rows)["userspace"].probes_ns
    assert once is not None
    write = Probe(99, kinds=["QEMU_REGION_WRITE"], state="attached", attach_ns=100, run_ns=None, runs=0)
    assert costs(found, [*rows, write])["userspace"].probes_ns == once
    write.runs, write.run_ns = 3_000, 800
    assert costs(found, [*rows, write])["userspace"].probes_ns == once + 300
    read.runs = 0
    assert costs(found, [*rows, write])["userspace"].probes_ns == once + 400
    other_binary = replace(read, id=100, runs=None, run_ns=None)
    assert costs(found, [*rows, write, other_binary])["userspace"].probes_ns == once + 400


def test_recordings_of_other_tools_have_no_cost(found: Summary) -> None:
    imported = replace(METADATA, extra={"imported_from": "ftrace text"})
    assert costs(found, probes_of("kernel"), imported) == {}


def test_a_forged_trace_gives_figures_all_the_same(found: Summary) -> None:
    rows = probes_of("kernel", attach_ns=-(1 << 62), run_ns=(1 << 63) - 1)
    rows[2].runs = -5
    assert costs(found, rows)["kernel"].probes_ns is None
    rows[2].runs = (1 << 63) - 1
    one = costs(found, rows)["kernel"]
    assert one.probes_ns is not None
    assert one.probes_ns > 0
    assert "%" in path_overhead(one)


def test_every_hit_names_a_kind_and_a_reason() -> None:
    assert set(HOT_PATH) == {"kernel", "hybrid", "userspace"}
    for hits in HOT_PATH.values():
        assert all(hit.times > 0 and hit.why and hit.kinds for hit in hits)
        assert hits[0].kinds == (Kind.HANDLER_ENTRY,)


def test_words() -> None:
    assert probe_cost(None, None, None) == ""
    assert probe_cost(None, None, 0) == ""
    assert probe_cost(71, None, 0) == "costs a call 71 ns and its run time"
    assert probe_cost(71, 412, 1_024) == "costs a call 71 ns + 412 ns (median, 1,024 runs)"
    assert probe_cost(None, 412, 9) == "costs a call an unknown time + 412 ns (median, 9 runs)"
    assert path_overhead(PathOverhead("kernel", 6_100, 41_000, 0.1488)) == "kernel about 6.10 µs of 41.0 µs (15 %)"
    assert path_overhead(PathOverhead("kernel", 61, 41_000, 0.0015)) == "kernel about 61 ns of 41.0 µs (under 1 %)"
    assert path_overhead(PathOverhead("kernel", 90_000, 41_000, 2.1951)) == "kernel about 90.0 µs of 41.0 µs (220 %)"
    assert path_overhead(PathOverhead("kernel", 61, None, None)) == "kernel about 61 ns"
    assert path_overhead(PathOverhead("kernel", None, 41_000, None)) == "kernel not measured"


def screen() -> Console:
    return Console(width=80, file=io.StringIO(), force_terminal=False, color_system=None)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_text_json_and_page_say_it() -> None:
    known = tables()
    known.probes = [*probes_of("kernel"), Probe(90, name="irqfd_extra", state="attached", method="kprobe")]
    found = analyse(sample(5_000), sample_metadata(), known)
    (kernel,) = (one for one in found.overhead if one.path == "kernel")
    assert kernel.share is not None
    console = screen()
    print_summary(found, console)
    line = f"the probes' own share of masked time: {', '.join(map(path_overhead, found.overhead))}"
    assert line in printed(console)
    data = json.loads(summary_json(found))["data"]
    assert {"path": "kernel", **vars(kernel)} in data["overhead"]
    assert (data["probes"][0]["attach_ns"], data["probes"][0]["runs"]) == (100, 1_000)
    page = write_report(found)
    assert path_overhead(kernel) in page
    assert "costs a call 100 ns + 400 ns (median, 1,000 runs)" in page

    nothing = replace(found, overhead=())
    console = screen()
    print_summary(nothing, console)
    assert "own share" not in printed(console)
    assert "own share" not in write_report(nothing)


def test_info_says_it(tmp_path: Path) -> None:
    known = some_tables()
    known.probes[0].attach_ns, known.probes[0].run_ns, known.probes[0].runs = 57, 300, 3
    trace = intxtrace.open_trace(write_trace(tmp_path / "a.intx", some_events(3), tables=known))
    console = screen()
    print_info(inventory(trace, trace.iter_events()), console)
    assert "fentry, costs a call 57 ns + 300 ns (median, 3 runs)" in printed(console)
