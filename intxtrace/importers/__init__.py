"""Foreign recordings -> events: what intxtrace's own probes would have recorded, as far as the recording tells."""
