"""Report, summary text, JSON and DataFrames of one trace: the same figures, every one of them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import intxtrace
from intxtrace import units
from intxtrace.__main__ import main
from intxtrace.analysis.results import MEASURES
from intxtrace.frames import ORIGINS, OUTCOMES, PATHS
from intxtrace.render.html import STATISTICS
from tests.generate import Mix, events_for, write

RECORDINGS = sorted((Path(__file__).parents[1] / "traces").glob("*.intx"))
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "p99_99": 0.9999}
COUNTERS = ("handler_calls", "unclaimed", "spurious_wakeups", "noop_unmasks", "reentries", "bar_reads", "bar_writes")


@pytest.fixture(params=[*(path.stem for path in RECORDINGS), "generated"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "generated":
        made = tmp_path / "generated.intx"
        mix = Mix(devices=3, cycles=("kernel", "userspace_resignal", "hybrid"), jitter=900, floods=0.3, losses=100)
        write(made, events_for(45_000, mix), mix)
        return made
    return next(path for path in RECORDINGS if path.stem == request.param)


class Page(HTMLParser):
    """The rows of the page's filled tables, its facts and its data, by device."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[tuple[int, str], list[list[str]]] = {}
        self.facts: dict[tuple[int, str], str] = {}
        self.overview: dict[tuple[int, str], str] = {}
        self.text: list[str] = []
        self._device = -1
        self._table: str | None = None
        self._into: list[tuple[str, dict[Any, str], Any]] = []
        self.feed(text)
        (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
        self.data = json.loads(found)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if named.get("data-device") and tag in ("section", "tr"):
            self._device = int(named["data-device"] or 0)
        if tag == "tbody":
            self._table = named.get("data-fill")
            if self._table:
                self.rows[self._device, self._table] = []
        elif tag == "tr" and self._table:
            self.rows[self._device, self._table].append([])
        elif tag in ("td", "th") and self._table:
            self.rows[self._device, self._table][-1].append("")
        if named.get("data-fact"):
            self._into.append((tag, self.facts, (self._device, named["data-fact"])))
        elif named.get("data-cell"):
            self._into.append((tag, self.overview, (self._device, named["data-cell"])))

    def handle_endtag(self, tag: str) -> None:
        if tag == "tbody":
            self._table = None
        if self._into and self._into[-1][0] == tag:
            self._into.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._table and self.rows[self._device, self._table] and self.rows[self._device, self._table][-1]:
            self.rows[self._device, self._table][-1][-1] += data.strip()
        for _, found, key in self._into:
            found[key] = found.get(key, "") + data


def check_distribution(found: dict[str, Any], values: pd.Series[Any]) -> None:
    """A distribution of the JSON against a column of a DataFrame: exact, but for percentiles."""
    exact = values.dropna().to_numpy(np.int64)
    assert found["count"] == len(exact)
    if not len(exact):
        assert set(found.values()) == {0, None}
        return
    assert (found["min"], found["max"]) == (exact.min(), exact.max())
    assert found["mean"] == round(int(exact.sum()) / len(exact), 1)
    for name, q in QUANTILES.items():
        if name == "p99_99" and len(exact) < 10_000:
            assert found[name] is None
        else:
            rank = np.quantile(exact, q, method="lower")
            assert abs(found[name] - rank) <= max(0.01 * rank, 0.5)


def check_frames(data: dict[str, Any], opened: intxtrace.api.Trace) -> None:
    """The JSON against the DataFrames."""
    interrupts, states, counters = opened.interrupts, opened.states, opened.counters
    quality = data["quality"]
    assert quality["interrupts"] == len(interrupts)
    assert {name: quality[name] for name in OUTCOMES} == {
        name: int((interrupts["outcome"] == name).sum()) for name in OUTCOMES
    }
    assert quality["unknown_path"] == (interrupts["path"] == "unknown").sum()
    assert quality["lost"] == counters.loc[counters["counter"] == "lost", "count"].sum()
    assert sum(device["counts"]["total"] for device in data["devices"]) == len(interrupts)
    recording = data["recording"]
    for device in data["devices"]:
        of = interrupts[interrupts["device"] == device["device"]]
        counts, floods = device["counts"], device["floods"]
        assert counts["total"] == len(of) > 0
        for column, words in (("path", PATHS), ("origin", ORIGINS), ("outcome", OUTCOMES)):
            assert counts[column] == {word: int((of[column] == word).sum()) for word in words}
        sizes = of.groupby(["path", "origin", "outcome"]).size()
        assert {(r["path"], r["origin"], r["outcome"]): r["count"] for r in counts["rows"]} == sizes.to_dict()
        known = of["coalesced"].dropna()
        assert counts["coalesced"] == (int(known.sum()) if len(known) else None)
        assert device["rate"]["mean"] == pytest.approx(len(of) / recording["duration_ns"] * 1e9, abs=0.001)
        complete = of[of["outcome"] == "complete"]
        paths = [path["path"] for path in device["latency"]]
        assert set(paths) - {"all"} == set(of["path"])
        assert ("all" in paths) == (of["path"].nunique() > 1)
        for path in device["latency"]:
            part = complete if path["path"] == "all" else complete[complete["path"] == path["path"]]
            assert path["interrupts"] == len(of if path["path"] == "all" else of[of["path"] == path["path"]])
            assert path["complete"] == len(part)
            assert path["unmeasured"] == part["masked_ns"].isna().sum()
            for measure in MEASURES:
                check_distribution(path[measure], part[measure])
        assert floods["resignals"] == (of["origin"] == "resignal").sum()
        check_distribution(floods["bar_accesses"], of["bar_accesses"])
        counted = counters[counters["device"] == device["device"]]
        for name in COUNTERS:
            rows = counted[counted["counter"] == name]
            total = rows.loc[rows["offset"].isna(), "count"].sum() or rows["count"].sum()
            assert (floods[name] or 0) == total, name
        for offset in floods["top_offsets"]:
            region = counted["region"].isna() if offset["region"] is None else counted["region"] == offset["region"]
            rows = counted[(region & (counted["offset"] == offset["offset"])).fillna(False)]
            for name in ("reads", "writes"):
                assert offset[name] == rows.loc[rows["counter"] == f"bar_{name}", "count"].sum()
        mine = states[states["device"] == device["device"]]
        spans = mine["end_at"].fillna(recording["end_at"]) - mine["begin_at"]
        assert device["states"]["time_ns"] == spans.groupby(mine["state"]).sum().to_dict()
        measured = complete.dropna(subset=["masked_ns"])
        slowest = measured.sort_values(["masked_ns", "id"], ascending=[False, True]).head(20)
        assert [row["id"] for row in device["slowest"]] == slowest["id"].tolist()
        for row, (_, frame_row) in zip(device["slowest"], slowest.iterrows(), strict=True):
            assert row == {name: None if pd.isna(frame_row[name]) else frame_row[name] for name in row}


def check_page(data: dict[str, Any], page: Page) -> None:
    """The data and the tables of the page against the JSON."""
    statistics = ("p50", "p90", "p99", "p99_9", "p99_99", "max", "mean", "min")
    for index, device in enumerate(data["devices"]):
        counts, latency, total = device["counts"], device["latency"], device["counts"]["total"]
        seen = page.data["devices"][index]
        assert seen["whole"] == [
            total,
            counts["origin"]["resignal"],
            [[row["path"], row["origin"], row["outcome"], row["count"]] for row in counts["rows"]],
            device["rate"]["mean"],
            [
                [
                    path["path"],
                    path["interrupts"],
                    path["complete"],
                    path["unmeasured"],
                    path["mean_parts"] and list(path["mean_parts"].values()),
                    [[path[measure][name] for name in STATISTICS] for measure in MEASURES],
                ]
                for path in latency
            ],
        ]
        for path in latency:
            if path["path"] != "all":
                for measure, (_, _, bins) in zip(MEASURES, seen["bins"][path["path"]], strict=True):
                    assert sum(bins) == path[measure]["count"]
                density = seen["density"][path["path"]]
                assert sum(density[2::3]) == path["masked_ns"]["count"]
        assert sum(sum(rate) for rate in seen["rate"].values()) == total
        assert [row[0] for row in seen["slowest_of_all"]] == [row["id"] for row in device["slowest"]]

        def durations(found: dict[str, Any]) -> list[str]:
            return [units.duration(found[name]) for name in statistics]

        assert page.rows[index, "latency"] == [
            [
                path["path"],
                units.count(path["interrupts"]),
                units.share(path["interrupts"], total),
                units.count(path["complete"]),
                *durations(path["masked_ns"]),
            ]
            for path in latency
        ]
        measures = [path[measure] for path in latency for measure in MEASURES]
        assert [row[2:] for row in page.rows[index, "stages"]] == [
            [units.count(found["count"]), *durations(found)] for found in measures
        ]
        assert page.rows[index, "counts"] == [
            [r["path"], r["origin"], r["outcome"], units.count(r["count"]), units.share(r["count"], total)]
            for r in counts["rows"]
        ]
        assert [[row[0], row[1], *row[6:10]] for row in page.rows.get((index, "slowest"), [])] == [
            [str(row["id"]), *(units.duration(row[measure]) for measure in MEASURES)] for row in device["slowest"]
        ]
        whole = latency[-1]["masked_ns"]
        assert units.count(total) in page.facts[index, "total"]
        assert units.duration(whole["p50"]) in page.facts[index, "masked"]
        assert units.duration(whole["max"]) in page.facts[index, "longest"]
        assert units.count(device["floods"]["resignals"]) in page.facts[index, "resignals"]
        assert {name: page.overview[index, name] for name in ("total", "rate", "peak", "p50", "p99", "max")} == {
            "total": units.count(total),
            "rate": units.rate(device["rate"]["mean"]),
            "peak": units.rate(device["rate"]["peak"]),
            **{name: units.duration(whole[name]) for name in ("p50", "p99", "max")},
        }
        assert device["verdict"]["text"] in "".join(page.text)


def check_text(data: dict[str, Any], text: str) -> None:
    """What the terminal says of each device, against the JSON."""
    flat = re.sub(r"\s+", " ", text)
    for device in data["devices"]:
        assert device["verdict"]["text"] in flat
        part = text.split("\n\n")[1 + data["devices"].index(device)]
        total, floods = device["counts"]["total"], device["floods"]
        for path in device["latency"]:
            masked = path["masked_ns"]
            row = [path["path"], units.short_count(path["interrupts"]), units.share(path["interrupts"], total)]
            row += [units.duration(masked[name]) for name in (*QUANTILES, "max")]
            assert " ".join(row) in re.sub(r" +", " ", part)
            cells = [path["path"]]
            for name in MEASURES[1:]:
                p50, p99 = (units.duration(path[name][q]).replace(" ", "") for q in ("p50", "p99"))
                cells.append(units.UNKNOWN if path[name]["p50"] is None else f"{p50}/{p99}")
            assert " ".join(cells) in re.sub(r" +", " ", part)
        for words in (
            f"rate {units.rate(device['rate']['mean'])}, peak {units.rate(device['rate']['peak'])}",
            f"resignals {units.count(floods['resignals'])} ({units.share(floods['resignals'], total)}), "
            f"bursts {units.count(floods['bursts'])}",
            f"handler calls {units.count(floods['handler_calls'])}, unclaimed {units.count(floods['unclaimed'])}, "
            f"re-entries {units.count(floods['reentries'])}, coalesced {units.count(device['counts']['coalesced'])}",
            f"BAR reads {units.short_count(floods['bar_reads'])}, writes {units.short_count(floods['bar_writes'])}",
            "states: " + ", ".join(f"{n} {units.duration(ns)}" for n, ns in device["states"]["time_ns"].items()),
        ):
            assert words in flat
    quality = data["quality"]
    outcomes = ", ".join(f"{units.short_count(quality[name])} {name}" for name in OUTCOMES)
    assert f"{units.plural(quality['interrupts'], 'interrupt')}: {outcomes}" in flat
    assert f"events lost: {units.count(quality['lost'])}" in flat


def test_report_summary_json_and_frames_agree(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    page = tmp_path / "page.html"
    assert main(["report", str(trace), "-o", str(page)]) == 0
    capsys.readouterr()
    assert main(["summary", str(trace), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert main(["summary", str(trace)]) == 0
    text = capsys.readouterr().out
    assert data["devices"]
    check_frames(data, intxtrace.open_trace(trace))
    check_page(data, Page(page.read_text("utf-8")))
    check_text(data, text)
