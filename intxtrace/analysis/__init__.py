"""What the interrupts and states mean: latency, flood, quality. Frames in, frozen dataclasses out."""

from intxtrace.analysis.accumulate import Analysis, analyse
from intxtrace.analysis.results import Options, Summary
from intxtrace.analysis.rows import interrupt_rows

__all__ = ["Analysis", "Options", "Summary", "analyse", "interrupt_rows"]
