"""The trace file (`*.intx`): an Arrow IPC stream of events with the tables that they name. Format version 1.0.

    schema      one non-null column per field of `events.RECORD`, same names and types, in its order;
                schema metadata `intxtrace`: JSON, the fields of `metadata.Metadata`
    batch *     columns zstd-compressed, at most 65,536 rows each as written, 1,048,576 as read;
                batch metadata `intxtrace.tables`, where a row is new or changed:
                JSON {"probes": [row, ...], "vms": [...], "devices": [...]}, rows as in `tables`
    end mark    FF FF FF FF 00 00 00 00

The first batch is written when the file is created and holds no rows of events. Events are in order of arrival, not
of `ts`. A table row holds from its batch on; a row with an id that is there already replaces it. Table rows that an
event names travel in the same batch or an earlier one.

A file without the end mark is a recording that still runs or was cut off: it is read up to its last whole batch, and
said to be cut. `repair` writes a copy that ends with the mark.

A newer minor version may add columns, JSON fields, tables and kinds: readers keep what they do not know
(`Metadata.extra`, `Row.extra`) or leave it out (columns, tables). A newer major version is refused.

Nothing in a trace is trusted: sizes are bounded before memory is taken (`messages`), JSON is checked against the
declared types (`values`), and strings may hold anything printable or not, so whoever shows one escapes it.

pyarrow (`pyarrow.ipc.open_stream`) and polars (`polars.read_ipc_stream`) read a whole file as it is.
"""
