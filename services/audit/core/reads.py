"""Which reads get an entry of their own, and which are counted into one.

A read that shows entries is recorded by itself, before it is answered. Checkpoints, consistency proofs and
tiles are fetched by the hundred when a log is verified, and each entry about one would make the next
necessary; so the first in a window is recorded by itself and the rest of the window as one summary. The same
holds for refusals, so that nobody can fill the log by asking for what he may not have.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from services.common.core.instants import Instant, after

# Readers and operations that are counted at once; beyond it the oldest window ends early.
WINDOWS_MAX = 1_000


class Read(NamedTuple):
    """Who reads what kind of thing, and why it was refused if it was."""

    actor: str
    operation: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """Reads that were counted after the first one of their window."""

    read: Read
    count: int
    begin: Instant
    end: Instant
    # The first and the last thing that was read.
    first_subject: str
    last_subject: str


@dataclass(slots=True)
class _Window:
    begin: Instant
    count: int = 0
    first_subject: str = ""
    last_subject: str = ""


class ReadWindows:
    """Counts repeated reads; `due` and `flush` give what is to be recorded."""

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        # Oldest first: all windows are of the same length.
        self._windows: OrderedDict[Read, _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def seen(self, read: Read, subject: str, now: Instant) -> bool:
        """Take note of a read; return whether it is to be recorded by itself."""
        window = self._windows.get(read)
        if window is None:
            self._windows[read] = _Window(now)
            return True
        window.count += 1
        window.first_subject = window.first_subject or subject
        window.last_subject = subject
        return False

    def forget(self, read: Read) -> None:
        """Begin anew with the next such read; what was counted is lost."""
        self._windows.pop(read, None)

    def due(self, now: Instant) -> list[Summary]:
        """End the windows that are over, or too many; return those in which something was counted."""
        ended = []
        while self._windows:
            read, window = next(iter(self._windows.items()))
            if now < self._end(window) and len(self._windows) <= WINDOWS_MAX:
                break
            del self._windows[read]
            ended.append((read, window))
        return [_summary(read, window, now) for read, window in ended if window.count]

    def flush(self, now: Instant) -> list[Summary]:
        """End all windows."""
        ended, self._windows = self._windows, OrderedDict()
        return [_summary(read, window, now) for read, window in ended.items() if window.count]

    def next_end(self) -> Instant | None:
        """Return when the oldest window is over; None when there is none."""
        oldest = next(iter(self._windows.values()), None)
        return None if oldest is None else self._end(oldest)

    def _end(self, window: _Window) -> Instant:
        return after(window.begin, self._window_ms)


def _summary(read: Read, window: _Window, now: Instant) -> Summary:
    return Summary(read, window.count, window.begin, now, window.first_subject, window.last_subject)
