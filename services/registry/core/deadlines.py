"""One heap for the deadlines of every session: no timer for each."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

from services.common.core.instants import NEVER, Instant

K = TypeVar("K")

# Stale entries that may pile up before the heap is rebuilt, beyond one for each key.
_SLACK = 64


class Deadlines(Generic[K]):
    """Which keys are due when; each key has one deadline.

    Pushing a deadline further back costs nothing: leave the entry, and when it comes up too early, arm the
    key again. So a renewed lease touches the heap once in a time to live, not with every heartbeat.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Instant, int, K]] = []
        # The deadline and the number of the one valid entry of each key.
        self._armed: dict[K, tuple[Instant, int]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._armed)

    def arm(self, key: K, at: Instant) -> None:
        """Make `key` due at `at`, unless it is armed for an earlier instant."""
        armed = self._armed.get(key)
        if armed is not None and armed[0] <= at:
            return
        self._number += 1
        self._armed[key] = (at, self._number)
        heapq.heappush(self._heap, (at, self._number, key))
        if len(self._heap) > 2 * len(self._armed) + _SLACK:
            self._heap = [(due, number, one) for one, (due, number) in self._armed.items()]
            heapq.heapify(self._heap)

    def disarm(self, key: K) -> None:
        """Forget `key`; its entry is dropped when it comes up."""
        self._armed.pop(key, None)

    def next(self) -> Instant:
        """Return the next deadline; `NEVER` when nothing is armed."""
        while self._heap:
            at, number, key = self._heap[0]
            if self._armed.get(key) == (at, number):
                return at
            heapq.heappop(self._heap)
        return NEVER

    def due(self, now: Instant) -> list[tuple[K, Instant]]:
        """Remove and return the keys whose deadline has come, earliest first, each with its deadline."""
        found: list[tuple[K, Instant]] = []
        while self._armed and (at := self.next()) <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._armed[key]
            found.append((key, at))
        return found
