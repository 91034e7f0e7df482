"""Tables as Parquet, CSV or JSON lines, batch by batch; the columns are those of `frames`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from intxtrace import frames
from intxtrace.events import RECORD, Kind, arrow_schema

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

    from intxtrace.trace.metadata import Metadata

FORMATS = ("parquet", "csv", "jsonl")
TABLES = ("events", "interrupts", "states")
_CONTRACTS = {"interrupts": frames.INTERRUPTS, "states": frames.DEVICE_STATES}


class TableWriter(Protocol):
    """Writes one table, a part at a time."""

    def write(self, part: pa.Table) -> None:
        """Write further rows, of the writer's schema."""

    def close(self) -> None:
        """Write what comes after the last row."""


def schema(table: str, metadata: Metadata) -> pa.Schema:
    """Give the Arrow schema of a table of `TABLES`.

    `interrupts` and `states` have the columns of `frames`, with what each means as the field's metadata `description`;
    `events` those of `events.RECORD`, and `kind_name` (null for a kind of a newer version). The schema's metadata
    `intxtrace` is what the trace says about itself, as JSON.
    """
    import pyarrow as pa

    about = {b"intxtrace": metadata.to_json()}
    if table == "events":
        columns = arrow_schema()
        return columns.insert(2, pa.field("kind_name", pa.string())).with_metadata(about)
    types = {"Int64": pa.int64(), "string": pa.string(), "boolean": pa.bool_()}
    fields = [
        pa.field(name, types[dtype], metadata={"description": meaning})
        for name, (dtype, meaning) in _CONTRACTS[table].items()
    ]
    return pa.schema(fields, metadata=about)


def from_frame(frame: pd.DataFrame, wanted: pa.Schema) -> pa.Table:
    """Turn a frame of `frames` into rows of the table's schema."""
    import pyarrow as pa

    return pa.Table.from_pandas(frame, schema=wanted, preserve_index=False).replace_schema_metadata(wanted.metadata)


def from_events(events: npt.NDArray[np.void], wanted: pa.Schema) -> pa.Table:
    """Turn events (dtype RECORD) into rows of the table's schema."""
    import numpy as np
    import pyarrow as pa

    kinds = sorted(Kind)
    places = np.searchsorted(np.array([int(kind) for kind in kinds]), events["kind"]).clip(max=len(kinds) - 1)
    known = np.array([int(kind) for kind in kinds])[places] == events["kind"]
    names = pa.DictionaryArray.from_arrays(pa.array(places, mask=~known), pa.array([kind.name for kind in kinds]))
    columns = {name: pa.array(np.ascontiguousarray(events[name])) for name in RECORD.names or ()}
    columns["kind_name"] = names.cast(pa.string())
    return pa.table([columns[name] for name in wanted.names], schema=wanted)


class _JsonLines:
    """One JSON object a line, with the table's columns as its members; null stays null."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

    def write(self, part: pa.Table) -> None:
        for batch in part.to_batches(max_chunksize=10_000):
            names = batch.schema.names
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            lines = [self._encode(dict(zip(names, row, strict=True))) for row in rows]
            self._stream.write(("\n".join(lines) + "\n").encode())

    def close(self) -> None:
        pass


class _Arrow:
    """A writer of pyarrow's: it must not see an empty part, of which it would make an empty row group."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, part: pa.Table) -> None:
        if part.num_rows:
            self._writer.write_table(part)

    def close(self) -> None:
        self._writer.close()


def writer(form: str, stream: BinaryIO, columns: pa.Schema) -> TableWriter:
    """Begin a table in a format of `FORMATS`. CSV has a line of names, and nothing between commas where null is."""
    if form == "jsonl":
        return _JsonLines(stream)
    if form == "csv":
        from pyarrow import csv

        return _Arrow(csv.CSVWriter(stream, columns))
    from pyarrow import parquet

    return _Arrow(parquet.ParquetWriter(stream, columns, compression="zstd"))
