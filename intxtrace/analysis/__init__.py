"""What the interrupts and states mean: latency, flood, quality. Frames in, frozen dataclasses out."""
