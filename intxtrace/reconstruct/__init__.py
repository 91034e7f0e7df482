"""Events to interrupts and device states: pure, incremental, no files, no clock."""
