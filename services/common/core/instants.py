"""Time as the cores see it: integers, given to them, never read."""

from __future__ import annotations

from typing import NewType

# Milliseconds since the Unix epoch.
Instant = NewType("Instant", int)
# Milliseconds.
Duration = NewType("Duration", int)

NEVER = Instant(2**62)


def after(now: Instant, delay_ms: int) -> Instant:
    """Return the instant `delay_ms` milliseconds after `now`."""
    return Instant(now + delay_ms)
