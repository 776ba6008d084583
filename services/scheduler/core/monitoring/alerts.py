"""Alerts that stand, and those that did: one for each kind and subject. Bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from services.common.core.instants import Instant

#: Standing alerts, and cleared ones that are still shown. What does not fit is counted.
STANDING_MAX = 1_000
CLEARED_MAX = 256


class AlertKind(IntEnum):
    """What is out of the ordinary; the numbers are the proto's."""

    STUCK_TASK = 1
    FLAPPING_AGENT = 2
    GROWING_QUEUE = 3
    DRIFTING_PREDICTION = 4
    LATE = 5


class Alert(NamedTuple):
    """One thing that somebody should look at."""

    kind: AlertKind
    subject: str
    message: str
    raise_time: Instant
    clear_time: Instant | None = None


class Alerts:
    """See the module. Owned by the scheduler's book."""

    def __init__(self) -> None:
        self.standing: dict[tuple[AlertKind, str], Alert] = {}
        self.cleared: deque[Alert] = deque(maxlen=CLEARED_MAX)
        #: Alerts that found no room, in all.
        self.overflow_count = 0

    def put(self, kind: AlertKind, subject: str, message: str, now: Instant) -> Alert | None:
        """Raise an alert; return it when it is new, None when it stood already or has no room."""
        key = (kind, subject)
        if key in self.standing:
            return None
        if len(self.standing) >= STANDING_MAX:
            self.overflow_count += 1
            return None
        alert = self.standing[key] = Alert(kind, subject, message, now)
        return alert

    def clear(self, kind: AlertKind, subject: str, now: Instant) -> Alert | None:
        """Clear an alert; return it as it ended, None when it did not stand."""
        alert = self.standing.pop((kind, subject), None)
        if alert is None:
            return None
        alert = alert._replace(clear_time=now)
        self.cleared.append(alert)
        return alert

    def of(self, kind: AlertKind) -> list[str]:
        """Return the subjects of the standing alerts of one kind."""
        return [subject for each, subject in self.standing if each is kind]

    def newest_first(self, *, include_cleared: bool) -> Iterator[Alert]:
        """Yield standing alerts, then cleared ones if wanted, each newest first."""
        yield from reversed(self.standing.values())
        if include_cleared:
            yield from reversed(self.cleared)
