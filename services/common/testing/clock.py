"""Time that passes only when a test says so."""

from __future__ import annotations

from services.common.core.instants import Instant


class FakeClock:
    """A `Clock` that stands still until `advance`; with `auto_jump_ms` each reading of `now` moves it."""

    def __init__(self, now_ms: int = 1_700_000_000_000, *, auto_jump_ms: int = 0) -> None:
        self._now_ms = now_ms
        self._start_ms = now_ms
        self._auto_jump_ms = auto_jump_ms

    def now(self) -> Instant:
        """Return the time, then jump."""
        read = self._now_ms
        self._now_ms += self._auto_jump_ms
        return Instant(read)

    def monotonic_ms(self) -> int:
        """Return milliseconds since this clock was made."""
        return self._now_ms - self._start_ms

    def advance(self, by_ms: int) -> Instant:
        """Move on by `by_ms` >= 0 milliseconds and return the new time."""
        if by_ms < 0:
            raise ValueError("time does not go back")
        self._now_ms += by_ms
        return Instant(self._now_ms)
