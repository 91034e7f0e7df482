"""What the interrupts and states mean: latency, flood, quality. Frames in, frozen dataclasses out."""

from intxtrace.analysis.accumulate import Analysis, Metadata, analyse
from intxtrace.analysis.results import Options, Summary
from intxtrace.analysis.rows import interrupt_rows

__all__ = ["Analysis", "Metadata", "Options", "Summary", "analyse", "interrupt_rows"]
