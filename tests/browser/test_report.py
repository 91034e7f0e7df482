"""The report in the distribution's Chromium: it draws, fetches nothing, runs nothing of a guest's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ViewportSize, sync_playwright

from intxtrace.__main__ import main
from intxtrace.analysis import analyse
from intxtrace.api import open_trace
from intxtrace.render.html import write_report
from tests.frames_sample import HOSTILE, MARKUP, sample, sample_metadata, tables

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    made = {}
    for name, number, hostile in (("plain", 20_000, False), ("hostile", 3_000, True)):
        found = analyse(sample(number, hostile=hostile), sample_metadata(), tables(hostile))
        made[name] = folder / f"{name}.html"
        made[name].write_text(write_report(found), "utf-8")
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


def open_report(browser: Browser, path: Path, width: int = 1280, scheme: Any = "light") -> Opened:
    page = browser.new_context(viewport=ViewportSize(width=width, height=900), color_scheme=scheme).new_page()
    opened = Opened(page)
    page.on("console", lambda message: opened.messages.append(message.text))
    page.on("pageerror", lambda error: opened.messages.append(str(error)))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(path.as_uri())
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


def test_figures_are_filled(browser: Browser, reports: dict[str, Path]) -> None:
    page = open_report(browser, reports["plain"]).page
    plots = page.query_selector_all("[data-figure]")
    assert len(plots) == 6
    for plot in plots:
        assert int(plot.get_attribute("data-drawn")) > 0
        assert plot.query_selector_all(".main-svg")
    assert page.locator(".distribution .scatterlayer path.js-line").count() >= 5
    assert page.locator(".stages .barlayer .point path").count() >= 8
    assert page.locator(".timeline .heatmaplayer image").count() == 2
    assert page.locator(".timeline .barlayer .point path").count() > 100


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
    assert f"VM {HOSTILE}" in page.inner_text(".verdicts")


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


def test_interrupts_have_links(browser: Browser, reports: dict[str, Path]) -> None:
    page = open_report(browser, reports["plain"]).page
    first = page.locator("#device-0 tr[id^=interrupt-] a").first
    first.click()
    assert page.url.endswith(first.get_attribute("href"))
    assert page.locator(first.get_attribute("href")).is_visible()


def test_tables_fit_on_paper(browser: Browser, reports: dict[str, Path]) -> None:
    page = open_report(browser, reports["plain"], width=1030, scheme="dark").page  # A4 across, less its margins
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    widest = "Math.max(...[...document.querySelectorAll('table')].map((t) => t.getBoundingClientRect().right))"
    assert page.evaluate(widest) <= 1030
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
