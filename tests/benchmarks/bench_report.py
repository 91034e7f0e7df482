"""The report of a million interrupts: seconds to make, size, seconds in Chromium until words and figures are drawn.

The peer is what a notebook does: the interrupts table, each path's masked time over time as plotly points and as a
histogram, in one self-contained file.

Run: python -m tests.benchmarks.bench_report [MILLIONS]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from intxtrace.__main__ import main as intxtrace
from intxtrace.api import open_trace
from intxtrace.reconstruct import compile
from tests.browser.test_report import CHROMIUM
from tests.generate import MIX, events_for, write


def ours(trace: Path, page: Path) -> None:
    """Run the command."""
    assert intxtrace(["report", "--force", str(trace), "-o", str(page)]) == 0


def peer(trace: Path, page: Path) -> None:
    """Draw all interrupts with plotly."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    interrupts = open_trace(trace).interrupts.dropna(subset=["masked_ns"])
    figure = make_subplots(rows=2)
    for path, part in interrupts.groupby("path"):
        at, masked = part["raised_at"].to_numpy("int64"), part["masked_ns"].to_numpy("int64")
        figure.add_trace(go.Scattergl(x=at, y=masked, mode="markers", name=str(path)), 1, 1)
        figure.add_trace(go.Histogram(x=masked, name=str(path)), 2, 1)
    figure.write_html(page, include_plotlyjs=True)


DRAWN = {"ours": "html[data-drawn]", "plotly of all points": ".js-plotly-plot .main-svg >> nth=0"}


def draw(browser: Browser, page: Path, drawn: str) -> tuple[float, float, float]:
    """Return seconds until the first words, until all is drawn, and of CPU in the page's main thread."""
    tab: Page = browser.new_context().new_page()
    session = tab.context.new_cdp_session(tab)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    begin = time.perf_counter()
    tab.goto(page.as_uri(), wait_until="commit")
    tab.wait_for_selector(drawn, state="attached")
    seconds = time.perf_counter() - begin
    metrics: dict[str, Any] = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    words = tab.evaluate("(performance.getEntriesByName('first-contentful-paint')[0] || {startTime: NaN}).startTime")
    tab.context.close()
    return words / 1000, seconds, metrics["ThreadTime"]


def main(millions: float) -> None:
    """Write a trace, make the report of it, draw it, and print figures; best of three."""
    compile.prepare()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        trace, page = Path(folder) / "long.intx", Path(folder) / "report.html"
        events = write(trace, events_for(int(millions * 1e6)), MIX)
        print(f"{millions:g} M interrupts and more, {events:,} events, {trace.stat().st_size / 1e6:.0f} MB; "
              f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")  # fmt: skip
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, action in (("ours", ours), ("plotly of all points", peer)):
            made = []
            for _ in range(3 if action is ours else 1):
                cpu, wall = time.process_time(), time.perf_counter()
                action(trace, page)
                made.append((time.perf_counter() - wall, time.process_time() - cpu))
            drawn = [draw(browser, page, DRAWN[name]) for _ in range(3)]
            print(
                f"  {name}: made in {min(made)[0]:.2f} s ({min(cpu for _, cpu in made):.2f} s of CPU), "
                f"{page.stat().st_size / 1e6:.2f} MB; in Chromium first words after {min(d[0] for d in drawn):.2f} s, "
                f"all drawn after {min(d[1] for d in drawn):.2f} s ({min(d[2] for d in drawn):.2f} s of CPU)",
                flush=True,
            )
        browser.close()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1)
