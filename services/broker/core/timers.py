"""When the core wants to be stepped next. Timers are never cancelled: whoever is woken looks again."""

from __future__ import annotations

from enum import IntEnum
from heapq import heappop, heappush

from services.broker.core.state import Domain, Sender, Session
from services.common.core.instants import Instant


class TimerKind(IntEnum):
    """What is looked at when a timer is due."""

    ACK_DEADLINE = 0
    RESUME_WINDOW = 1
    DELAY = 2
    EXPIRY = 3
    DEDUP_WINDOW = 4


Subject = Session | Domain | Sender


class Timers:
    """A heap of due times."""

    __slots__ = ("_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[Instant, int, TimerKind, Subject]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, due: Instant, kind: TimerKind, subject: Subject) -> None:
        """Wake `subject` at `due`, or a little later."""
        self._count += 1
        heappush(self._heap, (due, self._count, kind, subject))

    def next_due(self) -> Instant | None:
        """Return when the first timer is due; None without timers."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: Instant) -> tuple[TimerKind, Subject] | None:
        """Remove and return one timer that is due by `now`; None when there is none."""
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, kind, subject = heappop(self._heap)
        return kind, subject
