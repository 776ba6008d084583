"""A timer that many may set and that rings once, at the first of the instants asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Owned by the event loop. Who is woken looks at the time and sets it again."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def ring_within(self, wait_ms: int) -> None:
        """Ring in `wait_ms` or earlier: a timer that is due before is left as it is, and costs nothing."""
        loop = asyncio.get_running_loop()
        # Clocks count whole milliseconds: waking a little early would turn the loop for nothing.
        wait_s = max(1, wait_ms) / 1000
        if self._timer is not None:
            if self._timer.when() <= loop.time() + wait_s:
                return
            self._timer.cancel()
        self._timer = loop.call_later(wait_s, self._wake)

    def stop(self) -> None:
        """Do not ring any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self._timer = None
        self._ring()
