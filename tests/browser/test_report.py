"""The report in the distribution's Chromium: it draws, fetches nothing, runs nothing of a guest's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ViewportSize, sync_playwright

from intxtrace import units
from intxtrace.__main__ import main
from intxtrace.analysis import Options, Summary, analyse
from intxtrace.analysis.results import MEASURES, DeviceSummary, Distribution, Span
from intxtrace.api import open_trace
from intxtrace.render import html
from intxtrace.trace.tables import Tables
from tests.frames_sample import HOSTILE, MARKUP, counters, interrupts, sample, sample_metadata, states, tables
from tests.generate import MIX, events_for, write

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def summaries() -> dict[str, Summary]:
    return {
        name: analyse(
            sample(number, hostile=hostile), sample_metadata(), tables(hostile), Options(windows=html.WINDOWS)
        )
        for name, number, hostile in (("plain", 20_000, False), ("hostile", 3_000, True))
    }


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, summaries: dict[str, Summary]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    made = {}
    for name, found in summaries.items():
        made[name] = folder / f"{name}.html"
        made[name].write_text(html.write_report(found), "utf-8")
    return made


@pytest.fixture(params=sorted((Path(__file__).parents[1] / "traces").glob("*.intx")), ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int, int]:
    """The report that the command writes of a real recording; how many devices that has, and with measured times."""
    page = tmp_path / "report.html"
    assert main(["report", str(request.param), "-o", str(page)]) == 0
    interrupts = open_trace(request.param).interrupts
    measured = interrupts[(interrupts["outcome"] == "complete") & interrupts["masked_ns"].notna()]
    return page, interrupts["bdf"].nunique(), measured["bdf"].nunique()


@dataclass
class Opened:
    """A drawn page, and what it said and asked for."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def open_report(browser: Browser, path: Path, width: int = 1280, scheme: Any = "light", fragment: str = "") -> Opened:
    page = browser.new_context(viewport=ViewportSize(width=width, height=900), color_scheme=scheme).new_page()
    opened = Opened(page)
    page.on("console", lambda message: opened.messages.append(message.text))
    page.on("pageerror", lambda error: opened.messages.append(str(error)))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(path.as_uri() + fragment)
    page.wait_for_selector("html[data-drawn]")
    return opened


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_page_draws_without_a_word_and_without_a_request(
    browser: Browser, reports: dict[str, Path], width: int, scheme: str
) -> None:
    opened = open_report(browser, reports["plain"], width, scheme)
    assert opened.messages == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [reports["plain"].as_uri()]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_real_recording_draws(browser: Browser, recorded: tuple[Path, int, int]) -> None:
    page, devices, measured = recorded
    opened = open_report(browser, page)
    assert opened.messages == []
    assert opened.requests == [page.as_uri()]
    plots = opened.page.query_selector_all("[data-figure]")
    assert len(plots) == 3 * devices
    # A device with no time to show has its timeline alone.
    drawn = [int(plot.get_attribute("data-drawn")) > 0 for plot in plots]
    assert sum(drawn) == 3 * measured + (devices - measured)


@pytest.fixture(scope="module")
def drawn(browser: Browser, reports: dict[str, Path]) -> Any:
    """A page for tests that only look."""
    return open_report(browser, reports["plain"]).page


def test_figures_are_filled(drawn: Any) -> None:
    page = drawn
    plots = page.query_selector_all("[data-figure]")
    assert len(plots) == 6
    for plot in plots:
        assert int(plot.get_attribute("data-drawn")) > 0
        assert plot.query_selector_all(".main-svg")
    assert page.locator(".distribution .scatterlayer path.js-line").count() >= 5
    assert page.locator(".stages .barlayer .point path").count() >= 8
    assert page.locator(".timeline .heatmaplayer image").count() == 2
    assert page.locator(".timeline .xy2 .scatterlayer .js-fill").count() == 6  # a path each: five, and one
    assert page.locator("#device-0 .timeline .barlayer .point path").count() >= 6 + 1 + 1  # states, slow, bursts


def test_choices_redraw_the_figure(browser: Browser, reports: dict[str, Path]) -> None:
    opened = open_report(browser, reports["plain"])
    page = opened.page
    line = "#device-0 .distribution .scatterlayer path.js-line >> nth=0"
    before = page.locator(line).get_attribute("d")
    button = page.locator("#device-0 [data-choice=guest_ns]")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("#device-0 [data-choice=masked_ns]").get_attribute("aria-pressed") == "false"
    assert page.locator(line).get_attribute("d") != before
    assert opened.messages == []


def test_names_of_guests_stay_text(browser: Browser, reports: dict[str, Path]) -> None:
    opened = open_report(browser, reports["hostile"])
    page = opened.page
    assert opened.messages == []
    assert page.locator("img").count() == 0
    assert HOSTILE in page.inner_text("#title-0")
    assert MARKUP in page.inner_text("#title-1")
    assert f"VM {HOSTILE}" in page.inner_text(".verdicts >> nth=0")
    for name in (HOSTILE, MARKUP):
        page.locator("#choose-vm").select_option(label=name)
        assert f"VM {name}" in page.inner_text("#chosen")
    assert page.locator("img").count() == 0
    assert opened.messages == []


def test_policy_stops_what_escaping_would_miss(browser: Browser, reports: dict[str, Path]) -> None:
    opened = open_report(browser, reports["plain"])
    opened.page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.intruder = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", '<img src="https://example.org/" onerror="intruder = 2">');
    }""")
    opened.page.wait_for_timeout(300)
    assert opened.page.evaluate("window.intruder === undefined")
    assert any("Content Security Policy" in message for message in opened.messages)


def test_theme_button_and_print(browser: Browser, reports: dict[str, Path]) -> None:
    opened = open_report(browser, reports["plain"])
    page = opened.page
    color = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(color)
    page.click("#theme")
    assert page.evaluate(color) != light
    closed = page.locator("details:not([open])").count()
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    assert page.locator("details:not([open])").count() == closed
    assert opened.messages == []


def test_interrupts_have_links(browser: Browser, reports: dict[str, Path], summaries: dict[str, Summary]) -> None:
    page = open_report(browser, reports["plain"]).page
    first = page.locator("#device-0 tr[id^=interrupt-] a").first
    first.click()
    assert page.url.endswith(first.get_attribute("href"))
    assert page.locator(first.get_attribute("href")).is_visible()
    # One of the slowest of its window only: the link selects the window.
    device = summaries["plain"].devices[0]
    always = {row.id for row in device.slowest}
    place, row = next(
        (place, row)
        for place, window in enumerate(device.windows)
        for row in window.slowest[: html.SLOWEST_OF_A_SPAN]
        if row.id not in always
    )
    page.evaluate(f"location.hash = 'interrupt-{row.id}'")
    page.wait_for_selector(f"#interrupt-{row.id}.found")
    assert page.locator("#choose-from").input_value() == str(place) == page.locator("#choose-to").input_value()
    page.evaluate("location.hash = 'interrupt-999999'")
    page.wait_for_function("document.getElementById('chosen').textContent.includes('Interrupt 999999 is not among')")


def test_a_link_to_an_interrupt_opens_there(
    browser: Browser, reports: dict[str, Path], summaries: dict[str, Summary]
) -> None:
    name = f"interrupt-{summaries['plain'].devices[1].slowest[-1].id}"
    opened = open_report(browser, reports["plain"], fragment=f"#{name}")
    assert opened.page.locator(f"#{name}.found").is_visible()
    box = opened.page.locator(f"#{name}").bounding_box()
    assert 0 <= box["y"] <= 900


TABLES_OF_SPANS = """spans => spans.map(([from, to]) => {
    for (const [id, value] of [["choose-from", 0], ["choose-to", to], ["choose-from", from]]) {
        const control = document.getElementById(id);
        control.value = String(value);
        control.dispatchEvent(new Event("change", { bubbles: true }));
    }
    const rows = (selector) => Array.from(document.querySelectorAll(selector),
        (row) => Array.from(row.cells, (cell) => cell.textContent.trim()));
    return Array.from(document.querySelectorAll("section.device"), (section) => ({
        overview: rows(`tr[data-device="${section.dataset.device}"]`)[0],
        fact: (section.querySelector("[data-fact=total]") || section).textContent,
        ...Object.fromEntries(["latency", "stages", "counts", "slowest"].map(
            (name) => [name, rows(`#${section.id} [data-fill=${name}] tr`)])),
    }));
})"""


def shown(measures: Distribution) -> list[str]:
    names = ("p50", "p90", "p99", "p99_9", "p99_99", "max", "mean", "min")
    return [units.duration(getattr(measures, name)) for name in names]


def check_span(tables: dict[str, Any], device: DeviceSummary, span: Span) -> None:
    """Compare what the page shows with what the analysis found."""
    total = span.counts.total
    assert tables["latency"] == [
        [
            p.path,
            units.count(p.interrupts),
            units.share(p.interrupts, total),
            units.count(p.complete),
            *shown(p.masked_ns),
        ]
        for p in span.latency
    ]
    measures = [getattr(path, name) for path in span.latency for name in MEASURES]
    assert [row[2:] for row in tables["stages"]] == [[units.count(m.count), *shown(m)] for m in measures]
    assert tables["counts"] == [
        [r.path, r.origin, r.outcome, units.count(r.count), units.share(r.count, total)] for r in span.counts.rows
    ]
    windows = device.windows[span.first : span.last + 1]
    slowest = sorted((row for w in windows for row in w.slowest), key=lambda row: (-(row.masked_ns or 0), row.id))
    assert [[row[0], row[1], *row[6:10]] for row in tables["slowest"]] == [
        [str(row.id), *(units.duration(getattr(row, name)) for name in MEASURES)]
        for row in slowest[: html.SLOWEST_OF_A_SPAN]
    ]
    assert units.count(total) in tables["fact"]
    assert units.rate(span.mean_rate) in tables["fact"]
    masked = [None] * 3
    if span.latency:
        masked = [getattr(span.latency[-1].masked_ns, name) for name in ("p50", "p99", "max")]
    assert tables["overview"][3:] == [
        units.count(total),
        units.rate(span.mean_rate),
        "–",
        *(units.duration(value) for value in masked),
        units.count(span.counts.origin["resignal"]),
        units.count(device.lost),
    ]


def test_every_selection_of_time_shows_the_figures_of_its_span(
    browser: Browser, reports: dict[str, Path], summaries: dict[str, Summary]
) -> None:
    opened = open_report(browser, reports["plain"])
    page, devices = opened.page, summaries["plain"].devices[:2]
    before = page.inner_text("main")
    spans = [(span.first, span.last) for span in devices[0].spans]
    assert len(spans) >= 9
    seen = page.evaluate(TABLES_OF_SPANS, spans)
    for place, shown_devices in enumerate(seen):
        for section, device in zip(shown_devices, devices, strict=False):
            check_span(section, device, device.spans[place])
    assert page.inner_text("main") != before
    page.get_by_role("button", name="Everything").click()
    page.wait_for_selector("html[data-drawn]")
    assert page.inner_text("main") == before
    assert opened.messages == []


def test_the_page_writes_numbers_as_the_terminal_does(browser: Browser, tmp_path: Path) -> None:
    """A distribution whose every statistic is a number that is hard to round: halves, edges of units, of hours."""
    hard = [0, 1, 12, 999, 1_000, 2_125, 2_375, 9_994, 9_995, 9_996, 99_949, 99_950, 123_456, 999_499, 999_500, 999_501]
    hard += [2_125_000, 59_949_999_999, 60_000_000_000, 61_500_000_000, 62_500_000_000, 3_599_999_999_999]
    hard += [3_600_000_000_000, 3_630_000_000_000, 3_690_000_000_000, 9_876_543_210_000_000, 2_625, 2_875, 100_500_000]
    found = analyse(sample(1_000), sample_metadata(), tables(), Options(windows=html.WINDOWS))
    page = tmp_path / "hard.html"
    statistics = [f.name for f in fields(Distribution) if f.name != "count"]
    device = found.devices[0]
    spans = []
    for place, span in enumerate(device.spans):
        values = (hard[place % len(hard) :] + hard)[: len(statistics)]
        masked = replace(span.latency[0].masked_ns, **dict(zip(statistics, values, strict=True)))
        spans.append(replace(span, latency=(replace(span.latency[0], masked_ns=masked), *span.latency[1:])))
    assert len(spans) + len(statistics) > len(hard)
    device = replace(device, spans=tuple(spans))
    page.write_text(html.write_report(replace(found, devices=(device,))), "utf-8")
    seen = open_report(browser, page).page.evaluate(TABLES_OF_SPANS, [(span.first, span.last) for span in spans])
    for (tables_shown,), span in zip(seen, spans, strict=True):
        assert tables_shown["latency"][0][4:] == shown(span.latency[0].masked_ns)


def test_the_selection_works_by_keyboard(browser: Browser, reports: dict[str, Path]) -> None:
    opened = open_report(browser, reports["plain"])
    page = opened.page
    page.locator("#choose-vm").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#chosen") == "Shown: VM build-runner."
    assert [page.locator(f"#device-{i}").is_visible() for i in range(3)] == [False, True, True]
    assert page.locator(".verdicts >> nth=0").locator(".verdict:visible").count() == 2
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#chosen") == "Shown: VM build-runner, 0000:05:00.0."
    assert [page.locator(f"#device-{i}").is_visible() for i in range(3)] == [False, True, False]
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert " to 60.0 s, the end." in page.inner_text("#chosen")
    line = page.locator("#device-1 .distribution .scatterlayer path.js-line").first
    page.wait_for_selector("html[data-drawn]")
    narrow = line.get_attribute("d")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.inner_text("#chosen") == "Everything is shown."
    page.wait_for_selector("html[data-drawn]")
    assert line.get_attribute("d") != narrow
    assert opened.messages == []
    # A link to what is not shown shows it.
    page.locator("#choose-vm").select_option("1")
    page.evaluate("location.hash = 'floods-0'")
    page.wait_for_function("!document.getElementById('device-0').hidden")


def test_dragging_over_the_timeline_selects_time_for_all(browser: Browser, reports: dict[str, Path]) -> None:
    opened = open_report(browser, reports["plain"])
    page = opened.page
    plot = page.locator("#device-0 .timeline")
    plot.scroll_into_view_if_needed()
    box = page.locator("#device-0 .timeline .nsewdrag[data-subplot=xy]").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.50, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.60, middle, steps=4)
    page.mouse.up()
    page.wait_for_function("document.getElementById('chosen').textContent.startsWith('Shown: ')")
    page.wait_for_selector("html[data-drawn]")
    ranges = page.evaluate("Array.from(document.querySelectorAll('.timeline'), p => p._fullLayout.xaxis.range.join())")
    assert len(set(ranges)) == 1
    begin, end = map(float, ranges[0].split(","))
    assert 0 < begin <= 30
    assert 36 <= end < 60
    page.mouse.dblclick(box["x"] + box["width"] / 2, middle)
    page.wait_for_function("document.getElementById('chosen').textContent === 'Everything is shown.'")
    assert opened.messages == []


def test_a_screen_reader_finds_its_way(drawn: Any) -> None:
    page = drawn
    assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
    assert page.get_by_role("search", name="Selection of device, VM and time").count() == 1
    for name in ("VM", "Device", "From", "To"):
        assert page.get_by_role("combobox", name=name, exact=True).count() == 1
    assert page.locator("h1").count() == 1
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "els => els.map(e => Number(e.tagName[1]))")
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = page.eval_on_selector_all("[id]", "els => els.map(e => e.id)")
    assert len(ids) == len(set(ids))
    for region in page.locator("main > section").all():
        assert page.locator(f"#{region.get_attribute('aria-labelledby')}").count() == 1
    figures = page.locator("[data-figure]")
    assert figures.count() == page.locator("[data-figure][role=img][aria-label]").count() == 6
    assert page.locator("th:not([scope])").count() == 0
    links = page.eval_on_selector_all("a[href^='#']", "els => els.map(e => e.getAttribute('href').slice(1))")
    unseen = set(links) - set(ids)  # but for interrupts that are listed with a window of time
    listed = page.evaluate("JSON.parse(document.getElementById('data').textContent).devices.flatMap(d => d.slowest)")
    assert unseen <= {f"interrupt-{row[0]}" for window in listed for row in window}
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"


def test_the_words_need_no_script(browser: Browser, reports: dict[str, Path]) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(reports["plain"].as_uri())
        assert page.locator("#selection").is_hidden()
        assert "took the kernel path" in page.inner_text(".verdicts >> nth=0")
        assert page.locator("#device-0 [data-fill=slowest] tr").count() == 20


@pytest.mark.parametrize("devices", [False, True])
def test_a_trace_without_a_clock_or_without_anything(browser: Browser, tmp_path: Path, devices: bool) -> None:
    frame = (interrupts(200, clock=False), states().iloc[:0], counters().iloc[:0])
    found = analyse(
        [frame] if devices else [],
        sample_metadata(clock="none", started_at=None),
        tables() if devices else Tables(),
        Options(windows=html.WINDOWS),
    )
    page = tmp_path / "page.html"
    page.write_text(html.write_report(found), "utf-8")
    opened = open_report(browser, page)
    assert opened.messages == []
    assert opened.page.locator("#choose-from").count() == 0
    assert opened.page.locator("#selection").is_visible() == devices
    if devices:
        assert "no masked time is known" in opened.page.inner_text("#device-0 .stages")
        opened.page.locator("#choose-vm").select_option(label="build-runner")
        assert opened.page.locator("#device-0").is_hidden()
        assert opened.messages == []


def test_a_phone_scrolls_over_figures_and_selects(browser: Browser, reports: dict[str, Path]) -> None:
    with browser.new_context(
        viewport=ViewportSize(width=360, height=740), is_mobile=True, has_touch=True, color_scheme="dark"
    ) as context:
        page = context.new_page()
        page.goto(reports["plain"].as_uri())
        page.wait_for_selector("html[data-drawn]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("document.querySelector('.timeline')._fullLayout.dragmode") is False
        page.locator("#choose-from").select_option("1")
        page.wait_for_selector("html[data-drawn]")
        assert "Shown: 7.65 s to 60.0 s" in page.inner_text("#chosen")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("document.querySelector('.selection select').offsetHeight") >= 36


def test_a_million_interrupts_stay_small_and_draw(browser: Browser, tmp_path: Path) -> None:
    trace, page = tmp_path / "big.intx", tmp_path / "big.html"
    write(trace, events_for(1_000_000), MIX)
    assert main(["report", str(trace), "-o", str(page)]) == 0
    assert page.stat().st_size <= 6_000_000
    opened = open_report(browser, page)
    assert opened.messages == []
    assert opened.requests == [page.as_uri()]
    plots = opened.page.query_selector_all("[data-figure]")
    assert len(plots) == 3 * MIX.devices
    assert all(int(plot.get_attribute("data-drawn")) > 0 and plot.query_selector(".main-svg") for plot in plots)
    assert opened.page.locator(".timeline .heatmaplayer image").count() == MIX.devices
    total = opened.page.eval_on_selector_all(
        "[data-cell=total]", "els => els.reduce((sum, e) => sum + Number(e.textContent.replaceAll(',', '')), 0)"
    )
    assert total >= 1_000_000


def test_tables_fit_on_paper(browser: Browser, reports: dict[str, Path]) -> None:
    page = open_report(browser, reports["plain"], width=1030, scheme="dark").page  # A4 across, less its margins
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    widest = "Math.max(...[...document.querySelectorAll('table')].map((t) => t.getBoundingClientRect().right))"
    assert page.evaluate(widest) <= 1030
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
