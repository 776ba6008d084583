"""Real-time priority for what is measured, on a machine that has other work to do as well.

With MUSTER_BENCH_REALTIME=1 (Linux, as root) the broker and both ends of `message-latency` run under
SCHED_FIFO: they still share the disk and the caches with everybody, but do not queue for a processor. Without
it nothing here does anything.
"""

from __future__ import annotations

import os

import psutil

REALTIME = os.environ.get("MUSTER_BENCH_REALTIME") == "1"
_LEVEL = 10


def raise_own() -> None:
    """Raise the calling thread, and those that it starts from now on."""
    if REALTIME:
        _raise(0)


def raise_process(process: psutil.Process) -> None:
    """Raise every thread of another process, and those that they start from now on."""
    if REALTIME:
        for thread in process.threads():
            _raise(thread.id)


def _raise(thread_id: int) -> None:
    os.sched_setscheduler(thread_id, os.SCHED_FIFO, os.sched_param(_LEVEL))
