"""The only reader of time; everything else is given `Instant`s or a `Clock`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

from services.common.core.instants import Instant


class Clock(Protocol):
    """Tells the time; tests replace it with `services.common.testing.clock.FakeClock`."""

    def now(self) -> Instant:
        """Return milliseconds since the Unix epoch; never less than what was returned before."""
        ...

    def monotonic_ms(self) -> int:
        """Return milliseconds since an arbitrary start; for measuring spans, never sent to others."""
        ...


class SystemClock:
    """The machine's clock, read once; from then on the monotonic clock carries it.

    A stepped wall clock (an operator, a first NTP sync) would end leases too early or run a deadline twice.
    The monotonic clock is slewed by NTP like the wall clock but never stepped, so drift stays corrected.
    The price: a step that happens while the process runs is seen at its next start only.
    """

    def __init__(self) -> None:
        self._anchor_ms = time.time_ns() // 1_000_000
        self._start_ns = time.monotonic_ns()

    def now(self) -> Instant:
        """Return milliseconds since the Unix epoch; never less than what was returned before."""
        return Instant(self._anchor_ms + (time.monotonic_ns() - self._start_ns) // 1_000_000)

    def monotonic_ms(self) -> int:
        """Return milliseconds since an arbitrary start."""
        return time.monotonic_ns() // 1_000_000


def to_datetime(instant: Instant) -> datetime:
    """Return `instant` as an aware UTC datetime."""
    return datetime.fromtimestamp(instant / 1000, UTC)
