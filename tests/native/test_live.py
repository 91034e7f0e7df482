"""The live view on a real ring under load: every event is counted, shown and kept."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import cast

import pytest

import intxtrace
from intxtrace.analysis.live import LiveModel
from intxtrace.analysis.live_results import LiveView
from intxtrace.capture.ring import Drain, Events, MappedRing
from intxtrace.capture.session import Session
from intxtrace.live import Host, Watch
from intxtrace.reconstruct import compile
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Tables
from tests.native.getppid import KIND, Getppid

pytestmark = pytest.mark.root

CALLS = 400_009


class Ring:
    """As much of a session as the view needs, on the ring of a probe of this test."""

    def __init__(self, drain: Drain) -> None:
        self.tables = Tables()
        self._drain = drain

    def take(self) -> Events:
        return self._drain.take()

    def stop(self) -> Events:
        return self._drain.take(everything=True)


def test_every_event_is_shown_and_kept(tmp_path: Path) -> None:
    compile.prepare()
    views: list[LiveView] = []
    with Getppid(1 << 26) as probe:
        drain = Drain(MappedRing(probe.bpf[b"events"].map_fd, probe.ring_bytes))
        host = Host(cast(Session, Ring(drain)), Metadata.of_this_host(["test"]))
        watch = Watch(host, LiveModel(host.tables, compile_from=0), 1 << 28)
        made = threading.Event()

        def produce() -> None:
            probe.start(CALLS)
            probe.finish()
            made.set()

        producer = threading.Thread(target=produce)
        producer.start()
        last = watch.run(made.is_set, made.wait, views.append, refresh=0.1)
        producer.join()
        assert (probe.emitted, probe.lost) == (CALLS, 0)
        drain.close()
    assert last.events == CALLS
    assert [view.events for view in views] == sorted(view.events for view in views)
    assert last.begin_at is not None
    assert last.end_at is not None
    saved = watch.save(tmp_path / "seen.intx")
    assert (saved.events, saved.dropped) == (CALLS, 0)
    events = intxtrace.open_trace(tmp_path / "seen.intx").events
    assert events["arg0"].tolist() == list(range(1, CALLS + 1))
    assert set(events["kind"]) == {KIND}
    assert last.begin_at <= int(events["ts"].max())
