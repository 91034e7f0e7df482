"""The analysis against plain numpy, and against itself fed in pieces."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ddsketch import DDSketch
from hypothesis import given, settings
from hypothesis import strategies as st

from intxtrace.analysis import Analysis, Options, Summary, analyse
from intxtrace.analysis.bins import TIME_STEPS, SparseCounts, time_step
from intxtrace.analysis.bursts import BurstFinder
from intxtrace.analysis.histogram import ACCURACY, Histogram
from intxtrace.analysis.results import MEASURES, Distribution, Interrupt, PathLatency
from intxtrace.frames import COUNTERS, INTERRUPTS, OUTCOMES, PATHS, empty
from intxtrace.trace.tables import Device, Probe, Tables, Vm
from tests.frames_sample import (
    BEGIN,
    MS,
    STEADY,
    Batch,
    S,
    counters,
    interrupts,
    sample,
    sample_metadata,
    states,
    tables,
)

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "p99_99": 0.9999}


def summarise(*batches: Batch, clock: str = "monotonic", known: Tables | None = None, **options: Any) -> Summary:
    return analyse(batches, sample_metadata(clock=clock), known or tables(), Options(**options))


def only(frame: pd.DataFrame) -> Batch:
    return frame, states().iloc[:0], empty(COUNTERS)


def count_rows(*rows: tuple[object, ...]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=list(COUNTERS))
    return frame.astype({name: dtype for name, (dtype, _) in COUNTERS.items()})


def assert_close(found: Distribution, values: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    assert found.count == len(values)
    assert (found.min, found.max) == (values.min(), values.max())
    assert found.mean == round(int(values.sum()) / len(values), 1)
    for name, q in QUANTILES.items():
        estimate = getattr(found, name)
        if name == "p99_99" and len(values) < 10_000:
            assert estimate is None
            continue
        exact = np.quantile(values, q, method="lower")
        assert type(estimate) is int
        assert abs(estimate - exact) <= 0.01 * exact


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=300), st.integers(0, 300))
def test_histogram_is_within_one_percent_and_merges(values: list[int], cut: int) -> None:
    array = np.array(values, np.int64)
    whole, first, second = Histogram(), Histogram(), Histogram()
    whole.add(array)
    first.add(array[:cut])
    second.add(array[cut:])
    first.merge(second)
    assert_close(whole.distribution(), array)
    assert first.distribution() == whole.distribution()
    assert first.log_bins(10) == whole.log_bins(10)
    assert sum(whole.log_bins(20).counts) == len(values)


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=300))
def test_percentiles_are_those_of_the_ddsketch_library(values: list[int]) -> None:
    histogram, sketch = Histogram(), DDSketch(ACCURACY)
    histogram.add(np.array(values, np.int64))
    for value in values:
        sketch.add(value)
    found = histogram.distribution()
    for name in ("p50", "p90", "p99", "p99_9"):
        expected = sketch.get_quantile_value(QUANTILES[name])
        assert expected is not None
        assert getattr(found, name) == min(max(round(expected), min(values)), max(values))


def test_histogram_knows_p99_99_from_ten_thousand_samples_on() -> None:
    histogram = Histogram()
    histogram.add(np.arange(9_999))
    assert histogram.distribution().p99_99 is None
    histogram.add(np.array([9_999]))
    assert histogram.distribution().p99_99 is not None


def test_histogram_of_nothing_knows_nothing() -> None:
    assert Histogram().distribution() == Distribution(0, *[None] * 8)


def test_histogram_refuses_negative_values() -> None:
    with pytest.raises(ValueError, match="-1"):
        Histogram().add(np.array([5, -1]))


def test_histogram_sums_beyond_64_bits() -> None:
    histogram = Histogram()
    histogram.add(np.full(4, 2**62))
    assert histogram.sum == 2**64


def test_statistics_agree_with_numpy() -> None:
    frame = interrupts(30_000)
    (device, *_) = summarise(only(frame)).devices
    complete = frame[frame["outcome"] == "complete"]
    for found in device.latency:
        part = complete if found.path == "all" else complete[complete["path"] == found.path]
        assert found.complete == len(part)
        assert found.unmeasured == part["masked_ns"].isna().sum()
        for measure in MEASURES:
            values = part[measure].dropna().to_numpy(np.int64)
            distribution = getattr(found, measure)
            if len(values):
                assert_close(distribution, values)
            else:
                assert distribution == Distribution(0, *[None] * 8)
    assert [found.path for found in device.latency][-1] == "all"


def test_mean_parts_add_up_to_the_mean_masked_time() -> None:
    for found in summarise(only(interrupts(5_000))).devices[0].latency:
        assert found.mean_parts is not None
        parts = sum(getattr(found.mean_parts, f.name) for f in fields(found.mean_parts))
        assert parts == pytest.approx(found.masked_ns.mean, abs=0.5)


def test_only_complete_interrupts_enter_latency_and_all_are_counted() -> None:
    frame = interrupts(4_000)
    found = summarise(only(frame))
    device = found.devices[0]
    for column, words in (("path", device.counts.path), ("origin", device.counts.origin)):
        assert {word: n for word, n in words.items() if n} == frame[column].value_counts().to_dict()
    assert device.counts.outcome == {name: int((frame["outcome"] == name).sum()) for name in OUTCOMES}
    assert all(device.counts.outcome[name] for name in OUTCOMES)
    assert device.counts.total == sum(row.count for row in device.counts.rows) == 4_000
    assert device.counts.coalesced == int(frame["coalesced"].sum())
    assert device.latency[-1].complete == device.counts.outcome["complete"] < 4_000
    assert all(row.outcome == "complete" for row in device.slowest)
    assert sum(sum(path.rate) for path in device.figures) == 4_000
    drawn = sum(count for path in device.figures for _, _, count in path.density)
    assert drawn == device.latency[-1].masked_ns.count


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 1_200), max_size=6), st.randoms(use_true_random=False))
def test_feeding_pieces_gives_the_same_summary(cuts: list[int], random: Any) -> None:
    network, usb = sample(1_200)
    frame = pd.concat([network[0], usb[0]], ignore_index=True).sort_values("raised_at", ignore_index=True)
    state = pd.concat([network[1], usb[1]], ignore_index=True)
    counter = pd.concat([network[2], usb[2]], ignore_index=True)
    whole = summarise((frame, state, counter), windows=8)
    edges = sorted({0, len(frame), *cuts})
    pieces: list[Batch] = []
    for begin, end in pairwise(edges):
        share = slice(len(counter) * begin // len(frame), len(counter) * end // len(frame))
        pieces.append((frame.iloc[begin:end], state.iloc[:0], counter.iloc[share]))
    place = random.randrange(len(pieces))
    pieces[place] = (pieces[place][0], state, pieces[place][2])
    assert summarise(*pieces, windows=8) == whole


def test_slowest_are_the_longest_masked_and_ties_go_by_id() -> None:
    frame = interrupts(500, strays=0)
    frame["masked_ns"] = frame["masked_ns"].where(frame["masked_ns"].isna(), 1_000)
    long = frame["id"].isin([8, 401])
    frame["masked_ns"] = frame["masked_ns"].mask(long, 2_000)
    frame["outcome"] = frame["outcome"].mask(long, "complete")
    usable = frame[(frame["outcome"] == "complete") & frame["masked_ns"].notna()]
    expected = [8, 401, *usable.loc[~usable["id"].isin([8, 401]), "id"].head(3)]
    for pieces in ([frame], [frame.iloc[250:], frame.iloc[:250]]):
        found = summarise(*(only(piece) for piece in pieces), slowest=5)
        assert [row.id for row in found.devices[0].slowest] == expected
    assert summarise(only(frame), slowest=0).devices[0].slowest == ()


@pytest.mark.parametrize("seconds", [0.004, 3.0, 60.0, 4_000.0])
def test_a_span_of_windows_is_the_summary_of_its_interrupts(seconds: float) -> None:
    frame = interrupts(3_000, seconds=seconds)
    found = summarise(only(frame), windows=8)
    device, axis = found.devices[0], found.axis
    assert axis is not None
    edges = axis.windows
    assert 3 <= len(edges) <= 9
    assert (edges[0], edges[-1]) == (found.recording.begin_at, found.recording.end_at)
    assert all((edge - axis.begin_at) % axis.width_ns == 0 for edge in edges[1:-1])
    number = len(edges) - 1
    assert [(s.first, s.last) for s in device.spans] == [
        (a, b) for a in range(number) for b in range(a, number) if b - a + 1 < number
    ]
    instants = frame["raised_at"].fillna(frame["signalled_at"]).to_numpy(np.int64)
    for span in device.spans:
        end = edges[span.last + 1] + (span.last == number - 1)
        inside = frame[(instants >= edges[span.first]) & (instants < end)].reset_index(drop=True)
        assert span.counts.total == len(inside)
        if len(inside):
            alone = summarise(only(inside)).devices[0]
            assert (span.counts, span.latency) == (alone.counts, alone.latency)
            windows = device.windows[span.first : span.last + 1]
            slowest = sorted(
                (row for window in windows for row in window.slowest), key=lambda row: (-(row.masked_ns or 0), row.id)
            )
            assert tuple(slowest[:20]) == alone.slowest
            for figures in alone.figures:
                drawn = [w.distributions[figures.path]["masked_ns"] for w in windows if figures.path in w.distributions]
                assert sum(sum(bins.counts) for bins in drawn) == sum(figures.distributions["masked_ns"].counts)
    assert sum(span.counts.total for span in device.spans if span.first == span.last) == 3_000


def test_slow_times_are_where_a_tenth_is_three_times_the_median() -> None:
    frame = interrupts(4_000, phases=STEADY, strays=0)
    frame["masked_ns"] = frame["masked_ns"].where(frame["masked_ns"].isna(), 20 * 1_000)
    instants = frame["raised_at"].fillna(frame["signalled_at"])
    stalls = instants.between(BEGIN + 20 * S, BEGIN + 23 * S) | instants.between(BEGIN + 40 * S, BEGIN + 41 * S)
    frame["masked_ns"] = frame["masked_ns"].mask(stalls & frame["masked_ns"].notna() & (frame["id"] % 2 == 0), 90_000)
    found = summarise(only(frame))
    slow = found.devices[0].slowdowns
    assert slow.threshold_ns is not None
    assert 60_000 <= slow.threshold_ns <= 60_000 * 10**0.1
    measured = frame[(frame["outcome"] == "complete") & frame["masked_ns"].notna()]
    assert slow.count == len(slow.largest) == 2
    # The first and the last bin of a stall may be mostly before or after it.
    stalled = (measured["masked_ns"] == 90_000).sum()
    assert stalled * 0.8 <= sum(one.slow for one in slow.largest) <= stalled
    assert found.axis is not None
    width = found.axis.width_ns
    for one, (first, last) in zip(slow.largest, ((20, 23), (40, 41)), strict=True):
        assert abs(one.begin_at - (BEGIN + first * S)) <= width
        assert abs(one.end_at - (BEGIN + last * S)) <= width
        assert one.slow < one.interrupts


def test_one_slow_interrupt_is_no_slow_time() -> None:
    frame = interrupts(200, phases=STEADY, strays=0)
    frame["masked_ns"] = frame["masked_ns"].where(frame["masked_ns"].isna(), 20_000)
    frame["masked_ns"] = frame["masked_ns"].mask(frame["id"].isin([60, 140]), 900_000)
    assert summarise(only(frame)).devices[0].slowdowns.count == 0


def test_an_even_latency_has_no_slow_times() -> None:
    frame = interrupts(500)
    frame["masked_ns"] = frame["masked_ns"].where(frame["masked_ns"].isna(), 20_000)
    slow = summarise(only(frame)).devices[0].slowdowns
    assert (slow.count, slow.largest) == (0, ())


def test_interrupt_has_the_columns_of_the_frame() -> None:
    assert [f.name for f in fields(Interrupt)] == list(INTERRUPTS)


def test_slowest_rows_keep_null_and_type() -> None:
    frame = interrupts(300)
    for row in summarise(only(frame)).devices[0].slowest:
        original = frame[frame["id"] == row.id].iloc[0]
        for name in INTERRUPTS:
            value = getattr(row, name)
            assert value is None if pd.isna(original[name]) else value == original[name]
            assert type(value) in (int, str, bool, type(None))


def test_without_a_clock_nothing_is_timed() -> None:
    frame = interrupts(200, clock=False)
    found = summarise((frame, states(), counters()), clock="none")
    device = found.devices[0]
    assert device.counts.total == 200
    assert device.latency[-1].unmeasured == device.latency[-1].complete > 0
    assert device.latency[-1].masked_ns.p50 is None
    assert device.latency[-1].mean_parts is None
    assert (device.rate.mean, device.rate.peak, device.floods.bursts) == (None, None, None)
    assert device.states.time_ns == {}
    assert found.axis is None
    assert found.recording.duration_ns is None
    assert "no masked time could be measured" in device.verdict.text


def test_rates() -> None:
    frame = interrupts(1_000, strays=0)
    found = summarise(only(frame))
    instants = frame["raised_at"].fillna(frame["signalled_at"]).to_numpy(np.int64)
    seconds, per_second = np.unique(instants // S, return_counts=True)
    rate = found.devices[0].rate
    assert found.recording.duration_ns is not None
    assert rate.peak == per_second.max()
    assert rate.peak_at == seconds[per_second.argmax()] * S
    assert rate.mean == pytest.approx(1_000 / (found.recording.duration_ns / 1e9), rel=1e-3)


def test_given_ends_of_the_trace_widen_the_recording() -> None:
    analysis = Analysis(sample_metadata(), tables())
    analysis.add(interrupts(10))
    recording = analysis.finish(BEGIN - 5 * S, BEGIN + 100 * S).recording
    assert (recording.begin_at, recording.duration_ns) == (BEGIN - 5 * S, 105 * S)


def slow_bursts(instants: list[int], rate: float, window: int) -> list[tuple[int, int, int]]:
    """The definition, word by word: stretches with more than rate * window interrupts within window."""
    reach = int(rate * window / 1e9)
    found: list[tuple[int, int]] = []
    for i in range(len(instants) - reach):
        if instants[i + reach] - instants[i] <= window:
            if found and i <= found[-1][1]:
                found[-1] = (found[-1][0], i + reach)
            else:
                found.append((i, i + reach))
    return [(instants[a], instants[b], b - a + 1) for a, b in found]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_bursts_match_their_definition_for_any_cuts(gaps: list[int], cuts: list[int]) -> None:
    instants = np.cumsum(gaps)
    finder = BurstFinder(rate=4e7, window=100)  # more than 4 in 100 ns
    for piece in np.split(instants, sorted(min(cut, len(gaps)) for cut in cuts)):
        finder.add(piece)
    number, inside, length, largest = finder.finish()
    expected = slow_bursts(instants.tolist(), 4e7, 100)
    assert number == len(expected)
    assert inside == sum(count for _, _, count in expected)
    assert length == sum(end - begin for begin, end, _ in expected)
    assert sorted((b.begin_at, b.end_at, b.interrupts) for b in largest) == expected[:20]


def test_a_burst_needs_more_than_its_rate() -> None:
    exactly = np.arange(1_000) * 100_000  # 10,000/s: 101 within 10 ms counts both ends
    for instants, bursts in ((exactly, 1), (np.arange(1_000) * 100_001, 0)):
        finder = BurstFinder(10_000, 10 * MS)
        finder.add(instants)
        assert finder.finish()[0] == bursts


def test_instants_out_of_order_make_no_burst_and_are_counted() -> None:
    finder = BurstFinder(10_000, 10 * MS)
    finder.add(np.array([S, 5, 6, 7] * 200))
    assert finder.finish()[0] == 1  # 200 at S
    assert finder.late == 600


@given(st.lists(st.integers(0, 10**9), max_size=50), st.integers(2, 1000))
def test_joining_bins_is_counting_in_wider_ones(values: list[int], factor: int) -> None:
    array = np.array(values, np.int64)
    fine, coarse = SparseCounts(), SparseCounts()
    fine.add(array)
    fine.map_keys(fine.keys // factor)
    coarse.add(array // factor)
    assert fine.keys.tolist() == coarse.keys.tolist()
    assert fine.counts.tolist() == coarse.counts.tolist()


def test_time_steps_nest() -> None:
    assert all(wide % narrow == 0 for narrow, wide in pairwise(TIME_STEPS))
    assert time_step(0, 199 * MS, 200) == MS
    assert time_step(0, 200 * MS, 200) == 5 * MS


def test_states_add_up_to_the_recording() -> None:
    found = summarise((interrupts(100), states(), empty(COUNTERS)))
    device = found.devices[0]
    assert sum(device.states.time_ns.values()) == found.recording.duration_ns
    assert device.states.changes == len(device.states.intervals) == 6
    assert device.states.time_ns["off"] == pytest.approx(0.6 * S, abs=10)


def test_very_many_states_keep_exact_times_and_the_longest() -> None:
    one = states().iloc[[2]]
    many = pd.concat([one] * 500, ignore_index=True)
    many["begin_at"] = BEGIN + np.arange(500) * 1_000
    many["end_at"] = many["begin_at"] + np.arange(500)
    device = summarise((interrupts(10), many.iloc[:300], empty(COUNTERS)), only(interrupts(0 + 1))).devices[0]
    assert device.states.changes == 300
    assert device.states.time_ns == {"kernel": sum(range(300))}
    assert len(device.states.intervals) == 200
    assert min((i.end_at or 0) - i.begin_at for i in device.states.intervals) == 100


def test_counters_of_totals_and_offsets_are_not_added_up() -> None:
    row = (1, "0000:01:00.0", "win10", BEGIN // S * S)
    found = summarise(
        (
            interrupts(10),
            states(),
            count_rows(
                (*row, "bar_reads", None, None, 100),
                (*row, "bar_reads", 0, 0xC0, 70),
                (*row, "bar_reads", 0, 0x8, 30),
                (*row, "bar_writes", 0, 0xC0, 5),
                (*row, "handler_calls", None, None, 11),
                (*row, "lost", None, None, 2),
                (None, None, None, BEGIN // S * S, "lost", None, None, 3),
            ),
        )
    )
    floods = found.devices[0].floods
    assert (floods.bar_reads, floods.bar_writes, floods.handler_calls) == (100, 5, 11)
    assert [(o.region, o.offset, o.reads, o.writes) for o in floods.top_offsets] == [(0, 0xC0, 70, 5), (0, 0x8, 30, 0)]
    assert found.devices[0].lost == 2
    assert found.quality.lost == 5


def test_a_counter_without_rows_is_zero_only_if_a_probe_could_count_it() -> None:
    batch = (interrupts(10), states(), empty(COUNTERS))
    batch[0]["bar_accesses"] = pd.array([pd.NA] * 10, "Int64")
    seen = Tables([Probe(1, "x", ["HANDLER_ENTRY"], "fallback"), Probe(2, "y", ["HANDLER_EXIT"], "missing")])
    floods = summarise(batch, known=seen).devices[0].floods
    assert (floods.handler_calls, floods.unclaimed, floods.bar_reads) == (0, None, None)
    assert floods.bar_accesses.count == 0


def test_offsets_that_a_guest_scatters_are_bounded() -> None:
    rows = [(1, "0000:01:00.0", "win10", 0, "bar_reads", 0, offset, 1 + (offset == 9)) for offset in range(10_000)]
    floods = summarise((interrupts(5), states(), count_rows(*rows))).devices[0].floods
    assert floods.bar_reads == 10_001
    assert floods.top_offsets[0].offset == 9
    assert sum(o.reads for o in floods.top_offsets) + (floods.other_offsets or 0) == 10_001


def test_states_before_the_vm_is_known_belong_to_the_only_vm() -> None:
    early = states().iloc[:2].assign(vm=pd.array([None, None], "string"))
    late = states().iloc[2:]
    found = summarise((interrupts(10), pd.concat([early, late], ignore_index=True), empty(COUNTERS)))
    assert [d.vm for d in found.devices] == ["win10", "build-runner", "build-runner"]
    assert found.devices[0].states.changes == 6


def test_interrupts_of_no_known_vm_stand_by_themselves() -> None:
    found = summarise(only(interrupts(10)), only(interrupts(4, vm=None)), known=Tables())
    assert [(d.vm, d.counts.total) for d in found.devices] == [("win10", 10), (None, 4)]


def test_a_silent_device_of_the_table_is_listed() -> None:
    known = Tables([], [Vm(1, pid=7, name="quiet")], [Device(4, bdf="0000:09:00.0", host_irq=None, vm_pid=7)])
    (device,) = summarise(known=known).devices
    assert (device.vm, device.bdf, device.host_irq, device.counts.total) == ("quiet", "0000:09:00.0", None, 0)
    assert device.verdict.level == "unknown"
    assert device.latency == ()


def test_an_unknown_word_is_refused() -> None:
    frame = interrupts(5)
    frame["path"] = frame["path"].where(frame.index != 2, "teleport")
    with pytest.raises(ValueError, match="teleport"):
        summarise(only(frame))


def verdict(path: str, **more: Any) -> tuple[str, str]:
    frame = interrupts(2_000, strays=0, **more)
    frame["path"] = pd.array([path] * 2_000, "string")
    found = summarise(only(frame), burst_rate=1e6).devices[0].verdict
    return found.level, found.text


@pytest.mark.parametrize("path", PATHS)
def test_verdict_names_the_path(path: str) -> None:
    level, text = verdict(path, resignals=0)
    assert level == {"kernel": "good", "unknown": "unknown"}.get(path, "note")
    assert "all 2,000 interrupts" in text
    assert text.startswith("VM win10, 0000:01:00.0: ")
    assert path in text or path == "unknown"


def test_verdict_calls_resignals_a_flood() -> None:
    frame = interrupts(2_000, phases=(("userspace", 1.0, False, "x"),), strays=0)
    found = summarise(only(frame), burst_rate=1e6).devices[0]
    assert found.verdict.level == "bad"
    assert "resignals" in found.verdict.text
    assert found.floods.resignals == (frame["origin"] == "resignal").sum()


def test_options_must_make_sense() -> None:
    with pytest.raises(ValueError, match="burst"):
        Options(burst_rate=1)
    with pytest.raises(ValueError, match="slowest"):
        Options(slowest=-1)
    with pytest.raises(ValueError, match="windows"):
        Options(windows=0)


def test_path_latency_holds_every_measure() -> None:
    assert set(MEASURES) <= {f.name for f in fields(PathLatency)}
