"""When to renew the session's lease, and when to take the registry for gone.

The session is one incarnation of this agent. It survives a lost link for as long as its lease lives: the
next hello names it, and the registry lets the same incarnation go on.
"""

from __future__ import annotations

from dataclasses import dataclass

# A change of the report is sent at once, but not more often than this, in milliseconds.
HURRIED_INTERVAL_MS = 100


@dataclass(frozen=True, slots=True)
class SessionWelcome:
    """The registry's answer to a hello; durations in milliseconds."""

    session_id: str
    incarnation: int
    lease_ttl_ms: int
    heartbeat_interval_ms: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat to send."""

    sequence_number: int
    # Of an earlier heartbeat, in microseconds; 0 when none was measured yet.
    round_trip_us: int


class SessionCore:
    """The session's state across links. All instants are monotonic milliseconds."""

    def __init__(self) -> None:
        # Kept across links.
        self._session_id = ""
        self._incarnation = 0
        self._round_trip_us = 0
        # Of the current link.
        self._lease_ttl_ms = 0
        self._interval_ms = 0
        self._sequence_number = 0
        self._beat_at = 0
        self._heard_at = 0
        self._hurried = False

    def __repr__(self) -> str:
        return f"SessionCore(incarnation={self._incarnation}, beats={self._sequence_number})"

    @property
    def resume_session_id(self) -> str:
        """What the next hello must name; empty before the first welcome."""
        return self._session_id

    @property
    def incarnation(self) -> int:
        """The current incarnation; 0 before the first welcome."""
        return self._incarnation

    @property
    def round_trip_us(self) -> int:
        """Round trip of the newest measured heartbeat in microseconds; 0 when unknown."""
        return self._round_trip_us

    def welcomed(self, welcome: SessionWelcome, now: int) -> None:
        """A link was opened; its heartbeats are numbered from 1."""
        self._session_id, self._incarnation = welcome.session_id, welcome.incarnation
        self._lease_ttl_ms = max(1, welcome.lease_ttl_ms)
        # An interval that the registry leaves out, or that is longer than the lease, would lose the session.
        third = max(1, self._lease_ttl_ms // 3)
        self._interval_ms = min(welcome.heartbeat_interval_ms or third, third)
        self._sequence_number = 0
        self._beat_at = now + self._interval_ms
        self._heard_at = now
        self._hurried = False

    def hurry(self) -> None:
        """The report changed in a way that the plane acts on: send it before the next regular heartbeat."""
        self._hurried = True

    def beat_due_at(self) -> int:
        """Return when the next heartbeat must be sent."""
        if not self._hurried:
            return self._beat_at
        last = self._beat_at - self._interval_ms
        # The first beat of a link may go out at once; later ones keep a distance.
        return min(self._beat_at, last + HURRIED_INTERVAL_MS if self._sequence_number else last)

    def beat(self, now: int) -> Beat:
        """Return the heartbeat to send at `now`."""
        self._sequence_number += 1
        self._hurried = False
        self._beat_at = now + self._interval_ms
        return Beat(self._sequence_number, self._round_trip_us)

    def acked(self, now: int, round_trip_us: int = 0) -> None:
        """The registry confirmed a heartbeat; `round_trip_us` is 0 when it was not measured."""
        self._heard_at = now
        self._round_trip_us = round_trip_us or self._round_trip_us

    def silent_at(self) -> int:
        """Return when a registry that says nothing is taken for gone: one lease after it was last heard.

        By then the lease has ended at the registry too, if it never got the heartbeats; opening the link
        anew either resumes the session or starts the next incarnation.
        """
        return self._heard_at + self._lease_ttl_ms
