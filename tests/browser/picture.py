"""Make a picture of a report for the README: `python -m tests.browser.picture OUT.png [REPORT.html] [--dark]`.

Without a report, one of the made-up sample is drawn. The picture ends below the first device's timeline.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import FloatRect, ViewportSize, sync_playwright

from intxtrace.analysis import Options, analyse
from intxtrace.render.html import WINDOWS, write_report
from tests.browser.test_report import CHROMIUM
from tests.frames_sample import sample, sample_metadata, tables

WIDTH = 1180


def take(picture: Path, report: Path, dark: bool = False) -> None:
    """Draw a report in the distribution's Chromium and keep its top as a PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(
            viewport=ViewportSize(width=WIDTH, height=900), color_scheme="dark" if dark else "light"
        ).new_page()
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("html[data-drawn]")
        box = page.locator("figure:has(.timeline)").first.bounding_box()
        assert box is not None, "the report draws no timeline"
        height = box["y"] + box["height"] + 4
        page.screenshot(path=picture, full_page=True, clip=FloatRect(x=0, y=0, width=WIDTH, height=height))
        browser.close()


def main(arguments: list[str]) -> None:
    """Read the command line."""
    names = [Path(name) for name in arguments if name != "--dark"]
    with tempfile.TemporaryDirectory() as folder:
        report = names[1] if len(names) > 1 else Path(folder) / "report.html"
        if len(names) == 1:
            report.write_text(
                write_report(analyse(sample(), sample_metadata(), tables(), Options(windows=WINDOWS))), "utf-8"
            )
        take(names[0], report, "--dark" in arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
