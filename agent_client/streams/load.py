"""What an agent reports of itself with every heartbeat."""

from __future__ import annotations

import os
import time
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp
from muster.registry.v1 import agent_pb2

_STATM = Path("/proc/self/statm")


class LoadMeter:
    """Measures this process and keeps what the Work stream says about itself."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._cpu_s, self._wall_s = time.process_time(), time.monotonic()
        self._cpus = os.cpu_count() or 1
        self.slots_used = 0
        # The coordinator's epoch; 0 while the Work stream is closed.
        self.coordinator_epoch = 0
        self._last_probe: Timestamp | None = None

    def probed(self) -> bool:
        """A probe is being answered now. Returns whether it is the first on this stream."""
        first = self._last_probe is None
        self._last_probe = Timestamp()
        self._last_probe.GetCurrentTime()
        return first

    def closed(self) -> None:
        """The Work stream ended."""
        self.coordinator_epoch = 0
        self._last_probe = None

    def read(self) -> agent_pb2.AgentLoad:
        """Return the report; the CPU share is that since the report before."""
        cpu_s, wall_s = time.process_time(), time.monotonic()
        elapsed_s = wall_s - self._wall_s
        report = agent_pb2.AgentLoad(
            slots=self._slots,
            slots_used=self.slots_used,
            work_stream_open=self.coordinator_epoch > 0,
            coordinator_epoch=self.coordinator_epoch,
            last_probe_time=self._last_probe,
            memory_bytes=_resident_bytes(),
        )
        if elapsed_s > 0:
            report.cpu_ratio = min(1.0, (cpu_s - self._cpu_s) / elapsed_s / self._cpus)
        self._cpu_s, self._wall_s = cpu_s, wall_s
        return report


def _resident_bytes() -> int | None:
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        # Not Linux: the field stays unset, which means "not measured".
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
