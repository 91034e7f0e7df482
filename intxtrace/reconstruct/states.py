"""What a device's delivery is, between two instants."""

from __future__ import annotations

from typing import Any

from intxtrace.reconstruct.ending import vm_row
from intxtrace.reconstruct.identity import device_of_qemu
from intxtrace.reconstruct.state import NULL, State
from intxtrace.reconstruct.vocabulary import BARS_MAPPED, BARS_UNMAPPED, INTERRUPT_SEEN, NO_STATE


def observe_path(s: State, d: int, state: int, certain: bool) -> None:
    """An interrupt shows the state of its device, where no set-up call of this trace did."""
    device = s.devices[d]
    if device.state == state:
        return
    if device.state == NO_STATE:
        # No call changed it since the trace began, so it was so from the beginning.
        device.state = state
        device.state_reason = INTERRUPT_SEEN
    elif certain:
        set_state(s, d, state, INTERRUPT_SEEN, 0, s.machine[0].now)


def bars_mapped(device: Any) -> int:
    """Return 1 if every known region is mapped into the guest, 0 if one traps, NULL if none is known."""
    if device.bars_known == 0:
        return NULL
    return 1 if device.bars_mapped == device.bars_known else 0


def set_state(s: State, d: int, state: int, reason: int, errno: int, ts: int) -> None:
    """End the device's state and begin another."""
    device = s.devices[d]
    if device.state == state and device.state_reason == reason and device.state_errno == errno:
        return
    end_state(s, d, ts)
    device.state = state
    device.state_at = ts
    device.state_reason = reason
    device.state_errno = errno


def end_state(s: State, d: int, ts: int) -> None:
    """Hand out the device's state; one that lasted no time is left out. `ts` NULL: it lasts."""
    device = s.devices[d]
    if ts == device.state_at:
        return
    m = s.machine[0]
    row = s.state_rows[m.out_states]
    m.out_states += 1
    row.device = device.id
    row.bdf = device.bdf
    row.vm = vm_row(s, d)
    row.state = device.state
    row.bars_mapped = bars_mapped(device)
    row.begin_at = device.state_at
    row.end_at = ts
    row.reason = device.state_reason
    row.errno = device.state_errno


def on_qemu_mmaps(s: State, e: Any) -> None:
    """vfio_region_mmaps_set_enabled: a BAR is mapped into the guest, or traps."""
    d = device_of_qemu(s, e)
    if d < 0 or not 0 <= e.aux < 32:
        return
    device = s.devices[d]
    before = bars_mapped(device)
    bit = 1 << e.aux
    known = device.bars_known | bit
    mapped = device.bars_mapped | bit if e.value else device.bars_mapped & ~bit
    after = 1 if mapped == known else 0
    if after != before:
        end_state(s, d, e.ts)
        device.state_at = e.ts
        device.state_reason = BARS_MAPPED if after else BARS_UNMAPPED
        device.state_errno = 0
    device.bars_known = known
    device.bars_mapped = mapped
