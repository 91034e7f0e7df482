"""Recordings that intxtrace made in the lab, against the truth that lies beside them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import intxtrace
from intxtrace.reconstruct import Reconstructor
from tests.lab.compare import compare
from tests.lab.truth import Truth

FOLDER = Path(__file__).parents[1] / "traces"
RECORDINGS = sorted(FOLDER.glob("*.intx"))


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def recording(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_is_a_recording_of_each_path() -> None:
    one_card = {f"{path}-{kernel}" for path in ("kernel", "hybrid", "userspace") for kernel in ("6.1", "6.12")}
    assert {path.stem for path in RECORDINGS} == one_card | {
        f"pair-{path}-6.1" for path in ("kernel", "hybrid", "userspace")
    }


def test_every_figure_equals_the_truth(recording: Path) -> None:
    rows = compare(recording, Truth.read(recording.with_suffix(".truth.json")))
    assert [row for row in rows if not row.holds] == []


def test_the_truths_figures_are_those_of_qemus_log(recording: Path) -> None:
    truth = Truth.read(recording.with_suffix(".truth.json"))
    lines = recording.with_suffix(".qemu.log").read_text().splitlines()
    for event, number in truth.qemu_events.items():
        assert sum(f":{event} " in line for line in lines) == number, event
    for card in truth.cards:
        for event, number in card.qemu_events.items():
            assert sum(f":{event} " in line and card.bdf in line for line in lines) == number, (card.bdf, event)


def test_resignals_have_their_parents(recording: Path) -> None:
    interrupts = intxtrace.open_trace(recording).interrupts
    resignals = interrupts[interrupts["origin"] == "resignal"]
    parents = interrupts.set_index("id").loc[resignals["parent_id"].astype(int)]
    assert parents["unmasked_at"].isna().all()
    assert (parents["raised_at"].to_numpy() < resignals["raised_at"].to_numpy()).all()
    assert (len(resignals) > 0) == ("userspace" in recording.stem)


def test_stages_follow_each_other(recording: Path) -> None:
    interrupts = intxtrace.open_trace(recording).interrupts
    stages = interrupts[["raised_at", "signalled_at", "injected_at", "acknowledged_at", "unmasked_at"]]
    for one in stages.itertuples(index=False):
        known = [instant for instant in one if not pd.isna(instant)]
        assert known == sorted(known)
    assert (interrupts["unmask_proof"].dropna() == "checked").all()


@pytest.mark.parametrize("size", [1, 7, 100])
def test_any_cut_gives_the_same_rows(recording: Path, size: int) -> None:
    trace = intxtrace.open_trace(recording)
    whole = trace.interrupts
    events = list(intxtrace.open_trace(recording).iter_events())
    reconstructor = Reconstructor(trace.tables)
    parts = [
        reconstructor.feed(batch[at : at + size]).interrupts for batch in events for at in range(0, len(batch), size)
    ]
    parts.append(reconstructor.finish().interrupts)
    rows = pd.concat([part for part in parts if len(part)], ignore_index=True).sort_values("id", ignore_index=True)
    pd.testing.assert_frame_equal(rows, whole.sort_values("id", ignore_index=True))
