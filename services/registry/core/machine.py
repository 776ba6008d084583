"""The states of an agent instance as a table, and what a report says about them.

Pure. See README.md for the diagram, which is made from `TABLE`.
"""

from __future__ import annotations

from enum import Enum

from services.common.core.instants import Instant
from services.common.core.machine import Table
from services.registry.core.model import AgentState, Limits, Load


class Input(Enum):
    """What can happen to one instance."""

    # A session of a new incarnation.
    OPENED = "opened"
    # Reports: work does not reach it; it has a free slot; it has none; it finishes what it holds.
    WORK_CUT = "work-cut"
    SLOT_FREE = "slot-free"
    SLOTS_FULL = "slots-full"
    DRAINING = "draining"
    # Silence, and the end of it.
    HEARTBEATS_LATE = "heartbeats-late"
    LEASE_EXPIRED = "lease-expired"
    FAREWELL = "farewell"


_OFFLINE, _JOINING, _READY, _BUSY = AgentState.OFFLINE, AgentState.JOINING, AgentState.READY, AgentState.BUSY
_SUSPECT, _DRAINING, _LOST = AgentState.SUSPECT, AgentState.DRAINING, AgentState.LOST

TABLE: Table[AgentState, Input] = Table(
    "agent",
    _OFFLINE,
    {
        # State: offline - no session
        (_OFFLINE, Input.OPENED): _JOINING,
        # State: joining - a session, and work does not reach it
        (_JOINING, Input.OPENED): _JOINING,
        (_JOINING, Input.WORK_CUT): _JOINING,
        (_JOINING, Input.SLOT_FREE): _READY,
        (_JOINING, Input.SLOTS_FULL): _BUSY,
        (_JOINING, Input.DRAINING): _DRAINING,
        (_JOINING, Input.HEARTBEATS_LATE): _SUSPECT,
        (_JOINING, Input.FAREWELL): _OFFLINE,
        # State: ready - work reaches it
        (_READY, Input.OPENED): _JOINING,
        (_READY, Input.WORK_CUT): _JOINING,
        (_READY, Input.SLOT_FREE): _READY,
        (_READY, Input.SLOTS_FULL): _BUSY,
        (_READY, Input.DRAINING): _DRAINING,
        (_READY, Input.HEARTBEATS_LATE): _SUSPECT,
        (_READY, Input.FAREWELL): _OFFLINE,
        # State: busy - work reaches it and every slot is used
        (_BUSY, Input.OPENED): _JOINING,
        (_BUSY, Input.WORK_CUT): _JOINING,
        (_BUSY, Input.SLOT_FREE): _READY,
        (_BUSY, Input.SLOTS_FULL): _BUSY,
        (_BUSY, Input.DRAINING): _DRAINING,
        (_BUSY, Input.HEARTBEATS_LATE): _SUSPECT,
        (_BUSY, Input.FAREWELL): _OFFLINE,
        # State: suspect - heartbeats are late; the next report clears it
        (_SUSPECT, Input.OPENED): _JOINING,
        (_SUSPECT, Input.WORK_CUT): _JOINING,
        (_SUSPECT, Input.SLOT_FREE): _READY,
        (_SUSPECT, Input.SLOTS_FULL): _BUSY,
        (_SUSPECT, Input.DRAINING): _DRAINING,
        (_SUSPECT, Input.LEASE_EXPIRED): _LOST,
        (_SUSPECT, Input.FAREWELL): _OFFLINE,
        # State: draining - takes nothing new; only an end or silence changes that
        (_DRAINING, Input.OPENED): _JOINING,
        (_DRAINING, Input.DRAINING): _DRAINING,
        (_DRAINING, Input.HEARTBEATS_LATE): _SUSPECT,
        (_DRAINING, Input.FAREWELL): _OFFLINE,
        # State: lost - this incarnation never comes back
        (_LOST, Input.OPENED): _JOINING,
    },
)


def read_report(
    load: Load, probe_seen: Instant | None, now: Instant, coordinator_epoch: int, limits: Limits
) -> Input:
    """Return what a report says: READY means reachable (guarantee P1).

    `probe_seen` is when the newest probe answer became known here, by this replica's clock.
    `coordinator_epoch` is the newest leadership known here, 0 for none: a work stream to an older leader
    brings no work.
    """
    if not load.work_stream_open or probe_seen is None or now - probe_seen > limits.probe_window_ms:
        return Input.WORK_CUT
    if 0 < load.coordinator_epoch < coordinator_epoch:
        return Input.WORK_CUT
    return Input.SLOT_FREE if load.slots_used < load.slots else Input.SLOTS_FULL


def probe_seen_after(before: Load, seen: Instant | None, report: Load, now: Instant) -> Instant | None:
    """Return when the newest probe answer became known here, after `report`.

    `last_probe_time` is by the agent's clock, which may be off by more than the window; so only the first
    one is believed (and never into the future), and after it each advance counts from its arrival.
    """
    if report.last_probe_time is None:
        return None
    if before.last_probe_time is None or seen is None:
        return min(now, report.last_probe_time)
    return now if report.last_probe_time > before.last_probe_time else seen
