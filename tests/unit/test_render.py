"""Text, JSON and page say the same, and take every name for a name."""

from __future__ import annotations

import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from intxtrace.analysis import Options, Summary, analyse, interrupt_rows
from intxtrace.analysis.inventory import Info
from intxtrace.analysis.results import Evidence, Finding, Missing
from intxtrace.render import html
from intxtrace.render.html import write_report
from intxtrace.render.json import interrupts as interrupts_json
from intxtrace.render.json import summary as summary_json
from intxtrace.render.json import to_json
from intxtrace.render.text import print_findings, print_info, print_interrupts, print_summary
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Tables, Vm
from intxtrace.units import count, duration
from tests.frames_sample import HOSTILE, MARKUP, counters, interrupts, sample, sample_metadata, states, tables


@pytest.fixture(scope="module")
def found() -> Summary:
    return analyse(sample(5_000), sample_metadata(), tables())


@pytest.fixture(scope="module")
def hostile() -> Summary:
    return analyse(sample(2_000, hostile=True), sample_metadata(hostname=HOSTILE), tables(hostile=True))


def console(width: int = 80, terminal: bool = False) -> Console:
    return Console(
        width=width,
        file=io.StringIO(),
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        legacy_windows=False,
    )


def printed(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_json_is_the_dataclass(found: Summary) -> None:
    document = json.loads(summary_json(found))
    assert (document["schema"], document["version"]) == ("intxtrace.summary", 1)
    data = document["data"]
    device, original = data["devices"][0], found.devices[0]
    assert device["counts"]["path"] == original.counts.path
    assert device["latency"][0]["masked_ns"]["p99_9"] == original.latency[0].masked_ns.p99_9
    assert type(device["latency"][0]["masked_ns"]["p50"]) is int
    assert data["devices"][2]["gsi"] is None
    assert "figures" not in device
    assert "axis" not in data


FINDING = Finding(
    "split-irqchip",
    "warning",
    1,
    "0000:01:00.0",
    MARKUP,
    4242,
    "the IOAPIC is in QEMU",
    (Evidence("interrupts", 12, 40, 2_000_000_000, 3_500_000_000, tuple(range(1, 11))), Evidence("seen", None)),
    "Each EOI exits.",
    "start it with kernel-irqchip=on",
)


def test_findings_say_what_shows_them_and_what_to_do() -> None:
    screen = console()
    print_findings((FINDING,), 1_000_000_000, screen)
    text = " ".join(printed(screen).split())
    assert f"warning: split-irqchip · VM {MARKUP}, 0000:01:00.0: the IOAPIC is in QEMU." in text
    assert "interrupts: 12 of 40, from 1.000 s to 2.500 s (ids 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)" in text
    assert text.endswith("do: start it with kernel-irqchip=on")
    assert max(len(line) for line in printed(screen).splitlines()) <= 80


def test_findings_stand_on_the_page(hostile: Summary) -> None:
    assert ">Findings<" not in write_report(replace(hostile, findings=()))
    listed = hostile.devices[0].slowest[0].id
    evidence = replace(FINDING.evidence[0], interrupts=(listed, 987_654))
    one = replace(FINDING, vm=HOSTILE, advice="<b>", evidence=(evidence,))
    page = write_report(replace(hostile, findings=(one,) * 60))
    assert page.count("warning: split-irqchip") == html.FINDINGS_LISTED
    assert f'<li class="verdict note" data-device="0" data-vm="0"><span class="level">{FINDING.severity}' in page
    assert "12 of 40, from " in page
    assert f'<a href="#interrupt-{listed}">{listed}</a>, 987654, …' in page
    assert "&lt;b&gt;" in page
    assert HOSTILE not in page
    assert "20 further findings" in page


def test_findings_stand_in_text_and_json(found: Summary) -> None:
    with_one = replace(found, findings=(FINDING,))
    assert json.loads(summary_json(with_one))["data"]["findings"][0]["evidence"][0]["interrupts"] == [*range(1, 11)]
    screen = console()
    print_summary(with_one, screen)
    assert "split-irqchip" in printed(screen)


def test_json_refuses_what_has_no_form() -> None:
    with pytest.raises(TypeError, match="NAType"):
        to_json({"x": pd.NA})


def test_interrupts_as_json_keep_null_and_whole_numbers() -> None:
    frame = interrupts(50)
    rows = json.loads(interrupts_json(interrupt_rows(frame)))["data"]
    assert len(rows) == 50
    assert rows[-1]["unmasked_at"] is None
    assert [row["raised_at"] for row in rows] == [None if pd.isna(v) else int(v) for v in frame["raised_at"]]


def test_text_and_page_show_the_figures_of_the_json(found: Summary) -> None:
    screen = console(1_000)
    print_summary(found, screen)
    text, page = printed(screen), write_report(found)
    data = json.loads(summary_json(found))["data"]
    for device in data["devices"]:
        for path in device["latency"]:
            for name in ("p50", "p90", "p99", "p99_9", "p99_99", "max"):
                shown = duration(path["masked_ns"][name])
                (line,) = [
                    line for line in text.split(device["verdict"]["text"])[1].splitlines()
                    if line.startswith(path["path"] + " ") and "%" in line
                ][:1]  # fmt: skip
                assert shown in line
                assert f"<td>{shown}</td>" in page
        if device["counts"]["total"]:
            assert f"<td>{count(device['counts']['total'])}</td>" in page
        assert device["verdict"]["text"] in text.replace("\n", " ")
        assert device["verdict"]["text"] in page
    assert f"events lost: {data['quality']['lost']}" in text


def info(metadata: Metadata, held: Tables) -> Info:
    return Info(
        path="slow\x1b-nic.intx",
        size=4_321,
        metadata=metadata.to_values(),
        events=12,
        lost=1,
        begin_at=0,
        end_at=5,
        duration_ns=5,
        kinds={"HANDLER_ENTRY": 12},
        probes=[row.to_json() for row in held.probes],
        vms=[row.to_json() for row in held.vms],
        devices=[row.to_json() for row in held.devices],
        truncated=False,
        lost_bytes=0,
        problem="",
    )


def test_summary_fits_80_columns(found: Summary, hostile: Summary) -> None:
    for summary in (found, hostile):
        screen = console(80)
        print_summary(summary, screen)
        print_interrupts(summary.devices[0].slowest, screen)
        print_info(info(sample_metadata(), tables()), screen)
        lines = printed(screen).splitlines()
        assert max(len(line) for line in lines) <= 80
        tables_only = [line for line in lines if re.match(r"(kernel|userspace|hybrid|held|all) ", line)]
        assert tables_only
        assert not any("…" in line for line in tables_only)


def test_histograms_show_every_measured_interrupt(found: Summary) -> None:
    screen = console(100)
    print_summary(found, screen)
    text = printed(screen)
    for device, part in zip(found.devices, re.split(r"\n(?=[a-z ]+: VM )", text)[1:], strict=True):
        _, _, histogram = part.partition("\nfrom ")
        if not device.counts.total:
            assert histogram == ""
            continue
        header, *lines = histogram.splitlines()
        rows = list(itertools.takewhile(lambda line: not line.startswith("  "), lines))
        paths = header.split()
        sums = dict.fromkeys(paths, 0)
        for row in rows:
            assert ("█" in row) == any(char.isdigit() and char != "0" for char in row[8:])
            for path, (begin, end) in zip(paths, columns(header, paths), strict=True):
                sums[path] += int(row[begin:end].replace(",", "").strip() or 0)
        assert sums == {p.path: p.masked_ns.count for p in device.latency if p.path in paths}
        assert sum(sums.values()) == device.latency[-1].masked_ns.count
        assert 2 <= len(rows) <= 12


def columns(header: str, names: list[str]) -> list[tuple[int, int]]:
    """Where the columns of a table begin and end, of which the header (without `from `) says where they end."""
    ends = [header.index(name) + len(name) + len("from ") for name in names]
    return list(zip([ends[0] - 6, *ends], ends, strict=False))


def test_color_only_on_a_terminal(found: Summary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, colored = console(), console(terminal=True)
    for screen in (plain, colored):
        print_summary(found, screen)
    assert "\x1b" not in printed(plain)
    assert "\x1b[1;31m" in printed(colored)
    monkeypatch.setenv("NO_COLOR", "1")
    quiet = console(terminal=True)
    print_summary(found, quiet)
    assert not re.search(r"\x1b\[[\d;]*3[1-7]", printed(quiet))


def test_markup_in_names_stays_text_in_the_terminal(hostile: Summary) -> None:
    screen = console(160, terminal=True)
    print_summary(hostile, screen)
    print_interrupts(hostile.devices[1].slowest, screen)
    print_info(info(sample_metadata(), tables(hostile=True)), screen)
    text = printed(screen)
    assert f"VM {MARKUP}, 0000:05:00.0" in re.sub(r"\x1b\[[\d;]*m", "", text)
    assert HOSTILE in text


def test_control_characters_do_not_reach_the_terminal() -> None:
    screen = console(120)
    held = Tables(vms=[Vm(1, name="v\x1b[2J\u202e")])
    print_info(info(sample_metadata(hostname="a\x1b]0;b\x07"), held), screen)
    assert "\x1b" not in printed(screen)
    assert "\u202e" not in printed(screen)
    assert "v\\x1b[2J" in printed(screen)


class Page(HTMLParser):
    """The elements and the scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_page_escapes_names_and_fetches_nothing(hostile: Summary) -> None:
    page = write_report(hostile)
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page
    tags = Page(page).tags
    assert not [tag for tag, _ in tags if tag in ("img", "iframe", "object", "embed", "base", "form")]
    assert [attributes for tag, attributes in tags if tag == "script"] == [
        {"type": "application/json", "id": "data"}, {"type": "text/plain", "id": "plotly"}, {},
    ]  # fmt: skip
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        target = attributes.get("href") or "#"
        assert target.startswith(("#", "data:,"))


def test_data_in_the_page_cannot_end_its_script(hostile: Summary) -> None:
    _, data = html._figures(hostile)
    assert "<" not in data
    assert json.loads(data)["devices"][0]["whole"]


def test_page_data_do_not_grow_with_the_trace() -> None:
    sizes: dict[int, int] = {}
    for number in (2_000, 200_000):
        found = analyse(sample(number), sample_metadata(), tables(), Options(windows=html.WINDOWS))
        sizes[number] = len(html._figures(found)[1])
    assert sizes[200_000] < 4 * sizes[2_000]
    assert sizes[200_000] < 200_000


def test_page_of_very_many_devices_is_bounded_and_says_so() -> None:
    batches: list[Any] = []
    frame, more, counted = interrupts(4_000), states(), counters()
    for number in range(1, 251):
        named: dict[str, Any] = {"device": number, "bdf": f"0000:{number:02x}:00.0", "vm": f"vm-{number}-" + "x" * 60}
        parts = (frame if number <= html.DETAILED else frame.iloc[:20], more, counted)
        batches.append(tuple(part.assign(**named).astype(part.dtypes.to_dict()) for part in parts))
    page = write_report(analyse(batches, sample_metadata(), Tables(), Options(windows=html.WINDOWS)))
    assert len(page.encode()) < 6_000_000
    detailed = page.count('<section class="device"')
    assert 6 <= detailed <= html.DETAILED
    assert page.count("<tr data-device=") == html.LISTED
    assert f"{html.LISTED - detailed} devices with the fewest interrupts have no section" in page
    assert f"{250 - html.LISTED} further devices with fewer interrupts" in page


def test_page_says_what_an_import_cannot_tell(found: Summary) -> None:
    page = write_report(replace(found, missing=(Missing("how it ended <here>", "a probe & another"),)))
    assert "how it ended &lt;here&gt;" in page
    assert "a probe &amp; another" in page
    assert "1 thing that an import cannot tell" in page
    assert "cannot tell" not in write_report(found)


def test_page_of_an_empty_trace() -> None:
    page = write_report(analyse([], sample_metadata(clock="none", started_at=None), Tables()))
    assert "This trace names no device." in page
