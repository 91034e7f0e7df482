"""Trace files of every version of the format stay readable: one of each is in tests/traces/formats, never made anew.

Beside it stands what it holds. A new version adds a file: `python -m tests.unit.test_formats FILE` prints its figures.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intxtrace
from intxtrace.events import Kind
from intxtrace.trace.metadata import FORMAT_VERSION

FOLDER = Path(__file__).parents[1] / "traces" / "formats"
STORED = sorted(FOLDER.glob("*.intx"))
# The columns of 1.0. A later version may have more; what these hold of an old file must not change.
COLUMNS = ["ts", "kind", "cpu", "flags", "tgid", "tid", "value", "aux", "device", "link", "link2", "vm", "arg0", "arg1"]


def figures(path: Path) -> dict[str, Any]:
    """What a file holds: every bit of its events, its tables, and the interrupts that they are."""
    trace = intxtrace.open_trace(path)
    events = np.concatenate(list(trace.iter_events()))
    kinds = Counter(Kind(kind).name for kind in events["kind"].tolist())
    rows = trace.interrupts
    groups = rows.groupby(["path", "origin", "outcome"])["masked_ns"].agg(["size", "sum"])
    return {
        "events": len(events),
        "kinds": dict(sorted(kinds.items())),
        "columns": {name: hashlib.sha256(events[name].tobytes()).hexdigest()[:16] for name in COLUMNS},
        "metadata": trace.metadata.to_values(),
        "vms": [row.to_json() for row in trace.tables.vms],
        "devices": [row.to_json() for row in trace.tables.devices],
        "probes": [[row.name, row.state, row.method, row.target] for row in trace.tables.probes],
        "interrupts": {
            " ".join(map(str, key)): [int(n) for n in row]
            for key, row in zip(groups.index, groups.to_numpy(), strict=True)
        },
        "states": trace.states["state"].tolist(),
    }


def test_there_is_a_file_of_this_version() -> None:
    assert FORMAT_VERSION in {path.stem for path in STORED}


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_file_says_what_it_said(path: Path) -> None:
    wanted = json.loads(path.with_suffix(".json").read_text())
    found = figures(path)
    assert found["metadata"]["format_version"] == path.stem
    for name, value in wanted.items():
        if name in ("vms", "devices"):  # rows of a newer intxtrace have further fields
            assert [{key: row[key] for key in old} for row, old in zip(found[name], value, strict=True)] == value
        elif name == "metadata":
            assert {key: found[name][key] for key in value} == value
        else:
            assert found[name] == value, name


if __name__ == "__main__":
    print(json.dumps(figures(Path(sys.argv[1])), indent=1, ensure_ascii=False))
