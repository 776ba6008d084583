"""What has to happen at an instant, if nothing happens before.

A binary heap with lazy deletion: cancelling marks the timer, and the heap is rebuilt when more than half of
it is cancelled. Most attempts end long before their time-out, so that without the rebuild ten minutes of
traffic would stay in memory; with it the heap holds at most twice the live timers.
"""

from __future__ import annotations

import heapq
from enum import IntEnum, auto
from typing import Any

from services.common.core.instants import NEVER, Instant

#: Below this size a rebuild costs more than it frees.
_REBUILD_SIZE_MIN = 1_024


class TimerKind(IntEnum):
    """What a timer is for; the subject's type follows from it."""

    #: Task: its retry delay is over.
    RETRY = auto()
    #: (Task, attempt number): it ran too long.
    ATTEMPT_TIMEOUT = auto()
    #: (Task, attempt number): it was asked to suspend and has not.
    SUSPEND_GRACE = auto()
    #: (Task, attempt number): it may be slow enough for a second one beside it.
    STRAGGLE = auto()
    #: Task: its newest savepoint is to be made durable.
    SAVEPOINT = auto()
    #: Task: its deadline passed.
    DEADLINE = auto()
    #: Task: it is late from now on.
    LATE = auto()
    #: Task: waiting for a better agent can gain nothing any more.
    FORESEEN = auto()
    #: Instance: it did not come back in time.
    GRACE = auto()
    #: Instance: probe it, or close its stream when it was silent for too long.
    PROBE = auto()
    #: Lock request: it waited as long as it wanted.
    LOCK_WAIT = auto()
    #: No subject: what was learned is due to be kept.
    LEARNED = auto()
    #: No subject: what runs and what waits is to be looked at.
    OBSERVE = auto()


class Timer:
    """One instant with its subject; `live` until it fired or was cancelled."""

    __slots__ = ("at", "kind", "live", "subject")

    def __init__(self, at: Instant, kind: TimerKind, subject: Any) -> None:
        self.at, self.kind, self.subject, self.live = at, kind, subject, True

    def __repr__(self) -> str:
        return f"<Timer {self.kind.name} at {self.at}{'' if self.live else ' (over)'}>"


class Timers:
    """All timers of one state."""

    def __init__(self) -> None:
        self._heap: list[tuple[Instant, int, Timer]] = []
        self._order = 0
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def set(self, at: Instant, kind: TimerKind, subject: Any) -> Timer:
        """Return a new timer that fires at `at`."""
        timer = Timer(at, kind, subject)
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, timer))
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Make sure that `timer` does not fire; None and a timer that is over are allowed."""
        if timer is None or not timer.live:
            return
        timer.live = False
        timer.subject = None
        self._cancelled += 1
        if self._cancelled * 2 > len(self._heap) > _REBUILD_SIZE_MIN:
            self._heap = [row for row in self._heap if row[2].live]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def pop_due(self, now: Instant) -> Timer | None:
        """Return the earliest timer whose instant is at or before `now`, None when there is none.

        One at a time: what one timer causes may cancel the next.
        """
        if self.next_due() > now:
            return None
        timer = heapq.heappop(self._heap)[2]
        timer.live = False
        return timer

    def next_due(self) -> Instant:
        """Return the instant of the earliest timer, NEVER when there is none."""
        while self._heap and not self._heap[0][2].live:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else NEVER
