"""The trace file: an Arrow IPC stream of events with the tables that they name."""
